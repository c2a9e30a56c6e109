"""Process trees on Linux: who is below whom, and how to end a whole tree and nothing else.

Used by every process of Athena that adopts orphans (session child, supervisor, guard), so it imports nothing of Athena
and nothing beyond the standard library. The rules it keeps:

- a signal goes to a pidfd, never to a bare pid; to a group only while its leader is still an unreaped child, because
  until then the kernel cannot give the group's number to anybody else;
- only known direct children are reaped, each through its pidfd: a ``waitpid(-1)`` would steal other code's statuses;
- killed children stay zombies until the hunt is over, which keeps the session and group numbers we compare valid.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37

PF_EXITING = 0x4
"""In the flags of ``/proc/<pid>/stat`` (include/linux/sched.h)."""

_EXITING_WAIT_S = 0.001
_PASS_WAIT_S = 0.02
"""Longest wait between two passes of a hunt: new forks of something that dies slowly are met this soon."""


class Stat(NamedTuple):
    """What ``/proc/<pid>/stat`` says. ``starttime`` is in clock ticks since boot; with the pid it names one process."""

    ppid: int
    pgid: int
    sid: int
    starttime: int
    state: str
    flags: int

    @property
    def is_exiting(self) -> bool:
        """Whether it is on its way to a zombie: it shows no environment any more and still has its children."""
        return bool(self.flags & PF_EXITING) and self.state not in "ZX"


class Identity(NamedTuple):
    """One process, even after its number has been used again."""

    pid: int
    starttime: int


def become_subreaper(enabled: bool = True) -> bool:
    """Make this process the one that orphans below it are reparented to (or stop being it). Returns whether it worked.

    The setting belongs to the process, survives ``exec`` and is not inherited by children.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(PR_SET_CHILD_SUBREAPER, int(enabled), 0, 0, 0) == 0)


def is_subreaper() -> bool:
    """Whether orphans below this process are reparented to it."""
    flag = ctypes.c_int(0)
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0) == 0 and bool(flag.value)


def stat(pid: int) -> Stat | None:
    """The process's row, ``None`` if there is no such process. A zombie has a row (state ``Z``)."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    # The name, in parentheses, may hold anything, ") " included: only what follows the last one is fields.
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]), fields[0].decode(), int(fields[6]))


def identity(pid: int) -> Identity | None:
    """The identity of the process that has this pid now."""
    row = stat(pid)
    return Identity(pid, row.starttime) if row else None


def children_of(pid: int) -> list[int]:
    """Direct children of all threads of ``pid``, zombies included. Empty if it is gone.

    The kernel may leave out a child while its siblings exit, so a caller that must not miss one asks again.
    """
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        found.extend(int(child) for child in _read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, parents before their children. Ones whose parent has gone are not below it."""
    found: list[int] = []
    seen = {pid}
    queue = [pid]
    for parent in queue:
        for child in children_of(parent):
            if child not in seen:
                seen.add(child)
                found.append(child)
                queue.append(child)
    return found


def family(pid: int) -> set[Identity]:
    """Identities of all processes below ``pid`` now: what a caller remembers as ``seen`` for a later hunt."""
    return {member for child in descendants(pid) if (member := identity(child))}


