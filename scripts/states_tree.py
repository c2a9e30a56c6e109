"""What supervisors of trees do and answer: found by running the pure nodes with children that do as they are told."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from athena.errors import AthenaError
from scripts.page_parts import check_same, code
from supervisor import tree_vocabulary as words
from supervisor.child_spec import ChildSpec, parse_child_spec
from supervisor.dynamic import DynamicNode, SimpleNode
from supervisor.flags import DynamicFlags, Strategy, SupervisorFlags
from supervisor.node import TRANSITIONS, Node
from supervisor.restart import Restart
from supervisor.tree import StaticNode
from supervisor.tree_answers import answer_json
from supervisor.tree_vocabulary import ByPid, Phase

NOW = 100.0

PHASE_WORDS: dict[str, str] = {
    "start": "starts its children",
    "message": "acts on it",
    "kill": "ends, and its children by their links",
    "start_result": "goes on",
    "exited_terminating": "goes on when all are gone",
    "shutdown_timeout": "kills who is left, and waits on",
    "dead_call": "`NoProcess`",
}


class Stage:
    """A node whose children start, unless they are in ``broken``, and end when they are told to."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.pids: dict[object, int] = {}
        """By id: who runs, or ran last."""
        self.log: list[str] = []
        self.broken: set[object] = set()
        self.retries: list[words.Retry] = []
        """Restarts that failed and wait for their turn."""
        self._ids: dict[int, object] = {}
        self._numbers = itertools.count(1)
        self._answer: Any = None
        self.give(words.Start())

    def give(self, given: words.Input) -> None:
        """One input, and all that comes of it but the retries."""
        waiting = deque([given])
        while waiting:
            for effect in self.node.handle(waiting.popleft(), NOW):
                waiting.extend(self._carry_out(effect))

    def die(self, name: object, reason: object = "crash") -> list[str]:
        """This child ends by itself. What the supervisor does then."""
        self.log.clear()
        self.give(words.Exited(self.pids[name], reason))
        return list(self.log)

    def retry(self) -> list[str]:
        """The restarts that failed get their turn."""
        self.log.clear()
        waiting, self.retries = self.retries, []
        for one in waiting:
            self.give(one)
        return list(self.log)

    def ask(self, make: Callable[[Any], words.Request]) -> str:
        """What a caller gets."""
        self.give(make("asked"))
        return _shown(self._answer)

    def _carry_out(self, effect: words.Effect) -> Iterator[words.Input]:
        match effect:
            case words.StartChild(number, spec) if spec.id in self.broken:
                self.log.append(f"start {spec.id} (fails)")
                yield words.StartResult(number, words.StartFailed("broken"))
            case words.StartChild(number, spec):
                pid = self.pids[spec.id] = next(self._numbers)
                self._ids[pid] = spec.id
                self.log.append(f"start {spec.id}")
                yield words.StartResult(number, words.Started(pid))
            case words.SendShutdown(pid):
                self.log.append(f"end {self._ids[pid]}")
                yield words.Exited(pid, "shutdown")
            case words.PostRetry(retry):
                self.retries.append(retry)
            case words.Reply(_, answer):
                self._answer = answer
            case words.NodeExit(reason):
                self.log.append(f"ends itself with {code(reason)}")


def _shown(answer: Any) -> str:
    value = answer_json(answer, lambda pid: {"serial": pid})
    match value:
        case AthenaError():
            return f"`{type(value).__name__}`"
        case None:
            return "ok"
        case {"started": _}:
            return "the new pid"
        case {"restart": _}:
            return "the specification"
        case {"pid": pid}:
            return "its pid" if isinstance(pid, dict) else code(pid if pid is not None else "None")
    raise ValueError(f"an answer of an unknown form: {answer!r}")


# --- children ---------------------------------------------------------------------------------------------------------


def _spec(name: str, **fields: Any) -> ChildSpec:
    return parse_child_spec({"id": name, "start": ["program"], **fields})


def _static(*specs: ChildSpec, **flags: Any) -> Stage:
    return Stage(StaticNode(SupervisorFlags(**{"max_restarts": 9, **flags}), specs))


def _fail_restart(stage: Stage, name: str) -> None:
    stage.broken.add(name)
    stage.die(name)
    stage.broken.clear()


# --- requests ---------------------------------------------------------------------------------------------------------

Ask = Callable[[Any, Any], words.Request]

ASKS: dict[str, Ask] = {
    "terminate_child": words.TerminateChildCall,
    "restart_child": words.RestartChildCall,
    "delete_child": words.DeleteChildCall,
    "which_child": words.WhichChildCall,
    "get_childspec": words.GetChildSpecCall,
}


