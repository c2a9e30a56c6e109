"""What a session's process says to its supervisor: :class:`athena.last_words.Words` that keep nobody waiting.

The engine and its tools share one event loop, and an event may be larger than any pipe. So a frame goes out over a
:class:`athena.channel.Channel`: what the pipe does not take waits, and control goes first.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from athena.channel import Channel, open_write_pipe
from athena.errors import from_wire
from athena.events import Event
from athena.last_words import Words
from athena.loop.permission import open_requests
from athena.loop.state import SessionState
from athena.providers.base import Delta
from athena.wire import Header

PIPE_BACKLOG_BYTES = 1024 * 1024
"""Unsent event bytes above which deltas are no longer sent: they can be missed, events cannot."""

_ASKS = ("request_id", "call_id", "tool", "turn", "at")
"""What the supervisor is told of an open permission request."""

_ENDS_STEP = frozenset({"assistant_message", "interrupted", "turn_end"})


class SessionWords(Words):
    """The pipe of one session's process, which is what surrounds its engine (:class:`athena.session_setup.Host`)."""

    def __init__(self, fd: int, session: str) -> None:
        super().__init__(fd)
        self.session = session
        self.state = SessionState()
        """The session's, once there is one."""
        self.is_held: Callable[[], bool] = lambda: False
        """Whether what is open waits for grants."""
        self._channel: Channel | None = None
        self._is_closed = False
        self._held: list[tuple[Header, list[str]]] = []
        """Text that waits until the pipe has room."""
        self._send_held_task: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)

    async def open(self) -> None:
        """From now on no write waits. Only in the event loop's thread; :meth:`end` after :meth:`close`."""
        self._channel = await open_write_pipe(self._fd)

    def frame(self, header: Header, body: bytes = b"", *, control: bool = True) -> None:
        if self._channel is None:
            super().frame(header, body)
        elif not self._is_closed:
            self._channel.send(header, body, control=control)

    async def flushed(self) -> None:
        """Everything said so far is in the pipe."""
        if self._channel is not None:
            await self._channel.flushed()

    async def close(self) -> None:
        """Everything said so far is in the pipe; what is said later is dropped, as :meth:`end` must not come inside
        it."""
        self._is_closed = True
        await self.flushed()

    # --- events and text

    def publish(self, event: Event) -> None:
        """Send a recorded event. The header says what the supervisor needs to know without reading the line."""
        header: Header = {"kind": "event", "session": self.session, "seq": event.seq, "uuid": event.uuid}
        header["event"] = event.event
        if event.event == "turn_end":
            header["settled"] = [event.data["message_id"]]
        elif event.event == "message_cancelled":
            header["settled"] = event.data["message_ids"]
        if event.event in _ENDS_STEP:
            self._held.clear()
        self.frame(header | self.position(), event.line, control=False)

    def position(self) -> dict[str, Any]:
        """The turn that is open, how many messages wait behind it, whether they wait for grants, and what is asked."""
        held = {"held": True} if self.is_held() else {}
        asks = [{word: row[word] for word in _ASKS} for row in open_requests(self.state)]
        return {
            "turn": self.state.turn.id if self.state.turn else None,
            "queue": len(self.state.queue),
            **held,
            **({"asks": asks} if asks else {}),
        }

    def delta(self, turn: str, step: int, attempt: int, offset: int, piece: Delta) -> None:
        """Send a piece of text. While the pipe is far behind, pieces are held back and joined: they can wait, events
        cannot; what is held when the step is recorded needs no sending any more."""
        assert self._channel is not None
        header: Header = {
            "kind": "delta", "session": self.session, "turn": turn, "step": step, "attempt": attempt,
            "offset": offset, "type": piece.type,
        }  # fmt: skip
        if self._channel.queued_bytes <= PIPE_BACKLOG_BYTES and not self._held:
            self._channel.send_soon(header, piece.text.encode())
            return
        if not self._held:
            self._send_held_task = asyncio.create_task(self._send_held(self._channel))
        last = self._held[-1] if self._held else None
        if last is not None and {**last[0], "offset": offset} == header:
            last[1].append(piece.text)
        else:
            self._held.append((header, [piece.text]))

    async def _send_held(self, channel: Channel) -> None:
        await channel.drained(PIPE_BACKLOG_BYTES // 2)
        held, self._held = self._held, []
        for header, texts in held:
            self.frame(header, "".join(texts).encode(), control=False)

    # --- notices and questions

    def settled(self, message_id: str) -> None:
        """If this message's turn has ended, or will never begin, say so: whoever keeps it may forget it.

        The event that says it may have been lost with the last process, or sent before the message came again.
        """
        if message_id in self.state.ended or message_id in self.state.cancelled:
            self.frame({"kind": "settled", "messages": [message_id]})

    def remember(self, rule: str, decision: str) -> None:
        """Tell the supervisor of an answer that holds for the rest of the session."""
        self.frame({"kind": "remember", "rule": rule, "decision": decision})

    def degraded(self, what: str | None) -> None:
        """Tell the supervisor that writing fails, or works again."""
        self.frame({"kind": "state", "degraded": what})

    async def call(self, op: str, body: bytes) -> Any:
        """Ask the supervisor. Raises what it answers."""
        number = next(self._ids)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self.frame({"kind": "request", "id": number, "op": op}, body)
        try:
            return await future
        finally:
            del self._asked[number]

    def answered(self, number: int, value: Any, *, ok: bool) -> None:
        """The supervisor's answer. One that nobody waits for any more is dropped."""
        future = self._asked.get(number)
        if future is None or future.done():
            return
        if ok:
            future.set_result(value)
        else:
            future.set_exception(from_wire(value))
