"""The driver of one supervisor node: it carries out what the node says and tells it what happens.

The node's contract is in :mod:`supervisor.node`. The inputs of one node are given one after another, never inside the
effects of an earlier one; each child has one task, from its start to its end, so that what is said of a child comes in
the order in which it happened.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from athena.errors import AlreadyStarted, AthenaError, NoProcess, ProcessExited, Reason
from supervisor import tree_vocabulary as words
from supervisor.child_spec import ChildSpec
from supervisor.dynamic import DynamicNode, SimpleNode
from supervisor.logfile import KeepsOutput
from supervisor.member import Caller, Member, failure
from supervisor.node import Node
from supervisor.tree_answers import answer_json, shortened
from supervisor.tree_session import TreeKeeper, session_id_of
from supervisor.tree_vocabulary import Phase, Started, StartFailed, StartOutcome

if TYPE_CHECKING:
    from supervisor.forest import Forest

logger = logging.getLogger(__name__)

SPARE = 64
"""How many more than twice the children there are are remembered before the gone ones are forgotten."""


@dataclass(slots=True)
class Facts:
    """What a look at the tree shows of a child besides its pid."""

    starts: int = 0
    last_reason: Reason = None
    last_output: str | None = None


class Branch(Member):
    """One supervisor."""

    def __init__(self, node: Node, label: str, name: str | None, caller: Caller, forest: Forest) -> None:
        super().__init__(forest.around.next_serial(), label, forest.around.supervisor_id)
        self.node = node
        self.name = name
        self.caller = caller
        self.members: dict[int, Member] = {}
        """Children that live, by serial."""
        self.sessions: dict[str, TreeKeeper] = {}
        """Sessions among its children, by id."""
        self._forest = forest
        self._processes = forest.around.processes
        self.facts: dict[tuple[str, Any], Facts] = {}
        """Of children that have ids."""
        self._pids: dict[int, dict[str, Any]] = {}
        self._inbox: deque[words.Input] = deque()
        self._is_giving = False
        self._starting: Member | None = None
        self._aborts: list[Reason] = []
        """Why starts are given up: at most one, when the node was killed."""
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._lives: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        self._started: asyncio.Future[StartOutcome] = loop.create_future()
        self._ended: asyncio.Future[Reason] = loop.create_future()

    # --- as somebody's child

    async def start(self) -> StartOutcome:
        try:
            self._processes.register(self.name, self.serial)
        except AlreadyStarted as error:
            return StartFailed({"already_started": error.data["serial"]})
        self._processes.add(self, traps=True)
        return await self._begin()

    async def _begin(self, *waiting: words.Input) -> StartOutcome:
        for given in (words.Start(), *waiting):
            self.give(given)
        outcome = await self._started
        if isinstance(outcome, StartFailed):
            await self._all_gone()
        return outcome

    async def wait(self) -> Reason:
        reason = await asyncio.shield(self._ended)
        await self._all_gone()
        return reason

    async def _all_gone(self) -> None:
        """A node that was killed has not waited for its children."""
        while self._lives:
            await asyncio.wait(self._lives)

    def shut_down(self) -> None:
        self.give(words.ParentExited("shutdown"))

    def kill(self) -> None:
        self.give(words.KillNode())

    def exit(self, reason: Reason) -> None:
        self.give(words.ParentExited(reason))

    def end_for(self, reason: Reason) -> None:
        self.give(words.KillNode(reason))

    def inform(self, message: dict[str, Any]) -> bool:
        return True  # a supervisor traps exits, and those of strangers mean nothing to it (17)

    async def stop(self, reason: Reason = "shutdown") -> None:
        """End it as its parent would, and return when nothing of it is left."""
        self.give(words.ParentExited(reason))
        await self.wait()

    # --- what others ask

    @property
    def is_dynamic(self) -> bool:
        """Whether its children are named by pid only."""
        return isinstance(self.node, DynamicNode | SimpleNode)

    async def call(self, make: Callable[[Any], words.Request | words.StopCall]) -> Any:
        """Ask the node, and wait for the answer as JSON.

        Raises what it refuses with, :class:`NoProcess` if it has ended, :class:`ProcessExited` if it ends first.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.give(make(answer))
        return await answer

    # --- inputs

    def give(self, given: words.Input) -> None:
        """Give the node an input, after those that are being given, and carry out what it says."""
        self._inbox.append(given)
        if self._is_giving:
            return
        self._is_giving = True
        try:
            while self._inbox:
                for effect in self.node.handle(self._inbox.popleft(), time.monotonic()):
                    self._carry_out(effect)
        finally:
            self._is_giving = False
        if self.sessions and self.node.phase in (Phase.IDLE, Phase.ENDED):
            self._settle_sessions()

    def _settle_sessions(self) -> None:
        """The node is at rest: sessions that have ended and are not among what runs or is tried again, stay ended."""
        ended = [keeper for keeper in self.sessions.values() if keeper.is_down]
        if not ended:
            return
        records = () if self.node.phase is Phase.ENDED else self.node.children
        wanted = {session_id_of(one.spec) for one in records if one.pid is not None or one.retry is not None}
        for keeper in ended:
            if keeper.session_id not in wanted:
                del self.sessions[keeper.session_id]
                keeper.settle()

    def _carry_out(self, effect: words.Effect) -> None:
        match effect:
            case words.StartChild():
                task = asyncio.create_task(self._life(effect), name=f"{self.label}: {effect.spec.id!r}")
                self._lives.add(task)
                task.add_done_callback(self._life_over)
            case words.AbortStart(_, reason):
                self._aborts.append(reason)
                if self._starting is not None:
                    self._starting.exit(reason)
            case words.SendShutdown(pid) if pid in self.members:
                self.members[pid].shut_down()
            case words.Kill(pid) if pid in self.members:
                self.members[pid].kill()
            case words.PropagateExit(pid, reason) if pid in self.members:
                self.members[pid].exit(reason)
            case words.SendShutdown() | words.Kill() | words.PropagateExit():
                pass  # it is gone, and its exit is in the inbox
            case _:
                self._note(effect)

    def _note(self, effect: words.Effect) -> None:
        match effect:
            case words.SetTimer(delay_s, then):
                loop = asyncio.get_running_loop()
                self._timers[then.number] = loop.call_later(delay_s, self._fire, then)
            case words.CancelTimer(number):
                self._timers.pop(number).cancel()
            case words.PostRetry(retry):
                asyncio.get_running_loop().call_soon(self.give, retry)
            case words.StartSucceeded():
                self._started.set_result(Started(self.serial))
            case words.NodeStartFailed(reason):
                self._started.set_result(StartFailed(reason))
            case words.Reply(ref, answer):
                _resolve(ref, answer_json(answer, self._pid_value))
            case words.CallFailed(ref, reason):
                _resolve(ref, self._gone(reason))
            case words.NodeExit(reason):
                logger.info("supervisor %s ended reason=%r", self.label, reason)
                self._processes.exited(self.serial, reason)
                self._ended.set_result(reason)
            case words.Report(kind, child, pid, reason):
                level = logging.INFO if kind is words.ReportKind.PROGRESS else logging.WARNING
                text = "" if reason is None else f" reason={shortened(reason)}"
                logger.log(level, "%s: %s child=%r pid=%s%s", self.label, kind.value, child, pid, text)

    def _fire(self, timeout: words.ShutdownTimeout) -> None:
        del self._timers[timeout.number]
        self.give(timeout)

    # --- a child

    async def _life(self, order: words.StartChild) -> None:
        """One child from its start to its end."""
        facts = Facts() if self.is_dynamic else self.facts.setdefault(order.spec.key, Facts())
        outcome = await self._start_child(order.spec)
        member, self._starting = self._starting, None
        facts.starts += 1
        if not isinstance(outcome, Started) or member is None:
            facts.last_reason = outcome.reason if isinstance(outcome, StartFailed) else None
            facts.last_output = self._output_of(order.spec, member)
            self.give(words.StartResult(order.number, outcome))
            return
        self.members[member.serial] = member
        self._pids[member.serial] = member.pid_value()
        member.on_gone = lambda reason: self._child_gone(order.spec, facts, member, reason)
        self.give(words.StartResult(order.number, outcome))
        for reason in self._aborts:
            member.exit(reason)  # the node was killed, and the order to give up this start came too late
        self._child_gone(order.spec, facts, member, await member.wait())

    def _child_gone(self, spec: ChildSpec, facts: Facts, member: Member, reason: Reason) -> None:
        """Nothing the second time."""
        if self.members.pop(member.serial, None) is None:
            return
        facts.last_reason = reason
        facts.last_output = self._output_of(spec, member)
        self.give(words.Exited(member.serial, reason))
        self._trim()

    def _output_of(self, spec: ChildSpec, member: Member | None) -> str | None:
        source: object = self.sessions.get(session_id_of(spec) or "", member)
        return source.last_output if isinstance(source, KeepsOutput) else None

    def _life_over(self, life: asyncio.Task[None]) -> None:
        self._lives.discard(life)
        if not life.cancelled() and life.exception() is not None:
            logger.error("%s: a child could not be followed", self.label, exc_info=life.exception())

    async def _start_child(self, spec: ChildSpec) -> StartOutcome:
        try:
            for reason in self._aborts:
                return StartFailed(reason)  # before it began; the node does not wait for it
            self._starting = self._forest.member(spec, self)
            return await self._starting.start()
        except AthenaError as error:
            return StartFailed(failure(error))
        except Exception as error:  # a fault of ours: without a result the node would wait for ever
            logger.exception("%s: the start of %r could not be driven", self.label, spec.id)
            if self._starting is not None:
                self._starting.kill()
            return StartFailed({"error": {"type": type(error).__name__, "message": str(error)}})

    # --- answers

    def _pid_value(self, pid: int) -> dict[str, Any]:
        if self._processes.get(pid) is None and pid in self._pids:
            return self._pids[pid]  # it has ended since
        return self._processes.pid_value(pid)

    def _trim(self) -> None:
        """Forget what is known of children that are gone, now and then: a busy node may still name one in an answer."""
        if len(self._pids) > 2 * len(self.members) + SPARE:
            known = {*self.node.pids, *self.members}
            self._pids = {pid: value for pid, value in self._pids.items() if pid in known}
        if len(self.facts) > 2 * len(self.node.children) + SPARE:
            keys = {record.spec.key for record in self.node.children}
            self.facts = {key: facts for key, facts in self.facts.items() if key in keys}

    def _gone(self, reason: Reason) -> AthenaError:
        if reason == "noproc":
            return NoProcess(f"the supervisor {self.label} has ended", target=self.name)
        return ProcessExited(f"the supervisor {self.label} ended before it answered: {reason!r}", reason=reason)


def _resolve(answer: asyncio.Future[Any], outcome: Any) -> None:
    if answer.done():
        return  # who asked has lost interest
    if isinstance(outcome, AthenaError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
