"""The rules that implementers of OTP usually miss, each shown by real processes. The tests are named after them."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from typing import Any

import pytest

import athena
from athena import ChildSpec, Ignored, Started, Supervisor
from athena.errors import AlreadyPresent, CallTimeout, MaxChildren, NotFound, ProcessExited, Restarting, StartError
from tests.helpers import TIME_UNIT, wait_until
from tests.otp_processes import (
    LONG_S,
    call,
    end,
    is_alive,
    noting,
    reasons,
    refuse,
    serial,
    server,
    stamps,
    started_pid,
    states,
    trapping,
    tries,
    wait_state,
    watch,
)
from tests.session_fixtures import background, is_gone
from tests.tree_fixtures import CHILD_S, Yard, counts, pid, pids, shared, start_child, wait_new, yard

__all__ = ["background", "shared", "yard"]

pytestmark = pytest.mark.slow

# --- what counts against the intensity --------------------------------------------------------------------------------


@pytest.mark.parametrize("intensity", [0, 1, 3])
def test_intensity_n_allows_n_restarts_and_the_next_stops_the_supervisor(yard: Yard, intensity: int) -> None:
    tree = yard.start(server("c"), max_restarts=intensity, max_seconds=3600)
    monitors = watch(yard, tree.pid)
    for _ in range(intensity):
        old = pid(tree, "c")
        end(yard, old)
        wait_new(tree, "c", old)
    assert stamps(yard, tree) == intensity
    last = pid(tree, "c")
    monitors += watch(yard, last)
    end(yard, last)
    assert reasons(monitors) == ["shutdown", "died"]


def test_a_group_restart_counts_once_and_initial_starts_manual_calls_and_clean_exits_never(yard: Yard) -> None:
    specs = [server(name) for name in ("c1", "c2", "c3")]
    others = [server("t", restart="transient"), server("tmp", restart="temporary")]
    tree = yard.start(*specs, *others, strategy="one_for_all", max_restarts=1, max_seconds=3600)
    end(yard, pid(tree, "t"), "normal")
    wait_until(lambda: states(yard, tree)["t"] == "stopped", CHILD_S)
    end(yard, pid(tree, "tmp"))
    wait_until(lambda: "tmp" not in states(yard, tree), CHILD_S)
    tree.terminate_child("c3")
    tree.restart_child("c3")
    tree.start_child(server("c4"))
    assert stamps(yard, tree) == 0
    old = pids(tree)
    end(yard, old["c2"])
    for name in ("c1", "c2", "c3", "c4"):
        wait_new(tree, name, old[name])
    assert stamps(yard, tree) == 1
    assert counts(tree) == [5, 5, 0, 5], "the transient one that had ended is back"


def test_each_failed_attempt_counts_again(yard: Yard) -> None:
    tree = yard.start(noting(yard, "a"), server("b"), max_restarts=3, max_seconds=3600)
    refuse(yard)
    monitors = watch(yard, tree.pid, pid(tree, "b"))
    end(yard, pid(tree, "a"))
    assert reasons(monitors) == ["shutdown", "shutdown"]
    assert len(tries(yard)) == 1 + 3, "the fourth restart is not made"


def test_a_failing_initial_start_is_no_restart(yard: Yard) -> None:
    refuse(yard)
    with pytest.raises(StartError):
        yard.start(noting(yard, "a"), max_restarts=3)
    assert len(tries(yard)) == 1, "it is not tried again"


def test_a_window_of_whole_seconds_forgets(yard: Yard) -> None:
    tree = yard.start(server("c"), max_restarts=1, max_seconds=1)
    old = pid(tree, "c")
    end(yard, old)
    wait_new(tree, "c", old)
    assert stamps(yard, tree) == 1
    wait_until(lambda: stamps(yard, tree) == 0, 10)  # between 1 and 2 s, by the phase of the clock
    old = pid(tree, "c")
    end(yard, old)
    wait_new(tree, "c", old)
    assert is_alive(yard, tree.pid)


# --- restarts that fail -----------------------------------------------------------------------------------------------


def test_a_failed_restart_goes_through_the_supervisors_own_queue(yard: Yard, background: Any) -> None:
    tree = yard.start(yard.switch("a"), server("b"), max_seconds=3600)
    yard.wait_starts("a", 1)
    yard.set_flag(0.5)
    yard.order("a", "die")
    wait_state(yard, tree, "starting a child")
    # Both wait while the first attempt fails; the retry is behind them, and then cancelled.
    answered = [background(lambda: tree.which_child("b")), background(lambda: tree.terminate_child("a"))]
    assert [answer.result(LONG_S) is None for answer in answered] == [False, True]
    assert counts(tree) == [2, 1, 0, 2]
    assert (stamps(yard, tree), yard.row(tree, "a")["restarts"]) == (1, 1), "one attempt, and no retry"
    yard.clear_flag()
    tree.restart_child("a")
    assert counts(tree) == [2, 2, 0, 2]


def test_while_restarting_what_is_asked_is_answered_as_otp_does(yard: Yard) -> None:
    tree = yard.start(yard.switch("a"), max_restarts=10_000)
    yard.wait_starts("a", 1)
    yard.set_flag(0.1)
    yard.order("a", "die")
    wait_until(lambda: tree.which_child("a").pid == "restarting", CHILD_S)
    for error, ask in (
        (AlreadyPresent, lambda: tree.start_child(yard.switch("a"))),
        (Restarting, lambda: tree.restart_child("a")),
        (Restarting, lambda: tree.delete_child("a")),
    ):
        with pytest.raises(error):
            ask()
    assert counts(tree) == [1, 0, 0, 1]
    tree.terminate_child("a")
    tree.delete_child("a")
    assert counts(tree) == [0, 0, 0, 0]


def test_when_a_later_child_fails_one_for_all_redoes_everything(yard: Yard) -> None:
    tree = yard.start(server("c1"), server("c2"), yard.switch("c3"), server("c4"), strategy="one_for_all")
    first, middle = _fail_in_group_restart(yard, tree, "c2", "c3")
    yard.clear_flag()
    yard.wait_starts("c3", 2)
    last = pids(tree)
    assert middle["c4"] is None, "who comes after the one that failed is not started"
    for name in ("c1", "c2"):
        assert first[name].serial < middle[name].serial < last[name].serial, "also those that had started, again"
    serials = [serial(tree, name) for name in ("c1", "c2", "c3", "c4")]
    assert serials == sorted(serials)


def test_when_a_later_child_fails_rest_for_one_resumes_there(yard: Yard) -> None:
    names = ("c1", "c2", "c3", "c4", "c5")
    specs = [yard.switch(name) if name == "c4" else server(name) for name in names]
    tree = yard.start(*specs, strategy="rest_for_one")
    first, middle = _fail_in_group_restart(yard, tree, "c2", "c4")
    yard.clear_flag()
    yard.wait_starts("c4", 2)
    last = pids(tree)
    assert last["c1"] == first["c1"]
    for name in ("c2", "c3"):
        assert first[name].serial < middle[name].serial == last[name].serial, "they are kept"
    assert middle["c5"] is None
    assert last["c5"].serial > last["c4"].serial > last["c3"].serial


def _fail_in_group_restart(yard: Yard, tree: Supervisor, culprit: str, failing: str) -> tuple[Any, Any]:
    """The pids before a group restart, and those between two attempts of it in which ``failing`` does not start."""
    yard.wait_starts(failing, 1)
    yard.set_flag(0.1)
    first = pids(tree)
    end(yard, first[culprit])
    wait_until(lambda: tree.which_child(failing).pid == "restarting", CHILD_S)
    middle = pids(tree)
    assert middle[failing] == "restarting"
    return first, middle


def test_a_retry_cancelled_by_terminate_child_leaves_the_later_ones_down(yard: Yard) -> None:
    tree = yard.start(server("c1"), yard.switch("c2"), server("c3"), strategy="one_for_all")
    yard.wait_starts("c2", 1)
    yard.set_flag(0.1)
    end(yard, pid(tree, "c1"))
    wait_until(lambda: tree.which_child("c2").pid == "restarting", CHILD_S)
    tree.terminate_child("c2")
    assert states(yard, tree) == {"c1": "running", "c2": "stopped", "c3": "stopped"}
    yard.clear_flag()
    tree.restart_child("c2")
    assert states(yard, tree) == {"c1": "running", "c2": "running", "c3": "stopped"}


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_a_group_restart_revives_every_child_in_its_range_that_is_not_temporary(yard: Yard, strategy: str) -> None:
    tree = yard.start(
        server("before"),
        server("culprit"),
        server("by hand"),
        server("finished", restart="transient"),
        server("temporary", restart="temporary"),
        server("running"),
        strategy=strategy,
    )
    tree.terminate_child("before")
    tree.terminate_child("by hand")
    end(yard, pid(tree, "finished"), "normal")
    wait_until(lambda: states(yard, tree)["finished"] == "stopped", CHILD_S)
    old = pid(tree, "running")
    end(yard, pid(tree, "culprit"))
    wait_new(tree, "running", old)
    expected = {name: "running" for name in ("before", "culprit", "by hand", "finished", "running")}
    if strategy == "rest_for_one":
        expected["before"] = "stopped"
    assert states(yard, tree) == expected


# --- a supervisor that gives up ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_a_supervisor_that_gives_up_exits_shutdown_which_is_clean(yard: Yard, restart: str) -> None:
    inner = Supervisor.child_spec([server("w")], id="inner", name="inner", max_restarts=0, restart=restart)
    root = yard.start(inner)
    nested = Supervisor.attach("inner", supervisor=yard.at)
    monitors = watch(yard, nested.pid)
    end(yard, pid(nested, "w"))
    assert reasons(monitors) == ["shutdown"]
    if restart == "permanent":
        wait_until(lambda: getattr(root.which_child("inner").pid, "serial", 0) > (nested.pid.serial or 0), CHILD_S)
        wait_until(lambda: athena.whereis("inner", supervisor=yard.at) is not None, CHILD_S)
    else:
        kept = int(restart == "transient")
        wait_until(lambda: counts(root) == [kept, 0, kept, 0], CHILD_S)
    assert stamps(yard, root) == int(restart == "permanent")


# --- termination ------------------------------------------------------------------------------------------------------


def test_static_supervisors_stop_one_by_one_in_reverse(yard: Yard) -> None:
    """The second is not told before the third is gone."""
    tree = yard.start(*(yard.spec(name, shutdown=10, kwargs={"linger_s": 0.2}) for name in ("c1", "c2", "c3")))
    for name in ("c1", "c2", "c3"):
        yard.wait_starts(name, 1)
    began = time.monotonic()
    tree.stop()
    assert time.monotonic() - began >= 0.6
    assert yard.ends() == ["c3", "c2", "c1"]


def test_dynamic_supervisors_stop_in_parallel(yard: Yard) -> None:
    tree = yard.start_dynamic()
    for name in map(str, range(10)):
        tree.start_child(yard.spec(name, shutdown=10, kwargs={"linger_s": 0.5}))
        yard.wait_starts(name, 1)
    began = time.monotonic()
    tree.stop()
    assert 0.5 <= time.monotonic() - began < 3 * TIME_UNIT, "5 s one after another"
    assert len(yard.ends()) == 10


def test_termination_never_waits_for_a_pipe(yard: Yard) -> None:
    """A stranger outside of the tree holds the ends of the child's pipes, and so no end of file comes."""
    path = str(yard.directory / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        held: list[int] = []

        def take() -> None:
            connection, _ = listener.accept()
            with connection:
                held.extend(socket.recv_fds(connection, 1, 16)[1])
                connection.send(b"x")

        taker = threading.Thread(target=take)
        taker.start()
        spec = yard.spec("a", function="tests.otp_processes:hand_over_pipe")
        tree = yard.start(ChildSpec("a", spec.start, args=[*(spec.args or ()), path], shutdown=1))
        taker.join(LONG_S)
        yard.wait_starts("a", 1)
        assert held, "the child has pipes"
        child = pid(tree, "a")
        monitors = watch(yard, child)
        began = time.monotonic()
        tree.terminate_child("a")
        assert time.monotonic() - began < 2.5 * TIME_UNIT
        assert is_gone(int(child))
        assert reasons(monitors) == ["shutdown"]
        for fd in held:
            os.close(fd)


def test_a_grandchild_with_the_output_open_does_not_delay_the_end(yard: Yard) -> None:
    tree = yard.start(yard.spec("a", function="tests.tree_children:serve_with_orphans"))
    wait_until(lambda: sum(line.startswith("tool ") for line in yard.log()) == 2, CHILD_S)
    monitors = watch(yard, pid(tree, "a"))
    yard.order("a", "die")
    began = time.monotonic()
    assert reasons(monitors)[0]["error"]["message"] == "died"
    assert time.monotonic() - began < 3 * TIME_UNIT


@pytest.mark.parametrize("half", [False, True])
def test_end_of_file_is_a_hint_and_who_lives_is_supervised_on(yard: Yard, half: bool) -> None:
    """``unlink`` of otp-cases.md: the child closes its end of the channel, and lives."""
    spec = yard.spec("a", function="tests.otp_processes:unlink_itself", kwargs={"only_writing": half})
    tree = yard.start(spec)
    yard.wait_starts("a", 1)
    old = pid(tree, "a")
    descriptor = os.pidfd_open(int(old))
    assert not select.select([descriptor], [], [], 0.1)[0], "it lives"
    os.close(descriptor)
    assert pid(tree, "a") == old
    assert is_alive(yard, old)
    yard.order("a", "exit 3")  # its words do not arrive any more: the status says it
    wait_new(tree, "a", old)
    assert yard.row(tree, "a")["last_reason"] == {"exit": 3}
    yard.wait_starts("a", 2)
    old = pid(tree, "a")
    tree.terminate_child("a")
    assert is_gone(int(old))


def test_calls_to_a_server_that_cannot_answer_any_more_fail(yard: Yard) -> None:
    tree = yard.start(ChildSpec("a", "tests.otp_processes:Unlinking", shutdown=1))
    one = pid(tree, "a")
    athena.cast(one, "now", supervisor=yard.at)
    for _ in range(2):  # while it is noticed, and when it is known
        with pytest.raises(ProcessExited) as raised:
            call(yard, one, "later", timeout=None)
        assert raised.value.reason == "noconnection"
    athena.cast(one, "nothing", supervisor=yard.at)
    assert pid(tree, "a") == one
    tree.terminate_child("a")
    assert is_gone(int(one))


# --- answers that differ by kind of supervisor ------------------------------------------------------------------------


def test_ignore_differs_by_kind_of_supervisor(yard: Yard) -> None:
    static = yard.start()
    simple = yard.start(server("t", ["ignore"]), strategy="simple_one_for_one")
    dynamic = yard.start_dynamic()
    for restart, kept in (("permanent", 1), ("transient", 2), ("temporary", 2)):
        assert static.start_child(server(restart, ["ignore"], restart=restart)) == Ignored()
        assert counts(static) == [kept, 0, 0, kept]
        assert dynamic.start_child(server(restart, ["ignore"], restart=restart)) == Ignored()
    assert simple.start_child([]) == Ignored()
    assert (counts(simple), counts(dynamic)) == ([1, 0, 0, 0], [0, 0, 0, 0])
    assert static.restart_child("permanent") == Ignored()


def test_terminate_child_of_a_dead_pid_is_ok_under_simple_one_for_one_and_not_found_under_dynamic(yard: Yard) -> None:
    simple = yard.start(server("t", restart="temporary"), strategy="simple_one_for_one")
    dynamic = yard.start_dynamic()
    dead = []
    for tree, given in ((simple, []), (dynamic, server("c", restart="temporary"))):
        dead.append(started_pid(tree.start_child(given)))
        monitors = watch(yard, dead[-1])
        end(yard, dead[-1], "normal")
        reasons(monitors)
    stranger = pid(yard.start(server("stranger")), "stranger")
    for one in dead:
        simple.terminate_child(one)
        with pytest.raises(NotFound):
            dynamic.terminate_child(one)
    for tree in (simple, dynamic):
        with pytest.raises(NotFound):
            tree.terminate_child(stranger)
    assert is_alive(yard, stranger)


def test_max_children_counts_those_that_restart(yard: Yard) -> None:
    tree = yard.start_dynamic(max_children=2, max_restarts=10_000)
    tree.start_child(yard.switch("a"))
    transient = start_child(tree, server("t", restart="transient"))
    yard.wait_starts("a", 1)
    yard.set_flag(0.1)
    yard.order("a", "die")
    wait_until(lambda: "restarting" in [row.pid for row in tree.which_children()], CHILD_S)
    with pytest.raises(MaxChildren):
        tree.start_child(server("one more"))
    assert counts(tree) == [2, 1, 0, 2]
    end(yard, transient, "normal")
    wait_until(lambda: counts(tree)[0] == 1, CHILD_S)
    tree.start_child(server("one more"))
    assert counts(tree) == [2, 1, 0, 2]


# --- automatic shutdown, starts, names --------------------------------------------------------------------------------


def test_auto_shutdown_needs_a_significant_child_that_ends_by_itself(yard: Yard) -> None:
    significant = {"restart": "transient", "significant": True}
    tree = yard.start(
        server("s1", **significant), server("s2", **significant), server("p"),
        strategy="one_for_all", auto_shutdown="any_significant",
    )  # fmt: skip
    tree.terminate_child("s1")
    tree.restart_child("s1")
    old = pids(tree)
    end(yard, old["p"])  # which ends both, and starts them again
    for name in ("s1", "s2", "p"):
        wait_new(tree, name, old[name])
    assert is_alive(yard, tree.pid)
    monitors = watch(yard, tree.pid)
    end(yard, pid(tree, "s2"), "normal")
    assert reasons(monitors) == ["shutdown"]


def test_a_failed_start_returns_when_the_process_is_gone_and_its_name_free(yard: Yard) -> None:
    tree = yard.start()
    refuse(yard)
    for number in range(5):
        with pytest.raises(StartError):
            tree.start_child(noting(yard, "a", name="taken"))
        assert is_gone(tries(yard)[number])
        assert athena.whereis("taken", supervisor=yard.at) is None
    refuse(yard, False)
    assert isinstance(tree.start_child(noting(yard, "a", name="taken")), Started)


@pytest.mark.parametrize("restart", ["transient", "temporary"])
def test_who_has_seen_a_down_finds_the_supervisor_informed(yard: Yard, restart: str) -> None:
    tree = yard.start()
    for number in range(30):
        one = start_child(tree, server(number, restart=restart))
        monitors = watch(yard, one)
        end(yard, one, "normal")
        reasons(monitors)
        rows = {row.id: row.pid for row in tree.which_children()}
        assert rows.get(number) is None, "the dead are not shown as running"
        assert tree.count_children().active == 0


def test_with_a_full_queue_a_continue_comes_first(yard: Yard) -> None:
    """Messages are sent by the name that it has before it has started, and wait."""
    tree = yard.start()
    starter = threading.Thread(
        target=lambda: tree.start_child(server("one", ["sleep", 0.3], ["continue", 7], name="early"))
    )
    starter.start()
    wait_until(lambda: athena.whereis("early", supervisor=yard.at) is not None, CHILD_S)
    for number in range(5):
        athena.cast("early", ["note", number], supervisor=yard.at)
    starter.join(LONG_S)
    assert call(yard, "early", "notes") == [["continue", 7], 0, 1, 2, 3, 4]


def test_a_late_reply_is_nobodys(yard: Yard) -> None:
    one = pid(yard.start(trapping("one")), "one")
    for _ in range(20):
        with pytest.raises(CallTimeout):
            call(yard, one, "later", timeout=0.002)
    athena.cast(one, ["answer", "late"], supervisor=yard.at)
    assert [call(yard, one, "value", number) for number in range(20)] == list(range(20))
    with pytest.raises(CallTimeout):
        athena.receive(0.01, supervisor=yard.at)


def test_exit_status_256_of_a_function_is_no_clean_end(yard: Yard) -> None:
    """The status is a byte, 0 here; what the process said before tells."""
    tree = yard.start(yard.spec("a", restart="transient"))
    old = pid(tree, "a")
    yard.order("a", "exit 256")
    wait_new(tree, "a", old)
    assert yard.row(tree, "a")["last_reason"] == {"exit": 256}


def test_an_exception_in_a_thread_ends_a_function_and_a_server(yard: Yard) -> None:
    function = yard.spec("f", function="tests.tree_children:thread_dies", restart="transient")
    tree = yard.start(server("s", restart="transient"), max_restarts=1)
    one = pid(tree, "s")
    monitors = watch(yard, one, tree.pid)
    athena.cast(one, ["thread", "oops"], supervisor=yard.at)
    assert reasons(monitors[:1])[0]["error"]["message"] == "oops"
    wait_new(tree, "s", one)
    tree.start_child(function)  # its thread fails each time
    assert reasons(monitors[1:]) == ["shutdown"]


def test_booleans_are_no_numbers(yard: Yard) -> None:
    for flags, tag in (({"max_restarts": True}, "invalid_intensity"), ({"max_seconds": True}, "invalid_period")):
        with pytest.raises(StartError) as raised:
            yard.start(server("a"), **flags)
        assert raised.value.reason == {"supervisor_data": {tag: True}}
    with pytest.raises(StartError) as raised:
        yard.start({**server("a").to_map(), "shutdown": True})
    assert raised.value.reason == {"start_spec": {"invalid_shutdown": True}}
