"""Dynamic supervisors, OTP's simple_one_for_one and Elixir's: otp.md 9-13, and their named cases of otp-cases.md."""

from __future__ import annotations

from typing import Any

import pytest

from athena.errors import Reason
from supervisor.node_init import dynamic_node, supervisor_node
from supervisor.tree_vocabulary import (
    ByPid,
    ChildInfo,
    DeleteChildCall,
    Exited,
    GetChildSpecCall,
    Ignored,
    ParentExited,
    Refused,
    Reply,
    Report,
    RestartChildCall,
    Retry,
    StartChild,
    StartChildCall,
    Started,
    TerminateChildCall,
    WhichChildCall,
    WhichChildrenCall,
)
from tests.tree_driver import START, Driver, failing, fails_once, first_ok, ok_info, spec

NOT_FOUND = Refused("not_found")
SIMPLE = Refused("simple_one_for_one")


def simple(instances: int = 0, flags: dict[str, Any] | None = None, **template: Any) -> Driver:
    """A simple_one_for_one supervisor that has started, with so many instances."""
    limits = {"strategy": "simple_one_for_one", "max_restarts": 2, "max_seconds": 3600, **(flags or {})}
    driver = Driver(supervisor_node(limits, [spec("t", **template)])).start()
    for _ in range(instances):
        driver.start_child([])
    driver.begin()
    return driver


def dynamic(*children: Any, **flags: Any) -> Driver:
    """A dynamic supervisor that has started, with these children."""
    driver = Driver(dynamic_node({"max_restarts": 2, "max_seconds": 3600, **flags})).start()
    for child in children:
        driver.start_child(child)
    driver.begin()
    return driver


def arguments(driver: Driver) -> list[Any]:
    """Of every start since :meth:`Driver.begin`."""
    return [effect.spec.args for effect in driver.effects if isinstance(effect, StartChild)]


def loses_its_restart(driver: Driver, pid: int) -> Retry:
    """The child dies and its restart fails; the retry is held back."""
    driver.queue.append(driver.end(pid, "died"))
    driver.step()
    driver.step()
    retry = driver.queue.popleft()
    assert isinstance(retry, Retry)
    return retry


# --- both kinds -------------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize(
    "make", [lambda: simple(2), lambda: dynamic(spec("t"), spec("t"))], ids=["simple", "dyn"]
)


@BOTH
def test_it_starts_with_no_children_and_shows_no_ids(make: Any) -> None:
    driver = make()
    assert driver.started == "ok"
    assert driver.which() == [(None, 2), (None, 1)]
    assert driver.node.pids == (1, 2)


@BOTH
def test_d10_one_dies_and_the_other_is_not_disturbed(make: Any) -> None:
    driver = make()
    driver.die("t")
    assert driver.node.pids == (1, 3)
    assert driver.counts()[1:] == [2, 0, 2]
    driver.die("t")
    assert driver.lives()
    driver.die("t")
    assert driver.exit == "shutdown"
    assert driver.ended[-1] == ("t", "shutdown")


@BOTH
def test_children_that_are_restarting_are_keyed_by_their_old_pid(make: Any) -> None:
    driver = make()
    driver.modes["t"] = failing("flag")
    retry = loses_its_restart(driver, 1)
    assert retry.child == 1
    assert driver.call(WhichChildCall, ByPid(1, False)) == ChildInfo(None, "restarting", "worker", ("agents.echo",))
    assert driver.counts()[1:] == [1, 0, 2]
    assert driver.terminate_child(ByPid(1, False)) is None
    driver.begin()
    driver.give(retry)
    assert driver.effects == []
    assert driver.node.pids == (2,)


@BOTH
def test_an_old_retry_is_not_taken_for_the_one_that_is_under_way(make: Any) -> None:
    driver = make()
    driver.modes["t"] = failing("flag")
    old = loses_its_restart(driver, 1)
    driver.queue.append(old)
    driver.step()
    driver.step()
    assert driver.queue.pop() == Retry(1, old.number + 1)
    driver.begin()
    driver.give(old)
    assert driver.effects == []


