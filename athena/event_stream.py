"""The blocking stream of a session's events, over any number of connections. Its asyncio twin is in
:mod:`athena.async_session`."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from athena.client import ConnectionLost, SyncConnection, call_timeout
from athena.errors import NotFound, NotRunning
from athena.recovery import ANSWER_S, RETRY_S, Recovery, gone
from athena.subscriber import Item, Subscriber
from athena.wire import dumps

if TYPE_CHECKING:
    from athena.session import Session


class EventStream:
    """An iterator of events and deltas. Subscribed from the moment it is made; close it, or use it in ``with``.

    Thread-safe: of several threads that iterate, each item goes to one.
    """

    def __init__(self, session: Session, subscriber: Subscriber) -> None:
        self._session = session
        self._subscriber = subscriber
        self._items: deque[Item] = deque()
        self._reading = threading.RLock()
        """Held by the thread that reads from the connection."""
        self._is_closed = False
        self._connection: SyncConnection | None = None
        self._recovery: Recovery | None = None
        self._subscribe(None)
        self.joined_at = subscriber.seq
        """The seq of the last event before the stream."""

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Item:
        item = self.next()
        if item is None:
            raise StopIteration
        return item

    def next(self, timeout: float | None = None) -> Item | None:
        """The next item; ``None`` after the session's end, or :meth:`close`.

        Raises :class:`~athena.errors.CallTimeout`; :class:`~athena.errors.Unavailable` when the supervisor stays lost
        (ask again to wait for it again); :class:`~athena.errors.NoProcess` when it is back without the session;
        :class:`~athena.errors.InvalidOption` when the log does not hold the last event seen any more;
        :class:`~athena.errors.StoreError` when the log cannot be read.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._reading.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise call_timeout("events", timeout)
        try:
            return self._next(deadline)
        except TimeoutError:
            raise call_timeout("events", timeout) from None
        finally:
            self._reading.release()
            if self._is_closed:
                self.close()

    def _next(self, deadline: float | None) -> Item | None:
        while not self._items or self._is_closed:
            if self._subscriber.is_ended or self._is_closed or self._connection is None:
                return None
            try:
                frame = self._connection.next_frame(deadline)
            except ConnectionLost:
                self._connection.close()
                self._subscribe(deadline)
                continue
            self._items.extend(self._subscriber.feed(frame))
        return self._items.popleft()

    def close(self) -> None:
        """Leave the stream. A thread that waits for its next item gets ``None``."""
        self._is_closed = True
        connection = self._connection
        if connection is None:
            return
        if self._reading.acquire(blocking=False):
            connection.close()
            self._reading.release()
            return
        with contextlib.suppress(OSError):  # wakes the thread that reads, which closes it
            connection._socket.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _subscribe(self, deadline: float | None) -> None:
        """Join, or join again. Raises ``TimeoutError`` at the deadline; the next call goes on where this one was."""
        session = self._session
        recovery = self._recovery or Recovery(
            session._target, session._options, session._supervisor_id, session._granted
        )
        while not self._is_closed:
            self._recovery = None
            try:
                self._connection = self._join()
                if recovery.was_replaced():
                    recovery.try_again()
                return
            except (ConnectionLost, NotRunning, TimeoutError) as error:
                recovery.lost(error)
                self._recovery = recovery
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError from None
                time.sleep(RETRY_S)
            except NotFound as error:
                if not recovery.was_replaced():
                    raise gone(error, session.session_id) from None
            recovery.try_again()

    def _join(self) -> SyncConnection:
        connection = self._session._target.pool.open()
        try:
            header, body = {"session": self._session.session_id}, dumps(self._subscriber.request_body())
            self._subscriber.subscribed(connection.call("subscribe", header, body, ANSWER_S).json())
        except BaseException:
            connection.close()
            raise
        return connection
