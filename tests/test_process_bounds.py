"""Bounds of what processes say to each other: full inboxes, long reasons, bad input, lost supervisors."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import athena
from athena import ChildSpec, Down, DynamicSupervisor, Exit, Pid, Started, Supervisor, Via
from athena.errors import (
    REASON_BYTES,
    Busy,
    CallTimeout,
    InvalidOption,
    InvalidSpec,
    NoProcess,
    NotAServer,
    NotRunning,
    ProcessExited,
    StartError,
)
from athena.supervisors import EmbeddedSupervisor
from tests.bounds_children import Slow
from tests.helpers import TIME_UNIT, wait_until
from tests.process_servers import Scripted
from tests.session_fixtures import is_gone
from tests.tree_fixtures import CHILD_S, Yard, shared, start_child, yard

__all__ = ["shared", "yard"]

pytestmark = pytest.mark.slow

LONG_S = 10 * TIME_UNIT
MEGABYTE = 1024 * 1024
GROWN_MAX = 64 * MEGABYTE
"""What 16 MiB in an inbox may cost a supervisor, with what the allocator keeps."""

BIG = "x" * MEGABYTE

SHOWN_CHARS = 3000
"""Of a text for people."""

NESTED = b"[" + b"[]," * 340_000 + b"[]]"
"""1 MB of JSON, which is 20 MB of lists."""


def server(name: str, /, *orders: Any, **fields: Any) -> ChildSpec:
    return ChildSpec(name, "tests.process_servers:Scripted", args=list(orders), **{"restart": "temporary", **fields})


def me(at: EmbeddedSupervisor) -> Pid:
    return athena.self_pid(supervisor=at)


def supervisor_of(at: EmbeddedSupervisor) -> psutil.Process:
    return psutil.Process(int(at.pool.call("info", {}, b"", LONG_S).json()["pid"]))


@pytest.fixture
def alone() -> Iterator[EmbeddedSupervisor]:
    """A supervisor of which the test may measure the memory, and which it may kill."""
    found = EmbeddedSupervisor()
    found.ensure()
    yield found
    found.stop()


@pytest.fixture
def tree(alone: EmbeddedSupervisor) -> DynamicSupervisor:
    return DynamicSupervisor.start_link(supervisor=alone)


def send_raw(at: EmbeddedSupervisor, target: Pid, message: Any) -> None:
    """Send a message; bytes are JSON already."""
    if isinstance(message, bytes):
        at.pool.call("process_send", {"target": target.to_map()}, message, LONG_S)
    else:
        athena.send(target, message, supervisor=at)


def fill(what: Callable[[], object], limit: int) -> int:
    """Do it until the answer is :class:`Busy`, and then some; how often it went well."""
    count = 0
    try:
        while count < limit:
            what()
            count += 1
    except Busy:
        for _ in range(3):
            with pytest.raises(Busy):
                what()
        return count
    raise AssertionError(f"not busy after {limit}")


# --- 1: full inboxes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["send", "cast"])
def test_a_server_that_reads_nothing_costs_no_more(
    alone: EmbeddedSupervisor, tree: DynamicSupervisor, verb: str
) -> None:
    one, supervisor = start_child(tree, server("one")), supervisor_of(alone)
    monitor, tell = athena.monitor(one, supervisor=alone), getattr(athena, verb)
    os.kill(int(one), signal.SIGSTOP)
    before = supervisor.memory_info().rss
    assert 12 <= fill(lambda: tell(one, BIG, supervisor=alone), 40) <= 24
    assert supervisor.memory_info().rss - before < GROWN_MAX
    with pytest.raises(CallTimeout):
        athena.stop(one, "first", 0.01, supervisor=alone)
    with pytest.raises(CallTimeout):
        athena.stop(one, "second", 0.01, supervisor=alone)
    os.kill(int(one), signal.SIGCONT)
    down = monitor.wait(LONG_S)
    assert down is not None
    assert down.reason == "first"


def test_what_waits_for_a_start_costs_no_more(alone: EmbeddedSupervisor, tree: DynamicSupervisor) -> None:
    supervisor, failed = supervisor_of(alone), []

    def start() -> None:
        try:
            Scripted.start(["sleep", 1000], name="slow", supervisor=alone, start_timeout="infinity")
        except StartError as error:
            failed.append(error.reason)

    for message, counts in ((BIG, (12, 24)), (0, (9_000, 10_000))):
        starting = threading.Thread(target=start)
        starting.start()
        wait_until(lambda: athena.whereis("slow", supervisor=alone), CHILD_S)
        monitor = athena.monitor("slow", supervisor=alone)
        before = supervisor.memory_info().rss
        for verb in (athena.cast, athena.send):
            wanted = counts if verb is athena.cast else (0, 1)
            assert wanted[0] <= fill(lambda v=verb, m=message: v("slow", m, supervisor=alone), 12_000) <= wanted[1]  # type: ignore[misc]
        with pytest.raises(Busy):
            athena.call("slow", message, supervisor=alone)
        assert supervisor.memory_info().rss - before < GROWN_MAX
        athena.exit("slow", "enough", supervisor=alone)
        down = monitor.wait(LONG_S)
        assert down is not None
        assert down.reason == "enough"
        starting.join()
    assert failed == ["enough"] * 2


def test_a_program_that_never_receives_costs_no_more(alone: EmbeddedSupervisor, tree: DynamicSupervisor) -> None:
    supervisor, target = supervisor_of(alone), me(alone)
    one = start_child(tree, server("one"))
    before = supervisor.memory_info().rss
    sent = []
    for message, counts in ((BIG, (15, 17)), (NESTED, (15, 20)), (1, (9_999, 10_001))):
        monitor, link = athena.monitor(one, supervisor=alone), athena.link(one, supervisor=alone)
        solo = Scripted.start_link(supervisor=alone)
        assert isinstance(solo, Started)
        count = fill(lambda m=message: send_raw(alone, target, m), 12_000)  # type: ignore[misc]
        assert counts[0] <= count <= counts[1]
        with pytest.raises(Busy):  # an exit signal to who traps is a message too
            athena.exit(target, "please", supervisor=alone)
        assert supervisor.memory_info().rss - before < GROWN_MAX
        athena.stop(one, "end", supervisor=alone)
        athena.stop(solo.pid, "end of solo", supervisor=alone)
        down = monitor.wait(LONG_S)
        assert down is not None
        assert (down.reason, link.wait(LONG_S)) == ("end", Exit(one, "end"))
        sent.append((message, count))
        for _ in range(count):
            assert athena.receive(LONG_S, supervisor=alone) == (json.loads(message) if message is NESTED else message)
        assert athena.receive(LONG_S, supervisor=alone) == Exit(solo.pid, "end of solo"), "kept beyond the bound"
        athena.send(target, "there is room again", supervisor=alone)
        assert athena.receive(LONG_S, supervisor=alone) == "there is room again"
        one = start_child(tree, server("one"))


def test_a_function_that_never_receives_costs_no_more(alone: EmbeddedSupervisor, tree: DynamicSupervisor) -> None:
    spec = ChildSpec("deaf", "tests.bounds_children:deaf", restart="temporary")
    one, monitor, before = None, None, supervisor_of(alone).memory_info().rss
    for message, least, most in ((BIG, 15, 17), (NESTED, 15, 20), (1, 9_999, 10_001)):
        one = start_child(tree, spec)
        monitor = athena.monitor(one, supervisor=alone)
        count = fill(lambda m=message, o=one: send_raw(alone, o, m), 12_000)  # type: ignore[misc]
        assert least <= count <= most
        assert supervisor_of(alone).memory_info().rss - before < GROWN_MAX
        athena.exit(one, "enough", supervisor=alone)
        assert monitor.wait(LONG_S) == Down(monitor.ref, one, one, "enough")


def test_exit_signals_to_who_traps_and_does_not_read_cost_no_more(
    alone: EmbeddedSupervisor, tree: DynamicSupervisor
) -> None:
    one, supervisor = start_child(tree, server("one", ["trap", True])), supervisor_of(alone)
    monitor = athena.monitor(one, supervisor=alone)
    os.kill(int(one), signal.SIGSTOP)
    before = supervisor.memory_info().rss
    assert 200 <= fill(lambda: athena.exit(one, "x" * 60_000, supervisor=alone), 1000) <= 400
    assert supervisor.memory_info().rss - before < GROWN_MAX
    athena.exit(one, "kill", supervisor=alone)
    assert monitor.wait(LONG_S) == Down(monitor.ref, one, one, "killed")


# --- 5: long reasons --------------------------------------------------------------------------------------------------

LONG = "x" * (2 * MEGABYTE)


def test_a_reason_that_is_too_long_is_refused(yard: Yard) -> None:
    one = start_child(yard.start(), server("one"))
    for verb in (athena.exit, athena.stop):
        with pytest.raises(InvalidOption, match="at most 65536 bytes"):
            verb(one, LONG, supervisor=yard.at)
    longest = "x" * (REASON_BYTES - 2)
    monitor = athena.monitor(one, supervisor=yard.at)
    athena.exit(one, longest, supervisor=yard.at)
    assert monitor.wait(LONG_S) == Down(monitor.ref, one, one, longest)


@pytest.mark.parametrize("order", [["fail", LONG], ["fail", "\1" * MEGABYTE], ["stop", LONG], ["exit", LONG]])
def test_a_long_reason_harms_nobody(yard: Yard, order: Any) -> None:
    tree = yard.start(server("two"))
    one, two = start_child(tree, server("one")), tree.which_child("two").pid
    watching = start_child(tree, server("watching", ["trap", True]))
    for verb in ("monitor", "link"):
        athena.call(watching, [verb, one.to_map()], supervisor=yard.at)
    other = athena.monitor(two, supervisor=yard.at)  # type: ignore[arg-type]
    monitor = athena.monitor(one, supervisor=yard.at)
    with pytest.raises(ProcessExited) as raised:
        athena.call(one, order, LONG_S, supervisor=yard.at)
    assert list(raised.value.reason) == [{"fail": "error", "stop": "bad_return_value", "exit": "exit"}[order[0]]]
    assert len(json.dumps(raised.value.reason)) < 2 * REASON_BYTES
    assert len(str(raised.value)) < SHOWN_CHARS
    down = monitor.wait(LONG_S)
    assert down is not None
    assert down.reason == raised.value.reason
    wait_until(lambda: len(athena.call(watching, ["notes"], supervisor=yard.at)) == 2, CHILD_S)
    notes = athena.call(watching, ["notes"], supervisor=yard.at)
    assert [note[-1] for note in notes] == [down.reason] * 2
    assert athena.call(two, ["value", 1], supervisor=yard.at) == 1  # type: ignore[arg-type]
    assert other.demonitor()
    assert [row.id for row in tree.which_children()] == ["watching", "two"]


def test_a_long_reason_of_whatever_a_process_says_is_cut(yard: Yard) -> None:
    spec = ChildSpec("one", "tests.bounds_children:LongName", restart="temporary")
    one = start_child(yard.start(), spec)
    monitor = athena.monitor(one, supervisor=yard.at)
    athena.cast(one, 1, supervisor=yard.at)
    down = monitor.wait(LONG_S)
    assert down is not None
    assert list(down.reason) == ["too_long"]
    assert down.reason["too_long"].startswith('{"error":{"type":"EEEE')
    assert len(down.reason["too_long"]) <= 2000


@pytest.mark.parametrize("order", [["fail", LONG], ["refuse", LONG], ["exit", LONG]])
def test_a_long_start_error_is_a_start_error(yard: Yard, order: Any) -> None:
    tree = yard.start()
    with pytest.raises(StartError) as raised:
        tree.start_child(server("one", order))
    assert len(json.dumps(raised.value.reason)) < 2 * REASON_BYTES
    assert len(str(raised.value)) < SHOWN_CHARS
    with pytest.raises(StartError):
        Scripted.start_link(order, supervisor=yard.at)
    start_child(tree, server("two"))
    with pytest.raises(CallTimeout):
        athena.receive(0.01, supervisor=yard.at)


# --- 8, 9: who is not there, or no server -----------------------------------------------------------------------------


def test_a_session_takes_no_plain_messages(yard: Yard) -> None:
    session = athena.Session.start_link(provider="mock", mock=["x"], name="agent", supervisor=yard.at)
    try:
        for target in (session.pid, "agent", session.session_id):
            assert target is not None
            with pytest.raises(NotAServer, match="send_message"):
                athena.send(target, "hello", supervisor=yard.at)
    finally:
        session.stop()


def test_a_registry_that_does_not_run_is_nobody(yard: Yard) -> None:
    """As the table of docs/processes.md has it."""
    nobody, at = Via("no registry", "key"), yard.at
    athena.cast(nobody, 1, supervisor=at)
    raising: list[Callable[[], object]] = [
        lambda: athena.call(nobody, 1, supervisor=at),
        lambda: athena.send(nobody, 1, supervisor=at),
        lambda: athena.stop(nobody, supervisor=at),
        lambda: athena.exit(nobody, "x", supervisor=at),
        lambda: athena.monitor(nobody, supervisor=at),
        lambda: athena.link(nobody, supervisor=at),
        lambda: athena.unlink(nobody, supervisor=at),
        lambda: athena.whereis(nobody, supervisor=at),
        lambda: athena.is_alive(nobody, supervisor=at),
    ]
    for one in raising:
        with pytest.raises(NoProcess, match="no registry"):
            one()


# --- 10: a supervisor that is lost ------------------------------------------------------------------------------------


def test_after_a_lost_supervisor(alone: EmbeddedSupervisor, tree: DynamicSupervisor) -> None:
    one, outcomes = start_child(tree, server("one")), []

    def wait(what: Callable[[], Any]) -> None:
        try:
            outcomes.append(what())
        except ProcessExited as error:
            outcomes.append((error.reason, str(error)))

    monitor = athena.monitor(one, supervisor=alone)
    waits = [lambda: athena.receive(supervisor=alone), lambda: athena.call(one, ["later"], None, supervisor=alone)]
    readers = [threading.Thread(target=wait, args=[what]) for what in (*waits, monitor.wait)]
    for reader in readers:
        reader.start()
    wait_until(lambda: alone.pool.call("info", {}, b"", LONG_S).json()["processes"]["calls"] == 1, CHILD_S)
    supervisor = supervisor_of(alone)
    guard = supervisor.parent()
    assert guard is not None
    guard.kill()
    supervisor.kill()
    for reader in readers:
        reader.join()
    assert sorted(str(type(one)) for one in outcomes) == sorted(str(one) for one in (tuple, tuple, Down))
    assert all("noconnection" in repr(one) for one in outcomes)
    assert monitor.wait(0.01) is None
    again: list[Callable[[], object]] = [
        lambda: athena.call(one, 1, supervisor=alone),
        lambda: athena.cast(one, 1, supervisor=alone),
        lambda: athena.whereis("one", supervisor=alone),
        lambda: athena.monitor(one, supervisor=alone),
    ]
    for what in again:
        with pytest.raises(NotRunning, match="no supervisor listens at"):
            what()
    with pytest.raises(ProcessExited, match="the supervisor was lost"):
        athena.receive(0.01, supervisor=alone)
    wait_until(lambda: is_gone(int(one)), CHILD_S)
    assert isinstance(Scripted.start(supervisor=alone), Started), "the next start brings another supervisor"


# --- 11: bad input ----------------------------------------------------------------------------------------------------

ITSELF: list[Any] = []
ITSELF.append(ITSELF)

BAD_TARGETS: list[Any] = [
    *(2**70, "a\udc80", "", None, True, 1.5, math.nan, math.inf, b"x", object()),
    *(Pid(2**70, 2**70), Pid(1, "x"), Pid(1, 1, object()), Pid(1, True)),  # type: ignore[arg-type]
    *(Via("", 1), Via("a\udc80", 1), Via("a", ITSELF), Via("a", math.nan), Via("a", {1}), Via(5, 1)),  # type: ignore[arg-type]
]

BAD_VALUES: list[Any] = [{1}, b"x", ITSELF, math.nan, math.inf, 2**64, -(2**70), "\udc80", object(), {1: 2}, Pid(1, 1)]

BAD_TIMES: list[Any] = [math.nan, -1, True, "infinity", 1e300, 10**30, math.inf, "1", []]

VERBS: dict[str, list[Any]] = {
    "call": [1], "cast": [1], "send": [1], "exit": ["x"], "stop": [], "whereis": [], "is_alive": [],
    "monitor": [], "link": [], "unlink": [],
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_who_is_no_process_is_refused(yard: Yard, verb: str) -> None:
    for target in BAD_TARGETS:
        with pytest.raises(InvalidOption):
            getattr(athena, verb)(target, *VERBS[verb], supervisor=yard.at)
    with pytest.raises((NoProcess, InvalidOption)) as raised:
        athena.call("x" * MEGABYTE, 1, supervisor=yard.at)
    assert len(str(raised.value)) < SHOWN_CHARS


@pytest.mark.parametrize("verb", ["call", "cast", "send", "exit", "stop"])
def test_what_is_no_message_is_refused(yard: Yard, verb: str) -> None:
    one = start_child(yard.start(), server("one"))
    for value in BAD_VALUES:
        with pytest.raises(InvalidOption):
            getattr(athena, verb)(one, value, supervisor=yard.at)
        with pytest.raises(InvalidOption):
            asyncio.run(getattr(athena, f"a{verb}")(one, [value], supervisor=yard.at))
    assert athena.call(one, ["notes"], supervisor=yard.at) == []


def test_what_is_no_time_is_refused(yard: Yard) -> None:
    one, at = start_child(yard.start(), server("one")), yard.at
    monitor, link = athena.monitor(one, supervisor=at), athena.link(one, supervisor=at)
    for bad in BAD_TIMES:
        waits: list[Callable[[], object]] = [
            lambda bad=bad: athena.call(one, ["value", 1], bad, supervisor=at),  # type: ignore[misc]
            lambda bad=bad: athena.stop(one, timeout=bad, supervisor=at),  # type: ignore[misc]
            lambda bad=bad: athena.receive(bad, supervisor=at),  # type: ignore[misc]
            lambda bad=bad: monitor.wait(bad),  # type: ignore[misc]
            lambda bad=bad: link.wait(bad),  # type: ignore[misc]
            lambda bad=bad: asyncio.run(athena.areceive(bad, supervisor=at)),  # type: ignore[misc]
            lambda bad=bad: asyncio.run(athena.acall(one, 1, bad, supervisor=at)),  # type: ignore[misc]
        ]
        for wait in waits:
            with pytest.raises(InvalidOption, match="timeout"):
                wait()
    assert athena.is_alive(one, supervisor=at)


BAD_FIELDS: list[dict[str, Any]] = [
    {"shutdown": "x"}, {"shutdown": math.nan}, {"shutdown": True}, {"start_timeout": -1}, {"kwargs": 5},
    {"kwargs": {"a": {1}}}, {"kwargs": {"a": 2**70}}, {"env": 5}, {"env": {"A": 5}}, {"env": {"A": "\udc80"}},
    {"python_path": 5}, {"python_path": "x"}, {"cwd": 5}, {"name": "\udc80"},
]  # fmt: skip


def test_a_wrong_specification_is_an_invalid_one(yard: Yard) -> None:
    for fields in BAD_FIELDS:
        with pytest.raises(InvalidSpec):
            Scripted.start_link(supervisor=yard.at, **fields)
        with pytest.raises(InvalidSpec):
            asyncio.run(Scripted.astart(supervisor=yard.at, **fields))
    for value in ({1}, math.nan, 2**70, ITSELF, "\udc80", object()):
        with pytest.raises(InvalidSpec):
            Scripted.start(value, supervisor=yard.at)
        with pytest.raises(InvalidSpec):
            Supervisor.start_link([server("one", value)], supervisor=yard.at)


# --- 12: last words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "full", "no file", "closed file"])
def test_who_cannot_write_its_log_says_why_it_ends(yard: Yard, how: str) -> None:
    one = start_child(yard.start(), ChildSpec("mute", "tests.bounds_children:Mute", args=[how], restart="temporary"))
    monitor = athena.monitor(one, supervisor=yard.at)
    athena.cast(one, "fail", supervisor=yard.at)
    down = monitor.wait(LONG_S)
    assert down is not None
    assert down.reason["error"]["message"] == "these are the last words"


# --- a start that nobody waits for ------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [True, False])
async def test_a_start_that_is_cancelled_leaves_no_server(yard: Yard, tmp_path: Path, link: bool) -> None:
    path = tmp_path / "go"
    start = Slow.astart_link if link else Slow.astart
    starting = asyncio.create_task(start(str(path), name="slow", supervisor=yard.at))
    await asyncio.to_thread(wait_until, Path(f"{path}.begun").exists, CHILD_S)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    path.touch()
    await assert_undone(yard, path)


@pytest.mark.parametrize("link", [True, False])
async def test_a_loop_that_ends_in_a_start_leaves_no_server(yard: Yard, tmp_path: Path, link: bool) -> None:
    path = tmp_path / "go"

    async def main() -> None:
        start = Slow.astart_link if link else Slow.astart
        starting = asyncio.create_task(start(str(path), name="slow", supervisor=yard.at))
        await asyncio.to_thread(wait_until, Path(f"{path}.begun").exists, CHILD_S)
        assert not starting.done()

    await asyncio.to_thread(asyncio.run, main())
    path.touch()
    await assert_undone(yard, path)


async def assert_undone(yard: Yard, path: Path) -> None:
    """It came up, and was ended in order; whoever cancelled its start hears nothing of it."""
    number = int(Path(f"{path}.begun").read_text())
    await asyncio.to_thread(wait_until, lambda: is_gone(number), CHILD_S)
    assert Path(f"{path}.ended").read_text() == "shutdown"
    await asyncio.to_thread(wait_until, lambda: athena.whereis("slow", supervisor=yard.at) is None, CHILD_S)
    with pytest.raises(CallTimeout):
        await athena.areceive(0.05, supervisor=yard.at)
