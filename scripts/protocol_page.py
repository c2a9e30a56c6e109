"""Writes docs/protocol.md from the code's own tables, so that the page cannot be about another release.

The words are here, the facts are not: frame kinds, operations and states are read from the code, and one without words
(or words without one) raises. ``tests/test_docs.py`` fails when the page in the repository is stale.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from athena import child, config, runner, wire
from supervisor import commands, core, hub, keeper
from supervisor.vocabulary import State

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "protocol.md"

SPEAKERS = ("athena/async_session.py", "athena/channel.py", "athena/child.py", "athena/client.py", "athena/session.py",
            "athena/subscriber.py", "athena/wire.py", "supervisor/calls.py", "supervisor/commands.py",
            "supervisor/hub.py", "supervisor/keeper.py", "supervisor/server.py",
            "supervisor/tree_process.py", "athena/function_child.py")  # fmt: skip
"""The files that make or read frames."""

FRAMES: dict[str, tuple[str, str]] = {
    "hello": (
        "both ways, first",
        "`protocol`, `product`, `pid`; a supervisor adds `supervisor` (its id) and `mode`. With "
        "`refused` the body is an error and the connection ends",
    ),
    "request": (
        "client to supervisor to child; child to supervisor",
        "`id`, `op`, and what the operation needs to be "
        "routed: `session`, `tree`, `serial`, `message_id`, `turn`, `spec`. Without an `id` nobody wants an answer",
    ),
    "reply": (
        "back",
        '`id`, `ok`; the body is the answer, or with `ok` false an error. `source: "log"` says that the '
        "child was silent and the body is the log's lines",
    ),
    "init": (
        "supervisor to child, once",
        "to a function's process `function`, and the body is its arguments and environment; to a session's `session`, "
        "`incarnation`, why the last life ended (`reason`), whether that "
        "death counts against the open turn (`counted`), a turn to `interrupt`, how many events (`preload`) and "
        "messages (`follow`) come right behind. The body is the start request as the client sent it",
    ),
    "ready": (
        "child to supervisor",
        "from a session `seq` of the last event, `damage` found in the log, and the position: `turn`, `message_id`, "
        "`queue`",
    ),
    "init_error": (
        "child to supervisor",
        "the body is the error that `start` is answered with; from a function's process `reason`",
    ),
    "event": (
        "child to supervisor to subscribers",
        "`session`, `seq`, `uuid`, `event` and the position; the body is the log's line, byte for byte",
    ),
    "delta": (
        "child to supervisor to subscribers",
        "`session`, `turn`, `step`, `attempt`, `type` (`text` or `thinking`), "
        "`offset` in characters; the body is UTF-8 text. Not recorded, and left out where the reader is behind",
    ),
    "state": (
        "child to supervisor; supervisor to subscribers",
        "from a child: `degraded`, what is wrong or `null`. To subscribers: `state` and `reason` of the session",
    ),
    "shutdown": ("supervisor to child", "`reason`: end in order"),
    "exiting": ("child to supervisor, last", "`reason`: why it is about to exit"),
    "live": ("supervisor to subscriber", "`seq`: the replay has caught up; partial text of the running step follows"),
    "lagged": ("supervisor to subscriber", "`seq`: more than the byte bound was waiting; what follows is a replay"),
    "ended": ("supervisor to subscriber", "`reason`: the session is over and nothing follows"),
    "down": ("supervisor to client", "`ref`, `pid`, `reason`: a monitored process has ended"),
    "part": ("any", "`part`, `more`: the rest of a long body"),
}

OPERATIONS: dict[str, str] = {
    "start": "Start a session from `spec` and the body's options; answered when its child is ready",
    "attach": "Who has this name, id or pid",
    "whereis": "The pid under a name or id, or `null`",
    "list": "Rows of live, failed and stored sessions, and of shared services",
    "status": "What is known of a session without asking its child",
    "subscribe": "Join after a cursor (`after`, `uuid`, `deltas`); the answer says where the stream begins",
    "unsubscribe": "Leave",
    "monitor": "Watch the process that runs a session now: one `down`, or at once the reason `noproc`",
    "stop": "End a session (`reason`, `timeout`); answered when nothing of it is left. Twice is a no-op",
    "service": "The address of a shared program, started if need be",
    "info": "What this supervisor is and how it does",
    "shutdown": "End the supervisor with everything below it",
    "tree_start": "Start a supervision tree (`kind`, `flags`, `children`, `name`, `link`, `caller`); answered when all "
    "of it has started",
    "tree_attach": "The supervisor that `tree` in the header names: a name, or a pid",
    "tree_stop": "End a supervisor (`reason`) with its children; answered when nothing of it is left",
    "trees": "Every tree as it is now, without asking its supervisors",
    "start_child": "Start one more child (`spec`)",
    "terminate_child": "End a child (`id` or `pid`)",
    "restart_child": "Start a child that does not run",
    "delete_child": "Forget a child that does not run",
    "get_childspec": "A child's specification, every default filled in",
    "which_child": "One child",
    "which_children": "All children, the newest first",
    "count_children": "How many: `specs`, `active`, `supervisors`, `workers`",
    "send": "A message (`message_id`, `text`, `wait`, `options`): its acceptance, or with `wait` its turn's result",
    "result": "Wait for the result of a `message_id`",
    "cancel": "Take a queued message back",
    "interrupt": "End the running turn; `clear_queue` drops what waits",
    "messages": "The history",
    "usage": "Tokens and cost of the session",
    "queue": "What waits behind the running turn",
    "ping": "A sign of life",
}

INTRO = """\
# What goes over the wire?

For those who change the protocol, write a client in another language, or look at a trace. `make docs` writes this page
from the code; change `scripts/protocol_page.py`, not the page.

