"""Writes docs/states.md from the code: every table is found by running the pure parts of the supervisor.

The words are here and in the modules beside it, the facts are not. ``tests/test_docs.py`` fails when the page in the
repository is stale.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `scripts`, and for Athena where it is not installed

from athena.errors import Reason  # noqa: E402
from athena.last_words import reason_of  # noqa: E402
from scripts.page_parts import code, paragraph, table  # noqa: E402
from scripts.states_session import dull_rows, session_rows  # noqa: E402
from scripts.states_tree import (  # noqa: E402
    auto_shutdown_rows,
    group_rows,
    phase_rows,
    pool_answers,
    static_answers,
)
from supervisor.process import UNKNOWN, exit_reason  # noqa: E402
from supervisor.restart import Intensity, Restart, classify, should_restart  # noqa: E402
from supervisor.signals import Deliver, Effect, End, Exit, Signals  # noqa: E402

PAGE = ROOT / "docs" / "states.md"

INTRO = """\
# What happens in which state?

For those who have to know exactly: what a reason means, who is started again, what a call answers. `make docs` runs the
supervisor's own decisions and writes down what they are; change `scripts/states_page.py`, not the page. What it is all
for says [supervision.md](supervision.md).
"""

ERROR = {"error": {"type": "KeyError"}}

ENDS: list[tuple[str, int, int, Reason, Reason]] = [
    ("status 0", os.CLD_EXITED, 0, None, None),
    ("status 0, and it said why", os.CLD_EXITED, 0, {"shutdown": "done"}, None),
    ("status 0, and it said that it fails", os.CLD_EXITED, 0, ERROR, None),
    ("status 3", os.CLD_EXITED, 3, None, None),
    ("status 3 after it had said `normal`", os.CLD_EXITED, 3, "normal", None),
    ("status 1 after it had said that it fails", os.CLD_EXITED, 1, ERROR, None),
    ("a SIGKILL from outside, or ours when its time was up", os.CLD_KILLED, signal.SIGKILL, None, None),
    ("SIGTERM", os.CLD_KILLED, signal.SIGTERM, None, None),
    ("SIGINT", os.CLD_KILLED, signal.SIGINT, None, None),
    ("SIGSEGV, with a core file or without", os.CLD_DUMPED, signal.SIGSEGV, None, None),
    ("a real-time signal", os.CLD_KILLED, signal.SIGRTMIN + 2, None, None),
    ("SIGKILL by us, since it did not answer", os.CLD_KILLED, signal.SIGKILL, None, "hung"),
    ("SIGKILL by us, since a limit was passed", os.CLD_KILLED, signal.SIGKILL, None, {"limit": "memory"}),
    ("SIGKILL by us, for an exit signal", os.CLD_KILLED, signal.SIGKILL, None, "enough"),
    ("the kernel told us no status", UNKNOWN, 0, None, None),
]
"""How it ended, its status, what it had said, why we killed it."""

EXITS: tuple[object, ...] = (None, 0, 3, 256, "a text")

REASONS: tuple[Reason, ...] = (
    "normal",
    "shutdown",
    {"shutdown": "done"},
    "killed",
    {"exit": 3},
    {"signal": "SIGSEGV"},
    ERROR,
    "hung",
    {"limit": "memory"},
    "noconnection",
    {"shutdown": "done", "more": 1},
)


def render() -> str:
    """The whole page."""
    parts = (_reasons(), _restarts(), _signals(), _groups(), _answers(), _phases(), _session())
    return "\n".join([INTRO, *(line for part in parts for line in part)])


def _reasons() -> Iterable[str]:
    yield "## Why a process ended\n"
    rows = [(how, code(exit_reason(a, b, said, ours))) for how, a, b, said, ours in ENDS]
    yield from table(("how it ended", "reason"), rows)
    yield from paragraph("""
        What a process says before it ends is believed if it speaks of a failure; that all is well only with status 0.
        A session whose SIGKILL came from the kernel for want of memory has the reason `oom`. What we killed a process
        for counts only if a signal ended it: one that was faster has its own reason.
    """)
    yield from paragraph("""
        What `sys.exit` in a function or a server comes to, where a plain process would take 256 for 0:
    """)
    yield from table(("call", "reason"), [(f"`sys.exit({value!r})`", code(reason_of(_exit(value)))) for value in EXITS])


def _exit(value: Any) -> SystemExit:
    return SystemExit() if value is None else SystemExit(value)


def _restarts() -> Iterable[str]:
    yield "## Who is started again\n"
    rows = [
        (code(reason), classify(reason).value, *("yes" if should_restart(one, reason) else "no" for one in Restart))
        for reason in REASONS
    ]
    yield from table(("reason", "class", *(f"`{one.value}`" for one in Restart)), rows)
    yield from paragraph("""
        `normal` and both forms of `shutdown` are clean, in just these forms. Then the intensity is asked. It counts
        whole seconds, and the bound is in the window, so that it is up to one second longer than it says. With
        `max_restarts=1, max_seconds=1`, after a restart at 10.0 s:
    """)
    rows = [(f"at {now} s", _allowed(now)) for now in (10.9, 11.9, 12.0)]
    yield from table(("the next end", "what follows"), rows)


def _allowed(now: float) -> str:
    intensity, _ = Intensity(1, 1).add(10.0)
    return "a restart" if intensity.add(now)[1] else "the supervisor gives up"


A, B, CLIENT = 1, 2, 3


def _signals() -> Iterable[str]:
    """What each kind of process makes of an exit signal."""
    yield "## What an exit signal does\n"
    linked = [("a linked process ends with", reason) for reason in ("normal", "shutdown", "killed", "kill", "boom")]
    sent = [("`exit(pid, reason)` with", reason) for reason in ("normal", "shutdown", "kill", "boom")]
    rows = []
    for how, reason in linked + sent:
        cells = [_received(to, reason, is_link=how.startswith("a linked")) for to in ("plain", "traps", "client")]
        rows.append((f"{how} {code(reason)}", *cells))
    rows.append(("`exit` of itself with `normal`", _received("plain", "normal", itself=True), "", ""))
    yield from table(("what comes", "it does not trap exits", "it traps them", "a program of yours"), rows)


def _received(kind: str, reason: Reason, *, is_link: bool = False, itself: bool = False) -> str:
    signals = Signals()
    signals.started(A)
    signals.started(B, traps=kind == "traps", client=kind == "client")
    if is_link:
        signals.link(B, A)
        return _effect(signals.exited(A, reason))
    return _effect(signals.exit(B if itself else A, B, reason))


def _effect(effects: list[Effect]) -> str:
    match effects:
        case []:
            return "nothing"
        case [End(_, reason)]:
            return f"ends with {code(reason)}"
        case [Deliver(_, Exit(_, reason))]:
            return f"`Exit` with {code(reason)}"
    raise ValueError(f"effects of an unknown form: {effects!r}")


def _groups() -> Iterable[str]:
    yield "## What a supervisor does when a child dies\n"
    yield "With the children a, b and c, started in this order; b dies:\n"
    yield from table(("strategy", "all is well", "c was terminated by hand", "c cannot start once"), group_rows())
    yield from paragraph("""
        Each row is one restart for the intensity, and each further attempt is one more. When a significant child ends
        while another one runs:
    """)
    yield from table(("child", "ends", "`any_significant`", "`all_significant`"), auto_shutdown_rows())


def _answers() -> Iterable[str]:
    yield "## What a supervisor answers\n"
    yield "With a list of children (`one_for_one`, `one_for_all`, `rest_for_one`), where children have ids:\n"
    yield from table(*static_answers())
    yield "With `simple_one_for_one`:\n"
    yield from table(*pool_answers("simple_one_for_one"))
    yield "A `DynamicSupervisor`:\n"
    yield from table(*pool_answers("dynamic"))


def _phases() -> Iterable[str]:
    yield "## Phases of a supervisor\n"
    yield from paragraph("""
        It does one thing at a time (`supervisor/node.py`, table `TRANSITIONS`). A dot is an input that is legal there
        and changes nothing; an empty cell cannot happen, and raises.
    """)
    yield from table(*phase_rows())


def _session() -> Iterable[str]:
    yield "## States of a session\n"
    yield from paragraph("""
        The table `TRANSITIONS` of `supervisor/core.py`, and where each row leads: found by walking through everything
        that can happen. A pair that is neither here nor below cannot happen, and raises.
    """)
    yield from table(("state", "input", "what is done", "the state then"), session_rows())
    yield "What may come, mostly because two things crossed, and changes nothing:\n"
    yield from table(("state", "inputs"), dull_rows())


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
