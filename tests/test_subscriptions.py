"""Subscriptions that come back: connections cut anywhere, readers that stop, ends, and what a closed stream leaves."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from athena import AsyncSession, Session
from athena.client import SyncConnection
from athena.config import default_paths
from athena.errors import InvalidOption, StoreError
from athena.events import Event
from athena.session import EventStream
from athena.subscriber import Item, StreamDelta
from athena.supervisors import DaemonTarget, EmbeddedSupervisor
from athena.wire import dumps, encode
from tests.helpers import TIME_UNIT, wait_until, wait_until_async
from tests.session_fixtures import (
    ANSWER_S,
    Files,
    Sessions,
    background,
    daemon,
    files,
    guard_pid,
    kill,
    kill_pid,
    log,
    own_sessions,
    own_supervisor,
    result,
    sessions,
    shared_supervisor,
    supervisor_pid,
)

__all__ = ["background", "daemon", "files", "own_sessions", "own_supervisor", "sessions", "shared_supervisor"]

Background = Callable[[Callable[[], Any]], Future[Any]]

LIMIT_S = ANSWER_S * TIME_UNIT
CALLS_A_STEP = 64
EVENTS_A_STEP = 2 * CALLS_A_STEP + 1


def lines_until(stream: EventStream, kind: str) -> list[bytes]:
    """The lines of the events up to the first of this kind."""
    lines = []
    while True:
        item = stream.next(LIMIT_S)
        assert item is not None, "the stream has ended"
        if isinstance(item, Event):
            lines.append(item.line)
            if item.event == kind:
                return lines


def logged(session: Session | AsyncSession) -> list[bytes]:
    return [event.line for event in log(session.session_id)]


def big_turn(files: Files, events: int, *, result_lines: int = 1) -> list[Any]:
    """A script of one turn with so many events, which ends when the file ``gate`` is there."""
    (files.root / "small").write_text("some text\n" * result_lines)
    calls = [{"name": "read", "arguments": {"path": "small"}}] * CALLS_A_STEP
    steps: list[Any] = [{"tool_calls": calls}] * (events // EVENTS_A_STEP + 1)
    return [*steps, {"text": "done", "wait_for": files.path("gate")}]


# --- connections that are cut -----------------------------------------------------------------------------------------


class CuttingProxy:
    """Stands between clients and a supervisor, and cuts ``cuts`` of their connections after a random number of bytes:
    inside the greeting, the answer, a frame, or where nothing is under way."""

    IDLE_S = 0.005 * TIME_UNIT

    def __init__(self, target: Path, path: Path, cuts: int, seed: int) -> None:
        self.path = path
        self.left = 0
        self._cuts = cuts
        self._target = target
        self._random = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._budget: dict[socket.socket, int] = {}
        """By the client's end: bytes that it still gets."""
        self._live: set[socket.socket] = set()
        """Those that have caught up."""
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    def begin(self) -> None:
        """Cut from now on."""
        self.left = self._cuts

    def close(self) -> None:
        self._is_over = True
        self._thread.join()
        for one in list(self._budget):
            self._hang_up(one)
        self._selector.close()
        self._listener.close()

    def _run(self) -> None:
        while not self._is_over:
            ready = self._selector.select(self.IDLE_S)
            for key, _ in ready:
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._relay(key.fileobj)  # type: ignore[arg-type]  # a socket
            if not ready and self._budget and self.left:
                client = self._random.choice(list(self._budget))
                # One that waits for its first event gets it most times: else nothing ever came on a busy machine.
                if client in self._live or self._random.random() < 0.05:
                    self._cut(client)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self._target))
        self._peers |= {client: server, server: client}
        # A step's answer is an event of some 8 KB: with less than that, nothing would ever come behind it.
        self._budget[client] = self._random.randrange(self._random.choice([400, 4_000, 4_000, 4_000, 40_000]))
        for one in (client, server):
            self._selector.register(one, selectors.EVENT_READ)

    def _relay(self, source: socket.socket) -> None:
        peer = self._peers.get(source)
        if peer is None:
            return  # its connection was cut in this round
        client = source if source in self._budget else peer
        try:
            data = source.recv(65536)
            if self.left and source is not client:
                data = data[: self._budget[client]]
                self._live |= {client} if b'"kind":"live"' in data else set()
                self._budget[client] -= len(data)
            if data:
                peer.sendall(data)
        except OSError:
            data = b""
        if self.left and source is not client and self._budget[client] <= 0:
            self._cut(client)
        elif not data:
            self._hang_up(client)

    def _cut(self, client: socket.socket) -> None:
        self.left -= 1
        self._hang_up(client)

    def _hang_up(self, client: socket.socket) -> None:
        del self._budget[client]
        self._live.discard(client)
        for one in (client, self._peers.pop(client)):
            self._peers.pop(one, None)
            self._selector.unregister(one)
            one.close()


