"""Supervisors when much happens at once: deaths that come together, ends that fail, children that ask their supervisor.

Cases of supervisor_SUITE beyond otp-cases.md, with real processes; the comment before a test names its source.
"""

from __future__ import annotations

import os
import signal
import threading

import pytest

import athena
from athena import ChildSpec, DynamicSupervisor, Pid, Supervisor
from athena.errors import StartError
from tests.helpers import wait_until
from tests.otp_processes import LONG_S, call, end, is_alive, reasons, root_row, server, stamps, trapping, watch
from tests.tree_fixtures import CHILD_S, Yard, counts, pid, pids, shared, start_child, wait_gone, wait_new, yard

__all__ = ["shared", "yard"]

pytestmark = pytest.mark.slow

STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")


# --- who escalates ----------------------------------------------------------------------------------------------------


def test_limits_of_nested_supervisors_multiply(yard: Yard) -> None:
    inner = Supervisor.child_spec([server("w", name="w")], id="inner", max_restarts=1, max_seconds=3600)
    root = yard.start(inner, max_restarts=1, max_seconds=3600)
    (monitor,) = watch(yard, root.pid)
    for _ in range(4):  # (1 + 1) * (1 + 1)
        wait_until(lambda: athena.whereis("w", supervisor=yard.at) is not None, CHILD_S)
        call(yard, "w", "value", 1)  # it has started: a kill before that is a start that fails
        old = athena.whereis("w", supervisor=yard.at)
        assert old is not None
        assert is_alive(yard, root.pid)
        ended = watch(yard, old)
        end(yard, old, "killed")
        assert reasons(ended) == ["killed"]
    assert reasons([monitor]) == ["shutdown"]


# --- significant children ---------------------------------------------------------------------------------------------


# significant_bystander
@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
@pytest.mark.parametrize("mode", ["any_significant", "all_significant"])
def test_a_significant_bystander_ends_nothing(yard: Yard, strategy: str, mode: str) -> None:
    tree = yard.start(
        server("culprit"),
        server("transient", restart="transient", significant=True),
        server("temporary", restart="temporary", significant=True),
        strategy=strategy, auto_shutdown=mode,
    )  # fmt: skip
    old = pids(tree)
    end(yard, old["culprit"])
    for name in ("culprit", "transient"):
        wait_new(tree, name, old[name])
    assert list(pids(tree)) == ["culprit", "transient"]
    (monitor,) = watch(yard, tree.pid)
    end(yard, pid(tree, "transient"), "normal")  # the last significant one that is left
    assert reasons([monitor]) == ["shutdown"]


# significant_transient, all_significant; significant_mixed
def test_all_significant_children_must_end_by_themselves_or_be_gone(yard: Yard) -> None:
    kinds = {"a": "transient", "b": "temporary", "c": "transient"}
    specs = [server(name, restart=kind, significant=True) for name, kind in kinds.items()]
    tree = yard.start(*specs, server("p"), auto_shutdown="all_significant")
    (monitor,) = watch(yard, tree.pid)
    old = pid(tree, "a")
    end(yard, old, "died")  # restarted: it is left
    wait_new(tree, "a", old)
    ended = watch(yard, pid(tree, "b"))
    end(yard, pid(tree, "b"), "died")
    assert reasons(ended) == ["died"]
    tree.terminate_child("c")  # not by itself, and it is left no more
    wait_until(lambda: counts(tree) == [3, 2, 0, 3], CHILD_S)
    end(yard, pid(tree, "a"), {"shutdown": "done"})
    assert reasons([monitor]) == ["shutdown"]


# --- deaths that come together ----------------------------------------------------------------------------------------


# one_for_all with deaths that come together: the termination takes the exit of the second one
def test_deaths_that_come_together_are_one_group_restart(yard: Yard) -> None:
    for strategy, expected in (("one_for_all", 1), ("one_for_one", 2)):
        tree = yard.start(server("a"), server("b"), strategy=strategy)
        old = pids(tree)
        starter = threading.Thread(target=tree.start_child, args=[server("slow", ["sleep", 0.3])])
        starter.start()
        wait_until(lambda tree=tree: _state(yard, tree) == "starting a child", CHILD_S)  # type: ignore[misc]
        monitors = watch(yard, *old.values())
        for name in ("b", "a"):
            end(yard, old[name], "killed")
        assert reasons(monitors) == ["killed", "killed"]
        starter.join(LONG_S)
        for name in ("a", "b"):
            wait_new(tree, name, old[name])
        assert stamps(yard, tree) == expected


def _state(yard: Yard, tree: Supervisor) -> str:
    return str(root_row(yard, tree)["state"])


# --- ends -------------------------------------------------------------------------------------------------------------


