"""What every supervisor node does: one thing at a time, a mailbox for the rest, and the termination of children.

Inputs and a time in, effects out (design 7.1). Two rules bind this file. Every legal pair of phase and input is a row
of :data:`TRANSITIONS`; an absent pair is a bug of the driver, raises :class:`~supervisor.core.IllegalTransition` and
changes nothing. And what OTP does by blocking is written as a generator that yields the phase in which it waits: a
supervisor *is* sequential (`reference/otp.md` 17), and so reads like one. No generator is left suspended in
:attr:`Phase.IDLE`.

What the driver owes a node:

- it carries out the effects of one input, in order, before it gives the next;
- it answers every :class:`StartChild` with one :class:`StartResult`, a failed one when nothing of the child is left;
- it gives :class:`Exited` once for each started pid, when nothing of it is left and its name and monitors are settled,
  never before the :class:`StartResult` that named it;
- it gives inputs in the order in which they happened: the mailbox of the node is filled by :meth:`Node.handle`.

Numbers in comments are sections of `reference/otp.md`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from athena.child_spec_rules import ChildId
from athena.errors import Reason
from supervisor.child_spec import ChildSpec
from supervisor.core import IllegalTransition
from supervisor.restart import Intensity, Restart, is_clean
from supervisor.tree_vocabulary import (
    AbortStart,
    Answer,
    ByPid,
    Call,
    CallFailed,
    CancelTimer,
    ChildInfo,
    Effect,
    Exited,
    Input,
    Kill,
    KillNode,
    Message,
    NodeExit,
    NodeStartFailed,
    ParentExited,
    Phase,
    Pid,
    PostRetry,
    PropagateExit,
    Reply,
    Report,
    ReportKind,
    Request,
    Retry,
    SendShutdown,
    SetTimer,
    ShutdownTimeout,
    Start,
    StartChild,
    Started,
    StartOutcome,
    StartResult,
    StartSucceeded,
    StopCall,
)

T = TypeVar("T")

# Any: what a wait returns depends on the phase it names (StartOutcome; Exited or ShutdownTimeout).
Work = Generator[Phase, Any, T]
"""A piece of a supervisor's sequential work that may have to wait."""


@dataclass(slots=True, eq=False)  # a record is itself: ids of 1 and True make equal specs
class Child:
    """A node's record of one child: never both a pid and a pending retry (19.4)."""

    spec: ChildSpec
    pid: Pid | None = None
    retry: int | None = None
    """Number of the retry that is under way: the child is ``restarting``."""

    def info(self, shown_id: ChildId) -> ChildInfo:
        """Its row in ``which_children``; a dynamic supervisor shows no ids."""
        where: Pid | Literal["restarting"] | None = self.pid if self.retry is None else "restarting"
        return ChildInfo(shown_id, where, self.spec.type, self.spec.modules)