def read_environ(pid: int) -> dict[str, str]:
    """The environment ``pid`` was started with; empty for a zombie, a stranger's process, or one that overwrote it."""
    pairs = (entry.partition(b"=") for entry in _read(f"/proc/{pid}/environ").split(b"\0") if entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def has_ended(pidfd: int) -> bool:
    """Whether the process behind ``pidfd`` has ended, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def is_unreaped(pidfd: int) -> bool:
    """Whether the process behind ``pidfd`` still owns its number: it runs, or it is a zombie."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # alive, and another user's
    return True


def send_signal(pidfd: int, signum: int) -> bool:
    """Signal the process behind ``pidfd``. ``False`` if it is gone or not ours to signal."""
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def exit_status(pidfd: int, *, reap: bool = True) -> int | None:
    """How a direct child ended: its exit code, or minus the signal. ``None`` while it runs.

    With ``reap=False`` it stays a zombie. Raises :class:`ChildProcessError` if it is no child of ours (any more).
    """
    flags = os.WEXITED | os.WNOHANG | (0 if reap else os.WNOWAIT)
    result = os.waitid(os.P_PIDFD, pidfd, flags)
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def kill_tree(
    pid: int,
    pidfd: int,
    *,
    cookie: tuple[str, str] | None = None,
    seen: Iterable[Identity] = (),
    limit_s: float = 1.0,
) -> list[int]:
    """Kill ``pid`` and all that came from it, and reap what of it was adopted here. Blocks until done or ``limit_s``.

    See :class:`Hunt` for the arguments. ``pid`` itself is left a zombie, so that the caller gets its status. Returns
    the pids that were still alive at the limit (processes in uninterruptible sleep); empty means the tree is gone.
    """
    with Hunt(pid, pidfd, cookie=cookie, seen=seen) as hunt:
        hunt.run(limit_s)
        return hunt.alive()


def kill_descendants(*, keep: Iterable[int] = (), limit_s: float = 1.0) -> list[int]:
    """Kill everything below the calling process but the trees of the direct children in ``keep``; reap it too.

    For a process that owns all it has below itself (the guard, a child at its end). Returns survivors at the limit.
    """
    kept = frozenset(keep)
    with Hunt(None, None, everything=True, keep=kept) as hunt:
        hunt.run(limit_s)
        return hunt.alive()


class Hunt:
    """The killing of one tree, pass by pass, so that an event loop may do other things in between.

    ``pid`` and ``pidfd`` name the root: a direct child, not yet reaped (it may have ended). Besides what is below it, a
    direct child of the calling process counts as part of the tree, with all below it, if

    - its session or group is one that the tree made (the root's, or that of a process seen in the tree),
    - it is in ``seen``: the caller met it below the root earlier,
    - its environment has the ``cookie`` (name, value).

    Direct children in ``keep`` (asked anew in each pass) are never touched or even looked at: other trees' roots.

    That is how processes that left the group, or whose parent died, are found: the caller is a subreaper, so they
    become its direct children. Without that, only the group, what is still below the root, and what was seen are
    reached."""

    def __init__(
        self,
        pid: int | None,
        pidfd: int | None,
        *,
        cookie: tuple[str, str] | None = None,
        seen: Iterable[Identity] = (),
        everything: bool = False,
        keep: Container[int] = frozenset(),
    ) -> None:
        self._me = os.getpid()
        self._root = pid
        self._root_fd = pidfd
        self._cookie = os.fsencode("=".join(cookie)) if cookie else None
        self._members = set(seen)
        self._everything = everything
        self._keep = keep
        self._fds: dict[Identity, int] = {}
        self._ended: set[Identity] = set()
        self._out_of_reach: set[int] = set()
        self._sessions: set[int] = set()
        own = stat(self._me)
        # What a member can share with us says nothing about who belongs to the tree.
        self._foreign = {self._me, own.sid, own.pgid} if own else {self._me}
        self._clean_passes = 0
        self._has_undecided = False

    def __enter__(self) -> Hunt:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, limit_s: float) -> bool:
        """Pass after pass until nothing is left, at most ``limit_s``. Returns whether the tree is gone."""
        deadline = time.monotonic() + limit_s
        while not self.sweep():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            self._wait(min(left_s, _PASS_WAIT_S))
        return True

    def sweep(self) -> bool:
        """One pass: kill all that is found. Returns whether the tree is gone.

        Gone means that two passes in a row found nothing alive: a listing made while siblings exit can miss one.
        """
        self._out_of_reach.clear()
        self._has_undecided = False
        self._forget_ended()
        self._remember_below_root()
        self._kill_root_group()
        found_alive = self._root_fd is not None and not has_ended(self._root_fd)
        for pid in self._candidates():
            found_alive |= self._kill(pid)
        for member in self._members - self._ended - self._fds.keys():
            found_alive |= self._kill(member.pid, member)
        self._clean_passes = 0 if found_alive or self._has_undecided else self._clean_passes + 1
        return self._clean_passes >= 2

    def alive(self) -> list[int]:
        """Pids of the tree that have not ended yet."""
        pids = [member.pid for member, fd in self._fds.items() if not has_ended(fd)]
        if self._root is not None and self._root_fd is not None and not has_ended(self._root_fd):
            pids.append(self._root)
        return [*pids, *self._out_of_reach]

    def close(self) -> None:
        """Reap the tree's processes that became direct children (the root is left); close all pidfds but the root's."""
        for fd in self._fds.values():
            _reap(fd)
            os.close(fd)
        for member in self._ended:
            row, pin = self._pin(member.pid)
            if row is None or pin is None:
                continue
            if row.starttime == member.starttime:
                _reap(pin)
            os.close(pin)
        self._fds.clear()
        self._ended.clear()

    def _forget_ended(self) -> None:
        """Give back the descriptors of what has ended, so that a tree may be larger than the descriptor limit."""
        for member in [member for member, fd in self._fds.items() if has_ended(fd)]:
            os.close(self._fds.pop(member))
            self._ended.add(member)

    def _remember_below_root(self) -> None:
        """Before the group's kill: where the caller is no subreaper, what had left the group is init's from then on."""
        if self._root is not None and self._root_fd is not None and is_unreaped(self._root_fd):
            self._members |= {known for known in map(identity, descendants(self._root)) if known is not None}

    def _kill_root_group(self) -> None:
        """The group is one atomic kill that no fork can escape; allowed while the unreaped root pins its number."""
        if self._root is None or self._root_fd is None or not is_unreaped(self._root_fd):
            return
        row = stat(self._root)
        if row and row.pgid == self._root and row.ppid == self._me:
            self._sessions.add(self._root)
            try:
                os.killpg(self._root, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # an empty group, or one of set-uid programs only
        send_signal(self._root_fd, signal.SIGKILL)

    def _candidates(self) -> Iterator[int]:
        """Everything that belongs to the tree, the root left out; parents before children."""
        if self._root is not None and self._root_fd is not None and is_unreaped(self._root_fd):
            yield from descendants(self._root)
        for child in children_of(self._me):
            if child != self._root and self._is_ours(child):
                yield child
                yield from descendants(child)

    def _is_ours(self, child: int) -> bool:
        if child in self._keep:
            return False
        if self._everything:
            return True
        row = stat(child)
        if row is None:
            return False
        if Identity(child, row.starttime) in self._members or {row.sid, row.pgid} & self._sessions:
            return True
        if self._cookie is None:
            return False
        if self._cookie in _read(f"/proc/{child}/environ").split(b"\0"):
            return True
        # One that is exiting shows no environment any more, and what it has below itself comes to us next.
        row = stat(child)
        self._has_undecided |= row is not None and row.is_exiting
        return False

    def _kill(self, pid: int, known: Identity | None = None) -> bool:
        """Kill one process of the tree; only if it is ``known``, where that is given. Returns whether it was alive."""
        row, fd = self._pin(pid)
        if fd is None or row is None:
            return pid in self._out_of_reach
        member = Identity(pid, row.starttime)
        if known is not None and member != known:  # the number is somebody else's by now
            os.close(fd)
            self._members.discard(known)
            return False
        self._members.add(member)
        self._sessions |= {row.sid, row.pgid} - self._foreign
        if has_ended(fd):
            os.close(fd)
            self._ended.add(member)
            return False
        if member in self._fds:
            os.close(self._fds[member])
        self._fds[member] = fd
        return send_signal(fd, signal.SIGKILL)

    def _pin(self, pid: int) -> tuple[Stat | None, int | None]:
        """The row of ``pid`` and a pidfd that is sure to be of the same process; ``None`` twice if it is gone."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None, None
        except OSError:  # no descriptor left: the next pass has more
            self._out_of_reach.add(pid)
            return None, None
        row = stat(pid)
        # Not reaped even after the row was read: so the number had not been given to another in between.
        if row is None or not is_unreaped(fd):
            os.close(fd)
            return None, None
        return row, fd

    def _wait(self, timeout_s: float) -> None:
        """Until all that was signalled has ended, or the timeout; a moment if only an exiting process is in doubt."""
        if self._has_undecided:
            time.sleep(min(timeout_s, _EXITING_WAIT_S))
            return
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        waiting = set(self._fds.values()) | ({self._root_fd} if self._root_fd is not None else set())
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left_s * 1000):
                poll.unregister(fd)
                waiting.discard(fd)


def _reap(pidfd: int) -> None:
    try:
        exit_status(pidfd)
    except ChildProcessError:
        pass  # reaped by its own parent, or never ours: nothing is owed


def _read(path: str) -> bytes:
    """A file under ``/proc``; empty if the process is gone or closed to us."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