Both hops speak it: a client and the supervisor over a unix socket, the supervisor and a session's child over two pipes.
A frame is a 4-byte big-endian length, a compact JSON header line, a newline, and a body. The header routes; the
supervisor relays the body of what it routes without reading it.
"""


def render() -> str:
    """The whole page."""
    return "\n".join([INTRO, *_limits(), *_frames(), *_operations(), *_journeys(), *_states()])


def _limits() -> Iterable[str]:
    yield "## Versions and limits\n"
    yield from _table(
        ("what", "value"),
        [
            ("protocol version", str(wire.PROTOCOL)),
            (
                "product",
                f"`{config.PRODUCT}`; both sides must be the same release, else `VersionMismatch` names the two",
            ),
            ("largest frame, and largest body in parts that is a request or an event", _size(wire.MAX_FRAME_BYTES)),
            ("largest answer in parts (a result or `messages` carries a whole history)", _size(wire.MAX_ANSWER_BYTES)),
            ("bodies above this go in parts, with control frames in between", _size(wire.PART_BYTES)),
            ("waiting for one subscriber before it is told `lagged`", _size(hub.SUBSCRIBER_BYTES)),
            ("unsent events in a child above which it leaves deltas out", _size(child.PIPE_BACKLOG_BYTES)),
            ("messages that wait behind a turn before `Busy`", str(runner.QUEUE_LIMIT)),
        ],
    )
    yield from _paragraph("""
        The length is checked before anything of the frame is read. A frame that is too long, has no header line or an
        unreadable one ends that connection and no other.
    """)


def _frames() -> Iterable[str]:
    _same("frame kinds", FRAMES, kinds_in_code())
    yield "## Frames\n"
    yield from _table(("kind", "way", "header and body"), [(f"`{k}`", *FRAMES[k]) for k in FRAMES])
    yield from _paragraph("""
        Replies, notices, interrupts and stops are control frames: they leave before queued events and deltas, and
        between the parts of a long body. An error's body is `{"error": class, "message": text, "data": {...}}`; the
        classes are those of `athena/errors.py`.
    """)


def _operations() -> Iterable[str]:
    own, relayed = set(commands.COMMANDS), set(commands.RELAYED)
    _same("operations", OPERATIONS, own | relayed)
    _same("operations of a child", relayed, set(child._OPS))
    yield "## Operations\n"
    yield "The supervisor answers these itself, so they are answered while a child is frozen:\n"
    yield from _table(("operation", "what it does"), [(f"`{op}`", OPERATIONS[op]) for op in commands.COMMANDS])
    yield "These it relays to the session's child, which answers while a turn runs:\n"
    yield from _table(
        ("operation", "what it does"), [(f"`{op}`", text) for op, text in OPERATIONS.items() if op in relayed]
    )
    yield from _paragraph(f"""
        A relayed request that a death left unanswered is delivered again, under its id, to the next incarnation; all of
        them are safe to repeat, a message by its `message_id`. `messages`, `usage` and `queue` are answered from the
        log if the child is silent for {keeper.SILENT_S * 1000:g} ms. A child asks one thing of the supervisor:
        `service`.
    """)


def _journeys() -> Iterable[str]:
    yield "## Conversations\n"
    yield "```text"
    yield "client                    supervisor                      child"
    yield "hello              ->"
    yield "                   <-     hello"
    yield "request start      ->     (launch)"
    yield "                          init                     ->"
    yield "                                                   <-     hello, event session_start, ready"
    yield "                   <-     reply"
    yield "request send       ->     request send             ->"
    yield "                                                   <-     event message_accepted, ... turn_end"
    yield "                   <-     reply                    <-     reply"
    yield "request subscribe  ->"
    yield "                   <-     reply, event..., live, delta..., event..."
    yield "```\n"


def _states() -> Iterable[str]:
    yield "## States of a session\n"
    yield from _paragraph("""
        Rows are what can happen, columns are states (`supervisor/core.py`, table `TRANSITIONS`). A dot is an input that
        is legal there and changes nothing; an empty cell cannot happen, and raises.
    """)
    inputs = list(dict.fromkeys(given for _, given in core.TRANSITIONS))
    rows = []
    for given in inputs:
        handlers = [core.TRANSITIONS.get((state, given)) for state in State]
        names = ["" if h is None else h.__name__.removeprefix("_on_").replace("_", " ") for h in handlers]
        rows.append((f"`{given.__name__}`", *("·" if name == "dull" else name for name in names)))
    yield from _table(("input", *(f"`{state.value}`" for state in State)), rows)


def kinds_in_code() -> set[str]:
    """Every frame kind that the code makes or tells apart: ``{"kind": "x"}``, ``frame.kind == "x"``, ``case "x"``."""
    found: set[str] = set()
    for path in SPEAKERS:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                found |= {_text(v) for k, v in pairs if k is not None and _text(k) == "kind"}
            elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "kind":
                found |= {_text(other) for other in node.comparators}
            elif (
                isinstance(node, ast.Match) and isinstance(node.subject, ast.Attribute) and node.subject.attr == "kind"
            ):
                found |= {
                    _text(v.value)
                    for case in node.cases
                    for v in ast.walk(case.pattern)
                    if isinstance(v, ast.MatchValue)
                }
    return found - {""}


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _same(what: str, described: Iterable[str] | Mapping[str, object], real: set[str]) -> None:
    described = set(described)
    if described != real:
        raise SystemExit(
            f"{what}: without words {sorted(real - described)}, not in the code {sorted(described - real)}"
        )


def _paragraph(text: str) -> Iterable[str]:
    yield textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False, break_long_words=False)
    yield ""


def _size(count: int) -> str:
    return f"{count // 1024**2} MiB" if count % 1024**2 == 0 else f"{count // 1024} KiB"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterable[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
