"""Servers, monitors, links and exit signals: cases of OTP's and Elixir's suites beyond otp-cases.md.

Each docstring names the upstream test, with the letters of otp-cases.md. All with real processes.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

import athena
from athena import ChildSpec, Down, Exit, Pid
from athena.errors import CallTimeout, InvalidOption, NoProcess, ProcessExited, StartError
from tests.helpers import wait_until
from tests.otp_invariants import sizes
from tests.otp_processes import LONG_S, call, end, reasons, server, started_pid, watch
from tests.process_servers import Scripted
from tests.session_fixtures import background, is_gone
from tests.tree_fixtures import CHILD_S, Yard, pid, pids, shared, start_child, wait_new, yard

__all__ = ["background", "shared", "yard"]

pytestmark = pytest.mark.slow


def temporary(name: str, /, *orders: Any, **fields: Any) -> ChildSpec:
    return server(name, *orders, restart="temporary", **fields)


def start(yard: Yard, *specs: ChildSpec) -> list[Pid]:
    """Their pids, under a supervisor of their own."""
    return list(pids(yard.start(*specs)).values())


def obedient(yard: Yard, name: str, kind: str = "Obedient", **fields: Any) -> ChildSpec:
    """A server of ``tests/server_children.py``, with a file for its notes."""
    args = [str(yard.directory / name)]
    start = f"tests.server_children:{kind}"
    return ChildSpec(name, start, args=args, **{"restart": "temporary", "shutdown": 1, **fields})


def noted(yard: Yard, name: str) -> list[str]:
    path = yard.directory / name
    return path.read_text().splitlines() if path.exists() else []


# --- calls and casts --------------------------------------------------------------------------------------------------


def test_casts_to_whom_nobody_knows_are_lost_silently(yard: Yard) -> None:
    """G: cast_fast, abcast to unknown; EG: cast/2 to unknown names."""
    (one,) = start(yard, temporary("one"))
    end(yard, one, "killed")
    reasons(watch(yard, one))
    for target in (one, "nobody", Pid(1, 10**9, one.supervisor), Pid(1, 1, "elsewhere"), 2**22 + 1):
        athena.cast(target, ["note", 1], supervisor=yard.at)


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_a_timeout_of_0_is_legal(yard: Yard, timeout: float) -> None:
    """G: call with timeout; otp.md 16: 0 is legal."""
    (one,) = start(yard, temporary("one"))
    with pytest.raises(CallTimeout):
        call(yard, one, "later", timeout=timeout)
    assert call(yard, one, "value", 1) == 1
    for bad in (-1, True, "1", float("nan")):
        with pytest.raises(InvalidOption):
            call(yard, one, "value", 1, timeout=bad)  # type: ignore[arg-type]


def test_calls_from_many_threads_are_each_answered_once(yard: Yard, background: Any) -> None:
    """G: multiple calls at a time; answers find their callers whatever their order."""
    (one,) = start(yard, temporary("one"))
    waiting = [background(lambda: call(yard, one, "later")) for _ in range(20)]
    values = [background(lambda number=number: call(yard, one, "value", number)) for number in range(20)]
    assert [value.result(LONG_S) for value in values] == list(range(20))
    wait_until(lambda: sizes(yard.at)["calls"] == 20, CHILD_S)
    athena.cast(one, ["answer", "all"], supervisor=yard.at)
    assert [answer.result(LONG_S) for answer in waiting] == ["all"] * 20


@pytest.mark.parametrize("how", ["died", "killed", "normal", "terminate_child"])
def test_every_waiting_call_fails_with_the_reason(yard: Yard, background: Any, how: str) -> None:
    """G: call_remote_n1 in spirit: one outcome for each call, the true reason; invariant 11."""
    tree = yard.start(temporary("one"))
    one = pid(tree, "one")
    before = sizes(yard.at)["calls"]
    waiting: list[Future[Any]] = [background(lambda: call(yard, one, "later", timeout=None)) for _ in range(10)]
    wait_until(lambda: sizes(yard.at)["calls"] == before + 10, CHILD_S)
    tree.terminate_child("one") if how == "terminate_child" else end(yard, one, how)
    errors = [answer.exception(LONG_S) for answer in waiting]
    assert all(isinstance(error, ProcessExited) for error in errors)
    assert {error.reason for error in errors} == {"shutdown" if how == "terminate_child" else how}  # type: ignore[union-attr]


def test_a_caller_that_dies_leaves_no_call(yard: Yard) -> None:
    """otp.md 16: an entry is removed at caller death; the late reply has no effect."""
    one, caller = start(yard, temporary("one"), temporary("caller"))
    before = sizes(yard.at)["calls"]
    athena.cast(caller, ["call", one.to_map(), ["later"]], supervisor=yard.at)
    wait_until(lambda: sizes(yard.at)["calls"] == before + 1, CHILD_S)
    end(yard, caller, "killed")
    wait_until(lambda: sizes(yard.at)["calls"] == before, CHILD_S)
    athena.cast(one, ["answer", "late"], supervisor=yard.at)
    assert call(yard, one, "value", 1) == 1


def test_servers_call_each_other(yard: Yard) -> None:
    """G: call from a handle_call, and what its failure does to the caller: it exits with it."""
    one, two, three = start(yard, temporary("one"), temporary("two"), temporary("three"))
    nested = ["call", two.to_map(), ["call", three.to_map(), ["value", [1, "x"]]]]
    assert call(yard, one, *nested) == [1, "x"]
    with pytest.raises(ProcessExited) as raised:
        call(yard, one, "call", two.to_map(), ["stop", "oops"])
    assert raised.value.reason["error"]["type"] == "ProcessExited"
    assert "oops" in raised.value.reason["error"]["message"]


def test_a_crash_in_a_call_is_its_callers_error_and_the_restarted_server_is_new(yard: Yard) -> None:
    """G: crash in handle_call; EG: stop and restart lose the state."""
    tree = yard.start(server("one", name="one"))
    old = pid(tree, "one")
    call(yard, "one", "note", 1)
    with pytest.raises(ProcessExited) as raised:
        call(yard, "one", "fail", "boom")
    error = raised.value.reason["error"]
    assert (error["type"], error["message"]) == ("ValueError", "boom")
    wait_new(tree, "one", old)
    wait_until(lambda: athena.whereis("one", supervisor=yard.at) is not None, CHILD_S)
    assert call(yard, "one", "notes") == []


# --- callbacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["call", "cast"])
def test_an_undefined_callback_is_a_crash_when_it_is_needed(yard: Yard, what: str) -> None:
    """G: undef_handle_call, undef_handle_cast."""
    tree = yard.start(ChildSpec("bare", "tests.server_children:Minimal", restart="temporary"))
    monitors = watch(yard, pid(tree, "bare"))
    if what == "call":
        with pytest.raises(ProcessExited):
            call(yard, pid(tree, "bare"), "x")
    else:
        athena.cast(pid(tree, "bare"), "x", supervisor=yard.at)
    assert "error" in reasons(monitors)[0]


def test_an_undefined_handle_info_logs_and_an_undefined_terminate_does_nothing(yard: Yard) -> None:
    """G: undef_handle_info, undef_terminate1, undef_terminate2."""
    one, two = start(yard, *(ChildSpec(n, "tests.server_children:Minimal", restart="temporary") for n in ("a", "b")))
    athena.send(one, "whatever", supervisor=yard.at)
    monitors = watch(yard, one, two)
    athena.stop(one, supervisor=yard.at)
    athena.stop(two, {"shutdown": "x"}, supervisor=yard.at)
    assert reasons(monitors) == ["normal", {"shutdown": "x"}]


def test_a_failing_terminate_gives_the_reason(yard: Yard) -> None:
    """G: crash_terminate; stop3: the caller of stop gets the real reason."""
    (one,) = start(yard, obedient(yard, "one", "BadEnd"))
    monitors = watch(yard, one)
    with pytest.raises(ProcessExited) as raised:
        athena.stop(one, "normal", supervisor=yard.at)
    assert raised.value.reason["error"]["message"] == "terminate failed"
    assert reasons(monitors) == [raised.value.reason]


def test_stop_waits_for_ever_by_default(yard: Yard) -> None:
    """G: stop with an infinite timeout, of a server that is busy."""
    (one,) = start(yard, temporary("one"))
    athena.cast(one, ["sleep", 0.7], supervisor=yard.at)
    began = time.monotonic()
    athena.stop(one, "done", supervisor=yard.at)
    assert time.monotonic() - began > 0.5
    assert is_gone(int(one))


def test_two_stops_at_once_both_return(yard: Yard, background: Any) -> None:
    """G: stop5; proc_lib stop: everybody who waits is told."""
    (one,) = start(yard, temporary("one"))
    athena.cast(one, ["sleep", 0.3], supervisor=yard.at)
    stops = [background(lambda: athena.stop(one, "done", supervisor=yard.at)) for _ in range(4)]
    outcomes = [stop.exception(LONG_S) for stop in stops]
    assert all(error is None or isinstance(error, NoProcess) for error in outcomes)
    assert outcomes.count(None) >= 1


def test_continuations_chain_before_any_message(yard: Yard) -> None:
    """G: continue chains (handle_continue returning continue); EG: the same."""
    (one,) = start(yard, obedient(yard, "one"))
    athena.cast(one, ["sleep", 0.2], supervisor=yard.at)
    athena.cast(one, ["count", 5], supervisor=yard.at)
    for number in range(3):
        athena.cast(one, ["note", f"message {number}"], supervisor=yard.at)
    assert athena.call(one, ["notes", None], LONG_S, supervisor=yard.at) == [
        *(f"continue {number}" for number in range(5, -1, -1)),
        *(f"message {number}" for number in range(3)),
    ]


def test_hibernate_with_a_queued_message_wakes_at_once(yard: Yard) -> None:
    """G: hibernate; a message that waits already is handled."""
    (one,) = start(yard, temporary("one"))
    athena.cast(one, ["sleep", 0.2], supervisor=yard.at)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda order=order: answers.append(call(yard, one, *order)))
        for order in (["hibernate"], ["value", 2], ["hibernate"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert sorted(answers) == sorted([int(one), 2, int(one)])


def test_a_failed_init_runs_no_terminate(yard: Yard) -> None:
    """G: init that stops or crashes; proc_lib init_fail: names first, no terminate."""
    tree = yard.start()
    for number, how in enumerate(("stop", "stop with reply", "number")):
        spec = ChildSpec(
            f"c{number}", "tests.server_children:Obedient", args=[str(yard.directory / "n"), how], name="n"
        )
        with pytest.raises(StartError):
            tree.start_child(spec)
        assert athena.whereis("n", supervisor=yard.at) is None
    assert noted(yard, "n") == []


def test_terminate_by_the_parent_runs_for_who_traps_only(yard: Yard) -> None:
    """G: terminate on the parent's exit; queued messages are handled first."""
    tree = yard.start(obedient(yard, "t", "Trapping", shutdown=5), obedient(yard, "p"))
    trapping_one = pid(tree, "t")
    athena.cast(trapping_one, ["sleep", 0.2], supervisor=yard.at)
    athena.cast(trapping_one, ["note", "before"], supervisor=yard.at)
    for name in ("t", "p"):
        tree.terminate_child(name)
    assert (noted(yard, "t"), noted(yard, "p")) == (["before", "terminate shutdown"], [])


