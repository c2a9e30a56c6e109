"""Supervisors with a list of children: OTP's named cases (A-F) and the rules of otp.md 4-12 and 17."""

from __future__ import annotations

from typing import Any

import pytest

from athena.errors import Reason, StartError
from supervisor.core import IllegalTransition
from supervisor.dynamic import DynamicNode, SimpleNode
from supervisor.flags import SupervisorFlags
from supervisor.node import TRANSITIONS
from supervisor.node_init import dynamic_node, dynamic_node_from_init, node_from_init, supervisor_node
from supervisor.tree import StaticNode
from supervisor.tree_vocabulary import (
    AbortStart,
    ByPid,
    Call,
    CallFailed,
    CancelTimer,
    ChildCounts,
    ChildInfo,
    CountChildrenCall,
    Exited,
    GetChildSpecCall,
    Ignored,
    Kill,
    KillNode,
    NodeExit,
    NodeStartFailed,
    ParentExited,
    Phase,
    PostRetry,
    PropagateExit,
    Refused,
    Reply,
    Report,
    RestartChildCall,
    Retry,
    SendShutdown,
    SetTimer,
    ShutdownTimeout,
    Start,
    StartChildCall,
    Started,
    StartFailed,
    StartResult,
    StopCall,
    TerminateChildCall,
    WhichChildCall,
    WhichChildrenCall,
)
from tests.tree_driver import START, Driver, failing, fails_once, first_ok, ok_info, spec

NOT_FOUND = Refused("not_found")


def tree(*children: Any, **flags: Any) -> Driver:
    """A driver of a node that has not started yet; two restarts in an hour unless told otherwise."""
    limits = {"max_restarts": 2, "max_seconds": 3600, **flags}
    return Driver(supervisor_node(limits, [spec(c) if isinstance(c, str) else c for c in children]))


def up(*children: Any, **flags: Any) -> Driver:
    """One that has started; the record of effects begins after that."""
    driver = tree(*children, **flags).start()
    assert driver.started == "ok"
    driver.begin()
    return driver


def start_error(*args: Any) -> Reason:
    with pytest.raises(StartError) as caught:
        supervisor_node(*args)
    return caught.value.reason


# --- A: start ---------------------------------------------------------------------------------------------------------


def test_children_start_left_to_right_one_at_a_time() -> None:
    driver = tree("a", "b", "c")
    driver.modes = {"a": lambda: None, "b": lambda: None}
    driver.start()
    assert driver.trace() == [("start", "a")]
    driver.finish()
    assert driver.trace() == [("start", "a"), ("start", "b")]
    assert driver.started == "not yet"
    driver.finish()
    assert driver.started == "ok"
    assert driver.which() == [("c", 3), ("b", 2), ("a", 1)]
    assert driver.node.pids == (1, 2, 3)


def test_a_start_that_fails_ends_what_was_started_in_reverse_and_tells_the_starter_last() -> None:
    driver = tree("a", spec("b", shutdown="brutal_kill"), "c", "d")
    driver.modes = {"c": failing({"exit": 3})}
    driver.start()
    reason = {"shutdown": {"failed_to_start_child": ["c", {"exit": 3}]}}
    assert driver.trace() == [("start", "a"), ("start", "b"), ("start", "c"), ("kill", "b"), ("shutdown", "a")]
    assert driver.effects[-2:] == [NodeExit(reason), NodeStartFailed(reason)]
    assert driver.reports() == [("start_error", "c", {"exit": 3})]
    assert driver.node.restarts_in_window(driver.now) == 0


def test_a_taken_name_fails_the_start_like_any_error() -> None:
    driver = tree("a")
    driver.modes = {"a": failing({"already_started": 77})}
    driver.start()
    assert driver.started == {"shutdown": {"failed_to_start_child": ["a", {"already_started": 77}]}}


def test_a02_a_child_that_ignores_is_kept_without_a_pid() -> None:
    driver = up()
    driver.modes = {"c1": Ignored}
    assert driver.start_child(spec("c1")) == Ignored()
    assert driver.start_child(spec("c2")) == Started(1)
    assert driver.which() == [("c2", 1), ("c1", None)]
    assert driver.counts() == [2, 1, 0, 2]


def test_a03_a_temporary_child_that_ignores_is_dropped() -> None:
    driver = tree(spec("c1", restart="temporary"), spec("c2", restart="temporary"), spec("c4"))
    driver.modes = {"c1": Ignored, "c3": Ignored, "c4": Ignored}
    driver.start()
    assert driver.start_child(spec("c3", restart="temporary")) == Ignored()
    assert driver.which() == [("c4", None), ("c2", 1)]
    assert driver.delete_child("c4") is None
    assert driver.counts() == [1, 1, 0, 1]


@pytest.mark.parametrize("returned", [17, ["one"], {"flags": {}}, None, [1, 2, 3]])
def test_a05_an_init_that_returns_nonsense(returned: Any) -> None:
    for from_init in (node_from_init, dynamic_node_from_init):
        with pytest.raises(StartError) as caught:
            from_init([returned], "m")
        assert caught.value.reason == {"bad_return": ["m", "init", [returned]]}