class Node(ABC):
    """One supervisor. Feed it with :meth:`handle`; its two kinds say what a restart and each request mean."""

    def __init__(self, intensity: Intensity) -> None:
        self.phase = Phase.NEW
        self.reason: Reason = None
        """Why it ended."""
        self._intensity = intensity
        self._now = 0.0
        self._effects: list[Effect] = []
        self._mailbox: deque[Message] = deque()
        self._unseen: dict[Pid, Reason] = {}  # exits that wait in the mailbox: not "alive", and not yet acted upon
        self._dead: set[Pid] = set()  # who died since the mailbox was last empty: calls in it may name them
        self._work: Work[None] | None = None
        self._doing: Start | Message | None = None
        self._awaited: dict[Pid, Child] = {}
        self._timers: dict[int, list[Pid]] = {}
        self._starts = self._timer_count = self._retries = 0

    def __repr__(self) -> str:
        children = ", ".join(f"{child.spec.id!r}:{child.info(None).pid!r}" for child in self._all())
        return (
            f"<{type(self).__name__} {self.phase.name} [{children}] mailbox={list(self._mailbox)!r}"
            f" awaited={list(self._awaited)!r} timers={self._timers!r} stamps={self._intensity.stamps!r}>"
        )

    @property
    def pids(self) -> tuple[Pid, ...]:
        """The children that it believes to run, oldest first; none once it has ended."""
        if self.phase is Phase.ENDED:
            return ()
        return tuple(child.pid for child in self._all() if child.pid is not None)

    @property
    def children(self) -> tuple[Child, ...]:
        """Its records, oldest first, for those who look from outside; no call is needed, so a busy node shows them."""
        return tuple(self._all())

    def restarts_in_window(self, now: float) -> int:
        """Restarts that count against the intensity at ``now``."""
        return self._intensity.count(now)

    @property
    def max_restarts(self) -> int:
        """How many of them it allows."""
        return self._intensity.max_restarts

    def handle(self, given: Input, now: float) -> tuple[Effect, ...]:
        """Take one input at ``now`` (seconds, monotonic) and return what must be done, in order.

        Raises :class:`~supervisor.core.IllegalTransition`, and changes nothing, if ``given`` cannot happen now.
        """
        handler = TRANSITIONS.get((self.phase, Call if isinstance(given, Call) else type(given)))
        if handler is None or self._is_out_of_order(given):
            raise IllegalTransition(f"{given!r} cannot happen to {self!r}; the driver gave an input out of order")
        self._now, self._effects = now, []
        handler(self, given)
        return tuple(self._effects)

    def _is_out_of_order(self, given: Input) -> bool:
        match given:
            case StartResult(number, outcome):
                is_known = isinstance(outcome, Started) and self._by_pid(outcome.pid) is not None
                return number != self._starts or (is_known and self.phase is not Phase.ENDED)
            case ShutdownTimeout(number):
                return number > self._timer_count
            case Retry(_, number):
                return number > self._retries
            case _:
                return False

    # --- what a kind of node says

    @abstractmethod
    def _all(self) -> Iterable[Child]:
        """All children in start order."""

    @abstractmethod
    def _start_all(self) -> Work[Reason]:
        """Start what the node begins with. Returns why it failed, ``None`` if it did not."""

    @abstractmethod
    def _terminate_all(self) -> Work[None]:
        """End every child, in the order of this kind of node (10)."""

    @abstractmethod
    def _on_exit(self, pid: Pid, reason: Reason) -> Work[None]:
        """A process ended by itself; it may be no child's."""

    @abstractmethod
    def _on_retry(self, retry: Retry) -> Work[None]:
        """A retry came; the child may be gone or up again meanwhile."""

    @abstractmethod
    def _by_pid(self, pid: Pid) -> Child | None:
        """The child that runs under this pid."""

    @abstractmethod
    def _answer(self, call: Request) -> Work[Answer]:
        """Carry out a request (11)."""

    def _is_expected(self, spec: ChildSpec, reason: Reason) -> bool:
        """Whether a child that was told to end did so as it should; else it is reported (10)."""
        if reason == ("killed" if spec.shutdown == "brutal_kill" else "shutdown"):
            return True
        return spec.restart is not Restart.PERMANENT and is_clean(reason) and reason != "shutdown"

    # --- handlers

    def _on_start(self, given: Start) -> None:
        self._begin(given)

    def _on_message(self, given: Message) -> None:
        if isinstance(given, Exited):
            if given.pid in self._unseen:
                return
            self._unseen[given.pid] = given.reason
            self._dead.add(given.pid)
        self._mailbox.append(given)
        self._run()

    def _on_start_result(self, given: StartResult) -> None:
        self._resume(given.outcome)
        self._run()

    def _on_exited_terminating(self, given: Exited) -> None:
        if given.pid not in self._awaited:
            self._on_message(given)
            return
        self._dead.add(given.pid)
        self._resume(given)
        self._run()

    def _on_shutdown_timeout(self, given: ShutdownTimeout) -> None:
        if given.number in self._timers:
            self._resume(given)

    def _on_kill(self, given: KillNode) -> None:
        """No termination: whoever is linked learns it, and nothing is waited for (17)."""
        if self._work is not None:
            self._work.close()
            self._work = None
        if self.phase is Phase.STARTING:
            self._effects.append(AbortStart(self._starts, given.reason))
        self._effects += [CancelTimer(number) for number in self._timers]
        self._effects += [PropagateExit(pid, given.reason) for pid in self.pids if pid not in self._unseen]
        self._exit(given.reason)

    def _on_dead_call(self, given: Call) -> None:
        self._effects.append(CallFailed(given.ref, "noproc"))

    # --- one thing at a time

    def _run(self) -> None:
        """Take messages until one has to wait, or none is left."""
        while self.phase is Phase.IDLE and self._mailbox:
            self._begin(self._mailbox.popleft())
        if not self._mailbox:
            self._dead.clear()

    def _begin(self, message: Start | Message) -> None:
        self._doing = message
        self._work = self._do(message)
        self._resume(None)

    def _resume(self, event: StartOutcome | Exited | ShutdownTimeout | None) -> None:
        """Go on until the work has to wait again, or is done."""
        assert self._work is not None
        try:
            self.phase = self._work.send(event)
        except StopIteration:
            self._work = self._doing = None
            if self.phase is not Phase.ENDED:
                self.phase = Phase.IDLE

    def _do(self, message: Start | Message) -> Work[None]:
        match message:
            case Start():
                yield from self._initialise()
            case Exited(pid):
                if pid in self._unseen:  # else it was taken by the termination of that child meanwhile (6)
                    yield from self._on_exit(pid, self._unseen.pop(pid))
            case Retry():
                yield from self._on_retry(message)
            case ParentExited(reason) | StopCall(_, reason):
                yield from self._end(reason)
            case _:
                answer = yield from self._answer(message)
                self._effects.append(Reply(message.ref, answer))

    def _initialise(self) -> Work[None]:
        """The whole start; a failure ends what was started, is never tried again and asks no intensity (4.5)."""
        failure = yield from self._start_all()
        if failure is not None:
            yield from self._end(failure)
        else:
            self._effects.append(StartSucceeded())

    def _end(self, reason: Reason) -> Work[None]:
        """End in order: the children first, then the node."""
        yield from self._terminate_all()
        self._exit(reason)

    def _exit(self, reason: Reason) -> None:
        """The node is gone. Who waits for an answer learns it after the name is free (14)."""
        self.phase, self.reason = Phase.ENDED, reason
        self._effects.append(NodeExit(reason))
        waiting = [message for message in (self._doing, *self._mailbox) if message is not None]
        for message in waiting:
            match message:
                case Start():
                    self._effects.append(NodeStartFailed(reason))
                case StopCall(ref, wanted) if wanted == reason:
                    self._effects.append(Reply(ref, None))
                case Call(ref):
                    self._effects.append(CallFailed(ref, reason))
                case _:
                    pass  # nobody waits for an answer to it
        self._doing = None
        self._mailbox.clear()
        self._unseen.clear()
        self._timers.clear()
        self._awaited.clear()

    # --- starting

    def _start(self, spec: ChildSpec) -> Work[StartOutcome]:
        """Start one child and wait until that is over, however it ends."""
        self._starts += 1
        self._effects.append(StartChild(self._starts, spec))
        outcome: StartOutcome = yield Phase.STARTING
        if isinstance(outcome, Started):
            self._report(ReportKind.PROGRESS, spec, outcome.pid)
        return outcome

    def _count_restart(self, child: Child, pid: Pid | None) -> bool:
        """Count one restart, before anything else happens (6). Whether it may be made."""
        self._intensity, is_allowed = self._intensity.add(self._now)
        if not is_allowed:
            self._report(ReportKind.SHUTDOWN, child.spec, pid, "reached_max_restart_intensity")
        return is_allowed

    def _post_retry(self, child: Child, name: ChildId) -> None:
        """The start of ``child`` failed in a restart: what waits in the queue comes before the next attempt (9)."""
        self._retries += 1
        child.pid, child.retry = None, self._retries
        self._effects.append(PostRetry(Retry(name, self._retries)))

    # --- terminating

    def _terminate(self, children: Iterable[Child]) -> Work[None]:
        """End these children, all at once, with one deadline for each shutdown time among them (10)."""
        deadlines: dict[float, list[Pid]] = {}
        for child in children:
            if child.pid is None:
                continue
            if child.pid in self._unseen:  # it died before it was told to: its own reason is what is seen
                self._ended(child, self._unseen.pop(child.pid))
                continue
            self._awaited[child.pid] = child
            self._tell_to_end(child.pid, child.spec, deadlines)
        for delay_s, pids in deadlines.items():
            self._timer_count += 1
            self._timers[self._timer_count] = pids
            self._effects.append(SetTimer(delay_s, ShutdownTimeout(self._timer_count)))
        while self._awaited:
            event: Exited | ShutdownTimeout = yield Phase.TERMINATING
            if isinstance(event, Exited):
                self._ended(self._awaited.pop(event.pid), event.reason)
            else:  # and then without limit: a kill cannot be refused
                self._effects += [Kill(pid) for pid in self._timers.pop(event.number) if pid in self._awaited]
        self._effects += [CancelTimer(number) for number in self._timers]
        self._timers.clear()

    def _tell_to_end(self, pid: Pid, spec: ChildSpec, deadlines: dict[float, list[Pid]]) -> None:
        if spec.shutdown != "brutal_kill":
            self._effects.append(SendShutdown(pid))
        if spec.shutdown == "brutal_kill" or spec.shutdown == 0:  # 0: politely, and with no wait (2)
            self._effects.append(Kill(pid))
        elif not isinstance(spec.shutdown, str):
            deadlines.setdefault(spec.shutdown, []).append(pid)

    def _ended(self, child: Child, reason: Reason) -> None:
        if not self._is_expected(child.spec, reason):
            self._report(ReportKind.SHUTDOWN_ERROR, child.spec, child.pid, reason)
        child.pid = None

    # --- small things

    def _report_exit(self, spec: ChildSpec, pid: Pid, reason: Reason) -> None:
        """A permanent child's every end, another's abnormal ones (6)."""
        if spec.restart is Restart.PERMANENT or not is_clean(reason):
            self._report(ReportKind.CHILD_TERMINATED, spec, pid, reason)

    def _report(self, kind: ReportKind, spec: ChildSpec, pid: Pid | None, reason: Reason = None) -> None:
        self._effects.append(Report(kind, spec.id, pid, reason))

    def _is_alive(self, target: ByPid) -> bool:
        """Whether that process lives now: the call may have waited since the driver looked."""
        return target.is_alive and target.pid not in self._dead