# --- monitors ---------------------------------------------------------------------------------------------------------


def test_a_hundred_monitors_of_one_process_fire_once_each(yard: Yard) -> None:
    """M: mon_n; each call makes an independent reference."""
    (one,) = start(yard, temporary("one", name="uno"))
    monitors = watch(yard, *[one, "uno"] * 50)
    assert len({monitor.ref for monitor in monitors}) == 100
    for monitor in monitors[::4]:
        assert monitor.demonitor()
    end(yard, one, "frop")
    for number, monitor in enumerate(monitors):
        down = monitor.wait(LONG_S)
        target = "uno" if number % 2 else one
        assert down == (None if number % 4 == 0 else Down(monitor.ref, target, one, "frop"))
        assert monitor.wait(0) is None


def test_a_monitor_by_name_stays_with_the_process_of_then(yard: Yard) -> None:
    """M: named_down; by name it is resolved once, and a later holder does not matter."""
    tree = yard.start(temporary("one", name="uno"))
    one = pid(tree, "one")
    monitor = athena.monitor("uno", supervisor=yard.at)
    end(yard, one, "first")
    assert monitor.wait(LONG_S) == Down(monitor.ref, "uno", one, "first")
    again = start_child(tree, temporary("one", name="uno"))
    end(yard, again, "second")
    reasons(watch(yard, again))
    assert monitor.wait(0.01) is None


