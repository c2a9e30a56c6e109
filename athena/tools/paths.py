"""Paths and files as tools see them: which file an argument means, how it is read as text, how it is replaced."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path, PurePosixPath

from athena.messages import clean_text
from athena.tools.base import ToolFailure

FILE_LIMIT_BYTES = 2_000_000
OUTPUT_CAP_BYTES = 16_000

ARTIFACT_DIRS = ("_build", "deps", "node_modules", ".git", "priv/static", "tmp", "__pycache__", ".venv")
"""Directories that searches leave out at any depth. The last two are ours, the others the reference's."""


def resolve(cwd: Path, path: str) -> Path:
    """The file that ``path`` means. Absolute paths pass as they are; relative ones are below ``cwd``.

    Raises :class:`ToolFailure` for a blank path, a NUL character, or a relative path with a ``..`` in it.
    """
    if not path.strip():
        raise ToolFailure("path is empty; give a file path")
    if "\0" in path:
        raise ToolFailure("path has a NUL character in it")
    path = clean_text(path)
    if path.startswith("/"):
        return Path(path)
    if ".." in PurePosixPath(path).parts:
        raise ToolFailure(f"path {path!r} goes out of the working directory with '..'; give an absolute path instead")
    return cwd / path


def failed(action: str, path: str, error: OSError) -> ToolFailure:
    """The failure that tells the model which file could not be used, and why."""
    return ToolFailure(f"cannot {action} {path!r}: {error.strerror or error}")


def read_regular(target: Path, shown: str) -> bytes:
    """The bytes of a regular file of at most 2 MB. Never blocks on a pipe or device."""
    try:
        with open(target, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            row = os.fstat(file.fileno())
            if not stat.S_ISREG(row.st_mode):
                raise ToolFailure(f"{shown!r} is a {_kind(row.st_mode)}, not a regular file")
            content = file.read(FILE_LIMIT_BYTES + 1)
    except IsADirectoryError as error:
        raise ToolFailure(f"{shown!r} is a directory, not a regular file; glob lists what is in it") from error
    except OSError as error:
        raise failed("read", shown, error) from error
    if len(content) > FILE_LIMIT_BYTES:
        size_bytes = max(row.st_size, len(content))
        raise ToolFailure(
            f"{shown!r} is too large: {size_bytes} bytes, the limit is {FILE_LIMIT_BYTES}; grep it, or cut it with bash"
        )
    return content


def replace_file(target: Path, content: str, shown: str) -> int:
    """Make ``content`` the whole of the file: all of it or nothing, mode kept, a symlink followed. Returns the bytes.

    Where the directory takes no new file, or the file is a mount point, it is written in place instead.
    """
    data = clean_text(content).encode("utf-8")
    real = Path(os.path.realpath(target))
    try:
        row = os.stat(real) if real.exists() else None
        if row is None:
            _swap_in(real, data, None)
            return len(data)
        if not stat.S_ISREG(row.st_mode):
            raise ToolFailure(f"{shown!r} is a {_kind(row.st_mode)}, not a regular file")
        if not os.access(real, os.W_OK):  # a rename would not ask
            raise PermissionError(errno.EACCES, "Permission denied (the file is read-only)")
        try:
            _swap_in(real, data, row)
        except OSError as error:
            if error.errno not in _WRITE_IN_PLACE:
                raise
            _overwrite(real, data)
    except OSError as error:
        raise failed("write", shown, error) from error
    return len(data)


def cut_bytes(text: str, limit_bytes: int) -> str:
    """The longest beginning of ``text`` that takes at most ``limit_bytes`` in UTF-8."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit_bytes else data[:limit_bytes].decode("utf-8", "ignore")


_WRITE_IN_PLACE = frozenset({errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV})
"""A directory that takes no new file, an owner that cannot be kept, a mount point, an overlay that cannot rename."""


def _overwrite(real: Path, data: bytes) -> None:
    with open(real, "r+b") as file:
        file.write(data)
        file.truncate()


def _swap_in(real: Path, data: bytes, row: os.stat_result | None) -> None:
    temporary = real.with_name(f".{real.name[:100]}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            if row:
                _take_over(file.fileno(), row)
        os.rename(temporary, real)
    except BaseException:
        os.unlink(temporary)
        raise


def _take_over(descriptor: int, row: os.stat_result) -> None:
    mine = os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) != (row.st_uid, row.st_gid):
        os.fchown(descriptor, row.st_uid, row.st_gid)  # refused unless root: then written in place, owner kept
    os.fchmod(descriptor, stat.S_IMODE(row.st_mode))


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device"}
    return kinds.get(stat.S_IFMT(mode), "device")
