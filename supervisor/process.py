"""One child as an OS process: how it is signalled, how its death is carried out, and what its status means.

The rule that binds this file (design, section 3): **a death is over when the whole tree is.** The pidfd gets readable;
the group is killed while its leader, an unreaped zombie, pins the group's number; what left the group is hunted until
nothing is left; only then the child is reaped and its status reported. Signals go to pidfds and pinned groups only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import dataclass

from athena import proctree
from athena.errors import Reason
from supervisor.cgroup import Cgroup
from supervisor.process_table import ProcessTable, hunt_down, wait_readable
from supervisor.restart import is_clean

__all__ = [
    "UNKNOWN",
    "ExitStatus",
    "OsProcess",
    "ProcessTable",
    "exit_reason",
    "wait_readable",
]

logger = logging.getLogger(__name__)

UNKNOWN = 0
"""The ``si_code`` of a process that was no child of ours when it ended, so that the kernel gave us no status."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """What ``waitid`` told: ``si_code`` is ``CLD_EXITED``, ``CLD_KILLED``, ``CLD_DUMPED`` or :data:`UNKNOWN`."""

    si_code: int
    si_status: int


def exit_reason(si_code: int, si_status: int, announced: Reason = None, intended: Reason = None) -> Reason:
    """Why a process ended, from its status and what was known before (otp.md 18.3, first match wins).

    `intended`: the reason for which we killed it (``"hung"``, ``{"limit": "memory"}``, a link's reason). `announced`:
    the reason of its ``exiting`` frame; a clean one is believed only with status 0, so that a crash after the frame
    cannot look like success.
    """
    if intended is not None:
        return intended
    if si_code in (os.CLD_KILLED, os.CLD_DUMPED):
        return _signal_reason(si_status)
    if si_code != os.CLD_EXITED:
        return "unknown"
    if announced is not None and (si_status == 0 or not is_clean(announced)):
        return announced
    return "normal" if si_status == 0 else {"exit": si_status}


def _signal_reason(number: int) -> Reason:
    if number == signal.SIGKILL:
        return "killed"
    if number == signal.SIGTERM:
        return "shutdown"
    try:
        return {"signal": signal.Signals(number).name}
    except ValueError:  # a real-time signal between SIGRTMIN and SIGRTMAX has no name of its own
        return {"signal": f"SIGRTMIN+{number - signal.SIGRTMIN}"}


class OsProcess:
    """One launched child. Owns ``pidfd`` and closes it when the death is over; safe to signal at any time.

    ``cookie`` is the value of :data:`athena.environment.COOKIE_VARIABLE` in its environment, unique to this
    incarnation; empty for none.
    """

    def __init__(self, pid: int, pidfd: int, start_time: int, *, cookie: str, table: ProcessTable) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.start_time = start_time
        self.cookie = cookie
        self.cgroup: Cgroup | None = None
        """Its own, where there are any; killed and removed with it."""
        self._table = table
        self._seen: frozenset[proctree.Identity] = frozenset()
        self._death: asyncio.Task[ExitStatus] | None = None
        self._is_over = False
        table.add(self)

    def __repr__(self) -> str:
        return f"<OsProcess pid={self.pid} start_time={self.start_time} over={self._is_over}>"

    @property
    def is_over(self) -> bool:
        """Whether the death has been carried out to its end; the pid means nothing any more."""
        return self._is_over

    def terminate(self) -> None:
        """Ask the leader to end: SIGTERM, then SIGCONT so that a stopped one gets to act on it."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the leader and its group. What left the group ends with the death sequence, in :meth:`wait`."""
        if self._is_over:
            return
        self.observe()
        if self.cgroup is not None:
            self.cgroup.kill()
        self._kill_group()
        self._signal(signal.SIGKILL)

    def observe(self) -> None:
        """Remember what is below the child now, so that it is known as the child's even if it sheds every mark.

        Best effort, from any thread: called before our own kills and by the periodic limit samples.
        """
        if self._is_over:
            return
        still = {known for known in self._seen if proctree.identity(known.pid) == known}
        self._seen = frozenset(still | proctree.family(self.pid))

    async def wait(self) -> ExitStatus:
        """Wait for the end of the child, carry its death out and return its status. Any number may wait.

        A cancelled wait leaves the death sequence running: it must not stop half way.
        """
        if self._death is None:
            self._death = asyncio.create_task(self._die(), name=f"death of {self.pid}")
        return await asyncio.shield(self._death)

    async def _die(self) -> ExitStatus:
        await wait_readable(self.pidfd)
        self._table.begin()
        try:
            if self.cgroup is not None:
                self.cgroup.kill()
            if self._is_ours():
                self._kill_group()
                await self._hunt()
            if self.cgroup is not None:  # in a thread: it may wait for the last of what shed every other mark
                await asyncio.get_running_loop().run_in_executor(self._table.hunters, self.cgroup.end)
            return self._reap()
        finally:
            self._is_over = True
            self._table.discard(self)
            os.close(self.pidfd)
            self._table.end()

    async def _hunt(self) -> None:
        survivors = await hunt_down(self._table, self.cookie, (self.pid, self.pidfd), self._seen)
        if survivors:
            logger.error("processes outlived SIGKILL pid=%d survivors=%s", self.pid, survivors)

    def _reap(self) -> ExitStatus:
        try:
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return ExitStatus(UNKNOWN, 0)
        assert result is not None, "a readable pidfd is of a process that has ended"
        return ExitStatus(result.si_code, result.si_status)

    def _is_ours(self) -> bool:
        """Whether the child, running or a zombie, is ours to reap: nobody else can then set its number free."""
        try:
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def _kill_group(self) -> None:
        if not self._is_ours():
            return
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # it has not made its group yet, or only set-uid programs are in it: the hunt goes by other marks

    def _signal(self, number: int) -> None:
        if not self._is_over:
            proctree.send_signal(self.pidfd, number)
