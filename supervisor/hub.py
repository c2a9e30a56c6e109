"""Fan-out: one session's events and deltas to any number of subscribers who come, fall behind, go and come back.

A subscriber is on the topic first, is then replayed the log after its cursor, and is live when the replay has caught
up; so there is no gap and no double (style I4). One that falls behind its byte bound is told ``lagged`` and goes back
to its replay; it never slows the session or another subscriber. Bytes are relayed as they came.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from athena.channel import Channel
from athena.errors import AthenaError
from athena.events import Event
from athena.wire import Frame

logger = logging.getLogger(__name__)

SUBSCRIBER_BYTES = 4 * 1024 * 1024
"""Queued data above which a subscriber has fallen behind."""

SLICE_EVENTS = 256
"""Events read from a log in one go, in a thread."""

JOIN_PIECES = 256
"""After so many deltas their text is kept as one: a piece of few characters costs twenty times its text."""

PARTIAL_BYTES = 8 * 1024 * 1024
"""Text of the running step above which its beginning is forgotten; the recorded message will have it."""


class Past(Protocol):
    """Where recorded events are read from."""

    def __call__(self, after: int) -> Iterable[Event]: ...


@dataclass(slots=True)
class Partial:
    """The text of the running step so far, for those who come late or have missed some."""

    key: tuple[object, object, object] = (None, None, None)
    """Turn, step and attempt: a new attempt voids the old text."""
    generation: int = 0
    """Which text this is; a later one has nothing to do with it."""
    pieces: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    """By type: offset in characters, and text."""
    size_bytes: int = 0
    fresh: int = 0
    """Deltas since pieces were joined last."""

    def add(self, frame: Frame) -> None:
        """Keep one delta."""
        header = frame.header
        key = (header.get("turn"), header.get("step"), header.get("attempt"))
        if key != self.key:
            self.clear()
            self.key = key
        pieces = self.pieces.setdefault(str(header.get("type")), [])
        pieces.append((int(header.get("offset") or 0), frame.body))
        self.size_bytes += len(frame.body)
        self.fresh += 1
        if self.fresh >= JOIN_PIECES:
            self._join()
        while self.size_bytes > PARTIAL_BYTES and len(pieces) > 1:
            self.size_bytes -= len(pieces.pop(0)[1])

    def _join(self) -> None:
        """Each type's latest pieces, which may include some that were joined before."""
        for pieces in self.pieces.values():
            latest = pieces[-self.fresh :]
            pieces[-self.fresh :] = [(latest[0][0], b"".join(body for _, body in latest))]
        self.fresh = 0

    def clear(self) -> None:
        """The step is recorded: its text is in the log now."""
        self.pieces = {}
        self.size_bytes = self.fresh = 0
        self.generation += 1

    def frames(self, session: str, missed: dict[str, int]) -> Iterator[tuple[dict[str, object], bytes]]:
        """The partial text as one delta for each type: from where it was ``missed``, or all of it. It may begin a
        little before that; the client drops what it has."""
        turn, step, attempt = self.key
        for kind, pieces in self.pieces.items():
            since = missed.get(kind, 0)
            first = max((i for i, (offset, _) in enumerate(pieces) if offset <= since), default=0)
            offset = pieces[first][0]
            pieces[first:] = [(offset, b"".join(body for _, body in pieces[first:]))]
            header = {"kind": "delta", "session": session, "turn": turn, "step": step, "attempt": attempt}
            yield {**header, "offset": offset, "type": kind}, pieces[first][1]


