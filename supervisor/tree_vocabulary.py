"""The words between a supervisor node and its driver: inputs, effects, answers. Values only; what they mean is the
node's.

Numbers in comments are sections of `reference/otp.md`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from athena.child_spec_rules import ChildId, ChildType, Modules
from athena.errors import Reason
from supervisor.child_spec import ChildSpec

Pid = int
"""A logical pid: the serial of one process or node. The driver never gives one twice (1)."""


class Phase(enum.Enum):
    """What a node does now. It does one thing at a time (17)."""

    NEW = "new"
    IDLE = "idle"
    STARTING = "starting"
    """Blocked in the start of one child."""
    TERMINATING = "terminating"
    """Blocked until the children that it told to end are gone."""
    ENDED = "ended"
    """Gone. Nothing follows."""


# --- how a start ended -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The child runs. ``info`` is passed on to who asked, and not stored (5)."""

    pid: Pid
    info: Any = None


@dataclass(frozen=True, slots=True)
class Ignored:
    """The child does not want to run, and that is no error."""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """Nothing of it is left (19.9). A taken name is ``{"already_started": pid}``."""

    reason: Reason


StartOutcome = Started | Ignored | StartFailed

# --- inputs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Start the node's children; once in its life."""


@dataclass(frozen=True, slots=True)
class StartResult:
    """Answers :class:`StartChild` of that number."""

    number: int
    outcome: StartOutcome


@dataclass(frozen=True, slots=True)
class Exited:
    """This process or node is gone, with all below it. Of a pid that is no child's, it is ignored (6)."""

    pid: Pid
    reason: Reason


@dataclass(frozen=True, slots=True)
class ShutdownTimeout:
    """The timer of that number fired."""

    number: int


@dataclass(frozen=True, slots=True)
class Retry:
    """A start failed in a restart; the node's message to itself (9). ``child`` is an id, or the pid it had before."""

    child: ChildId
    number: int


@dataclass(frozen=True, slots=True)
class ParentExited:
    """The parent ended, or tells the node to: its children are terminated, and it ends with this reason (17)."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class KillNode:
    """The untrappable kill: the node ends now, and its children learn it by their links (17)."""

    reason: Reason = "killed"


@dataclass(frozen=True, slots=True)
class ByPid:
    """Names a child by pid. ``is_alive`` is what the driver knows of any process, the node's or not, as it asks."""

    pid: Pid
    is_alive: bool = True


Target = ChildId | ByPid


@dataclass(frozen=True, slots=True)
class Call:
    """A request; answered once, by :class:`Reply` or :class:`CallFailed` with its ``ref``."""

    ref: Any


@dataclass(frozen=True, slots=True)
class StartChildCall(Call):
    """``start_child``: ``spec`` is a specification; under simple_one_for_one a list of further arguments."""

    spec: object


@dataclass(frozen=True, slots=True)
class TerminateChildCall(Call):
    """``terminate_child``."""

    target: Target


@dataclass(frozen=True, slots=True)
class RestartChildCall(Call):
    """``restart_child``."""

    target: Target


@dataclass(frozen=True, slots=True)
class DeleteChildCall(Call):
    """``delete_child``."""

    target: Target


@dataclass(frozen=True, slots=True)
class GetChildSpecCall(Call):
    """``get_childspec``; answered with the full mapping."""

    target: Target


@dataclass(frozen=True, slots=True)
class WhichChildCall(Call):
    """``which_child``; answered with a :class:`ChildInfo`."""

    target: Target


@dataclass(frozen=True, slots=True)
class WhichChildrenCall(Call):
    """``which_children``; answered with a tuple of :class:`ChildInfo`, newest first."""


@dataclass(frozen=True, slots=True)
class CountChildrenCall(Call):
    """``count_children``; answered with :class:`ChildCounts`."""


@dataclass(frozen=True, slots=True)
class StopCall(Call):
    """``stop``: terminate the children and end with ``reason``. Answered when the node is gone (16)."""

    reason: Reason = "normal"


Request = (
    StartChildCall
    | TerminateChildCall
    | RestartChildCall
    | DeleteChildCall
    | GetChildSpecCall
    | WhichChildCall
    | WhichChildrenCall
    | CountChildrenCall
)
"""The calls that concern children (11)."""

