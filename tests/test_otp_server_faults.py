"""Servers whose callbacks fail, callers that give up, and messages in front of an end: cases of gen_server_SUITE,
proc_lib_SUITE and Elixir's gen_server_test beyond otp-cases.md, with real processes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

import athena
from athena import ChildSpec, Ignored, Pid
from athena.errors import InvalidOption, ProcessExited, StartError
from tests.helpers import wait_until
from tests.otp_processes import LONG_S, call, end, is_alive, reasons, server, stamps, started_pid, trapping, watch
from tests.session_fixtures import is_gone
from tests.tree_fixtures import CHILD_S, Yard, counts, pid, pids, shared, start_child, wait_new, yard

__all__ = ["shared", "yard"]

pytestmark = pytest.mark.slow


def badly(name: str, *args: Any, **fields: Any) -> ChildSpec:
    """A server that fails in each callback in another way."""
    return ChildSpec(name, "tests.otp_suite_servers:Badly", args=list(args), **{"restart": "temporary", **fields})


def noted(yard: Yard, name: str, cls: str = "Obedient", *args: Any, **fields: Any) -> ChildSpec:
    """One of :mod:`tests.server_children`."""
    path = str(yard.directory / f"{name}.notes")
    given = {"restart": "temporary", "shutdown": 5, **fields}
    return ChildSpec(name, f"tests.server_children:{cls}", args=[path, *args], **given)


def error_of(reason: Any) -> tuple[str, str]:
    """Type and message of an error that was an exit reason."""
    return reason["error"]["type"], reason["error"]["message"]


# --- callbacks that fail ----------------------------------------------------------------------------------------------


def test_a_callback_that_returns_nonsense_is_a_bad_return_value(yard: Yard) -> None:
    tree = yard.start_dynamic()
    one, two = start_child(tree, badly("one")), start_child(tree, badly("two"))
    monitors = watch(yard, one, two)
    athena.send(one, "return", supervisor=yard.at)
    athena.send(two, "raise", supervisor=yard.at)
    bad, error = reasons(monitors)
    assert bad == {"bad_return_value": {"no": "answer"}}
    assert error_of(error)[0] == "AttributeError"


@pytest.mark.parametrize("how", ["raise", "nonsense"])
def test_a_continue_that_fails_is_no_start_that_failed(yard: Yard, how: str) -> None:
    """EG: handle_continue. The starter was released before."""
    tree = yard.start_dynamic()
    one = started_pid(tree.start_child(badly("one", how)))
    wait_until(lambda: not is_alive(yard, one), CHILD_S)
    wait_until(lambda: counts(tree) == [0, 0, 0, 0], CHILD_S)
    again = yard.start(max_restarts=0)
    (monitor,) = watch(yard, again.pid)
    again.start_child(badly("one", how, restart="permanent"))
    assert reasons([monitor]) == ["shutdown"], "its end is a restart that is needed"


@pytest.mark.parametrize("how", ["raise", "exit"])
def test_a_terminate_that_fails_is_the_reason(yard: Yard, how: str) -> None:
    """G: undef_in_terminate, error_in_terminate."""
    tree = yard.start_dynamic()
    one = start_child(tree, noted(yard, "one", "BadEnd", how))
    monitors = watch(yard, one)
    with pytest.raises(ProcessExited) as raised:
        athena.stop(one, "wanted", LONG_S, supervisor=yard.at)
    assert reasons(monitors) == [raised.value.reason]
    if how == "exit":
        assert raised.value.reason == {"exit": 5}
    else:
        assert error_of(raised.value.reason) == ("ValueError", "terminate failed")


@pytest.mark.parametrize("reason", ["normal", "shutdown", {"shutdown": 1}, "found"])
def test_an_init_that_stops_is_an_error_whatever_its_reason(yard: Yard, reason: Any) -> None:
    """L: sync_start_nolink and init_fail; a clean reason makes no success of it."""
    tree = yard.start(server("other"), max_restarts=0)
    for _ in range(2):
        with pytest.raises(StartError) as raised:
            tree.start_child(server("one", ["refuse", reason], restart="transient", name="one"))
        assert raised.value.reason == reason
        assert athena.whereis("one", supervisor=yard.at) is None
    assert list(pids(tree)) == ["other"]
    assert stamps(yard, tree) == 0


@pytest.mark.parametrize("reason", ["boom", "kill", "shutdown"])
def test_an_exit_signal_reaches_who_is_starting(yard: Yard, reason: str) -> None:
    """L: a process that is killed in its init is a start that failed, for the reason of the signal."""
    tree = yard.start()
    failed: list[Any] = []

    def start() -> None:
        try:
            tree.start_child(server("one", ["sleep", 60], name="early"))
        except StartError as error:
            failed.append(error.reason)

    starter = threading.Thread(target=start)
    starter.start()
    wait_until(lambda: athena.whereis("early", supervisor=yard.at) is not None, CHILD_S)
    monitors = watch(yard, "early")
    athena.exit("early", "normal", supervisor=yard.at)  # which is nothing
    athena.exit("early", reason, supervisor=yard.at)
    starter.join(LONG_S)
    assert failed == reasons(monitors) == ["killed" if reason == "kill" else reason]
    assert tree.which_children() == []


@pytest.mark.parametrize(("order", "expected"), [(["refuse", "found"], "found"), (["ignore"], "normal")])
def test_who_calls_a_server_that_does_not_start_is_told_why(yard: Yard, order: Any, expected: str) -> None:
    tree = yard.start_dynamic()
    outcome: list[Any] = []

    def start() -> None:
        try:
            outcome.append(tree.start_child(server("one", ["sleep", 0.3], order, name="early")))
        except StartError as error:
            outcome.append(error.reason)

    starter = threading.Thread(target=start)
    starter.start()
    wait_until(lambda: athena.whereis("early", supervisor=yard.at) is not None, CHILD_S)
    with pytest.raises(ProcessExited) as raised:
        call(yard, "early", "value", 1)
    starter.join(LONG_S)
    assert raised.value.reason == expected
    assert outcome == [Ignored() if order == ["ignore"] else "found"]


def test_who_ignores_has_ended_normally_for_everybody(yard: Yard) -> None:
    """5: init answers ignore, and the process ends normal; the supervisor, which waits for that, is no part of it."""
    tree = yard.start_dynamic()
    for _ in range(15):
        starter = threading.Thread(target=tree.start_child, args=[server("one", ["sleep", 0.05], ["ignore"], name="i")])
        starter.start()
        wait_until(lambda: athena.whereis("i", supervisor=yard.at) is not None, CHILD_S)
        monitors = watch(yard, "i")
        starter.join(LONG_S)
        assert reasons(monitors)[0] == "normal"


@pytest.mark.parametrize("traps", [False, True])
@pytest.mark.parametrize("reason", ["normal", "shutdown", "died"])
def test_the_end_of_who_started_it_ends_a_server_that_traps_and_normal_only_that(
    yard: Yard, traps: bool, reason: str
) -> None:
    """G: start_link, and the exit of the parent: a message to nobody, for it is the parent's (otp.md 16)."""
    parent = start_child(yard.start_dynamic(), server("parent", restart="temporary"))
    child = Pid.from_map(call(yard, parent, "start", ["trap", traps]))
    assert child is not None
    monitors = watch(yard, child)
    athena.stop(parent, reason, supervisor=yard.at)
    if reason == "normal" and not traps:
        assert call(yard, child, "notes") == []
        athena.stop(child, reason, supervisor=yard.at)
    assert reasons(monitors) == [reason]


