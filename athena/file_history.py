"""What files were before a tool changed them, and bringing it back.

Before a tool replaces a file, the file's bytes go to a blob beside the log and a ``file_edit`` event says so, with what
the file is about to become; only then is it changed. A rewind changes files in the same way, each with a ``file_edit``
of its own first. So a crash in the middle leaves nothing in doubt: the next life sees which files are as they should be
and does the others; and a rewind can be undone by another one.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from athena.errors import NotFound, StoreError
from athena.loop.history import Content, FileEdit, Restoring, changed_files, last_edit
from athena.points import CONFLICT, DELETED, FAILED, NOT_KEPT, RESTORED, UNCHANGED, FileOutcome
from athena.recorder import Recorder
from athena.redact import Redactor

KEEP_BYTES = 16 * 1024 * 1024
"""Of a larger file no copy is kept."""

_WHY = {
    "too_large": f"more than {KEEP_BYTES} bytes",
    "quota": "the session's quota is full",
    "secret": "a secret of the session is in it, which no file of ours may hold",
    "store": "the session's store keeps no files",
    "unreadable": "it could not be read",
}
_SLICE_BYTES = 1 << 20
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_IN_PLACE = frozenset({errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV})
"""As for the tools: a directory that takes no new file, an owner that cannot be kept, a mount point."""


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file as it is: its mode and hash, and its bytes unless they are too many."""

    mode: int
    sha256: str
    size_bytes: int
    data: bytes | None


class FileHistory:
    """Keeps what the files of a session were. ``turn`` is the one whose tools change them."""

    def __init__(self, recorder: Recorder, redactor: Redactor, turn: str | None = None) -> None:
        self._recorder = recorder
        self._redactor = redactor
        self._turn = turn

    async def keep(self, call_id: str, target: Path, content: bytes | None) -> None:
        """See :meth:`athena.tools.base.ToolContext.editing`. What is no regular file is left to the tool, which will
        fail."""
        path = os.path.realpath(target)
        try:
            before = await self._kept(await asyncio.to_thread(look, path))
        except PermissionError:  # what cannot be read may be replaced all the same
            before = asdict(Content(0, not_kept="unreadable"))
        except OSError:
            return
        after = None if content is None else hashlib.sha256(content).hexdigest()
        data = {"call": call_id, "path": path, "before": before, "after": after}
        await self._recorder.record("file_edit", data, self._turn)
        await self._recorder.barrier()

    async def restore(self, restoring: Restoring, read_blob: Callable[[str], bytes]) -> list[FileOutcome]:
        """Bring every file that was changed after the rewind's point back to what it was there.

        Files that somebody else has changed since are restored too, once their version is kept. Each file is replaced
        as a whole or not at all.
        """
        edits = self._recorder.state.edits
        first = changed_files(edits, restoring.to, restoring.seq)
        return [await self._one(edit, restoring, read_blob) for _, edit in sorted(first.items())]

    async def _one(self, edit: FileEdit, restoring: Restoring, read_blob: Callable[[str], bytes]) -> FileOutcome:
        path, wanted = edit.path, edit.before
        last = last_edit(self._recorder.state.edits, path)
        done = last.outcome if last.seq > restoring.seq else None  # by a life that ended in the middle
        try:
            current = await asyncio.to_thread(look, path)
            if wanted is not None and wanted.ref is None:
                return FileOutcome(path, NOT_KEPT, _WHY.get(wanted.not_kept or "", wanted.not_kept))
            if _sha(current) == (None if wanted is None else wanted.sha256):
                return FileOutcome(path, done or UNCHANGED)
            data = None if wanted is None else read_blob(str(wanted.ref))
            kept = await self._kept(current)
            is_ours = done is not None or _sha(current) in (last.after, last.before.sha256 if last.before else None)
            if not is_ours and kept is not None and kept["ref"] is None:
                why = _WHY[kept["not_kept"]]
                return FileOutcome(path, CONFLICT, f"changed by somebody else, and no copy can be kept ({why}): left")
            outcome = done or ((DELETED if data is None else RESTORED) if is_ours else CONFLICT)
            after = None if wanted is None else wanted.sha256
            record = {"rewind": restoring.seq, "path": path, "before": kept, "after": after, "outcome": outcome}
            await self._recorder.record("file_edit", record)
            await self._recorder.barrier()
            put(path, data, wanted.mode if wanted is not None else 0)
        except (OSError, NotFound, StoreError) as error:  # one file, and not the session, fails
            return FileOutcome(path, FAILED, _said(error) if isinstance(error, OSError) else error.message)
        detail = "changed by somebody else; their version is kept, and comes back by undoing this rewind"
        return FileOutcome(path, outcome, detail if outcome == CONFLICT else None)

    async def _kept(self, found: Found | None) -> dict[str, Any] | None:
        if found is None:
            return None
        ref, why = await self._kept_bytes(found.data)
        return asdict(Content(found.mode, found.sha256, ref, found.size_bytes, why))

    async def _kept_bytes(self, data: bytes | None) -> tuple[str | None, str | None]:
        if data is None:
            return None, "too_large"
        text = data.decode("utf-8", "replace")
        if self._redactor.text(text) != text:
            return None, "secret"
        return await self._recorder.keep(data)


