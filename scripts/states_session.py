"""The states of a session as :data:`supervisor.core.TRANSITIONS` has them, and where each leads: found by walking the
machine from its beginning through everything that can happen to it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple

from scripts.page_parts import check_same
from supervisor import vocabulary as words
from supervisor.core import TRANSITIONS, IllegalTransition, SessionCore
from supervisor.restart import Backoff, Restart
from supervisor.spec import SessionSpec
from supervisor.vocabulary import State

NOW = 100.0
PID = 4711

WORDS: dict[str, str] = {
    "start": "its first process is started",
    "spawned": "the pid is known; an order that waited for it goes out",
    "ready": "the start has succeeded, and failures to start are counted from nought again",
    "init_failed": "its reason is noted, the end of the process is awaited",
    "start_timeout": "the process is killed, the start has failed with `timeout`",
    "boot_exit": "the start has failed: a first one leaves nothing, one by hand leaves `failed`, an automatic one is "
    "tried again until it has failed alike too often, or the intensity is used up",
    "run_exit": "the restart table is asked, then the intensity; without a pause if nothing has failed to start",
    "backoff_elapsed": "the next process is started",
    "kill": "the tree is killed for this reason; what follows is decided when it is gone",
    "hibernate": "the process is asked to end; nobody is told of a death",
    "asleep": "it sleeps; or its next process is started, if somebody has asked for it meanwhile",
    "needed": "it is noted: the next process is started as soon as this one is gone",
    "wake": "a process is started, under the same serial",
    "kill_hibernating": "the tree is killed, and this is a death and no sleep",
    "kill_asleep": "a death with this reason; the restart table is asked",
    "stop_hibernating": "it is a stop now, with the time of one",
    "stop_asleep": "it is over at once",
    "stop": "the process is asked to end, and killed when its time is up",
    "stop_again": "nothing, or less time",
    "stop_timeout": "the tree is killed",
    "stopped": "it is over: neither restarted nor counted, whatever the reason",
    "stop_without_process": "it is over at once; a pending restart is cancelled",
    "restart": "a process is started, with a new window",
    "restart_refused": "refused: it has not failed",
}
"""What each handler does."""

DULL = "dull"


def session_rows() -> list[tuple[str, str, str, str]]:
    """State, input, what is done, and the states that it may lead to."""
    used = {_name(handler) for handler in TRANSITIONS.values()}
    check_same("handlers of a session", WORDS, used - {DULL})
    leads = _walk()
    rows = []
    for (state, given), handler in TRANSITIONS.items():
        name = _name(handler)
        if name != DULL:
            to = ", ".join(f"`{one.value}`" for one in State if one in leads[state, given])
            rows.append((f"`{state.value}`", f"`{given.__name__}`", WORDS[name], to))
    return rows


def dull_rows() -> list[tuple[str, str]]:
    """By state: what may come and changes nothing."""
    found: dict[State, list[str]] = defaultdict(list)
    for (state, given), handler in TRANSITIONS.items():
        if _name(handler) == DULL:
            found[state].append(f"`{given.__name__}`")
    return [(f"`{state.value}`", ", ".join(given)) for state, given in found.items()]


def _name(handler: object) -> str:
    return str(getattr(handler, "__name__", "")).removeprefix("_on_")


def _walk() -> dict[tuple[State, type], set[State]]:
    leads: dict[tuple[State, type], set[State]] = defaultdict(set)
    for spec in _specs():
        waiting, seen = [SessionCore(spec)], set()
        while waiting:
            core = waiting.pop()
            for given in _inputs(core.incarnation):
                after = _copy(core)
                try:
                    after.handle(given, NOW)
                except IllegalTransition:
                    continue
                leads[core.state, type(given)].add(after.state)
                key = _key(after)
                if key not in seen:
                    seen.add(key)
                    waiting.append(after)
    return leads


def _copy(core: SessionCore) -> SessionCore:
    """One that goes its own way: all else that it holds is a value. A deep copy takes a hundred times as long."""
    found = copy.copy(core)
    found._life, found._timers = copy.copy(core._life), set(core._timers)
    return found


def _specs() -> Iterator[SessionSpec]:
    for restart in (Restart.PERMANENT, Restart.TEMPORARY):  # of a transient one the two are all that can happen
        for backoff in (None, Backoff()):
            yield SessionSpec(restart=restart, backoff=backoff, max_restarts=1, boot_failures=2)


def _inputs(life: int) -> Iterator[words.Input]:
    yield from (words.Start(), words.Spawned(life, PID), words.Ready(life), words.InitFailed(life, "refused"))
    yield from (words.Exited(life, "normal", 0.5), words.Exited(life, "crash", 0.5))
    yield from (words.StartTimeout(life), words.StopTimeout(life), words.BackoffElapsed(life))
    yield from (words.KillRequested(life, "hung"), words.HibernateRequested(life), words.WakeRequested())
    yield from (words.StopRequested(), words.StopRequested(shutdown="brutal_kill"), words.RestartRequested())


def _key(core: SessionCore) -> tuple[object, ...]:
    """What decides how it goes on; which life it is does not."""
    parts = (core.state, core.wanted, core._try, astuple(core._life), astuple(core._failed), core._intensity.stamps)
    return tuple(map(repr, parts))
