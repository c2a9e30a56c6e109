"""Supervision trees over real processes: who is restarted, in which order things end, and that nothing is left.

The cases in the names are those of otp-cases.md.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from athena import ChildSpec, Pid, Supervisor, proctree
from athena.config import default_paths
from athena.errors import AlreadyPresent, NotFound, Restarting, StartError
from athena.supervisors import EmbeddedSupervisor
from athena.trees import TreeHandle, list_trees
from tests.helpers import TIME_UNIT, wait_until
from tests.session_fixtures import (
    Program,
    background,
    daemon,
    guard_pid,
    is_gone,
    kill_pid,
    own_supervisor,
    program,
    supervisor_pid,
    wait_nothing_below,
)
from tests.tree_fixtures import CHILD_S, Yard, counts, pid, pids, shared, start_child, wait_gone, wait_new, yard

__all__ = ["background", "daemon", "own_supervisor", "program", "shared", "yard"]

# --- restart types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [("stop", "normal"), ("exit 3", {"exit": 3}), ("kill", "killed"), ("segfault", {"signal": "SIGSEGV"})],
)
def test_c01_a_permanent_child_is_restarted_whatever_it_ends_with(yard: Yard, words: str, reason: object) -> None:
    tree = yard.start(yard.spec("a"))
    old = pid(tree, "a")
    yard.order("a", words)
    assert wait_new(tree, "a", old) != old
    assert counts(tree) == [1, 1, 0, 1]
    row = yard.row(tree, "a")
    assert (row["restarts"], row["last_reason"], row["state"]) == (1, reason, "running")


def test_c01_the_reason_of_an_error_says_what_it_was(yard: Yard) -> None:
    tree = yard.start(yard.spec("a"))
    yard.order("a", "die")
    wait_new(tree, "a", pid(tree, "a"))
    error = yard.row(tree, "a")["last_reason"]["error"]
    assert (error["type"], error["message"]) == ("RuntimeError", "died")
    assert "tree_children.py" in error["traceback"]


def test_c02_a_transient_child_is_restarted_only_after_an_abnormal_end(yard: Yard) -> None:
    tree = yard.start(yard.spec("a", restart="transient"))
    yard.order("a", "die")
    wait_new(tree, "a", pid(tree, "a"))
    yard.order("a", "stop")
    wait_until(lambda: tree.which_child("a").pid is None, CHILD_S)
    assert counts(tree) == [1, 0, 0, 1]


@pytest.mark.parametrize("words", ["stop", "die", "kill"])
def test_c03_a_temporary_child_is_gone_with_its_spec(yard: Yard, words: str) -> None:
    tree = yard.start(yard.spec("a", restart="temporary"))
    yard.order("a", words)
    wait_until(lambda: counts(tree) == [0, 0, 0, 0], CHILD_S)
    tree.start_child(yard.spec("a", restart="temporary"))
    assert counts(tree) == [1, 1, 0, 1]


def test_an_end_by_sigterm_from_outside_is_a_shutdown(yard: Yard) -> None:
    tree = yard.start(yard.spec("a", restart="transient"), ChildSpec("p", ["sleep", "1000"], restart="transient"))
    for name in ("a", "p"):
        os.kill(pid(tree, name), signal.SIGTERM)
    wait_until(lambda: counts(tree) == [2, 0, 0, 2], CHILD_S)
    assert yard.row(tree, "a")["last_reason"] == yard.row(tree, "p")["last_reason"] == "shutdown"


# --- strategies and intensity -----------------------------------------------------------------------------------------


def test_d02_one_for_one(yard: Yard) -> None:
    tree = yard.start(yard.spec("c1"), yard.spec("c2"), max_restarts=2)
    first = pids(tree)
    for _ in range(2):
        old = pid(tree, "c1")
        yard.order("c1", "die")
        wait_new(tree, "c1", old)
        assert pid(tree, "c2") == first["c2"]
        assert counts(tree) == [2, 2, 0, 2]
    yard.order("c1", "die")
    wait_gone(tree)
    wait_until(lambda: is_gone(first["c2"]), CHILD_S)


def test_d06_one_for_all(yard: Yard) -> None:
    tree = yard.start(yard.spec("c1"), yard.spec("c2"), strategy="one_for_all", max_restarts=2)
    for started in (2, 3):
        old = pids(tree)
        yard.order("c1", "die")
        wait_new(tree, "c1", old["c1"])
        wait_new(tree, "c2", old["c2"])
        assert counts(tree) == [2, 2, 0, 2]
        assert (pid(tree, "c1").serial or 0) < (pid(tree, "c2").serial or 0)
        for name in ("c1", "c2"):  # one that is killed before it has written anything would not be counted
            yard.wait_starts(name, started)
    assert sorted(yard.starts()) == ["c1"] * 3 + ["c2"] * 3
    yard.order("c2", "die")
    wait_gone(tree)


def test_d08_rest_for_one(yard: Yard) -> None:
    specs = [yard.spec(name) for name in ("c1", "c2", "c3")]
    tree = yard.start(*specs, strategy="rest_for_one", max_restarts=2)
    old = pids(tree)
    yard.order("c2", "die")
    wait_new(tree, "c2", old["c2"])
    wait_new(tree, "c3", old["c3"])
    assert pid(tree, "c1") == old["c1"]
    assert counts(tree) == [3, 3, 0, 3]
    for count in (2, 3):
        yard.wait_starts("c2", count)
        yard.order("c2", "die")
    wait_gone(tree)


def test_d10_simple_one_for_one(yard: Yard) -> None:
    template = ChildSpec("t", "tests.tree_children:serve", args=[str(yard.directory)])
    tree = yard.start(template, strategy="simple_one_for_one", max_restarts=2)
    start_child(tree, ["one"])
    two = start_child(tree, ["two"])
    for count in (2, 3):
        yard.order("one", "die")
        yard.wait_starts("one", count)
        assert counts(tree) == [1, 2, 0, 2]
        assert two in [row.pid for row in tree.which_children()]
    yard.order("one", "die")
    wait_gone(tree)


def test_d12_order_of_restarts_and_of_the_end(yard: Yard) -> None:
    names = ["e", "b", "d", "a", "c"]
    specs = [yard.spec(name, kwargs={"linger_s": 0}) for name in names]
    tree = yard.start(*specs, strategy="rest_for_one")
    assert list(pids(tree)) == names
    for name in names:
        yard.wait_starts(name, 1)
    old = pid(tree, "c")
    yard.order("d", "die")
    wait_new(tree, "c", old)
    yard.wait_starts("c", 2)
    assert sorted(names, key=lambda name: pid(tree, name).serial or 0) == names  # "d", "a" and "c" in this order again
    assert (sorted(yard.starts()), yard.ends()) == (sorted([*names, "d", "a", "c"]), ["c", "a"])
    tree.stop()
    assert yard.ends()[2:] == list(reversed(names))


def test_d13_a_tree_of_supervisors(yard: Yard) -> None:
    def below(name: str, **fields: Any) -> dict[str, Any]:
        return Supervisor.child_spec([yard.spec(f"{name}-1"), yard.spec(f"{name}-2")], id=name, name=name, **fields)

    root = yard.start(below("s1"), below("s2"), below("s3", restart="transient"), strategy="one_for_all")
    subtrees = {name: Supervisor.attach(name, supervisor=yard.at) for name in ("s1", "s2", "s3")}
    before = {name: pids(tree) for name, tree in subtrees.items()}
    root.terminate_child("s3")
    assert all(is_gone(one) for one in before["s3"].values())
    yard.order("s2-1", "die")
    wait_new(subtrees["s2"], "s2-1", before["s2"]["s2-1"])
    assert pid(subtrees["s2"], "s2-2") == before["s2"]["s2-2"]
    assert pids(subtrees["s1"]) == before["s1"]
    assert counts(root) == [3, 2, 3, 0]


def test_a_nested_supervisor_that_gives_up_is_restarted_by_its_parent_with_new_children(yard: Yard) -> None:
    inner = Supervisor.child_spec([yard.spec("w")], id="inner", name="inner", max_restarts=0)
    root = yard.start(inner)
    first = Supervisor.attach("inner", supervisor=yard.at)
    old = pid(first, "w")
    yard.order("w", "die")
    wait_gone(first)
    wait_until(lambda: isinstance(root.which_child("inner").pid, Pid), CHILD_S)
    second = Supervisor.attach("inner", supervisor=yard.at)
    assert second.pid.serial != first.pid.serial
    assert pid(second, "w").serial != old.serial
    assert yard.row(root, "inner")["last_reason"] == "shutdown"


@pytest.mark.slow
def test_d15_a_loop_of_failing_restarts_can_be_looked_at_and_ended(yard: Yard) -> None:
    tree = yard.start(yard.switch("a"), max_restarts=8, max_seconds=10)
    yard.set_flag(0.6)
    yard.order("a", "die")
    wait_until(lambda: tree.which_child("a").pid == "restarting", CHILD_S)
    assert counts(tree) == [1, 0, 0, 1]
    with pytest.raises(AlreadyPresent):
        tree.start_child(yard.switch("a"))
    with pytest.raises(Restarting):
        tree.restart_child("a")
    with pytest.raises(Restarting):
        tree.delete_child("a")
    tree.terminate_child("a")
    assert tree.which_child("a").pid is None
    with pytest.raises(StartError):
        tree.restart_child("a")
    yard.clear_flag()
    tree.restart_child("a")
    assert counts(tree) == [1, 1, 0, 1]


@pytest.mark.parametrize("limit", [1, 10])
def test_g07_restarts_that_always_fail_end_the_supervisor(yard: Yard, limit: int) -> None:
    tree = yard.start_dynamic(max_restarts=limit)
    tree.start_child(yard.switch("a"))
    yard.wait_starts("a", 1)
    yard.set_flag()
    yard.order("a", "die")
    wait_gone(tree)


def test_g07_one_failed_attempt_within_the_limit_is_survived(yard: Yard) -> None:
    tree = yard.start_dynamic(max_restarts=100, max_seconds=1)
    tree.start_child(yard.switch("a"))
    yard.wait_starts("a", 1)
    yard.set_flag(0.2)
    yard.order("a", "die")
    wait_until(lambda: [row.pid for row in tree.which_children()] == ["restarting"], CHILD_S)
    yard.clear_flag()
    yard.wait_starts("a", 2)
    assert counts(tree) == [1, 1, 0, 1]


# --- how things end ---------------------------------------------------------------------------------------------------


def test_e01_who_does_not_end_in_time_is_killed(yard: Yard) -> None:
    tree = yard.start(yard.spec("c1"), yard.spec("c2", shutdown=0.3, kwargs={"deaf": True}))
    both = pids(tree)
    yard.wait_starts("c2", 1)
    for name, reason in (("c1", "shutdown"), ("c2", "killed")):
        tree.terminate_child(name)
        assert yard.row(tree, name)["last_reason"] == reason
        assert is_gone(both[name])
    tree.restart_child("c2")
    yard.wait_starts("c2", 2)
    last = pid(tree, "c2")
    began = time.monotonic()
    tree.stop()
    assert time.monotonic() - began >= 0.3
    assert is_gone(last)


@pytest.mark.parametrize("kind", ["function", "program"])
def test_e02_brutal_kill_and_a_shutdown_of_zero(yard: Yard, kind: str) -> None:
    def spec(name: str, shutdown: object) -> ChildSpec:
        if kind == "function":
            return yard.spec(name, shutdown=shutdown)
        return ChildSpec(name, ["sleep", "1000"], shutdown=shutdown)  # type: ignore[arg-type]  # what it takes

    tree = yard.start(spec("b", "brutal_kill"), spec("p", 1), spec("i", "infinity"))
    for name, reason in (("b", "killed"), ("p", "shutdown"), ("i", "shutdown")):
        tree.terminate_child(name)
        assert yard.row(tree, name)["last_reason"] == reason


def test_a_stopped_process_ends_too(yard: Yard) -> None:
    tree = yard.start(yard.spec("a"))
    frozen = pid(tree, "a")
    os.kill(frozen, signal.SIGSTOP)
    tree.terminate_child("a")
    assert is_gone(frozen)
    assert yard.row(tree, "a")["last_reason"] == "shutdown"


def test_e06_children_of_a_dynamic_supervisor_end_at_once_and_not_one_after_another(yard: Yard) -> None:
    tree = yard.start_dynamic()
    for name, linger_s in (("x", 0.4), ("y", 0.4), ("z", 60)):
        tree.start_child(yard.spec(name, shutdown=1, kwargs={"linger_s": linger_s}))
        yard.wait_starts(name, 1)
    began = time.monotonic()
    tree.stop()
    assert 0.9 <= time.monotonic() - began < 2.0 * TIME_UNIT + 1


def test_g09_terminate_child_of_a_dynamic_supervisor(yard: Yard) -> None:
    tree = yard.start_dynamic()
    for shutdown in ("brutal_kill", 1):
        child = start_child(tree, yard.spec("a", shutdown=shutdown))
        tree.terminate_child(child)
        assert is_gone(child)
        with pytest.raises(NotFound):
            tree.terminate_child(child)


def test_the_kill_of_a_supervisor_is_over_when_all_below_it_is(yard: Yard) -> None:
    deepest = Supervisor.child_spec([yard.spec("x"), yard.spec("y", kwargs={"linger_s": 0.3})], id="deepest")
    inner = Supervisor.child_spec([yard.spec("w", kwargs={"deaf": True}), deepest], id="i", shutdown="brutal_kill")
    tree = yard.start(inner)
    for name in "wxy":
        yard.wait_starts(name, 1)
    tree.terminate_child("i")
    assert [is_gone(int(line.split()[2])) for line in yard.log() if line.startswith("start ")] == [True] * 3
    assert yard.row(tree, "i")["last_reason"] == "killed"
    tree.restart_child("i")
    assert counts(tree) == [1, 1, 1, 0]


def test_a_supervisor_that_is_killed_while_it_starts_a_child_leaves_nothing_of_it(yard: Yard) -> None:
    inner = Supervisor.child_spec([yard.switch("a")], id="i", shutdown="brutal_kill", max_restarts=5)
    tree = yard.start(inner)
    yard.wait_starts("a", 1)
    yard.set_flag(60)
    yard.order("a", "die")
    wait_until(lambda: yard.row(tree, "i")["state"] == "starting a child", CHILD_S)
    tree.terminate_child("i")
    assert yard.row(tree, "i")["last_reason"] == "killed"
    tree.stop()
    wait_nothing_below(yard.directory)


def test_a_death_is_over_when_the_whole_tree_is(yard: Yard) -> None:
    tree = yard.start(yard.spec("a", function="tests.tree_children:serve_with_orphans"))

    def tools() -> list[int]:
        return [int(line.split()[1]) for line in yard.log() if line.startswith("tool ")]

    wait_until(lambda: len(tools()) == 2, CHILD_S)
    first, old = tools(), pid(tree, "a")
    yard.order("a", "kill")
    wait_new(tree, "a", old)
    assert all(is_gone(one) for one in first)
    wait_until(lambda: len(tools()) == 4, CHILD_S)
    tree.stop()
    assert all(is_gone(one) for one in tools())


# --- significant children ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["kill", "die", "stop"])
def test_f02_a_significant_temporary_child_ends_the_supervisor(yard: Yard, words: str) -> None:
    specs = [yard.spec("s", restart="temporary", significant=True), yard.spec("other")]
    tree = yard.start(*specs, auto_shutdown="any_significant")
    other = pid(tree, "other")
    yard.order("s", words)
    wait_gone(tree)
    wait_until(lambda: is_gone(other), CHILD_S)


def test_f03_all_significant_children_must_have_ended(yard: Yard) -> None:
    specs = [yard.spec(name, restart="transient", significant=True) for name in ("s1", "s2")]
    tree = yard.start(*specs, auto_shutdown="all_significant")
    yard.order("s1", "stop")
    wait_until(lambda: counts(tree) == [2, 1, 0, 2], CHILD_S)
    yard.order("s2", "stop")
    wait_gone(tree)


def test_f04_a_significant_transient_child_that_crashes_is_restarted(yard: Yard) -> None:
    tree = yard.start(yard.spec("s", restart="transient", significant=True), auto_shutdown="any_significant")
    for words in ("kill", "die"):
        old = pid(tree, "s")
        yard.order("s", words)
        wait_new(tree, "s", old)
    yard.order("s", "stop")
    wait_gone(tree)


# --- whose children they are ------------------------------------------------------------------------------------------


def test_a_function_runs_in_the_callers_environment_and_writes_to_its_own_log(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", "mine")
    monkeypatch.chdir(yard.directory)
    fields = {"function": "tests.tree_children:tell", "restart": "temporary"}
    tree = yard.start(
        yard.spec("t1", **fields), yard.spec("t2", env={"MARK": "its own"}, cwd="/", **fields), name="env"
    )
    wait_until(lambda: len(yard.log()) == 2, CHILD_S)
    assert sorted(yard.log()) == [f"t1 env=mine cwd={yard.directory}", "t2 env=its own cwd=/"]
    wait_until(lambda: counts(tree) == [0, 0, 0, 0], CHILD_S)
    assert "said to stdout" in (yard.at._paths.logs / "tree-env.t1.log").read_text()


def test_a_name_is_no_path(yard: Yard) -> None:
    tree = yard.start(yard.spec("../../x", function="tests.tree_children:tell", restart="temporary"), name="../../up")
    wait_until(lambda: counts(tree) == [0, 0, 0, 0], CHILD_S)
    (log,) = [path for path in yard.at._paths.logs.iterdir() if "up" in path.name]
    assert "said to stdout" in log.read_text()


def test_an_error_in_another_thread_ends_the_process(yard: Yard) -> None:
    tree = yard.start(yard.spec("t", function="tests.tree_children:thread_dies", restart="transient"), max_restarts=0)
    wait_gone(tree)


def test_an_async_function_and_a_program_are_children_too(yard: Yard) -> None:
    program = ChildSpec("p", ["sh", "-c", 'echo "start p $$ $1" >> log; exec sleep 1000', "sh"], args=["given"])
    as_mapping = {**program.to_map(), "options": {"cwd": str(yard.directory)}}
    tree = yard.start(yard.spec("f", function="tests.tree_children:serve_async"), as_mapping)
    yard.wait_starts("p", 1)
    yard.wait_starts("f", 1)
    assert [line for line in yard.log() if line.endswith(" given")] == [f"start p {int(pid(tree, 'p'))} given"]
    old = pid(tree, "f")
    yard.order("f", "die")
    wait_new(tree, "f", old)


def test_a_function_that_does_not_get_ready_in_time_is_a_failed_start(yard: Yard) -> None:
    yard.set_flag(60)
    with pytest.raises(StartError) as raised:
        yard.start(yard.spec("first"), yard.switch("late", start_timeout=0.5))
    assert raised.value.reason == {"shutdown": {"failed_to_start_child": ["late", "timeout"]}}
    wait_nothing_below(yard.directory)


LINKED = """
import sys
sys.path.insert(0, {root!r})
from athena import ChildSpec, Supervisor
tree = Supervisor.{how}([ChildSpec("a", ["sleep", "1000"])], name="theirs", supervisor="daemon")
print(int(tree.which_child("a").pid), flush=True)
import time; time.sleep(1000)
"""


def _linked(program: Callable[[str], Program], how: str) -> tuple[Program, int]:
    from athena.environment import ROOT

    client = program(LINKED.format(root=str(ROOT), how=how))
    return client, int(client.line())


def test_a_linked_tree_ends_with_its_program(daemon: Path, program: Callable[[str], Program]) -> None:
    client, child = _linked(program, "start_link")
    client.kill()
    wait_until(lambda: is_gone(child), CHILD_S)
    wait_until(lambda: list_trees(supervisor="daemon") == [], CHILD_S)


def test_an_unlinked_tree_lives_on_in_the_daemon(daemon: Path, program: Callable[[str], Program]) -> None:
    client, child = _linked(program, "start")
    client.kill()
    tree = Supervisor.attach("theirs", supervisor="daemon")
    assert pid(tree, "a") == child
    tree.stop()
    assert is_gone(child)


def test_the_end_of_the_daemon_ends_trees_in_reverse_order(own_supervisor: EmbeddedSupervisor, tmp_path: Path) -> None:
    inner = Supervisor.child_spec([ChildSpec("n", ["sleep", "1000"])], id="inner")
    tree = Supervisor.start_link([ChildSpec("a", ["sleep", "1000"]), inner], supervisor=own_supervisor, name="one")
    Supervisor.start([ChildSpec("b", ["sleep", "1000"])], supervisor=own_supervisor, name="two")
    child = pid(tree, "a")
    own_supervisor.stop()
    assert is_gone(child)
    text = (default_paths().logs / "embedded.log").read_text()
    ends = [line.split("supervisor.branch ")[1] for line in text.splitlines() if " ended reason=" in line]
    assert ends == [f"supervisor {name} ended reason='shutdown'" for name in ("two", "one.inner", "one")]


def test_kill_9_of_the_daemon_leaves_nothing(own_supervisor: EmbeddedSupervisor, tmp_path: Path) -> None:
    yard = Yard(own_supervisor, tmp_path, [])
    deaf = yard.spec("deaf", kwargs={"deaf": True})
    Supervisor.start_link([yard.spec("a"), deaf, ChildSpec("p", ["sleep", "1000"])], supervisor=own_supervisor)
    yard.wait_starts("deaf", 1)
    guard = guard_pid(own_supervisor)
    kill_pid(supervisor_pid(own_supervisor))
    wait_until(lambda: is_gone(guard), CHILD_S)
    wait_nothing_below(tmp_path)


def test_a_function_ends_even_when_guard_and_daemon_are_killed(
    own_supervisor: EmbeddedSupervisor, tmp_path: Path
) -> None:
    yard = Yard(own_supervisor, tmp_path, [])
    tree = Supervisor.start_link([yard.spec("a")], supervisor=own_supervisor)
    child = pid(tree, "a")
    numbers = [guard_pid(own_supervisor), supervisor_pid(own_supervisor)]
    pidfds = [os.pidfd_open(number) for number in numbers]
    for pidfd in pidfds:
        proctree.send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    wait_until(lambda: is_gone(child), CHILD_S)


def test_without_a_zygote_functions_are_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATHENA_LAUNCHER", "plain")
    supervisor = EmbeddedSupervisor()
    try:
        yard = Yard(supervisor, tmp_path, [])
        tree = yard.start(yard.spec("a"))
        old = pid(tree, "a")
        yard.wait_starts("a", 1)
        yard.order("a", "exit 4")
        wait_new(tree, "a", old)
        assert yard.row(tree, "a")["last_reason"] == {"exit": 4}
    finally:
        supervisor.stop()


@pytest.mark.slow
def test_the_end_of_the_daemon_is_bounded_whatever_its_trees_want(tmp_path: Path) -> None:
    supervisor = EmbeddedSupervisor()
    yard = Yard(supervisor, tmp_path, [])
    tree = yard.start(yard.spec("deaf", shutdown="infinity", kwargs={"deaf": True}), yard.spec("a"))
    yard.wait_starts("deaf", 1)
    both = pids(tree)
    began = time.monotonic()
    supervisor.stop(timeout=60)
    assert time.monotonic() - began < 20 * TIME_UNIT
    assert all(is_gone(one) for one in both.values())


@pytest.mark.slow
def test_a_hundred_children_killed_at_once_are_all_back(yard: Yard) -> None:
    pool = yard.start_dynamic(max_restarts=1000, max_seconds=3600)
    for number in range(100):
        start_child(pool, yard.spec(f"c{number}"))
    old = {row.pid for row in pool.which_children()}
    for one in old:
        assert isinstance(one, Pid)
        os.kill(one, signal.SIGKILL)
    wait_until(lambda: _all_new(pool, old), 2 * CHILD_S)
    assert counts(pool) == [100, 100, 0, 100]
    rows = [proctree.stat(one) for one in proctree.children_of(supervisor_pid(yard.at))]
    assert [row for row in rows if row is not None and row.state == "Z"] == []


def _all_new(pool: TreeHandle, old: set[Any]) -> bool:
    rows = [row.pid for row in pool.which_children()]
    return all(isinstance(one, Pid) for one in rows) and old.isdisjoint(rows)