AFTER = 1
"""The first event has the whole script in it: more than a connection gets before it is cut."""

CUTS = [pytest.param(40, 1_000), pytest.param(1_000, 10_000, marks=pytest.mark.slow)]


@pytest.fixture
def proxied(sessions: Sessions, files: Files) -> Iterator[Callable[[int], CuttingProxy]]:
    """A proxy in front of the file's supervisor."""
    with ExitStack() as stack:

        def start(cuts: int) -> CuttingProxy:
            sessions.supervisor.ensure()
            proxy = CuttingProxy(sessions.supervisor.path, files.root / "p", cuts, seed=cuts)
            return stack.enter_context(closing(proxy))

        yield start


@pytest.mark.parametrize(("cuts", "events"), CUTS)
def test_a_stream_whose_connection_is_cut_again_and_again_equals_the_log(
    sessions: Sessions,
    files: Files,
    proxied: Callable[[int], CuttingProxy],
    background: Background,
    cuts: int,
    events: int,
) -> None:
    session = sessions.start(big_turn(files, events), max_iterations="infinity")
    proxy = proxied(cuts)
    guest = Session.attach(session.session_id, supervisor=proxy.path)
    proxy.begin()
    with guest.events(AFTER) as stream:
        session.submit("go")
        opened = background(lambda: wait_until(lambda: not proxy.left, 120))
        opened.add_done_callback(lambda _: files.open("gate"))  # the turn runs until the last cut is made
        seen: list[bytes] = []
        cut_at = set()
        while not seen or b'"event":"turn_end"' not in seen[-1]:
            item = stream.next(LIMIT_S)
            if isinstance(item, Event):
                seen.append(item.line)
                cut_at.add(proxy.left)
        result(opened)
    assert proxy.left == 0
    assert len(cut_at) > cuts / 4, "there was progress between the cuts, all over the turn"
    assert len(seen) > events
    assert seen == logged(session)[AFTER:]
    wait_until(lambda: session.status()["subscribers"] == 0)


@pytest.mark.parametrize(("cuts", "events"), CUTS)
async def test_an_asyncio_stream_whose_connection_is_cut_again_and_again_equals_the_log(
    sessions: Sessions, files: Files, proxied: Callable[[int], CuttingProxy], cuts: int, events: int
) -> None:
    session = await asyncio.to_thread(lambda: sessions.start(big_turn(files, events), max_iterations="infinity"))
    proxy = proxied(cuts)
    guest = await AsyncSession.attach(session.session_id, supervisor=proxy.path)
    proxy.begin()
    seen = []
    async with guest.events(AFTER) as stream:
        await asyncio.to_thread(session.submit, "go")
        opened = asyncio.create_task(wait_until_async(lambda: not proxy.left, 120))
        opened.add_done_callback(lambda _: files.open("gate"))
        async for item in stream:
            if isinstance(item, Event):
                seen.append(item.line)
                if item.event == "turn_end":
                    break
        await opened
    assert len(seen) > events
    assert seen == logged(session)[AFTER:]
    await wait_until_async(lambda: session.status()["subscribers"] == 0)


def test_text_is_whole_over_cut_connections(
    sessions: Sessions, files: Files, proxied: Callable[[int], CuttingProxy], background: Background
) -> None:
    chunks = [f"piece {n} äöü 🦉 " for n in range(300)]
    session = sessions.start([{"chunks": chunks, "chunk_delay_s": 0.002, "wait_before_end": files.path("gate")}])
    proxy = proxied(60)
    guest = Session.attach(session.session_id, supervisor=proxy.path)
    proxy.begin()
    seen = ""
    with guest.events() as stream:
        answer = background(lambda: session.send_message("go"))
        while len(seen) < len("".join(chunks)):
            item = stream.next(LIMIT_S)
            if isinstance(item, StreamDelta):
                assert item.offset == len(seen)
                seen += item.text
    files.open("gate")
    assert seen == "".join(chunks) == result(answer).text
    assert proxy.left < 60