Message = Exited | Retry | ParentExited | StopCall | Request
"""What a busy node keeps in its mailbox for later, in order."""

Input = Start | StartResult | ShutdownTimeout | KillNode | Message

# --- answers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refused:
    """An error in OTP's word: ``tag``, and the term that goes with it.

    ``already_started`` carries the pid, ``start_failed`` the reason and, where OTP wraps it (11), the ``spec``; the
    tags of a bad specification carry the offending value.
    """

    tag: str
    value: Any = None
    spec: Mapping[str, Any] | None = None
    text: str = field(default="", compare=False)
    """What is expected instead, in words; empty for tags that say it all."""


@dataclass(frozen=True, slots=True)
class ChildInfo:
    """One row of ``which_children``."""

    id: ChildId
    pid: Pid | Literal["restarting"] | None
    type: ChildType
    modules: Modules


@dataclass(frozen=True, slots=True)
class ChildCounts:
    """The answer to ``count_children``."""

    specs: int
    active: int
    supervisors: int
    workers: int


Answer = Started | Ignored | None | Refused | Mapping[str, Any] | ChildInfo | tuple[ChildInfo, ...] | ChildCounts
"""What a :class:`Reply` may say. ``None`` is OTP's plain ok."""

# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartChild:
    """Start this child and give :class:`StartResult`. ``spec.args`` is complete. Never two at a time (4.3)."""

    number: int
    spec: ChildSpec


@dataclass(frozen=True, slots=True)
class AbortStart:
    """The node was killed in this start: what it has begun ends with ``reason``. A result is not awaited."""

    number: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class SendShutdown:
    """Ask the child to end with reason ``shutdown``; a node gets :class:`ParentExited`. Answer with :class:`Exited`,
    also when it is gone already (its reason, or ``child_process_unlinked`` if nobody knows it)."""

    pid: Pid


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the child's whole tree; a node gets :class:`KillNode`. Answer as for :class:`SendShutdown`."""

    pid: Pid


@dataclass(frozen=True, slots=True)
class SetTimer:
    """After ``delay_s`` seconds give the input ``then``."""

    delay_s: float
    then: ShutdownTimeout


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget the timer of that number. One that fires all the same does no harm."""

    number: int


@dataclass(frozen=True, slots=True)
class PostRetry:
    """Put ``retry`` at the end of the node's queue, behind everything that waits to be given to it (9)."""

    retry: Retry


@dataclass(frozen=True, slots=True)
class StartSucceeded:
    """Answers :class:`Start`: all children are started."""


@dataclass(frozen=True, slots=True)
class NodeStartFailed:
    """Answers :class:`Start` with an error; :class:`NodeExit` came before it, so that the name is free (4.7)."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Reply:
    """Answers the call ``ref``."""

    ref: Any
    answer: Answer


@dataclass(frozen=True, slots=True)
class CallFailed:
    """The node ended before it answered: the caller exits with ``reason``; ``noproc`` if it was gone before (11)."""

    ref: Any
    reason: Reason


@dataclass(frozen=True, slots=True)
class PropagateExit:
    """The node was killed: this child gets the exit signal of its link, and is not waited for (17)."""

    pid: Pid
    reason: Reason


@dataclass(frozen=True, slots=True)
class NodeExit:
    """The node is gone, once in its life: free its name, tell its monitors and its parent. Only answers follow."""

    reason: Reason


class ReportKind(enum.StrEnum):
    """The kinds of supervisor report (17)."""

    PROGRESS = "progress"
    CHILD_TERMINATED = "child_terminated"
    START_ERROR = "start_error"
    SHUTDOWN_ERROR = "shutdown_error"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Report:
    """For the log only."""

    kind: ReportKind
    child: ChildId
    pid: Pid | None
    reason: Reason = None


Effect = (
    StartChild
    | AbortStart
    | SendShutdown
    | Kill
    | SetTimer
    | CancelTimer
    | PostRetry
    | StartSucceeded
    | NodeStartFailed
    | Reply
    | CallFailed
    | PropagateExit
    | NodeExit
    | Report
)