def test_demonitor_with_and_without_flush(yard: Yard) -> None:
    """M: demonitor_flush, and its info: whether the Down was still to come."""
    one, two = start(yard, temporary("one"), temporary("two"))
    kept, flushed = (athena.monitor(one, supervisor=yard.at) for _ in range(2))
    witness = athena.monitor(one, supervisor=yard.at)
    end(yard, one, "frop")
    reasons([witness])
    assert (kept.demonitor(flush=False), flushed.demonitor(flush=True)) == (False, False)
    assert kept.wait(LONG_S) == Down(kept.ref, one, one, "frop")
    assert flushed.wait(0.01) is None
    armed = athena.monitor(two, supervisor=yard.at)
    assert (armed.demonitor(flush=False), armed.wait(0.01)) == (True, None)


def test_two_that_watch_each_other(yard: Yard) -> None:
    """M: case_1, case_2: cross monitors; the end of one is told to the other only."""
    one, two = start(yard, temporary("one"), temporary("two"))
    call(yard, one, "monitor", two.to_map())
    ref = call(yard, two, "monitor", one.to_map())
    end(yard, one, "x")
    wait_until(lambda: call(yard, two, "notes") == [["down", ref, one.serial, "x"]], CHILD_S)


# --- links and exit signals -------------------------------------------------------------------------------------------


