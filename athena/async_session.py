"""The asyncio client of a session: the methods of :class:`athena.session.Session`, awaited.

All calls of one event loop share one connection; each stream and each monitor has its own, so a slow reader of events
never delays an answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypeVar

from athena import session_calls as calls
from athena.async_connections import Inbox, perform
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
from athena.loop.result import Result
from athena.messages import Message, Usage
from athena.pid import Pid
from athena.recovery import ANSWER_S, RETRY_S, Granted, Recovery, gone, start_limit_s
from athena.session_calls import Call, Identity, StartOptions
from athena.stored import resume as resume_stored
from athena.stored import stored_rows
from athena.subscriber import Item, Subscriber, TurnFilter
from athena.supervisors import Target, resolve
from athena.wire import dumps

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
        checked = calls.start_options(options, link=link)
        target = await asyncio.to_thread(resolve, supervisor)
        identity = await perform(target, calls.start(checked), start_limit_s(options))
        return cls(target, identity, checked)

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
        self, text: str, *, message_id: str | None = None, timeout: float | None = None, **loop_options: Any
    ) -> Result:
        """Send a message and wait for its turn to end."""
        call = calls.send(self.session_id, text, message_id or new_uuid(), loop_options, wait=True)
        answer: Result = await self._do(call, timeout)
        return answer

    async def submit(self, text: str, *, message_id: str | None = None, **loop_options: Any) -> AsyncTurn:
        """Hand a message over; returns when it is accepted, which means on disk."""
        message_id = message_id or new_uuid()
        answer = await self._do(calls.send(self.session_id, text, message_id, loop_options, wait=False))
        return AsyncTurn(self, message_id, int(answer["seq"]))

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

    def events(self, after: int | Event | Cursor | None = None, *, deltas: bool = True) -> AsyncEventStream:
        """Iterate events and deltas. Subscribed by ``async with``, or by the first step of ``async for``."""
        return AsyncEventStream(self, Subscriber(after, deltas=deltas))

    async def monitor(self) -> AsyncMonitor:
        """Watch the process that runs the session now."""
        return await AsyncMonitor.watch(self._target, self.session_id)

    # --- ending

    async def stop(self, reason: Reason = "normal", timeout: float | None = None) -> None:
        """Stop the session. Twice is a no-op."""
        try:
            await perform(self._target, calls.stop(self.session_id, reason, timeout), None)
        except (ConnectionLost, NotRunning):
            pass  # the supervisor is gone, and with it the process

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

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
                answer = await perform(self._target, call, left_s)
            except (ConnectionLost, NotRunning) as error:
                recovery.lost(error)
                if deadline is not None and loop.time() >= deadline:
                    raise call_timeout(call.op, timeout, call.message_id) from None
                await asyncio.sleep(RETRY_S)
            except NotFound as error:
                if not recovery.was_replaced():
                    raise gone(error, self.session_id) from None
            else:
                self._supervisor_id = self._target.pool.supervisor_id
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

    async def events(self) -> AsyncGenerator[Item, None]:
        """This turn's events and deltas, from its start to its ``turn_end``."""
        async with self._session.events(self._seq) as stream:
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


class AsyncEventStream:
    """An asynchronous iterator of events and deltas over any number of connections."""

    def __init__(self, session: AsyncSession, subscriber: Subscriber) -> None:
        self._session = session
        self._subscriber = subscriber
        self._inbox: Inbox | None = None
        self._items: deque[Item] = deque()
        self.joined_at = 0
        """The seq of the last event before the stream."""

    async def __aenter__(self) -> AsyncEventStream:
        await self._subscribe()
        self.joined_at = self._subscriber.seq
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncEventStream:
        return self

    async def __anext__(self) -> Item:
        while not self._items:
            if self._inbox is None:
                if self._subscriber.is_ended:
                    raise StopAsyncIteration
                await self._subscribe()
                continue
            frame = await self._inbox.next()
            if frame is None:
                self.close()
                continue
            self._items.extend(self._subscriber.feed(frame))
            if self._subscriber.is_ended:
                self.close()
        return self._items.popleft()

    def close(self) -> None:
        """Leave the stream."""
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None

    async def _subscribe(self) -> None:
        session = self._session
        recovery = Recovery(session._target, session._options, session._supervisor_id, session._granted)
        while True:
            inbox = None
            try:
                inbox = await Inbox.open(session._target)
                body = dumps(self._subscriber.request_body())
                answer = await inbox.connection.call("subscribe", {"session": session.session_id}, body, ANSWER_S)
                self._subscriber.subscribed(answer.json())
                self._inbox = inbox
                return
            except (ConnectionLost, NotRunning, TimeoutError) as error:
                recovery.lost(error)
                await asyncio.sleep(RETRY_S)
            except NotFound as error:
                if not recovery.was_replaced():
                    raise gone(error, session.session_id) from None
            finally:
                if inbox is not None and self._inbox is not inbox:
                    inbox.close()
            await asyncio.to_thread(recovery.try_again)
