"""Events without a gap and without a double: over kills, late joiners, slow readers and both clients."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from athena import AsyncSession, Session
from athena.config import default_paths
from athena.errors import CallTimeout, InvalidOption
from athena.events import Cursor, Event
from athena.session import EventStream
from athena.subscriber import Item, StreamDelta
from athena.supervisors import EmbeddedSupervisor
from tests.helpers import TIME_UNIT, wait_until, wait_until_async
from tests.session_fixtures import (
    ANSWER_S,
    Files,
    Sessions,
    background,
    files,
    freeze,
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

__all__ = ["background", "files", "own_sessions", "own_supervisor", "sessions", "shared_supervisor"]

pytestmark = pytest.mark.slow

Background = Callable[[Callable[[], Any]], Future[Any]]


def read_until(stream: EventStream, kind: str, *, nth: int = 1) -> list[Item]:
    """The items up to the nth event of this kind."""
    items: list[Item] = []
    while nth:
        item = stream.next(ANSWER_S * TIME_UNIT)
        assert item is not None, "the stream has ended"
        items.append(item)
        nth -= isinstance(item, Event) and item.event == kind
    return items


def read_delta(stream: EventStream) -> StreamDelta:
    """The next delta."""
    while True:
        item = stream.next(ANSWER_S * TIME_UNIT)
        assert item is not None, "the stream has ended"
        if isinstance(item, StreamDelta):
            return item


def seqs(items: Iterable[Item]) -> list[int]:
    """The sequence numbers of the events."""
    return [item.seq for item in items if isinstance(item, Event)]


def texts(items: Iterable[Item]) -> list[str]:
    """The text of each attempt, put together from its deltas, which must join without a gap."""
    found: list[str] = []
    current: object = None
    for item in items:
        if isinstance(item, Event):
            current = None if item.event == "turn_resumed" else current  # the model is asked anew
        elif item.type == "text":
            key = (item.turn, item.step, item.attempt)
            if key != current:
                current = key
                found.append("")
            assert item.offset == len(found[-1]), f"a gap or a double before {item}"
            found[-1] += item.text
    return found


def assert_whole(items: list[Item], session: Session, *, after: int = 0) -> None:
    """The items hold each event of the log, up to the last of them, exactly once, in order and byte for byte."""
    got = [item for item in items if isinstance(item, Event)]
    expected = [event.line for event in log(session.session_id) if after < event.seq <= got[-1].seq]
    assert [item.line for item in got] == expected


# --- one life ---------------------------------------------------------------------------------------------------------


def test_a_turn_is_seen_whole_with_its_text_as_it_is_made(sessions: Sessions) -> None:
    session = sessions.start([{"text": "grüße aus 🦉 Athen", "chunks": 7, "thinking": "hm"}])
    with session.events() as stream:
        session.send_message("go")
        items = read_until(stream, "turn_end")
    assert texts(items) == ["grüße aus 🦉 Athen"]
    kinds = [item.event for item in items if isinstance(item, Event)]
    assert kinds == ["message_accepted", "turn_start", "user_message", "assistant_message", "turn_end"]
    assert [item.text for item in items if isinstance(item, StreamDelta) and item.type == "thinking"] == ["hm"]
    assert_whole(items, session, after=1)


def test_from_the_start_everything_is_replayed_and_from_a_cursor_what_comes_after(sessions: Sessions) -> None:
    session = sessions.start(["one", "two"])
    session.send_message("a")
    session.send_message("b")
    with session.events(0) as stream:
        items = read_until(stream, "turn_end", nth=2)
    assert_whole(items, session)
    event = items[3]
    assert isinstance(event, Event)
    for after in (event, event.cursor, event.seq, Cursor(event.seq)):
        with session.events(after) as stream:
            assert seqs(read_until(stream, "turn_end", nth=2)) == seqs(items)[4:]


def test_a_cursor_that_the_log_does_not_hold_is_refused(sessions: Sessions) -> None:
    session, other = sessions.start(["one"]), sessions.start(["two"])
    session.send_message("a")
    foreign = other.events(0).next(5 * TIME_UNIT)
    assert isinstance(foreign, Event)
    for after, part in (
        (foreign, "does not hold the event 1 "),
        (foreign.cursor, "after=0"),
        (Cursor(3, "never-there"), "does not hold the event 3 "),
        (1000, "does not hold the event 1000 "),
        (Cursor(1000, foreign.uuid), "does not hold the event 1000 "),
        (-1, "a seq"),
        (True, "'after'"),
        ("3", "'after'"),
    ):
        with pytest.raises(InvalidOption, match=re.escape(part)) as caught:
            session.events(after)  # type: ignore[arg-type]  # two are wrong on purpose
        assert caught.value.data["option"] == "after"


def test_without_deltas_only_events_come(sessions: Sessions) -> None:
    session = sessions.start([{"text": "abc", "chunks": 3}])
    with session.events(0, deltas=False) as stream:
        session.send_message("go")
        items = read_until(stream, "turn_end")
    assert texts(items) == []
    assert_whole(items, session)


def test_a_late_joiner_sees_the_partial_text_at_once_and_then_the_rest(
    sessions: Sessions, files: Files, background: Background
) -> None:
    chunks = [f"piece {n} äöü " for n in range(50)]
    session = sessions.start([{"chunks": chunks, "wait_before_end": files.path("gate")}])
    with session.events() as early:
        answer = background(lambda: session.send_message("go"))
        seen: list[Item] = []
        while "".join(texts(seen)) != "".join(chunks):
            seen.append(read_delta(early))
        with session.events() as late:
            assert read_delta(late).text == "".join(chunks)
        with session.events(0) as replayed:
            files.open("gate")
            items = read_until(replayed, "turn_end")
    assert texts(items) == ["".join(chunks)]
    assert_whole(items, session)
    assert result(answer).text == "".join(chunks)


def test_joiners_at_any_moment_put_the_same_text_together(sessions: Sessions, background: Background) -> None:
    chunks = [f"{n}," for n in range(400)]
    session = sessions.start([{"chunks": chunks, "chunk_delay_s": 0.001}])
    answer = background(lambda: session.send_message("go"))

    def join() -> list[Item]:
        with session.events(0) as stream:
            return read_until(stream, "turn_end")

    joined: list[Future[list[Item]]] = []
    while not answer.done() and len(joined) < 30:
        joined.append(background(join))
        session.status()
    for future in joined:
        items = result(future)
        assert_whole(items, session)
        assert texts(items) in ([], ["".join(chunks)])  # nothing, for one that came after the end


def test_a_stream_ends_with_its_session(sessions: Sessions) -> None:
    session = sessions.start(["one"])
    stream = session.events(0)
    session.send_message("go")
    session.stop()
    items = list(stream)
    assert_whole(items, session)
    assert items[-1].event == "session_end"  # type: ignore[union-attr]  # the last one is an event
    stream.close()


def test_waiting_for_the_next_item_is_bounded_and_loses_nothing(sessions: Sessions) -> None:
    session = sessions.start(["one"])
    with session.events(0) as stream:
        first = stream.next(5 * TIME_UNIT)
        with pytest.raises(CallTimeout):
            stream.next(0.02)
        session.send_message("go")
        rest = read_until(stream, "turn_end")
    assert first is not None
    assert_whole([first, *rest], session)


def test_one_turns_stream_holds_its_items_and_ends_with_its_result(sessions: Sessions, files: Files) -> None:
    session = sessions.start([{"text": "first"}, {"text": "second", "chunks": 3}])
    session.submit("a")
    *items, last = session.stream("b")
    assert last.text == "second"  # type: ignore[union-attr]  # a Result
    assert texts(items) == ["second"]  # type: ignore[arg-type]  # all but the last are items
    kinds = [item.event for item in items if isinstance(item, Event)]
    assert kinds == ["turn_start", "user_message", "assistant_message", "turn_end"]


# --- over kills -------------------------------------------------------------------------------------------------------


def test_events_have_no_gap_and_no_double_over_kills_of_the_child(
    sessions: Sessions, files: Files, background: Background
) -> None:
    steps = [{"text": f"answer {n}", "chunks": 4, "touch": files.path("asked")} for n in range(4)]
    steps[2]["wait_before_end"] = files.path("gate")
    session = sessions.start(steps)
    with session.events(0) as stream:
        for n in range(2):
            session.send_message(f"{n}")
            kill(session)
        answer = background(lambda: session.send_message("2"))
        files.wait_lines("asked", 3)
        items = read_until(stream, "turn_start", nth=3)
        kill(session)
        files.wait_lines("asked", 4)
        files.open("gate")
        assert result(answer).text == "answer 2"
        items += read_until(stream, "turn_end")
    assert_whole(items, session)
    assert [text for text in texts(items) if text.startswith("answer 2")][-1] == "answer 2"


def test_events_have_no_gap_and_no_double_over_kills_of_the_supervisor(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files, background: Background
) -> None:
    step = {"text": "second", "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = own_sessions.start(["first", step, "third"])
    with session.events(0) as stream:
        session.send_message("a")
        kill_pid(supervisor_pid(own_supervisor))
        answer = background(lambda: session.send_message("b"))
        files.wait_lines("asked")
        kill_pid(supervisor_pid(own_supervisor))
        files.wait_lines("asked", 2)
        files.open("gate")
        assert result(answer).text == "second"
        session.send_message("c")
        items = read_until(stream, "turn_end", nth=3)
    assert_whole(items, session)


def test_a_stream_alone_brings_the_session_back_after_its_supervisors_death(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files
) -> None:
    step = {"text": "text", "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = own_sessions.start([step])
    session.submit("go")
    files.wait_lines("asked")
    with session.events(0) as stream:
        first = stream.next(5 * TIME_UNIT)
        kill_pid(supervisor_pid(own_supervisor))
        files.open("gate")
        items = read_until(stream, "turn_end")
    assert first is not None
    assert_whole([first, *items], session)


def test_what_a_child_recorded_and_could_not_send_before_it_was_killed_is_still_seen(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files, tmp_path: Path
) -> None:
    (tmp_path / "large").write_text("x" * 90 + "\n", encoding="utf-8")
    with (tmp_path / "large").open("a") as file:
        file.writelines("y" * 900 + "\n" for _ in range(45))
    read = {"tool_calls": [{"name": "read", "arguments": {"path": "large"}, "id": f"c{n}"} for n in range(20)]}
    end = {"text": "done", "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = own_sessions.start([{**read, "touch": files.path("first"), "wait_for": files.path("go")}, end])
    with session.events(0) as stream:
        turn = session.submit("go")
        files.wait_lines("first")
        items = read_until(stream, "user_message")
        pid = int(session.pid or 0)
        frozen = supervisor_pid(own_supervisor)
        os.kill(frozen, signal.SIGSTOP)
        try:
            files.open("go")
            files.wait_lines("asked")  # some 800 KB of results are in the log, and most of them not in the pipe
            kill_pid(pid)
        finally:
            os.kill(frozen, signal.SIGCONT)
        files.open("gate")
        assert turn.result(ANSWER_S * TIME_UNIT).text == "done"
        items += read_until(stream, "turn_end")
    assert_whole(items, session)


PROVIDER = """
import asyncio, os
from athena.providers.base import Delta, ModelResponse
from athena.messages import Usage