def test_a_kill_goes_along_a_line_of_links_as_killed(yard: Yard) -> None:
    """X: kill2killed; EP: exit(pid, :kill) with links."""
    line = start(yard, *(temporary(name) for name in "abcd"), temporary("end", ["trap", True]))
    for one, other in itertools.pairwise(line):
        call(yard, one, "link", other.to_map())
    monitors = watch(yard, *line[:-1])
    athena.exit(line[0], "kill", supervisor=yard.at)
    assert reasons(monitors) == ["killed"] * 4
    wait_until(lambda: call(yard, line[-1], "notes") == [["exit", line[3].serial, "killed"]], CHILD_S)


def test_a_reason_of_kill_is_trappable_over_a_link(yard: Yard) -> None:
    """X: a process that ends itself with the reason kill emits kill, not killed."""
    one, plain, traps = start(yard, temporary("one"), temporary("plain"), temporary("traps", ["trap", True]))
    for other in (plain, traps):
        call(yard, other, "link", one.to_map())
    monitors = watch(yard, one, plain)
    end(yard, one, "kill")
    assert reasons(monitors) == ["kill", "kill"]
    wait_until(lambda: call(yard, traps, "notes") == [["exit", one.serial, "kill"]], CHILD_S)


def test_links_are_one_for_a_pair_and_none_with_oneself(yard: Yard) -> None:
    """R: link to self, repeated links: one EXIT."""
    one, traps = start(yard, temporary("one"), temporary("traps", ["trap", True]))
    before = sizes(yard.at)["links"]
    for _ in range(3):
        call(yard, traps, "link", one.to_map())
        call(yard, one, "link", traps.to_map())
        call(yard, one, "link", one.to_map())
    assert sizes(yard.at)["links"] == before + 1
    end(yard, one, "x")
    wait_until(lambda: call(yard, traps, "notes") == [["exit", one.serial, "x"]], CHILD_S)


def test_to_link_what_is_dead(yard: Yard) -> None:
    """R: link to a dead process, otp_6237: noproc, as a message for who traps and as an error for who does not."""
    one, plain, traps = start(yard, temporary("one"), temporary("plain"), temporary("traps", ["trap", True]))
    end(yard, one, "x")
    reasons(watch(yard, one))
    call(yard, traps, "link", one.to_map())
    wait_until(lambda: call(yard, traps, "notes") == [["exit", one.serial, "noproc"]], CHILD_S)
    with pytest.raises(ProcessExited) as raised:
        call(yard, plain, "link", one.to_map())
    assert raised.value.reason["error"]["type"] == "NoProcess"


