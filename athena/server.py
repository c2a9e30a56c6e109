"""The server behaviour: a class of callbacks that runs in a process of its own, as OTP's ``gen_server`` does.

```python
class Counter(Server):
    def init(self, start=0):
        self.count = start

    def handle_call(self, request, caller):
        self.count += request["add"]
        return Reply(self.count)
```

Put under a supervisor as ``ChildSpec("counter", "package.module:Counter", args=[10])``. Each callback may be plain or
``async def``; one message is handled at a time, in the order of arrival. A plain callback runs in the main thread and
keeps the event loop until it returns.

A callback that raises ends the process, with the error as its exit reason; ``sys.exit(n)`` gives ``{"exit": n}``. An
error in a thread, and one in a background coroutine that nobody awaits, ends it too, at once and without
:meth:`Server.terminate`.
"""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import orjson

from athena.errors import InvalidOption, Reason
from athena.names import Name, json_value
from athena.pid import Pid
from athena.wire import dumps

if TYPE_CHECKING:
    from athena.tree_calls import Ignored, Started

logger = logging.getLogger(__name__)

SHOWN_CHARS = 200
"""Of a value in an error's text."""

BAD_VALUE_CHARS = 2000
"""Of a value that a callback must not return, in the exit reason."""

Seconds = float | Literal["infinity"] | None


class Absent(enum.Enum):
    """The one value that says: none was given."""

    ABSENT = enum.auto()


ABSENT = Absent.ABSENT

# --- what callbacks return --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Continue:
    """:meth:`Server.handle_continue` comes next, before any message, also one that waits already."""

    argument: Any = None


@dataclass(frozen=True, slots=True)
class Hibernate:
    """Give memory back until the next message. Nothing else changes: the process stays, with pid and name."""


@dataclass(frozen=True, slots=True)
class Ignore:
    """From ``init``: there is nothing to do, end without an error."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End with ``reason``. From ``handle_call`` with a ``reply``, which goes out when ``terminate`` is through; without
    one, who waits for an answer gets the reason."""

    reason: Reason = "normal"
    reply: Any = ABSENT


@dataclass(frozen=True, slots=True)
class Ready:
    """From ``init``: started. ``info`` is JSON for who started it; ``timeout`` and ``then`` as in :class:`Reply`."""

    info: Any = None
    timeout: Seconds = None
    then: Continue | Hibernate | None = None

    def __post_init__(self) -> None:
        check_onward(self.timeout, self.then)


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer the call with ``value``, which is JSON.

    ``timeout``: seconds after which ``handle_info`` gets a :class:`Timeout`, unless any message comes first; ``None``
    or ``"infinity"`` for never. ``then``: what comes next, if not the next message. Raises
    :class:`~athena.errors.InvalidOption`.
    """

    value: Any
    timeout: Seconds = None
    then: Continue | Hibernate | None = None

    def __post_init__(self) -> None:
        check_onward(self.timeout, self.then)


@dataclass(frozen=True, slots=True)
class NoReply:
    """Go on; a call is answered later, by :meth:`Caller.reply`. ``timeout`` and ``then`` as in :class:`Reply`."""

    timeout: Seconds = None
    then: Continue | Hibernate | None = None

    def __post_init__(self) -> None:
        check_onward(self.timeout, self.then)


def check_onward(timeout: Any, then: Any) -> None:
    """Raise :class:`InvalidOption` if this is no way to go on."""
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not (timeout is None or timeout == "infinity" or (is_number and 0 <= timeout < math.inf)):
        _refuse("timeout", timeout, 'seconds from 0 on, or "infinity" for never')
    if not (then is None or isinstance(then, Continue | Hibernate)):
        _refuse("then", then, "Continue(argument), Hibernate() or None")
    if isinstance(then, Continue) and timeout is not None:
        _refuse("timeout", timeout, "None beside Continue: give it in what handle_continue returns")


def _refuse(option: str, value: Any, expected: str) -> None:
    shown = shortened(value)
    raise InvalidOption(f"{option}={shown} must be {expected}", option=option, value=shown, expected=expected)


# --- what callbacks get -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timeout:
    """For ``handle_info``: no message came in the time that the last callback gave."""


class Caller:
    """Who waits for the answer to a call. ``pid`` is that process, or ``None`` if it is not known."""

    __slots__ = ("_send", "pid")

    def __init__(self, pid: Pid | None, send: Callable[[bytes, bool], None]) -> None:
        self.pid = pid
        self._send: Callable[[bytes, bool], None] | None = send

    def __repr__(self) -> str:
        return f"Caller({self.pid!r})"

    def reply(self, value: Any) -> None:
        """Answer. From any coroutine and any thread of this process; only the first answer counts.

        Raises :class:`~athena.errors.InvalidOption` if JSON cannot carry ``value`` as it is.
        """
        self.answer(checked_json("reply", value))

    def answer(self, body: bytes, *, ok: bool = True) -> None:
        """:meth:`reply` with JSON as it is to travel, or if not ``ok`` with an error of Athena's."""
        send, self._send = self._send, None
        if send is not None:
            send(body, ok)


# --- the behaviour ----------------------------------------------------------------------------------------------------


