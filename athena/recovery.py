"""The way of a call to its supervisor, and back to it when it was lost. Both clients use it.

Every operation may be repeated (a message by its id), so a call whose connection ends waits for the supervisor, or
starts it where that is the client's to do, presents its session's start options again, and asks again."""

from __future__ import annotations

import time
from typing import Any, TypeVar

from athena import session_calls as calls
from athena.client import ConnectionLost, call_timeout
from athena.errors import AlreadyStarted, AthenaError, NoProcess, NotFound, NotRunning, Unavailable, Unresponsive
from athena.session_calls import Call, StartOptions
from athena.supervisors import RECONNECT_S, Target

T = TypeVar("T")

ANSWER_S = 10.0
"""How long a call that the supervisor answers itself waits before the supervisor counts as unresponsive."""

RETRY_S = 0.05


class Recovery:
    """What a call does when its supervisor is lost: wait for it, or start it; then present the start options again."""

    def __init__(self, target: Target, options: StartOptions | None, supervisor_id: str | None) -> None:
        self._target = target
        self._options = options
        self._supervisor_id = supervisor_id
        self._until: float | None = None
        self._error: Exception | None = None

    def lost(self, error: Exception) -> None:
        """The connection is gone. Raises :class:`Unavailable` when that has lasted too long."""
        now = time.monotonic()
        self._until = self._until or now + RECONNECT_S
        if now > self._until:
            raise Unavailable(
                f"the supervisor was lost and did not come back within {RECONNECT_S} s ({error})"
            ) from None

    def was_replaced(self) -> bool:
        """Whether another supervisor answers now than the one that knew the session."""
        return self._target.pool.supervisor_id != self._supervisor_id

    def try_again(self) -> None:
        """Bring the supervisor back if it is ours to start, and the session if this handle started it."""
        try:
            self._target.ensure()
            if not self._target.answers() or not self.was_replaced():
                return
            if self._options is None:
                raise Unavailable("the session's supervisor was replaced; start the session again to continue its log")
            perform(self._target, calls.start(self._options.again()), None)
        except AlreadyStarted:
            pass  # another call, or another handle, was faster
        except (ConnectionLost, NotRunning):
            return
        self._supervisor_id = self._target.pool.supervisor_id


def perform(target: Target, call: Call[T], timeout: float | None) -> T:
    """One call, once. Raises what was answered, :class:`ConnectionLost`, or the timeout in Athena's words."""
    try:
        frame = target.pool.call(call.op, call.header, call.body, timeout)
    except TimeoutError as error:
        if isinstance(error, AthenaError):
            raise
        if call.message_id is None and timeout == ANSWER_S:
            raise Unresponsive(f"the supervisor at {str(target.path)!r} does not answer; is it stopped?") from None
        raise call_timeout(call.op, timeout, call.message_id) from None
    return call.read(frame)


def gone(error: NotFound, session_id: str) -> NoProcess:
    """A handle's session that its supervisor does not know any more has ended: not the same as a name nobody has."""
    return NoProcess(
        f"session {session_id!r} has no process any more; start it again under its id to go on", target=session_id
    )


def start_limit_s(options: dict[str, Any]) -> float | None:
    """How long a client waits for a start: the supervisor's own limit decides, this is for a frozen supervisor."""
    limit = options.get("start_timeout", 30.0)
    return float(limit) + 15.0 if isinstance(limit, int | float) else None
