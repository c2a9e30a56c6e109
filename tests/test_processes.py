"""Calls, messages, links, monitors and exit signals between real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

import athena
from athena import ChildSpec, Down, Exit, Pid, Started, Supervisor
from athena.errors import (
    AlreadyStarted,
    Busy,
    CallTimeout,
    InvalidOption,
    NoProcess,
    NotAServer,
    ProcessExited,
    StartError,
)
from athena.trees import list_trees
from tests.helpers import TIME_UNIT, wait_until
from tests.process_servers import Scripted
from tests.session_fixtures import is_gone
from tests.tree_fixtures import CHILD_S, Yard, pid, shared, wait_new, yard

__all__ = ["shared", "yard"]

pytestmark = pytest.mark.slow

LONG_S = 10 * TIME_UNIT


def server(name: str, /, *orders: Any, **fields: Any) -> ChildSpec:
    """A scripted server that is not started again."""
    return ChildSpec(name, "tests.process_servers:Scripted", args=list(orders), **{"restart": "temporary", **fields})


def start(yard: Yard, *specs: ChildSpec) -> tuple[Supervisor, list[Pid]]:
    tree = yard.start(*specs)
    return tree, [pid(tree, str(spec.id)) for spec in specs]


def call(yard: Yard, target: Any, *request: Any, timeout: float | None = LONG_S) -> Any:
    return athena.call(target, list(request), timeout, supervisor=yard.at)


def notes(yard: Yard, target: Any) -> list[Any]:
    found: list[Any] = call(yard, target, "notes")
    return found


def wait_notes(yard: Yard, target: Any, *expected: Any) -> None:
    wait_until(lambda: notes(yard, target) == list(expected), CHILD_S)


# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_server_is_called_by_pid_name_and_number(yard: Yard) -> None:
    _, (one,) = start(yard, server("one", name="uno"))
    assert [call(yard, target, "value", [1, None, "ä"]) for target in (one, "uno", int(one))] == [[1, None, "ä"]] * 3
    assert athena.whereis("uno", supervisor=yard.at) == one
    assert athena.is_alive(one, supervisor=yard.at)
    me = athena.self_pid(supervisor=yard.at)
    assert (int(me), call(yard, one, "caller")) == (os.getpid(), me.to_map())


def test_h07_deferred_reply_timeout_and_bad_return(yard: Yard) -> None:
    _, (one, other) = start(yard, server("one"), server("other"))
    with pytest.raises(CallTimeout):
        call(yard, one, "later", timeout=0.01)
    athena.cast(one, ["answer", "too late"], supervisor=yard.at)
    assert call(yard, one, "value", 1) == 1, "the late reply is dropped, and no answer to another call"
    with pytest.raises(CallTimeout):
        call(yard, one, "sleep", 0.3, timeout=0.01)
    assert call(yard, one, "value", 2) == 2
    with pytest.raises(ProcessExited) as raised:
        call(yard, other, "nonsense")
    assert raised.value.reason == {"bad_return_value": 17}


async def test_deferred_reply_reaches_who_waits_once(yard: Yard) -> None:
    import asyncio

    _, (one,) = start(yard, server("one"))
    waiting = asyncio.create_task(athena.acall(one, ["later"], None, supervisor=yard.at))
    await asyncio.sleep(0)
    while not waiting.done():
        await athena.acast(one, ["answer", "now"], supervisor=yard.at)
    assert await waiting == "now"


def test_h06_why_a_call_fails(yard: Yard) -> None:
    tree, (one, function) = start(yard, server("one"), ChildSpec("f", ["sleep", "1000"]))
    for target in ("nobody", Pid(1, 10**9, one.supervisor), 2**22 + 1):
        with pytest.raises(NoProcess):
            call(yard, target, "value", 1)
        athena.cast(target, ["x"], supervisor=yard.at)
    orders: list[list[Any]] = [["call", "me", ["value", 1]], ["stop other", "me"]]
    for number, order in enumerate(orders):
        tree.start_child(server(f"self {number}", name="me"))
        with pytest.raises(ProcessExited) as raised:
            call(yard, "me", *order)
        assert raised.value.reason["error"]["type"] == "CallingSelf"
    for target in (function, tree.pid):
        with pytest.raises(NotAServer):
            call(yard, target, "value", 1)
    for bad in (None, "", True, 1.5):
        with pytest.raises(InvalidOption):
            call(yard, bad, "value", 1)
    with pytest.raises(InvalidOption):
        call(yard, function, object())


@pytest.mark.parametrize("reason", ["normal", "shutdown", "other", {"shutdown": 1}])
def test_a_server_that_ends_without_a_reply_fails_the_call(yard: Yard, reason: Any) -> None:
    _, (one,) = start(yard, server("one"))
    with pytest.raises(ProcessExited) as raised:
        call(yard, one, "stop", reason)
    assert raised.value.reason == reason
    with pytest.raises(NoProcess):
        call(yard, one, "value", 1)


def test_with_stop_and_reply_the_reply_comes_first(yard: Yard) -> None:
    _, (one,) = start(yard, server("one"))
    monitor = athena.monitor(one, supervisor=yard.at)
    assert call(yard, one, "stop and reply", "done", "bye") == "bye"
    down = monitor.wait(LONG_S)
    assert down == Down(monitor.ref, one, one, "done")


def test_a_continue_runs_before_any_queued_message(yard: Yard) -> None:
    tree = yard.start()
    started = tree.start_child(server("one", ["continue", 7], name="early"))
    assert isinstance(started, Started)
    assert notes(yard, "early") == [["continue", 7]]


def test_h04_stop(yard: Yard) -> None:
    _, pids = start(yard, server("one"), server("two"), server("three"))
    for target, reason in zip(pids, ("normal", "other", {"x": 1}), strict=True):
        athena.stop(target, reason, LONG_S, supervisor=yard.at)
        assert is_gone(int(target))
        with pytest.raises(NoProcess):
            athena.stop(target, supervisor=yard.at)
    with pytest.raises(NoProcess):
        athena.stop("nobody", supervisor=yard.at)
    with pytest.raises(InvalidOption):
        athena.stop(pids[0], timeout=-1, supervisor=yard.at)


def test_stop_that_takes_too_long_ends_the_wait_only(yard: Yard) -> None:
    _, (one,) = start(yard, server("one"))
    athena.cast(one, ["note", 1], supervisor=yard.at)
    with pytest.raises(CallTimeout):
        call(yard, one, "sleep", 0.3, timeout=0.01)
    with pytest.raises(CallTimeout):
        athena.stop(one, timeout=0.01, supervisor=yard.at)
    wait_until(lambda: is_gone(int(one)), CHILD_S)


def test_h12_hibernated_keeps_pid_and_name(yard: Yard) -> None:
    _, (one,) = start(yard, server("one", name="sleeper"))
    assert call(yard, one, "hibernate") == int(one)
    assert call(yard, "sleeper", "value", 5) == 5
    assert athena.whereis("sleeper", supervisor=yard.at) == one


# --- starts -----------------------------------------------------------------------------------------------------------


def test_b07_info_is_passed_on_and_not_kept(yard: Yard) -> None:
    tree = yard.start()
    started = tree.start_child(server("one", ["ready", {"port": 1}], restart="permanent"))
    assert isinstance(started, Started)
    assert started.info == {"port": 1}
    athena.cast(started.pid, ["stop", "die"], supervisor=yard.at)
    wait_new(tree, "one", started.pid)
    tree.terminate_child("one")
    again = tree.restart_child("one")
    assert isinstance(again, Started)
    assert again.info == {"port": 1}
    assert "info" not in tree.get_childspec("one")


def test_a02_a03_ignored_children(yard: Yard) -> None:
    tree = yard.start(server("t", ["ignore"]))
    assert isinstance(tree.start_child(server("p", ["ignore"], restart="permanent")), athena.Ignored)
    tree.start_child(server("c2"))
    assert isinstance(tree.start_child(server("t2", ["ignore"])), athena.Ignored)
    rows = {row.id: row.pid for row in tree.which_children()}
    assert list(rows) == ["c2", "p"]
    assert rows["p"] is None
    assert tree.count_children() == athena.ChildCounts(specs=2, active=1, supervisors=0, workers=2)


@pytest.mark.parametrize(
    ("order", "is_reason"),
    [
        (["refuse", "found"], lambda reason: reason == "found"),
        (["fail", "no"], lambda reason: reason["error"]["message"] == "no"),
        (["exit", 3], lambda reason: reason == {"exit": 3}),
    ],
)
def test_a_failed_start_leaves_nothing(yard: Yard, order: Any, is_reason: Callable[[Any], bool]) -> None:
    tree = yard.start()
    for _ in range(3):  # an immediate retry meets no name that is taken
        with pytest.raises(StartError) as raised:
            tree.start_child(server("one", order, name="taken"))
        assert is_reason(raised.value.reason)
        assert athena.whereis("taken", supervisor=yard.at) is None
    assert tree.which_children() == []


def test_a_taken_name_is_already_started(yard: Yard) -> None:
    tree, (one,) = start(yard, server("one", name="taken"))
    with pytest.raises(AlreadyStarted) as raised:
        tree.start_child(server("two", name="taken"))
    assert raised.value.pid == one
    assert athena.whereis("taken", supervisor=yard.at) == one


def test_h01_a_server_of_its_own(yard: Yard) -> None:
    started = Scripted.start_link(["ready", "info"], name="solo", supervisor=yard.at)
    assert isinstance(started, Started)
    assert (started.info, call(yard, "solo", "value", 3)) == ("info", 3)
    with pytest.raises(AlreadyStarted) as taken:
        Scripted.start(name="solo", supervisor=yard.at)
    assert taken.value.pid == started.pid
    athena.stop("solo", "done", supervisor=yard.at)
    assert athena.receive(LONG_S, supervisor=yard.at) == Exit(started.pid, "done")
    with pytest.raises(NoProcess):
        call(yard, "solo", "value", 3)
    for order, reason in ((["refuse", "found"], "found"), (["exit", 3], {"exit": 3})):
        with pytest.raises(StartError) as failed:
            Scripted.start_link(order, name="solo", supervisor=yard.at)
        assert failed.value.reason == reason
    with pytest.raises(StartError) as late:
        Scripted.start_link(["sleep", 60], start_timeout=0.2, supervisor=yard.at)
    assert late.value.reason == "timeout"
    assert isinstance(Scripted.start_link(["ignore"], supervisor=yard.at), athena.Ignored)
    with pytest.raises(InvalidOption, match="restart"):
        Scripted.start_link(restart="permanent", supervisor=yard.at)
    with pytest.raises(CallTimeout):  # a start that failed, or was ignored, leaves no message behind
        athena.receive(0.01, supervisor=yard.at)


async def test_a_server_is_started_awaited(yard: Yard) -> None:
    started = await Scripted.astart(supervisor=yard.at)
    assert isinstance(started, Started)
    assert await athena.acall(started.pid, ["value", 1], supervisor=yard.at) == 1
    await athena.astop(started.pid, supervisor=yard.at)


def test_who_started_a_server_takes_it_along(yard: Yard) -> None:
    _, (parent,) = start(yard, server("parent"))
    for orders, ends in (([], "killed"), ([["trap", True]], "killed")):
        child = Pid.from_map(call(yard, parent, "start", *orders))
        assert child is not None
        monitor = athena.monitor(child, supervisor=yard.at)
        athena.exit(parent, "kill", supervisor=yard.at)
        down = monitor.wait(LONG_S)
        assert down is not None
        assert down.reason == ends
        if not orders:
            _, (parent,) = start(yard, server("parent"))


def test_a_server_that_reads_nothing_is_busy(yard: Yard) -> None:
    _, (one,) = start(yard, server("one"))
    with pytest.raises(CallTimeout):
        call(yard, one, "sleep", 60, timeout=0.01)

    def fill() -> None:
        for _ in range(64):
            athena.cast(one, "x" * 2**20, supervisor=yard.at)

    with pytest.raises(Busy):
        fill()
    with pytest.raises(Busy):
        call(yard, one, "value", 1)
    athena.exit(one, "kill", supervisor=yard.at)


# --- monitors ---------------------------------------------------------------------------------------------------------


def test_i01_one_down_for_each_monitor(yard: Yard) -> None:
    _, (one, two) = start(yard, server("one", name="uno"), server("two"))
    first, second = (athena.monitor(target, supervisor=yard.at) for target in (one, "uno"))
    athena.stop(one, "frop", supervisor=yard.at)
    assert first.wait(LONG_S) == Down(first.ref, one, one, "frop")
    assert second.wait(LONG_S) == Down(second.ref, "uno", one, "frop")
    assert (first.wait(0.01), second.wait(0.01)) == (None, None)
    late = athena.monitor(one, supervisor=yard.at)
    assert late.wait(LONG_S) == Down(late.ref, one, one, "noproc")
    unknown = athena.monitor("uno", supervisor=yard.at)
    assert unknown.wait(LONG_S) == Down(unknown.ref, "uno", None, "noproc")
    kept = athena.monitor(two, supervisor=yard.at)
    os.kill(int(two), signal.SIGSEGV)
    down = kept.wait(LONG_S)
    assert down is not None
    assert down.reason == {"signal": "SIGSEGV"}


def test_i02_demonitor(yard: Yard) -> None:
    _, (one, watcher) = start(yard, server("one"), server("watcher"))
    monitor = athena.monitor(one, supervisor=yard.at)
    assert [monitor.demonitor(), monitor.demonitor()] == [True, False]
    ref = call(yard, watcher, "monitor", one.to_map())
    own = call(yard, watcher, "monitor", watcher.to_map())
    kept = call(yard, watcher, "monitor", one.to_map())
    assert call(yard, watcher, "demonitor", ref) is True
    athena.stop(one, supervisor=yard.at)
    wait_notes(yard, watcher, ["down", kept, one.serial, "normal"])
    assert monitor.wait(0.01) is None
    assert own not in (ref, kept)


def test_names_are_free_before_a_down_is_seen(yard: Yard) -> None:
    tree = yard.start()
    for _ in range(20):
        started = tree.start_child(server("one", name="phoenix"))
        assert isinstance(started, Started)
        monitor = athena.monitor("phoenix", supervisor=yard.at)
        os.kill(int(started.pid), signal.SIGKILL)
        down = monitor.wait(LONG_S)
        assert down is not None
        assert down.reason == "killed"
        assert athena.whereis("phoenix", supervisor=yard.at) is None


def test_i07_tables_are_empty_after_everything_has_ended(yard: Yard) -> None:
    before = sizes(yard)
    tree, (one, watcher) = start(yard, server("one"), server("watcher"))
    for _ in range(3):
        call(yard, watcher, "monitor", one.to_map())
        athena.monitor(watcher, supervisor=yard.at).demonitor()
    call(yard, watcher, "link", one.to_map())
    athena.stop(watcher, supervisor=yard.at)
    tree.stop()
    wait_until(lambda: sizes(yard) == before, CHILD_S)


def sizes(yard: Yard) -> dict[str, int]:
    frame = yard.at.pool.call("info", {}, b"", LONG_S)
    return {name: count for name, count in frame.json()["processes"].items() if name not in ("processes", "mailboxes")}


# --- links and exit signals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "dies"), [("normal", False), ("shutdown", True), ({"shutdown": 1}, True), ("died", True)]
)
def test_i08_only_normal_is_harmless_over_a_link(yard: Yard, reason: Any, dies: bool) -> None:
    _, (one, linked) = start(yard, server("one"), server("linked"))
    call(yard, linked, "link", one.to_map())
    monitor = athena.monitor(linked, supervisor=yard.at)
    athena.stop(one, reason, supervisor=yard.at)
    if dies:
        down = monitor.wait(LONG_S)
        assert down is not None
        assert down.reason == reason
    else:
        assert call(yard, linked, "value", 1) == 1
        assert monitor.demonitor() is True


def test_who_traps_exits_gets_them_as_messages(yard: Yard) -> None:
    _, (one, two, trapping) = start(yard, server("one"), server("two"), server("t", ["trap", True]))
    for target in (one, two):
        call(yard, trapping, "link", target.to_map())
    call(yard, trapping, "unlink", two.to_map())
    athena.stop(one, supervisor=yard.at)
    athena.stop(two, "x", supervisor=yard.at)
    athena.exit(trapping, "please", supervisor=yard.at)
    me = athena.self_pid(supervisor=yard.at).serial
    wait_notes(yard, trapping, ["exit", one.serial, "normal"], ["exit", me, "please"])
    call(yard, trapping, "link", one.to_map())
    wait_until(lambda: notes(yard, trapping)[-1] == ["exit", one.serial, "noproc"], CHILD_S)


def test_exit_signals(yard: Yard) -> None:
    _, (plain, trapping, third) = start(yard, server("p"), server("t", ["trap", True]), server("k"))
    monitors = [athena.monitor(target, supervisor=yard.at) for target in (plain, trapping, third)]
    athena.exit(plain, "normal", supervisor=yard.at)
    assert call(yard, plain, "value", 1) == 1
    athena.exit(plain, {"my": "reason"}, supervisor=yard.at)
    athena.exit(trapping, "kill", supervisor=yard.at)
    athena.exit(third, "kill", supervisor=yard.at)
    assert [monitor.wait(LONG_S).reason for monitor in monitors] == [{"my": "reason"}, "killed", "killed"]  # type: ignore[union-attr]
    athena.exit(plain, "kill", supervisor=yard.at)  # of one that is gone it is nothing


def test_a_client_is_told_of_links_and_never_killed(yard: Yard) -> None:
    _, (one, two) = start(yard, server("one"), server("two"))
    link, dropped = (athena.link(target, supervisor=yard.at) for target in (one, two))
    dropped.unlink()
    athena.stop(two, "x", supervisor=yard.at)
    athena.stop(one, "y", supervisor=yard.at)
    assert link.wait(LONG_S) == Exit(one, "y")
    assert (link.wait(0.01), dropped.wait(0.01)) == (None, None)
    gone = athena.link(one, supervisor=yard.at)
    assert gone.wait(LONG_S) == Exit(one, "noproc")
    with pytest.raises(NoProcess):
        athena.link("nobody", supervisor=yard.at)
    athena.exit(athena.self_pid(supervisor=yard.at), "kill", supervisor=yard.at)
    assert athena.receive(LONG_S, supervisor=yard.at) == Exit(athena.self_pid(supervisor=yard.at), "kill")


def test_functions_are_processes_too(yard: Yard) -> None:
    tree, (one, tell) = start(yard, server("one"), server("tell"))
    linked = tree.start_child(
        ChildSpec("f", "tests.process_servers:link_and_wait", args=[one.to_map()], restart="temporary")
    )
    trapping = tree.start_child(
        ChildSpec("g", "tests.process_servers:trap_and_tell", args=[one.to_map(), tell.to_map()], restart="temporary")
    )
    assert isinstance(linked, Started)
    assert isinstance(trapping, Started)
    monitor = athena.monitor(linked.pid, supervisor=yard.at)
    wait_notes(yard, tell, ["linked"])
    wait_until(lambda: links(yard) == 2, CHILD_S)
    athena.stop(one, "gone", supervisor=yard.at)
    down = monitor.wait(LONG_S)
    assert down is not None
    assert down.reason == "gone"
    wait_notes(yard, tell, ["linked"], ["got", "Exit", "gone"])


def links(yard: Yard) -> int:
    return sizes(yard)["links"]


def test_messages_between_programs_and_servers(yard: Yard) -> None:
    _, (one,) = start(yard, server("one", name="uno"))
    athena.send("uno", {"a": 1}, supervisor=yard.at)
    wait_notes(yard, one, {"a": 1})
    athena.send(athena.self_pid(supervisor=yard.at), [1, 2], supervisor=yard.at)
    assert athena.receive(LONG_S, supervisor=yard.at) == [1, 2]
    athena.send(Pid(1, 10**9, one.supervisor), "lost", supervisor=yard.at)
    with pytest.raises(NoProcess):
        athena.send("nobody", 1, supervisor=yard.at)
    with pytest.raises(CallTimeout):
        athena.receive(0.01, supervisor=yard.at)


async def test_the_asyncio_twins_do_the_same(yard: Yard) -> None:
    _, (one, two) = start(yard, server("one", name="uno"), server("two"))
    at = yard.at
    assert await athena.awhereis("uno", supervisor=at) == one
    assert await athena.acall("uno", ["value", 1], LONG_S, supervisor=at) == 1
    monitor, dropped = await athena.amonitor(one, supervisor=at), await athena.amonitor(one, supervisor=at)
    link = await athena.alink(two, supervisor=at)
    assert await dropped.demonitor() is True
    await athena.astop(one, "frop", LONG_S, supervisor=at)
    assert await monitor.wait(LONG_S) == Down(monitor.ref, one, one, "frop")
    assert (await monitor.wait(0.01), await dropped.wait(0.01)) == (None, None)
    assert not await athena.ais_alive(one, supervisor=at)
    await athena.aexit(two, "kill", supervisor=at)
    assert await link.wait(LONG_S) == Exit(two, "killed")
    await athena.asend(await asyncio_self(at), "hello", supervisor=at)
    assert await athena.areceive(LONG_S, supervisor=at) == "hello"


async def asyncio_self(at: Any) -> Pid:
    return athena.self_pid(supervisor=at)


def test_a_look_at_the_trees_shows_every_process(yard: Yard) -> None:
    tree, (one,) = start(yard, server("one"))
    session = athena.Session.start_link(provider="mock", mock=["x"], name="agent", supervisor=yard.at)
    alone = Scripted.start_link(name="alone", supervisor=yard.at)
    assert isinstance(alone, Started)
    rows = list_trees(supervisor=yard.at)
    (child,) = next(row for row in rows if row["pid"]["serial"] == tree.pid.serial)["children"]
    (solo,) = [row for row in rows if row["name"] == "alone"]
    (agent,) = next(row for row in rows if row["label"] == "sessions")["children"]
    for row, pid_ in ((child, one), (solo, alone.pid), (agent, session.pid)):
        assert Pid.from_map(row["pid"]) == pid_
        assert row["memory_bytes"] > 2**20
        assert row["state"] == "running"
    session.stop()
    athena.stop(alone.pid, supervisor=yard.at)


def test_no_two_processes_have_a_name_and_a_session_is_one(yard: Yard) -> None:
    session = athena.Session.start_link(provider="mock", mock=["x"], name="agent", supervisor=yard.at)
    tree = yard.start()
    for target in ("agent", session.session_id):
        with pytest.raises(AlreadyStarted):
            tree.start_child(server("one", name=target))
        with pytest.raises(AlreadyStarted):
            Scripted.start_link(name=target, supervisor=yard.at)
    assert athena.whereis("agent", supervisor=yard.at) == session.pid
    session.stop()
