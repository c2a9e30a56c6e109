"""The blocking client of a session (design: what users write). Its asyncio twin is :mod:`athena.async_session`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypeVar

from athena import branch_calls
from athena import session_calls as calls
from athena.approver import Approver, CanUseTool, checked
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
from athena.event_stream import EventStream as EventStream
from athena.events import Cursor, Event, new_uuid
from athena.loop.permission import Answer
from athena.loop.result import Result
from athena.messages import Message, Usage
from athena.pid import Pid
from athena.points import Checkpoint, Point, Rewound
from athena.processes import Monitor
from athena.recovery import ANSWER_S, RETRY_S, Granted, Recovery, gone, perform, start_limit_s, stop
from athena.session_calls import Call, Identity, StartOptions
from athena.stored import discard_fork, read_blob
from athena.stored import resume as resume_stored
from athena.subscriber import Item, Subscriber, TurnFilter
from athena.supervisors import Target, resolve

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
        ``hibernate_after`` (600 s; ``"infinity"``: never), ``grants_timeout`` (600 s: how long an open turn waits,
        after its supervisor's death, for these options to be given again); limits of its process tree: ``max_memory``
        (bytes, default ``"half"`` of the machine's), ``max_processes`` (1024), ``max_files`` and ``turn_timeout``
        (seconds), both ``"infinity"``. Returns when the child is ready; an existing ``session_id`` continues its log.

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
        function = checked(options.pop("can_use_tool", None))
        given = calls.start_options(options, link=link)
        target = resolve(supervisor)
        identity = perform(target, calls.start(given, [True] if function else []), start_limit_s(options))
        session = cls(target, identity, given)
        if function is not None:
            try:
                session._approve(function)
            except BaseException:
                session.stop()
                raise
        return session

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
    def blob(ref: str, store: str = "jsonl", **where: Any) -> bytes:
        """What a payload refers to with ``["blob"]["ref"]``; needs no process. See :func:`athena.stored.read_blob`."""
        return read_blob(ref, store, **where)

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
        self,
        text: str,
        *,
        message_id: str | None = None,
        timeout: float | None = None,
        can_use_tool: CanUseTool | None = None,
        **loop_options: Any,
    ) -> Result:
        """Send a message and wait for its turn to end. Restarts of the child are part of the wait.

        The same ``message_id`` twice is one turn and one answer. ``timeout`` (seconds) ends the wait, not the turn.
        ``loop_options`` hold for this turn, and so does ``can_use_tool``, which answers its permission requests here
        (:data:`athena.approver.CanUseTool`). Provider failures, caps and interrupts return a :class:`Result` with that
        finish reason.

        Raises :class:`~athena.errors.CallTimeout` (with the ``message_id``), :class:`~athena.errors.Busy`,
        :class:`~athena.errors.MessageIdConflict`, :class:`~athena.errors.SessionFailed`,
        :class:`~athena.errors.SessionStopped`, :class:`~athena.errors.NoProcess`, :class:`~athena.errors.Unavailable`.
        """
        message_id = message_id or new_uuid()
        call = calls.send(self.session_id, text, message_id, loop_options, wait=True)
        with self._approving(can_use_tool, message_id) as approver:
            answer: Result = self._do(call, timeout)
            if approver is not None:
                approver.close()
        return answer

    def submit(
        self, text: str, *, message_id: str | None = None, can_use_tool: CanUseTool | None = None, **loop_options: Any
    ) -> Turn:
        """Hand a message over; returns when it is accepted, which means on disk. Raises as :meth:`send_message`."""
        message_id = message_id or new_uuid()
        call = calls.send(self.session_id, text, message_id, loop_options, wait=False)
        with self._approving(can_use_tool, message_id) as approver:
            seq = int(self._do(call)["seq"])
            if can_use_tool is not None and approver is not None and seq <= approver.joined_at:
                approver.close()  # it was sent before, and its turn may be over: the end of that is in the log
                self._approve(can_use_tool, message_id, after=seq)
        return Turn(self, message_id, seq)

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

    # --- going back, and another way

    def checkpoint(self, label: str | None = None) -> Checkpoint:
        """Name the point that the session is at now, in a turn too. When this returns, it is on disk.

        A label that was given before moves here. Raises :class:`~athena.errors.InvalidOption`,
        :class:`~athena.errors.DiskError`.
        """
        return self._do(branch_calls.checkpoint(self.session_id, label))

    def rewind(self, to: Point, *, files: bool = True) -> Rewound:
        """Go back to a point: a label, a seq, a checkpoint, cursor or event, or the message id of a turn, which means
        its end. The history is what it was there, and with ``files`` so is every file that a tool for files has
        changed since. What was answered, spent or waits in the queue stays. The answer says how to undo it.

        Raises :class:`~athena.errors.NotFound` (names the labels there are), :class:`~athena.errors.Busy` while a turn
        runs, :class:`~athena.errors.UnsupportedStore` if files were changed and the store has kept none.
        """
        return self._do(branch_calls.rewind(self.session_id, to, files=files))

    def fork(self, at: Point | None = None, *, link: bool = True, **options: Any) -> Session:
        """Start a session that goes on from a point of this one (default: from here) beside it. Without a copy: its log
        refers to this one's. A turn that is open there is not open in the fork, which begins behind its last whole
        step. Files stay as they are.

        It has the options of this one, with its grants if this handle started it, and ``options`` over them (as for
        :meth:`start_link`, without ``store``, ``root`` and ``messages``). ``link=False``: it lives on as with
        :meth:`start`. Raises as :meth:`rewind` and :meth:`start_link`.
        """
        given = branch_calls.fork_options(self._options, options, link=link)
        new_id = given["session_id"]
        made = self._do(branch_calls.fork(self.session_id, at, new_id))
        try:
            return Session._start(self._target, given | made, link=link)
        except AthenaError as error:
            if not isinstance(error, CallTimeout | Unavailable):  # after these two it may be there
                discard_fork(new_id, made)
            raise

    @staticmethod
    def fork_stored(
        session_id: str,
        at: Point | None = None,
        *,
        new_session_id: str | None = None,
        store: str = "jsonl",
        root: str | Path | None = None,
        store_options: dict[str, Any] | None = None,
    ) -> str:
        """Make a fork of a stored session; returns its id, and starts nothing. See
        :func:`athena.stored_branches.fork_stored`."""
        from athena.stored_branches import fork_stored

        return fork_stored(
            session_id, at, new_session_id=new_session_id, store=store, root=root, store_options=store_options
        )

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

    def requests(self) -> Rows:
        """The permission requests that wait for an answer, each with ``request_id``, ``tool``, ``arguments``, the
        ``reason`` for asking, ``call_id``, ``message_id``, ``turn`` and ``at``."""
        return self._do(calls.requests(self.session_id), ANSWER_S)

    def answer(self, request_id: str, decision: Answer, *, remember: bool = False, reason: str | None = None) -> None:
        """Answer a permission request; when this returns, the answer has won and is on disk.

        ``remember``: it holds for every call of this tool (for ``bash``, of this very command) for the rest of the
        session; that is kept in memory only. ``reason`` is for the model, with a denial.

        Raises :class:`~athena.errors.AlreadyResolved` (with ``by`` and ``at``), :class:`~athena.errors.NotFound`.
        """
        self._do(calls.answer(self.session_id, request_id, decision, remember=remember, reason=reason))

    def events(
        self, after: int | Event | Cursor | None = None, *, deltas: bool = True, approver: bool = False
    ) -> EventStream:
        """Iterate events and deltas, over reconnects without a gap or a double, until the session is stopped.

        ``after``: ``None`` from now on, with the partial text so far; 0 from the start; an event or cursor: after it.
        ``approver``: whoever reads it answers permission requests (:meth:`answer`), so calls wait for that instead of
        being denied. Raises :class:`~athena.errors.InvalidOption` for an event that the log does not hold.
        """
        return EventStream(self, Subscriber(after, deltas=deltas, approver=approver))

    def monitor(self) -> Monitor:
        """Watch the process that runs the session now. Its :class:`Down` comes exactly once."""
        return Monitor(self._target, self.session_id)

    # --- ending

    def stop(self, reason: Reason = "normal", timeout: float | None = None) -> None:
        """Stop the session: polite, then firm after its ``shutdown`` time (or ``timeout`` seconds). Twice is a
        no-op."""
        stop(self._target, calls.stop(self.session_id, reason, timeout))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # --- permissions

    def _approve(self, function: CanUseTool, message_id: str | None = None, after: int | None = None) -> Approver:
        subscriber = Subscriber(after, deltas=False, may_be_ahead=True, approver=message_id or True)
        return Approver(self, EventStream(self, subscriber), function, message_id)

    @contextlib.contextmanager
    def _approving(self, function: CanUseTool | None, message_id: str) -> Iterator[Approver | None]:
        """Have a function asked for the turn of this message, to its end."""
        function = checked(function)
        approver = None if function is None else self._approve(function, message_id)
        try:
            yield approver
        except BaseException as error:
            if approver is not None and not isinstance(error, CallTimeout | Unavailable):  # after these it may go on
                approver.close()
            raise

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
                left_s = None if deadline is None else max(0.001, deadline - time.monotonic())
                answer = perform(self._target, call, left_s, expect=recovery.expected)
            except (ConnectionLost, NotRunning) as error:
                recovery.lost(error)
                self._sleep(deadline, call, timeout)
            except NotFound as error:
                if error.data.get("target") != self.session_id:
                    raise  # the session has answered: it does not know what was asked for
                if not recovery.was_replaced():
                    raise gone(error, self.session_id) from None
            else:
                self._supervisor_id = recovery.supervisor_id
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

    def events(self, *, approver: bool = False) -> Iterator[Item]:
        """This turn's events and deltas, from its start to its ``turn_end``. ``approver`` as for
        :meth:`Session.events`."""
        with EventStream(self._session, Subscriber(self._seq, may_be_ahead=True, approver=approver)) as stream:
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
