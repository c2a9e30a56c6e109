"""The blocking client of a session (design: what users write). Its asyncio twin is :mod:`athena.async_session`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypeVar

from athena import session_calls as calls
from athena.child_specs import session_spec
from athena.client import ConnectionLost, SyncConnection, call_timeout
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
from athena.processes import Monitor
from athena.recovery import ANSWER_S, RETRY_S, Granted, Recovery, gone, perform, start_limit_s
from athena.session_calls import Call, Identity, StartOptions
from athena.stored import resume as resume_stored
from athena.subscriber import Item, Subscriber, TurnFilter
from athena.supervisors import Target, resolve
from athena.wire import dumps

T = TypeVar("T")

Messages: TypeAlias = list[Message]
Rows: TypeAlias = list[dict[str, Any]]
"""Named here, because inside the class ``list`` is a method."""


class Session:
    """A handle on a supervised session. Thread-safe: while one thread waits in ``send_message``, others may call.

    Make one with :meth:`start_link`, :meth:`start`, :meth:`attach` or :meth:`restart`. As a context manager it stops
    the session.
    """

    def __init__(self, target: Target, identity: Identity, options: StartOptions | None = None) -> None:
        self._target = target
        self._identity = identity
        self._options = options
        self._supervisor_id = target.pool.supervisor_id
        self._granted = Granted()

    # --- getting one

    @classmethod
    def start_link(cls, *, supervisor: str | Path | Target | None = None, **options: Any) -> Session:
        """Start a session linked to this program: when the program goes away, the session is shut down; its log stays.

        ``options``: every option of :mod:`athena.loop.options`, and ``name``, ``session_id``, ``store``
        (``"jsonl"``), ``store_options``, ``root``, ``restart`` (``"transient"``), ``max_restarts`` (3),
        ``max_seconds`` (5), ``shutdown`` (5.0 s), ``start_timeout`` (30 s), ``hang_timeout`` (30 s),
        ``hibernate_after`` (600 s; ``"infinity"``: never); limits of its process tree: ``max_memory`` (bytes, default
        ``"half"`` of the machine's), ``max_processes`` (1024), ``max_files`` and ``turn_timeout`` (seconds), both
        ``"infinity"``. Returns when the child is ready; an existing ``session_id`` continues its log.

        Raises :class:`~athena.errors.InvalidOption` (names the option and what is legal),
        :class:`~athena.errors.AlreadyStarted`, :class:`~athena.errors.StartError`, :class:`~athena.errors.LogLocked`,
        :class:`~athena.errors.Unavailable`. After an error nothing is left behind.
        """
        return cls._start(supervisor, options, link=True)

    @classmethod
    def start(cls, *, supervisor: str | Path | Target | None = None, **options: Any) -> Session:
        """As :meth:`start_link`, but the session lives on in its supervisor when this program ends."""
        return cls._start(supervisor, options, link=False)

    @classmethod
    def _start(cls, supervisor: str | Path | Target | None, options: dict[str, Any], *, link: bool) -> Session:
        checked = calls.start_options(options, link=link)
        target = resolve(supervisor)
        identity = perform(target, calls.start(checked), start_limit_s(options))
        return cls(target, identity, checked)

    @staticmethod
    def child_spec(**options: Any) -> dict[str, Any]:
        """The specification of a session as a child of an :class:`~athena.Supervisor`, which decides its restarts.

        ``options`` as for :meth:`start_link`, without ``max_restarts``, ``max_seconds`` and ``messages``. Attach to it
        by its ``name`` or ``session_id``. Raises :class:`~athena.errors.InvalidOption`.
        """
        return session_spec(options)

    @classmethod
    def attach(cls, target: str | int | Pid, *, supervisor: str | Path | Target | None = None) -> Session:
        """A handle on a live session by name, id or pid. Nothing is created.

        Raises :class:`~athena.errors.NoProcess` for a pid that is no live session's, :class:`~athena.errors.NotFound`
        for a name or id that no live session has, :class:`~athena.errors.Unavailable` if there is no supervisor.
        """
        at = resolve(supervisor, create=False)
        return cls(at, perform(at, calls.attach(target), ANSWER_S))

    @classmethod
    def restart(cls, target: str, *, supervisor: str | Path | Target | None = None) -> Session:
        """Start a failed session again, by name or id: with its old options, grants, log and queue. A turn that was
        open goes on. Returns a handle when it is ready.

        Raises :class:`~athena.errors.Running` or :class:`~athena.errors.Restarting` if it has not failed,
        :class:`~athena.errors.StartError` if it fails again, and as :meth:`attach`.
        """
        at = resolve(supervisor, create=False)
        return cls(at, perform(at, calls.restart(target), None))

    @staticmethod
    def whereis(name: str, *, supervisor: str | Path | Target | None = None) -> Pid | None:
        """The pid of the session with this name or id, or ``None``, also without a supervisor."""
        try:
            return perform(resolve(supervisor, create=False), calls.whereis(name), ANSWER_S)
        except NotRunning:
            return None

    @staticmethod
    def list(*, supervisor: str | Path | Target | None = None) -> Rows:
        """Rows of live, hibernated, failed and stored sessions, each with ``session_id``, ``name``, ``state``, ``pid``
        and more."""
        from athena.stored import stored_rows

        try:
            return perform(resolve(supervisor, create=False), calls.list_sessions(), ANSWER_S)
        except NotRunning:
            return stored_rows()

    @staticmethod
    def resume(
        session_id: str,
        store: str = "jsonl",
        as_: Literal["messages", "state", "map"] = "messages",
        replay_last_user_turn: bool = False,
        *,
        root: str | Path | None = None,
        store_options: dict[str, Any] | None = None,
    ) -> Any:
        """Rebuild a session's history from a store; needs no process. See :func:`athena.stored.resume`."""
        return resume_stored(session_id, store, as_, replay_last_user_turn, root=root, store_options=store_options)

    @staticmethod
    def delete(
        session_id: str,
        store: str = "jsonl",
        *,
        root: str | Path | None = None,
        store_options: dict[str, Any] | None = None,
        supervisor: str | Path | Target | None = None,
    ) -> None:
        """Remove a stored session and all that belongs to it, for good. See :func:`athena.removal.delete`.

        Raises :class:`~athena.errors.Running` while a supervisor has it, running, hibernated or failed,
        :class:`~athena.errors.LogLocked` while another process writes its log, :class:`~athena.errors.NotFound`,
        :class:`~athena.errors.UnsupportedStore`.
        """
        from athena.removal import delete

        delete(session_id, store, root=root, store_options=store_options, supervisor=supervisor)

    # --- what it is

    @property
    def session_id(self) -> str:
        """Stable over restarts, and the name of the log."""
        return self._identity.session_id

    @property
    def name(self) -> str | None:
        """The registered name, if it has one."""
        return self._identity.name

    @property
    def pid(self) -> Pid | None:
        """The pid of the process that runs it now; ``None`` while there is none. While it is hibernated the pid is
        logical: it has no number, and its serial is the one that it had and will have."""
        try:
            return (self._do(calls.attach(self.session_id), ANSWER_S)).pid
        except NoProcess:
            return None  # it was stopped

    def __repr__(self) -> str:
        return f"<Session {self.name or self.session_id}>"

    # --- talking

    def send_message(
        self, text: str, *, message_id: str | None = None, timeout: float | None = None, **loop_options: Any
    ) -> Result:
        """Send a message and wait for its turn to end. Restarts of the child are part of the wait.

        The same ``message_id`` twice is one turn and one answer. ``timeout`` (seconds) ends the wait, not the turn.
        ``loop_options`` hold for this turn. Provider failures, caps and interrupts return a :class:`Result` with that
        finish reason.

        Raises :class:`~athena.errors.CallTimeout` (with the ``message_id``), :class:`~athena.errors.Busy`,
        :class:`~athena.errors.MessageIdConflict`, :class:`~athena.errors.SessionFailed`,
        :class:`~athena.errors.SessionStopped`, :class:`~athena.errors.NoProcess`, :class:`~athena.errors.Unavailable`.
        """
        call = calls.send(self.session_id, text, message_id or new_uuid(), loop_options, wait=True)
        answer: Result = self._do(call, timeout)
        return answer

    def submit(self, text: str, *, message_id: str | None = None, **loop_options: Any) -> Turn:
        """Hand a message over; returns when it is accepted, which means on disk. Raises as :meth:`send_message`."""
        message_id = message_id or new_uuid()
        answer = self._do(calls.send(self.session_id, text, message_id, loop_options, wait=False))
        return Turn(self, message_id, int(answer["seq"]))

    def stream(self, text: str, *, message_id: str | None = None, **loop_options: Any) -> Iterator[Item | Result]:
        """Send a message and iterate its turn's deltas and events; the last item is the :class:`Result`."""
        with self.events() as stream:  # before the message is sent: a fast model's text would be over when we came
            turn = self.submit(text, message_id=message_id, **loop_options)
            # One that was sent before has its events in the log.
            yield from one_turn(stream, turn.message_id) if turn._seq > stream.joined_at else turn.events()
        yield turn.result()

    def interrupt(self, *, clear_queue: bool = False) -> bool:
        """End the running turn, its tools' processes included, within about 2 s. ``False`` if none runs.

        Queued messages keep their turns unless ``clear_queue``. A child that does not manage it is killed, and its next
        life records the interrupt.
        """
        return self._do(calls.interrupt(self.session_id, clear_queue=clear_queue))

    # --- looking

    def messages(self) -> Messages:
        """The history so far; answered during a turn too, from the log if the child is silent for 150 ms."""
        return self._do(calls.messages(self.session_id), ANSWER_S)

    def status(self) -> dict[str, Any]:
        """``state``, ``pid``, ``incarnation``, ``restarts_in_window``, ``last_reason``, ``turn``, ``queue``,
        ``memory_bytes``, ``cpu_s``, ``damage`` found in the log, and more. Answered while the child is frozen."""
        return self._do(calls.status(self.session_id), ANSWER_S)

    def usage(self) -> Usage:
        """Tokens and cost of the whole session."""
        return self._do(calls.usage(self.session_id), ANSWER_S)

    def queue(self) -> Rows:
        """The messages that wait behind the running turn: ``message_id`` and ``text``."""
        return self._do(calls.queue(self.session_id), ANSWER_S)

    def events(self, after: int | Event | Cursor | None = None, *, deltas: bool = True) -> EventStream:
        """Iterate events and deltas, over reconnects without a gap or a double, until the session is stopped.

        ``after``: ``None`` from now on, with the partial text so far; 0 from the start; an event or cursor: after it.
        """
        return EventStream(self, Subscriber(after, deltas=deltas))

    def monitor(self) -> Monitor:
        """Watch the process that runs the session now. Its :class:`Down` comes exactly once."""
        return Monitor(self._target, self.session_id)

    # --- ending

    def stop(self, reason: Reason = "normal", timeout: float | None = None) -> None:
        """Stop the session: polite, then firm after its ``shutdown`` time (or ``timeout`` seconds). Twice is a
        no-op."""
        try:
            perform(self._target, calls.stop(self.session_id, reason, timeout), None)
        except (ConnectionLost, NotRunning):
            pass  # the supervisor is gone, and with it the process

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # --- the way to the supervisor and back

    def _do(self, call: Call[T], timeout: float | None = None) -> T:
        """Perform a call; over the loss of the supervisor too, if it comes back in time."""
        is_new = self._granted.hold(call)
        try:
            answer = self._until_answered(call, timeout)
        except AthenaError as error:
            if is_new and not isinstance(error, CallTimeout | Unavailable):  # after these two its turn may go on
                self._granted.drop(call.message_id)
            raise
        if isinstance(answer, Result):
            self._granted.drop(call.message_id)
        return answer

    def _until_answered(self, call: Call[T], timeout: float | None) -> T:
        calls.check_timeout(timeout)
        recovery = Recovery(self._target, self._options, self._supervisor_id, self._granted)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                answer = perform(
                    self._target, call, None if deadline is None else max(0.001, deadline - time.monotonic())
                )
            except (ConnectionLost, NotRunning) as error:
                recovery.lost(error)
                self._sleep(deadline, call, timeout)
            except NotFound as error:
                if not recovery.was_replaced():
                    raise gone(error, self.session_id) from None
            else:
                self._supervisor_id = self._target.pool.supervisor_id
                return answer
            recovery.try_again()

    @staticmethod
    def _sleep(deadline: float | None, call: Call[Any], timeout: float | None) -> None:
        if deadline is not None and time.monotonic() >= deadline:
            raise call_timeout(call.op, timeout, call.message_id)
        time.sleep(RETRY_S)


class Turn:
    """An accepted message and its turn."""

    def __init__(self, session: Session, message_id: str, seq: int) -> None:
        self.message_id = message_id
        self._session = session
        self._seq = seq

    def __repr__(self) -> str:
        return f"<Turn {self.message_id} of {self._session!r}>"

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end of the turn. Raises :class:`~athena.errors.CallTimeout`,
        :class:`~athena.errors.Cancelled`."""
        return self._session._do(calls.result(self._session.session_id, self.message_id), timeout)

    def events(self) -> Iterator[Item]:
        """This turn's events and deltas, from its start to its ``turn_end``."""
        with self._session.events(self._seq) as stream:
            yield from one_turn(stream, self.message_id)

    def cancel(self) -> bool:
        """Take the message back while it is queued. ``False`` if its turn began already."""
        return self._session._do(calls.cancel(self._session.session_id, self.message_id))


def one_turn(stream: Iterator[Item], message_id: str) -> Iterator[Item]:
    """The items of the turn of ``message_id``, until it ends or is cancelled."""
    follow = TurnFilter(message_id)
    for item in stream:
        if follow.wants(item):
            yield item
        if follow.is_over:
            return


class EventStream:
    """An iterator of events and deltas. Subscribed from the moment it is made; close it, or use it in ``with``."""

    def __init__(self, session: Session, subscriber: Subscriber) -> None:
        self._session = session
        self._subscriber = subscriber
        self._items: list[Item] = []
        self._connection: SyncConnection | None = None
        self._subscribe()
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
        """The next item; ``None`` after the session's end. Raises :class:`~athena.errors.CallTimeout`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._items:
            if self._subscriber.is_ended or self._connection is None:
                return None
            try:
                frame = self._connection.next_frame(deadline)
            except TimeoutError:
                raise call_timeout("events", timeout) from None
            except ConnectionLost:
                self._connection.close()
                self._subscribe()
                continue
            self._items = self._subscriber.feed(frame)
        return self._items.pop(0)

    def close(self) -> None:
        """Leave the stream."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _subscribe(self) -> None:
        session = self._session
        recovery = Recovery(session._target, session._options, session._supervisor_id, session._granted)
        while True:
            try:
                self._connection = self._join()
                return
            except (ConnectionLost, NotRunning, TimeoutError) as error:
                recovery.lost(error)
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
