"""What is looked at every second: who is hung, how large a child's output file is.

A child that owes somebody something and is silent too long is killed as hung, with its stacks in its log.

Only time in which the supervisor itself was on schedule counts: on an overloaded machine its own ticks are late, and a
child that is merely slow must live (design 7.5).
"""

from __future__ import annotations

import asyncio
import logging
import time

from supervisor.keeper import Keeper
from supervisor.logfile import LogFile
from supervisor.registry import Registry

logger = logging.getLogger(__name__)

TICK_S = 1.0
LATE_S = 0.25
"""A tick later than this says nothing about a child: it may have been as starved as we were."""

TRIM_EVERY_TICKS = 15
"""How often the children's output files are kept to their bound."""

DUMP_S = 0.3
"""Time for the stack dump between the signal and the kill."""


class Probe:
    """Ticks while there is something to watch."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._silent_s: dict[Keeper, float] = {}
        self._asked: dict[Keeper, float] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._serial = 0
        self._ticks = 0

    def start(self) -> None:
        """Begin ticking."""
        self._schedule()

    def close(self) -> None:
        """Stop ticking."""
        if self._handle is not None:
            self._handle.cancel()

    def _schedule(self) -> None:
        self._due = time.monotonic() + TICK_S
        self._handle = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        on_schedule = now - self._due <= LATE_S
        busy = {k for k in self._registry.by_pid.values() if k.is_busy and k.request.spec.hang_timeout != "infinity"}
        for keeper in set(self._asked) - busy:
            self._forget(keeper)
        for keeper in busy:
            self._watch(keeper, now, on_schedule)
        self._ticks += 1
        if self._ticks % TRIM_EVERY_TICKS == 0:
            self._trim_logs()
        self._schedule()

    def _watch(self, keeper: Keeper, now: float, on_schedule: bool) -> None:
        asked = self._asked.get(keeper)
        if asked is None or keeper.facts.heard_at > asked:
            self._serial += 1
            self._asked[keeper] = now
            self._silent_s[keeper] = 0.0
            keeper.probe(self._serial)
            return
        if on_schedule:
            self._silent_s[keeper] += TICK_S
        limit = keeper.request.spec.hang_timeout
        if isinstance(limit, int | float) and self._silent_s[keeper] >= limit:
            logger.error(
                "session=%s pid=%s is silent for %s s: killing it as hung", keeper.session_id, keeper.os_pid, limit
            )
            self._forget(keeper)
            keeper.dump_stacks()
            asyncio.get_running_loop().call_later(DUMP_S, self._kill, keeper, keeper.core.incarnation)

    def _kill(self, keeper: Keeper, incarnation: int) -> None:
        if keeper.core.incarnation == incarnation and keeper.is_busy:
            keeper.kill("hung")

    def _trim_logs(self) -> None:
        for keeper in self._registry.by_pid.values():
            try:
                LogFile(keeper.log_file).trim()
            except OSError as error:
                logger.warning("cannot trim %s: %s", keeper.log_file, error)

    def _forget(self, keeper: Keeper) -> None:
        self._asked.pop(keeper, None)
        self._silent_s.pop(keeper, None)