def test_an_init_may_return_flags_and_children_or_ignore() -> None:
    assert isinstance(node_from_init([{}, [spec("a")]], "m"), StaticNode)
    assert isinstance(node_from_init([{"strategy": "simple_one_for_one"}, [spec("a")]], "m"), SimpleNode)
    assert isinstance(dynamic_node_from_init({"max_children": 2}, "m"), DynamicNode)
    assert node_from_init("ignore", "m") is None
    assert dynamic_node_from_init("ignore", "m") is None


def test_a06_a_failed_start_child_wraps_the_spec_and_stores_nothing() -> None:
    driver = up()
    driver.modes = {"c1": failing("reason")}
    answer = driver.start_child(spec("c1"))
    assert (answer.tag, answer.value, answer.spec["id"]) == ("start_failed", "reason", "c1")
    assert driver.which() == []
    driver.modes = {"c1": failing({"already_started": 9})}
    assert driver.start_child(spec("c1")) == Refused("already_started", 9)
    assert driver.which() == []


def test_a07_get_childspec_is_full_and_by_id() -> None:
    driver = up({"id": "c1", "start": START}, spec("c2", shutdown="brutal_kill"), {**spec("c3", type="supervisor")})
    full = driver.call(GetChildSpecCall, "c1")
    assert (full["restart"], full["shutdown"], full["type"]) == ("permanent", 5.0, "worker")
    assert driver.call(GetChildSpecCall, "c2")["shutdown"] == "brutal_kill"
    assert driver.call(GetChildSpecCall, "c9") == NOT_FOUND
    assert driver.call(GetChildSpecCall, ByPid(1)) == NOT_FOUND


def test_a09_specs_are_all_checked_before_any_child_starts() -> None:
    assert start_error({}, [spec("a"), {"id": 1}]) == {"start_spec": "missing_start"}
    assert start_error({}, ["atom"]) == {"start_spec": {"invalid_child_spec": "atom"}}
    assert start_error({}, [spec("a"), spec("a")]) == {"start_spec": {"duplicate_child_name": "a"}}
    assert start_error({}, "x") == {"start_spec": {"badarg": "x"}}


def test_a09_simple_one_for_one_needs_exactly_one_spec() -> None:
    simple = {"strategy": "simple_one_for_one"}
    assert start_error(simple, []) == {"bad_start_spec": []}
    assert start_error(simple, [spec("a"), spec("b")]) == {"bad_start_spec": [spec("a"), spec("b")]}
    assert start_error(simple, "x") == {"bad_start_spec": "x"}
    assert start_error(simple, [{"id": 1}]) == {"start_spec": "missing_start"}
    pair = [["auto_shutdown", "never"], ["significant", True]]
    assert start_error(simple, [spec("a", significant=True)]) == {"start_spec": {"bad_combination": pair}}


def test_a11_f08_bad_flags_are_supervisor_data() -> None:
    assert start_error({"max_restarts": "infinity"}, []) == {"supervisor_data": {"invalid_intensity": "infinity"}}
    assert start_error(("one_for_one", 1), []) == {"supervisor_data": {"invalid_type": ["one_for_one", 1]}}
    with pytest.raises(StartError) as caught:
        dynamic_node({"max_children": -1})
    assert caught.value.reason == {"supervisor_data": {"invalid_max_children": -1}}


# --- B: administration ------------------------------------------------------------------------------------------------


def test_b01_start_and_terminate() -> None:
    driver = up("c1")
    assert driver.start_child(spec("c1")) == Refused("already_started", 1)
    assert driver.terminate_child("c9") == NOT_FOUND
    assert driver.counts() == [1, 1, 0, 1]
    assert driver.terminate_child("c1") is None
    assert driver.counts() == [1, 0, 0, 1]
    assert driver.terminate_child("c1") is None
    assert driver.start_child(spec("c1")) == Refused("already_present")
    assert driver.terminate_child(ByPid(1)) == NOT_FOUND
    assert driver.ended == [("c1", "shutdown")]


def test_b02_restart_and_delete() -> None:
    driver = up("c1")
    driver.terminate_child("c1")
    assert driver.restart_child("c1") == Started(2)
    assert driver.restart_child("c1") == Refused("running")
    assert driver.restart_child("c9") == NOT_FOUND
    assert driver.delete_child("c1") == Refused("running")
    assert driver.delete_child("c9") == NOT_FOUND
    driver.terminate_child("c1")
    assert driver.delete_child("c1") is None
    assert driver.restart_child("c1") == NOT_FOUND
    assert driver.counts() == [0, 0, 0, 0]


