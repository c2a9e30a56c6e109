"""The two ends of a subscription, the supervisor's topic and the client's subscriber, against a model of what was
said: with cuts, slow readers, deaths and late joiners in every order. No process and no socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import supervisor.hub
import supervisor.partial
from athena import events
from athena.channel import Channel
from athena.errors import InvalidOption, StoreError
from athena.events import Cursor, Event
from athena.subscriber import StreamDelta, Subscriber
from athena.wire import Frame, Framer, dumps, encode
from supervisor.hub import Subscription, Topic

SUBSCRIBER_BYTES, TRANSPORT_BYTES = 2_000, 500


class Wire:
    """A transport of few bytes, and what the client has taken out of it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.bytes = bytearray()
        self.framer = Framer()
        self.is_paused = False

    def set_write_buffer_limits(self, high: int) -> None:
        """The limit is ours."""

    def write(self, data: bytes) -> None:
        self.bytes += data
        if not self.is_paused and len(self.bytes) > TRANSPORT_BYTES:
            self.is_paused = True
            self.channel.pause_writing()

    def read(self, count: int) -> list[Frame]:
        """The frames that are complete with the next ``count`` bytes."""
        data = bytes(self.bytes[:count])
        del self.bytes[:count]
        frames = self.framer.feed(data)
        if self.is_paused and len(self.bytes) <= TRANSPORT_BYTES // 4:
            self.is_paused = False
            self.channel.resume_writing()
        return frames

    def abort(self) -> None:
        """Nothing to end."""

    close = abort


