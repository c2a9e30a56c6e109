"""Record, then publish: the one place where events come into being.

An event is numbered, written to the log, folded into the state and published, in that order, so that what subscribers
saw is on disk and the state is never ahead of the log. :meth:`Recorder.barrier` is the other half of durability: it
returns when everything recorded so far survives what ``durability`` says it must."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from athena import events
from athena.errors import DiskError
from athena.events import Event
from athena.loop.state import SessionState
from athena.messages import clean_json
from athena.stores.base import Log

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
"""Waits between tries while the disk refuses: space may come back at any time, and a try costs one ``write``."""


class Recorder:
    """The writer of one session's log.

    ``publish`` gets each event after it was written. ``flush`` is awaited by a barrier of a log whose appends are
    only done when a pipe has taken them. ``on_degraded`` is told ``"disk"`` when writes fail, ``"quota"`` when the log
    is as long as it may get, and ``None`` when they work again.
    """

    def __init__(
        self,
        log: Log,
        state: SessionState,
        *,
        durability: str,
        publish: Callable[[Event], None],
        flush: Callable[[], Awaitable[None]] | None = None,
        on_degraded: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self.log = log
        self.state = state
        self._durability = durability
        self._publish = publish
        self._flush = flush
        self._on_degraded = on_degraded
        self._degraded: str | None = None
        self._order = asyncio.Lock()
        self._synced_seq = state.cursor.seq
        self._executor: ThreadPoolExecutor | None = None

    async def record(self, kind: str, data: dict[str, Any], turn: str | None = None) -> Event:
        """Write, fold and publish one event. Waits as long as the disk refuses: nothing acts on an unwritten fact.

        Raises :class:`athena.errors.RecordTooLarge` and ``TypeError`` for a value that cannot be written; then nothing
        has changed.
        """
        if self._durability != "event":
            event = await self._append(kind, data, turn)
            self._publish(event)
            return event
        async with self._order:  # a sync is a pause, and events are published in the order of their numbers
            event = await self._append(kind, data, turn)
            await self.barrier()
            self._publish(event)
            return event

    async def barrier(self) -> None:
        """Return when everything recorded before this call is as durable as promised."""
        if self._flush is not None:
            await self._flush()
        if self._durability == "os":
            return
        seq = self.state.cursor.seq
        delay_s = RETRY_FIRST_S
        while self._synced_seq < seq:
            upto = self.state.cursor.seq
            try:
                await self._sync()
                self._synced_seq = max(self._synced_seq, upto)
                self._set_degraded(None)
                return
            except DiskError as error:
                self._set_degraded(_cause(error))
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MAX_S)

    def close(self) -> None:
        """Sync what durability promises and give the lock back."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
        if self._durability != "os" and self._degraded != "disk":
            try:
                self.log.sync()
            except DiskError:
                pass  # the events are with the kernel; the next life of this session syncs them
        self.log.close()

    async def _append(self, kind: str, data: dict[str, Any], turn: str | None) -> Event:
        delay_s = RETRY_FIRST_S
        while True:
            event = self._encode(kind, data, turn)
            try:
                self.log.append(event)
                break
            except DiskError as error:
                self._set_degraded(_cause(error))
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MAX_S)
        self._set_degraded(None)
        self.state.apply(event)
        return event

    async def _sync(self) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "athena-sync")
        await asyncio.get_running_loop().run_in_executor(self._executor, self.log.sync)

    def _encode(self, kind: str, data: dict[str, Any], turn: str | None) -> Event:
        seq = self.state.cursor.seq + 1
        try:
            return events.encode(seq, kind, data, turn)
        except TypeError:
            # A value came past the borders with text or numbers that JSON can't carry: the visible form beats a dead
            # turn.
            return events.encode(seq, kind, clean_json(data), turn)

    def _set_degraded(self, what: str | None) -> None:
        if what != self._degraded:
            self._degraded = what
            self._on_degraded(what)


def _cause(error: DiskError) -> str:
    return "quota" if "max_log_bytes" in error.data else "disk"
