"""The asyncio client of a session: the methods of :class:`athena.session.Session`, awaited.

All calls of one event loop share one connection; each stream and each monitor has its own, so a slow reader of events
never delays an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypeVar

from athena import branch_calls
from athena import session_calls as calls
from athena.approver import AsyncApprover, CanUseTool, checked
from athena.async_connections import perform
from athena.async_event_stream import AsyncEventStream as AsyncEventStream
from athena.async_processes import AsyncMonitor
from athena.child_specs import session_spec
from athena.client import ConnectionLost, call_timeout
from athena.errors import (
    AthenaError,
    CallTimeout,
    NoProcess,
    NotFound,
    NotRunning,
    Reason,
    Unavailable,
)
from athena.events import Cursor, Event, new_uuid
from athena.loop.permission import Answer
from athena.loop.result import Result
from athena.messages import Message, Usage
from athena.pid import Pid
from athena.points import Checkpoint, Point, Rewound
from athena.recovery import ANSWER_S, RETRY_S, Granted, Recovery, gone, start_limit_s
from athena.session_calls import Call, Identity, StartOptions
from athena.stored import discard_fork, read_blob, stored_rows
from athena.stored import resume as resume_stored
from athena.subscriber import Item, Subscriber, TurnFilter
from athena.supervisors import Target, resolve

T = TypeVar("T")

Messages: TypeAlias = list[Message]
Rows: TypeAlias = list[dict[str, Any]]
"""Named here, because inside the class ``list`` is a method."""


class AsyncSession:
    """A handle on a supervised session. See :class:`athena.session.Session` for what each method promises."""

    def __init__(self, target: Target, identity: Identity, options: StartOptions | None = None) -> None:
        self._target = target
        self._identity = identity
        self._options = options
        self._supervisor_id = target.pool.supervisor_id
        self._granted = Granted()
        self._approvers: set[AsyncApprover] = set()

    # --- getting one

    @classmethod
    async def start_link(cls, *, supervisor: str | Path | Target | None = None, **options: Any) -> AsyncSession:
        """Start a session linked to this program."""
        return await cls._start(supervisor, options, link=True)

    @classmethod
    async def start(cls, *, supervisor: str | Path | Target | None = None, **options: Any) -> AsyncSession:
        """Start a session that lives on in its supervisor when this program ends."""
        return await cls._start(supervisor, options, link=False)

    @classmethod
    async def _start(
        cls, supervisor: str | Path | Target | None, options: dict[str, Any], *, link: bool
    ) -> AsyncSession:
        function = checked(options.pop("can_use_tool", None), may_await=True)
        given = calls.start_options(options, link=link)
        target = await asyncio.to_thread(resolve, supervisor)
        identity = await perform(target, calls.start(given, [True] if function else []), start_limit_s(options))
        session = cls(target, identity, given)
        if function is not None:
            try:
                await session._approve(function)
            except BaseException:
                await session.stop()
                raise
        return session

    @staticmethod
    def child_spec(**options: Any) -> dict[str, Any]:
        """The specification of a session as a child of a supervisor."""
        return session_spec(options)

    @classmethod
    async def attach(cls, target: str | int | Pid, *, supervisor: str | Path | Target | None = None) -> AsyncSession:
        """A handle on a live session by name, id or pid."""
        at = await asyncio.to_thread(lambda: resolve(supervisor, create=False))
        return cls(at, await perform(at, calls.attach(target), ANSWER_S))

    @classmethod
    async def restart(cls, target: str, *, supervisor: str | Path | Target | None = None) -> AsyncSession:
        """Start a failed session again, by name or id, with what it had. Returns when it is ready."""
        at = await asyncio.to_thread(lambda: resolve(supervisor, create=False))
        return cls(at, await perform(at, calls.restart(target), None))

    @staticmethod
    async def whereis(name: str, *, supervisor: str | Path | Target | None = None) -> Pid | None:
        """The pid of the session with this name or id, or ``None``."""
        at = await asyncio.to_thread(lambda: resolve(supervisor, create=False))
        try:
            return await perform(at, calls.whereis(name), ANSWER_S)
        except NotRunning:
            return None

    @staticmethod
    async def list(*, supervisor: str | Path | Target | None = None) -> Rows:
        """Rows of live, hibernated, failed and stored sessions."""
        at = await asyncio.to_thread(lambda: resolve(supervisor, create=False))
        try:
            return await perform(at, calls.list_sessions(), ANSWER_S)
        except NotRunning:
            return await asyncio.to_thread(stored_rows)

    @staticmethod
    async def resume(
        session_id: str,
        store: str = "jsonl",
        as_: Literal["messages", "state", "map"] = "messages",
        replay_last_user_turn: bool = False,
        *,
        root: str | Path | None = None,
        store_options: dict[str, Any] | None = None,
    ) -> Any:
        """Rebuild a session's history from a store; needs no process."""
        return await asyncio.to_thread(
            lambda: resume_stored(session_id, store, as_, replay_last_user_turn, root=root, store_options=store_options)
        )

    @staticmethod
    async def blob(ref: str, store: str = "jsonl", **where: Any) -> bytes:
        """What a payload refers to with ``["blob"]["ref"]``; needs no process."""
        return await asyncio.to_thread(lambda: read_blob(ref, store, **where))

    @staticmethod
    async def delete(
        session_id: str,
        store: str = "jsonl",
        *,
        root: str | Path | None = None,
        store_options: dict[str, Any] | None = None,
        supervisor: str | Path | Target | None = None,
    ) -> None:
        """Remove a stored session and all that belongs to it, for good."""
        from athena.removal import delete

        await asyncio.to_thread(
            delete, session_id, store, root=root, store_options=store_options, supervisor=supervisor
        )

    # --- what it is

    @property
    def session_id(self) -> str:
        """Stable over restarts, and the name of the log."""
        return self._identity.session_id

    @property
    def name(self) -> str | None:
        """The registered name, if it has one."""
        return self._identity.name

    async def pid(self) -> Pid | None:
        """The pid of the process that runs it now; a method here, because it asks."""
        try:
            return (await self._do(calls.attach(self.session_id), ANSWER_S)).pid
        except NoProcess:
            return None  # it was stopped

    def __repr__(self) -> str:
        return f"<AsyncSession {self.name or self.session_id}>"

    # --- talking

    async def send_message(
        self,
        text: str,
        *,
        message_id: str | None = None,
        timeout: float | None = None,
        can_use_tool: CanUseTool | None = None,
        **loop_options: Any,
    ) -> Result:
        """Send a message and wait for its turn to end. ``can_use_tool`` may be async; another one runs in a thread."""
        message_id = message_id or new_uuid()
        call = calls.send(self.session_id, text, message_id, loop_options, wait=True)
        async with self._approving(can_use_tool, message_id) as approver:
            answer: Result = await self._do(call, timeout)
            if approver is not None:
                approver.close()
        return answer

    async def submit(
        self, text: str, *, message_id: str | None = None, can_use_tool: CanUseTool | None = None, **loop_options: Any
    ) -> AsyncTurn:
        """Hand a message over; returns when it is accepted, which means on disk."""
        message_id = message_id or new_uuid()
        call = calls.send(self.session_id, text, message_id, loop_options, wait=False)
        async with self._approving(can_use_tool, message_id) as approver:
            seq = int((await self._do(call))["seq"])
            if can_use_tool is not None and approver is not None and seq <= approver.joined_at:
                approver.close()  # it was sent before, and its turn may be over: the end of that is in the log
                await self._approve(can_use_tool, message_id, after=seq)
        return AsyncTurn(self, message_id, seq)

    async def stream(
        self, text: str, *, message_id: str | None = None, **loop_options: Any
    ) -> AsyncGenerator[Item | Result, None]:
        """Send a message and iterate its turn's deltas and events; the last item is the :class:`Result`."""
        async with self.events() as stream:  # before the message is sent: a fast model's text would be over already
            joined_at = stream.joined_at
            turn = await self.submit(text, message_id=message_id, **loop_options)
            # One that was sent before has its events in the log.
            async with aclosing(
                _one_turn(stream, turn.message_id) if turn._seq > joined_at else turn.events()
            ) as items:
                async for item in items:
                    yield item
        yield await turn.result()

    async def interrupt(self, *, clear_queue: bool = False) -> bool:
        """End the running turn within about 2 s. ``False`` if none runs."""
        return await self._do(calls.interrupt(self.session_id, clear_queue=clear_queue))

    # --- going back, and another way

    async def checkpoint(self, label: str | None = None) -> Checkpoint:
        """Name the point that the session is at now."""
        return await self._do(branch_calls.checkpoint(self.session_id, label))

    async def rewind(self, to: Point, *, files: bool = True) -> Rewound:
        """Go back to a point, with the files that tools have changed since."""
        return await self._do(branch_calls.rewind(self.session_id, to, files=files))

    async def fork(self, at: Point | None = None, *, link: bool = True, **options: Any) -> AsyncSession:
        """Start a session that goes on from a point of this one beside it."""
        given = branch_calls.fork_options(self._options, options, link=link)
        new_id = given["session_id"]
        made = await self._do(branch_calls.fork(self.session_id, at, new_id))
        try:
            return await AsyncSession._start(self._target, given | made, link=link)
        except AthenaError as error:
            if not isinstance(error, CallTimeout | Unavailable):  # after these two it may be there
                await asyncio.to_thread(discard_fork, new_id, made)
            raise

    @staticmethod
    async def fork_stored(
        session_id: str,
        at: Point | None = None,
        *,
        new_session_id: str | None = None,
        store: str = "jsonl",
        root: str | Path | None = None,
        store_options: dict[str, Any] | None = None,
    ) -> str:
        """Make a fork of a stored session; returns its id, and starts nothing."""
        from athena.stored_branches import fork_stored as fork

        return await asyncio.to_thread(
            lambda: fork(
                session_id, at, new_session_id=new_session_id, store=store, root=root, store_options=store_options
            )
        )

    # --- looking

    async def messages(self) -> Messages:
        """The history so far."""
        return await self._do(calls.messages(self.session_id), ANSWER_S)

    async def status(self) -> dict[str, Any]:
        """What the supervisor knows of the session."""
        return await self._do(calls.status(self.session_id), ANSWER_S)

    async def usage(self) -> Usage:
        """Tokens and cost of the whole session."""
        return await self._do(calls.usage(self.session_id), ANSWER_S)

    async def queue(self) -> Rows:
        """The messages that wait behind the running turn."""
        return await self._do(calls.queue(self.session_id), ANSWER_S)

    async def requests(self) -> Rows:
        """The permission requests that wait for an answer."""
        return await self._do(calls.requests(self.session_id), ANSWER_S)

    async def answer(
        self, request_id: str, decision: Answer, *, remember: bool = False, reason: str | None = None
    ) -> None:
        """Answer a permission request."""
        await self._do(calls.answer(self.session_id, request_id, decision, remember=remember, reason=reason))

    def events(
        self, after: int | Event | Cursor | None = None, *, deltas: bool = True, approver: bool = False
    ) -> AsyncEventStream:
        """Iterate events and deltas. Subscribed by ``async with``, or by the first step of ``async for``."""
        return AsyncEventStream(self, Subscriber(after, deltas=deltas, approver=approver))

    async def monitor(self) -> AsyncMonitor:
        """Watch the process that runs the session now."""
        return await AsyncMonitor.watch(self._target, self.session_id)

    # --- ending

    async def stop(self, reason: Reason = "normal", timeout: float | None = None) -> None:
        """Stop the session. Twice is a no-op."""
        call, recovery = calls.stop(self.session_id, reason, timeout), Recovery(self._target, None, None, Granted())
        while True:
            try:
                await perform(self._target, call, None)
                return
            except (ConnectionLost, NotRunning) as error:
                if self._target.forgets:
                    return  # the session has ended with its supervisor
                recovery.lost(error)
                await asyncio.sleep(RETRY_S)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def _approve(
        self, function: CanUseTool, message_id: str | None = None, after: int | None = None
    ) -> AsyncApprover:
        subscriber = Subscriber(after, deltas=False, may_be_ahead=True, approver=message_id or True)
        stream = await AsyncEventStream(self, subscriber).__aenter__()
        approver = AsyncApprover(self, stream, function, message_id)
        self._approvers.add(approver)
        approver.task.add_done_callback(lambda _: self._approvers.discard(approver))
        return approver

    @asynccontextmanager
    async def _approving(
        self, function: CanUseTool | None, message_id: str
    ) -> AsyncGenerator[AsyncApprover | None, None]:
        function = checked(function, may_await=True)
        approver = None if function is None else await self._approve(function, message_id)
        try:
            yield approver
        except BaseException as error:
            if approver is not None and not isinstance(error, CallTimeout | Unavailable):  # after these it may go on
                approver.close()
            raise

    async def _do(self, call: Call[T], timeout: float | None = None) -> T:
        """Perform a call; over the loss of the supervisor too, if it comes back in time."""
        is_new = self._granted.hold(call)
        try:
            answer = await self._until_answered(call, timeout)
        except AthenaError as error:
            if is_new and not isinstance(error, CallTimeout | Unavailable):  # after these two its turn may go on
                self._granted.drop(call.message_id)
            raise
        if isinstance(answer, Result):
            self._granted.drop(call.message_id)
        return answer

    async def _until_answered(self, call: Call[T], timeout: float | None) -> T:
        recovery = Recovery(self._target, self._options, self._supervisor_id, self._granted)
        loop = asyncio.get_running_loop()
        calls.check_timeout(timeout)
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            left_s = None if deadline is None else max(0.001, deadline - loop.time())
            try:
                answer = await perform(self._target, call, left_s, expect=recovery.expected)
            except (ConnectionLost, NotRunning) as error:
                recovery.lost(error)
                if deadline is not None and loop.time() >= deadline:
                    raise call_timeout(call.op, timeout, call.message_id) from None
                await asyncio.sleep(RETRY_S)
            except NotFound as error:
                if error.data.get("target") != self.session_id:
                    raise  # the session has answered: it does not know what was asked for
                if not recovery.was_replaced():
                    raise gone(error, self.session_id) from None
            else:
                self._supervisor_id = recovery.supervisor_id
                return answer
            await asyncio.to_thread(recovery.try_again)


