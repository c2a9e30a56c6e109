"""What dead supervisors have left behind, and how the next one ends it before it starts anything (otp.md 18.5).

Children end at the end of their pipe, and the guard kills those that don't. This is for the day on which guard and
supervisor are killed together: a frozen child, or one stuck in C code, would stay for ever. The next supervisor on the
same state directory, daemon or embedded, reads every :mod:`roster <supervisor.process_roster>` whose lock is free.

**What a roster says is only a hint where to look.** A signal is sent to a process only if boot, number, start time,
owner and the cookie in its environment are all those of the launch, or if it came from such a process: it is below it,
or carries the cookie of one that is verified or has ended. Never to the reader itself, to what is above or below it;
and always through a pidfd.
"""

from __future__ import annotations

import enum
import fcntl
import logging
import os
import re
import signal
import stat
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from athena import proctree
from athena.config import private_dir, socket_path
from athena.environment import COOKIE_VARIABLE
from athena.errors import AthenaError
from athena.proctree import Identity
from supervisor.guard import remove_socket
from supervisor.process_roster import SHARED_COOKIE, Entry, boot_id, parse

logger = logging.getLogger(__name__)

READ_BYTES = 64 * 1024 * 1024
"""More than half a million processes; a longer file is not Athena's."""

LEFT_LIMIT_S = 5.0
"""How long a start waits for killed processes: only one in uninterruptible sleep takes longer."""

FREEZE_LIMIT_S = 1.0
"""How long what is left has to come to a stand before it is killed; only one in uninterruptible sleep takes longer."""

PROBLEMS_SHOWN = 10
"""Unreadable lines of a file that are logged one by one."""

_EMBEDDED = re.compile(r"embedded-(\d+)-[0-9a-f]+")


def sweep(directory: Path) -> None:
    """End what supervisors that are dead have left behind, and remove their files. For the start, before all else."""
    try:
        names = sorted(os.listdir(private_dir(directory)))
    except (OSError, AthenaError) as error:
        logger.error("what former supervisors left cannot be looked for: %s", error)
        return
    for name in names:
        fd = _take_over(directory / name)
        if fd is None:
            continue
        try:
            if _clear(name, fd):
                (directory / name).unlink(missing_ok=True)
        except OSError as error:
            logger.error("the roster %s could not be cleared: %s", name, error)
        finally:
            os.close(fd)