# sup_stop_race: children that die by themselves while their supervisor ends are not started again
def test_children_that_die_while_their_supervisor_ends(yard: Yard) -> None:
    for strategy in STRATEGIES:
        tree = yard.start(*(server(f"c{number}") for number in range(4)), trapping("last"), strategy=strategy)
        children = pids(tree)
        monitors = watch(yard, *children.values(), tree.pid)
        call(yard, children["last"], "value", 1)
        athena.cast(children["last"], ["sleep", 0.2], supervisor=yard.at)
        stopper = threading.Thread(target=tree.stop, args=["because"])
        stopper.start()
        wait_until(lambda tree=tree: _state(yard, tree) == "ending a child", CHILD_S)  # type: ignore[misc]
        for number in range(4):
            end(yard, children[f"c{number}"], "killed")
        stopper.join(LONG_S)
        assert reasons(monitors) == [*["killed"] * 4, "shutdown", "because"]


# sup_stop_non_shutdown_exit_dynamic: what a child ends with does not matter to who ends it
@pytest.mark.parametrize("how", ["raise", "exit"])
def test_a_child_that_fails_to_terminate_delays_nobody(yard: Yard, how: str) -> None:
    bad = ChildSpec("bad", "tests.server_children:BadEnd", args=[str(yard.directory / "notes"), how], shutdown=5)
    for tree in (yard.start(server("a"), bad, server("b")), yard.start_dynamic()):
        if isinstance(tree, DynamicSupervisor):
            start_child(tree, bad)
        monitors = watch(yard, tree.pid)
        tree.stop("because")
        assert reasons(monitors) == ["because"]


# faulty_application_shutdown: a child that waits for who waits for it
def test_a_child_that_asks_its_supervisor_while_that_ends_it_is_killed(yard: Yard) -> None:
    args = ["asked"]
    asking = ChildSpec("asking", "tests.otp_suite_servers:AsksAtTheEnd", args=args, shutdown=0.4)
    tree = yard.start(server("a"), asking, name="asked")
    old = pids(tree)
    monitors = watch(yard, old["asking"], old["a"])
    tree.terminate_child("asking")
    assert monitors[0].wait(LONG_S).reason == "killed"  # type: ignore[union-attr]
    assert pid(tree, "a") == old["a"]
    tree.restart_child("asking")
    tree.stop()
    assert reasons(monitors[1:]) == ["shutdown"]


def test_a_child_that_asks_its_supervisor_while_that_starts_it_does_not_start(yard: Yard) -> None:
    asking = ChildSpec("x", "tests.otp_suite_servers:AsksAtTheStart", args=["asked"], start_timeout=0.4, name="x")
    tree = yard.start(server("a"), name="asked")
    with pytest.raises(StartError) as raised:
        tree.start_child(asking)
    assert raised.value.reason == "timeout"
    assert athena.whereis("x", supervisor=yard.at) is None
    assert list(pids(tree)) == ["a"]


# --- programs and subtrees --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("argv", "left"), [(["true"], [1, 0, 0, 1]), (["sh", "-c", "exit 0"], [1, 0, 0, 1])])
def test_a_transient_program_that_succeeds_is_kept_down(yard: Yard, argv: list[str], left: list[int]) -> None:
    tree = yard.start(ChildSpec("p", argv, restart="transient"))
    wait_until(lambda: counts(tree) == left, CHILD_S)
    assert stamps(yard, tree) == 0


def test_a_transient_program_that_fails_is_started_until_the_limit(yard: Yard) -> None:
    tree = yard.start(ChildSpec("p", ["false"], restart="transient"), max_restarts=3, max_seconds=3600)
    wait_gone(tree)


# a supervisor that is killed: its parent starts the whole of it again
def test_a_killed_supervisor_takes_all_below_and_is_started_again(yard: Yard) -> None:
    below = [server("plain", name="plain"), trapping("trapping", name="trapping")]
    root = yard.start(Supervisor.child_spec(below, id="inner", name="inner"), server("other"))
    other, inner = pid(root, "other"), pid(root, "inner")
    monitors = watch(yard, inner, "plain", "trapping")
    athena.exit(inner, "kill", supervisor=yard.at)
    assert reasons(monitors)[:2] == ["killed", "killed"]
    wait_until(lambda: all(athena.whereis(name, supervisor=yard.at) for name in ("plain", "trapping")), CHILD_S)
    assert pid(root, "inner") != inner
    assert pid(root, "other") == other


# ED restarting children are counted and shown, also those that are killed from outside one after another
def test_a_dynamic_supervisor_survives_kills_of_all_its_children(yard: Yard) -> None:
    tree = yard.start_dynamic(max_restarts=1000, max_seconds=1)
    children = [start_child(tree, ChildSpec("c", ["sleep", "1000"])) for _ in range(10)]
    for child in children:
        os.kill(int(child), signal.SIGKILL)

    def all_new() -> bool:
        rows = [row.pid for row in tree.which_children()]
        return len(rows) == 10 and all(isinstance(one, Pid) and one not in children for one in rows)

    wait_until(all_new, CHILD_S)
    assert counts(tree) == [10, 10, 0, 10]