# --- files ------------------------------------------------------------------------------------------------------------


def look(path: str) -> Found | None:
    """The regular file at ``path``, which has no symbolic link in it; ``None`` if nothing is there.

    Raises ``OSError`` for anything else that is there.
    """
    try:
        with _directory(path, make=False) as (directory, name):
            fd = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=directory)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        row = os.fstat(fd)
        if not stat.S_ISREG(row.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        digest, pieces, size_bytes = hashlib.sha256(), [], 0
        while piece := file.read(_SLICE_BYTES):
            digest.update(piece)
            size_bytes += len(piece)
            if size_bytes <= KEEP_BYTES:
                pieces.append(piece)
            else:
                pieces.clear()
    data = b"".join(pieces) if size_bytes <= KEEP_BYTES else None
    return Found(stat.S_IMODE(row.st_mode), digest.hexdigest(), size_bytes, data)


def put(path: str, data: bytes | None, mode: int) -> None:
    """Make ``data`` the whole of a file, or remove it for ``None``: all of it or nothing, on disk when this returns. No
    symbolic link is followed. Raises ``OSError``."""
    with _directory(path, make=data is not None) as (directory, name):
        if data is None:
            os.unlink(name, dir_fd=directory)
        else:
            row = _row(name, directory)
            if row is not None and not os.access(name, os.W_OK, dir_fd=directory):  # a rename would not ask
                raise PermissionError(errno.EACCES, "it is read-only")
            try:
                _swap_in(name, directory, data, mode, row)
            except OSError as error:
                if row is None or error.errno not in _IN_PLACE:
                    raise
                _overwrite(name, directory, data)
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.fsync(listing)
        finally:
            os.close(listing)


@contextmanager
def _directory(path: str, *, make: bool) -> Iterator[tuple[int, str]]:
    """A descriptor of the directory of ``path``, found step by step so that no link is followed, and the name in it."""
    *parents, name = Path(path).parts[1:]
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parents:
            if make and _row(part, fd) is None:
                os.mkdir(part, dir_fd=fd)
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd, name
    finally:
        os.close(fd)


def _row(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _swap_in(name: str, directory: int, data: bytes, mode: int, row: os.stat_result | None) -> None:
    part = f".{name[:100]}.{secrets.token_hex(6)}.tmp"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=directory)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if row is not None and (row.st_uid, row.st_gid) != (os.fstat(fd).st_uid, os.fstat(fd).st_gid):
                os.fchown(fd, row.st_uid, row.st_gid)
            os.fchmod(fd, mode)
            os.fsync(fd)
        os.rename(part, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(part, dir_fd=directory)
        raise


def _overwrite(name: str, directory: int, data: bytes) -> None:
    with open(os.open(name, os.O_WRONLY | _FLAGS, dir_fd=directory), "wb") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _sha(found: Found | None) -> str | None:
    return None if found is None else found.sha256


def _said(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "a symbolic link, or a file, is in its path now: left alone"
    return error.strerror or str(error)