def _take_over(path: Path) -> int | None:
    """A descriptor of a dead supervisor's file, locked; ``None`` if it has a living owner or is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        logger.warning("%s is no roster of ours, and is left alone: %s", path, error)
        return None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_size > READ_BYTES:
            what = f"mode {info.st_mode:o}, uid {info.st_uid}, {info.st_size} bytes"
            logger.warning("%s is no roster of ours, and is left alone: %s", path, what)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd
    except BlockingIOError:
        pass  # its supervisor lives, or another one sweeps
    except OSError as error:
        logger.warning("%s cannot be locked, and is left alone: %s", path, error)
    os.close(fd)
    return None


def _clear(name: str, fd: int) -> bool:
    """End what the file names. Returns whether the file has done its duty."""
    with open(fd, "rb", closefd=False) as file:
        found = parse(file.read(READ_BYTES))
    for problem in found.problems[:PROBLEMS_SHOWN]:
        logger.warning("roster %s: %s", name, problem)
    if len(found.problems) > PROBLEMS_SHOWN:
        logger.warning("roster %s: and %d more such lines", name, len(found.problems) - PROBLEMS_SHOWN)
    if found.supervisor is None or not found.boot or found.boot != boot_id():
        return True
    if _is_alive(found.supervisor):
        logger.warning("roster %s is a copy: its supervisor %d runs, and nothing is ended", name, found.supervisor.pid)
        return False
    survivors = end_left_behind(found.entries)
    if survivors:
        logger.error("processes of a dead supervisor outlived SIGKILL pids=%s", survivors)
    return not survivors


class _Verdict(enum.Enum):
    """What an entry says of a process now."""

    OURS = "it is the launched process"
    GONE = "the launched process has ended"
    FOREIGN = "it is not, or not for us to end"


def end_left_behind(entries: Iterable[Entry], *, limit_s: float = LEFT_LIMIT_S) -> list[int]:
    """Kill the whole tree of every entry that is verified; of one that has ended, what carries its cookie.

    Blocks at most ``limit_s``. Returns the pids that are still alive then.
    """
    kin = _kin()
    roots: set[Identity] = set()
    cookies: set[str] = set()
    for entry in entries:
        verdict = _judge(entry, kin)
        if verdict is _Verdict.OURS:
            roots.add(entry.identity)
        if verdict is not _Verdict.FOREIGN:
            cookies.add(entry.cookie)
    cookies.discard(SHARED_COOKIE)
    deadline = time.monotonic() + limit_s
    killed: set[Identity] = set()
    while left := _tree(roots, cookies, kin):
        if time.monotonic() >= deadline:
            return sorted(one.pid for one in left)
        left = _frozen(left, cookies, kin)
        with proctree.Hunt(None, None, seen=left) as hunt:
            hunt.run(max(0.0, deadline - time.monotonic()))
        killed |= left
        roots |= left
    if killed:
        logger.warning("killed what a dead supervisor left behind pids=%s", sorted(one.pid for one in killed))
    return []


def _judge(entry: Entry, kin: Collection[int]) -> _Verdict:
    pid, start_time = entry.identity
    if pid in kin:
        logger.warning("a roster names pid %d, which is this process or of its family: nothing is sent", pid)
        return _Verdict.FOREIGN
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return _Verdict.GONE
    except OSError as error:  # the number of a thread; no descriptor left
        logger.warning("a roster names pid %d, which cannot be looked at: %s", pid, error)
        return _Verdict.FOREIGN
    try:
        row = proctree.stat(pid)
        if row is None or (row.starttime == start_time and row.state in "ZX"):
            return _Verdict.GONE
        is_same = row.starttime == start_time and _carried(pid) == entry.cookie
        # Not reaped even now: so all that was read is of the process behind the pidfd.
        if is_same and proctree.is_unreaped(pidfd):
            return _Verdict.OURS
    finally:
        os.close(pidfd)
    logger.warning("a roster names pid %d, which is another process now: nothing is sent", pid)
    return _Verdict.FOREIGN


def _tree(roots: Iterable[Identity], cookies: Collection[str], kin: Collection[int]) -> set[Identity]:
    """What lives of the trees: the roots, what carries a cookie, and what is below either of them."""
    found = {root for root in roots if _is_alive(root)}
    if cookies:
        for name in os.listdir("/proc"):
            if name.isdigit() and (known := proctree.identity(int(name))) and _carried(known.pid) in cookies:
                found.add(known)
    found = {one for one in found if one.pid not in kin and _is_alive(one)}
    below = {known for one in found for known in proctree.family(one.pid)}
    return found | {one for one in below if one.pid not in kin and _is_alive(one)}


def _frozen(found: set[Identity], cookies: Collection[str], kin: Collection[int]) -> set[Identity]:
    """The trees, stopped, with all that was started while they were looked at.

    What runs can start another process just before it is killed. A supervisor would adopt that and know it as the
    tree's; here it is init's, and if it carries no cookie nobody finds it. Blocks at most :data:`FREEZE_LIMIT_S`.
    """
    deadline = time.monotonic() + FREEZE_LIMIT_S
    steady = 0
    while steady < 2 and time.monotonic() < deadline:
        moving = [one for one in found if not _is_stopped(one)]
        for one in moving:
            _stop(one)
        known, found = found, found | _tree(found, cookies, kin)
        steady = 0 if moving or found != known else steady + 1
        if moving:
            time.sleep(0.001)
    return found


def _stop(known: Identity) -> None:
    try:
        pidfd = os.pidfd_open(known.pid)
    except OSError:
        return
    try:
        if _is_alive(known) and proctree.is_unreaped(pidfd):  # so it was still the one that the pidfd is of
            proctree.send_signal(pidfd, signal.SIGSTOP)
    finally:
        os.close(pidfd)


def _is_stopped(known: Identity) -> bool:
    """Whether it cannot start anything now, because it is stopped or gone."""
    row = proctree.stat(known.pid)
    return row is None or row.starttime != known.starttime or row.state in "TtZX"


def _carried(pid: int) -> str | None:
    """The cookie in the environment of a process of this user."""
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return None
    except OSError:
        return None
    return proctree.read_environ(pid).get(COOKIE_VARIABLE)


def _is_alive(known: Identity) -> bool:
    row = proctree.stat(known.pid)
    return row is not None and row.starttime == known.starttime and row.state not in "ZX"


def _kin() -> frozenset[int]:
    """This process, all above it and all below it."""
    found = {os.getpid(), *proctree.descendants(os.getpid())}
    pid = os.getppid()
    while pid > 0 and pid not in found:
        found.add(pid)
        row = proctree.stat(pid)
        pid = row.ppid if row is not None else 0
    return frozenset(found)


def sweep_runtime(base: Path, own: Path) -> None:
    """Remove the directories of embedded supervisors that are dead, as their programs are.

    ``own`` stays. One whose program lives may be started again in its directory, one that listens is not dead.
    """
    try:
        names = os.listdir(base)
    except OSError:
        return
    for name in names:
        found, path = _EMBEDDED.fullmatch(name), base / name
        if found is None or path == own or path.is_symlink() or os.path.exists(f"/proc/{found[1]}"):
            continue
        remove_socket(str(socket_path(path / "athena.sock")))
        try:
            path.rmdir()
        except OSError:
            pass  # somebody listens there, or keeps something else in it