# --- continues, timeouts, hibernation ---------------------------------------------------------------------------------


def test_hibernation_ends_with_whatever_comes(yard: Yard) -> None:
    """G: hibernate. A call, a cast, a message, an exit signal and a stop each wake it."""
    tree = yard.start(trapping("one", name="one"))
    one = pid(tree, "one")
    expected: list[Any] = []
    me = athena.self_pid(supervisor=yard.at).serial
    wakes: list[Callable[[], None]] = [
        lambda: athena.cast("one", ["note", 1], supervisor=yard.at),
        lambda: athena.send("one", 2, supervisor=yard.at),
        lambda: athena.exit("one", "please", supervisor=yard.at),
    ]
    for wake in wakes:
        assert call(yard, "one", "hibernate") == int(one)
        wake()
        expected.append((1, 2, ["exit", me, "please"])[len(expected)])
        assert call(yard, "one", "notes") == expected
    call(yard, "one", "hibernate")
    monitors = watch(yard, one)
    athena.stop("one", "done", LONG_S, supervisor=yard.at)
    assert reasons(monitors) == ["done"]


# --- callers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [True, -1, -0.1, "5", math.nan, math.inf, 1e12])
def test_an_illegal_timeout_touches_nobody(yard: Yard, timeout: Any) -> None:
    """G: stop9, call with a wrong timeout. What no timer can hold is one: for ever is ``None``."""
    tree = yard.start(server("one"))
    one = pid(tree, "one")
    (monitor,) = watch(yard, one)
    for wrong in (
        lambda: call(yard, one, "stop", "no", timeout=timeout),
        lambda: athena.stop(one, timeout=timeout, supervisor=yard.at),
        lambda: tree.stop(timeout=timeout),
        lambda: monitor.wait(timeout),
        lambda: athena.receive(timeout, supervisor=yard.at),
    ):
        with pytest.raises(InvalidOption, match="None"):
            wrong()
    assert call(yard, one, "value", 1) == 1
    end(yard, one, "killed")
    assert reasons([monitor]) == ["killed"]


