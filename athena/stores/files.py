"""Log files as such: found, opened, locked, mended and read; all but appending.

What is opened is a regular file of its own name, never what a symbolic link points to; directories and files that we
make are private whatever the umask says. The lock is the kernel's, on the log itself: it ends with its holder,
however that ends, and no file is left behind that could go stale.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from athena.errors import DiskError, LogLocked, StoreError
from athena.events import Event
from athena.stores.base import Damage
from athena.stores.lines import (
    MAX_LINE_BYTES,
    PROBE_BYTES,
    SLICE_BYTES,
    Tally,
    begun_by,
    end_of_lines,
    is_event,
    read_events,
    split_lines,
    tail_events,
)

MOUNTS = Path("/proc/self/mountinfo")

_LOCAL_FUSE = "ext2|bindfs|cryfs|encfs|gocryptfs|mergerfs|fuse-overlayfs|ntfs-3g"
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|coda|lustre|gfs2|ocfs2|glusterfs|davfs|vboxsf|prl_fs"
    rf"|fuse\.(?!(?:{_LOCAL_FUSE})$).+"
)
"""Types whose locks and syncs may mean less than on a local disk. Of FUSE only what is known to be local passes, as
most of the others (sshfs, s3fs, rclone, shared folders of virtual machines) are not."""

_DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS})
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: a FIFO in our place must not block us
_TO_APPEND = os.O_RDWR | os.O_APPEND | _FLAGS


def store_error(error: OSError, doing: str, path: Path, session_id: str | None = None) -> StoreError:
    """``error`` as a :class:`DiskError` if the disk is to blame (it may pass), else as a :class:`StoreError`."""
    kind = DiskError if error.errno in _DISK_ERRNOS else StoreError
    reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
    return kind(f"cannot {doing} {str(path)!r}: {reason}", session_id=session_id, path=str(path), errno=error.errno)


def make_private_dirs(path: Path) -> list[Path]:
    """Make ``path`` and its missing parents with mode 0700. Returns the directories that hold a new entry by that,
    which a sync must cover. One that exists stays as it is."""
    missing: list[Path] = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            continue  # another process was faster
        directory.chmod(0o700)  # mkdir applies the umask, which may take even our own bits
    return [directory.parent for directory in missing]


def open_log_to_read(path: Path) -> int:
    """A descriptor of the log at ``path``. Raises ``OSError``, also for what is no regular file."""
    return _only_regular(os.open(path, os.O_RDONLY | _FLAGS))


def read_log(path: Path, session_id: str, after: int, tally: Tally) -> Iterator[Event]:
    """The events with ``seq > after`` that are in the file when the first is asked for; none if there is no file."""
    try:
        fd = open_log_to_read(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise store_error(error, "read the log", path, session_id) from error
    try:
        yield from read_events(fd, os.fstat(fd).st_size, after, tally)
    except OSError as error:
        raise store_error(error, "read the log", path, session_id) from error
    finally:
        os.close(fd)


def read_log_tail(path: Path, session_id: str, count: int) -> list[Event]:
    """The last ``count`` events; none if there is no file. The rest of the file is not read."""
    try:
        fd = open_log_to_read(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise store_error(error, "read the log", path, session_id) from error
    try:
        return tail_events(fd, os.fstat(fd).st_size, count)
    except OSError as error:
        raise store_error(error, "read the log", path, session_id) from error
    finally:
        os.close(fd)


def open_log_to_write(path: Path, session_id: str, *, make: bool = True) -> int:
    """A descriptor of the log at ``path``, made if missing and ``make``, that appends and holds the lock.

    Raises :class:`LogLocked`, and ``OSError`` also for what is no regular file.
    """
    while True:
        fd = _open_or_make(path) if make else _only_regular(os.open(path, _TO_APPEND))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(fd, path):
                return fd
            os.close(fd)  # its holder removed it between our open and our lock: what we locked has no name any more
        except BlockingIOError:
            holder = lock_holder(fd)
            os.close(fd)
            raise LogLocked(
                f"another process{f' (pid {holder})' if holder else ''} writes the log {str(path)!r}",
                session_id=session_id,
                path=str(path),
                pid=holder,
            ) from None
        except BaseException:
            os.close(fd)
            raise


def lock_holder(fd: int, locks: Path = Path("/proc/locks")) -> int | None:
    """The process that locked the file of ``fd``, if the kernel tells (not across PID namespaces, not on btrfs)."""
    info = os.fstat(fd)
    wanted = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    try:
        rows = [line.split() for line in locks.read_text().splitlines()]
    except OSError:
        return None
    for row in rows:
        if len(row) > 5 and row[1] == "FLOCK" and row[5] == wanted and row[4].isdigit():
            return int(row[4]) or None
    return None


def refuse_foreign(fd: int, path: Path, session_id: str) -> None:
    """Raise :class:`StoreError` if the log at ``path`` begins as another session's.

    Two sessions that go on from one history would both carry out what is open in it.
    """
    end = min(os.fstat(fd).st_size, MAX_LINE_BYTES)  # a log without lines must not be read to its end
    owner = begun_by(next(split_lines(fd, 0, end, PROBE_BYTES), None))
    if owner is not None and owner != session_id:
        raise StoreError(
            f"the log {str(path)!r} is a copy of session {owner!r}, whose open turn and queue it would carry out a"
            f" second time; continue {owner!r}, or remove this file",
            session_id=session_id,
            path=str(path),
            belongs_to=owner,
        )


def network_file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the file system of ``path`` if it is on another machine, else ``None``, as when it cannot be told."""
    try:
        rows = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path) + "/"
    found, longest = "", 0
    for row in rows:
        before, _, after = row.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), before.split(" ")[4]).rstrip("/") + "/"
        # Not "longer than": of two mounts on one place the later one covers the earlier.
        if len(point) >= longest and real.startswith(point):
            found, longest = after.split(" ")[0], len(point)
    return found if _NETWORK.fullmatch(found) else None