def test_what_is_sent_before_an_exit_signal_is_in_front_of_it(yard: Yard) -> None:
    """X: message_exit order: signals from one to another come in the order of sending."""
    (traps,) = start(yard, temporary("traps", ["trap", True]))
    me = athena.self_pid(supervisor=yard.at).serial
    for number in range(10):
        athena.cast(traps, ["note", number], supervisor=yard.at)
        athena.exit(traps, f"reason {number}", supervisor=yard.at)
    expected = [one for number in range(10) for one in (number, ["exit", me, f"reason {number}"])]
    assert call(yard, traps, "notes") == expected


def test_who_has_got_a_fatal_signal_is_dead_at_once(yard: Yard) -> None:
    """X: pending_exit_is_process_alive, pending_exit_process_info: queries say dead from the moment of the signal."""
    for _ in range(20):
        (one,) = start(yard, temporary("one", name="uno"))
        monitors = watch(yard, one)
        athena.exit(one, "die", supervisor=yard.at)
        assert not athena.is_alive(one, supervisor=yard.at)
        assert athena.whereis("uno", supervisor=yard.at) is None
        with pytest.raises(NoProcess):
            call(yard, one, "value", 1)
        assert reasons(monitors) == ["die"]


def test_the_first_of_two_exit_signals_decides(yard: Yard) -> None:
    """X: exit_twice."""
    for first, second in (("one", "kill"), ("kill", "one"), ("one", "two")):
        (target,) = start(yard, temporary("t"))
        monitors = watch(yard, target)
        for reason in (first, second):
            athena.exit(target, reason, supervisor=yard.at)
        assert reasons(monitors) == ["killed" if first == "kill" else first]


def test_trapping_can_be_switched(yard: Yard) -> None:
    """R: trap_exit_badarg in spirit, and its effect from then on."""
    (one,) = start(yard, temporary("one"))
    me = athena.self_pid(supervisor=yard.at).serial
    call(yard, one, "trap", True)
    athena.exit(one, "first", supervisor=yard.at)
    wait_until(lambda: call(yard, one, "notes") == [["exit", me, "first"]], CHILD_S)
    call(yard, one, "trap", False)
    monitors = watch(yard, one)
    athena.exit(one, "second", supervisor=yard.at)
    assert reasons(monitors) == ["second"]


def test_an_exit_shutdown_is_what_sigterm_is(yard: Yard) -> None:
    """otp.md 14: for one that does not trap, exit(pid, shutdown) and SIGTERM are the same."""
    one, two = start(yard, temporary("one"), temporary("two"))
    monitors = watch(yard, one, two)
    athena.exit(one, "shutdown", supervisor=yard.at)
    os.kill(int(two), signal.SIGTERM)
    assert reasons(monitors) == ["shutdown", "shutdown"]


# --- servers of one's own ---------------------------------------------------------------------------------------------


def test_a_linked_start_that_fails_leaves_no_exit(yard: Yard) -> None:
    """L: init_fail, start_link of OTP 26: the starter that traps finds nothing in its mailbox."""
    for order in (["refuse", "x"], ["fail", "x"], ["exit", 1], ["ignore"]):
        try:
            assert isinstance(Scripted.start_link(order, name="own", supervisor=yard.at), athena.Ignored)
        except StartError:
            assert order != ["ignore"]
        assert athena.whereis("own", supervisor=yard.at) is None
    with pytest.raises(CallTimeout):
        athena.receive(0.05, supervisor=yard.at)


def test_a_linked_server_that_ends_is_told_once(yard: Yard) -> None:
    """G: start_link, and the EXIT of its end, also a normal one: a program traps."""
    for reason in ("normal", "shutdown", "died"):
        one = started_pid(Scripted.start_link(supervisor=yard.at))
        end(yard, one, reason)
        assert athena.receive(LONG_S, supervisor=yard.at) == Exit(one, reason)
    with pytest.raises(CallTimeout):
        athena.receive(0.01, supervisor=yard.at)
