"""Reaping of adopted orphans that nobody waits for.

The supervisor is a subreaper: what a dead child's processes leave behind becomes its own, and stays a zombie until it
is reaped here. One known process at a time, each through its own pidfd: ``waitpid(-1)`` would steal the status of a
child that somebody waits for. An orphan is only ever reaped here, never killed: killing belongs to a death.
"""

from __future__ import annotations

import asyncio
import os

from supervisor.process import ProcessTable


class Reaper:
    """Reaps orphans as they end. Everything the supervisor starts must be in `table`, or its status is taken here."""

    def __init__(self, table: ProcessTable) -> None:
        self._table = table
        self._adopted: dict[int, int] = {}

    @property
    def adopted(self) -> frozenset[int]:
        """Pids of orphans that have been adopted and still run."""
        return frozenset(self._adopted)

    def start(self) -> None:
        """Follow the table: orphans arrive when a child dies, so each time it gets quiet is the time to look."""
        self._table.on_quiet = self.scan
        self.scan()

    def close(self) -> None:
        """Stop following. Orphans that still run are left as they are."""
        self._table.on_quiet = lambda: None
        loop = asyncio.get_running_loop()
        for pidfd in self._adopted.values():
            loop.remove_reader(pidfd)
            os.close(pidfd)
        self._adopted.clear()

    def scan(self) -> None:
        """Adopt unknown children. While a launch or a death is under way nothing is judged: an unknown child may be
        one that is just being launched, and a zombie may be pinning a number that a death still compares with.
        """
        if self._table.busy:
            return  # on_quiet calls again
        for pid in self._table.strangers():
            if pid not in self._adopted:
                self._adopt(pid)

    def _adopt(self, pid: int) -> None:
        try:
            # A child of ours, and only this thread reaps: the number is still the one that was listed.
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        self._adopted[pid] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._reap, pid)

    def _reap(self, pid: int) -> None:
        if self._table.busy:
            # A death is hunting, and may count this one in. Stop listening, and let the next scan adopt it again.
            self._drop(pid)
            return
        try:
            os.waitid(os.P_PIDFD, self._adopted[pid], os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            pass  # a death has reaped it as one of its own
        self._drop(pid)

    def _drop(self, pid: int) -> None:
        pidfd = self._adopted.pop(pid)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
