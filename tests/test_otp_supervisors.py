"""Cases of supervisor_SUITE and Elixir's supervisor_test and dynamic_supervisor_test beyond otp-cases.md.

Each docstring names the upstream test. All with real processes.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

import athena
from athena import ChildSpec, DynamicSupervisor, Ignored, Supervisor
from athena.errors import AlreadyStarted, NotFound, ProcessExited, Running, StartError
from tests.helpers import TIME_UNIT, wait_until
from tests.otp_processes import (
    answer,
    asking,
    call,
    end,
    is_alive,
    noting,
    reasons,
    refuse,
    server,
    stamps,
    started_pid,
    states,
    trapping,
    tries,
    watch,
)
from tests.session_fixtures import is_gone
from tests.tree_fixtures import CHILD_S, Yard, counts, pid, pids, shared, start_child, wait_gone, wait_new, yard

__all__ = ["shared", "yard"]

pytestmark = pytest.mark.slow

# --- starts -----------------------------------------------------------------------------------------------------------


def test_a_taken_name_starts_nothing(yard: Yard) -> None:
    """S: sup_start_link of a registered name."""
    first = yard.start(server("a"), name="taken")
    with pytest.raises(AlreadyStarted) as raised:
        yard.start(noting(yard, "b"), name="taken")
    assert raised.value.pid == first.pid
    assert tries(yard) == []


def test_a_failed_start_ends_what_was_started_in_reverse(yard: Yard) -> None:
    """S: sup_start_fail, start_failure; each child with its own shutdown."""
    specs = [yard.spec(name, shutdown=5, kwargs={"linger_s": 0.1}) for name in ("a", "b")]
    late = yard.switch("c", start_timeout="infinity")
    yard.set_flag(1)
    with pytest.raises(StartError) as raised:
        yard.start(*specs, late, server("d"))
    assert raised.value.reason["shutdown"]["failed_to_start_child"][0] == "c"
    assert yard.ends() == ["b", "a"]


def test_a_failed_start_of_a_nested_supervisor_is_told_by_each_level(yard: Yard) -> None:
    """S: sup_start_error below a supervisor."""
    inner = Supervisor.child_spec([server("leaf", ["refuse", "found"])], id="inner")
    with pytest.raises(StartError) as raised:
        yard.start(server("a"), Supervisor.child_spec([inner], id="outer"))
    leaf = {"shutdown": {"failed_to_start_child": ["leaf", "found"]}}
    middle = {"shutdown": {"failed_to_start_child": ["inner", leaf]}}
    assert raised.value.reason == {"shutdown": {"failed_to_start_child": ["outer", middle]}}


@pytest.mark.parametrize("restart", ["permanent", "transient"])
def test_ignore_on_a_restart_keeps_the_child_without_a_process_and_is_not_tried_again(yard: Yard, restart: str) -> None:
    """S: sup_start_ignore on restart, static."""
    tree = yard.start(asking(yard, "a", restart=restart), server("b"))
    answer(yard, "a", "ignore")
    end(yard, pid(tree, "a"))
    wait_until(lambda: len(tries(yard)) == 2, CHILD_S)
    wait_until(lambda: tree.which_child("a").pid is None, CHILD_S)
    assert (counts(tree), stamps(yard, tree)) == ([2, 1, 0, 2], 1)
    assert tree.restart_child("a") == Ignored()
    answer(yard, "a", "ready", 1)
    assert tree.restart_child("a").info == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["simple", "dynamic"])
def test_ignore_on_a_restart_drops_the_child(yard: Yard, kind: str) -> None:
    """S: simple_one_for_one ignore on restart (28); ED: child is dropped when it ignores on restart."""
    spec = asking(yard, "a")
    if kind == "simple":
        tree: Any = yard.start(spec, strategy="simple_one_for_one")
        one = start_child(tree, [])
    else:
        tree = yard.start_dynamic(max_children=1)
        one = start_child(tree, spec)
    answer(yard, "a", "ignore")
    end(yard, one)
    wait_until(lambda: tree.which_children() == [], CHILD_S)
    assert counts(tree) == [int(kind == "simple"), 0, 0, 0]
    answer(yard, "a", "ready", None)
    start_child(tree, [] if kind == "simple" else spec)  # its slot is free


def test_arguments_of_a_temporary_child_are_not_kept(yard: Yard) -> None:
    """S: dont_save_start_parameters_for_temporary_children."""
    secret = [["note", "x" * 100]]
    tree = yard.start(server("t", *secret, restart="temporary"), server("p", *secret))
    assert tree.get_childspec("t").get("args") is None
    assert tree.get_childspec("p")["args"] == secret


# --- administration ---------------------------------------------------------------------------------------------------


def test_delete_child_of_a_temporary_child(yard: Yard) -> None:
    """S: delete_child of temporary: it runs, or it is not there."""
    tree = yard.start(server("t", restart="temporary"))
    with pytest.raises(Running):
        tree.delete_child("t")
    tree.terminate_child("t")
    for refused in (tree.delete_child, tree.terminate_child, tree.restart_child, tree.get_childspec):
        with pytest.raises(NotFound):
            refused("t")


def test_a_deleted_child_added_again_is_the_last(yard: Yard) -> None:
    """S: child_adm, and the order of otp.md 7."""
    tree = yard.start(server("a"), server("b"), strategy="rest_for_one")
    tree.terminate_child("a")
    tree.delete_child("a")
    tree.start_child(server("a"))
    old = pids(tree)
    assert list(old) == ["b", "a"]
    end(yard, old["b"])
    wait_new(tree, "a", old["a"])
    assert list(pids(tree)) == ["b", "a"]


def test_a_child_that_unlinked_itself_is_supervised_all_the_same(yard: Yard) -> None:
    """S: child_unlink. The tie to a supervisor is no link that a child could undo."""
    tree = yard.start(trapping("a"))
    one = pid(tree, "a")
    call(yard, one, "unlink", tree.pid.to_map())
    end(yard, one)
    again = wait_new(tree, "a", one)
    call(yard, again, "unlink", tree.pid.to_map())
    tree.terminate_child("a")
    assert is_gone(int(again))


def test_a_child_that_dies_while_it_is_terminated_is_not_restarted(yard: Yard) -> None:
    """S: child termination against a crash of the same child; invariant 6."""
    for _ in range(20):
        tree = yard.start(server("a", significant=False), max_restarts=0)
        one = pid(tree, "a")
        athena.cast(one, ["stop", "died"], supervisor=yard.at)
        try:
            tree.terminate_child("a")
        except (ProcessExited, athena.errors.NoProcess):
            wait_gone(tree)  # the crash was first
            continue
        assert tree.which_child("a").pid is None
        assert stamps(yard, tree) == 0
        tree.stop()


def test_a_name_leads_to_the_restarted_child(yard: Yard) -> None:
    """S: simple_global_supervisor: each restart registers anew."""
    tree = yard.start(server("a", name="phoenix"))
    for number in range(3):
        old = pid(tree, "a")
        assert athena.whereis("phoenix", supervisor=yard.at) == old
        call(yard, "phoenix", "note", number)
        end(yard, "phoenix")
        wait_new(tree, "a", old)
        assert call(yard, "phoenix", "notes") == []


# --- strategies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_escalation_ends_all_children(yard: Yard, strategy: str) -> None:
    """S: one_for_one_escalation, one_for_all_escalation, rest_for_one_escalation."""
    tree = yard.start(server("c1"), noting(yard, "c2"), server("c3"), strategy=strategy, max_restarts=4)
    refuse(yard)
    children = pids(tree)
    monitors = watch(yard, tree.pid, children["c1"], children["c3"])
    end(yard, children["c2"])
    assert reasons(monitors) == ["shutdown"] * 3
    assert len(tries(yard)) == 5


@pytest.mark.parametrize("kind", ["simple", "dynamic"])
def test_escalation_of_a_pool(yard: Yard, kind: str) -> None:
    """S: simple_one_for_one_escalation; ED: child triggers maximum restarts."""
    spec = noting(yard, "c")
    if kind == "simple":
        tree: Any = yard.start(spec, strategy="simple_one_for_one", max_restarts=4)
        one, two = (start_child(tree, []) for _ in range(2))
    else:
        tree = yard.start_dynamic(max_restarts=4)
        one, two = (start_child(tree, spec) for _ in range(2))
    refuse(yard)
    monitors = watch(yard, tree.pid, two)
    end(yard, one)
    assert reasons(monitors) == ["shutdown", "shutdown"]
    assert len(tries(yard)) == 2 + 4


def test_escalation_climbs_through_permanent_supervisors(yard: Yard) -> None:
    """S: tree, its last part: limits of 0 all the way up."""
    inner = Supervisor.child_spec([server("w", name="w")], id="inner", max_restarts=0)
    middle = Supervisor.child_spec([server("m", name="m"), inner], id="middle", max_restarts=0)
    root = yard.start(server("r", name="r"), middle, max_restarts=0)
    monitors = watch(yard, root.pid, "m", "r")
    end(yard, athena.whereis("w", supervisor=yard.at))
    assert reasons(monitors) == ["shutdown"] * 3


def test_temporary_siblings_of_a_group_restart_are_gone(yard: Yard) -> None:
    """S: temporary siblings in one_for_all and rest_for_one."""
    for strategy in ("one_for_all", "rest_for_one"):
        specs = [server("t1", restart="temporary"), server("p"), server("t2", restart="temporary"), server("t3")]
        tree = yard.start(*specs, strategy=strategy)
        old = pids(tree)
        monitors = watch(yard, old["t2"])
        end(yard, old["p"])
        wait_new(tree, "t3", old["t3"])
        assert reasons(monitors) == ["shutdown"]
        assert list(pids(tree)) == (["p", "t3"] if strategy == "one_for_all" else ["t1", "p", "t3"])
        assert strategy == "one_for_all" or pid(tree, "t1") == old["t1"]


@pytest.mark.parametrize(
    ("restart", "reason"), [("transient", "normal"), ("temporary", "died"), ("temporary", "killed")]
)
def test_an_end_without_restart_disturbs_no_sibling(yard: Yard, restart: str, reason: str) -> None:
    """S: transient_normal and temporary_abnormal in a group."""
    tree = yard.start(server("a"), server("x", restart=restart), server("b"), strategy="one_for_all")
    old = pids(tree)
    monitors = watch(yard, old["x"])
    end(yard, old["x"], reason)
    reasons(monitors)
    assert (pid(tree, "a"), pid(tree, "b"), stamps(yard, tree)) == (old["a"], old["b"], 0)


def test_siblings_that_crash_while_a_group_is_ended_are_not_counted(yard: Yard) -> None:
    """S: one_for_all_other_child_fails_restart, the half of the ends; invariant 6."""
    tree = yard.start(*(server(f"c{number}") for number in range(8)), strategy="one_for_all", max_restarts=8)
    old = pids(tree)
    for one in old.values():
        end(yard, one)
    for name, one in old.items():
        wait_new(tree, name, one)
    assert 1 <= stamps(yard, tree) <= 8
    assert counts(tree) == [8, 8, 0, 8]


def test_a_loop_of_restarts_of_a_pool_is_cancelled_by_the_old_pid(yard: Yard) -> None:
    """S: hanging_restart_loop_simple; ED: terminates restarting child."""
    template = yard.switch("t", restart="permanent")
    simple = yard.start(template, strategy="simple_one_for_one", max_restarts=10_000)
    dynamic = yard.start_dynamic(max_restarts=10_000)
    pairs = [(simple, start_child(simple, [])), (dynamic, start_child(dynamic, yard.switch("d")))]
    for name in ("t", "d"):
        yard.wait_starts(name, 1)
    yard.set_flag(0.1)
    for (tree, one), name in zip(pairs, ("t", "d"), strict=True):
        yard.order(name, "die")
        wait_until(lambda tree=tree: [row.pid for row in tree.which_children()] == ["restarting"], CHILD_S)  # type: ignore[misc]
        assert counts(tree) == [1, 0, 0, 1]
        tree.terminate_child(one)
        assert tree.which_children() == []


# --- ends -------------------------------------------------------------------------------------------------------------


def test_shutdown_infinity_is_waited_for(yard: Yard) -> None:
    """S: sup_stop_infinity."""
    tree = yard.start(yard.spec("a", shutdown="infinity", kwargs={"linger_s": 1.2}))
    yard.wait_starts("a", 1)
    monitors = watch(yard, pid(tree, "a"))
    began = time.monotonic()
    tree.stop()
    assert time.monotonic() - began >= 1.2
    assert (yard.ends(), reasons(monitors)) == (["a"], ["normal"])


def test_a_supervisor_child_may_be_killed_and_nothing_below_it_stays(yard: Yard) -> None:
    """S: sup_stop_brutal_kill of a supervisor; invariant 10."""
    inner = Supervisor.child_spec([trapping("x", name="x"), server("y", name="y")], id="i", shutdown="brutal_kill")
    tree = yard.start(inner)
    children = [athena.whereis(name, supervisor=yard.at) for name in "xy"]
    tree.terminate_child("i")
    assert all(one is not None and is_gone(int(one)) for one in children)
    assert [athena.whereis(name, supervisor=yard.at) for name in "xy"] == [None, None]


def test_a_hundred_instances_start_and_end(yard: Yard) -> None:
    """S: scale_start_stop_many_children, simple_one_for_one_scale_many_temporary_children."""
    tree = yard.start(server("t", restart="temporary"), strategy="simple_one_for_one")
    children = [started_pid(tree.start_child([])) for _ in range(100)]
    assert counts(tree) == [1, 100, 0, 100]
    for one in children[:50]:
        end(yard, one, "normal")
    wait_until(lambda: counts(tree) == [1, 50, 0, 50], CHILD_S)
    began = time.monotonic()
    tree.stop()
    assert time.monotonic() - began < 5 * TIME_UNIT
    assert all(is_gone(int(one)) for one in children)


# --- significant children ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["any_significant", "all_significant"])
@pytest.mark.parametrize(("restart", "how"), [("temporary", "died"), ("temporary", "normal"), ("transient", "normal")])
def test_significant_matrix(yard: Yard, mode: str, restart: str, how: str) -> None:
    """S: significant_temporary, significant_transient, all_significant and any_significant."""
    specs = [server(name, restart=restart, significant=True) for name in ("s1", "s2")]
    tree = yard.start(*specs, server("other"), auto_shutdown=mode)
    children = pids(tree)
    monitors = watch(yard, *children.values(), tree.pid)
    end(yard, children["s1"], how)
    if mode == "any_significant":
        assert reasons(monitors) == [how, "shutdown", "shutdown", "shutdown"]
        return
    assert reasons(monitors[:1]) == [how]
    assert is_alive(yard, tree.pid)
    assert pid(tree, "other") == children["other"]
    end(yard, children["s2"], how)
    assert reasons(monitors[1:]) == [how, "shutdown", "shutdown"]


def test_the_last_significant_child_that_is_terminated_ends_nothing(yard: Yard) -> None:
    """S: significant_terminate."""
    specs = [server(name, restart="transient", significant=True) for name in ("s1", "s2")]
    tree = yard.start(*specs, server("other"), auto_shutdown="all_significant")
    end(yard, pid(tree, "s1"), "normal")
    wait_until(lambda: states(yard, tree)["s1"] == "stopped", CHILD_S)
    tree.terminate_child("s2")
    assert counts(tree) == [3, 1, 0, 3]
    tree.restart_child("s1")
    monitors = watch(yard, tree.pid)
    end(yard, pid(tree, "s1"), "normal")  # none is left now
    assert reasons(monitors) == ["shutdown"]


@pytest.mark.parametrize("restart", ["transient", "temporary", "permanent"])
def test_automatic_shutdown_climbs_through_significant_supervisors(yard: Yard, restart: str) -> None:
    """S: significant_escalation; a permanent one is restarted instead."""
    leaf = server("leaf", name="leaf", restart="transient", significant=True)
    is_significant = restart != "permanent"
    inner = Supervisor.child_spec(
        [leaf], id="inner", restart=restart, significant=is_significant, auto_shutdown="any_significant"
    )
    root = yard.start(inner, server("other", name="other"), auto_shutdown="any_significant")
    monitors = watch(yard, "leaf", root.pid, "other")
    old = athena.whereis("leaf", supervisor=yard.at)
    end(yard, old, "normal")
    if is_significant:
        assert reasons(monitors) == ["normal", "shutdown", "shutdown"]
        return
    assert reasons(monitors[:1]) == ["normal"]
    wait_until(lambda: athena.whereis("leaf", supervisor=yard.at) not in (None, old), CHILD_S)
    assert is_alive(yard, root.pid)
    assert stamps(yard, root) == 1


def test_ignoring_on_a_restart_is_no_end_of_a_significant_child(yard: Yard) -> None:
    """S: significant_bystander, and otp.md 12: a restart that ignores triggers nothing."""
    spec = asking(yard, "s", restart="transient", significant=True)
    tree = yard.start(spec, server("other"), auto_shutdown="any_significant")
    answer(yard, "s", "ignore")
    end(yard, pid(tree, "s"))
    wait_until(lambda: len(tries(yard)) == 2 and tree.which_child("s").pid is None, CHILD_S)
    assert counts(tree) == [2, 1, 0, 2]


# --- dynamic supervisors ----------------------------------------------------------------------------------------------


def test_a_clean_end_of_a_transient_child_frees_its_slot(yard: Yard) -> None:
    """ED: max_children with transient children."""
    tree = yard.start_dynamic(max_children=1)
    for reason in ("normal", "shutdown", {"shutdown": "x"}):
        one = start_child(tree, server("c", restart="transient"))
        monitors = watch(yard, one)
        end(yard, one, reason)
        reasons(monitors)
        assert counts(tree) == [0, 0, 0, 0]


def test_supervisors_below_a_dynamic_one(yard: Yard) -> None:
    """ED: count_children with supervisors; which_children shows type and modules."""
    tree = yard.start_dynamic()
    tree.start_child(Supervisor.child_spec([server("a", name="a")], id="s"))
    tree.start_child(DynamicSupervisor.child_spec(id="d"))
    tree.start_child(ChildSpec("p", ["sleep", "1000"]))
    assert counts(tree) == [3, 3, 2, 1]
    assert sorted(row.type for row in tree.which_children()) == ["supervisor", "supervisor", "worker"]
    assert {row.id for row in tree.which_children()} == {None}
