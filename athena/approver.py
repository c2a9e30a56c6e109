"""``can_use_tool``: a function of the client's that answers permission requests, over the wire.

What is open is asked of the session whenever a request is announced, so nothing depends on which announcements this
client has seen: a request of before it came is answered too, and none that somebody else has answered is put to the
function.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from athena.errors import (
    AlreadyResolved,
    AthenaError,
    DiskError,
    InvalidOption,
    NotFound,
    SessionFailed,
    Unavailable,
    Unresponsive,
)
from athena.events import Event
from athena.loop.permission import Answer

if TYPE_CHECKING:
    from athena.async_session import AsyncEventStream, AsyncSession
    from athena.event_stream import EventStream
    from athena.session import Session

logger = logging.getLogger(__name__)

REASON_CHARS = 4000
"""Of a reason: the log and the model get it."""

AGAIN_S = 1.0
"""Between two tries at a supervisor that is away, or at a log that cannot be written."""

CanUseTool = Callable[[str, dict[str, Any], "PermissionContext"], Any]
"""Gets the tool's name, its arguments and a :class:`PermissionContext`. Returns whether the call may run: a bool,
``"allow"`` or ``"deny"``, or a pair of that and a reason for the model. Anything else denies, and so does raising."""


@dataclass(frozen=True, slots=True)
class PermissionContext:
    """What is asked, beside the tool and its arguments. Secrets that the session holds are replaced in both."""

    request_id: str
    call_id: str
    message_id: str
    turn: str
    reason: str
    """Why permission is needed."""


def checked(function: object, *, may_await: bool = False) -> CanUseTool | None:
    """``function`` if it may be a ``can_use_tool``. Raises :class:`InvalidOption`."""
    if function is None:
        return None
    expected = "a callable with three arguments: name, arguments, context"
    if callable(function) and (may_await or not inspect.iscoroutinefunction(function)):
        return function
    hint = "an async function; AsyncSession takes those" if callable(function) else f"{function!r}"
    raise InvalidOption(
        f"option 'can_use_tool' got {hint}: expected {expected}",
        option="can_use_tool",
        value=repr(function)[:80],
        expected=expected,
    )


Verdict: TypeAlias = tuple[Answer, str | None]
"""An answer, and the reason for it."""


def answer_of(value: Any) -> Verdict:
    """What a ``can_use_tool`` returned. What is no answer denies."""
    match value if isinstance(value, tuple) else (value, None):
        case (True | "allow", (None | str()) as reason):
            return "allow", reason and reason[:REASON_CHARS]
        case (False | "deny", (None | str()) as reason):
            return "deny", reason and reason[:REASON_CHARS]
    return "deny", f"can_use_tool returned {value!r}, which is no answer"[:200]


async def ask(function: CanUseTool, row: dict[str, Any]) -> Verdict:
    """Put one open request to the function, in a thread, and await what it returns if that is awaitable."""
    try:
        value = await asyncio.to_thread(function, *_question(row))
        return answer_of(await value if inspect.isawaitable(value) else value)
    except (Exception, SystemExit) as error:  # a bug of the user's function allows nothing, nor ends who asks it
        return _failed(error)


def _question(row: dict[str, Any]) -> tuple[str, dict[str, Any], PermissionContext]:
    words = {word: str(row.get(word)) for word in ("request_id", "call_id", "message_id", "turn", "reason")}
    return row["tool"], row["arguments"], PermissionContext(**words)


def _failed(error: BaseException) -> Verdict:
    logger.exception("can_use_tool failed; the call is denied")
    return "deny", f"it could not be decided: can_use_tool raised {type(error).__name__}"


class _Scope:
    """For which requests a function is asked, and until when."""

    def __init__(self, message_id: str | None) -> None:
        self._message_id = message_id

    def of(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if self._message_id in (None, row.get("message_id"))]

    def ends_with(self, event: Event) -> bool:
        if self._message_id is None:
            return False
        is_cancelled = self._message_id in event.data.get("message_ids", ()) and event.event == "message_cancelled"
        return is_cancelled or (event.event == "turn_end" and event.data.get("message_id") == self._message_id)


class Approver:
    """Answers with a function, in a thread of its own, until the session ends, or the turn of ``message_id``.

    ``stream`` is subscribed as an approver already. A handle that presents its options to a new supervisor says that
    it approves, so the thread is entered in its grants.
    """

    def __init__(self, session: Session, stream: EventStream, function: CanUseTool, message_id: str | None) -> None:
        self.joined_at = stream.joined_at
        self._session = session
        self._stream = stream
        self._function = function
        self._scope = _Scope(message_id)
        self._entry: bool | str = True if message_id is None else message_id
        session._granted.approvers.append(self._entry)
        threading.Thread(target=self._run, name="can_use_tool", daemon=True).start()

    def close(self) -> None:
        """Answer nothing any more. An answer that is being found is given."""
        self._stream.close()

    def _run(self) -> None:
        try:
            while True:
                if self._follow():
                    return
                time.sleep(AGAIN_S)
        except AthenaError as error:
            logger.warning("can_use_tool is not asked any more: %s", error)
        finally:
            self._session._granted.approvers.remove(self._entry)
            self._stream.close()

    def _follow(self) -> bool:
        """``False``: the supervisor is away, or the session silent."""
        try:
            self._answer_open()
            for item in self._stream:
                if isinstance(item, Event) and item.event == "permission_request":
                    self._answer_open()
                if isinstance(item, Event) and self._scope.ends_with(item):
                    break
            return True
        except (Unavailable, Unresponsive):
            return False

    def _answer_open(self) -> None:
        try:
            for row in self._scope.of(self._session.requests()):
                self._answer(row["request_id"], *self._decide(row))
        except SessionFailed:
            pass  # if it is restarted, what is open is announced again

    def _decide(self, row: dict[str, Any]) -> Verdict:
        try:
            return answer_of(self._function(*_question(row)))
        except (Exception, SystemExit) as error:  # a bug of the user's function allows nothing, nor ends the thread
            return _failed(error)

    def _answer(self, request_id: str, decision: Answer, reason: str | None) -> None:
        while True:
            try:
                self._session.answer(request_id, decision, reason=reason)
                return
            except (AlreadyResolved, NotFound):
                return  # somebody was faster, or its call is over
            except DiskError:
                time.sleep(AGAIN_S)


class AsyncApprover:
    """The same in a task of the event loop. The function is called in a thread, as it may wait for a person."""

    def __init__(
        self, session: AsyncSession, stream: AsyncEventStream, function: CanUseTool, message_id: str | None
    ) -> None:
        self.joined_at = stream.joined_at
        self._session = session
        self._stream = stream
        self._function = function
        self._scope = _Scope(message_id)
        self._entry: bool | str = True if message_id is None else message_id
        session._granted.approvers.append(self._entry)
        self.task = asyncio.create_task(self._run(), name="can_use_tool")

    def close(self) -> None:
        """Answer nothing any more. An answer that is being found is given."""
        self._stream.close()

    async def _run(self) -> None:
        try:
            while True:
                if await self._follow():
                    return
                await asyncio.sleep(AGAIN_S)
        except AthenaError as error:
            logger.warning("can_use_tool is not asked any more: %s", error)
        finally:
            self._session._granted.approvers.remove(self._entry)
            self._stream.close()

    async def _follow(self) -> bool:
        try:
            await self._answer_open()
            async for item in self._stream:
                if isinstance(item, Event) and item.event == "permission_request":
                    await self._answer_open()
                if isinstance(item, Event) and self._scope.ends_with(item):
                    break
            return True
        except (Unavailable, Unresponsive):
            return False

    async def _answer_open(self) -> None:
        try:
            for row in self._scope.of(await self._session.requests()):
                await self._answer(row["request_id"], *await ask(self._function, row))
        except SessionFailed:
            pass  # if it is restarted, what is open is announced again

    async def _answer(self, request_id: str, decision: Answer, reason: str | None) -> None:
        while True:
            try:
                await self._session.answer(request_id, decision, reason=reason)
                return
            except (AlreadyResolved, NotFound):
                return  # somebody was faster, or its call is over
            except DiskError:
                await asyncio.sleep(AGAIN_S)