def test_b02_a_failed_restart_child_keeps_the_spec() -> None:
    driver = up()
    driver.modes["c1"] = first_ok(driver)
    assert driver.start_child(spec("c1")) == Started(1)
    driver.terminate_child("c1")
    assert driver.restart_child("c1") == Refused("start_failed", "start_error")
    driver.modes["c1"] = failing({"already_started": 5})
    assert driver.restart_child("c1") == Refused("already_started", 5)
    assert driver.which() == [("c1", None)]
    driver.modes["c1"] = Ignored
    assert driver.restart_child("c1") == Ignored()
    assert driver.counts() == [1, 0, 0, 1]
    assert driver.node.restarts_in_window(driver.now) == 0


def test_b04_a_call_to_a_node_that_is_gone_exits_noproc() -> None:
    driver = up("c1")
    driver.stop()
    assert driver.call(WhichChildrenCall) == ("exit", "noproc")


def test_b07_info_is_returned_and_not_stored() -> None:
    driver = up()
    driver.modes["c1"] = ok_info(driver, "info")
    assert driver.start_child(spec("c1")) == Started(1, "info")
    driver.terminate_child("c1")
    assert driver.restart_child("c1") == Started(2, "info")
    driver.die("c1")
    assert driver.which() == [("c1", 3)]
    assert "info" not in repr(driver.node)


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
@pytest.mark.parametrize("how", ["killed", "normal", "died", "terminate_child"])
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_b09_what_is_left_of_a_child_by_type_and_end(strategy: str, how: str, restart: str) -> None:
    given = spec("c1", restart=restart)
    driver = up(given, strategy=strategy)
    if how == "terminate_child":
        driver.terminate_child("c1")
    else:
        driver.die("c1", how)
    answer = driver.start_child(given)
    if restart == "temporary":
        assert answer == Started(2)
    elif how == "terminate_child" or (how == "normal" and restart == "transient"):
        assert answer == Refused("already_present")
    else:
        assert answer == Refused("already_started", 2)


def test_arguments_of_a_temporary_child_are_forgotten_once_it_runs() -> None:
    driver = up(spec("c1", restart="temporary", args=[1]), spec("c2", args=[1]))
    assert driver.call(GetChildSpecCall, "c1")["args"] is None
    assert driver.call(GetChildSpecCall, "c2")["args"] == [1]


def test_start_child_checks_the_spec_before_the_id() -> None:
    driver = up("c1")
    assert driver.start_child({"id": "c1", "start": 5}) == Refused("invalid_mfa", 5)
    assert driver.start_child({}) == Refused("missing_id")


def test_f08_start_child_of_a_significant_child_under_never() -> None:
    pair = [["auto_shutdown", "never"], ["significant", True]]
    assert up().start_child(spec("c1", restart="transient", significant=True)) == Refused("bad_combination", pair)


def test_ids_are_told_apart_by_type() -> None:
    driver = up(spec(1), spec(1.0), spec(True), spec("1"), spec(None))
    assert driver.counts() == [5, 5, 0, 5]
    driver.terminate_child(True)
    assert [name for name, pid in driver.which() if pid is None] == [True]


def test_a_group_begins_at_the_child_itself_and_not_at_one_whose_id_equals_its_own() -> None:
    driver = up(spec(1), spec(True), strategy="rest_for_one")
    driver.terminate_child(1)
    driver.begin()
    driver.die(True)
    assert driver.trace() == [("start", True)]
    assert [(type(name), pid) for name, pid in driver.which()] == [(bool, 3), (int, None)]


def test_which_child() -> None:
    driver = up(spec("c1", type="supervisor"), "c2")
    assert driver.call(WhichChildCall, "c1") == ChildInfo("c1", 1, "supervisor", ("agents.echo",))
    driver.terminate_child("c1")
    assert driver.call(WhichChildCall, "c1").pid is None
    assert driver.call(WhichChildCall, "c9") == driver.call(WhichChildCall, ByPid(2)) == NOT_FOUND


# --- C, D: restarts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["normal", "shutdown", {"shutdown": 1}, "died", "killed"])
def test_c01_a_permanent_child_is_always_restarted(reason: Reason) -> None:
    driver = up("c1")
    driver.die("c1", reason)
    assert driver.which() == [("c1", 2)]
    assert driver.counts() == [1, 1, 0, 1]
    assert driver.reports() == [("child_terminated", "c1", reason)]


def test_c02_a_transient_child_is_restarted_after_an_abnormal_end() -> None:
    driver = up(spec("c1", restart="transient"))
    driver.die("c1")
    assert driver.which() == [("c1", 2)]
    driver.die("c1", "normal")
    assert driver.which() == [("c1", None)]
    assert driver.counts() == [1, 0, 0, 1]
    assert driver.reports() == [("child_terminated", "c1", "died")]


@pytest.mark.parametrize("reason", ["normal", "shutdown", "died"])
def test_c03_a_temporary_child_is_never_restarted(reason: Reason) -> None:
    driver = up(spec("c1", restart="temporary"))
    driver.die("c1", reason)
    assert driver.counts() == [0, 0, 0, 0]
    assert driver.start_child(spec("c1", restart="temporary")) == Started(2)
    assert len(driver.reports()) == (reason == "died")