class Server:
    """Base of servers. State lives in ``self``; ``self.pid`` and ``self.name`` are set before ``init``.

    ``trap_exit``: whether exit signals become messages. A server that does not trap is ended by SIGTERM, a shutdown
    and a linked process's abnormal end at once, without :meth:`terminate`. It may change at any time, and counts from
    the end of the callback that changed it.
    """

    trap_exit: bool = False
    pid: Pid | None = None
    name: Name | None = None

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Start; who starts the server waits for it. ``None``, :class:`Ready`, :class:`Continue`, :class:`Hibernate`;
        or :class:`Ignore`, :class:`Stop`: then the process is gone before the starter hears of it."""

    def handle_call(self, request: Any, caller: Caller) -> Any:
        """Answer a call: :class:`Reply`, :class:`NoReply` or :class:`Stop`."""
        raise NotImplementedError(f"{_label(self)} got a call and has no handle_call: {shortened(request)}")

    def handle_cast(self, message: Any) -> Any:
        """Take a message that is not answered: ``None``, :class:`NoReply`, :class:`Continue`, :class:`Hibernate` or
        :class:`Stop`."""
        raise NotImplementedError(f"{_label(self)} got a cast and has no handle_cast: {shortened(message)}")

    def handle_info(self, message: Any) -> Any:
        """Take an :class:`~athena.signals.Exit`, a :class:`~athena.signals.Down`, a :class:`Timeout`, or whatever was
        sent. Returns as :meth:`handle_cast` does. This one logs the message and ignores it."""
        logger.warning("%s ignores a message: it has no handle_info: %s", _label(self), shortened(message))

    def handle_continue(self, argument: Any) -> Any:
        """Go on after a :class:`Continue`. Returns as :meth:`handle_cast` does."""
        raise NotImplementedError(f"{_label(self)} continues and has no handle_continue: {shortened(argument)}")

    def terminate(self, reason: Reason) -> Any:
        """Clean up. What it returns is ignored; if it raises, that is the exit reason.

        Called when a callback returned :class:`Stop`, raised, or returned what it must not; when somebody stops the
        server; and when it traps exits and its supervisor ends it (or is lost: ``noconnection``, and then it has 3 s).
        Not called when it is killed, when it does not trap exits, and when ``init`` failed.
        """

    # --- starting one that no supervisor has

    @classmethod
    def start_link(cls, *args: Any, **options: Any) -> Started | Ignored:
        """Start a server tied to this process: when one of the two ends, the other is ended or told.

        Args:
            args: for :meth:`init`, as JSON.
            options: ``kwargs`` for :meth:`init`; ``name``, ``start_timeout``, ``shutdown``, ``env``, ``cwd``,
                ``python_path`` as in :class:`~athena.ChildSpec`; ``supervisor`` as for
                :meth:`athena.Session.start_link`.

        It is not restarted: for that, put it under a supervisor. Raises :class:`~athena.errors.StartError` with the
        ``reason``, :class:`~athena.errors.AlreadyStarted` with the ``pid``; nothing is left behind then.
        """
        start: Any = import_module("athena.processes").start_server  # not in every server's memory
        return start(cls, args, options, link=True)  # type: ignore[no-any-return]  # what it is typed to return

    @classmethod
    def start(cls, *args: Any, **options: Any) -> Started | Ignored:
        """As :meth:`start_link`, not tied: it lives on in the daemon when this process ends."""
        start: Any = import_module("athena.processes").start_server
        return start(cls, args, options, link=False)  # type: ignore[no-any-return]  # likewise

    @classmethod
    async def astart_link(cls, *args: Any, **options: Any) -> Started | Ignored:
        """:meth:`start_link`, awaited."""
        start: Any = import_module("athena.async_processes").astart_server
        return await start(cls, args, options, link=True)  # type: ignore[no-any-return]  # likewise

    @classmethod
    async def astart(cls, *args: Any, **options: Any) -> Started | Ignored:
        """:meth:`start`, awaited."""
        start: Any = import_module("athena.async_processes").astart_server
        return await start(cls, args, options, link=False)  # type: ignore[no-any-return]  # likewise


def _label(server: Server) -> str:
    return f"{type(server).__module__}:{type(server).__qualname__}"


# --- values -----------------------------------------------------------------------------------------------------------


def checked_json(what: str, value: Any) -> bytes:
    """``value`` as JSON. Raises :class:`~athena.errors.InvalidOption`, naming it, if JSON cannot carry it unchanged."""
    return dumps(json_value(what, value))


def shortened(value: Any, limit_chars: int = SHOWN_CHARS) -> str:
    """``value`` for an error's text. Never raises."""
    try:
        text = repr(value)
    except Exception as failure:
        text = f"<{type(value).__name__} whose repr raises {type(failure).__name__}>"
    return text if len(text) <= limit_chars else f"{text[:limit_chars]}..."


def json_safe(value: Any) -> Any:
    """``value`` if it is JSON of no great size, else a text that shows it."""
    plain_only = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
    try:
        body = orjson.dumps(value, option=plain_only)
    except TypeError:
        return shortened(value, BAD_VALUE_CHARS)
    return orjson.loads(body) if len(body) <= BAD_VALUE_CHARS else shortened(value, BAD_VALUE_CHARS)