# --- one that does not read -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reader_that_stops_costs_the_supervisor_a_bounded_memory_and_holds_nobody_up(
    sessions: Sessions, files: Files, background: Background
) -> None:
    session = sessions.start(big_turn(files, 10_000, result_lines=600), max_iterations="infinity")
    supervisor = psutil.Process(supervisor_pid(sessions.supervisor))
    before_bytes = supervisor.memory_info().rss
    with ExitStack() as stack:
        deaf = stack.enter_context(session.events(0))
        keen = [stack.enter_context(session.events(0)) for _ in range(2)]
        session.submit("go")
        seen = [background(partial(lines_until, stream, "turn_end")) for stream in keen]
        peak_bytes = before_bytes
        events = rounds = 0
        while events < 10_000:
            session.submit("one more").cancel()  # to the session's process and back, as an answer to a request goes
            events = session.status()["events"]
            peak_bytes = max(peak_bytes, supervisor.memory_info().rss)
            rounds += 1
        files.open("gate")
        lines = [result(one) for one in seen]
        size_bytes = sum(map(len, lines[0]))
        assert size_bytes > 60_000_000, "far more than may wait for one that does not read"
        assert rounds > 20
        assert peak_bytes - before_bytes < size_bytes / 2  # three readers, some 12 MB for each that is behind
        assert lines_until(deaf, "turn_end") == lines[0] == lines[1] == logged(session)
        assert deaf._subscriber.lags >= 1


def test_an_answer_overtakes_what_waits_for_a_reader(sessions: Sessions) -> None:
    text = "x" * (2 * 1024 * 1024)
    session = sessions.start([{"text": "ok"}] * 32)
    for _ in range(32):
        session.send_message(text)
    connection = SyncConnection(sessions.supervisor.path)
    with closing(connection):
        at = {"session": session.session_id}
        header = [{"id": n, "kind": "request", "op": op, **at} for n, op in ((1001, "messages"), (1002, "subscribe"))]
        for one in header:
            body = dumps({"after": 0, "deltas": True}) if one["op"] == "subscribe" else b""
            connection._send(encode(one, body), 5)
        wait_until(lambda: session.status()["subscribers"] == 1)
        connection._send(encode({"id": 1003, "kind": "request", "op": "status", **at}, b""), 5)
        answered: list[int] = []
        received = 0
        while {1001, 1003} - set(answered):
            data = connection._socket.recv(65536)
            received += len(data)
            for frame in connection.protocol.feed(data):
                if frame.kind == "reply" and frame.header["id"] != 1001:
                    assert received < 2_000_000, "it waited behind the history"
                answered += [frame.header["id"]] if frame.kind == "reply" else []
        assert received > 64 * 1024 * 1024


# --- many -------------------------------------------------------------------------------------------------------------


def test_many_streams_of_one_program_and_of_others_are_the_same(sessions: Sessions, files: Files) -> None:
    session = sessions.start([{"text": "some text", "chunks": 3}, "more"])
    handles = [session, *(Session.attach(session.session_id, supervisor=sessions.supervisor) for _ in range(3))]
    with ExitStack() as stack:
        streams = [stack.enter_context(handle.events(0)) for handle in handles for _ in range(5)]
        assert session.status()["subscribers"] == len(streams)
        handles[1].send_message("a")
        handles[2].send_message("b")
        for stream in streams:
            assert lines_until(stream, "turn_end") + lines_until(stream, "turn_end") == logged(session)
    wait_until(lambda: session.status()["subscribers"] == 0)


def test_a_second_subscription_on_one_connection_takes_the_place_of_the_first(sessions: Sessions) -> None:
    session = sessions.start(["one"])
    with closing(SyncConnection(sessions.supervisor.path)) as connection:
        for _ in range(3):
            body = dumps({"after": 0, "deltas": True})
            answer = connection.call("subscribe", {"session": session.session_id}, body, LIMIT_S).json()
            assert answer["after"] == 0
        assert session.status()["subscribers"] == 1


# --- what voids text --------------------------------------------------------------------------------------------------


