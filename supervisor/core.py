"""The state machine of one supervised session: inputs and a time in, effects out (design 7.1).

Two rules bind this file. Every legal pair of state and input is a row of :data:`TRANSITIONS`; an absent pair is a bug
of the driver, raises :class:`IllegalTransition` and changes nothing. And what the operator wants (:class:`Wanted`) is
another field than what the process does (:class:`State`).

What the driver owes the core: it carries out the effects of one input, in order, before it gives the next; it answers
every :class:`Spawn` with :class:`Spawned` or, if the launch failed, with :class:`Exited` alone; it gives
:class:`Exited` only when the whole process tree is gone, and once per incarnation.

Numbers in comments are sections of `reference/otp.md`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from athena.errors import Reason
from athena.spec_checks import Shutdown
from supervisor.restart import FailedStarts, Intensity, is_clean, should_restart
from supervisor.spec import SessionSpec
from supervisor.vocabulary import (
    Announce,
    BackoffElapsed,
    CallError,
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
    RestartError,
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
    TimerInput,
    WakeRequested,
    Wanted,
)

HIBERNATE_S = 5.0
"""Within this a child falls asleep whose ``shutdown`` is unlimited: calls wait for its next life meanwhile."""


class IllegalTransition(RuntimeError):
    """The driver gave an input that cannot happen in this state. The machine is unchanged. Never crosses the wire."""


class _Try(enum.Enum):
    """Who waits for the start that is under way."""

    FIRST = "first"
    MANUAL = "manual"
    AUTOMATIC = "automatic"


@dataclass(slots=True)
class _Life:
    """What is known of the current incarnation."""

    pid: int | None = None
    boot_error: Reason = None  # why its start has failed already, while its exit is awaited
    killed: bool = False
    held: SendShutdown | Kill | None = None  # an order that waits for the launch to be over
    stop_deadline: float = math.inf
    is_needed: bool = False  # somebody needs the child while it falls asleep
    wakes: bool = False  # it goes on with a process that slept
    ended_for: Reason = None  # why it was ended on its way to sleep or back, where its own exit tells nothing


_REFUSALS: dict[State, RestartError] = {
    State.STARTING: "restarting",
    State.RUNNING: "running",
    State.HIBERNATING: "running",
    State.HIBERNATED: "running",
    State.BACKOFF: "restarting",
    State.STOPPING: "not_found",
}


class SessionCore:
    """One session under a supervisor of its own. Feed it with :meth:`handle`."""

    def __init__(self, spec: SessionSpec) -> None:
        self.spec = spec
        self.state = State.NEW
        self.wanted = Wanted.DOWN
        self.incarnation = 0
        """The life that is or was last; counts from 1. A wake begins one too, and is no restart."""
        self.reason: Reason = None
        """Why the session is in its state: as announced."""
        self.last_reason: Reason = None
        """How the last incarnation that died ended."""
        self._try = _Try.FIRST
        self._intensity = Intensity(spec.max_restarts, spec.max_seconds)
        self._failed = FailedStarts()
        self._timers: set[Timer] = set()
        self._effects: list[Effect] = []
        self._life = _Life()

    @classmethod
    def restored(cls, spec: SessionSpec, state: State, reason: Reason) -> SessionCore:
        """A session that an earlier supervisor had, and that sleeps or has failed from the start."""
        core = cls(spec)
        core.state, core.wanted, core._try = state, Wanted.UP, _Try.AUTOMATIC
        core.reason = reason if state is State.FAILED else None
        core.last_reason = reason
        return core

    def __repr__(self) -> str:
        return (
            f"<SessionCore {self.state.name} wanted={self.wanted.name} incarnation={self.incarnation} pid={self.pid}"
            f" restarts={len(self._intensity.stamps)} failed_starts={self._failed.count} killed={self._life.killed}"
            f" last_reason={self.last_reason!r}>"
        )

    @property
    def pid(self) -> int | None:
        """The OS pid of the live process."""
        return self._life.pid if self.state in _WITH_PROCESS else None

    @property
    def wakes(self) -> bool:
        """Whether the current life goes on with a process that slept, under its serial."""
        return self._life.wakes

    def restarts_in_window(self, now: float) -> int:
        """Automatic restarts that count against the intensity at ``now``."""
        return self._intensity.count(now)

    def handle(self, given: Input, now: float) -> tuple[Effect, ...]:
        """Take one input at ``now`` (seconds, monotonic) and return what must be done, in order.

        Raises :class:`IllegalTransition`, and changes nothing, if ``given`` cannot happen now.
        """
        if isinstance(given, OfIncarnation) and given.incarnation < self.incarnation:
            return ()  # an exit, frame or timer of a former life, handled late: ignored like an unknown pid's (6)
        handler = TRANSITIONS.get((self.state, type(given)))
        if handler is None or self._is_out_of_order(given):
            raise IllegalTransition(f"{given!r} cannot happen to {self!r}; the driver gave an input out of order")
        self._effects = []
        handler(self, given, now)
        return tuple(self._effects)

    def _is_out_of_order(self, given: Input) -> bool:
        """Whether the pair is legal and the order is not: a life not begun, one spawned twice, words before a pid."""
        if isinstance(given, OfIncarnation) and given.incarnation > self.incarnation:
            return True
        if isinstance(given, Spawned):
            return self._life.pid is not None
        return isinstance(given, Ready | InitFailed) and self._life.pid is None

    # --- handlers ----------------------------------------------------------------------------------------------------

    def _on_start(self, _given: Start, _now: float) -> None:
        self.wanted = Wanted.UP
        self._spawn(None)

    def _on_spawned(self, given: Spawned, _now: float) -> None:
        self._life.pid = given.pid
        if self._life.held is not None:
            self._effects.append(self._life.held)

    def _on_ready(self, _given: Ready, _now: float) -> None:
        if self._life.killed or self._life.boot_error is not None:
            return  # the frame and our kill, or its own refusal, crossed: this start has failed, its exit will follow
        self._cancel(Timer.START)
        self._enter(State.RUNNING, None)
        if self._try is not _Try.AUTOMATIC:
            self._effects.append(StartSucceeded())
        self._try = _Try.AUTOMATIC
        self._failed = FailedStarts()

    def _on_init_failed(self, given: InitFailed, _now: float) -> None:
        if self._life.boot_error is None:
            self._life.boot_error = given.reason

    def _on_start_timeout(self, _given: StartTimeout, _now: float) -> None:
        self._timers.discard(Timer.START)
        if self._life.boot_error is None:
            self._life.boot_error = "timeout"  # what a start function answers that has run out of time (5)
        self._kill("timeout")

    def _on_boot_exit(self, given: Exited, now: float) -> None:
        """A death before readiness is a failed start whatever its reason, a clean one included (5)."""
        self._cancel(Timer.START)
        reason = given.reason if self._life.boot_error is None else self._life.boot_error
        if self._life.ended_for is not None:  # a process that slept was ended: it did not fail to start
            self._on_run_exit(Exited(given.incarnation, self._life.ended_for, given.random), now)
        elif self._try is _Try.FIRST:  # nothing is left of it, the intensity is not asked (8, 19.9)
            self._died(reason)
            self._effects.append(StartFailed(reason))
            self._remove("start_failed", reason)
        elif self._try is _Try.MANUAL:  # as restart_child: the error is answered, the spec is kept, no retry (5)
            self._died(reason)
            self._effects.append(StartFailed(reason))
            self._fail({"boot": reason})
        else:
            self._retry(reason, given.random, now)

    def _on_run_exit(self, given: Exited, now: float) -> None:
        if should_restart(self.spec.restart, given.reason):
            self._restart(given.reason, given.random, now)
        else:
            self._died(given.reason)
            self._remove("stopped" if is_clean(given.reason) else "failed", given.reason)

    def _on_backoff_elapsed(self, _given: BackoffElapsed, _now: float) -> None:
        self._timers.discard(Timer.BACKOFF)
        self._spawn(self.last_reason)

    def _on_kill(self, given: KillRequested, _now: float) -> None:
        if self._life.wakes and self.state is State.STARTING:
            self._end_for(given.reason)
        self._kill(given.reason)

    # Sleep (design 7.7). To its monitors the process lives on, so its end for this is no death, whatever its reason:
    # neither told, nor counted, nor restarted. A wake that fails is a restart that failed.

    def _on_hibernate(self, _given: HibernateRequested, now: float) -> None:
        if self._life.killed:
            return  # it dies already, and the restart table says what follows
        self._enter(State.HIBERNATING, None)
        limit = HIBERNATE_S if self.spec.shutdown == "infinity" else self.spec.shutdown
        if limit != "brutal_kill":
            self._send(SendShutdown("hibernate"))
        self._limit_stop(limit, now)

    def _on_asleep(self, given: Exited, now: float) -> None:
        self._cancel(Timer.STOP)
        if self._life.ended_for is not None:
            self._on_run_exit(Exited(given.incarnation, self._life.ended_for, given.random), now)
            return
        self._enter(State.HIBERNATED, None)
        if self._life.is_needed:
            self._spawn(None, wakes=True)

    def _on_needed(self, _given: WakeRequested, _now: float) -> None:
        self._life.is_needed = True  # its way out leads back in

    def _on_wake(self, _given: WakeRequested, _now: float) -> None:
        self._spawn(None, wakes=True)

    def _on_kill_hibernating(self, given: KillRequested, _now: float) -> None:
        self._end_for(given.reason)
        self._kill(given.reason)

    def _on_kill_asleep(self, given: KillRequested, now: float) -> None:
        self._on_run_exit(Exited(given.incarnation, given.reason, 0.0), now)  # random: no start of it has failed

    def _on_stop_hibernating(self, given: StopRequested, now: float) -> None:
        """It was asked to end already; what it ends for is another reason now."""
        self._end_for(given.reason)
        self.wanted = Wanted.DOWN
        self._enter(State.STOPPING, given.reason)
        self._limit_stop(self.spec.shutdown if given.shutdown is None else given.shutdown, now)

    def _on_stop_asleep(self, given: StopRequested, _now: float) -> None:
        self._died(given.reason)
        self._remove("stopped", given.reason)

    def _on_stop(self, given: StopRequested, now: float) -> None:
        self.wanted = Wanted.DOWN
        self._cancel(Timer.START)
        self._enter(State.STOPPING, given.reason)
        shutdown = self.spec.shutdown if given.shutdown is None else given.shutdown
        if shutdown != "brutal_kill" and not self._life.killed:
            self._send(SendShutdown(given.reason))
        self._limit_stop(shutdown, now)

    def _on_stop_again(self, given: StopRequested, now: float) -> None:
        if given.shutdown is not None:
            self._limit_stop(given.shutdown, now)

    def _on_stop_timeout(self, _given: StopTimeout, _now: float) -> None:
        self._timers.discard(Timer.STOP)
        self._kill("killed")  # 10: the wait for the death after it has no limit

    def _on_stopped(self, given: Exited, _now: float) -> None:
        """A child that is being stopped is neither restarted nor counted, whatever its reason (6, 19.6)."""
        self._cancel(Timer.STOP)
        self._died(given.reason if self._life.ended_for is None else self._life.ended_for)
        if self._try is not _Try.AUTOMATIC:
            self._effects.append(StartFailed(self.reason if self._life.boot_error is None else self._life.boot_error))
        self._remove("stopped", self.reason)

    def _on_stop_without_process(self, given: StopRequested, _now: float) -> None:
        self._cancel(Timer.BACKOFF)  # terminate_child cancels the pending retry (9)
        self._remove("stopped", given.reason)

    def _on_restart(self, _given: RestartRequested, _now: float) -> None:
        self._intensity = Intensity(self.spec.max_restarts, self.spec.max_seconds)
        self._failed = FailedStarts()
        self._try = _Try.MANUAL
        self._spawn(self.reason)

    def _on_restart_refused(self, _given: RestartRequested, _now: float) -> None:
        self._effects.append(RestartRefused(_REFUSALS[self.state]))

    def _on_dull(self, _given: Input, _now: float) -> None:
        """Legal, and nothing follows; the table says how it happens."""

    # --- steps -------------------------------------------------------------------------------------------------------

    def _enter(self, state: State, reason: Reason) -> None:
        self.state, self.reason = state, reason
        self._effects.append(Announce(state, reason))

    def _end_for(self, reason: Reason) -> None:
        if self._life.ended_for is None:
            self._life.ended_for = reason

    def _spawn(self, reason: Reason, *, wakes: bool = False) -> None:
        self.incarnation += 1
        self._life = _Life(wakes=wakes)
        self._enter(State.STARTING, reason)
        if self.spec.start_timeout != "infinity":
            self._set(Timer.START, self.spec.start_timeout, StartTimeout(self.incarnation))
        self._effects.append(Spawn(self.incarnation))

    def _retry(self, reason: Reason, random: float, now: float) -> None:
        """After an automatic restart that failed: give up on a broken boot, else count on in the same window (9)."""
        self._failed = self._failed.add(reason)
        if self._failed.alike >= self.spec.boot_failures:
            self._died(reason)
            self._fail({"boot": reason})
        else:
            self._restart(reason, random, now)

    def _restart(self, reason: Reason, random: float, now: float) -> None:
        """Count one restart (6: before anything else happens), then make it, now or after a pause, or fail."""
        self._intensity, allowed = self._intensity.add(now)
        self._died(reason, will_restart=allowed)
        delay_s = self.spec.backoff.delay(self._failed.count, random) if self.spec.backoff else 0.0
        if not allowed:
            self._fail(reason)
        elif delay_s > 0:
            self._enter(State.BACKOFF, reason)
            self._set(Timer.BACKOFF, delay_s, BackoffElapsed(self.incarnation))
        else:
            self._spawn(reason)

    def _died(self, reason: Reason, will_restart: bool = False) -> None:
        self.last_reason = reason
        self._effects.append(Died(self.incarnation, reason, will_restart))

    def _fail(self, reason: Reason) -> None:
        self._effects.append(FailCalls("failed", reason))
        self._enter(State.FAILED, reason)

    def _remove(self, error: CallError, reason: Reason) -> None:
        self.wanted = Wanted.DOWN
        self._effects.append(FailCalls(error, reason))
        self._enter(State.ENDED, reason)
        self._effects.append(Removed(reason))

    def _limit_stop(self, shutdown: Shutdown, now: float) -> None:
        """The ladder of a stop (10): kill at once, kill in time, or wait. A later call can only shorten it."""
        if shutdown == "brutal_kill":
            self._cancel(Timer.STOP)
            self._kill("killed")
        elif not isinstance(shutdown, str) and not self._life.killed and now + shutdown < self._life.stop_deadline:
            self._life.stop_deadline = now + shutdown
            self._set(Timer.STOP, shutdown, StopTimeout(self.incarnation))

    def _send(self, order: SendShutdown | Kill) -> None:
        """Send to the process; while its launch is under way, as soon as it has a pid. A kill overtakes a request."""
        if self._life.pid is None:
            self._life.held = order
        else:
            self._effects.append(order)

    def _kill(self, intended_reason: Reason) -> None:
        if not self._life.killed:  # nothing survives the first, and its reason is the one that stands
            self._life.killed = True
            self._send(Kill(intended_reason))

    def _set(self, kind: Timer, delay_s: float, then: TimerInput) -> None:
        self._timers.add(kind)
        self._effects.append(SetTimer(kind, delay_s, then))

    def _cancel(self, kind: Timer) -> None:
        if kind in self._timers:
            self._timers.discard(kind)
            self._effects.append(CancelTimer(kind))


_WITH_PROCESS = frozenset({State.STARTING, State.RUNNING, State.HIBERNATING, State.STOPPING})

# Any: a row's handler takes the row's input, a relation between key and value that a dict's type cannot state.
_Handler = Callable[[SessionCore, Any, float], None]

TRANSITIONS: dict[tuple[State, type[Input]], _Handler] = {
    (State.NEW, Start): SessionCore._on_start,
    (State.NEW, WakeRequested): SessionCore._on_dull,  # a session of a tree that has not begun
    #
    (State.STARTING, Spawned): SessionCore._on_spawned,
    (State.STARTING, Ready): SessionCore._on_ready,
    (State.STARTING, InitFailed): SessionCore._on_init_failed,
    (State.STARTING, Exited): SessionCore._on_boot_exit,
    (State.STARTING, StartTimeout): SessionCore._on_start_timeout,
    (State.STARTING, KillRequested): SessionCore._on_kill,
    (State.STARTING, StopRequested): SessionCore._on_stop,
    (State.STARTING, RestartRequested): SessionCore._on_restart_refused,
    (State.STARTING, WakeRequested): SessionCore._on_dull,  # a call, which waits for readiness
    #
    (State.RUNNING, Exited): SessionCore._on_run_exit,
    (State.RUNNING, KillRequested): SessionCore._on_kill,
    (State.RUNNING, StopRequested): SessionCore._on_stop,
    (State.RUNNING, RestartRequested): SessionCore._on_restart_refused,
    (State.RUNNING, HibernateRequested): SessionCore._on_hibernate,
    (State.RUNNING, WakeRequested): SessionCore._on_dull,  # a call
    (State.RUNNING, Ready): SessionCore._on_dull,  # a child that says it twice; a child's fault never stops us
    (State.RUNNING, InitFailed): SessionCore._on_dull,  # likewise; how it exits is what counts
    (State.RUNNING, StartTimeout): SessionCore._on_dull,  # fired while the ready frame was being handled
    #
    (State.HIBERNATING, Exited): SessionCore._on_asleep,
    (State.HIBERNATING, StopTimeout): SessionCore._on_stop_timeout,
    (State.HIBERNATING, WakeRequested): SessionCore._on_needed,
    (State.HIBERNATING, KillRequested): SessionCore._on_kill_hibernating,
    (State.HIBERNATING, StopRequested): SessionCore._on_stop_hibernating,
    (State.HIBERNATING, RestartRequested): SessionCore._on_restart_refused,
    (State.HIBERNATING, Ready): SessionCore._on_dull,  # these three as in RUNNING
    (State.HIBERNATING, InitFailed): SessionCore._on_dull,
    (State.HIBERNATING, StartTimeout): SessionCore._on_dull,
    #
    (State.HIBERNATED, WakeRequested): SessionCore._on_wake,
    (State.HIBERNATED, KillRequested): SessionCore._on_kill_asleep,
    (State.HIBERNATED, StopRequested): SessionCore._on_stop_asleep,
    (State.HIBERNATED, RestartRequested): SessionCore._on_restart_refused,
    (State.HIBERNATED, Ready): SessionCore._on_dull,  # these three as in BACKOFF
    (State.HIBERNATED, InitFailed): SessionCore._on_dull,
    (State.HIBERNATED, StartTimeout): SessionCore._on_dull,
    (State.HIBERNATED, StopTimeout): SessionCore._on_dull,  # fired while the exit was being handled
    #
    (State.BACKOFF, BackoffElapsed): SessionCore._on_backoff_elapsed,
    (State.BACKOFF, StopRequested): SessionCore._on_stop_without_process,
    (State.BACKOFF, RestartRequested): SessionCore._on_restart_refused,
    (State.BACKOFF, Ready): SessionCore._on_dull,  # read from the pipe after the death, as are the next
    (State.BACKOFF, InitFailed): SessionCore._on_dull,
    (State.BACKOFF, StartTimeout): SessionCore._on_dull,  # fired while the exit was being handled
    (State.BACKOFF, KillRequested): SessionCore._on_dull,  # the verdict on a child that died meanwhile
    (State.BACKOFF, WakeRequested): SessionCore._on_dull,  # a call, which waits for the next try
    #
    (State.STOPPING, Exited): SessionCore._on_stopped,
    (State.STOPPING, Spawned): SessionCore._on_spawned,  # stopped while its launch was under way
    (State.STOPPING, StopTimeout): SessionCore._on_stop_timeout,
    (State.STOPPING, StopRequested): SessionCore._on_stop_again,
    (State.STOPPING, KillRequested): SessionCore._on_kill,
    (State.STOPPING, RestartRequested): SessionCore._on_restart_refused,
    (State.STOPPING, Ready): SessionCore._on_dull,  # the frame and the stop crossed; it stays unwanted
    (State.STOPPING, InitFailed): SessionCore._on_dull,  # likewise
    (State.STOPPING, StartTimeout): SessionCore._on_dull,  # fired while the stop was being handled
    (State.STOPPING, WakeRequested): SessionCore._on_dull,  # a call, which will be told of the end
    #
    (State.FAILED, RestartRequested): SessionCore._on_restart,
    (State.FAILED, StopRequested): SessionCore._on_stop_without_process,
    (State.FAILED, Ready): SessionCore._on_dull,  # these four as in BACKOFF
    (State.FAILED, InitFailed): SessionCore._on_dull,
    (State.FAILED, StartTimeout): SessionCore._on_dull,
    (State.FAILED, KillRequested): SessionCore._on_dull,
    (State.FAILED, WakeRequested): SessionCore._on_dull,  # a call, which is refused
    #
    (State.ENDED, StopRequested): SessionCore._on_dull,  # twice is a no-op
    (State.ENDED, Ready): SessionCore._on_dull,  # these four as in BACKOFF
    (State.ENDED, InitFailed): SessionCore._on_dull,
    (State.ENDED, StartTimeout): SessionCore._on_dull,
    (State.ENDED, KillRequested): SessionCore._on_dull,
    (State.ENDED, StopTimeout): SessionCore._on_dull,  # fired while the exit was being handled
    (State.ENDED, BackoffElapsed): SessionCore._on_dull,  # fired while the stop was being handled
    (State.ENDED, WakeRequested): SessionCore._on_dull,  # a call to a session between two starts by its tree
}
"""The whole machine. ``_on_dull`` marks the legal pairs from which nothing follows, each with how it happens."""
