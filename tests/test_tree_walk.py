"""Random walks of supervisor nodes: a world of processes and callers, and a blocking supervisor to compare with.

The world answers effects at random moments, kills children at random and asks for anything at any time; it asserts what
must hold at every step (otp.md 19). Whenever the node is at rest, :class:`Model` handles the same messages with the
same start outcomes, one after another without ever waiting, and both must have done and answered the same.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from athena.errors import Reason
from supervisor.dynamic import DynamicNode
from supervisor.node import Node
from supervisor.node_init import dynamic_node, supervisor_node
from supervisor.tree_vocabulary import (
    AbortStart,
    ByPid,
    Call,
    CallFailed,
    CancelTimer,
    ChildCounts,
    ChildInfo,
    CountChildrenCall,
    DeleteChildCall,
    Effect,
    Exited,
    GetChildSpecCall,
    Ignored,
    Input,
    Kill,
    KillNode,
    Message,
    NodeExit,
    NodeStartFailed,
    ParentExited,
    Phase,
    PostRetry,
    PropagateExit,
    Refused,
    Reply,
    RestartChildCall,
    Retry,
    SendShutdown,
    SetTimer,
    ShutdownTimeout,
    Start,
    StartChild,
    StartChildCall,
    Started,
    StartFailed,
    StartOutcome,
    StartResult,
    StartSucceeded,
    StopCall,
    TerminateChildCall,
    WhichChildCall,
    WhichChildrenCall,
)
from tests.tree_driver import spec

LIMIT, PERIOD, CAP = 4, 2, 4
IDS = "abcd"
REASONS: list[Reason] = ["normal", "shutdown", {"shutdown": 1}, "died", "killed"]
CLEAN = REASONS[:3]


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """A child as the model knows it."""

    given: dict[str, Any]
    pid: int | None = None
    was: int | None = None  # the last pid: what a dynamic supervisor knows it by
    retry: int | None = None

    @property
    def id(self) -> Any:
        return self.given["id"]

    @property
    def restart(self) -> str:
        return str(self.given["restart"])


class Model:
    """OTP's supervisor as it is written there: blocking, one message after another."""

    def __init__(self, kind: str, auto_shutdown: str, children: list[dict[str, Any]]) -> None:
        self.kind, self.auto_shutdown = kind, auto_shutdown
        self.is_static = kind not in ("simple", "dynamic")
        self.children = [Entry(given) for given in children] if self.is_static else []
        self.template = children[0] if kind == "simple" else None
        self.outcomes: deque[StartOutcome] = deque()
        self.trace: list[tuple[str, Any]] = []
        self.replies: dict[Any, Any] = {}
        self.stamps: list[int] = []
        self.dead_when: dict[Any, set[int]] = {}  # who was dead in the world when it got this answer
        self.retries = 0
        self.exit: Any = ...
        self.now = 0.0

    def take(self, message: Any, now: float) -> None:
        self.now = now
        if self.exit is not ...:
            return
        match message:
            case Start():
                self.begin()
            case Exited(pid, reason):
                for entry in [entry for entry in self.children if entry.pid == pid]:
                    self.exited(entry, reason)
            case Retry(name, number):
                for entry in [
                    e for e in self.children if e.retry == number and name == (e.id, e.was)[not self.is_static]
                ]:
                    self.restarted(entry)
            case ParentExited(reason):
                self.end(reason)
            case StopCall(ref, reason):
                self.end(reason)
                self.replies[ref] = "ok"
            case Call(ref):
                self.replies[ref] = self.answer(message)

    def begin(self) -> None:
        failed = self.start_each(list(self.children))
        if failed is not None:
            entry, reason = failed
            self.end({"shutdown": {"failed_to_start_child": [entry.id, reason]}})

    def end(self, reason: Reason) -> None:
        self.stop_each(self.children)
        self.exit = reason

    # starting and stopping

    def start(self, entry: Entry) -> StartOutcome:
        self.trace.append(("start", entry.id))
        return self.outcomes.popleft()

    def start_each(self, entries: list[Entry]) -> tuple[Entry, Reason] | None:
        for entry in entries:
            outcome = self.start(entry)
            if isinstance(outcome, StartFailed):
                return entry, outcome.reason
            self.started(entry, outcome)
        return None

    def started(self, entry: Entry, outcome: StartOutcome) -> None:
        entry.retry = None
        if isinstance(outcome, Started):
            entry.pid = entry.was = outcome.pid
        elif entry.restart == "temporary" or not self.is_static:
            self.remove(entry)

    def stop_each(self, entries: list[Entry]) -> None:
        for entry in list(entries) if not self.is_static else list(reversed(entries)):
            if entry.pid is not None:
                self.trace.append(("stop", entry.pid))
            entry.pid = entry.retry = None
            if entry.restart == "temporary" or not self.is_static:
                self.remove(entry)

    def remove(self, entry: Entry) -> None:
        self.children = [one for one in self.children if one is not entry]

    # ends

    def exited(self, entry: Entry, reason: Reason) -> None:
        entry.pid = None
        if entry.restart == "permanent" or (entry.restart == "transient" and reason not in CLEAN):
            self.restarted(entry)
            return
        if entry.restart == "temporary" or not self.is_static:
            self.remove(entry)
        others = [one for one in self.children if one.given.get("significant") and (one.pid or one.retry)]
        mode = self.auto_shutdown
        if entry.given.get("significant") and (mode == "any_significant" or (mode == "all_significant" and not others)):
            self.end("shutdown")

    def restarted(self, entry: Entry) -> None:
        second = math.floor(self.now)
        self.stamps = [second] + [stamp for stamp in self.stamps if stamp >= second - PERIOD]
        entry.retry = None
        if len(self.stamps) > LIMIT:
            self.end("shutdown")
            return
        group = [entry]
        if self.kind == "one_for_all":
            group = list(self.children)
        if self.kind == "rest_for_one":
            group = self.children[self.children.index(entry) :]
        if self.is_static:
            self.stop_each(group)
            group = [one for one in group if any(one is kept for kept in self.children)]
            failed = self.start_each(group)
        else:
            failed = self.replaced(entry)
        if failed is not None:
            self.retries += 1
            failed[0].retry = self.retries

    def replaced(self, entry: Entry) -> tuple[Entry, Reason] | None:
        """A dynamic supervisor's restart: the new process is a new entry."""
        outcome = self.start(entry)
        if isinstance(outcome, StartFailed):
            return entry, outcome.reason
        self.remove(entry)
        if isinstance(outcome, Started):
            self.children.append(Entry(entry.given, outcome.pid, outcome.pid))
        return None

    # requests

    def answer(self, call: Any) -> Any:
        if isinstance(call, WhichChildrenCall):
            return [self.row(entry) for entry in reversed(self.children)]
        if isinstance(call, CountChildrenCall):
            supervisors = sum(entry.given["type"] == "supervisor" for entry in self.children)
            active = sum(entry.pid is not None for entry in self.children)
            specs = 1 if self.kind == "simple" else len(self.children)
            return (specs, active, supervisors, len(self.children) - supervisors)
        if isinstance(call, StartChildCall):
            return self.start_child(call.spec)
        if not self.is_static:
            return self.answer_by_pid(call)
        entry = next((entry for entry in self.children if entry.id == call.target), None)
        if entry is None:
            return ("refused", "not_found")
        match call:
            case TerminateChildCall():
                self.stop_each([entry])
                return "ok"
            case WhichChildCall():
                return self.row(entry)
            case GetChildSpecCall():
                return ("spec", entry.id)
        if entry.retry is not None:
            return ("refused", "restarting")
        if entry.pid is not None:
            return ("refused", "running")
        if isinstance(call, DeleteChildCall):
            self.remove(entry)
            return "ok"
        return self.came_to(entry, self.start(entry))

    def start_child(self, given: Any) -> Any:
        if self.kind == "simple":
            assert self.template is not None
            given = self.template
        if self.is_static:
            for entry in self.children:
                if entry.id == given["id"]:
                    return ("refused", "already_present" if entry.pid is None else "already_started")
        if self.kind == "dynamic" and len(self.children) >= CAP:
            return ("refused", "max_children")
        entry = Entry(given)
        outcome = self.start(entry)
        if not isinstance(outcome, StartFailed):
            self.children.append(entry)
        return self.came_to(entry, outcome)

    def came_to(self, entry: Entry, outcome: StartOutcome) -> Any:
        if isinstance(outcome, StartFailed):
            return ("refused", "start_failed")
        self.started(entry, outcome)
        return ("started", outcome.pid) if isinstance(outcome, Started) else "ignored"

    def answer_by_pid(self, call: Any) -> Any:
        pid = call.target.pid
        entry = next((entry for entry in self.children if entry.was == pid), None)
        is_simple = self.kind == "simple"
        match call:
            case RestartChildCall() | DeleteChildCall():
                return ("refused", "simple_one_for_one" if is_simple else "not_found")
            case TerminateChildCall() if entry is not None:
                self.stop_each([entry])
                return "ok"
            case WhichChildCall() if entry is not None:
                return self.row(entry)
            case GetChildSpecCall() if entry is not None:
                return ("spec", entry.id)
            case TerminateChildCall() if is_simple and self.is_dead(call):
                return "ok"
            case GetChildSpecCall() if is_simple and self.is_dead(call):
                return ("spec", "a")
            case _:
                return ("refused", "not_found")

    def is_dead(self, call: Any) -> bool:
        return not call.target.is_alive or call.target.pid in self.dead_when[call.ref]

    def row(self, entry: Entry) -> Any:
        shown = entry.id if self.is_static else None
        return (shown, "restarting" if entry.retry is not None else entry.pid, entry.given["type"])


