"""The default store: one file ``<root>/<session_id>.jsonl``, one event per line, one writer (design: the event log).

The writer keeps three promises. An append that returned is with the kernel; one that failed left nothing behind.
After a failed sync the bytes it should have covered are written again before the next one: the kernel marks pages
clean when it could not write them, so a repeated fdatasync alone would report success falsely. And bytes that were
recorded are never changed, only added to.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

from athena import failpoints
from athena.errors import DiskError, InvalidOption, StoreError
from athena.events import Cursor, Event, check_session_id
from athena.stores.base import ESSENTIAL, RESERVE_BYTES, Damage
from athena.stores.blobs import Blobs, split_ref
from athena.stores.files import (
    MOUNTS,
    make_private_dirs,
    mend_tail,
    network_file_system,
    open_log_to_write,
    refuse_foreign,
    store_error,
    sync_dir,
)
from athena.stores.forks import forks_of, make_fork, read_forked, tail_forked
from athena.stores.lines import SLICE_BYTES, Tally, tail_events
from athena.stores.materialise import materialise
from athena.stores.upkeep import LogReport, Repair, delete_log, files_beside, inspect_log, repair_log

KEPT_BYTES = 1 << 20
"""How much that is not synced yet a log keeps in memory to write again. What is more is read back from the page cache,
which holds it after a failed write on ext4 and xfs; more memory for each of a thousand sessions is not worth the
rest."""

MIN_QUOTA_BYTES = 64 * 1024
_SUFFIX = ".jsonl"


class JsonlStore:
    """Logs in the directory ``root``, which is made with its parents when the first log is opened.

    ``allow_network`` accepts a root on a network file system, where locks and syncs may mean less. ``max_log_bytes``
    is how long one log may get (``None``: any length). ``sync`` and ``mounts`` are the system's; tests pass others.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        allow_network: bool = False,
        max_log_bytes: int | None = None,
        sync: Callable[[int], None] = os.fdatasync,
        mounts: Path = MOUNTS,
    ) -> None:
        self.root = Path(root).absolute()
        self._allow_network = allow_network
        self._max_bytes = _quota(max_log_bytes)
        self._sync = sync
        self._mounts = mounts
        self._grown_dirs: list[Path] = []  # those that got a new directory from us: every log's first sync covers them

    def path(self, session_id: str) -> Path:
        """Where this session's log is. Raises :class:`athena.errors.InvalidSessionId`."""
        return self.root / (check_session_id(session_id) + _SUFFIX)

    def open(self, session_id: str) -> JsonlLog:
        """See :class:`athena.stores.base.Store`. Mends a torn end; costs the same for a long log and a short one."""
        path = self.path(session_id)
        try:
            self._grown_dirs += make_private_dirs(self.root)
            self._refuse_network()
            fd = open_log_to_write(path, session_id)
        except OSError as error:
            raise store_error(error, "open the log", path, session_id) from error
        try:
            refuse_foreign(fd, path, session_id)
            dirs = [self.root, *self._grown_dirs]
            return JsonlLog(fd, path, mend_tail(fd, path), dirs=dirs, sync=self._sync, max_bytes=self._max_bytes)
        except OSError as error:
            os.close(fd)
            raise store_error(error, "mend the log", path, session_id) from error
        except BaseException:
            os.close(fd)
            raise

    def read(self, session_id: str, after: int = 0) -> Iterator[Event]:
        """See :class:`athena.stores.base.Store`. Reads what is there when the first event is asked for."""
        return read_forked(self.path(session_id), session_id, after, Tally())

    def tail(self, session_id: str, count: int) -> list[Event]:
        """The last ``count`` events; the rest of the file is not read."""
        return tail_forked(self.path(session_id), session_id, count)

    def fork(self, session_id: str, new_id: str, at: Cursor, *, is_writer: bool = False) -> None:
        """See :class:`athena.stores.base.ForkingStore`."""
        make_fork(self.path(session_id), self.path(new_id), at, is_writer=is_writer)

    def forks(self, session_id: str) -> list[str]:
        """See :class:`athena.stores.base.ForkingStore`."""
        try:
            return forks_of(self.root).get(check_session_id(session_id), [])
        except FileNotFoundError:
            return []
        except OSError as error:
            raise store_error(error, "list the logs in", self.root) from error

    def list(self) -> list[str]:
        """All session ids, sorted. Files with another name than a log's are none of ours."""
        try:
            with os.scandir(self.root) as entries:
                names = [e.name for e in entries if e.name.endswith(_SUFFIX) and e.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise store_error(error, "list the logs in", self.root) from error
        return sorted(name.removesuffix(_SUFFIX) for name in names if _is_legal(name.removesuffix(_SUFFIX)))

    def verify(self, session_id: str) -> Damage:
        """What is wrong inside a log; a torn end is the writer's matter. Raises as :meth:`inspect`."""
        return self.inspect(session_id).damage

    def inspect(self, session_id: str) -> LogReport:
        """All about one log, see :func:`athena.stores.upkeep.inspect_log`."""
        return inspect_log(self.path(session_id), session_id)

    def repair(self, session_id: str) -> Repair:
        """Make a damaged log whole, see :func:`athena.stores.upkeep.repair_log`."""
        return repair_log(self.path(session_id), session_id)

    def materialise(self, session_id: str) -> int:
        """Give a fork a copy of its past, see :func:`athena.stores.materialise.materialise`."""
        return materialise(self.path(session_id), session_id)

    def read_blob(self, ref: str) -> bytes:
        """See :class:`athena.stores.blobs.BlobStore`."""
        session_id, name = split_ref(ref)
        return Blobs(self.path(session_id)).read(name)

    def delete(self, session_id: str) -> bool:
        """See :class:`athena.stores.base.DeletingStore`."""
        path = self.path(session_id)
        return delete_log(path, session_id, files_beside(self.root).get(session_id, ()))

    def _refuse_network(self) -> None:
        kind = None if self._allow_network else network_file_system(self.root, self._mounts)
        if kind is not None:
            raise StoreError(
                f"{str(self.root)!r} is on a network file system ({kind}), where the lock that keeps a log to one"
                " writer may not hold; set ATHENA_HOME to a local directory, or, to take the risk, the store option"
                " allow_network=true",
                path=str(self.root),
            )


class JsonlLog:
    """See :class:`athena.stores.base.Log`. Made by :meth:`JsonlStore.open`; owns ``fd``, which holds the lock.

    ``append`` and ``sync`` may run in two threads. The lock ``_lock`` guards the numbers below and is held while
    bytes are written, never during a sync; ``_syncing`` lets one thread sync at a time, so those that waited for it
    often find that it covered their events too.
    """

    def __init__(
        self,
        fd: int,
        path: Path,
        damage: Damage,
        *,
        dirs: Sequence[Path],
        sync: Callable[[int], None],
        max_bytes: int | None = None,
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._fd = fd
        self._damage = damage
        self._sync_file = sync
        self._dirs = list(dirs)  # until the first sync, which makes the file's own name survive too
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._identity = os.fstat(fd)
        self._size_bytes = self._identity.st_size
        # What lies below this offset is on disk. A predecessor may have died before it synced its last events, so the
        # end of what it left counts as not synced.
        self._durable_bytes = max(0, self._size_bytes - KEPT_BYTES)
        self._kept: deque[bytes] = deque()  # the lines at the end of the file that are not synced
        self._kept_bytes = 0
        self._broken = False  # bytes beyond _size_bytes may be in the file: cut them before the next write
        self._sync_failed = False
        last = tail_events(fd, self._size_bytes, 1)
        self._last_seq = last[0].seq if last else 0
        self._blobs = Blobs(path)
        self._blob_bytes = sum(self._blobs.sizes().values()) if max_bytes is not None else 0
        _open_logs.add(self)

    @property
    def damage(self) -> Damage:
        """What opening and reading found so far; complete after one full :meth:`read`."""
        return self._damage

    @property
    def last_seq(self) -> int:
        """The seq of the last event, 0 for none."""
        return self._last_seq

    def append(self, event: Event) -> None:
        """See :class:`athena.stores.base.Log`. One ``write(2)``, undone if it was short and the rest fails."""
        record = event.line + b"\n"
        if failpoints.hit is not None:
            failpoints.hit(f"append:{event.event}")
        with self._lock:
            self._check(event)
            self._check_quota(len(record), RESERVE_BYTES if event.event in ESSENTIAL else 0)
            try:
                self._check_name()
                if self._broken:
                    self._roll_back()
                self._broken = True  # until the numbers below are right again, whatever interrupts us
                written = os.write(self._fd, record)
                while written < len(record):
                    written += os.write(self._fd, memoryview(record)[written:])
            except OSError as error:
                with suppress(OSError):  # the first error says more, and the next append tries again
                    self._roll_back()
                raise self._disk_error("append to", error) from error
            self._size_bytes += len(record)
            self._last_seq = event.seq
            self._broken = False
            self._kept.append(event.line)
            self._kept_bytes += len(record)
            if self._kept_bytes > KEPT_BYTES:
                self._forget_kept(KEPT_BYTES)
        if failpoints.hit is not None:
            failpoints.hit(f"appended:{event.event}")

    def put_blob(self, data: bytes, *, durable: bool) -> str:
        """See :class:`athena.stores.blobs.BlobLog`. Counts for the quota."""
        if self._fd < 0:
            raise self._closed()
        try:
            self._check_quota(len(data))
            if failpoints.hit is not None:
                failpoints.hit("blob")
            ref = self._blobs.put(data, durable=durable)
            if failpoints.hit is not None:
                failpoints.hit("blob_kept")
        except OSError as error:
            raise self._disk_error("write a blob beside", error) from error
        if self._max_bytes is not None:
            self._blob_bytes = sum(self._blobs.sizes().values())
        return ref

    def sync(self) -> None:
        """See :class:`athena.stores.base.Log`. Returns at once if another thread's sync covered all that is here
        now."""
        wanted_bytes = self._size_bytes
        with self._syncing:
            with self._lock:
                if self._fd < 0:
                    raise self._closed()
                if self._durable_bytes >= wanted_bytes and not self._sync_failed:
                    return
                covered_bytes = self._size_bytes
            try:
                if self._sync_failed:
                    with self._lock:
                        self._write_again()
                if failpoints.hit is not None:
                    failpoints.hit("sync")
                self._sync_file(self._fd)
                for directory in self._dirs:
                    sync_dir(directory)
            except OSError as error:
                self._sync_failed = True
                raise self._disk_error("sync", error) from error
            with self._lock:
                self._sync_failed = False
                self._dirs.clear()
                self._durable_bytes = covered_bytes
                self._forget_kept(self._size_bytes - covered_bytes)
            if failpoints.hit is not None:
                failpoints.hit("synced")

    def read(self, after: int = 0) -> Iterator[Event]:
        """See :class:`athena.stores.base.Log`."""
        tally = Tally()
        yield from read_forked(self.path, self.path.stem, after, tally)
        if tally.bad_lines > self._damage.bad_lines:
            self._damage = replace(self._damage, bad_lines=tally.bad_lines)
        if after == 0:  # what precedes the first event that is read is missing only at the log's beginning
            missing, lost = tally.missing_events, tally.lost_parent
            self._damage = replace(self._damage, missing_events=missing, lost_parent=lost)

    def close(self) -> None:
        """Give the lock back; waits for a sync that runs. Safe to call twice."""
        with self._syncing, self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def abandon(self) -> None:
        """Close in a forked child, whose copy of the descriptor would keep the lock alive after its parent. The
        parent's threads are not here, so the locks that they held would never be free."""
        self._lock, self._syncing = threading.Lock(), threading.Lock()
        self.close()

    def _check(self, event: Event) -> None:
        if self._fd < 0:
            raise self._closed()
        if event.seq != self._last_seq + 1:
            raise StoreError(
                f"the next event of {self.path.stem!r} has seq {self._last_seq + 1}, not {event.seq}",
                session_id=self.path.stem,
            )
        if not event.line or b"\n" in event.line:
            raise StoreError("an event to append needs its line, without a newline", session_id=self.path.stem)

    def _check_name(self) -> None:
        """Nobody would ever read what is written to a log that has lost its name, and a second writer may have it."""
        try:
            is_ours = os.path.samestat(os.stat(self.path, follow_symlinks=False), self._identity)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "the log was deleted or moved") from None
        if not is_ours:
            raise FileNotFoundError(errno.ENOENT, "another file has been put in the place of the log")

    def _check_quota(self, more_bytes: int, reserve_bytes: int = 0) -> None:
        if self._max_bytes is None:
            return
        size_bytes = self._size_bytes + self._blob_bytes
        if size_bytes + more_bytes > self._max_bytes + reserve_bytes:
            raise DiskError(
                f"the log {str(self.path)!r} has {size_bytes} bytes with its blobs, and {more_bytes} more are over its"
                f" quota of {self._max_bytes}; stop the session and start it with a larger max_log_bytes",
                session_id=self.path.stem,
                path=str(self.path),
                errno=errno.EDQUOT,
                max_log_bytes=self._max_bytes,
            )

    def _roll_back(self) -> None:
        """Cut what a failed append may have left."""
        os.ftruncate(self._fd, self._size_bytes)
        self._broken = False

    def _write_again(self) -> None:
        """Write what is not on disk to the places where it is, from memory as far as it is kept. Under the lock."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        # With O_APPEND, Linux appends whatever offset pwrite names.
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
        try:
            offset, kept_from = self._durable_bytes, self._size_bytes - self._kept_bytes
            while offset < kept_from:
                piece = os.pread(self._fd, min(SLICE_BYTES, kept_from - offset), offset)
                if not piece:
                    raise OSError(errno.EIO, "the file is shorter than what was written to it")
                offset += _write_at(self._fd, piece, offset)
            _write_at(self._fd, b"".join(line + b"\n" for line in self._kept), offset)
        finally:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)

    def _forget_kept(self, most_bytes: int) -> None:
        while self._kept_bytes > most_bytes:
            self._kept_bytes -= len(self._kept.popleft()) + 1

    def _disk_error(self, doing: str, error: OSError) -> DiskError:
        return DiskError(
            f"cannot {doing} the log {str(self.path)!r}: {error.strerror}",
            session_id=self.path.stem,
            path=str(self.path),
            errno=error.errno,
        )

    def _closed(self) -> StoreError:
        return StoreError(f"the log {str(self.path)!r} is closed", session_id=self.path.stem)


def _write_at(fd: int, data: bytes, offset: int) -> int:
    written = 0
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], offset + written)
    return written


def _quota(value: object) -> int | None:
    is_size = isinstance(value, int) and not isinstance(value, bool) and value >= MIN_QUOTA_BYTES
    if value is None or is_size:
        return cast("int | None", value)
    expected = f"bytes, {MIN_QUOTA_BYTES} or more, or None"
    raise InvalidOption(
        f"store option 'max_log_bytes' got {value!r}: expected {expected}",
        option="store_options",
        value=repr(value),
        expected=expected,
    )


def _is_legal(session_id: str) -> bool:
    try:
        check_session_id(session_id)
    except ValueError:
        return False
    return True


_open_logs: weakref.WeakSet[JsonlLog] = weakref.WeakSet()


def _abandon_all() -> None:
    for log in list(_open_logs):
        log.abandon()


os.register_at_fork(after_in_child=_abandon_all)
