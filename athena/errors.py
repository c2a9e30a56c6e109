"""Every error Athena raises, in one flat tree.

Errors cross the wire: :func:`to_wire` and :func:`from_wire` are the only translation, and a class takes part by being
defined here with keyword arguments that JSON can carry. Foreign exceptions are mapped to these once, at the module that
calls the foreign code.
"""

from __future__ import annotations

from typing import Any

from athena.pid import Pid

Reason = Any
"""Why a process ended: ``"normal"``, ``"shutdown"``, ``"killed"``, ``{"signal": "SIGSEGV"}``, ``{"exit": 3}``,
``{"error": {"type", "message", "traceback"}}``, ``"hung"``, ``"noproc"``, ``"noconnection"`` and so on (JSON)."""

REASON_BYTES = 64 * 1024
"""Of a reason as JSON: it travels in headers, to everybody who is linked or watches, and into logs."""


class AthenaError(Exception):
    """Base of all errors. ``data`` holds the fields that travel with it over the wire."""

    def __init__(self, message: str = "", **data: Any) -> None:
        super().__init__(message or type(self).__name__)
        self.message = message or type(self).__name__
        self.data = data

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "data":
            raise AttributeError(name)
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return (from_wire, (to_wire(self),))


# --- what the caller asked for is wrong -----------------------------------------------------------------------------


class InvalidOption(AthenaError, ValueError):
    """An option has an illegal value. Fields: ``option``, ``value`` (its repr), ``expected``."""


class UnsupportedOption(InvalidOption):
    """An option exists in the reference, and Athena does not support it (yet)."""


class InvalidSessionId(InvalidOption):
    """A session id does not match ``[A-Za-z0-9_-]{1,128}``."""


class InvalidSpec(AthenaError, ValueError):
    """A child specification is wrong. Fields: ``tag`` as OTP names it (``invalid_restart_type``, ...), ``value``."""


class MessageIdConflict(AthenaError):
    """The ``message_id`` was used before with another text. Field: ``message_id``."""


# --- who was asked is not there -------------------------------------------------------------------------------------


class NotFound(AthenaError, LookupError):
    """Nothing has this name or id: neither a live session nor a stored one. Field: ``target``."""


class NoProcess(AthenaError, LookupError):
    """The process is gone (OTP's ``noproc``). Field: ``target``."""


class Unavailable(AthenaError, ConnectionError):
    """The supervisor cannot be reached."""


class NotRunning(Unavailable):
    """No supervisor listens at this socket."""


class Refused(Unavailable):
    """Something answered at the socket that Athena does not trust, or of another version."""


# --- it is there and does not answer as hoped ------------------------------------------------------------------------


class AlreadyStarted(AthenaError):
    """A live process has this name or session id. Field: ``pid``."""


class AlreadyRegistered(AthenaError):
    """A live process, the calling one maybe, holds this key of a registry. Field: ``pid``."""


class AlreadyPresent(AthenaError):
    """The supervisor has a child of this id that does not run: restart it, or delete it."""


class MaxChildren(AthenaError):
    """The dynamic supervisor has as many children as it takes."""


class Running(AthenaError):
    """The child runs: terminate it first."""


class Restarting(AthenaError):
    """The child is being restarted now: terminate it to end that."""


class ProcessExited(AthenaError):
    """The process ended before it answered. Field: ``reason``."""


class NotAServer(AthenaError):
    """The process answers no calls: it is a function, a program, a session or a supervisor. Field: ``target``."""


class CallingSelf(AthenaError):
    """A process called, or stopped, itself: it cannot answer while it waits. Field: ``target``."""


class StartError(AthenaError):
    """A process could not be started. Field: ``reason``."""


class SessionFailed(AthenaError):
    """The session's restarts are used up; its log and queue are kept. Field: ``reason``."""


class SessionStopped(AthenaError):
    """The session was stopped while the call waited. Field: ``reason``."""


class Busy(AthenaError):
    """The session's queue is full. Field: ``limit``."""


class CallTimeout(AthenaError, TimeoutError):
    """The wait ended, not the turn. Field: ``message_id`` where there is one."""


class Unresponsive(AthenaError):
    """The session's process does not answer now. This says nothing about the turn."""


class AlreadyResolved(AthenaError):
    """The permission request has been answered, or was closed with its call. Fields: ``request_id``, ``decision``
    (``"allow"``, ``"deny"``, ``"closed"``), ``by`` (``pid`` and ``uid`` of whoever answered, or ``None``), ``at``."""


class Cancelled(AthenaError):
    """The message was taken back before its turn began. Field: ``message_id``."""


# --- the log -------------------------------------------------------------------------------------------------------


class StoreError(AthenaError):
    """A store could not do what was asked. Field: ``session_id`` where there is one."""


class LogLocked(StoreError):
    """Another process writes this log. Fields: ``session_id``, ``path``, ``pid`` (or ``None``)."""


class HasForks(StoreError):
    """The log is kept, because others go on from it. Fields: ``session_id``, ``forks`` (their ids)."""


class RecordTooLarge(StoreError):
    """One event is above 32 MiB encoded. Field: ``size_bytes``."""


class DiskError(StoreError):
    """An append or a sync failed; what was recorded before is whole. Field: ``errno``."""


class UnsupportedStore(StoreError):
    """This store cannot do the operation."""


# --- the wire ------------------------------------------------------------------------------------------------------


class ProtocolError(AthenaError):
    """The peer sent bytes that are no legal frame."""


class VersionMismatch(Refused):
    """The peer speaks another protocol or is another release. Fields: ``ours``, ``theirs``."""


# --- models ----------------------------------------------------------------------------------------------------------


class ProviderError(AthenaError):
    """A model call failed. Fields: ``kind`` (see :data:`PROVIDER_ERROR_KINDS`), ``status`` (HTTP, or ``None``),
    ``retry_after_s`` (or ``None``), ``provider``."""


PROVIDER_ERROR_KINDS = (
    "unauthorized",
    "not_found",
    "rate_limited",
    "timeout",
    "context_length_exceeded",
    "bad_request",
    "server_error",
    "transport",
    "capability",
    "unknown",
)


def _subclasses(base: type[AthenaError]) -> dict[str, type[AthenaError]]:
    found = {base.__name__: base}
    for cls in base.__subclasses__():
        found.update(_subclasses(cls))
    return found


def to_wire(error: AthenaError) -> dict[str, Any]:
    """The JSON form: ``{"error": class name, "message": text, "data": {...}}``."""
    data = {name: value.to_map() if isinstance(value, Pid) else value for name, value in error.data.items()}
    return {"error": type(error).__name__, "message": error.message, "data": data}


def from_wire(value: dict[str, Any]) -> AthenaError:
    """The error that :func:`to_wire` described; a class this release doesn't know becomes an :class:`AthenaError`."""
    cls = _subclasses(AthenaError).get(value.get("error", ""), AthenaError)
    data = value.get("data", {})
    if isinstance(data.get("pid"), dict):
        data = {**data, "pid": Pid.from_map(data["pid"])}
    return cls(value.get("message", ""), **data)
