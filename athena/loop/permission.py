"""Permission requests and their answers as the log has them: values, and the fold of the two kinds. Pure.

A request belongs to one call and is resolved once: by an answer, by its time, or with its call. Whatever comes later
changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from athena.events import Event

if TYPE_CHECKING:
    from athena.loop.state import Call, SessionState

ALLOW, DENY, CLOSED = "allow", "deny", "closed"
"""What came of a request: an approver's answer, or that its call was closed without one."""

ANSWERS = (ALLOW, DENY)

Answer = Literal["allow", "deny"]
"""What an approver may say."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What came of a request, once and for all."""

    decision: str
    at: str
    """Time of the event that says so."""
    by: dict[str, Any] | None = None
    """Who answered: ``pid`` and ``uid`` of the client's process. ``None`` if nobody did."""
    code: str | None = None
    """Why, where nobody did."""
    reason: str | None = None
    """For the model."""
    answer_id: str | None = None
    """Which answer won. The same one, delivered again after a crash, is told that it has."""


@dataclass(slots=True)
class Request:
    """What one call waits for."""

    id: str
    at: str
    data: dict[str, Any] = field(default_factory=dict)
    """As it is recorded: ``call_id``, ``tool``, ``arguments``, ``reason``, ``message_id``."""
    resolution: Resolution | None = None


def open_requests(state: SessionState) -> list[dict[str, Any]]:
    """What waits for an answer, in the order of the calls: the data of the request, ``turn`` and ``at``."""
    turn = state.turn
    if turn is None:
        return []
    asked = [call.request for call in turn.calls.values() if call.is_asked and call.request is not None]
    return [{**request.data, "turn": turn.id, "at": request.at} for request in asked]


# --- the fold --------------------------------------------------------------------------------------------------------


def fold_request(state: SessionState, event: Event) -> None:
    """A call waits for an answer. A request that is there already is announced again by another life."""
    request_id = str(event.data["request_id"])
    call = state.turn.calls.get(str(event.data["call_id"])) if state.turn else None
    if call is not None and call.status is None and call.request is None and request_id not in state.resolutions:
        call.request = Request(request_id, event.ts, event.data)


def fold_resolved(state: SessionState, event: Event) -> None:
    """The answer, or that there will be none. The first one counts."""
    data, by = event.data, event.data.get("by")
    resolution = Resolution(
        decision=str(data["decision"]),
        at=event.ts,
        by=by if isinstance(by, dict) else None,
        code=data.get("code"),
        reason=data.get("reason"),
        answer_id=data.get("answer_id"),
    )
    request_id = str(data["request_id"])
    if request_id in state.resolutions:
        return
    state.resolutions[request_id] = resolution
    for call in state.turn.calls.values() if state.turn else ():
        if call.request is not None and call.request.id == request_id:
            call.request.resolution = resolution


def close_with_call(state: SessionState, call: Call, at: str) -> None:
    """A call has its result. If the line that resolved its request is bad, the request is over all the same."""
    if call.is_asked and call.request is not None:
        call.request.resolution = state.resolutions[call.request.id] = Resolution(CLOSED, at)
