"""The way of a call to its supervisor, and back to it when it was lost. Both clients use it.

Every operation may be repeated (a message by its id), so a call whose connection ends waits for the supervisor, or
starts it where that is the client's to do, presents its session's start options again, and asks again."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import orjson

from athena import session_calls as calls
from athena.client import ConnectionLost, call_timeout
from athena.errors import (
    AlreadyStarted,
    AthenaError,
    LogLocked,
    NoProcess,
    NotFound,
    NotRunning,
    StartError,
    Unavailable,
    Unresponsive,
)
from athena.loop.options import GRANTS
from athena.session_calls import Call, StartOptions
from athena.supervisors import RECONNECT_S, Target

T = TypeVar("T")

ANSWER_S = 10.0
"""How long a call that the supervisor answers itself waits before the supervisor counts as unresponsive."""

ANSWERED_AT_ONCE = frozenset(
    {"attach", "whereis", "list", "status", "messages", "usage", "queue", "requests", "interrupt", "cancel"}
)
"""Operations whose answer never waits for a turn, a start or an end: silence is then the supervisor's."""

RETRY_S = 0.05

STEADY_S = 1.0
"""A supervisor that has been back for so long was really back: losing it again is another loss."""

GRANTED_LIMIT = 65
"""One message runs and 64 may wait; older ones have ended, or their sender has lost interest."""


class Granted:
    """A handle's messages whose options are grants, until their turns have ended.

    Grants are in no file: after the supervisor's death a turn can only go on with them if whoever gave them says so
    again.
    """

    def __init__(self) -> None:
        self._messages: dict[str, dict[str, Any]] = {}
        self.approvers: list[bool | str] = []
        """For what this handle answers permission requests: ``True`` is all of them, a text a message's turn."""

    def hold(self, call: Call[Any]) -> bool:
        """Remember the message of a ``send``. Returns whether it was not known before."""
        if call.op != "send" or call.message_id in self._messages:
            return False
        message = orjson.loads(call.body)
        if GRANTS.isdisjoint(message["options"]):
            return False
        self._messages[message["message_id"]] = {k: message[k] for k in ("message_id", "text", "options")}
        while len(self._messages) > GRANTED_LIMIT:
            self._messages.pop(next(iter(self._messages)))
        return True

    def drop(self, message_id: str | None) -> None:
        """Its turn has ended, or it was refused."""
        self._messages.pop(message_id or "", None)

    def messages(self) -> list[dict[str, Any]]:
        """In the order they were sent."""
        return list(self._messages.values())


class Recovery:
    """What a call does when its supervisor is lost: wait for it, or start it; then present the start options again."""

    def __init__(
        self, target: Target, options: StartOptions | None, supervisor_id: str | None, granted: Granted
    ) -> None:
        self._target = target
        self._options = options
        self.supervisor_id = supervisor_id
        """The supervisor that knows the session, with its start options if this handle made them."""
        self._granted = granted
        self._until: float | None = None
        self._back_at: float | None = None

    def lost(self, error: Exception) -> None:
        """The connection is gone. Raises :class:`Unavailable` when that has lasted too long."""
        now = time.monotonic()
        if self._back_at is not None and now - self._back_at > STEADY_S:
            self._until = None  # another loss, hours later maybe
        self._back_at = None
        self._until = self._until or now + RECONNECT_S
        if now > self._until:
            raise Unavailable(
                f"the supervisor was lost and did not come back within {RECONNECT_S} s ({error})"
            ) from None

    def was_replaced(self) -> bool:
        """Whether another supervisor answers now than the one that knew the session."""
        return self._target.pool.supervisor_id != self.supervisor_id

    @property
    def expected(self) -> str | None:
        """The only supervisor that may be asked now: another one must be told the start options first."""
        return self.supervisor_id if self._options is not None else None

    def try_again(self) -> None:
        """Bring the supervisor back if it is ours to start, and the session if this handle started it."""
        try:
            self._target.ensure()
            if not self._target.answers():
                return
            self._back_at = time.monotonic()
            if not self.was_replaced():
                return
            if self._options is not None:
                options = self._options.again(self._granted.messages())
                perform(self._target, calls.start(options, self._granted.approvers), None)
            elif self._target.forgets:
                raise Unavailable("the session's supervisor was replaced; start the session again to continue its log")
        except AlreadyStarted:
            pass  # another call, or another handle, was faster
        except (StartError, LogLocked) as error:
            # A child that was killed while it booted, or the log of one that the lost supervisor is still ending: the
            # caller is in the middle of a wait, and the next try may well work.
            self.lost(error)
            time.sleep(RETRY_S)
            return
        except (ConnectionLost, NotRunning):
            return
        self.supervisor_id = self._target.pool.supervisor_id


def stop(target: Target, call: Call[bool]) -> None:
    """Have a session stopped. Raises :class:`Unavailable` if a daemon is lost that will bring it back."""
    recovery = Recovery(target, None, None, Granted())
    while True:
        try:
            perform(target, call, None)
            return
        except (ConnectionLost, NotRunning) as error:
            if target.forgets:
                return  # the session has ended with its supervisor
            recovery.lost(error)
            time.sleep(RETRY_S)


def perform(
    target: Target, call: Call[T], timeout: float | None, *, once: bool = False, expect: str | None = None
) -> T:
    """One call, once. Raises what was answered, :class:`ConnectionLost`, or the timeout in Athena's words.

    ``once``: not even on another connection, when an idle one turns out to be cut. ``expect``: only of this supervisor.
    """
    try:
        frame = target.pool.call(call.op, call.header, call.body, timeout, once=once, expect=expect)
    except TimeoutError as error:
        if isinstance(error, AthenaError):
            raise
        if call.op in ANSWERED_AT_ONCE:
            raise Unresponsive(f"the supervisor at {str(target.path)!r} does not answer; is it stopped?") from None
        raise call_timeout(call.op, timeout, call.message_id) from None
    return call.read(frame)


def gone(error: NotFound, session_id: str) -> NoProcess | NotFound:
    """A handle's session that its supervisor does not know any more has ended: not the same as a name nobody has, nor
    as something that the session itself does not have."""
    if error.data.get("target") != session_id:
        return error
    return NoProcess(
        f"session {session_id!r} has no process any more; start it again under its id to go on", target=session_id
    )


def start_limit_s(options: dict[str, Any]) -> float | None:
    """How long a client waits for a start: the supervisor's own limit decides, this is for a frozen supervisor."""
    limit = options.get("start_timeout", 30.0)
    return float(limit) + 15.0 if isinstance(limit, int | float) else None