def plain(answer: Any) -> Any:
    """An answer of the node in the model's words."""
    match answer:
        case None:
            return "ok"
        case Started(pid):
            return ("started", pid)
        case Ignored():
            return "ignored"
        case Refused(tag):
            return ("refused", tag)
        case ChildInfo(name, pid, kind):
            return (name, pid, kind)
        case ChildCounts(specs, active, supervisors, workers):
            return (specs, active, supervisors, workers)
        case tuple():
            return [plain(one) for one in answer]
        case _:
            return ("spec", answer["id"])


# --- the world --------------------------------------------------------------------------------------------------------

children = st.fixed_dictionaries(
    {
        "restart": st.sampled_from(["permanent", "permanent", "transient", "temporary"]),
        "shutdown": st.sampled_from([0, 2, 2, 5.0, "brutal_kill", "infinity"]),
        "type": st.sampled_from(["worker", "worker", "supervisor"]),
        "significant": st.booleans(),
    }
)


class Walk(RuleBasedStateMachine):
    """A world around one node. ``kind`` is a strategy, or ``simple`` or ``dynamic``."""

    kind = "one_for_one"
    auto_shutdown = "never"

    def __init__(self) -> None:
        super().__init__()
        self.now = 50.25
        self.alive: dict[int, Any] = {}
        """Living processes and their specs."""
        self.told: dict[int, bool] = {}
        """Living processes that were told to end, and whether they were killed."""
        self.died: list[int] = []
        self.starting: StartChild | None = None
        self.timers: dict[int, float] = {}
        self.old_timers: list[int] = []
        self.retries: deque[Retry] = deque()
        self.old_retries: list[Retry] = []
        self.trace: list[tuple[str, Any]] = []
        self.replies: dict[Any, Any] = {}
        self.asked: list[Any] = []
        self.stops: dict[Any, Reason] = {}
        self.messages: list[tuple[Any, float]] = []
        self.outcomes: list[StartOutcome] = []
        self.exit: Any = ...
        self.start_answers: list[Any] = []
        self.was_killed = False
        self.pids = 0

    @property
    def is_static(self) -> bool:
        return self.kind not in ("simple", "dynamic")

    def child(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        """A spec that is legal here."""
        is_significant = fields["significant"] and fields["restart"] != "permanent" and self.auto_shutdown != "never"
        return spec(name, **{**fields, "significant": is_significant})

    @initialize(fields=st.lists(children, max_size=3))
    def begin(self, fields: list[dict[str, Any]]) -> None:
        given = [self.child(name, one) for name, one in zip(IDS, fields, strict=False)]
        limits = {"max_restarts": LIMIT, "max_seconds": PERIOD}
        if self.kind == "simple":
            given = given[:1] or [self.child("a", {"restart": "permanent", "significant": False, "type": "worker"})]
        self.node: Node = (
            dynamic_node({**limits, "max_children": CAP})
            if self.kind == "dynamic"
            else supervisor_node({**limits, "strategy": self.strategy, "auto_shutdown": self.auto_shutdown}, given)
        )
        self.model = Model(self.kind, self.auto_shutdown, given)
        self.tell(Start())

    @property
    def strategy(self) -> str:
        return "simple_one_for_one" if self.kind == "simple" else self.kind

    # --- effects

    def tell(self, message: Start | Message) -> None:
        self.messages.append((message, self.now))
        self.give(message)

    def give(self, given: Input) -> None:
        for effect in self.node.handle(given, self.now):
            assert self.exit is ... or isinstance(effect, Reply | CallFailed | NodeStartFailed)
            self.carry_out(effect)
        self.settle()

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case StartChild(_, child):
                assert self.starting is None, "two starts at a time"
                assert not self.told, "a start before what had to end is gone"
                ids = [one.id for one in self.alive.values()]
                assert not self.is_static or child.id not in ids, "two processes of one id"
                self.starting = effect
                self.trace.append(("start", child.id))
            case SendShutdown(pid):
                self.told_to_end(pid, False)
            case Kill(pid):
                self.told_to_end(pid, True)
            case SetTimer(delay_s, ShutdownTimeout(number)):
                assert 0 < delay_s < math.inf
                self.timers[number] = delay_s
            case CancelTimer(number):
                del self.timers[number]
                self.old_timers.append(number)
            case PostRetry(retry):
                self.retries.append(retry)
            case StartSucceeded():
                self.start_answers.append("ok")
            case NodeStartFailed(reason):
                self.start_answers.append(reason)
            case Reply(ref, answer):
                self.answered(ref, answer)
            case CallFailed(ref, reason):
                assert self.exit is not ...
                self.answered(ref, ("exit", reason))
            case AbortStart(number):
                assert self.starting is not None
                assert number == self.starting.number
                self.starting = None
            case PropagateExit(pid, _):
                del self.alive[pid]
                self.told.pop(pid, None)
            case NodeExit(reason):
                assert not self.alive, "19.10"
                assert self.starting is None
                self.exit = reason

    def told_to_end(self, pid: int, is_kill: bool) -> None:
        assert pid in self.alive, "told to end, and dead"
        shutdown = self.alive[pid].shutdown
        assert is_kill or pid not in self.told, "told twice"
        assert not is_kill or not self.told.get(pid), "killed twice"
        assert pid in self.told or is_kill is (shutdown == "brutal_kill"), "politely, unless brutal_kill"
        assert not is_kill or shutdown != "infinity"
        if pid not in self.told:
            assert not self.is_static or not self.told, "one after another"
            self.trace.append(("stop", pid))
        self.told[pid] = is_kill

    def answered(self, ref: Any, answer: Any) -> None:
        assert ref in self.asked
        assert ref not in self.replies, "answered twice"
        if isinstance(answer, ChildCounts) and self.is_static:
            assert answer.active == len(self.alive), "active is who lives"
            answer = ChildCounts(answer.specs, 0, answer.supervisors, answer.workers)
        self.replies[ref] = answer
        self.model.dead_when[ref] = set(self.died)

    def settle(self) -> None:
        """At rest, the model goes over what has happened and must come to the same."""
        if self.node.phase not in (Phase.IDLE, Phase.ENDED) or self.was_killed:
            return
        self.model.outcomes.extend(self.outcomes)
        for message, now in self.messages:
            self.model.take(message, now)
        self.outcomes, self.messages = [], []
        assert not self.model.outcomes, "the model made fewer starts"
        told = {pid for kind, pid in self.trace if kind == "stop"}
        trace = [(kind, name) for kind, name in self.model.trace if kind == "start" or name in told]
        assert self.trace == trace
        assert self.exit == self.model.exit
        if self.exit is ...:
            assert list(self.node._intensity.stamps) == self.model.stamps, "19.6: what ends by order is not counted"
        for ref, answer in self.model.replies.items():
            if isinstance(self.replies[ref], ChildCounts) and self.is_static:
                answer = (answer[0], 0, *answer[2:])
            assert plain(self.replies[ref]) == answer, ref
        assert all(ref in self.replies for ref in self.asked), "an answer is missing"
        for ref in set(self.asked) - set(self.model.replies):  # it had ended before these came to their turn
            assert self.replies[ref] in [("exit", self.exit), ("exit", "noproc"), None], ref
            assert self.replies[ref] is not None or self.stops.get(ref) == self.exit, "stopped for another reason"
        assert self.node.pids == tuple(entry.pid for entry in self.model.children if entry.pid is not None)

    # --- what happens

    @precondition(lambda self: self.starting is not None)
    @rule(how=st.sampled_from(["ok", "ok", "ok", "failed", "ignore", "taken"]))
    def a_start_ends(self, how: str) -> None:
        assert self.starting is not None
        self.pids += 1
        outcomes: dict[str, StartOutcome] = {
            "ok": Started(self.pids),
            "failed": StartFailed("broken"),
            "ignore": Ignored(),
            "taken": StartFailed({"exit": self.pids}),
        }
        number, outcome = self.starting.number, outcomes[how]
        if isinstance(outcome, Started):
            self.alive[self.pids] = self.starting.spec
        self.starting = None
        self.outcomes.append(outcome)
        self.give(StartResult(number, outcome))

    @precondition(lambda self: self.told)
    @rule(pick=st.integers(0, 9), reason=st.sampled_from(REASONS))
    def a_child_obeys(self, pick: int, reason: Reason) -> None:
        pid = sorted(self.told)[pick % len(self.told)]
        self.ends(pid, "killed" if self.told[pid] else reason)

    @precondition(lambda self: self.alive)
    @rule(pick=st.integers(0, 9), reason=st.sampled_from(REASONS))
    def a_child_ends_by_itself(self, pick: int, reason: Reason) -> None:
        self.ends(sorted(self.alive)[pick % len(self.alive)], reason)

    def ends(self, pid: int, reason: Reason) -> None:
        del self.alive[pid]
        self.told.pop(pid, None)
        self.died.append(pid)
        self.tell(Exited(pid, reason))

    @precondition(lambda self: self.timers)
    @rule(pick=st.integers(0, 9))
    def a_timer_fires(self, pick: int) -> None:
        number = sorted(self.timers)[pick % len(self.timers)]
        del self.timers[number]
        self.old_timers.append(number)
        self.give(ShutdownTimeout(number))

    @precondition(lambda self: self.retries)
    @rule()
    def a_retry_comes(self) -> None:
        retry = self.retries.popleft()
        self.old_retries.append(retry)
        self.tell(retry)

    @precondition(lambda self: self.old_timers or self.old_retries or self.died)
    @rule(pick=st.integers(0, 99))
    def something_comes_late_or_twice(self, pick: int) -> None:
        late: list[Any] = [*self.old_retries, *(Exited(pid, "died") for pid in self.died), Exited(999, "died")]
        if self.old_timers and pick % 3 == 0:
            self.give(ShutdownTimeout(self.old_timers[pick % len(self.old_timers)]))
        else:
            self.tell(late[pick % len(late)])

    @precondition(lambda self: self.node.phase is Phase.IDLE)
    @rule(seconds=st.floats(0, 4))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # --- what is asked

    def ask(self, kind: Any, *args: Any) -> None:
        self.asked.append(len(self.asked))
        self.tell(kind(self.asked[-1], *args))

    def target(self, pick: int) -> Any:
        """An id, or any process that ever was, a living stranger among them."""
        if self.is_static:
            return "abcdx"[pick % 5]
        pid = pick % (self.pids + 2)
        return ByPid(pid, is_alive=pid in self.alive or pid == 0)

    @rule(name=st.sampled_from(IDS), fields=children)
    def start_child(self, name: str, fields: dict[str, Any]) -> None:
        self.ask(StartChildCall, [] if self.kind == "simple" else self.child(name, fields))

    @rule(pick=st.integers(0, 99))
    def terminate_child(self, pick: int) -> None:
        self.ask(TerminateChildCall, self.target(pick))

    @rule(
        kind=st.sampled_from([RestartChildCall, RestartChildCall, DeleteChildCall, WhichChildCall, GetChildSpecCall]),
        pick=st.integers(0, 99),
    )
    def other_request(self, kind: Any, pick: int) -> None:
        self.ask(kind, self.target(pick))

    @rule(kind=st.sampled_from([WhichChildrenCall, CountChildrenCall]))
    def look(self, kind: Any) -> None:
        self.ask(kind)

    @rule(luck=st.integers(0, 7), reason=st.sampled_from(REASONS))
    def end_it(self, luck: int, reason: Reason) -> None:
        if luck == 0:  # most walks should last longer than a few steps
            self.tell(ParentExited(reason))
        if luck == 1:
            self.stops[len(self.asked)] = reason
            self.ask(StopCall, reason)

    @rule(luck=st.integers(0, 15))
    def kill_it(self, luck: int) -> None:
        if luck == 0 and self.exit is ...:
            self.was_killed = True
            self.give(KillNode())
            assert self.node.reason == "killed"
            assert set(self.replies) == set(self.asked)

    # --- what holds at every step (otp.md 19)

    @invariant()
    def what_must_hold(self) -> None:
        assert len(self.start_answers) <= 1
        if self.node.phase in (Phase.IDLE, Phase.STARTING):  # else it may be giving up
            assert self.node.restarts_in_window(self.now) <= LIMIT, "19.7"
        assert (self.node.phase is Phase.STARTING) is (self.starting is not None)
        if self.node.phase is Phase.IDLE:
            assert not self.told
            assert not self.timers, "a timer without a termination"
        if self.exit is not ...:
            assert not self.alive
            assert not self.timers
            assert self.start_answers
            return
        rows = list(self.node._all())
        assert not any(child.pid is not None and child.retry is not None for child in rows), "19.4"
        assert set(self.alive) <= set(self.node.pids), "a process that nobody supervises"
        numbers = [child.retry for child in rows if child.retry is not None]
        assert len(set(numbers)) == len(numbers), "19.4: one retry for two children"
        assert set(numbers) <= {r.number for r in [*self.retries, *self.retry_messages()]}, "19.4: a retry was lost"
        if isinstance(self.node, DynamicNode):
            assert len(rows) <= CAP, "19.12"
        if self.node.phase is Phase.IDLE:
            assert all(child.pid is not None for child in rows if child.spec.is_temporary), "19.8"

    def retry_messages(self) -> list[Retry]:
        return [message for message, _ in self.messages if isinstance(message, Retry)]

    def teardown(self) -> None:
        """However it stands, an exit of the parent ends it once everything has answered, and nobody waits."""
        if not hasattr(self, "node"):
            return
        if self.exit is ...:
            self.tell(ParentExited("shutdown"))
        while self.exit is ...:
            if self.starting is not None:
                self.a_start_ends("ok")
            else:
                self.a_child_obeys(0, "shutdown")
            self.what_must_hold()
        assert set(self.replies) == set(self.asked)


class OneForAllWalk(Walk):
    kind, auto_shutdown = "one_for_all", "all_significant"


class RestForOneWalk(Walk):
    kind, auto_shutdown = "rest_for_one", "any_significant"


class SimpleWalk(Walk):
    kind = "simple"


class DynamicWalk(Walk):
    kind = "dynamic"


TestOneForOneWalk = Walk.TestCase
TestOneForAllWalk = OneForAllWalk.TestCase
TestRestForOneWalk = RestForOneWalk.TestCase
TestSimpleWalk = SimpleWalk.TestCase
TestDynamicWalk = DynamicWalk.TestCase
_WALK = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestOneForOneWalk.settings = TestOneForAllWalk.settings = TestRestForOneWalk.settings = _WALK
TestSimpleWalk.settings = TestDynamicWalk.settings = _WALK
