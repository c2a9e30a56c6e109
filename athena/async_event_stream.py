"""The asyncio stream of a session's events, over any number of connections. See :mod:`athena.event_stream`."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from athena.async_connections import Inbox
from athena.client import ConnectionLost
from athena.errors import NotFound, NotRunning, Refused
from athena.recovery import ANSWER_S, RETRY_S, Recovery, gone
from athena.subscriber import Item, Subscriber
from athena.wire import dumps

if TYPE_CHECKING:
    from athena.async_session import AsyncSession


class AsyncEventStream:
    """An asynchronous iterator of events and deltas over any number of connections. Of several tasks that iterate,
    each item goes to one."""

    def __init__(self, session: AsyncSession, subscriber: Subscriber) -> None:
        self._session = session
        self._subscriber = subscriber
        self._inbox: Inbox | None = None
        self._items: deque[Item] = deque()
        self._reading = asyncio.Lock()
        self._is_closed = False
        self.joined_at = 0
        """The seq of the last event before the stream."""

    async def __aenter__(self) -> AsyncEventStream:
        if self._inbox is None:
            await self._subscribe()
        self.joined_at = self._subscriber.seq
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncEventStream:
        return self

    async def __anext__(self) -> Item:
        async with self._reading:
            while not self._items or self._is_closed:
                if self._subscriber.is_ended or self._is_closed:
                    self._hang_up()
                    raise StopAsyncIteration
                if self._inbox is None:
                    await self._subscribe()
                    continue
                frame = await self._inbox.next()
                if frame is None:
                    self._hang_up()
                    continue
                self._items.extend(self._subscriber.feed(frame))
            return self._items.popleft()

    def close(self) -> None:
        """Leave the stream. A task that waits for its next item gets the end of the iteration."""
        self._is_closed = True
        self._hang_up()

    def __del__(self) -> None:
        with contextlib.suppress(RuntimeError):  # its event loop may be closed
            self._hang_up()

    def _hang_up(self) -> None:
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None

    async def _subscribe(self) -> None:
        session = self._session
        recovery = Recovery(session._target, session._options, session._supervisor_id, session._granted)
        while not self._is_closed:
            inbox = None
            try:
                inbox = await Inbox.open(session._target)
                body = dumps(self._subscriber.request_body())
                answer = await inbox.connection.call("subscribe", {"session": session.session_id}, body, ANSWER_S)
                self._subscriber.subscribed(answer.json())
                self._inbox = inbox
                if recovery.was_replaced():
                    await asyncio.to_thread(recovery.try_again)
                return
            except (ConnectionLost, NotRunning, Refused, TimeoutError) as error:
                recovery.lost(error)  # a greeting that is cut looks like no supervisor's: the next try tells
                await asyncio.sleep(RETRY_S)
            except NotFound as error:
                if not recovery.was_replaced():
                    raise gone(error, session.session_id) from None
            finally:
                if inbox is not None and self._inbox is not inbox:
                    inbox.close()
            await asyncio.to_thread(recovery.try_again)