class Log:
    """The session: its log, the text that it makes now, and its topic."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.topic = Topic("s", lambda after: iter(self.events[after:]))

        async def read(after: int) -> list[Event]:
            await asyncio.sleep(0)
            return self.topic._slice(after)

        self.topic.read = read  # type: ignore[method-assign]  # in its place among the steps, and not in a thread
        self._sent = 0
        self.text: dict[str, str] = {}
        """Of the attempt whose text came last, by type."""
        self._is_void = False
        self._begin(1)
        self.record("session_start")

    def record(self, kind: str, data: dict[str, Any] | None = None, *, is_sent: bool = True) -> None:
        """An event is written, and sent then: at once, or with a later one."""
        self.events.append(events.encode(len(self.events) + 1, kind, data or {}, "t1"))
        if is_sent:
            self.send()

    def send(self) -> None:
        """What was written and not sent yet."""
        for event in self.events[self._sent :]:
            header = {"kind": "event", "session": "s", "seq": event.seq, "uuid": event.uuid, "event": event.event}
            self.topic.publish(_frame(header, event.line))
        self._sent = len(self.events)

    def say(self, kind: str, text: str) -> None:
        self.send()
        if self._is_void:
            self._is_void, self.text = False, {}
        said = self.text.setdefault(kind, "")
        header = {"kind": "delta", "session": "s", "turn": "t1", "step": self.step, "attempt": self.attempt}
        self.topic.publish_delta(_frame({**header, "type": kind, "offset": len(said)}, text.encode()))
        self.text[kind] = said + text

    def try_again(self) -> None:
        """A new attempt; nobody knows before its first text."""
        self.attempt += 1
        self._is_void = True

    def answer(self) -> None:
        self.record("assistant_message")
        self._begin(self.step + 1)

    def _begin(self, step: int) -> None:
        self.step, self.attempt, self.text, self._is_void = step, 1, {}, False

    def die(self, *, is_told: bool) -> None:
        """The process ends, maybe with events in its log that it has not sent; the next one makes the step anew.
        ``is_told``: that one says how long the log is before its first event, and not after it."""
        self._sent = len(self.events)
        self.topic.partial.clear()
        self._begin(self.step)
        if is_told:
            self.topic.reached(len(self.events))
        self.record("session_resume")
        self.topic.reached(len(self.events))
        self.record("turn_resumed")


def _frame(header: dict[str, Any], body: bytes) -> Frame:
    return Frame(header, body, encode(header, body))


class Client:
    """A subscriber over any number of connections, which checks what it sees as it comes."""

    def __init__(self, log: Log, after: int | None) -> None:
        self.log = log
        self.begins = len(log.events) if after is None else after
        self.subscriber = Subscriber(after)
        self.lines: list[bytes] = []
        self.key: object = None
        self.text: dict[str, str] = {}
        self.join()

    def join(self) -> None:
        self.channel = Channel(lambda _: None, lambda _: None)
        self.wire = Wire(self.channel)
        self.channel.connection_made(self.wire)  # type: ignore[arg-type]  # as much of a transport as is used
        asked = self.subscriber.request_body()
        self.subscription = self.log.topic.subscribe(self.channel, after=asked["after"], deltas=True)
        self.subscriber.subscribed({"after": self.subscription.sent, "reset": False, "state": None})
        self.subscription.start()

    def read(self, count: int) -> None:
        for frame in self.wire.read(count):
            items = self.subscriber.feed(frame)
            assert items or frame.kind != "event", "an event was sent twice on one connection"
            for item in items:
                self.see(item)

    def see(self, item: Event | StreamDelta) -> None:
        if isinstance(item, Event):
            self.lines.append(item.line)
            if item.event in ("turn_resumed", "assistant_message"):
                self.key, self.text = None, {}
            return
        key = (item.step, item.attempt)
        if key != self.key:
            self.key, self.text = key, {}
        assert item.offset == len(self.text.get(item.type, "")), "a gap or a double in the text"
        self.text[item.type] = self.text.get(item.type, "") + item.text

    def cut(self, count: int) -> None:
        """The connection ends after so many more bytes, inside a frame maybe."""
        self.read(count)
        self.channel.abort(None)
        self.subscription.close()
        self.join()

    async def catch_up(self) -> None:
        for _ in range(1000):
            await asyncio.sleep(0)
            self.read(1_000_000)
            if self.subscription.is_live and not self.wire.bytes and not self.channel.queued_bytes:
                return
        raise AssertionError("it never caught up")


WHO = st.integers(0, 3)
TEXT = st.tuples(st.just("say"), st.sampled_from(["text", "thinking"]), st.text("aü🦉", min_size=1, max_size=60))
LONG = st.tuples(st.just("say"), st.just("text"), st.integers(100, 900).map("b".__mul__))
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("event"), st.integers(0, 900), st.booleans()),
        TEXT,
        LONG,
        st.tuples(st.just("read"), WHO, st.integers(0, 3000)),
        st.tuples(st.just("read"), WHO, st.integers(0, 300)),
        st.tuples(st.just("cut"), WHO, st.integers(0, 1000)),
        st.tuples(st.just("run"), st.integers(1, 6)),
        st.sampled_from([("try again",), ("answer",), ("die", True), ("die", False)]),
        st.tuples(st.just("state"), st.sampled_from(["starting", "running", "hibernated"])),
        st.tuples(st.just("join"), st.sampled_from([None, 0, 1])),
    ),
    min_size=5,
    max_size=80,
)


async def play(operations: list[Any]) -> tuple[Log, list[Client]]:
    """Carry the operations out."""
    log = Log()
    clients = [Client(log, 0), Client(log, None)]
    for name, *how in operations:
        match name:
            case "event":
                log.record("tool_result", {"text": "x" * how[0]}, is_sent=how[1])
            case "say":
                log.say(*how)
            case "try again":
                log.try_again()
            case "answer":
                log.answer()
            case "die":
                log.die(is_told=how[0])
            case "state":
                log.topic.publish_state({"kind": "state", "session": "s", "state": how[0], "reason": None})
            case "read" | "cut":
                getattr(clients[how[0] % len(clients)], name)(how[1])
            case "join" if len(clients) < 4:
                log.send()  # else nobody knows what is now
                clients.append(Client(log, how[0]))
            case "run":
                for _ in range(how[0]):
                    await asyncio.sleep(0)
    log.send()
    return log, clients


@pytest.fixture(autouse=True, scope="module")
def small_bounds() -> Iterator[None]:
    """Few bytes are many: what takes megabytes outside happens here after a handful of events."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor.hub, "SUBSCRIBER_BYTES", SUBSCRIBER_BYTES)
        patch.setattr(supervisor.hub, "SLICE_EVENTS", 3)
        patch.setattr(supervisor.partial, "JOIN_PIECES", 4)
        yield


@settings(max_examples=300)
@given(OPERATIONS)
def test_every_subscriber_sees_each_event_once_and_each_text_whole(operations: list[Any]) -> None:
    async def check() -> None:
        log, clients = await play(operations)
        for client in clients:
            await client.catch_up()
            assert client.lines == [event.line for event in log.events[client.begins :]]
            assert client.text == log.text
            assert client.subscriber.seq == len(log.events)
        assert len(log.topic.subscriptions) == len(clients), "a subscription of a cut connection was left"

    asyncio.run(check())


@settings(max_examples=100)
@given(OPERATIONS)
def test_the_end_comes_after_all_events_also_to_one_that_is_behind(operations: list[Any]) -> None:
    async def check() -> None:
        log, clients = await play(operations)
        log.record("session_end")
        log.topic.end({"kind": "ended", "session": "s", "reason": "normal"})
        for client in clients:
            await client.catch_up()
            assert client.lines == [event.line for event in log.events[client.begins :]]
            assert (client.subscriber.is_ended, client.subscriber.end_reason) == (True, "normal")
        assert not log.topic.subscriptions

    asyncio.run(check())


