"""Record, then publish: the one place where events come into being.

An event is numbered, written to the log, folded into the state and published, in that order, so that what subscribers
saw is on disk and the state is never ahead of the log. A large payload that only people look at goes out of line
before its event, and the event has a reference, on disk as in memory and to subscribers. :meth:`Recorder.barrier` is
the other half of durability: it returns when everything recorded so far survives what ``durability`` says it must."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from athena import events
from athena.errors import DiskError, RecordTooLarge
from athena.events import MAX_RECORD_BYTES, Event
from athena.loop.state import SessionState
from athena.messages import clean_json
from athena.stores.base import Log
from athena.stores.blobs import BlobLog, large_payloads, referred

T = TypeVar("T")

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
"""Waits between tries while the disk refuses: space may come back at any time, and a try costs one ``write``."""

FOLLOW_BYTES = 64 * 1024
"""How much smaller than a record may be must be what a later record repeats: a message that was accepted is said again
when its turn begins, and an answer when its turn ends."""

_REPEATED = frozenset({"message_accepted", "assistant_message"})


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
        self._refusal: DiskError | None = None
        self._blobs = log if isinstance(log, BlobLog) else None
        self._order = asyncio.Lock()
        self._synced_seq = state.cursor.seq
        self._executor: ThreadPoolExecutor | None = None

    @property
    def is_degraded(self) -> bool:
        """Whether something waits for the disk or the quota."""
        return self._degraded is not None

    async def record(self, kind: str, data: dict[str, Any], turn: str | None = None, *, waits: bool = True) -> Event:
        """Write, fold and publish one event. Waits as long as the disk refuses: nothing acts on an unwritten fact.

        Raises :class:`athena.errors.RecordTooLarge` and ``TypeError`` for a value that cannot be written, and with
        ``waits=False`` :class:`DiskError` when the disk refuses; then nothing has changed.
        """
        if self._blobs is not None and kind == "tool_result":
            data = await self._out_of_line(self._blobs, kind, data)
        if self._durability != "event":
            event = await self._append(kind, data, turn, waits=waits)
            self._publish(event)
            return event
        if not waits and self._refusal is not None and self._order.locked():  # behind an event that waits for the disk
            raise DiskError(self._refusal.message, **self._refusal.data)
        async with self._order:  # a sync is a pause, and events are published in the order of their numbers
            event = await self._append(kind, data, turn, waits=waits)
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
                self._refused(error)
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

    async def _append(self, kind: str, data: dict[str, Any], turn: str | None, *, waits: bool) -> Event:
        delay_s = RETRY_FIRST_S
        while True:
            event = self._encode(kind, data, turn)
            try:
                self.log.append(event)
                break
            except DiskError as error:
                if not waits:
                    raise
                self._refused(error)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MAX_S)
        self._set_degraded(None)
        self.state.apply(event)
        return event

    async def _out_of_line(self, blobs: BlobLog, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """``data`` with references in place of its large payloads, which are in the store when this returns."""
        results = data["message"].get("tool_results") or ()
        for large, payload in large_payloads(kind, data):
            fit = await self._put(blobs, large, payload)
            results = [fit if one is large else one for one in results]
            data = {**data, "message": {**data["message"], "tool_results": results}}
        return data

    async def _put(self, blobs: BlobLog, result: dict[str, Any], payload: bytes) -> dict[str, Any]:
        ref = await self._keep(blobs, payload)
        if ref is None:  # what only people look at must not hold up a result
            ui = {**result["ui_payload"], "payload": {"left_out_bytes": len(payload)}}
            return {**result, "ui_payload": ui}
        return referred(result, ref, len(payload))

    async def keep(self, data: bytes) -> tuple[str | None, str | None]:
        """Keep ``data`` out of line. Returns its reference, or ``None`` and why there is none: ``"store"`` if the store
        has no place for it, ``"quota"``. Waits as long as the disk refuses."""
        if self._blobs is None:
            return None, "store"
        ref = await self._keep(self._blobs, data)
        return ref, None if ref is not None else "quota"

    async def _keep(self, blobs: BlobLog, payload: bytes) -> str | None:
        """``None`` if it is over the quota."""
        delay_s = RETRY_FIRST_S
        while True:
            try:
                if self._durability == "os":
                    return blobs.put_blob(payload, durable=False)
                return await self._in_thread(partial(blobs.put_blob, payload, durable=True))
            except DiskError as error:
                if _cause(error) == "quota":
                    return None
                self._refused(error)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MAX_S)

    async def _sync(self) -> None:
        await self._in_thread(self.log.sync)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """One after the other, in the session's one thread for what blocks."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "athena-sync")
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _encode(self, kind: str, data: dict[str, Any], turn: str | None) -> Event:
        seq = self.state.cursor.seq + 1
        try:
            event = events.encode(seq, kind, data, turn)
        except TypeError:
            # A value came past the borders with text or numbers that JSON can't carry: the visible form beats a dead
            # turn.
            event = events.encode(seq, kind, clean_json(data), turn)
        if kind in _REPEATED and len(event.line) > MAX_RECORD_BYTES - FOLLOW_BYTES:
            raise RecordTooLarge(
                f"a {kind} event of {len(event.line)} bytes is over the limit of {MAX_RECORD_BYTES - FOLLOW_BYTES}"
                " bytes, as its text is recorded once more",
                size_bytes=len(event.line),
            )
        return event

    def _refused(self, error: DiskError) -> None:
        self._refusal = error
        self._set_degraded(_cause(error))

    def _set_degraded(self, what: str | None) -> None:
        if what is None:
            self._refusal = None
        if what != self._degraded:
            self._degraded = what
            self._on_degraded(what)


def _cause(error: DiskError) -> str:
    return "quota" if "max_log_bytes" in error.data else "disk"