class AsyncTurn:
    """An accepted message and its turn."""

    def __init__(self, session: AsyncSession, message_id: str, seq: int) -> None:
        self.message_id = message_id
        self._session = session
        self._seq = seq

    def __repr__(self) -> str:
        return f"<AsyncTurn {self.message_id} of {self._session!r}>"

    async def result(self, timeout: float | None = None) -> Result:
        """Wait for the end of the turn."""
        return await self._session._do(calls.result(self._session.session_id, self.message_id), timeout)

    async def events(self, *, approver: bool = False) -> AsyncGenerator[Item, None]:
        """This turn's events and deltas, from its start to its ``turn_end``."""
        subscriber = Subscriber(self._seq, may_be_ahead=True, approver=approver)
        async with AsyncEventStream(self._session, subscriber) as stream:
            async for item in _one_turn(stream, self.message_id):
                yield item

    async def cancel(self) -> bool:
        """Take the message back while it is queued."""
        return await self._session._do(calls.cancel(self._session.session_id, self.message_id))


async def _one_turn(stream: AsyncEventStream, message_id: str) -> AsyncGenerator[Item, None]:
    """The items of the turn of ``message_id``, until it ends or is cancelled."""
    follow = TurnFilter(message_id)
    async for item in stream:
        if follow.wants(item):
            yield item
        if follow.is_over:
            return