def test_what_waits_for_one_subscriber_is_bounded() -> None:
    async def check() -> None:
        log = Log()
        deaf = Client(log, 0)
        most = 0
        for n in range(60):
            log.record("tool_result", {"text": "x" * 500})
            log.topic.publish_state({"kind": "state", "session": "s", "state": f"state {n}", "reason": None})
            await asyncio.sleep(0)
            most = max(most, deaf.channel.queued_bytes)
        assert most < 3 * SUBSCRIBER_BYTES
        assert deaf.channel._outbox.control_bytes < 200
        await deaf.catch_up()
        assert deaf.subscriber.state == "state 59"
        assert deaf.subscriber.lags == 1

    asyncio.run(check())


# --- what is no operation of the model --------------------------------------------------------------------------------


def test_one_that_joined_before_anybody_knew_how_long_the_log_is_begins_at_its_end() -> None:
    async def check(is_sent_first: bool, is_followed: bool = True) -> None:
        log = Log()
        for _ in range(9):
            log.record("tool_result")
        log.topic.last_seq, log.topic._last_uuid = 0, None  # as in a supervisor that has just begun
        now, all_of_it = Client(log, None), Client(log, 0)
        now.begins = 10
        after = Client(log, 4)
        if is_sent_first:
            log.record("session_resume")
        log.topic.reached(len(log.events))
        if is_followed and not is_sent_first:
            log.record("session_resume")
        for client in (now, all_of_it, after):
            await client.catch_up()
            assert client.lines == [event.line for event in log.events[client.begins :]]
        log.record("tool_result", is_sent=False)  # its process dies before it can send it, and the next one knows
        log.topic.reached(len(log.events))
        for client in (now, all_of_it, after):
            await client.catch_up()
            assert client.lines[-1] == log.events[-1].line
        now.cut(0)
        await now.catch_up()
        assert now.lines == [event.line for event in log.events[10:]]

    asyncio.run(check(is_sent_first=True))
    asyncio.run(check(is_sent_first=False))
    asyncio.run(check(is_sent_first=False, is_followed=False))


def test_one_that_fell_behind_in_one_text_gets_the_next_one_whole() -> None:
    async def check() -> None:
        log = Log()
        client = Client(log, 0)
        await client.catch_up()
        for text in ("first", "second"):
            for n in range(40):
                log.say("text", f"{text} {n} " + "." * 100)
            log.answer() if text == "first" else None
        assert client.subscription.is_live is False
        await client.catch_up()
        assert client.text == log.text
        assert client.subscriber.lags == 1

    asyncio.run(check())


def test_a_log_that_cannot_be_read_ends_the_stream_and_says_why() -> None:
    async def check() -> None:
        log = Log()
        log.topic.last_seq = 5
        client = Client(log, 0)
        with pytest.raises(StoreError, match="ends before event 5"):
            await client.catch_up()
        assert client.subscriber.is_ended
        assert not log.topic.subscriptions

    asyncio.run(check())


def test_a_connection_that_is_gone_joins_nothing() -> None:
    async def check() -> None:
        log = Log()
        channel = Channel(lambda _: None, lambda _: None)
        channel.abort(None)
        subscription = log.topic.subscribe(channel, after=0, deltas=True)
        subscription.start()
        assert isinstance(subscription, Subscription)
        assert not log.topic.subscriptions

    asyncio.run(check())


@pytest.mark.parametrize("after", [-1, True, "1", 1.5, object()])
def test_what_is_no_place_in_a_log_is_refused(after: Any) -> None:
    with pytest.raises(InvalidOption, match="'after'"):
        Subscriber(after)


@pytest.mark.parametrize("answer", [{"after": 0, "reset": True}, {"after": 3, "reset": False}])
def test_a_place_that_the_log_does_not_have_is_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="does not hold the event 7"):
        Subscriber(Cursor(7, "u")).subscribed(answer)
    Subscriber(7, may_be_ahead=True).subscribed({"after": 3})
    Subscriber(7).subscribed({"after": 7})


def test_what_comes_twice_is_seen_once() -> None:
    recorded = [events.encode(seq, "tool_result", {}, "t1") for seq in range(1, 6)]
    frames = [Frame({"kind": "event", "session": "s", "seq": event.seq}, event.line) for event in recorded]
    subscriber = Subscriber(2)
    subscriber.subscribed({"after": 2})
    seen = [item for frame in [*frames, *frames[1:], frames[0]] for item in subscriber.feed(frame)]
    assert seen == recorded[2:]


def test_a_failed_stream_raises_once() -> None:
    subscriber = Subscriber(0)
    body = dumps({"error": "StoreError", "message": "gone", "data": {}})
    frame = Frame({"kind": "ended", "session": "s", "reason": None, "error": True}, body)
    with pytest.raises(StoreError, match="gone"):
        subscriber.feed(frame)
    assert subscriber.is_ended