# --- messages in front of an end --------------------------------------------------------------------------------------


def test_messages_in_front_of_a_stop_are_handled(yard: Yard) -> None:
    """X: signals from one process arrive in sending order, whatever their kind."""
    one = start_child(yard.start_dynamic(), noted(yard, "one"))
    for number in range(200):
        (athena.cast if number % 2 else athena.send)(one, ["note", str(number)], supervisor=yard.at)
    athena.stop(one, "done", LONG_S, supervisor=yard.at)
    expected = [*map(str, range(200)), "terminate done"]
    assert (yard.directory / "one.notes").read_text().splitlines() == expected
    assert is_gone(int(one))


def test_messages_in_front_of_a_shutdown_are_handled_by_who_traps_exits(yard: Yard) -> None:
    tree = yard.start(noted(yard, "one", "Trapping"))
    one = pid(tree, "one")
    for number in range(50):
        athena.cast(one, ["note", str(number)], supervisor=yard.at)
    tree.stop()
    expected = [*map(str, range(50)), "terminate shutdown"]
    assert (yard.directory / "one.notes").read_text().splitlines() == expected


def test_an_exit_signal_of_a_stranger_is_a_message_and_no_order_to_terminate(yard: Yard) -> None:
    """G: terminate is for the parent's exit; also shutdown of anybody else is for handle_info."""
    tree = yard.start(noted(yard, "one", "Trapping", restart="permanent"))
    one = pid(tree, "one")
    for reason in ("shutdown", "normal", "other"):
        athena.exit(one, reason, supervisor=yard.at)
    notes = athena.call(one, ["notes", None], LONG_S, supervisor=yard.at)
    assert [note.split()[-1] for note in notes] == ["shutdown", "normal", "other"]
    assert stamps(yard, tree) == 0


def test_a_restarted_server_has_none_of_the_messages_of_the_one_before(yard: Yard) -> None:
    tree = yard.start(server("one", name="one"))
    old = pid(tree, "one")
    athena.cast(old, ["sleep", 0.2], supervisor=yard.at)
    for number in range(20):
        athena.cast("one", ["note", number], supervisor=yard.at)
    end(yard, old, "killed")
    wait_new(tree, "one", old)
    athena.cast(old, ["note", "for the dead"], supervisor=yard.at)
    assert call(yard, "one", "notes") == []