def mend_tail(fd: int, path: Path) -> Damage:
    """Bring the log's end to a newline. Bytes of whole lines are never touched.

    A last line without newline that is a whole event is completed with one: a log that ExAthena or an editor wrote
    may end so, and of our own writes at most the newline was lost, which makes it an event that nobody was promised
    and that happened all the same. Anything else, the zeros a power cut leaves behind among it, goes to
    ``<id>.torn-<n>``, which is on disk before the log is cut.
    """
    size_bytes = os.fstat(fd).st_size
    whole_bytes = end_of_lines(fd, size_bytes)
    torn_bytes = size_bytes - whole_bytes
    if torn_bytes == 0:
        return Damage()
    if torn_bytes <= MAX_LINE_BYTES and is_event(os.pread(fd, torn_bytes, whole_bytes)):
        os.write(fd, b"\n")
        return Damage()
    torn_file = copy_aside(fd, whole_bytes, size_bytes, path, "torn")
    os.ftruncate(fd, whole_bytes)
    os.fsync(fd)
    return Damage(torn_bytes=torn_bytes, torn_file=str(torn_file))


def sync_dir(path: Path) -> None:
    """Make the entries of a directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems have no such thing; their entries are durable by themselves
            raise
    finally:
        os.close(fd)


def _open_or_make(path: Path) -> int:
    try:
        return _only_regular(os.open(path, _TO_APPEND))
    except FileNotFoundError:
        pass
    try:
        fd = os.open(path, _TO_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _only_regular(os.open(path, _TO_APPEND))
    os.fchmod(fd, 0o600)
    return fd


def _only_regular(fd: int) -> int:
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "it is no regular file")


def _is_still(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def copy_aside(fd: int, start: int, end: int, path: Path, kind: str) -> Path:
    """Copy a part of the log to ``<id>.<kind>-<n>``, on disk when this returns. What fails leaves no file."""
    target, copy = _new_file_beside(path, kind)
    try:
        while start < end:
            piece = os.pread(fd, min(SLICE_BYTES, end - start), start)
            start += os.write(copy, piece)
        os.fsync(copy)
    except BaseException:
        target.unlink()  # half a copy tells less than the log itself, which is not cut yet
        raise
    finally:
        os.close(copy)
    sync_dir(path.parent)
    return target


def _new_file_beside(path: Path, kind: str) -> tuple[Path, int]:
    number = 1
    while True:
        target = path.with_name(f"{path.stem}.{kind}-{number}")
        try:
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        except FileExistsError:
            number += 1
            continue
        os.fchmod(fd, 0o600)
        return target, fd