def _on_dull(_node: Node, _given: Input) -> None:
    """Legal, and nothing follows; the table says how it happens."""


# Any: a row's handler takes the row's input, a relation between key and value that a dict's type cannot state.
_Handler = Callable[[Node, Any], None]

TRANSITIONS: dict[tuple[Phase, type], _Handler] = {
    (Phase.NEW, Start): Node._on_start,
    #
    (Phase.IDLE, Call): Node._on_message,
    (Phase.IDLE, Exited): Node._on_message,
    (Phase.IDLE, Retry): Node._on_message,
    (Phase.IDLE, ParentExited): Node._on_message,
    (Phase.IDLE, KillNode): Node._on_kill,
    (Phase.IDLE, ShutdownTimeout): _on_dull,  # fired while the last exit was being handled
    #
    (Phase.STARTING, StartResult): Node._on_start_result,
    (Phase.STARTING, Call): Node._on_message,  # these four wait: the node is blocked (5)
    (Phase.STARTING, Exited): Node._on_message,
    (Phase.STARTING, Retry): Node._on_message,
    (Phase.STARTING, ParentExited): Node._on_message,
    (Phase.STARTING, KillNode): Node._on_kill,
    (Phase.STARTING, ShutdownTimeout): _on_dull,  # as in IDLE
    #
    (Phase.TERMINATING, Exited): Node._on_exited_terminating,
    (Phase.TERMINATING, ShutdownTimeout): Node._on_shutdown_timeout,
    (Phase.TERMINATING, Call): Node._on_message,  # these three wait
    (Phase.TERMINATING, Retry): Node._on_message,
    (Phase.TERMINATING, ParentExited): Node._on_message,
    (Phase.TERMINATING, KillNode): Node._on_kill,
    #
    (Phase.ENDED, Call): Node._on_dead_call,
    (Phase.ENDED, StartResult): _on_dull,  # its abort and the result crossed
    (Phase.ENDED, Exited): _on_dull,  # a child's whose exit was not awaited, the node being killed
    (Phase.ENDED, Retry): _on_dull,  # posted before the end, as are the next
    (Phase.ENDED, ParentExited): _on_dull,
    (Phase.ENDED, KillNode): _on_dull,
    (Phase.ENDED, ShutdownTimeout): _on_dull,  # fired while the last exit was being handled
}
"""The whole life of a node. ``_on_dull`` marks the legal pairs from which nothing follows, each with how it happens."""