class Subscription:
    """One subscriber's place in one topic."""

    def __init__(self, topic: Topic, channel: Channel, *, deltas: bool, sent: int) -> None:
        self.topic = topic
        self.channel = channel
        self.deltas = deltas
        self.sent = sent
        """Seq of the last event that was queued for it."""
        self.is_live = False
        self._replay: asyncio.Task[None] | None = None
        self._missed: tuple[int, dict[str, int]] = (-1, {})
        """Since it fell behind: in which text, and by type from which offset on."""

    def start(self) -> None:
        """Replay what it has not seen, then go live."""
        if self.sent == self.topic.last_seq:
            self._go_live()
        else:
            self._replay = asyncio.create_task(self._run_replay())

    def close(self) -> None:
        """Leave the topic."""
        self.topic.subscriptions.discard(self)
        if self._replay is not None:
            self._replay.cancel()

    def event(self, seq: int, frame: Frame) -> None:
        """A new event. Ignored during a replay: the log has it."""
        if not self.is_live or seq <= self.sent:
            return
        if self.channel.queued_bytes > SUBSCRIBER_BYTES:
            self._lag()
        elif seq > self.sent + 1:  # a child died between writing to its log and sending: the log has what is missing
            self.is_live = False
            self._replay = asyncio.create_task(self._run_replay())
        else:
            self._relay(frame)
            self.sent = seq

    def delta(self, frame: Frame) -> None:
        """A new delta. One that is missed here comes again as partial text, or as the recorded message."""
        if not self.deltas:
            return
        if self.is_live and self.channel.queued_bytes > SUBSCRIBER_BYTES:
            self._lag()
        if self.is_live:
            self._relay(frame)
        elif self._missed[0] == self.topic.partial.generation:
            self._missed[1].setdefault(str(frame.header.get("type")), int(frame.header.get("offset") or 0))

    def _relay(self, frame: Frame) -> None:
        if frame.raw:
            self.channel.send_raw(frame.raw)
        else:  # it came in parts and leaves in parts
            self.channel.send(frame.header, frame.body)

    def _lag(self) -> None:
        self.is_live = False
        self._missed = (self.topic.partial.generation, {})
        notice = {"kind": "lagged", "session": self.topic.session, "seq": self.sent}
        self.channel.send(notice, control=True)
        self._replay = asyncio.create_task(self._run_replay())

    def _go_live(self) -> None:
        self.is_live = True
        self.channel.send({"kind": "live", "session": self.topic.session, "seq": self.sent})
        if self.deltas:
            partial = self.topic.partial
            generation, missed = self._missed
            for header, body in partial.frames(self.topic.session, missed if generation == partial.generation else {}):
                self.channel.send(header, body)

    async def _run_replay(self) -> None:
        try:
            await self.channel.drained(SUBSCRIBER_BYTES // 2)
            while self.sent < self.topic.last_seq and not self.channel.closed:
                await self.channel.drained(SUBSCRIBER_BYTES // 2)
                events = await self.topic.read(self.sent)
                if not events:  # the log has less than was published: only a custom or damaged one can
                    self.sent = self.topic.last_seq
                    break
                for event in events:
                    self.channel.send({"kind": "event", "session": self.topic.session, "seq": event.seq}, event.line)
                    self.sent = event.seq
            if not self.channel.closed:
                self._go_live()
        except AthenaError as error:
            logger.warning("replay failed session=%s error=%s", self.topic.session, error)
            self.channel.send({"kind": "ended", "session": self.topic.session, "error": str(error)}, control=True)
            self.close()


class Topic:
    """One session as its subscribers see it."""

    def __init__(self, session: str, past: Past) -> None:
        self.session = session
        self.last_seq = 0
        self.partial = Partial()
        self.subscriptions: set[Subscription] = set()
        self._past = past

    def publish(self, frame: Frame) -> None:
        """An event frame from the child."""
        self.last_seq = int(frame.header["seq"])
        if frame.header.get("event") in _ENDS_STEP:
            self.partial.clear()
        for subscription in list(self.subscriptions):
            subscription.event(self.last_seq, frame)

    def publish_delta(self, frame: Frame) -> None:
        """A delta frame from the child."""
        self.partial.add(frame)
        for subscription in list(self.subscriptions):
            subscription.delta(frame)

    def subscribe(self, channel: Channel, *, after: int | None, deltas: bool) -> Subscription:
        """Join: from now if ``after`` is ``None``, else after that seq. Call :meth:`Subscription.start` next."""
        sent = self.last_seq if after is None else min(after, self.last_seq)
        subscription = Subscription(self, channel, deltas=deltas, sent=sent)
        self.subscriptions.add(subscription)
        return subscription

    async def read(self, after: int) -> list[Event]:
        """The next slice of the log."""
        return await asyncio.to_thread(self._slice, after)

    async def event_at(self, seq: int) -> Event | None:
        """The recorded event with this seq, to check a cursor."""
        found = await asyncio.to_thread(lambda: list(itertools.islice(self._past(seq - 1), 1)))
        return found[0] if found and found[0].seq == seq else None

    def end(self, notice: dict[str, object]) -> None:
        """Nothing will be published any more: tell everybody once."""
        for subscription in list(self.subscriptions):
            subscription.channel.send(notice)
            subscription.close()

    def _slice(self, after: int) -> list[Event]:
        events: list[Event] = []
        size = 0
        for event in self._past(after):
            events.append(event)
            size += len(event.line)
            if len(events) >= SLICE_EVENTS or size > SUBSCRIBER_BYTES:
                break
        return events


_ENDS_STEP = frozenset({"assistant_message", "turn_end", "interrupted", "turn_resumed"})