def test_d01_crashes_that_are_far_apart_are_survived() -> None:
    driver = up(spec("c1", shutdown="brutal_kill"), max_restarts=1, max_seconds=1)
    for _ in range(4):
        driver.die("c1")
        driver.now += 2.1
    assert driver.counts() == [1, 1, 0, 1]


def test_d02_one_for_one() -> None:
    driver = up("c1", "c2")
    driver.die("c1")
    assert driver.which() == [("c2", 2), ("c1", 3)]
    assert driver.counts() == [2, 2, 0, 2]
    driver.die("c1")
    driver.die("c1")
    assert driver.exit == "shutdown"
    assert ("shutdown", "c1", "reached_max_restart_intensity") in driver.reports()


def test_intensity_0_ends_at_the_first_needed_restart_without_making_it() -> None:
    driver = up("c1", "c2", max_restarts=0)
    driver.die("c1")
    assert driver.trace() == [("shutdown", "c2")]
    assert driver.exit == "shutdown"


def test_d06_one_for_all() -> None:
    driver = up("c1", "c2", strategy="one_for_all")
    driver.die("c1")
    assert driver.ended == [("c1", "died"), ("c2", "shutdown")]
    assert driver.which() == [("c2", 4), ("c1", 3)]
    assert driver.counts() == [2, 2, 0, 2]
    driver.die("c2")
    assert driver.lives()
    driver.die("c1")
    assert driver.exit == "shutdown"


def test_d08_rest_for_one() -> None:
    driver = up("c1", "c2", "c3", strategy="rest_for_one")
    driver.die("c2")
    assert driver.ended == [("c2", "died"), ("c3", "shutdown")]
    assert driver.which() == [("c3", 5), ("c2", 4), ("c1", 1)]
    assert driver.counts() == [3, 3, 0, 3]
    driver.die("c1")
    driver.die("c1")
    assert driver.exit == "shutdown"


def test_d12_the_order_of_children() -> None:
    driver = up("e", "a", "d", "b", "c", strategy="rest_for_one")
    driver.die("d")
    assert [name for name, _ in driver.ended] == ["d", "c", "b"]
    assert driver.trace()[2:] == [("start", "d"), ("start", "b"), ("start", "c")]
    driver.begin()
    assert driver.stop() is None
    assert [name for name, _ in driver.ended] == ["c", "b", "d", "a", "e"]


def test_d13_a_tree() -> None:
    """Nested nodes by hand: what one says to a child node, the test carries to it."""
    sups = [spec(f"sup{n}", type="supervisor", shutdown="infinity") for n in (1, 2, 3)]
    sups[2]["restart"] = "transient"
    root = up(*sups)
    assert root.terminate_child("sup3") is None
    below = up("w1", "w2")
    below.die("w1")
    assert below.which() == [("w2", 2), ("w1", 3)]
    assert root.counts() == [3, 2, 3, 0]
    below.give(ParentExited("shutdown"))
    root.die("sup2", below.exit)
    assert root.which() == [("sup3", None), ("sup2", 4), ("sup1", 1)]


def test_d15_a_hanging_restart_loop() -> None:
    driver = up("c1", max_restarts=8, max_seconds=10)
    driver.modes["c1"] = lambda: None
    driver.die("c1")
    assert driver.start_child(spec("c1")) is ...  # it is blocked in the start
    assert driver.call(WhichChildrenCall) is ...
    assert driver.delete_child("c1") is ...
    driver.now += 2
    driver.finish(StartFailed("flag"))  # what has waited is answered before the retry
    which = (ChildInfo("c1", "restarting", "worker", ("agents.echo",)),)
    assert list(driver.replies.values()) == [Refused("already_present"), which, Refused("restarting")]
    assert driver.is_blocked(), "the retry"
    driver.give(TerminateChildCall("t", "c1"), StartChildCall("s", spec("c1")))
    driver.finish(StartFailed("flag"))
    assert driver.replies["t"] is None
    assert driver.replies["s"] == Refused("already_present")
    assert not driver.is_blocked()
    assert driver.counts() == [1, 0, 0, 1]
    del driver.modes["c1"]
    assert driver.restart_child("c1") == Started(2)
    assert driver.node.restarts_in_window(driver.now) == 2


def test_while_restarting_what_is_asked_is_answered_as_otp_does() -> None:
    driver = up("c1", max_restarts=8)
    driver.modes["c1"] = failing("flag")
    driver.queue.append(driver.end(1, "died"))
    driver.step()
    driver.step()  # the failed start; the retry is in the queue
    retry = driver.queue.popleft()
    assert isinstance(retry, Retry)
    assert driver.which() == [("c1", "restarting")]
    assert driver.counts() == [1, 0, 0, 1]
    assert driver.start_child(spec("c1")) == Refused("already_present")
    assert driver.restart_child("c1") == driver.delete_child("c1") == Refused("restarting")
    assert driver.terminate_child("c1") is None
    driver.begin()
    driver.give(retry)  # it comes all the same, and finds nothing to do
    assert driver.effects == []
    assert driver.which() == [("c1", None)]


