"""The words between a core and its driver: states, inputs, effects. Values only; what they mean is the core's.

Numbers in comments are sections of `reference/otp.md`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from athena.errors import Reason
from athena.spec_checks import Shutdown
from supervisor.spec import check_shutdown

CallError = Literal["failed", "stopped", "start_failed"]
RestartError = Literal["running", "restarting", "not_found"]


class State(enum.Enum):
    """What the session's process does now."""

    NEW = "new"
    STARTING = "starting"
    """From the order to spawn until the child is ready."""
    RUNNING = "running"
    HIBERNATING = "hibernating"
    """Asked to end because it is idle; it is not gone yet."""
    HIBERNATED = "hibernated"
    """No process, and it lives: the next call wakes it (design 7.7)."""
    BACKOFF = "backoff"
    """No process; the next try is waiting for its time."""
    STOPPING = "stopping"
    FAILED = "failed"
    """No process and no further try; the session keeps its name, log and queue."""
    ENDED = "ended"
    """Removed. Nothing follows."""


class Wanted(enum.Enum):
    """What the operator asked for."""

    UP = "up"
    DOWN = "down"


class Timer(enum.Enum):
    """The timers of a session; at most one of each kind runs."""

    START = "start"
    STOP = "stop"
    BACKOFF = "backoff"


# --- inputs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Start the session; once in its life."""


@dataclass(frozen=True, slots=True)
class OfIncarnation:
    """An input about one life of the child. About an earlier life it is ignored in every state (6)."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Spawned(OfIncarnation):
    """The launcher made the process."""

    pid: int


@dataclass(frozen=True, slots=True)
class Ready(OfIncarnation):
    """The child said that it is initialised."""


@dataclass(frozen=True, slots=True)
class InitFailed(OfIncarnation):
    """The child said that it cannot start; it is about to exit."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Exited(OfIncarnation):
    """The whole process tree is gone, or could not be launched. ``random`` in [0, 1) spreads the backoff."""

    reason: Reason
    random: float


@dataclass(frozen=True, slots=True)
class StartTimeout(OfIncarnation):
    """:attr:`Timer.START` fired."""


@dataclass(frozen=True, slots=True)
class StopTimeout(OfIncarnation):
    """:attr:`Timer.STOP` fired."""


@dataclass(frozen=True, slots=True)
class BackoffElapsed(OfIncarnation):
    """:attr:`Timer.BACKOFF` fired. The incarnation is the dead one."""


@dataclass(frozen=True, slots=True)
class KillRequested(OfIncarnation):
    """We end this life for ``reason`` (``"hung"``, ``{"limit": "memory"}``); what follows, the restart table says."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class HibernateRequested(OfIncarnation):
    """This life has nothing to do: go on without a process."""


@dataclass(frozen=True, slots=True)
class WakeRequested:
    """Somebody needs the child. Nothing follows where there is one, or will be."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """End the session. ``shutdown`` overrides the spec's; in a stop that is under way it can only shorten."""

    reason: Reason = "normal"
    shutdown: Shutdown | None = None

    def __post_init__(self) -> None:
        if self.shutdown is not None:
            check_shutdown(self.shutdown)


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """Start a failed session again, with a new window and new counters."""


ChildInput = Spawned | Ready | InitFailed | Exited
TimerInput = StartTimeout | StopTimeout | BackoffElapsed
Sleep = HibernateRequested | WakeRequested
Input = Start | ChildInput | TimerInput | KillRequested | Sleep | StopRequested | RestartRequested


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Launch the child's process."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class SendShutdown:
    """Ask the child to end (18: ``shutdown`` frame, SIGTERM, SIGCONT)."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the whole tree. ``intended_reason`` is the exit reason if this kill is what ended it (18.3, rule 1)."""

    intended_reason: Reason


@dataclass(frozen=True, slots=True)
class SetTimer:
    """After ``delay_s`` seconds give the input ``then``. Replaces a running timer of that kind."""

    kind: Timer
    delay_s: float
    then: TimerInput


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget a timer. One that fires all the same does no harm."""

    kind: Timer


@dataclass(frozen=True, slots=True)
class Announce:
    """The session entered ``state``: for watchers. ``reason`` is why, or ``None``."""

    state: State
    reason: Reason


@dataclass(frozen=True, slots=True)
class StartSucceeded:
    """Answers :class:`Start` or :class:`RestartRequested`: the child is ready."""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """Answers them with an error, after the process is gone. After :class:`Start`, :class:`Removed` follows; after
    :class:`RestartRequested` the session is failed as before, unless it was stopped meanwhile."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Died:
    """The process ended. Exactly one for each :class:`Spawn` but those whose life a sleep ends: they are told by the
    :class:`Announce` of ``HIBERNATED``, and the next life is the same process to its monitors. For monitors: free the
    incarnation's name first, then tell them (19.3)."""

    incarnation: int
    reason: Reason
    will_restart: bool


@dataclass(frozen=True, slots=True)
class FailCalls:
    """Answer every waiting call with ``SessionFailed``, ``SessionStopped`` or ``StartError``."""

    error: CallError
    reason: Reason


@dataclass(frozen=True, slots=True)
class RestartRefused:
    """Answers :class:`RestartRequested` of a session that is not failed, with OTP's word for it (11)."""

    error: RestartError


@dataclass(frozen=True, slots=True)
class Removed:
    """The session is gone from the supervisor. Always the last effect."""

    reason: Reason


ProcessEffect = Spawn | SendShutdown | Kill
TimerEffect = SetTimer | CancelTimer
Notice = Announce | StartSucceeded | StartFailed | Died | FailCalls | RestartRefused | Removed
Effect = ProcessEffect | TimerEffect | Notice
