"""Which children of the supervisor are spoken for, and the hunt for what belongs to a dead one.

The supervisor is a subreaper, so orphans of every session become its direct children, beside the children it launched.
This table tells them apart; a hunt for one tree never touches what the table knows to be another's.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from athena import proctree
from athena.environment import COOKIE_VARIABLE
from supervisor.process_roster import ProcessRoster

TREE_LIMIT_S = 5.0
"""How long a death waits for the last process of the tree. Only one in uninterruptible sleep can outlast SIGKILL; the
death is then reported without it, loudly, since a session that never restarts would be worse."""

HUNTERS = 4
"""Threads for deaths that left orphans. Two that wait for uninterruptible processes leave room for others."""


class Registered(Protocol):
    """What the table needs to know of a launched child."""

    @property
    def pid(self) -> int:
        """Its number, until it is discarded."""

    @property
    def start_time(self) -> int:
        """When it was started, in clock ticks since boot."""

    @property
    def cookie(self) -> str:
        """The mark of everything it starts; empty for none."""


class ProcessTable:
    """Which direct children of this process are spoken for.

    Everything that starts, ends or reaps children shares one table: a hunt never touches a child that is in it, and
    the reaper judges orphans only while it is quiet. What is in it is noted in `roster`, for the case that this process
    is killed. Of one thread, but for ``in`` and :meth:`owner_of`.
    """

    def __init__(self, roster: ProcessRoster | None = None) -> None:
        self.roster = roster
        self._processes: dict[int, Registered] = {}
        self._busy = 0
        self._lock = threading.Lock()
        self._cookies: set[str] = set()
        self._owners: dict[int, str] = {}
        self._listing: list[int] | None = None
        self.hunters = ThreadPoolExecutor(HUNTERS, thread_name_prefix="hunt")
        """Not the loop's own pool: many deaths at once must not hold up whoever reads a log there."""
        self.on_quiet: Callable[[], None] = lambda: None
        """Called when the last outstanding launch or death is over: the moment to look for adopted orphans."""

    def __contains__(self, pid: object) -> bool:
        return pid in self._processes

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def busy(self) -> int:
        """How many launches and deaths are under way. With none, each unknown child is an orphan nobody waits for."""
        return self._busy

    def begin(self) -> None:
        """A launch or a death begins."""
        self._busy += 1

    def end(self) -> None:
        """A launch or a death is over."""
        self._busy -= 1
        assert self._busy >= 0, "more ends than beginnings"
        if self._busy == 0:
            with self._lock:
                self._owners.clear()  # the reaper may set their numbers free from here on
            self.on_quiet()

    def add(self, process: Registered) -> None:
        """Speak for `process`. An entry under the same number is of one that has been reaped, and is replaced."""
        self._processes[process.pid] = process
        with self._lock:
            self._cookies.add(process.cookie)
        if self.roster is not None:
            self.roster.add(process)

    def discard(self, process: Registered) -> None:
        """Forget `process`, and nobody who has its number now."""
        if self._processes.get(process.pid) is process:
            del self._processes[process.pid]
        with self._lock:
            self._cookies.discard(process.cookie)
            self._owners = {pid: cookie for pid, cookie in self._owners.items() if cookie != process.cookie}
        if self.roster is not None:
            self.roster.end(process)

    def owner_of(self, orphan: int) -> str:
        """The cookie of the registered process that an adopted orphan belongs to; empty if it shows none.

        Remembered until that process's death is over, so that many deaths at once don't read every environment each.
        Until then the number stays the orphan's: it is reaped by that death, or by the reaper when all is quiet.
        """
        known = self._owners.get(orphan, "")
        if not known:
            found = proctree.read_environ(orphan).get(COOKIE_VARIABLE, "")
            with self._lock:
                if found in self._cookies:
                    self._owners[orphan] = known = found
        return known

    def strangers(self) -> list[int]:
        """Direct children, zombies included, that nobody speaks for.

        One listing serves a loop iteration: all deaths that this iteration was woken for came before it.
        """
        if self._listing is None:
            # Filtered now: a child that is reaped and forgotten in this iteration must not turn into a stranger.
            self._listing = [pid for pid in proctree.children_of(os.getpid()) if pid not in self._processes]
            asyncio.get_running_loop().call_soon(self._forget_listing)
        return [pid for pid in self._listing if pid not in self._processes]

    def _forget_listing(self) -> None:
        self._listing = None


class Others:
    """What a hunt for the tree of `cookie` keeps its hands off: registered children, and orphans of other ones."""

    def __init__(self, table: ProcessTable, cookie: str) -> None:
        self._table = table
        self._cookie = cookie

    def __contains__(self, pid: object) -> bool:
        if pid in self._table:
            return True
        return isinstance(pid, int) and self._table.owner_of(pid) not in ("", self._cookie)


async def hunt_down(
    table: ProcessTable,
    cookie: str,
    root: tuple[int, int] | None = None,
    seen: frozenset[proctree.Identity] = frozenset(),
) -> list[int]:
    """Kill and reap what belongs to `cookie` or came from `root` (pid and pidfd of a zombie, which stays one).

    Nearly every death leaves no orphan: two listings a loop iteration apart settle that. Otherwise the tree may be
    large, and a thread does it. Returns the pids that outlived :data:`TREE_LIMIT_S`.
    """
    for _ in range(2):
        if table.strangers():
            break
        await asyncio.sleep(0)
    else:
        return []

    def run() -> list[int]:
        known = (COOKIE_VARIABLE, cookie) if cookie else None
        pid, pidfd = root or (None, None)
        with proctree.Hunt(pid, pidfd, cookie=known, seen=seen, keep=Others(table, cookie)) as hunt:
            hunt.run(TREE_LIMIT_S)
            return hunt.alive()

    hunting = asyncio.get_running_loop().run_in_executor(table.hunters, run)
    try:
        return await asyncio.shield(hunting)
    except asyncio.CancelledError:
        # The thread uses the root's pidfd, which our caller closes: let it come to its end, which is bounded.
        await asyncio.wait([hunting])
        raise


async def wait_readable(fd: int) -> None:
    """Wait until `fd` is readable. Nothing is read."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        loop.remove_reader(fd)  # level-triggered: it would fire again until somebody has read
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
