"""The session machine: its table, OTP's named cases, and random walks against an independent model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from athena.errors import Reason
from supervisor.core import TRANSITIONS, IllegalTransition, SessionCore
from supervisor.restart import Backoff
from supervisor.spec import SessionSpec
from supervisor.vocabulary import (
    Announce,
    BackoffElapsed,
    CancelTimer,
    Died,
    Effect,
    Exited,
    FailCalls,
    HibernateRequested,
    InitFailed,
    Input,
    Kill,
    KillRequested,
    OfIncarnation,
    Ready,
    Removed,
    RestartRefused,
    RestartRequested,
    SendShutdown,
    SetTimer,
    Spawn,
    Spawned,
    Start,
    StartFailed,
    StartSucceeded,
    StartTimeout,
    State,
    StopRequested,
    StopTimeout,
    Timer,
    WakeRequested,
    Wanted,
)

BOOM = {"error": {"type": "RuntimeError", "message": "boom", "traceback": "..."}}


class Session:
    """A core with the shorthand of these tests: each call is one input at the current time."""

    def __init__(self, **options: Any) -> None:
        self.core = SessionCore(SessionSpec.from_options(options))
        self.now = 100.0
        self.last: tuple[Effect, ...] = ()

    def give(self, given: Input) -> tuple[Effect, ...]:
        self.last = self.core.handle(given, self.now)
        return self.last

    def start(self) -> tuple[Effect, ...]:
        return self.give(Start())

    def spawned(self) -> tuple[Effect, ...]:
        return self.give(Spawned(self.core.incarnation, 1000 + self.core.incarnation))

    def ready(self) -> tuple[Effect, ...]:
        return self.give(Ready(self.core.incarnation))

    def boot(self) -> tuple[Effect, ...]:
        self.spawned()
        return self.ready()

    def up(self) -> Session:
        self.start()
        self.boot()
        return self

    def dies(self, reason: Reason = BOOM, random: float = 0.0) -> tuple[Effect, ...]:
        return self.give(Exited(self.core.incarnation, reason, random))

    def stop(self, reason: Reason = "normal", shutdown: Any = None) -> tuple[Effect, ...]:
        return self.give(StopRequested(reason, shutdown))

    def kill(self, reason: Reason) -> tuple[Effect, ...]:
        return self.give(KillRequested(self.core.incarnation, reason))

    def hibernate(self) -> tuple[Effect, ...]:
        return self.give(HibernateRequested(self.core.incarnation))

    def wake(self) -> tuple[Effect, ...]:
        return self.give(WakeRequested())

    def asleep(self) -> Session:
        self.up().hibernate()
        self.dies("normal")
        return self

    def fires(self, kind: type[StartTimeout | StopTimeout | BackoffElapsed]) -> tuple[Effect, ...]:
        return self.give(kind(self.core.incarnation))

    def failing(self) -> Session:
        """In its first automatic restart, spawned."""
        self.up().dies()
        self.spawned()
        return self


def in_starting() -> Session:
    session = Session()
    session.start()
    session.spawned()
    return session


def in_backoff() -> Session:
    session = Session().failing()
    session.dies()
    return session


def in_stopping() -> Session:
    session = Session().up()
    session.stop()
    return session


def in_hibernating() -> Session:
    session = Session().up()
    session.hibernate()
    return session


def in_failed() -> Session:
    session = Session(max_restarts=0).up()
    session.dies()
    return session


def in_ended() -> Session:
    session = in_stopping()
    session.dies("shutdown")
    return session


REACH: dict[State, Callable[[], Session]] = {
    State.NEW: Session,
    State.STARTING: in_starting,
    State.RUNNING: lambda: Session().up(),
    State.HIBERNATING: in_hibernating,
    State.HIBERNATED: lambda: Session().asleep(),
    State.BACKOFF: in_backoff,
    State.STOPPING: in_stopping,
    State.FAILED: in_failed,
    State.ENDED: in_ended,
}


def inputs(incarnation: int) -> list[Input]:
    """One of each kind."""
    lives = (Ready, StartTimeout, StopTimeout, BackoffElapsed)
    return [
        *(Start(), StopRequested(), RestartRequested(), WakeRequested(), HibernateRequested(incarnation)),
        *(Spawned(incarnation, 7), InitFailed(incarnation, "no"), Exited(incarnation, "died", 0.0)),
        *(KillRequested(incarnation, "hung"), *(kind(incarnation) for kind in lives)),
    ]


def snapshot(core: SessionCore) -> str:
    fields = {name: value for name, value in vars(core).items() if name != "spec"}
    return f"{core!r} {fields!r}"


# --- the table -------------------------------------------------------------------------------------------------------

CALLS: set[type[Input]] = {KillRequested, StopRequested, RestartRequested, WakeRequested}
FRAMES: set[type[Input]] = {Ready, InitFailed}
SLEEP = (State.HIBERNATING, State.HIBERNATED)

LEGAL: dict[State, set[type[Input]]] = {
    State.NEW: {Start, WakeRequested},
    State.STARTING: CALLS | FRAMES | {Exited, StartTimeout},
    State.RUNNING: CALLS | FRAMES | {Exited, StartTimeout, HibernateRequested},
    State.HIBERNATING: CALLS | FRAMES | {Exited, StartTimeout, StopTimeout},
    State.HIBERNATED: CALLS | FRAMES | {StartTimeout, StopTimeout},
    State.BACKOFF: CALLS | FRAMES | {BackoffElapsed, StartTimeout},
    State.STOPPING: CALLS | FRAMES | {Exited, StartTimeout, StopTimeout},
    State.FAILED: CALLS | FRAMES | {StartTimeout},
    State.ENDED: (CALLS - {RestartRequested}) | FRAMES | {StartTimeout, StopTimeout, BackoffElapsed},
}
"""What may happen to a session whose process has a pid; ``Spawned`` is legal before that only."""

DULL: dict[State, set[type[Input]]] = {
    State.NEW: {WakeRequested},
    State.STARTING: {WakeRequested},
    State.RUNNING: FRAMES | {StartTimeout, WakeRequested},
    State.HIBERNATING: FRAMES | {StartTimeout},
    State.HIBERNATED: FRAMES | {StartTimeout, StopTimeout},
    State.BACKOFF: FRAMES | {StartTimeout, KillRequested, WakeRequested},
    State.STOPPING: FRAMES | {StartTimeout, WakeRequested},
    State.FAILED: FRAMES | {StartTimeout, KillRequested, WakeRequested},
    State.ENDED: LEGAL[State.ENDED],
}


@pytest.mark.parametrize("state", State)
def test_each_state_is_reached_for_the_tests_below(state: State) -> None:
    assert REACH[state]().core.state is state


def test_there_is_one_input_of_each_kind() -> None:
    assert {type(given) for given in inputs(1)} == set(get_args(Input))


@pytest.mark.parametrize(("state", "number"), list(itertools.product(State, range(len(inputs(1))))))
def test_every_pair_is_legal_or_raises_and_changes_nothing(state: State, number: int) -> None:
    session = REACH[state]()
    given = inputs(session.core.incarnation)[number]
    before = snapshot(session.core)
    if type(given) in LEGAL[state]:
        effects = session.give(given)
        dull = type(given) in DULL.get(state, set())
        assert not (dull and effects), session.core
        assert dull or effects or isinstance(given, InitFailed | StopRequested | WakeRequested)
    else:
        with pytest.raises(IllegalTransition, match="cannot happen"):
            session.give(given)
        assert snapshot(session.core) == before


def test_the_table_has_no_row_beyond_these() -> None:
    spawned = {(State.STARTING, Spawned), (State.STOPPING, Spawned)}
    assert set(TRANSITIONS) == {(state, kind) for state in LEGAL for kind in LEGAL[state]} | spawned


@pytest.mark.parametrize(("state", "kind"), [(s, k) for s, kinds in DULL.items() for k in kinds])
def test_a_dull_pair_changes_nothing(state: State, kind: type[Input]) -> None:
    session = REACH[state]()
    before = repr(session.core)
    given = next(given for given in inputs(session.core.incarnation) if type(given) is kind)
    assert session.give(given) == ()
    assert repr(session.core) == before


@pytest.mark.parametrize("state", [one for one in State if one not in (State.NEW, State.STOPPING)])
def test_whatever_concerns_a_former_life_is_ignored(state: State) -> None:
    session = Session(max_restarts=1).failing()  # the second life
    steps: dict[State, list[Callable[[], object]]] = {
        State.STARTING: [],
        State.RUNNING: [session.ready],
        State.HIBERNATING: [session.ready, session.hibernate],
        State.HIBERNATED: [session.ready, session.hibernate, session.dies],
        State.BACKOFF: [lambda: session.give(RestartRequested()), session.ready, session.dies, session.spawned],
        State.FAILED: [session.ready, session.dies],
        State.ENDED: [session.ready, session.stop, session.dies],
    }
    if state is State.BACKOFF:
        session = in_backoff()
    else:
        for step in steps[state]:
            step()
    assert session.core.state is state
    before = snapshot(session.core)
    for given in inputs(1):
        if isinstance(given, OfIncarnation):
            assert session.give(given) == ()
    assert snapshot(session.core) == before


@pytest.mark.parametrize("given", [given for given in inputs(2) if isinstance(given, OfIncarnation)], ids=repr)
def test_a_life_not_begun_is_illegal(given: Input) -> None:
    session = in_starting()
    with pytest.raises(IllegalTransition):
        session.give(given)


@pytest.mark.parametrize("given", [Ready(1), InitFailed(1, "no")], ids=repr)
def test_a_child_without_a_pid_says_nothing(given: Input) -> None:
    session = Session()
    session.start()
    before = snapshot(session.core)
    with pytest.raises(IllegalTransition):
        session.give(given)
    assert snapshot(session.core) == before


def test_a_restart_is_refused_with_otps_word() -> None:
    words = {
        state: REACH[state]().give(RestartRequested())
        for state in (*(State.STARTING, State.RUNNING, State.BACKOFF, State.STOPPING), *SLEEP)
    }
    assert words == {
        State.STARTING: (RestartRefused("restarting"),),
        State.RUNNING: (RestartRefused("running"),),
        State.HIBERNATING: (RestartRefused("running"),),
        State.HIBERNATED: (RestartRefused("running"),),
        State.BACKOFF: (RestartRefused("restarting"),),
        State.STOPPING: (RestartRefused("not_found"),),
    }


# --- starting --------------------------------------------------------------------------------------------------------


def test_a_start_announces_spawns_and_bounds_the_boot() -> None:
    session = Session()
    assert session.start() == (
        Announce(State.STARTING, None),
        SetTimer(Timer.START, 30.0, StartTimeout(1)),
        Spawn(1),
    )
    assert (session.core.wanted, session.core.pid) == (Wanted.UP, None)
    assert session.spawned() == ()
    assert session.core.pid == 1001
    assert session.ready() == (CancelTimer(Timer.START), Announce(State.RUNNING, None), StartSucceeded())


def test_an_unlimited_start_sets_no_timer() -> None:
    session = Session(start_timeout="infinity")
    assert session.start() == (Announce(State.STARTING, None), Spawn(1))
    session.spawned()
    assert session.ready() == (Announce(State.RUNNING, None), StartSucceeded())


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
@pytest.mark.parametrize("reason", ["normal", {"exit": 1}, {"spawn": "ENOENT"}], ids=repr)
def test_a_first_start_that_fails_leaves_nothing_and_is_not_retried(restart: str, reason: Reason) -> None:
    session = Session(restart=restart)
    session.start()
    assert session.dies(reason) == (
        CancelTimer(Timer.START),
        Died(1, reason, False),
        StartFailed(reason),
        FailCalls("start_failed", reason),
        Announce(State.ENDED, reason),
        Removed(reason),
    )
    assert (session.core.restarts_in_window(session.now), session.core.wanted) == (0, Wanted.DOWN)


def test_what_the_child_said_about_its_failed_start_is_the_reason() -> None:
    session = in_starting()
    assert session.give(InitFailed(1, "no such model")) == ()
    assert session.give(InitFailed(1, "again")) == ()
    assert session.ready() == ()  # it changed its mind: too late
    assert StartFailed("no such model") in session.dies("normal")
    assert session.core.last_reason == "no such model"


def test_a_start_out_of_time_is_killed_and_fails_with_timeout_after_the_exit() -> None:
    session = in_starting()
    assert session.fires(StartTimeout) == (Kill("timeout"),)
    assert session.ready() == ()  # crossed the kill
    effects = session.dies("killed")
    assert effects[:2] == (Died(1, "timeout", False), StartFailed("timeout"))


def test_a_child_that_said_why_and_then_hangs_keeps_its_reason() -> None:
    session = in_starting()
    session.give(InitFailed(1, "no such model"))
    assert session.fires(StartTimeout) == (Kill("timeout"),)
    assert StartFailed("no such model") in session.dies("timeout")


def test_a_kill_during_the_boot_is_a_failed_start() -> None:
    session = in_starting()
    assert session.kill({"limit": "memory"}) == (Kill({"limit": "memory"}),)
    assert session.ready() == ()  # crossed the kill
    assert session.fires(StartTimeout) == ()  # nothing to add
    assert session.core.state is State.STARTING


def test_a_kill_waits_for_a_launch_that_is_under_way() -> None:
    session = Session(start_timeout=1)
    session.start()
    assert session.fires(StartTimeout) == ()
    assert session.spawned() == (Kill("timeout"),)


# --- C: restart types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["normal", "shutdown", {"shutdown": 1}, BOOM, "killed"], ids=repr)
def test_c01_a_permanent_child_comes_back_at_once_whatever_its_reason(reason: Reason) -> None:
    session = Session(restart="permanent").up()
    assert session.dies(reason) == (
        Died(1, reason, True),
        Announce(State.STARTING, reason),
        SetTimer(Timer.START, 30.0, StartTimeout(2)),
        Spawn(2),
    )
    assert session.boot() == (CancelTimer(Timer.START), Announce(State.RUNNING, None))
    assert (session.core.incarnation, session.core.pid, session.core.last_reason) == (2, 1002, reason)
    assert session.core.restarts_in_window(session.now) == 1


@pytest.mark.parametrize("reason", ["normal", "shutdown", {"shutdown": 1}], ids=repr)
def test_c02_a_transient_child_stays_down_after_a_clean_exit(reason: Reason) -> None:
    session = Session(restart="transient").up()
    assert session.dies(reason) == (
        Died(1, reason, False),
        FailCalls("stopped", reason),
        Announce(State.ENDED, reason),
        Removed(reason),
    )
    assert session.core.restarts_in_window(session.now) == 0


def test_c02_a_transient_child_comes_back_after_an_abnormal_exit() -> None:
    session = Session(restart="transient").up()
    assert Spawn(2) in session.dies(BOOM)


@pytest.mark.parametrize(("reason", "error"), [("normal", "stopped"), (BOOM, "failed"), ("shutdown", "stopped")])
def test_c03_a_temporary_child_is_never_restarted(reason: Reason, error: Any) -> None:
    session = Session(restart="temporary").up()
    assert session.dies(reason)[1:] == (FailCalls(error, reason), Announce(State.ENDED, reason), Removed(reason))
    assert (session.core.wanted, session.core.pid) == (Wanted.DOWN, None)


# --- D: intensity, failing restarts ----------------------------------------------------------------------------------


def test_d01_one_in_one_second_survives_crashes_2100_ms_apart() -> None:
    session = Session(restart="permanent", max_restarts=1, max_seconds=1, shutdown="brutal_kill").up()
    for _ in range(4):
        session.dies("died")
        session.boot()
        session.now += 2.1
    assert (session.core.state, session.core.incarnation) == (State.RUNNING, 5)


def test_d02_two_in_an_hour_ends_with_the_third_crash() -> None:
    session = Session(restart="permanent", max_restarts=2, max_seconds=3600).up()
    for _ in range(2):
        session.dies("died")
        session.boot()
    assert session.dies("died") == (
        Died(3, "died", False),
        FailCalls("failed", "died"),
        Announce(State.FAILED, "died"),
    )
    assert (session.core.wanted, session.core.reason, session.core.pid) == (Wanted.UP, "died", None)


@pytest.mark.parametrize(
    ("times", "state"),
    [((0.0, 1.9), State.FAILED), ((0.9, 2.0), State.RUNNING), ((0.0, 2.0), State.RUNNING)],
)
def test_the_examples_of_the_window_hold_for_a_session(times: tuple[float, float], state: State) -> None:
    session = Session(max_restarts=1, max_seconds=1).up()
    session.now = times[0]
    session.dies()
    session.boot()
    session.now = times[1]
    session.dies()
    if session.core.state is State.STARTING:
        session.boot()
    assert session.core.state is state


def test_intensity_0_fails_at_the_first_crash_without_a_spawn() -> None:
    assert Session(max_restarts=0).up().dies()[-1] == Announce(State.FAILED, BOOM)


def test_a_failed_restart_counts_and_is_tried_again_after_a_pause() -> None:
    session = Session(max_restarts=9, boot_failures=9).failing()
    assert session.dies({"exit": 1}, random=0.5) == (
        CancelTimer(Timer.START),
        Died(2, {"exit": 1}, True),
        Announce(State.BACKOFF, {"exit": 1}),
        SetTimer(Timer.BACKOFF, 0.1 * 0.75, BackoffElapsed(2)),
    )
    assert session.core.restarts_in_window(session.now) == 2
    session.now += 0.075
    assert session.fires(BackoffElapsed) == (
        Announce(State.STARTING, {"exit": 1}),
        SetTimer(Timer.START, 30.0, StartTimeout(3)),
        Spawn(3),
    )
    assert SetTimer(Timer.BACKOFF, 0.2, BackoffElapsed(3)) in session.dies({"exit": 2})


def test_a_clean_exit_before_readiness_is_a_failed_restart_too() -> None:
    session = Session().failing()
    session.dies("normal")
    assert session.core.state is State.BACKOFF


def test_readiness_ends_a_row_of_failures() -> None:
    session = Session(max_restarts=9, boot_failures=2).failing()
    session.dies()
    session.fires(BackoffElapsed)
    session.boot()
    assert Spawn(4) in session.dies()  # at once again
    session.dies()
    assert session.core.state is State.BACKOFF


def test_without_backoff_a_failed_restart_is_repeated_at_once_until_the_limit() -> None:
    session = Session(backoff=None, max_restarts=3, boot_failures=99).failing()
    assert Spawn(3) in session.dies()
    assert Spawn(4) in session.dies()
    assert session.dies() == (
        CancelTimer(Timer.START),
        Died(4, BOOM, False),
        FailCalls("failed", BOOM),
        Announce(State.FAILED, BOOM),
    )


def fail_boots(session: Session, *reasons: Reason) -> None:
    for reason in reasons:
        session.dies(reason)
        if session.core.state is State.BACKOFF:
            session.fires(BackoffElapsed)


def test_equal_failures_in_a_row_before_readiness_fail_the_boot() -> None:
    session = Session().failing()
    fail_boots(session, BOOM, BOOM, BOOM)
    assert session.last[1:] == (
        Died(4, BOOM, False),
        FailCalls("failed", {"boot": BOOM}),
        Announce(State.FAILED, {"boot": BOOM}),
    )
    assert session.core.last_reason == BOOM


def test_a_timer_that_fired_is_not_cancelled_later() -> None:
    session = Session(boot_failures=2).failing()
    fail_boots(session, BOOM, BOOM)
    assert session.core.state is State.FAILED
    assert not [effect for effect in session.stop() if isinstance(effect, CancelTimer)]


def test_unequal_failures_are_the_intensitys_to_judge() -> None:
    session = Session(max_restarts=5).failing()
    fail_boots(session, "a", "b", "a", "a", "b")
    assert (session.core.state, session.core.reason) == (State.FAILED, "b")


def test_a_boot_that_is_killed_for_its_time_counts_as_timeout() -> None:
    session = Session(max_restarts=9, boot_failures=2).failing()
    session.fires(StartTimeout)
    fail_boots(session, "killed")
    session.spawned()
    session.fires(StartTimeout)
    fail_boots(session, "killed")
    assert session.core.reason == {"boot": "timeout"}


# --- failed, and started again by name -------------------------------------------------------------------------------


def test_a_failed_session_is_started_again_with_a_new_window_and_new_counters() -> None:
    session = Session(max_restarts=1, max_seconds=3600).failing()
    session.ready()
    session.dies()
    assert session.core.state is State.FAILED
    assert session.give(RestartRequested()) == (
        Announce(State.STARTING, BOOM),
        SetTimer(Timer.START, 30.0, StartTimeout(3)),
        Spawn(3),
    )
    assert session.core.restarts_in_window(session.now) == 0
    assert StartSucceeded() in session.boot()
    assert Spawn(4) in session.dies()


def test_a_manual_restart_that_fails_is_answered_and_the_session_stays_failed() -> None:
    session = in_failed()
    session.give(RestartRequested())
    assert session.dies("no") == (
        CancelTimer(Timer.START),
        Died(2, "no", False),
        StartFailed("no"),
        FailCalls("failed", {"boot": "no"}),
        Announce(State.FAILED, {"boot": "no"}),
    )
    session.give(RestartRequested())
    assert StartSucceeded() in session.boot()


@pytest.mark.parametrize("state", [State.FAILED, State.BACKOFF])
def test_a_stop_without_a_process_is_over_at_once(state: State) -> None:
    session = REACH[state]()
    cancel = (CancelTimer(Timer.BACKOFF),) if state is State.BACKOFF else ()
    assert session.stop("enough") == (
        *cancel,
        FailCalls("stopped", "enough"),
        Announce(State.ENDED, "enough"),
        Removed("enough"),
    )
    assert session.stop() == ()


# --- E: stopping -----------------------------------------------------------------------------------------------------


def test_e01_a_child_that_obeys_ends_within_its_time() -> None:
    session = Session(shutdown=1.0).up()
    assert session.stop("bye") == (
        Announce(State.STOPPING, "bye"),
        SendShutdown("bye"),
        SetTimer(Timer.STOP, 1.0, StopTimeout(1)),
    )
    assert session.core.wanted is Wanted.DOWN
    assert session.dies("shutdown") == (
        CancelTimer(Timer.STOP),
        Died(1, "shutdown", False),
        FailCalls("stopped", "bye"),
        Announce(State.ENDED, "bye"),
        Removed("bye"),
    )


def test_e01_a_child_that_sleeps_is_killed_after_its_time() -> None:
    session = Session(shutdown=1.0).up()
    session.stop()
    assert session.fires(StopTimeout) == (Kill("killed"),)
    assert session.fires(StopTimeout) == ()
    assert session.dies("killed")[0] == Died(1, "killed", False)


def test_e02_a_brutal_kill_sends_nothing_polite() -> None:
    session = Session(shutdown="brutal_kill").up()
    assert session.stop() == (Announce(State.STOPPING, "normal"), Kill("killed"))
    assert session.dies("killed")[-1] == Removed("normal")


def test_an_unlimited_shutdown_sets_no_timer() -> None:
    session = Session(shutdown="infinity").up()
    assert session.stop() == (Announce(State.STOPPING, "normal"), SendShutdown("normal"))


def test_a_shutdown_of_0_asks_and_kills_with_no_wait() -> None:
    assert SetTimer(Timer.STOP, 0, StopTimeout(1)) in Session(shutdown=0).up().stop()


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
@pytest.mark.parametrize("reason", ["normal", "shutdown", "killed", BOOM], ids=repr)
def test_a_child_being_stopped_is_neither_restarted_nor_counted(restart: str, reason: Reason) -> None:
    session = Session(restart=restart).up()
    session.stop()
    assert session.dies(reason)[-1] == Removed("normal")
    assert session.core.restarts_in_window(session.now) == 0


def test_a_second_stop_can_only_shorten_the_first() -> None:
    session = Session(shutdown=5).up()
    session.stop()
    session.now += 1
    assert session.stop() == session.stop("x", 4) == session.stop("x", "infinity") == ()
    assert session.stop("x", 0.5) == (SetTimer(Timer.STOP, 0.5, StopTimeout(1)),)
    assert session.stop("x", "brutal_kill") == (CancelTimer(Timer.STOP), Kill("killed"))
    assert session.stop("x", "brutal_kill") == session.stop("x", 0.1) == ()
    assert session.dies("killed")[-1] == Removed("normal")


def test_an_unlimited_stop_can_be_limited_later() -> None:
    session = Session(shutdown="infinity").up()
    session.stop()
    assert session.stop(shutdown=2) == (SetTimer(Timer.STOP, 2, StopTimeout(1)),)


def test_a_stop_can_ask_for_less_than_the_spec() -> None:
    assert Kill("killed") in Session(shutdown="infinity").up().stop(shutdown="brutal_kill")


def test_a_stop_during_the_first_start_fails_that_start_after_the_exit() -> None:
    session = in_starting()
    assert session.stop("bye")[0] == CancelTimer(Timer.START)
    assert session.ready() == ()
    assert session.dies("shutdown")[1:4] == (
        Died(1, "shutdown", False),
        StartFailed("bye"),
        FailCalls("stopped", "bye"),
    )


def test_a_start_that_had_failed_before_the_stop_keeps_its_reason() -> None:
    session = in_starting()
    session.give(InitFailed(1, "no such model"))
    session.stop()
    assert StartFailed("no such model") in session.dies("normal")


def test_a_stop_during_a_manual_restart_answers_it() -> None:
    session = in_failed()
    session.give(RestartRequested())
    session.stop("bye")
    assert StartFailed("bye") in session.dies({"spawn": "EAGAIN"})


def test_a_stop_during_an_automatic_restart_has_no_start_to_answer() -> None:
    session = Session().failing()
    session.stop()
    assert not [effect for effect in session.dies("shutdown") if isinstance(effect, StartFailed)]


def test_a_stop_waits_for_a_launch_that_is_under_way() -> None:
    session = Session(shutdown=1)
    session.start()
    assert session.stop()[1:] == (Announce(State.STOPPING, "normal"), SetTimer(Timer.STOP, 1, StopTimeout(1)))
    assert session.spawned() == (SendShutdown("normal"),)


def test_a_stop_whose_time_is_over_before_the_launch_kills_what_was_launched() -> None:
    session = Session(shutdown=1)
    session.start()
    session.stop()
    assert session.fires(StopTimeout) == ()
    assert session.spawned() == (Kill("killed"),)


# --- kills of ours ---------------------------------------------------------------------------------------------------


def test_a_kill_of_ours_is_an_abnormal_death_like_any_other() -> None:
    session = Session().up()
    assert session.kill("hung") == (Kill("hung"),)
    assert session.kill({"limit": "memory"}) == ()  # the first reason stands
    assert session.dies("hung")[:2] == (Died(1, "hung", True), Announce(State.STARTING, "hung"))


def test_a_stop_after_a_kill_has_nothing_to_add() -> None:
    session = Session().up()
    session.kill("hung")
    assert session.stop() == (Announce(State.STOPPING, "normal"),)
    assert session.dies("hung") == (
        Died(1, "hung", False),
        FailCalls("stopped", "normal"),
        Announce(State.ENDED, "normal"),
        Removed("normal"),
    )


def test_a_limit_exceeded_during_a_stop_kills_at_once() -> None:
    session = in_stopping()
    assert session.kill({"limit": "memory"}) == (Kill({"limit": "memory"}),)


def test_the_repr_shows_what_a_failing_test_needs() -> None:
    assert repr(Session().failing().core) == (
        "<SessionCore STARTING wanted=UP incarnation=2 pid=1002 restarts=1 failed_starts=0 killed=False"
        f" last_reason={BOOM!r}>"
    )


# --- sleep -----------------------------------------------------------------------------------------------------------


def test_an_idle_session_is_asked_to_end_and_lives_on_without_a_process() -> None:
    session = Session().up()
    assert session.hibernate() == (
        Announce(State.HIBERNATING, None),
        SendShutdown("hibernate"),
        SetTimer(Timer.STOP, 5.0, StopTimeout(1)),
    )
    assert session.core.pid == 1001
    assert session.dies("normal") == (CancelTimer(Timer.STOP), Announce(State.HIBERNATED, None))
    rest: Any = (session.core.pid, session.core.wanted, session.core.last_reason)
    assert rest == (None, Wanted.UP, None)


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
@pytest.mark.parametrize("reason", ["normal", "killed", {"signal": "SIGSEGV"}, BOOM], ids=repr)
def test_however_a_child_ends_that_was_told_to_sleep_it_sleeps(restart: str, reason: Reason) -> None:
    session = Session(restart=restart).up()
    session.hibernate()
    assert session.dies(reason) == (CancelTimer(Timer.STOP), Announce(State.HIBERNATED, None))


@pytest.mark.parametrize("shutdown", ["infinity", 5.0])
def test_a_child_that_does_not_fall_asleep_is_killed_in_time_even_if_a_stop_would_wait(shutdown: Any) -> None:
    session = Session(shutdown=shutdown).up()
    assert SetTimer(Timer.STOP, 5.0, StopTimeout(1)) in session.hibernate()
    assert session.fires(StopTimeout) == (Kill("killed"),)
    assert session.dies("killed") == (Announce(State.HIBERNATED, None),)


def test_a_brutal_shutdown_kills_the_idle_child_at_once() -> None:
    assert Session(shutdown="brutal_kill").up().hibernate() == (Announce(State.HIBERNATING, None), Kill("killed"))


def test_a_wake_spawns_without_counting_and_answers_nobody() -> None:
    session = Session().asleep()
    assert session.wake() == (
        Announce(State.STARTING, None),
        SetTimer(Timer.START, 30.0, StartTimeout(2)),
        Spawn(2),
    )
    assert session.core.wakes
    assert session.boot() == (CancelTimer(Timer.START), Announce(State.RUNNING, None))
    assert session.core.restarts_in_window(session.now) == 0


def test_a_call_on_the_way_out_leads_back_in() -> None:
    session = Session().up()
    session.hibernate()
    assert session.wake() == session.wake() == ()
    assert session.dies("normal") == (
        CancelTimer(Timer.STOP),
        Announce(State.HIBERNATED, None),
        Announce(State.STARTING, None),
        SetTimer(Timer.START, 30.0, StartTimeout(2)),
        Spawn(2),
    )


def test_a_wake_that_fails_is_a_restart_that_failed() -> None:
    session = Session(max_restarts=1).asleep()
    session.wake()
    session.spawned()
    assert session.dies(BOOM)[1:] == (
        Died(2, BOOM, True),
        Announce(State.BACKOFF, BOOM),
        SetTimer(Timer.BACKOFF, 0.1, BackoffElapsed(2)),
    )
    assert session.core.restarts_in_window(session.now) == 1
    session.fires(BackoffElapsed)
    assert not session.core.wakes  # another process
    assert session.dies("other")[-1] == Announce(State.FAILED, "other")


@pytest.mark.parametrize("state", SLEEP)
def test_a_kill_of_a_sleeper_is_its_death_and_the_restart_table_decides(state: State) -> None:
    session = REACH[state]()
    effects = session.kill("hung")
    if state is State.HIBERNATING:
        assert effects == (Kill("hung"),)
        effects = session.dies("normal")[1:]  # it was faster
    assert effects == (
        Died(1, "hung", True),
        Announce(State.STARTING, "hung"),
        SetTimer(Timer.START, 30.0, StartTimeout(2)),
        Spawn(2),
    )
    assert session.core.restarts_in_window(session.now) == 1


def test_an_exit_signal_on_the_way_back_is_judged_as_that_of_a_live_process() -> None:
    session = Session(restart="transient").asleep()
    session.wake()
    session.spawned()
    assert session.kill("shutdown") == (Kill("shutdown"),)
    assert session.dies("shutdown")[1:] == (
        Died(2, "shutdown", False),
        FailCalls("stopped", "shutdown"),
        Announce(State.ENDED, "shutdown"),
        Removed("shutdown"),
    )


def test_a_stop_of_a_sleeper_is_over_at_once() -> None:
    assert Session().asleep().stop("bye") == (
        Died(1, "bye", False),
        FailCalls("stopped", "bye"),
        Announce(State.ENDED, "bye"),
        Removed("bye"),
    )


def test_a_stop_on_the_way_out_gives_the_end_its_reason_and_can_only_shorten_it() -> None:
    session = Session(shutdown=5).up()
    session.hibernate()
    session.now += 1
    assert session.stop("bye", 9) == (Announce(State.STOPPING, "bye"),)  # it was asked already
    assert session.dies("normal") == (
        CancelTimer(Timer.STOP),
        Died(1, "bye", False),
        FailCalls("stopped", "bye"),
        Announce(State.ENDED, "bye"),
        Removed("bye"),
    )


def test_a_stop_after_a_sleep_has_all_its_time() -> None:
    session = Session(shutdown=5).asleep()
    session.now += 100
    session.wake()
    session.boot()
    assert SetTimer(Timer.STOP, 5, StopTimeout(2)) in session.stop()


def test_what_is_being_killed_does_not_sleep() -> None:
    session = Session().up()
    session.kill("hung")
    assert session.hibernate() == ()
    assert session.dies("hung")[0] == Died(1, "hung", True)


# --- random walks ----------------------------------------------------------------------------------------------------

REASONS: list[Reason] = ["normal", "shutdown", {"shutdown": 1}, "killed", {"exit": 1}, BOOM]
LIMIT, PERIOD, BOOTS = 3, 3, 2


class Walk(RuleBasedStateMachine):
    """A world of one process, timers and callers, and what must be true of it; knows nothing of the core's states."""

    restart = "transient"

    def __init__(self) -> None:
        super().__init__()
        options = {"restart": self.restart, "max_restarts": LIMIT, "max_seconds": PERIOD, "boot_failures": BOOTS}
        self.core = SessionCore(SessionSpec.from_options({**options, "backoff": {"base_s": 1, "cap_s": 4}}))
        self.now = 50.25
        self.life = 0
        self.phase = "none"  # none, launching, booting, up
        self.first = True  # before any readiness or failure of the first start
        self.asked = 0  # starts that callers wait for
        self.stopping = self.failed = self.removed = False
        self.boot_reason: Reason = None
        self.doomed = False
        self.sleeping = self.asleep = self.waking = self.needed = False
        self.ended_for: Reason = None  # a kill or stop on the way to sleep or back
        self.stamps: list[int] = []
        self.boots: list[Reason] = []
        self.timers: dict[Timer, Input] = {}
        self.old_timers: list[Input] = []
        self.effects: list[Effect] = []

    def give(self, given: Input) -> None:
        assert not self.removed or self.core.handle(given, self.now) == ()
        self.effects = [] if self.removed else list(self.core.handle(given, self.now))
        for effect in self.effects:
            self.carry_out(effect)

    def carry_out(self, effect: Effect) -> None:
        assert not self.removed, f"{effect} after Removed"
        match effect:
            case Spawn(incarnation):
                assert self.phase == "none", "two live processes"
                assert not self.stopping, "spawned unwanted"
                assert incarnation == self.life + 1
                self.life, self.phase, self.boot_reason, self.doomed = incarnation, "launching", None, False
                self.waking, self.asleep = self.asleep, False
                self.ended_for = None
            case SendShutdown():
                assert self.stopping or self.sleeping
                assert self.phase in ("booting", "up")
            case Kill():
                assert self.phase in ("booting", "up")
                assert not self.doomed, "killed twice"
                self.doomed = True
            case SetTimer(kind, delay_s, then):
                assert 0 <= delay_s < math.inf
                self.retire(kind)
                self.timers[kind] = then
            case CancelTimer(kind):
                assert kind in self.timers
                self.retire(kind)
            case StartSucceeded() | StartFailed():
                self.asked -= 1
                assert self.asked >= 0, "a start answered twice"
            case Removed():
                self.removed = True

    def retire(self, kind: Timer) -> None:
        if kind in self.timers:
            self.old_timers.append(self.timers.pop(kind))

    def expected(self, reason: Reason) -> tuple[Reason, str]:
        """The reason and what must follow an exit, from the rules of otp.md 6, 8 and 9 in plain words."""
        if self.stopping:
            return reason, "removed"
        booted = self.phase == "up"
        cause = reason if booted or self.boot_reason is None else self.boot_reason
        if not booted and self.asked:
            return cause, "removed" if self.first else "failed boot"
        if booted:
            self.boots = []
            clean = reason in ("normal", "shutdown", {"shutdown": 1})
            if self.restart == "temporary" or (self.restart == "transient" and clean):
                return cause, "removed"
        else:
            self.boots.append(cause)
            if len(self.boots) >= BOOTS and all(boot == cause for boot in self.boots[-BOOTS:]):
                return cause, "failed boot"
        second = int(self.now)
        self.stamps = [second, *(stamp for stamp in self.stamps if second - stamp <= PERIOD)]
        return cause, "again" if len(self.stamps) <= LIMIT else "failed"

    def is_live(self) -> bool:
        return self.phase in ("booting", "up")

    @precondition(lambda self: self.life == 0)
    @rule()
    def start(self) -> None:
        self.asked = 1
        self.give(Start())

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.phase == "launching")
    @rule()
    def launched(self) -> None:
        self.phase = "booting"
        self.give(Spawned(self.life, self.life))

    @precondition(lambda self: self.is_live())
    @rule()
    def says_ready(self) -> None:
        doomed = self.doomed or self.boot_reason is not None or self.stopping
        self.give(Ready(self.life))
        if self.phase == "booting" and not doomed:
            assert Announce(State.RUNNING, None) in self.effects
            self.phase, self.first, self.boots = "up", False, []

    @precondition(lambda self: self.is_live())
    @rule(reason=st.sampled_from(REASONS))
    def says_it_cannot_start(self, reason: Reason) -> None:
        if self.phase == "booting" and self.boot_reason is None and not self.stopping:
            self.boot_reason = reason
        self.give(InitFailed(self.life, reason))

    @precondition(lambda self: self.phase != "none")
    @rule(reason=st.sampled_from(REASONS), random=st.floats(0, 1, exclude_max=True))
    def dies(self, reason: Reason, random: float) -> None:
        given = Exited(self.life, reason, random)
        if self.sleeping and not self.stopping and self.ended_for is None:
            self.falls_asleep(given)
            return
        if self.ended_for is not None:
            reason, self.phase = self.ended_for, "up"
        self.ends(given, reason)

    def falls_asleep(self, given: Exited) -> None:
        self.phase, self.sleeping, self.asleep, self.waking = "none", False, True, False
        self.give(given)
        assert not [effect for effect in self.effects if isinstance(effect, Died | FailCalls)]
        assert self.waking is self.needed is (self.phase == "launching")
        self.needed = False

    def ends(self, given: Input, reason: Reason) -> None:
        life = self.life
        cause, outcome = self.expected(reason)
        self.phase, self.sleeping, self.asleep, self.needed = "none", False, False, False
        self.give(given)
        assert [effect for effect in self.effects if isinstance(effect, Died)] == [
            Died(life, cause, outcome == "again")
        ]
        self.failed = outcome in ("failed", "failed boot")
        assert self.removed is (outcome == "removed")
        assert (self.core.state is State.FAILED) is self.failed
        assert not self.failed or self.core.reason == ({"boot": cause} if outcome == "failed boot" else cause)
        if outcome == "again":
            assert self.phase == "launching" or Timer.BACKOFF in self.timers
        else:
            assert self.asked == 0, "a start without an answer"
            assert any(isinstance(effect, FailCalls) for effect in self.effects)

    @precondition(lambda self: self.phase == "launching" and not self.stopping)
    @rule(reason=st.sampled_from(REASONS[3:]), boots=st.booleans())
    def crashes(self, reason: Reason, boots: bool) -> None:
        """Several steps in one, so that walks get as far as the limits."""
        self.launched()
        if boots:
            self.says_ready()
        self.dies(reason, 0.0)
        if Timer.BACKOFF in self.timers:
            self.fire(Timer.BACKOFF)

    @precondition(lambda self: self.phase == "up" and not (self.stopping or self.sleeping))
    @rule(boots=st.booleans())
    def sleeps_and_wakes(self, boots: bool) -> None:
        """Likewise."""
        self.hibernate()
        self.dies("normal", 0.0)
        if self.asleep:
            self.wake()
            self.launched()
            if boots:
                self.says_ready()

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def timer_fires(self, data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(sorted(self.timers, key=lambda kind: kind.value)))
        self.fire(kind)

    def fire(self, kind: Timer) -> None:
        then = self.timers.pop(kind)
        self.old_timers.append(then)
        if kind is Timer.START and self.boot_reason is None:
            self.boot_reason = "timeout"
        self.give(then)
        if kind is Timer.BACKOFF:
            assert Spawn(self.life) in self.effects

    @precondition(lambda self: self.old_timers and (self.removed or not self.timers))
    @rule(data=st.data())
    def timer_fires_late(self, data: st.DataObject) -> None:
        self.give(data.draw(st.sampled_from(self.old_timers)))
        assert not [effect for effect in self.effects if not isinstance(effect, Kill)]

    @precondition(lambda self: self.life > 0)
    @rule(shutdown=st.sampled_from([None, 0, 2.0, "brutal_kill", "infinity"]), luck=st.integers(0, 1))
    def stop(self, shutdown: Any, luck: int = 0) -> None:
        if luck:  # most walks should last longer than a few steps
            return
        self.stopping = True
        if self.asleep:
            self.ends(StopRequested("normal", shutdown), "normal")
            return
        if self.sleeping and self.ended_for is None:
            self.ended_for = "normal"
        self.give(StopRequested("normal", shutdown))
        assert self.removed is (self.phase == "none")

    @precondition(lambda self: self.life > 0)
    @rule(former=st.booleans())
    def kill(self, former: bool) -> None:
        given = KillRequested(self.life - former, "hung")
        if self.asleep and not former:
            self.phase = "up"
            self.ends(given, "hung")
            return
        on_its_way = not self.stopping and (self.sleeping or (self.waking and self.phase in ("launching", "booting")))
        if on_its_way and not former and self.ended_for is None:
            self.ended_for = "hung"
        self.give(given)
        assert not (former and self.effects)

    @precondition(lambda self: self.phase == "up" and not self.stopping and not self.sleeping)
    @rule()
    def hibernate(self) -> None:
        self.sleeping = not self.doomed
        self.give(HibernateRequested(self.life))
        assert bool(self.effects) is self.sleeping

    @precondition(lambda self: self.life > 0)
    @rule()
    def wake(self) -> None:
        was_asleep = self.asleep
        self.needed = self.needed or self.sleeping
        self.give(WakeRequested())
        assert bool(self.effects) is was_asleep
        assert not was_asleep or self.phase == "launching"

    @precondition(lambda self: self.life > 0 and not self.removed)
    @rule()
    def restart_by_name(self) -> None:
        if self.failed:
            self.asked, self.first, self.failed = 1, False, False
            self.stamps, self.boots = [], []
        self.give(RestartRequested())

    @invariant()
    def the_core_agrees(self) -> None:
        assert self.core.incarnation == self.life
        assert self.core.pid == (self.life if self.is_live() else None)
        assert (self.core.wanted is Wanted.DOWN) is (self.stopping or self.removed or self.life == 0)
        assert (self.core.state is State.RUNNING) is (self.phase == "up" and not (self.stopping or self.sleeping))
        assert (self.core.state is State.HIBERNATED) is self.asleep
        assert self.core.restarts_in_window(self.now) <= LIMIT + self.failed

    def teardown(self) -> None:
        """However it stands, a stop and the exit end it, and leave no caller and no timer."""
        if self.life > 0 and not self.removed:
            self.stop("brutal_kill")
            if self.phase == "launching":
                self.launched()
            if self.phase != "none":
                assert self.doomed
                self.dies("killed", 0.0)
            assert self.removed
        assert not self.timers
        assert self.asked == 0


class PermanentWalk(Walk):
    restart = "permanent"


class TemporaryWalk(Walk):
    restart = "temporary"


def test_a_backoff_value_can_be_given_directly() -> None:
    core = SessionCore(SessionSpec(backoff=Backoff(cap_s=1)))
    assert core.handle(Start(), 0.0)[-1] == Spawn(1)


TestTransientWalk = Walk.TestCase
TestPermanentWalk = PermanentWalk.TestCase
TestTemporaryWalk = TemporaryWalk.TestCase
TestTransientWalk.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestPermanentWalk.settings = TestTemporaryWalk.settings = settings(TestTransientWalk.settings, max_examples=75)