def test_a_late_joiner_sees_the_attempt_that_runs_and_not_the_one_that_failed(
    sessions: Sessions, files: Files, background: Background
) -> None:
    step = {
        "chunks": ["half of ", "an answer"],
        "touch": files.path("asked"),
        "error": {"kind": "server_error", "message": "later"},
        "error_until": files.path("healed"),
        "wait_before_end": files.path("gate"),
    }
    session = sessions.start([step])
    with session.events() as early:
        answer = background(lambda: session.send_message("go"))
        items = _until_text(early, "half of an answer")
        files.open("healed")
        while len(_attempts(items)) < 2 or list(_attempts(items).values())[-1] != "half of an answer":
            items.append(early.next(LIMIT_S))  # type: ignore[arg-type]  # an item
        with session.events() as late:
            seen = _until_text(late, "half of an answer")
        files.open("gate")
        lines_until(early, "turn_end")
    assert result(answer).text == "half of an answer"
    assert list(_attempts(seen).items()) == list(_attempts(items).items())[-1:]
    assert list(_attempts(items)) == list(range(1, len(_attempts(items)) + 1))


def _until_text(stream: EventStream, text: str) -> list[Item]:
    items: list[Item] = []
    while not any(found == text for found in _attempts(items).values()):
        item = stream.next(LIMIT_S)
        assert item is not None, "the stream has ended"
        items.append(item)
    return items


def _attempts(items: list[Item]) -> dict[int, str]:
    found: dict[int, str] = {}
    for item in items:
        if isinstance(item, StreamDelta):
            assert item.offset == len(found.get(item.attempt, ""))
            found[item.attempt] = found.get(item.attempt, "") + item.text
    return found


# --- ends -------------------------------------------------------------------------------------------------------------


def test_one_that_is_behind_when_the_session_ends_still_sees_all_of_it(sessions: Sessions, files: Files) -> None:
    files.open("gate")
    session = sessions.start(big_turn(files, 1_000, result_lines=3_000))
    with session.events(0) as deaf:
        session.send_message("go", timeout=LIMIT_S)
        session.stop()
        seen = [item for item in deaf if isinstance(item, Event)]
    assert sum(len(item.line) for item in seen) > 12_000_000
    assert deaf._subscriber.lags >= 1
    assert [item.line for item in seen] == logged(session)
    assert seen[-1].event == "session_end"


def test_a_log_that_was_cut_under_a_stream_is_told_and_is_no_silent_gap(sessions: Sessions) -> None:
    session = sessions.start(["one", "two"])
    session.send_message("go")
    os.truncate(default_paths().sessions / f"{session.session_id}.jsonl", 0)
    with session.events(0) as stream:
        with pytest.raises(StoreError, match="ends before event"):
            stream.next(LIMIT_S)
        assert stream.next(LIMIT_S) is None


def test_a_session_that_only_lived_in_memory_does_not_pass_off_its_new_log_as_the_old_one(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor
) -> None:
    session = own_sessions.start(["one", "two"], store="in_memory")
    session.send_message("go")
    with session.events(0) as stream:
        lines_until(stream, "turn_end")
        kill_pid(supervisor_pid(own_supervisor))
        with pytest.raises(InvalidOption, match="does not hold the event"):
            list(stream)


def test_what_a_session_says_before_it_is_known_how_long_its_log_is(sessions: Sessions, files: Files) -> None:
    session = sessions.start(["one"])
    session.send_message("go")
    turn = session.submit("again")  # its answer may overtake the event that it names
    assert turn.result(LIMIT_S).finish_reason == "stop"
    assert [item.event for item in turn.events() if isinstance(item, Event)][-1] == "turn_end"
    kill(session)
    with session.events(0) as stream, session.events() as now:
        assert session.send_message("more").finish_reason == "stop"
        assert [lines_until(stream, "turn_end") for _ in range(3)]
        first = now.next(LIMIT_S)
    assert isinstance(first, Event)
    assert first.seq > turn._seq


# --- over the daemon's death ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stream_goes_on_over_a_new_daemon(daemon: Path, files: Files, background: Background) -> None:
    step = {"text": "second", "touch": files.path("asked"), "wait_for": files.path("gate")}
    sessions = Sessions(DaemonTarget(daemon), files.root)
    session = sessions.start(["first", step])
    with session.events(0) as stream:
        session.send_message("a")
        lines = lines_until(stream, "turn_end")
        for victim in (supervisor_pid, guard_pid):
            answer = background(lambda: session.send_message("b", message_id="b"))
            asked = len(files.lines("asked"))
            files.wait_lines("asked", asked + (not asked))
            kill_pid(victim(sessions.supervisor))
            DaemonTarget(daemon, autostart=True).ensure()
            wait_until(lambda asked=asked: len(files.lines("asked")) > asked, ANSWER_S)  # type: ignore[misc]
        files.open("gate")
        assert result(answer).text == "second"
        lines += lines_until(stream, "turn_end")
    assert lines == logged(session)
    session.stop()