def test_a_start_that_always_fails_reaches_the_limit() -> None:
    driver = up("c1", "c2", max_restarts=2)
    driver.modes["c1"] = failing("broken")
    driver.die("c1")
    assert driver.trace() == [("start", "c1"), ("start", "c1"), ("shutdown", "c2")]
    assert driver.exit == "shutdown"
    assert [effect.retry.number for effect in driver.effects if isinstance(effect, PostRetry)] == [1, 2]


def test_an_ignore_in_a_restart_is_a_success_without_a_process() -> None:
    driver = up("c1")
    driver.modes["c1"] = Ignored
    driver.die("c1")
    assert driver.trace() == [("start", "c1")]
    assert driver.which() == [("c1", None)]


def test_one_for_all_whose_restart_fails_retries_with_everything() -> None:
    """otp.md 9: those before K stay for the moment, those after are not started, the retry ends all and starts all."""
    driver = up("a", "k", "z", strategy="one_for_all", max_restarts=5)
    driver.modes["k"] = fails_once(driver)
    driver.die("z")
    assert driver.trace() == [
        *[("shutdown", "k"), ("shutdown", "a"), ("start", "a"), ("start", "k")],
        *[("shutdown", "a"), ("start", "a"), ("start", "k"), ("start", "z")],
    ]
    assert driver.counts() == [3, 3, 0, 3]
    assert driver.node.restarts_in_window(driver.now) == 2


def test_rest_for_one_whose_restart_fails_keeps_what_is_started_before_the_failure() -> None:
    driver = up("a", "b", "k", "z", strategy="rest_for_one", max_restarts=5)
    driver.modes["k"] = fails_once(driver)
    driver.die("b")
    assert driver.trace() == [
        *[("shutdown", "z"), ("shutdown", "k"), ("start", "b"), ("start", "k")],
        *[("start", "k"), ("start", "z")],
    ]
    assert driver.which()[3] == ("a", 1)


def test_a_retry_cancelled_by_terminate_child_leaves_the_later_ones_down() -> None:
    driver = up("a", "k", "z", strategy="rest_for_one", max_restarts=5)
    driver.modes["k"] = lambda: None
    driver.die("a")
    driver.give(TerminateChildCall("t", "k"))
    driver.finish(StartFailed("flag"))
    assert [name for name, pid in driver.which() if pid is None] == ["z", "k"]
    del driver.modes["k"]
    driver.begin()
    assert driver.restart_child("k") == Started(5)
    assert driver.trace() == [("start", "k")]
    assert [name for name, pid in driver.which() if pid is None] == ["z"]


def test_a_group_restart_revives_what_was_down_and_drops_temporary_siblings() -> None:
    children = ["a", spec("t", restart="transient"), spec("tmp", restart="temporary"), "ign", "z"]
    driver = tree(*children, strategy="one_for_all", max_restarts=5)
    driver.modes["ign"] = Ignored
    driver.start()
    driver.die("t", "normal")
    driver.terminate_child("z")
    del driver.modes["ign"]
    driver.begin()
    driver.die("a")
    assert driver.trace() == [
        ("shutdown", "tmp"),
        *[("start", name) for name in ("a", "t", "ign", "z")],
    ]
    assert driver.counts() == [4, 4, 0, 4]


@pytest.mark.parametrize("restart", ["transient", "temporary"])
def test_an_end_without_restart_does_not_disturb_the_siblings(restart: str) -> None:
    driver = up("a", spec("b", restart=restart), "c", strategy="one_for_all")
    driver.die("b", "normal")
    assert driver.trace() == []
    assert driver.node.pids == (1, 3)


def test_a_child_added_later_is_last_also_a_temporary_one_added_again() -> None:
    driver = up("a", spec("t", restart="temporary"))
    driver.start_child(spec("b"))
    driver.die("t")
    driver.start_child(spec("t", restart="temporary"))
    assert [name for name, _ in driver.which()] == ["t", "b", "a"]


def test_a_sibling_that_dies_during_a_group_restart_is_not_counted() -> None:
    driver = up("a", "b", "c", strategy="one_for_all")
    driver.deaf = {"c"}
    driver.die("a")
    driver.die("b", "by itself")  # while c is being waited for
    driver.fire()
    assert driver.ended == [("a", "died"), ("b", "by itself"), ("c", "killed")]
    assert driver.node.restarts_in_window(driver.now) == 1
    assert ("shutdown", "b") not in driver.trace()
    assert driver.counts() == [3, 3, 0, 3]


def test_a_child_that_died_before_the_group_outside_of_it_is_restarted_after() -> None:
    driver = up("a", "b", strategy="rest_for_one", max_restarts=5)
    driver.modes["b"] = lambda: None
    driver.die("b")
    driver.die("a")  # waits in the mailbox
    assert driver.call(WhichChildrenCall) is ...
    driver.finish()
    assert driver.trace() == [("start", "b"), ("shutdown", "b"), ("start", "a"), ("start", "b")]