def static_answers() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """What a supervisor with a list of children answers about one of each kind."""
    states: dict[str, Callable[[Stage], None]] = {
        "runs": lambda _: None,
        "was terminated, or has ended": lambda stage: stage.give(words.TerminateChildCall("by hand", "c")),
        "the same, and cannot start": _broken_and_down,
        "is restarting": lambda stage: _fail_restart(stage, "c"),
        "is not known": lambda stage: _forget(stage, "c"),
    }

    def answer(make: Callable[[Any], words.Request], prepare: Callable[[Stage], None]) -> str:
        stage = _static(_spec("c"))
        prepare(stage)
        return stage.ask(make)

    rows = [
        ("`start_child`", *(answer(lambda ref: words.StartChildCall(ref, _map("c")), to) for to in states.values())),
    ]
    for name, ask in ASKS.items():
        cells = [answer(lambda ref, ask=ask: ask(ref, "c"), to) for to in states.values()]  # type: ignore[misc]
        rows.append((f"`{name}`", *cells))
    return ("a child that", *states), rows


def _map(name: str) -> dict[str, Any]:
    return _spec(name).to_map()


def _broken_and_down(stage: Stage) -> None:
    stage.give(words.TerminateChildCall("by hand", "c"))
    stage.broken.add("c")


def _forget(stage: Stage, name: str) -> None:
    stage.give(words.TerminateChildCall("by hand", name))
    stage.give(words.DeleteChildCall("by hand", name))


STRANGER = 99


def pool_answers(kind: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """What a supervisor whose children are known by pid answers: ``simple_one_for_one`` or ``DynamicSupervisor``."""
    targets: dict[str, tuple[bool, words.Target]] = {
        "the pid of a child": (False, ByPid(1)),
        "the last pid of one that is restarting": (True, ByPid(1, is_alive=False)),
        "the pid of another process": (False, ByPid(STRANGER)),
        "a dead pid": (False, ByPid(STRANGER, is_alive=False)),
        "the id in the specification": (False, "c"),
    }

    def answer(ask: Ask, is_restarting: bool, target: words.Target) -> str:
        stage = _pool(kind)
        if is_restarting:
            _fail_restart(stage, "c")
        return stage.ask(lambda ref: ask(ref, target))

    rows = [(f"`{name}`", *(answer(ask, *given) for given in targets.values())) for name, ask in ASKS.items()]
    return ("asked with", *targets), rows


def _pool(kind: str) -> Stage:
    if kind == "simple_one_for_one":
        stage = Stage(SimpleNode(SupervisorFlags(strategy=Strategy.SIMPLE_ONE_FOR_ONE, max_restarts=9), _spec("c")))
        stage.give(words.StartChildCall("first", []))
    else:
        stage = Stage(DynamicNode(DynamicFlags(max_restarts=9)))
        stage.give(words.StartChildCall("first", _map("c")))
    return stage


# --- restarts ---------------------------------------------------------------------------------------------------------


def group_rows() -> list[tuple[str, ...]]:
    """Who is ended and started with a child that died, under each strategy."""
    rows: list[tuple[str, ...]] = []
    for strategy in (Strategy.ONE_FOR_ONE, Strategy.REST_FOR_ONE, Strategy.ONE_FOR_ALL):
        plain, stopped, failing = (_static(*map(_spec, "abc"), strategy=strategy) for _ in range(3))
        stopped.give(words.TerminateChildCall("by hand", "c"))
        failing.broken.add("c")
        first = failing.die("b")
        failing.broken.clear()
        lists = (plain.die("b"), stopped.die("b"), first + failing.retry())
        rows.append((f"`{strategy.value}`", *map(", ".join, lists)))
    return rows


def auto_shutdown_rows() -> list[tuple[str, ...]]:
    """What the end of a significant child means, with another significant one running."""
    rows: list[tuple[str, ...]] = []
    for restart in (Restart.TRANSIENT, Restart.TEMPORARY):
        for reason in ("normal", "crash"):
            cells = []
            for auto in ("any_significant", "all_significant"):
                pair = [_spec(name, restart=restart.value, significant=True) for name in "ab"]
                stage = _static(*pair, auto_shutdown=auto)
                cells.append(", ".join(stage.die("a", reason)) or "nothing")
            rows.append((f"`{restart.value}`", "normally" if reason == "normal" else "abnormally", *cells))
    return rows


# --- phases -----------------------------------------------------------------------------------------------------------


def phase_rows() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """What a supervisor does with an input in each phase."""
    used = {_handler(phase, given) for phase, given in TRANSITIONS} - {"dull"}
    check_same("handlers of a supervisor", PHASE_WORDS, used)
    inputs = list(dict.fromkeys(given for _, given in TRANSITIONS))
    rows = [(f"`{given.__name__}`", *(_phase_cell(phase, given) for phase in Phase)) for given in inputs]
    return ("input", *(f"`{phase.value}`" for phase in Phase)), rows


def _phase_cell(phase: Phase, given: type) -> str:
    if (phase, given) not in TRANSITIONS:
        return ""
    name = _handler(phase, given)
    if name == "dull":
        return "·"
    if name == "message" and phase is not Phase.IDLE:
        return "keeps it for later"
    return PHASE_WORDS[name]


def _handler(phase: Phase, given: type) -> str:
    return str(getattr(TRANSITIONS[phase, given], "__name__", "")).removeprefix("_on_")
