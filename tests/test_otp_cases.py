"""Cases of otp-cases.md that no other file has with real processes. ``tests/otp_table.py`` says where each is."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import athena
from athena import ChildSpec, DynamicSupervisor, Ignored, Pid
from athena.errors import (
    AlreadyPresent,
    AlreadyStarted,
    CallTimeout,
    InvalidSpec,
    NoProcess,
    Restarting,
    StartError,
)
from tests.helpers import TIME_UNIT, wait_until
from tests.otp_invariants import Invariants, info, processes_below, sizes
from tests.otp_processes import call, end, is_alive, reasons, server, started_pid, trapping, watch
from tests.otp_table import CASES, PUBLIC_HALF, RULES
from tests.session_fixtures import is_gone
from tests.tree_fixtures import CHILD_S, Yard, counts, pid, pids, shared, start_child, wait_new, yard

__all__ = ["shared", "yard"]

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ENDS = ("killed", "normal", "died", "terminate_child")

# --- the table --------------------------------------------------------------------------------------------------------


def test_every_public_case_has_a_test() -> None:
    assert list(CASES) == PUBLIC_HALF.split()


@pytest.mark.parametrize("name", [*CASES, *RULES])
def test_the_tests_that_the_table_names_are_there(name: str) -> None:
    for reference in {**CASES, **RULES}[name].split():
        file, test = reference.split("::")
        assert f"def test_{test}(" in (HERE / f"test_{file}.py").read_text(), reference


def test_the_invariants_see_what_is_left(yard: Yard) -> None:
    """The check of all other tests: what it looks at must be there to be seen."""
    invariants = Invariants(yard.at)
    invariants.begin()
    tree = yard.start(server("a", name="left"), yard.spec("b"), ChildSpec("c", ["sleep", "1000"]))
    below = set(processes_below(info(yard.at)["pid"])) - invariants.below_before
    assert below == {int(one) for one in pids(tree).values()}
    now = sizes(yard.at)
    assert (now["names"], now["processes"]) == (
        invariants.sizes_before["names"] + 1,
        invariants.sizes_before["processes"] + 4,
    )
    invariants.look_at(yard.trees)
    assert [witness.name for witness in invariants.witnesses] == [None, "left", None, None]
    tree.stop()
    invariants.at_rest()


# --- A: start -----------------------------------------------------------------------------------------------------


def test_a05_a_failed_start_leaves_no_exit_behind(yard: Yard) -> None:
    for specs in ([server("a"), server("b", ["refuse", "found"])], [server("a"), server("a")]):
        with pytest.raises(StartError):
            yard.start(*specs, name="a05")
        assert athena.whereis("a05", supervisor=yard.at) is None
    with pytest.raises(CallTimeout):
        athena.receive(0.05, supervisor=yard.at)


@pytest.mark.parametrize("kind", ["static", "simple", "dynamic"])
@pytest.mark.parametrize(
    ("order", "reason"), [(["refuse", "found"], "found"), (["exit", 3], {"exit": 3}), (["nonsense"], None)]
)
def test_a06_g03_a_start_error_carries_the_spec_only_under_a_static_supervisor(
    yard: Yard, kind: str, order: Any, reason: Any
) -> None:
    spec = (
        server("c1", order) if reason else ChildSpec("c1", "tests.server_children:Noted", args=["/dev/null", "number"])
    )
    match kind:
        case "static":
            tree: Any = yard.start()
        case "simple":
            template = ChildSpec("c1", spec.start, args=[] if reason else spec.args)
            tree = yard.start(template, strategy="simple_one_for_one")
        case _:
            tree = yard.start_dynamic()
    with pytest.raises(StartError) as raised:
        tree.start_child([order] if kind == "simple" and reason else [] if kind == "simple" else spec)
    assert raised.value.reason == (reason or {"bad_return_value": 7})
    assert (raised.value.spec or {}).get("id") == ("c1" if kind == "static" else None)
    assert tree.which_children() == []


def test_g03_what_a_start_may_come_to_under_a_dynamic_supervisor(yard: Yard) -> None:
    tree = yard.start_dynamic()
    assert getattr(tree.start_child(server("ok")), "info", ...) is None
    assert getattr(tree.start_child(server("info", ["ready", {"x": 1}])), "info", ...) == {"x": 1}
    assert tree.start_child(server("ignore", ["ignore"])) == Ignored()
    with pytest.raises(StartError) as raised:
        tree.start_child(server("raises", ["fail", "oops"]))
    error = raised.value.reason["error"]
    assert (error["type"], error["message"]) == ("ValueError", "oops")
    assert "process_servers.py" in error["traceback"]
    assert counts(tree) == [2, 2, 0, 2]


@pytest.mark.parametrize("kind", ["simple", "under never"])
def test_f08_combinations_that_make_no_sense(yard: Yard, kind: str) -> None:
    if kind == "simple":
        for mode in ("any_significant", "all_significant"):
            with pytest.raises(StartError) as raised:
                yard.start(server("t"), strategy="simple_one_for_one", auto_shutdown=mode)
            assert set(raised.value.reason["supervisor_data"]) == {"bad_combination"}
        return
    tree = yard.start()
    with pytest.raises(InvalidSpec) as refused:
        tree.start_child(server("s", restart="transient", significant=True))
    assert refused.value.tag == "bad_combination"
    assert tree.which_children() == []


# --- B, C: what is left of a child --------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
@pytest.mark.parametrize("how", ENDS)
def test_b09_what_start_child_of_the_same_id_answers(yard: Yard, strategy: str, how: str) -> None:
    kinds = ("permanent", "transient", "temporary")
    for restart in kinds:
        tree = yard.start(server("c", restart=restart), strategy=strategy)
        old = pid(tree, "c")
        (monitor,) = watch(yard, old)
        if how == "terminate_child":
            tree.terminate_child("c")
        else:
            end(yard, old, how)
        assert reasons([monitor]) == ["shutdown" if how == "terminate_child" else how]
        is_back = restart == "permanent" or (restart == "transient" and how != "normal")
        if restart == "temporary":
            wait_until(lambda tree=tree: counts(tree) == [0, 0, 0, 0], CHILD_S)  # type: ignore[misc]
            assert started_pid(tree.start_child(server("c", restart=restart))) != old
        elif how == "terminate_child" or not is_back:
            with pytest.raises(AlreadyPresent):
                tree.start_child(server("c", restart=restart))
        else:
            wait_new(tree, "c", old)
            with pytest.raises(AlreadyStarted) as taken:
                tree.start_child(server("c", restart=restart))
            assert taken.value.pid == pid(tree, "c")


@pytest.mark.parametrize("reason", ["shutdown", {"shutdown": "done"}])
def test_c02_c03_a_shutdown_is_a_clean_end(yard: Yard, reason: Any) -> None:
    tree = yard.start(*(server(kind, restart=kind) for kind in ("permanent", "transient", "temporary")))
    before = pids(tree)
    for name in before:
        end(yard, before[name], reason)
    wait_new(tree, "permanent", before["permanent"])
    wait_until(lambda: counts(tree) == [2, 1, 0, 2], CHILD_S)
    assert tree.which_child("transient").pid is None
    tree.start_child(server("temporary", restart="temporary"))
    assert counts(tree) == [3, 2, 0, 3]


# --- D: intensity -------------------------------------------------------------------------------------------------


def test_d01_one_restart_in_one_second_again_and_again(yard: Yard) -> None:
    tree = yard.start(yard.spec("c", shutdown="brutal_kill"), max_restarts=1, max_seconds=1)
    for number in range(1, 5):
        yard.wait_starts("c", number)
        old = pid(tree, "c")
        yard.order("c", "die")
        wait_new(tree, "c", old)
        restarted_at = time.monotonic()  # the supervisor has counted it before, however late on a busy machine
        if number < 4:
            wait_until(lambda since=restarted_at: time.monotonic() - since >= 2.1, 30)  # type: ignore[misc]
    assert counts(tree) == [1, 1, 0, 1]


def test_d02_d10_who_gives_up_exits_shutdown(yard: Yard) -> None:
    trees: list[Any] = [yard.start(server("c"), max_restarts=0), yard.start_dynamic(max_restarts=0)]
    simple = yard.start(server("t"), strategy="simple_one_for_one", max_restarts=0)
    children = [pid(trees[0], "c"), start_child(trees[1], server("c")), start_child(simple, [])]
    monitors = watch(yard, *(tree.pid for tree in (*trees, simple)))
    for child in children:
        end(yard, child)
    assert reasons(monitors) == ["shutdown"] * 3


def test_d15_a_cancelled_loop_is_started_again_by_hand(yard: Yard) -> None:
    tree = yard.start(yard.switch("a"), max_restarts=50, max_seconds=10)
    yard.wait_starts("a", 1)
    yard.set_flag(0.1)
    yard.order("a", "die")
    wait_until(lambda: tree.which_child("a").pid == "restarting", CHILD_S)
    for refused in (lambda: tree.restart_child("a"), lambda: tree.delete_child("a")):
        with pytest.raises(Restarting):
            refused()
    with pytest.raises(AlreadyPresent):
        tree.start_child(yard.switch("a"))
    tree.terminate_child("a")
    starts = yard.row(tree, "a")["restarts"]
    yard.clear_flag()
    assert counts(tree) == [1, 0, 0, 1]
    assert yard.row(tree, "a")["restarts"] == starts, "the loop has ended"
    tree.restart_child("a")
    yard.wait_starts("a", 2)


# --- E: ends ------------------------------------------------------------------------------------------------------


def test_e01_stop_kills_who_does_not_end_in_time(yard: Yard) -> None:
    tree = yard.start(trapping("c1"), trapping("c2", shutdown=0.3))
    call(yard, pid(tree, "c2"), "value", 1)
    athena.cast(pid(tree, "c2"), ["sleep", 200], supervisor=yard.at)
    monitors = watch(yard, *pids(tree).values())
    tree.stop()
    assert reasons(monitors) == ["shutdown", "killed"]


def test_e02_stop_with_brutal_kill(yard: Yard) -> None:
    tree = yard.start(trapping("c1"), trapping("c2", shutdown="brutal_kill"))
    monitors = watch(yard, *pids(tree).values(), tree.pid)
    tree.stop("because")
    assert reasons(monitors) == ["shutdown", "killed", "because"]


@pytest.mark.parametrize(("linger_s", "at_least_s"), [(0.5, 0.5), (2.5, 1.0)])
def test_e06_instances_of_simple_one_for_one_end_at_once(yard: Yard, linger_s: float, at_least_s: float) -> None:
    template = yard.spec("t", kwargs={"linger_s": linger_s})
    tree = yard.start(replace(template, args=[str(yard.directory)]), strategy="simple_one_for_one")
    for name in ("x", "y", "z"):
        start_child(tree, [name])
    for name in ("x", "y", "z"):
        yard.wait_starts(name, 1)
    began = time.monotonic()
    tree.stop()
    assert at_least_s - 0.05 <= time.monotonic() - began < 2.5 * TIME_UNIT


# --- F: significant children --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["never", "any_significant", "all_significant"])
def test_f01_a_child_that_is_not_significant_never_ends_its_supervisor(yard: Yard, mode: str) -> None:
    names = [(restart, how) for restart in ("temporary", "transient") for how in ENDS]
    tree = yard.start(*(server(f"{kind} {how}", restart=kind) for kind, how in names), auto_shutdown=mode)
    monitors = watch(yard, tree.pid)
    for (_, how), (name, child) in zip(names, pids(tree).items(), strict=True):
        ended = watch(yard, child)
        tree.terminate_child(name) if how == "terminate_child" else end(yard, child, how)
        reasons(ended)
    # Whatever follows from the last end has followed when the supervisor has answered.
    wait_until(lambda: counts(tree) == [4, 2, 0, 4], CHILD_S)
    assert is_alive(yard, tree.pid)
    assert monitors[0].demonitor()


@pytest.mark.parametrize("how", ["killed", "died", "normal"])
def test_f02_all_of_a_significant_temporary_childs_siblings_end(yard: Yard, how: str) -> None:
    tree = yard.start(
        server("a"), server("s", restart="temporary", significant=True), server("b"), auto_shutdown="any_significant"
    )
    children = pids(tree)
    monitors = watch(yard, *children.values(), tree.pid)
    end(yard, children["s"], how)
    assert reasons(monitors) == ["shutdown", how, "shutdown", "shutdown"]


# --- G: dynamic supervisors ---------------------------------------------------------------------------------------


def test_g01_defaults_of_a_dynamic_supervisor(yard: Yard) -> None:
    tree = yard.start_dynamic()
    children = [start_child(tree, server("c")) for _ in range(40)]  # there is no cap
    monitors = watch(yard, tree.pid)
    for _ in range(3):
        old = children.pop()
        ended = watch(yard, old)
        end(yard, old)
        reasons(ended)
        wait_until(lambda: counts(tree) == [40, 40, 0, 40], CHILD_S)
    end(yard, children.pop())  # the fourth in 5 s
    assert reasons(monitors) == ["shutdown"]


def test_g09_reasons_of_children_that_are_terminated(yard: Yard) -> None:
    tree = yard.start_dynamic()
    for shutdown, reason in (("brutal_kill", "killed"), (1, "shutdown")):
        child = start_child(tree, trapping("c", shutdown=shutdown))
        monitors = watch(yard, child)
        tree.terminate_child(child)
        assert is_gone(int(child))
        assert reasons(monitors) == [reason]


# --- H: servers ---------------------------------------------------------------------------------------------------


def test_h06_the_supervisor_of_a_call_may_be_gone(yard: Yard) -> None:
    nowhere = Pid(4_000_000, 7, "another-supervisor")
    with pytest.raises(NoProcess):
        call(yard, nowhere, "value", 1)
    athena.cast(nowhere, ["x"], supervisor=yard.at)
    with pytest.raises(NoProcess):
        athena.stop(nowhere, supervisor=yard.at)


def test_h01_a_server_whose_init_takes_too_long_leaves_no_process_and_no_name(yard: Yard) -> None:
    tree = yard.start()
    for _ in range(2):
        with pytest.raises(StartError) as raised:
            tree.start_child(server("late", ["sleep", 30], name="late", start_timeout=0.1))
        assert raised.value.reason == "timeout"
        assert athena.whereis("late", supervisor=yard.at) is None
    assert started_pid(tree.start_child(server("late", name="late", start_timeout=20)))


# --- I: signals ---------------------------------------------------------------------------------------------------


def test_i02_demonitor_of_another_processs_reference_is_an_error(yard: Yard) -> None:
    tree = yard.start(server("one"), server("watcher"))
    one, watcher = pids(tree).values()
    mine = athena.monitor(one, supervisor=yard.at)
    ref = call(yard, watcher, "monitor", one.to_map())
    assert ref != mine.ref
    with pytest.raises(athena.errors.InvalidOption):
        yard.at.pool.call("demonitor", {"ref": ref}, b"", CHILD_S)
    athena.stop(one, "frop", supervisor=yard.at)
    assert reasons([mine]) == ["frop"]
    wait_until(lambda: call(yard, watcher, "notes") == [["down", ref, one.serial, "frop"]], CHILD_S)


def test_i07_a_watcher_that_dies_leaves_no_monitor(yard: Yard) -> None:
    tree = yard.start(server("one"), server("watcher", restart="temporary"))
    one, watcher = pids(tree).values()
    before = sizes(yard.at)["monitors"]
    for _ in range(50):
        call(yard, watcher, "monitor", one.to_map())
    end(yard, watcher, "killed")
    wait_until(lambda: sizes(yard.at)["monitors"] == before, CHILD_S)
    assert call(yard, one, "value", 1) == 1


def test_i08_a_tree_survives_what_is_linked_to_it(yard: Yard) -> None:
    """A supervisor traps exits, and those of strangers mean nothing to it (otp.md 17)."""
    tree = yard.start(server("one"))
    other = yard.start(server("peer", restart="temporary"))
    call(yard, pid(other, "peer"), "link", tree.pid.to_map())
    athena.exit(tree.pid, "shutdown", supervisor=yard.at)
    end(yard, pid(other, "peer"), "died")
    wait_until(lambda: other.which_children() == [], CHILD_S)
    assert counts(tree) == [1, 1, 0, 1]
    monitors = watch(yard, tree.pid)
    athena.exit(tree.pid, "kill", supervisor=yard.at)
    assert reasons(monitors) == ["killed"]
    with pytest.raises(NoProcess):
        tree.which_children()


def test_g04_max_children_of_0_refuses_everything(yard: Yard) -> None:
    tree = yard.start_dynamic(max_children=0)
    assert isinstance(tree, DynamicSupervisor)
    with pytest.raises(athena.errors.MaxChildren):
        tree.start_child(server("c"))
    assert yard.starts() == []