def test_a_child_whose_exit_still_waits_is_shown_with_its_pid_and_not_counted_active() -> None:
    """otp.md 11: ``active`` needs a pid and a liveness check."""
    driver = up("a", "b")
    driver.modes["a"] = lambda: None
    driver.die("a")
    driver.give(CountChildrenCall("count"), WhichChildrenCall("which"), driver.end(2, "died"))
    driver.finish()
    assert [row.pid for row in driver.replies["which"]] == [2, 3]
    assert driver.replies["count"] == ChildCounts(2, 1, 0, 2)
    assert driver.counts() == [2, 2, 0, 2]


# --- E: stopping ------------------------------------------------------------------------------------------------------


def test_e01_the_last_child_uses_its_time_up_and_the_one_before_is_not_told_until_then() -> None:
    driver = up("c1", "c2")
    driver.deaf = {"c2"}
    assert driver.stop() is ...
    assert driver.trace() == [("shutdown", "c2")]
    assert driver.timers == {1: 1}
    driver.fire()
    assert driver.trace() == [("shutdown", "c2"), ("kill", "c2"), ("shutdown", "c1")]
    assert driver.ended == [("c2", "killed"), ("c1", "shutdown")]
    assert driver.reports() == [("shutdown_error", "c2", "killed")]
    assert driver.exit == "normal"


def test_e02_brutal_kill() -> None:
    driver = up("c1", spec("c2", shutdown="brutal_kill"))
    driver.stop("shutdown")
    assert driver.trace() == [("kill", "c2"), ("shutdown", "c1")]
    assert driver.ended == [("c2", "killed"), ("c1", "shutdown")]
    assert driver.reports() == []


def test_after_the_kill_the_wait_for_the_death_has_no_limit() -> None:
    driver = up(spec("c1", shutdown=0))
    node, pid = driver.node, driver.pid("c1")
    effects = node.handle(TerminateChildCall("t", "c1"), driver.now)
    assert effects == (SendShutdown(pid), Kill(pid)), "0 s: politely, and with no wait"
    assert node.phase is Phase.TERMINATING
    assert node.handle(Exited(pid, "killed"), driver.now)[-1] == Reply("t", None)


def test_infinity_has_no_timer() -> None:
    driver = up(spec("c1", shutdown="infinity"))
    driver.deaf = {"c1"}
    driver.stop()
    assert (driver.timers, driver.trace()) == ({}, [("shutdown", "c1")])
    driver.die("c1", "shutdown")
    assert driver.exit == "normal"


def test_a_timer_is_cancelled_when_it_is_not_needed_and_one_that_fires_late_does_nothing() -> None:
    driver = up("a", "b")
    driver.terminate_child("b")
    driver.terminate_child("a")
    assert driver.timers == {}
    assert [type(effect) for effect in driver.effects].count(SetTimer) == 2
    driver.begin()
    driver.give(ShutdownTimeout(1))
    assert driver.restart_child("a") == Started(3)
    driver.deaf = {"a"}
    driver.give(TerminateChildCall("t", "a"), ShutdownTimeout(1), ShutdownTimeout(2))
    assert ("kill", "a") not in driver.trace()
    driver.modes["b"] = lambda: None
    driver.fire()
    driver.give(RestartChildCall("r", "b"), ShutdownTimeout(1))
    assert driver.is_blocked()


@pytest.mark.parametrize(
    ("restart", "shutdown", "reason", "is_reported"),
    [
        ("permanent", 1, "shutdown", False),
        ("permanent", 1, "normal", True),
        ("permanent", 1, {"shutdown": 1}, True),
        ("transient", 1, "normal", False),
        ("transient", 1, {"shutdown": 1}, False),
        ("temporary", 1, "died", True),
        ("transient", 1, "killed", True),
        ("transient", "brutal_kill", "killed", False),
        ("transient", "brutal_kill", "shutdown", True),
        ("transient", "brutal_kill", "normal", False),
        ("permanent", "brutal_kill", "normal", True),
    ],
)
def test_an_unexpected_end_is_only_reported(restart: str, shutdown: Any, reason: Reason, is_reported: bool) -> None:
    driver = up(spec("c1", restart=restart, shutdown=shutdown))
    effects = [*driver.node.handle(TerminateChildCall("t", "c1"), 0.0), *driver.node.handle(Exited(1, reason), 0.0)]
    assert Reply("t", None) in effects
    assert any(isinstance(effect, Report) for effect in effects) is is_reported


def test_a_child_that_died_already_is_not_told_and_its_own_reason_is_seen() -> None:
    driver = up("a", "b", "c")
    driver.deaf = {"c"}
    driver.give(StopCall("s"))
    driver.die("a", "died")
    driver.fire()
    assert driver.trace() == [("shutdown", "c"), ("kill", "c"), ("shutdown", "b")]
    assert ("shutdown_error", "a", "died") in driver.reports()
    assert driver.exit == "normal"


def test_a_child_that_unlinked_itself_and_died_unseen_cannot_hang_its_supervisor() -> None:
    driver = up("a")
    del driver.alive[1]
    driver.give(TerminateChildCall("t", "a"), Exited(1, "child_process_unlinked"))
    assert driver.replies["t"] is None
    assert driver.reports() == [("shutdown_error", "a", "child_process_unlinked")]


