"""A node's answers on their way to a client: JSON, or the error that a refusal is.

Binding rule: `reference/otp.md` section 11, and the table of design 7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, assert_never

from athena.child_spec_rules import as_json
from athena.errors import (
    AlreadyPresent,
    AlreadyStarted,
    AthenaError,
    InvalidSpec,
    MaxChildren,
    NotFound,
    Reason,
    Restarting,
    Running,
    StartError,
)
from supervisor.tree_vocabulary import Answer, ChildCounts, ChildInfo, Ignored, Refused, Started

SHOWN_CHARS = 2000
"""Of a reason in a line of text."""

PidValue = Callable[[int], dict[str, Any]]
"""A pid's wire form."""


def answer_json(answer: Answer, pid_value: PidValue) -> Any:
    """The answer as JSON; of a refusal the error. Pids are told now: what has one may be gone when it is read."""
    match answer:
        case None:
            return None
        case Started(pid, info):
            return {"started": pid_value(pid), "info": info}
        case Ignored():
            return {"ignored": True}
        case Refused():
            return _error(answer, pid_value)
        case ChildInfo():
            return _row(answer, pid_value)
        case ChildCounts():
            return asdict(answer)
        case tuple():
            return [_row(one, pid_value) for one in answer]
        case Mapping():
            return _without_init(answer)
        case _:
            assert_never(answer)


def _without_init(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification for others than its session: what is in ``init``, environment and keys, is the session's own."""
    match spec:
        case {"start": {"session": {"spec": shown}}}:
            return {**spec, "start": {"session": {"spec": shown}}}
        case _:
            return dict(spec)


def shortened(reason: Reason) -> str:
    """A reason for one line of text: of an error its type and message, without the traceback."""
    match reason:
        case {"error": {"type": kind, "message": message}}:
            return f"{kind}: {message}"[:SHOWN_CHARS]
        case {"shutdown": {"failed_to_start_child": [name, why]}}:
            return f"its child {name!r} did not start: {shortened(why)}"
        case _:
            return repr(reason)[:SHOWN_CHARS]


def start_error(label: str, reason: Reason) -> StartError:
    """What whoever starts a supervisor that did not start gets."""
    return StartError(f"the supervisor {label} did not start: {shortened(reason)}", reason=reason)


def _row(info: ChildInfo, pid_value: PidValue) -> dict[str, Any]:
    pid = pid_value(info.pid) if isinstance(info.pid, int) else info.pid
    modules = info.modules if isinstance(info.modules, str) else list(info.modules)
    return {"id": info.id, "pid": pid, "type": info.type, "modules": modules}


def _error(refused: Refused, pid_value: PidValue) -> AthenaError:
    match refused.tag:
        case "already_started":
            return AlreadyStarted("the child is already running", pid=pid_value(refused.value))
        case "start_failed":
            spec = None if refused.spec is None else as_json(_without_init(refused.spec))
            return StartError(f"the child did not start: {shortened(refused.value)}", reason=refused.value, spec=spec)
        case tag if tag in _PLAIN:
            error, message = _PLAIN[tag]
            return error(message)
        case "simple_one_for_one":
            return InvalidSpec(
                "simple_one_for_one: this supervisor names its children by pid, and has one specification for all",
                tag=refused.tag, value=None,
            )  # fmt: skip
        case tag:
            text = refused.text or f"{tag}: {refused.value!r} is refused"
            return InvalidSpec(text, tag=tag, value=as_json(refused.value))


_PLAIN: dict[str, tuple[type[AthenaError], str]] = {
    "already_present": (
        AlreadyPresent,
        "the supervisor has a child of this id that does not run; restart it",
    ),
    "max_children": (MaxChildren, "the supervisor has as many children as it takes"),
    "not_found": (NotFound, "the supervisor has no such child"),
    "running": (Running, "the child runs; terminate it first"),
    "restarting": (Restarting, "the child is being restarted now; terminate it to end that"),
}