# --- what a closed stream leaves --------------------------------------------------------------------------------------


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_stream_that_is_left_early_leaves_nothing(sessions: Sessions) -> None:
    session = sessions.start([{"text": "abc", "chunks": 3}] * 12)
    session.send_message("go")
    before = _descriptors(), threading.active_count()

    def leave() -> None:
        next(iter(session.events(0)))  # dropped, not closed
        with session.events(0) as stream:
            next(stream)
        stream.close()
        assert stream.next(1) is None
        next(session.stream("go"))
        next(session.submit("again").events())

    for _ in range(5):
        leave()
    gc.collect()
    wait_until(lambda: session.status()["subscribers"] == 0)
    wait_until(lambda: (_descriptors(), threading.active_count()) == before)


async def test_an_asyncio_stream_that_is_left_early_leaves_nothing(sessions: Sessions) -> None:
    async with await AsyncSession.start_link(**sessions.options([{"text": "abc", "chunks": 3}] * 12)) as session:
        await session.send_message("go")
        before = _descriptors(), threading.active_count()
        for _ in range(5):
            await anext(session.events(0))  # dropped, not closed
            async with session.events(0) as stream:
                await anext(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            waiting = asyncio.create_task(anext(session.events()))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        del waiting
        gc.collect()
        seen = Session.attach(session.session_id, supervisor=sessions.supervisor)
        await wait_until_async(lambda: seen.status()["subscribers"] == 0)
        seen._target.pool.close()
        await wait_until_async(lambda: _descriptors() <= before[0])


# --- two readers of one stream ----------------------------------------------------------------------------------------


def test_two_threads_that_iterate_one_stream_share_its_items(sessions: Sessions, background: Background) -> None:
    session = sessions.start(["answer"] * 20)
    stream = session.events(0)
    taken = [background(lambda: list(stream)) for _ in range(2)]
    for _ in range(20):
        session.send_message("go")
    session.stop()
    seen = sorted((i for one in taken for i in result(one) if isinstance(i, Event)), key=lambda event: event.seq)
    stream.close()
    assert [event.line for event in seen] == logged(session)


def test_a_stream_that_another_thread_closes_ends(sessions: Sessions, background: Background) -> None:
    session = sessions.start(["answer"])
    stream = session.events()
    waiting = [background(lambda: list(stream)) for _ in range(2)]
    wait_until(lambda: session.status()["subscribers"] == 1)
    time.sleep(0.02 * TIME_UNIT)  # both wait then, most likely; the test holds either way
    stream.close()
    assert [result(one) for one in waiting] == [[], []]
    wait_until(lambda: session.status()["subscribers"] == 0)


async def test_two_tasks_that_iterate_one_stream_share_its_items(sessions: Sessions) -> None:
    async def read(stream: Any) -> list[Item]:
        return [item async for item in stream]

    async with await AsyncSession.start_link(**sessions.options(["answer"] * 20)) as session:
        stream = session.events(0)
        taken = [asyncio.create_task(read(stream)) for _ in range(2)]
        for _ in range(20):
            await session.send_message("go")
        await session.stop()
        seen = [item for items in await asyncio.gather(*taken) for item in items if isinstance(item, Event)]
        assert sorted(event.line for event in seen) == sorted(logged(session))


async def test_an_asyncio_stream_that_another_task_closes_ends(sessions: Sessions) -> None:
    async with await AsyncSession.start_link(**sessions.options(["answer"])) as session, session.events() as stream:
        waiting = asyncio.create_task(anext(stream, None))
        await asyncio.sleep(0)
        stream.close()
        assert await asyncio.wait_for(waiting, LIMIT_S) is None


def test_a_wait_is_bounded_while_the_supervisor_is_away(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor
) -> None:
    session = own_sessions.start(["one"])
    guest = Session.attach(session.session_id, supervisor=DaemonTarget(own_supervisor.path))  # starts nothing
    with guest.events(0) as stream:
        lines_until(stream, "session_start")
        kill_pid(supervisor_pid(own_supervisor))
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            stream.next(0.2)
        assert time.monotonic() - began < 2 * TIME_UNIT