@BOTH
def test_an_exit_told_again_while_it_restarts_is_ignored(make: Any) -> None:
    driver = make()
    driver.modes["t"] = failing("flag")
    loses_its_restart(driver, 1)
    driver.begin()
    driver.give(Exited(1, "died"))
    assert driver.effects == []


@BOTH
def test_children_that_are_restarting_are_skipped_when_the_node_ends(make: Any) -> None:
    driver = make()
    driver.modes["t"] = failing("flag")
    loses_its_restart(driver, 1)
    driver.give(ParentExited("shutdown"))
    assert driver.trace() == [("start", "t"), ("shutdown", "t")]
    assert driver.exit == "shutdown"


@BOTH
def test_a_retry_that_succeeds_takes_a_new_pid(make: Any) -> None:
    driver = make()
    driver.modes["t"] = fails_once(driver)
    driver.die("t")
    assert driver.counts()[1:] == [2, 0, 2]
    assert driver.node.pids == (1, 3)
    assert driver.node.restarts_in_window(driver.now) == 2


@BOTH
def test_an_ignore_in_a_restart_drops_the_child(make: Any) -> None:
    driver = make()
    driver.modes["t"] = Ignored
    driver.die("t")
    assert driver.node.pids == (1,)
    assert driver.counts()[1] == 1


@BOTH
def test_all_end_at_once(make: Any) -> None:
    driver = make()
    driver.deaf = {"t"}
    driver.give(ParentExited("normal"))
    assert driver.trace() == [("shutdown", "t")] * 2
    assert driver.timers == {1: 1}
    driver.fire()
    assert driver.exit == "normal"
    assert driver.ended == [("t", "killed")] * 2


@pytest.mark.parametrize(
    ("restart", "reason", "left"),
    [
        ("transient", "normal", 0),
        ("transient", {"shutdown": 1}, 0),
        ("temporary", "died", 0),
        ("transient", "died", 1),
        ("permanent", "normal", 1),
    ],
)
def test_c_an_end_without_restart_removes_the_child(restart: str, reason: Reason, left: int) -> None:
    for driver in (simple(1, restart=restart), dynamic(spec("t", restart=restart))):
        driver.die("t", reason)
        assert len(driver.which()) == driver.counts()[1] == left


@pytest.mark.parametrize(("reason", "is_reported"), [({"shutdown": 1}, False), ("normal", True), ("died", True)])
def test_an_explained_shutdown_is_silent_for_permanent_children_too(reason: Reason, is_reported: bool) -> None:
    for driver in (simple(1), dynamic(spec("t"))):
        driver.last_words["t"] = reason
        driver.terminate_child(ByPid(1))
        assert bool(driver.reports()) is is_reported


# --- simple_one_for_one -----------------------------------------------------------------------------------------------


def test_a06_errors_are_not_wrapped_and_an_ignore_is_not_kept() -> None:
    driver = simple()
    driver.modes["t"] = failing("reason")
    assert driver.start_child([]) == Refused("start_failed", "reason")
    driver.modes["t"] = failing({"already_started": 7})
    assert driver.start_child([]) == Refused("already_started", 7)
    driver.modes["t"] = Ignored
    assert driver.start_child([]) == Ignored()
    driver.modes["t"] = ok_info(driver, "info")
    assert driver.start_child([]) == Started(1, "info")
    assert driver.counts() == [1, 1, 0, 1]


def test_arguments_are_appended_and_used_again_in_a_restart() -> None:
    driver = simple(args=["own"])
    driver.start_child(["given", 2])
    driver.die("t")
    assert arguments(driver) == [("own", "given", 2)] * 2
    assert driver.start_child("nonsense") == Refused("badarg", "nonsense")
    assert driver.call(GetChildSpecCall, ByPid(2))["args"] == ["own"]