# --- F: significant children ------------------------------------------------------------------------------------------

MODES = ["never", "any_significant", "all_significant"]
ENDS = ["terminate_child", "killed", "died", "normal"]


@pytest.mark.parametrize("restart", ["temporary", "transient"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ENDS)
def test_f01_a_child_that_is_not_significant_never_ends_its_supervisor(restart: str, mode: str, how: str) -> None:
    driver = up(spec("c1", restart=restart), auto_shutdown=mode)
    if how == "terminate_child":
        driver.terminate_child("c1")
    else:
        driver.die("c1", how)
    assert driver.lives()


@pytest.mark.parametrize("how", ["killed", "died", "normal"])
def test_f02_any_significant_temporary_child(how: str) -> None:
    driver = up("a", spec("s", restart="temporary", significant=True), "z", auto_shutdown="any_significant")
    driver.die("s", how)
    assert driver.ended == [("s", how), ("z", "shutdown"), ("a", "shutdown")]
    assert driver.exit == "shutdown"


def test_f04_a_transient_significant_child_that_crashes_is_restarted() -> None:
    driver = up(spec("s", restart="transient", significant=True), auto_shutdown="any_significant")
    driver.die("s", "killed")
    driver.die("s", "died")
    assert driver.lives()
    driver.die("s", "normal")
    assert driver.exit == "shutdown"


def test_terminate_child_of_a_significant_child_ends_nothing() -> None:
    driver = up(spec("s", restart="temporary", significant=True), auto_shutdown="any_significant")
    driver.terminate_child("s")
    assert driver.lives()


def test_all_significant_waits_for_the_last_that_runs_or_restarts() -> None:
    children = [spec(name, restart="transient", significant=True) for name in ("s1", "s2", "s3", "s4")]
    driver = up("a", *children, auto_shutdown="all_significant", max_restarts=9)
    driver.terminate_child("s4")  # has a spec and no process: does not count as left
    driver.die("s1", "normal")
    assert driver.lives()
    driver.modes["s2"] = lambda: None
    driver.die("s2")
    driver.die("s3", "normal")
    driver.queue.append(TerminateChildCall("t", "a"))
    driver.finish(StartFailed("flag"))  # s3's exit is seen while s2 is restarting
    assert driver.lives()
    driver.finish()
    driver.die("s2", "normal")
    assert driver.exit == "shutdown"


def test_siblings_ended_by_a_group_restart_and_restarts_that_ignore_end_nothing() -> None:
    temporary = spec("s", restart="temporary", significant=True)
    driver = up("a", temporary, strategy="one_for_all", auto_shutdown="any_significant")
    driver.die("a")
    assert driver.lives()
    transient = spec("s", restart="transient", significant=True)
    driver = up("a", transient, auto_shutdown="any_significant")
    driver.modes["s"] = Ignored
    driver.die("s")
    assert driver.lives()


# --- the supervisor as a process (otp.md 17) --------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["normal", "shutdown", "noconnection", {"shutdown": 1}])
def test_an_exit_of_the_parent_ends_the_children_and_then_the_node_for_the_same_reason(reason: Reason) -> None:
    driver = up("a", "b")
    driver.give(ParentExited(reason))
    assert driver.trace() == [("shutdown", "b"), ("shutdown", "a")]
    assert (driver.exit, driver.node.reason, driver.node.pids) == (reason, reason, ())


def test_an_exit_of_a_stranger_or_of_a_former_life_is_ignored() -> None:
    driver = up("a")
    driver.die("a")
    driver.begin()
    driver.give(Exited(99, "died"), Exited(1, "died"))
    assert driver.effects == []


def test_an_exit_told_twice_counts_once_with_its_first_reason() -> None:
    driver = up("a", spec("b", restart="transient"))
    driver.modes["a"] = lambda: None
    driver.die("a")
    driver.give(driver.end(2, "died"), Exited(2, "normal"))
    driver.finish()
    assert driver.node.restarts_in_window(driver.now) == 2
    assert driver.counts() == [2, 2, 0, 2]


def test_what_is_asked_while_it_is_busy_waits_in_order() -> None:
    driver = up("a")
    driver.modes["b"] = lambda: None
    driver.give(StartChildCall(1, spec("b")), WhichChildrenCall(2), StopCall(3), CountChildrenCall(4))
    assert driver.replies == {}
    driver.finish()
    assert list(driver.replies) == [1, 2, 3, 4]
    assert [row.id for row in driver.replies[2]] == ["b", "a"]
    assert driver.replies[4] == ("exit", "normal")


def test_an_exit_of_the_parent_waits_for_a_start_that_is_under_way() -> None:
    driver = tree("a", "b")
    driver.modes["b"] = lambda: None
    driver.start()
    driver.give(ParentExited("shutdown"), StopCall("s", "shutdown"), StopCall("other", "normal"))
    assert driver.started == "not yet"
    driver.finish()
    assert driver.started == "ok"
    assert driver.exit == "shutdown"
    assert driver.replies == {"s": None, "other": ("exit", "shutdown")}


def test_stop_is_answered_after_the_node_is_gone() -> None:
    driver = up("a")
    driver.stop({"shutdown": "done"})
    assert driver.effects[-2:] == [NodeExit({"shutdown": "done"}), Reply(1, None)]


def test_a_kill_skips_the_termination_and_the_children_learn_it_by_their_links() -> None:
    driver = up("a", "b", "c")
    driver.deaf = {"c"}
    driver.give(TerminateChildCall("t", "c"), WhichChildrenCall("w"))
    driver.begin()
    driver.give(KillNode())
    assert driver.effects == [
        CancelTimer(1),
        *(PropagateExit(pid, "killed") for pid in (1, 2, 3)),
        NodeExit("killed"),
        *(CallFailed(ref, "killed") for ref in ("t", "w")),
    ]
    driver.give(KillNode(), Exited(1, "killed"), ParentExited("shutdown"), ShutdownTimeout(1))
    assert driver.node.pids == ()


def test_a_kill_in_the_first_start_aborts_it_and_tells_the_starter() -> None:
    driver = tree("a", "b")
    driver.modes["b"] = lambda: None
    driver.start()
    driver.begin()
    driver.give(KillNode("killed"))
    expected = [AbortStart(2, "killed"), PropagateExit(1, "killed"), NodeExit("killed"), NodeStartFailed("killed")]
    assert driver.effects == expected
    driver.give(StartResult(2, Started(1)))  # crossed with the abort
    assert driver.effects == expected


def test_a_kill_leaves_out_a_child_whose_exit_waits() -> None:
    driver = up("a", "b")
    driver.modes["a"] = lambda: None
    driver.die("a")
    driver.die("b")
    driver.give(KillNode())
    assert not [effect for effect in driver.effects if isinstance(effect, PropagateExit)]


def test_a_kill_of_an_idle_node() -> None:
    driver = up("a", max_restarts=9)
    driver.modes["a"] = failing("flag")
    driver.queue.append(driver.end(1, "died"))
    driver.step()
    driver.step()
    retry = driver.queue.popleft()
    driver.give(KillNode(), retry)
    assert driver.exit == "killed"


# --- illegal inputs ---------------------------------------------------------------------------------------------------

SAMPLES: list[Any] = [
    Start(),
    StartResult(1, Ignored()),
    Exited(1, "died"),
    ShutdownTimeout(1),
    Retry("a", 1),
    ParentExited("normal"),
    KillNode(),
    WhichChildrenCall(1),
]


def in_phase(phase: Phase) -> Driver:
    driver = tree("a", "b")
    driver.deaf = {"b"}
    if phase is not Phase.NEW:
        driver.modes["b"] = (lambda: None) if phase is Phase.STARTING else (lambda: Started(driver.new_pid()))
        driver.start()
    if phase in (Phase.TERMINATING, Phase.ENDED):
        driver.give(ParentExited("shutdown"))
    if phase is Phase.ENDED:
        driver.fire()
    assert driver.node.phase is phase
    return driver


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("given", SAMPLES, ids=lambda given: type(given).__name__)
def test_an_absent_pair_raises_and_changes_nothing(phase: Phase, given: Any) -> None:
    driver = in_phase(phase)
    kind = Call if isinstance(given, Call) else type(given)
    if (phase, kind) in TRANSITIONS:
        return
    before = repr(driver.node)
    with pytest.raises(IllegalTransition, match="cannot happen to <StaticNode"):
        driver.node.handle(given, 0.0)
    assert repr(driver.node) == before


@pytest.mark.parametrize(
    ("phase", "given"),
    [
        (Phase.STARTING, StartResult(1, Ignored())),
        (Phase.STARTING, StartResult(3, Ignored())),
        (Phase.STARTING, StartResult(2, Started(1))),
        (Phase.IDLE, ShutdownTimeout(1)),
        (Phase.TERMINATING, ShutdownTimeout(2)),
        (Phase.IDLE, Retry("a", 1)),
    ],
)
def test_an_input_out_of_order_raises_and_changes_nothing(phase: Phase, given: Any) -> None:
    driver = in_phase(phase)
    before = repr(driver.node)
    with pytest.raises(IllegalTransition):
        driver.node.handle(given, 0.0)
    assert repr(driver.node) == before


def test_a_retry_for_a_child_that_was_deleted_does_nothing() -> None:
    driver = up("a", max_restarts=9)
    driver.modes["a"] = failing("flag")
    driver.queue.append(driver.end(1, "died"))
    driver.step()
    driver.step()
    retry = driver.queue.popleft()
    driver.terminate_child("a")
    driver.delete_child("a")
    driver.begin()
    driver.give(retry)
    assert driver.effects == []


def test_flags_of_a_node_can_be_made_by_hand() -> None:
    assert Driver(StaticNode(SupervisorFlags())).start().started == "ok"
