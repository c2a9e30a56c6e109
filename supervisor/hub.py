"""Fan-out: one session's events and deltas to any number of subscribers who come, fall behind, go and come back.

A subscriber is on the topic first, is then replayed the log after its cursor, and is live when the replay has caught
up; so there is no gap and no double (style I4). One that falls behind its byte bound is told ``lagged`` and goes back
to its replay; it never slows the session or another subscriber. Bytes are relayed as they came. A replay that fails is
told: a stream without its middle must not look whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from athena.channel import Channel
from athena.errors import AthenaError, StoreError, to_wire
from athena.events import Cursor, Event
from athena.wire import Frame, dumps
from supervisor.partial import Partial

logger = logging.getLogger(__name__)

SUBSCRIBER_BYTES = 4 * 1024 * 1024
"""Queued data above which a subscriber has fallen behind."""

SLICE_EVENTS, SLICE_BYTES = 256, 1024 * 1024
"""How much is read from a log in one go, in a thread. For a moment it is in memory three times: as line, decoded and as
frame."""


class Past(Protocol):
    """Where recorded events are read from."""

    def __call__(self, after: int) -> Iterable[Event]: ...


class Subscription:
    """One subscriber's place in one topic."""

    def __init__(
        self, topic: Topic, channel: Channel, *, deltas: bool, sent: int, approves: bool | str = False
    ) -> None:
        self.topic = topic
        self.channel = channel
        self.deltas = deltas
        self.approves = approves
        """Whether it answers permission requests: all, or those of the turn of one message."""
        self.sent = sent
        """Seq of the last event that was queued for it."""
        self.is_live = False
        self.is_from_now = False
        """It wants nothing of before it came."""
        self._replay: asyncio.Task[None] | None = None
        self._missed: tuple[int, dict[str, int]] = (-1, {})
        """Since it fell behind: in which text, and by type from which offset on."""
        self._state: dict[str, object] | None = None
        self._notice: dict[str, object] | None = None
        """Of a state, and of the end, that came while it was behind."""

    def start(self) -> None:
        """Replay what it has not seen, then go live."""
        if self.is_from_now or (self.topic.last_seq and self.sent >= self.topic.last_seq):
            self._go_live()
        else:
            self._replay = asyncio.create_task(self._run_replay())

    def close(self) -> None:
        """Leave the topic."""
        self.topic.leave(self)
        if self._replay is not None:
            self._replay.cancel()

    def event(self, seq: int, frame: Frame) -> None:
        """A new event. Ignored during a replay: the log has it."""
        if self.is_from_now and not self.sent:
            self.sent = seq - 1  # it came before anybody knew how long the log is
        if not self.is_live or seq <= self.sent:
            return
        if self._is_behind:
            self._lag()
        elif seq > self.sent + 1:  # a child died between writing to its log and sending: the log has what is missing
            self._fall_back()
        else:
            self._relay(frame)
            self.sent = seq

    def delta(self, frame: Frame) -> None:
        """A new delta. One that is missed here comes again as partial text, or as the recorded message."""
        if not self.deltas:
            return
        if self.is_live and self._is_behind:
            self._lag()
        if self.is_live:
            self._relay(frame)
        elif self._missed[0] == self.topic.partial.generation:
            self._missed[1].setdefault(str(frame.header.get("type")), int(frame.header.get("offset") or 0))

    def state(self, notice: dict[str, object]) -> None:
        """A new state of the session: in its place between the events. Of those that are missed, the last one comes."""
        if self.is_live and self._is_behind:
            self._lag()
        if self.is_live:
            self.channel.send(notice)
        else:
            self._state = notice

    def reached(self, seq: int) -> None:
        """The log is known to go to here. One that joined before anybody knew is behind, or begins here."""
        if self.is_live and self.sent < seq:
            if self.is_from_now and not self.sent:
                self.sent = seq
                self._go_live()
            else:
                self._fall_back()

    def end(self, notice: dict[str, object]) -> None:
        """Nothing will be published any more. One that is behind has its replay first."""
        if self.is_live:
            self.channel.send(notice)
            self.topic.leave(self)
        else:
            self._notice = notice

    @property
    def _is_behind(self) -> bool:
        return self.channel.queued_bytes > SUBSCRIBER_BYTES

    def _relay(self, frame: Frame) -> None:
        if frame.raw:
            self.channel.send_raw(frame.raw)
        else:  # it came in parts and leaves in parts
            self.channel.send(frame.header, frame.body)

    def _lag(self) -> None:
        notice = {"kind": "lagged", "session": self.topic.session, "seq": self.sent}
        self.channel.send(notice, control=True)
        self._fall_back()

    def _fall_back(self) -> None:
        self.is_live = False
        self._missed = (self.topic.partial.generation, {})
        self._replay = asyncio.create_task(self._run_replay())

    def _go_live(self) -> None:
        self.is_live = True
        self.channel.send({"kind": "live", "session": self.topic.session, "seq": self.sent})
        if self._state is not None:
            self.channel.send(self._state)
            self._state = None
        if self.deltas:
            partial = self.topic.partial
            missed = self._missed[1] if self._missed[0] == partial.generation else None
            for header, body in partial.frames(self.topic.session, missed):
                self.channel.send(header, body)
        if self._notice is not None:
            self.end(self._notice)

    async def _run_replay(self) -> None:
        try:
            await self._replay_all()
        except Exception as error:  # this subscriber's stream ends, and it is told; nobody else's
            logger.warning("replay failed session=%s error=%r", self.topic.session, error)
            told = error if isinstance(error, AthenaError) else StoreError(f"the log could not be read: {error!r}")
            header = {"kind": "ended", "session": self.topic.session, "reason": None, "error": True}
            self.channel.send(header, dumps(to_wire(told)))
            self.topic.leave(self)

    async def _replay_all(self) -> None:
        topic = self.topic
        while not self.channel.closed:
            await self.channel.drained(SUBSCRIBER_BYTES // 2)
            if topic.last_seq and self.sent >= topic.last_seq:
                self._go_live()
                return
            published = topic.last_seq
            events = await topic.read(self.sent)
            for event in events:
                self.channel.send({"kind": "event", "session": topic.session, "seq": event.seq}, event.line)
                self.sent = event.seq
            if not events and self.sent < published:  # what is published was written before
                raise StoreError(
                    f"the log of session {topic.session!r} ends before event {published}, which was recorded: it was "
                    "cut, or removed",
                    session_id=topic.session,
                )
            if events:
                topic.last_seq = max(topic.last_seq, self.sent)
            elif not topic.last_seq:  # nobody has told how long the log is, and this is all of it
                self._go_live()
                return


class Topic:
    """One session as its subscribers see it."""

    def __init__(self, session: str, past: Past) -> None:
        self.session = session
        self.last_seq = 0
        """Of the last event; 0 until its process, or its log, has told."""
        self.partial = Partial()
        self.subscriptions: set[Subscription] = set()
        self.on_approvers: Callable[[], None] = lambda: None
        """Called when somebody comes or leaves who answers permission requests."""
        self._last_uuid: str | None = None
        self._past = past

    def publish(self, frame: Frame) -> None:
        """An event frame from the child."""
        self.last_seq, self._last_uuid = int(frame.header["seq"]), frame.header.get("uuid")
        if frame.header.get("event") in _ENDS_STEP:
            self.partial.clear()
        for subscription in list(self.subscriptions):
            subscription.event(self.last_seq, frame)

    def publish_delta(self, frame: Frame) -> None:
        """A delta frame from the child."""
        self.partial.add(frame)
        for subscription in list(self.subscriptions):
            subscription.delta(frame)

    def publish_state(self, notice: dict[str, object]) -> None:
        """The session is in another state."""
        for subscription in list(self.subscriptions):
            subscription.state(notice)

    def reached(self, seq: int) -> None:
        """A new child says how far its log goes."""
        if seq > self.last_seq:
            self.last_seq, self._last_uuid = seq, None
            for subscription in list(self.subscriptions):
                subscription.reached(seq)

    def subscribe(
        self, channel: Channel, *, after: int | None, deltas: bool, approves: bool | str = False
    ) -> Subscription:
        """Join: from now if ``after`` is ``None``, else after that seq, as far as it is known. Call
        :meth:`Subscription.start` next; the answer to the client says where it begins (:attr:`Subscription.sent`)."""
        sent = self.last_seq if after is None else min(after, self.last_seq or after)
        subscription = Subscription(self, channel, deltas=deltas, sent=sent, approves=approves)
        subscription.is_from_now = after is None
        if not channel.closed:  # as it may be since it asked: nothing would ever take it off the topic
            self.subscriptions.add(subscription)
            if approves:
                self.on_approvers()
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """One less. Twice is a no-op."""
        self.subscriptions.discard(subscription)
        if subscription.approves:
            self.on_approvers()

    def approvers(self) -> list[bool | str]:
        """For what somebody is there to answer: ``True`` for all turns, or a message's id."""
        return list(dict.fromkeys(one.approves for one in self.subscriptions if one.approves))

    async def read(self, after: int) -> list[Event]:
        """The next slice of the log."""
        return await asyncio.to_thread(self._slice, after)

    async def event_at(self, seq: int) -> Event | Cursor | None:
        """What is recorded with this seq, to check a cursor."""
        if seq == self.last_seq and self._last_uuid is not None:
            return Cursor(seq, self._last_uuid)
        found = await asyncio.to_thread(lambda: next(iter(self._past(seq - 1)), None))
        return found if found is not None and found.seq == seq else None

    def end(self, notice: dict[str, object]) -> None:
        """Nothing will be published any more: tell everybody once."""
        for subscription in list(self.subscriptions):
            subscription.end(notice)

    def _slice(self, after: int) -> list[Event]:
        events: list[Event] = []
        size = 0
        for event in self._past(after):
            events.append(event)
            size += len(event.line)
            if len(events) >= SLICE_EVENTS or size > SLICE_BYTES:
                break
        return events


_ENDS_STEP = frozenset({"assistant_message", "turn_end", "interrupted", "turn_resumed"})