def append(path, line):
    with open(path, "a") as file:
        file.write(line + "\\n")

class Provider:
    name, default_model = "test", "m"

    async def stream(self, request):
        append({asked!r}, "x")
        with open({asked!r}) as file:
            life = len(file.readlines())
        text = ""
        while not os.path.exists({go!r}):
            await asyncio.sleep(0.005)
        for n in range({pieces}):
            piece = f"[life {{life}} piece {{n}}]" + "." * {padding}
            text += piece
            yield Delta("text", piece)
            await asyncio.sleep(0)
        append({streamed!r}, "x")
        while not os.path.exists({gate!r}):
            await asyncio.sleep(0.005)
        yield ModelResponse(text, (), None, "stop", Usage(), "m")

    async def aclose(self):
        pass

def create(settings):
    return Provider()
"""
"""Says something else in each life of the session, as a real model would, and tells when all of it is streamed."""


def provider(files: Files, *, pieces: int, padding: int = 0) -> dict[str, Any]:
    """The options for a session with :data:`PROVIDER`."""
    paths = {name: files.path(name) for name in ("asked", "go", "streamed", "gate")}
    (files.root / "test_provider.py").write_text(PROVIDER.format(**paths, pieces=pieces, padding=padding))
    return {"provider": "test_provider:create", "python_path": [str(files.root)]}


def test_text_of_a_life_that_died_is_never_mixed_into_the_next_ones(
    sessions: Sessions, files: Files, background: Background
) -> None:
    files.open("go")
    session = sessions.start(**provider(files, pieces=3))
    with session.events() as stream:
        answer = background(lambda: session.send_message("go"))
        items: list[Item] = []
        while "piece 2" not in "".join(texts(items)):
            items.append(read_delta(stream))
        kill(session)
        files.wait_lines("asked", 2)
        with session.events() as late:
            partial: list[Item] = []
            while "piece 2" not in "".join(texts(partial)):
                partial.append(read_delta(late))
        files.open("gate")
        items += read_until(stream, "turn_end")
    final = result(answer).text
    assert final == "[life 2 piece 0][life 2 piece 1][life 2 piece 2]"
    assert texts(items)[-1] == texts(partial)[-1] == final
    assert len(texts(items)) == 2


# --- slow readers -----------------------------------------------------------------------------------------------------


def test_a_reader_that_does_not_read_slows_nobody_and_catches_up_from_the_log(
    sessions: Sessions, tmp_path: Path
) -> None:
    (tmp_path / "large").write_text(("z" * 900 + "\n") * 45)
    calls = [{"name": "read", "arguments": {"path": "large"}, "id": f"c{n}"} for n in range(64)]
    session = sessions.start(
        [{"tool_calls": calls}, "done", {"tool_calls": calls}, "done", {"tool_calls": calls}, "done"]
    )
    with session.events(0) as deaf, session.events(0) as keen:
        for _ in range(3):
            assert session.send_message("go", timeout=ANSWER_S * TIME_UNIT).text == "done"
        size = (default_paths().sessions / f"{session.session_id}.jsonl").stat().st_size
        assert size > 7_000_000, "enough to fill every buffer on the way to the one that does not read"
        assert_whole(read_until(keen, "turn_end", nth=3), session)
        assert_whole(read_until(deaf, "turn_end", nth=3), session)


def read_text(stream: EventStream, length: int) -> list[Item]:
    """Items until so many characters of text have come."""
    items: list[Item] = []
    while sum(len(item.text) for item in items if isinstance(item, StreamDelta)) < length:
        item = stream.next(ANSWER_S * TIME_UNIT)
        assert item is not None, "the stream has ended"
        items.append(item)
    return items


def test_a_reader_that_missed_deltas_gets_the_text_whole_all_the_same(
    sessions: Sessions, files: Files, background: Background
) -> None:
    session = sessions.start(**provider(files, pieces=200, padding=50_000))  # 10 MB: more than one may fall behind
    files.open("go")
    with session.events() as deaf, session.events() as keen:
        turn = session.submit("go")
        files.wait_lines("streamed")
        wait_until(lambda: session.status()["subscribers"] == 2)
        length = 200 * 50_000 + sum(len(f"[life 1 piece {n}]") for n in range(200))
        first, second = (read_text(stream, length) for stream in (keen, deaf))
        files.open("gate")
        final = turn.result(ANSWER_S * TIME_UNIT).text
        assert texts(first) == texts(second) == [final]
        read_until(deaf, "turn_end")


def test_text_streamed_while_the_supervisor_was_stopped_has_no_hole(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files
) -> None:
    session = own_sessions.start(**provider(files, pieces=150, padding=20_000))  # 3 MB: more than a pipe's backlog
    with session.events() as stream:
        turn = session.submit("go")
        files.wait_lines("asked")
        pid = supervisor_pid(own_supervisor)
        os.kill(pid, signal.SIGSTOP)
        try:
            files.open("go")
            files.wait_lines("streamed")
        finally:
            os.kill(pid, signal.SIGCONT)
        length = 150 * 20_000 + sum(len(f"[life 1 piece {n}]") for n in range(150))
        items = read_text(stream, length)
        with session.events() as late:
            assert texts(read_text(late, length)) == texts(items)
        files.open("gate")
        assert texts(items) == [turn.result(ANSWER_S * TIME_UNIT).text]


# --- the asyncio client -----------------------------------------------------------------------------------------------


async def read_until_async(stream: Any, kind: str, *, nth: int = 1) -> list[Item]:
    """:func:`read_until` for the asyncio client."""
    items: list[Item] = []
    async with asyncio.timeout(ANSWER_S * TIME_UNIT):
        async for item in stream:
            items.append(item)
            nth -= isinstance(item, Event) and item.event == kind
            if not nth:
                break
    return items


async def test_the_asyncio_client_sees_events_whole_over_a_kill_of_the_child(sessions: Sessions, files: Files) -> None:
    step = {"text": "second", "chunks": 3, "touch": files.path("asked"), "wait_before_end": files.path("gate")}
    async with await AsyncSession.start_link(**sessions.options(["first", step])) as session:
        async with session.events(0) as stream:
            await session.send_message("a")
            waiting = asyncio.ensure_future(session.send_message("b"))
            await wait_until_async(lambda: files.lines("asked"))
            os.kill(int(await session.pid() or 0), signal.SIGKILL)
            await wait_until_async(lambda: len(files.lines("asked")) == 2)
            files.open("gate")
            items = await read_until_async(stream, "turn_end", nth=2)
        assert (await waiting).text == "second"
        assert seqs(items) == [event.seq for event in log(session.session_id)]
        assert texts(items)[-1] == "second"


async def test_the_asyncio_client_sees_events_whole_over_a_kill_of_the_supervisor(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files
) -> None:
    step = {"text": "second", "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = await AsyncSession.start_link(**own_sessions.options(["first", step]))
    async with session.events(0) as stream:
        await session.send_message("a")
        waiting = asyncio.ensure_future(session.send_message("b"))
        await wait_until_async(lambda: files.lines("asked"))
        os.kill(await asyncio.to_thread(supervisor_pid, own_supervisor), signal.SIGKILL)
        await wait_until_async(lambda: len(files.lines("asked")) == 2, ANSWER_S)
        files.open("gate")
        items = await read_until_async(stream, "turn_end", nth=2)
    assert (await waiting).text == "second"
    assert seqs(items) == [event.seq for event in log(session.session_id)]
    await session.stop()


async def test_an_asyncio_reader_that_does_not_read_catches_up(sessions: Sessions, tmp_path: Path) -> None:
    (tmp_path / "large").write_text(("z" * 900 + "\n") * 45)
    calls = [{"name": "read", "arguments": {"path": "large"}, "id": f"c{n}"} for n in range(64)]
    script = [{"tool_calls": calls}, "done"] * 6
    async with await AsyncSession.start_link(**sessions.options(script)) as session, session.events(0) as stream:
        for _ in range(6):
            await session.send_message("go", timeout=ANSWER_S * TIME_UNIT)
        items = await read_until_async(stream, "turn_end", nth=6)
        assert seqs(items) == [event.seq for event in log(session.session_id)]


async def test_an_asyncio_turns_stream_ends_with_its_result(sessions: Sessions) -> None:
    async with await AsyncSession.start_link(**sessions.options([{"text": "abc", "chunks": 3}])) as session:
        async with aclosing(session.stream("go")) as stream:
            *parts, last = [item async for item in stream]
        assert last.text == "abc"  # type: ignore[union-attr]  # a Result
        assert texts(parts) == ["abc"]  # type: ignore[arg-type]  # all but the last are items


async def test_an_asyncio_monitor_tells_of_a_death_exactly_once(sessions: Sessions) -> None:
    async with await AsyncSession.start_link(**sessions.options(["x"])) as session:
        monitor = await session.monitor()
        os.kill(int(monitor.pid or 0), signal.SIGKILL)
        down = await monitor.wait(10 * TIME_UNIT)
        assert down is not None
        assert down.reason == "killed"
        assert await monitor.wait(0.05) is None


def test_a_frozen_child_holds_up_no_subscriber(sessions: Sessions) -> None:
    session = sessions.start(["one"])
    session.send_message("go")
    pid = freeze(session)
    with session.events(0) as stream:
        assert_whole(read_until(stream, "turn_end"), session)
    os.kill(pid, signal.SIGCONT)