def test_b05_administration() -> None:
    driver = simple()
    assert driver.counts() == [1, 0, 0, 0]
    driver.start_child([])
    driver.start_child([])
    assert driver.counts() == [1, 2, 0, 2]
    for kind in (TerminateChildCall, RestartChildCall, DeleteChildCall, WhichChildCall):
        assert driver.call(kind, "t") == SIMPLE
    assert driver.call(RestartChildCall, ByPid(1)) == SIMPLE
    assert driver.terminate_child(ByPid(1)) is None
    assert driver.terminate_child(ByPid(1, is_alive=False)) is None, "any dead pid"
    assert driver.terminate_child(ByPid(77, is_alive=False)) is None
    assert driver.terminate_child(ByPid(88)) == NOT_FOUND
    assert driver.counts() == [1, 1, 0, 1]
    assert simple(2, type="supervisor").counts() == [1, 2, 2, 0]


def test_the_template_is_found_by_a_child_a_dead_pid_and_its_own_id() -> None:
    driver = simple(1)
    template = driver.call(GetChildSpecCall, "t")
    assert template["id"] == "t"
    assert driver.call(GetChildSpecCall, ByPid(1)) == template
    assert driver.call(GetChildSpecCall, ByPid(77, is_alive=False)) == template
    assert driver.call(GetChildSpecCall, ByPid(88)) == NOT_FOUND
    assert driver.call(GetChildSpecCall, "other") == NOT_FOUND
    assert driver.call(WhichChildCall, ByPid(1)).pid == 1
    assert driver.call(WhichChildCall, ByPid(77, is_alive=False)) == NOT_FOUND


def test_a_child_that_died_while_the_call_waited_is_a_dead_pid() -> None:
    driver = simple(2, restart="temporary")
    driver.modes["t"] = lambda: None
    driver.give(StartChildCall("s", []), driver.end(1, "died"), TerminateChildCall("t", ByPid(1)))
    driver.finish()
    assert driver.replies["t"] is None


def test_a_child_that_was_terminated_while_the_call_waited_is_a_dead_pid() -> None:
    driver = simple(1)
    driver.deaf = {"t"}
    driver.give(TerminateChildCall("first", ByPid(1)), TerminateChildCall("second", ByPid(1)))
    driver.fire()
    assert driver.replies["first"] is driver.replies["second"] is None


def test_e06_all_share_one_deadline() -> None:
    driver = simple(3, shutdown=2)
    driver.deaf = {"t"}
    driver.stop()
    assert driver.timers == {1: 2}
    driver.die("t", "shutdown")
    driver.die("t", "shutdown")
    driver.fire()
    assert [reason for _, reason in driver.ended] == ["shutdown", "shutdown", "killed"]
    assert driver.exit == "normal"
    assert driver.now == 102.0


# --- Elixir's ---------------------------------------------------------------------------------------------------------


def test_g02_extra_arguments_come_before_the_childs_own_on_restarts_too() -> None:
    driver = dynamic(extra_arguments=["extra"])
    driver.start_child(spec("t", args=["own"]))
    driver.die("t")
    assert arguments(driver) == [("extra", "own")] * 2


def test_g03_what_a_start_may_come_to() -> None:
    driver = dynamic()
    assert driver.start_child(spec("t")) == Started(1)
    driver.modes["t"] = ok_info(driver, "extra")
    assert driver.start_child(spec("t")) == Started(2, "extra")
    driver.modes["t"] = Ignored
    assert driver.start_child(spec("t")) == Ignored()
    for reason in ("found", {"error": {"type": "RuntimeError", "message": "oops"}}, "exited"):
        driver.modes["t"] = failing(reason)
        assert driver.start_child(spec("t")) == Refused("start_failed", reason)
    assert driver.counts() == [2, 2, 0, 2]


def test_g04_a_bad_spec_is_refused() -> None:
    driver = dynamic()
    assert driver.start_child({}) == Refused("invalid_child_spec", {})
    assert driver.start_child(spec("t", significant=True)) == Refused("invalid_significant", True)


def test_ids_may_repeat_and_mean_nothing() -> None:
    driver = dynamic(spec("same"), spec("same", type="supervisor"))
    assert driver.counts() == [2, 2, 1, 1]
    for kind in (TerminateChildCall, RestartChildCall, DeleteChildCall, WhichChildCall, GetChildSpecCall):
        assert driver.call(kind, "same") == NOT_FOUND
    assert driver.call(GetChildSpecCall, ByPid(1))["id"] == "same"
    assert driver.call(GetChildSpecCall, ByPid(9)) == NOT_FOUND
    assert driver.call(WhichChildCall, ByPid(2)) == ChildInfo(None, 2, "supervisor", ("agents.echo",))


