"""A driver for supervisor nodes without processes: it obeys every effect, and its children do what a test told them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from athena.errors import Reason
from supervisor.child_spec import ChildSpec
from supervisor.node import Node
from supervisor.tree_vocabulary import (
    AbortStart,
    CallFailed,
    CancelTimer,
    ChildCounts,
    CountChildrenCall,
    DeleteChildCall,
    Effect,
    Exited,
    Input,
    Kill,
    NodeExit,
    NodeStartFailed,
    Phase,
    PostRetry,
    PropagateExit,
    Reply,
    Report,
    Request,
    RestartChildCall,
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
    WhichChildrenCall,
)

START = "agents.echo:run"
Mode = Callable[[], StartOutcome | None]
"""How a child starts this time; ``None`` leaves the start to the test."""


def spec(name: Any, **fields: Any) -> dict[str, Any]:
    """A permanent child with a shutdown of 1 s, as otp-cases.md has them."""
    return {"id": name, "start": START, "shutdown": 1, **fields}


class Driver:
    """Drives ``node``. Children start at once and end when they are told to, unless their id says otherwise:

    ``modes`` has how they start, ``deaf`` those that only a kill ends, ``last_words`` a reason other than shutdown.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.now = 100.0
        self.effects: list[Effect] = []
        """Everything since :meth:`begin`."""
        self.queue: deque[Input] = deque()
        self.alive: dict[int, ChildSpec] = {}
        self.names: dict[int, Any] = {}
        self.ended: list[tuple[Any, Reason]] = []
        """Ids and reasons, in order of death."""
        self.modes: dict[Any, Mode] = {}
        self.deaf: set[Any] = set()
        self.last_words: dict[Any, Reason] = {}
        self.timers: dict[int, float] = {}
        self.replies: dict[Any, Any] = {}
        self.starting: StartChild | None = None
        self.started: Any = "not yet"
        """Then "ok", or why not."""
        self.exit: Any = Ellipsis
        """The node's exit reason; Ellipsis while it lives."""
        self._pid = self._ref = 0

    # --- what tests say

    def start(self) -> Driver:
        self.give(Start())
        return self

    def give(self, *given: Input) -> None:
        """Put inputs at the end of the queue and work it off."""
        self.queue += given
        while self.queue:
            self.step()

    def step(self) -> None:
        """Give the first input of the queue and carry out what follows."""
        for effect in self.node.handle(self.queue.popleft(), self.now):
            self.effects.append(effect)
            self.carry_out(effect)

    def finish(self, outcome: StartOutcome | None = None) -> None:
        """End the start that a mode of ``None`` left open; without ``outcome`` it succeeds."""
        assert self.starting is not None
        self.give(self._result(self.starting, outcome or Started(self.new_pid())))

    def die(self, name: Any, reason: Reason = "died") -> int:
        """A child ends by itself. Returns its pid."""
        pid = self.pid(name)
        self.give(self.end(pid, reason))
        return pid

    def fire(self) -> None:
        """The timers fire, the earliest first."""
        number = min(self.timers, key=lambda key: self.timers[key])
        self.now += self.timers.pop(number)
        self.give(ShutdownTimeout(number))

    def pid(self, name: Any) -> int:
        """The pid of the newest live child of that id."""
        return max(pid for pid, child in self.alive.items() if child.id == name)

    def call(self, kind: Callable[..., Request | StopCall], *args: Any) -> Any:
        """Ask, and return the answer; Ellipsis if there is none yet."""
        self._ref += 1
        self.give(kind(self._ref, *args))
        return self.replies.get(self._ref, ...)

    def start_child(self, given: Any) -> Any:
        return self.call(StartChildCall, given)

    def terminate_child(self, target: Any) -> Any:
        return self.call(TerminateChildCall, target)

    def restart_child(self, target: Any) -> Any:
        return self.call(RestartChildCall, target)

    def delete_child(self, target: Any) -> Any:
        return self.call(DeleteChildCall, target)

    def which(self) -> list[tuple[Any, Any]]:
        """Ids and pids, newest first."""
        return [(row.id, row.pid) for row in self.call(WhichChildrenCall)]

    def counts(self) -> list[int]:
        """``[specs, active, supervisors, workers]``, as otp-cases.md writes them."""
        counts: ChildCounts = self.call(CountChildrenCall)
        return [counts.specs, counts.active, counts.supervisors, counts.workers]

    def stop(self, reason: Reason = "normal") -> Any:
        return self.call(StopCall, reason)

    # --- what tests look at

    def lives(self) -> bool:
        """Whether the node does."""
        return self.exit is Ellipsis

    def is_blocked(self) -> bool:
        """Whether a start is left open."""
        return self.starting is not None

    def begin(self) -> None:
        """Forget the effects and deaths so far."""
        self.effects.clear()
        self.ended.clear()

    def trace(self) -> list[tuple[str, Any]]:
        """Starts and orders to end since :meth:`begin`, by id."""
        found: list[tuple[str, Any]] = []
        for effect in self.effects:
            match effect:
                case StartChild(_, child):
                    found.append(("start", child.id))
                case SendShutdown(pid):
                    found.append(("shutdown", self.names[pid]))
                case Kill(pid):
                    found.append(("kill", self.names[pid]))
        return found

    def reports(self) -> list[tuple[str, Any, Reason]]:
        """Reports but for progress since :meth:`begin`."""
        found = [effect for effect in self.effects if isinstance(effect, Report) and effect.kind != "progress"]
        return [(report.kind.value, report.child, report.reason) for report in found]

    # --- obedience

    def carry_out(self, effect: Effect) -> None:
        assert self.exit is Ellipsis or isinstance(effect, Reply | CallFailed | NodeStartFailed), effect
        match effect:
            case StartChild():
                self._start_child(effect)
            case SendShutdown(pid) | Kill(pid):
                self._told_to_end(pid, isinstance(effect, Kill))
            case SetTimer(delay_s, ShutdownTimeout(number)):
                self.timers[number] = delay_s
            case CancelTimer(number):
                del self.timers[number]
            case PostRetry(retry):
                self.queue.append(retry)
            case StartSucceeded():
                self.started = "ok"
            case NodeStartFailed(reason):
                self.started = reason
            case Reply(ref, answer):
                assert ref not in self.replies
                self.replies[ref] = answer
            case CallFailed(ref, reason):
                assert ref not in self.replies
                self.replies[ref] = ("exit", reason)
            case PropagateExit(pid, reason):
                self.ended.append((self.alive.pop(pid).id, reason))
            case AbortStart(number):
                assert self.starting is not None
                assert self.starting.number == number
                self.starting = None
            case NodeExit(reason):
                self.exit = reason
                assert not self.alive
                assert self.node.phase is Phase.ENDED
            case Report():
                pass

    def _start_child(self, effect: StartChild) -> None:
        assert self.starting is None, "two starts at a time"
        self.starting = effect
        mode = self.modes.get(effect.spec.id, lambda: Started(self.new_pid()))
        outcome = mode()
        if outcome is not None:
            self.queue.append(self._result(effect, outcome))

    def _result(self, effect: StartChild, outcome: StartOutcome) -> StartResult:
        self.starting = None
        if isinstance(outcome, Started):
            self.alive[outcome.pid] = effect.spec
            self.names[outcome.pid] = effect.spec.id
        return StartResult(effect.number, outcome)

    def _told_to_end(self, pid: int, is_kill: bool) -> None:
        child = self.alive.get(pid)
        if child is None:
            return  # it died meanwhile; its exit is on its way
        if is_kill:
            self.queue.append(self.end(pid, "killed"))
        elif child.id not in self.deaf:
            self.queue.append(self.end(pid, self.last_words.get(child.id, "shutdown")))

    def end(self, pid: int, reason: Reason) -> Exited:
        """A process ends; the node is to be told with the returned input."""
        child = self.alive.pop(pid)
        self.ended.append((child.id, reason))
        return Exited(pid, reason)

    def new_pid(self) -> int:
        """One that was never given."""
        self._pid += 1
        return self._pid


def ok_info(driver: Driver, info: Any) -> Mode:
    """Starts, and says something with it."""
    return lambda: Started(driver.new_pid(), info)


def first_ok(driver: Driver) -> Mode:
    """Starts once; every later start fails."""
    outcomes = iter([Started(driver.new_pid())])
    return lambda: next(outcomes, StartFailed("start_error"))


def fails_once(driver: Driver) -> Mode:
    """The first start fails, every later one succeeds."""
    outcomes = iter([StartFailed("flag")])
    return lambda: next(outcomes, None) or Started(driver.new_pid())


def failing(reason: Reason) -> Mode:
    """Never starts."""
    return lambda: StartFailed(reason)