def test_the_limit_counts_children_that_are_restarting_and_is_asked_before_a_start() -> None:
    assert dynamic(max_children=0).start_child(spec("t")) == Refused("max_children")
    driver = dynamic(spec("t", restart="transient"), max_children=1)
    assert driver.start_child(spec("t")) == Refused("max_children")
    driver.modes["t"] = failing("flag")
    loses_its_restart(driver, 1)
    assert driver.start_child(spec("t")) == Refused("max_children")
    assert driver.start_child({"id": 1, "start": 1}) == Refused("invalid_mfa", 1)
    assert driver.terminate_child(ByPid(1)) is None
    assert arguments(driver) == [()]
    del driver.modes["t"]
    assert driver.start_child(spec("t", restart="transient")) == Started(2)
    driver.die("t", "normal")
    assert driver.start_child(spec("t")) == Started(3)


@pytest.mark.parametrize("limit", [1, 10])
def test_g07_a_start_that_fails_for_ever_reaches_the_limit(limit: int) -> None:
    driver = dynamic(max_restarts=limit)
    driver.modes["t"] = first_ok(driver)
    driver.start_child(spec("t"))
    driver.begin()
    driver.die("t")
    assert driver.exit == "shutdown"
    assert driver.trace() == [("start", "t")] * limit


def test_g07_one_failed_attempt_and_a_success_inside_the_limit() -> None:
    driver = dynamic(spec("t"), max_restarts=2)
    driver.modes["t"] = fails_once(driver)
    driver.die("t")
    assert driver.lives()
    assert driver.counts() == [1, 1, 0, 1]


def test_g09_terminate_by_pid() -> None:
    driver = dynamic(spec("a", shutdown="brutal_kill"), spec("b"))
    assert driver.terminate_child(ByPid(1)) is None
    assert driver.terminate_child(ByPid(2)) is None
    assert driver.ended == [("a", "killed"), ("b", "shutdown")]
    assert driver.terminate_child(ByPid(1, is_alive=False)) == NOT_FOUND
    assert driver.reports() == []


def test_the_end_has_one_deadline_for_each_shutdown_time() -> None:
    times: list[Any] = [1, 2, 1, "brutal_kill", "infinity", 0]
    driver = dynamic(*(spec(n, shutdown=t, restart="temporary") for n, t in enumerate(times)))
    driver.deaf = set(range(6))
    driver.stop()
    assert driver.trace() == [
        *[("shutdown", n) for n in (0, 1, 2)],
        ("kill", 3),
        ("shutdown", 4),
        ("shutdown", 5),
        ("kill", 5),
    ]
    assert driver.timers == {1: 1, 2: 2}
    driver.begin()
    driver.die(2, "shutdown")
    driver.fire()
    assert driver.trace() == [("kill", 0)]
    driver.die(1, "shutdown")
    driver.die(4, "shutdown")
    assert driver.exit == "normal"
    assert driver.timers == {}


def test_arguments_of_a_temporary_child_are_forgotten() -> None:
    driver = dynamic(spec("t", restart="temporary", args=[1]), spec("u", args=[1]), extra_arguments=[0])
    assert driver.call(GetChildSpecCall, ByPid(1))["args"] is None
    assert driver.call(GetChildSpecCall, ByPid(2))["args"] == [0, 1]


def test_a_temporary_template_starts_with_its_arguments_every_time() -> None:
    driver = simple(restart="temporary", args=["own"])
    driver.start_child([1])
    driver.start_child([2])
    assert arguments(driver) == [("own", 1), ("own", 2)]


def test_a_spec_without_arguments_starts_with_none() -> None:
    driver = dynamic()
    assert driver.start_child({"id": 1, "start": START, "args": None}) == Started(1)
    assert arguments(driver) == [()]
    assert Reply(1, Started(1)) in driver.effects
    assert [type(effect) for effect in driver.effects] == [StartChild, Report, Reply]
    assert driver.call(WhichChildrenCall)[0].id is None
