"""Writes docs/protocol.md from the code's own tables, so that the page cannot be about another release.

The words are here, the facts are not: frame kinds, operations and states are read from the code, and one without words
(or words without one) raises. ``tests/test_docs.py`` fails when the page in the repository is stale.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `scripts`, and for Athena where it is not installed

from athena import child, config, runner, session_words, wire  # noqa: E402
from scripts.page_parts import check_same, paragraph, table  # noqa: E402
from scripts.protocol_words import FRAMES, OPERATIONS  # noqa: E402
from supervisor import commands, hub, mailbox, without_child  # noqa: E402
from supervisor.process_commands import PROCESS_COMMANDS  # noqa: E402
from supervisor.registry_commands import REGISTRY_COMMANDS  # noqa: E402
from supervisor.tree_commands import TREE_COMMANDS  # noqa: E402

PAGE = ROOT / "docs" / "protocol.md"

SPEAKERS = (
    "athena/async_processes.py", "athena/async_session.py", "athena/channel.py", "athena/child.py", "athena/client.py",
    "athena/function_child.py", "athena/last_words.py", "athena/mailboxes.py", "athena/process_calls.py",
    "athena/server_child.py", "athena/server_inbox.py", "athena/session.py", "athena/session_words.py",
    "athena/subscriber.py", "athena/wire.py", "supervisor/calls.py", "supervisor/commands.py",
    "supervisor/hub.py", "supervisor/keeper.py", "supervisor/mailbox.py", "supervisor/process_commands.py",
    "supervisor/server.py", "supervisor/server_calls.py", "supervisor/tree_function.py",
)  # fmt: skip
"""The files that make or read frames."""

INTRO = """\
# What goes over the wire?

For those who change the protocol, write a client in another language, or look at a trace. `make docs` writes this page
from the code; change `scripts/protocol_page.py`, not the page.

Both hops speak it: a client and the supervisor over a unix socket, the supervisor and the process of a session, a
function or a server over two pipes. A program under a supervisor has no pipe. What runs in any of them may be a client
besides, and then the supervisor knows by the peer's credentials which process it is.

A frame is a 4-byte big-endian length, a compact JSON header line, a newline, and a body. The header routes; the
supervisor relays the body of what it routes without reading it.
"""


def render() -> str:
    """The whole page."""
    return "\n".join([INTRO, *_limits(), *_frames(), *_operations(), *_journeys()])


def _limits() -> Iterable[str]:
    yield "## Versions and limits\n"
    yield from table(
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
            ("unsent events in a child above which it leaves deltas out", _size(session_words.PIPE_BACKLOG_BYTES)),
            ("messages that wait behind a turn before `Busy`", str(runner.QUEUE_LIMIT)),
            ("messages that a process has not read before `Busy`", _size(mailbox.INBOX_BYTES)),
            ("plain messages that wait for one without an inbox before `Busy`", str(mailbox.MESSAGES_MAX)),
        ],
    )
    yield from paragraph("""
        The length is checked before anything of the frame is read. A frame that is too long, has no header line or an
        unreadable one ends that connection and no other.
    """)


def _frames() -> Iterable[str]:
    check_same("frame kinds", FRAMES, kinds_in_code())
    yield "## Frames\n"
    yield from table(("kind", "way", "header and body"), [(f"`{k}`", *FRAMES[k]) for k in FRAMES])
    yield from paragraph("""
        Replies, notices, interrupts and stops are control frames: they leave before queued events and deltas, and
        between the parts of a long body. An error's body is `{"error": class, "message": text, "data": {...}}`; the
        classes are those of `athena/errors.py`. A pid is `{"pid": number or null, "serial": n, "supervisor": id}`; the
        serial is given once in a supervisor's life.
    """)
    yield from paragraph("""
        What comes to a client unasked (the message of a monitor or a link, a plain one) waits until it is asked for
        with `take`, over whatever connection of the client's process, and is answered. The client says that it has it
        with `confirm`; what is not confirmed when its connection ends, or its request is given up, is there again. So
        nothing is lost with a connection. A plain message has a `number` of the supervisor's, by which one that comes a
        second time is known.
    """)


def _operations() -> Iterable[str]:
    own, relayed = set(commands.COMMANDS), set(commands.RELAYED)
    check_same("operations", OPERATIONS, own | relayed)
    check_same("operations of a child", relayed, set(child._OPS))
    yield "## Operations\n"
    yield "The supervisor answers these itself, so they are answered while a child is frozen. Sessions, and itself:\n"
    others = {**TREE_COMMANDS, **PROCESS_COMMANDS, **REGISTRY_COMMANDS}
    yield from _described(op for op in commands.COMMANDS if op not in others)
    yield from paragraph("""
        Trees. All but the first and `trees` name the supervisor in the header (`tree`), and their body is an object:
    """)
    yield from _described(TREE_COMMANDS)
    yield from paragraph("""
        Processes. `target` in the header is a name, a pid, the number of a live process or `{"via": [registry, key,
        value]}`:
    """)
    yield from _described(PROCESS_COMMANDS)
    yield "Registries. All but the first name one in the header (`registry`):\n"
    yield from _described(REGISTRY_COMMANDS)
    yield "These it relays to the session's child, which answers while a turn runs:\n"
    yield from _described(op for op in OPERATIONS if op in relayed)
    yield from paragraph(f"""
        A relayed request that a death left unanswered is delivered again, under its id, to the next incarnation; all of
        them are safe to repeat, a message by its `message_id`. `messages`, `usage` and `queue` are answered from the
        log if the child is silent for {without_child.SILENT_S * 1000:g} ms. A session's child asks one
        thing of the supervisor over its pipe: `service`.
    """)


def _described(names: Iterable[str]) -> Iterable[str]:
    yield from table(("operation", "what it does"), [(f"`{op}`", OPERATIONS[op]) for op in names])


def _journeys() -> Iterable[str]:
    yield "## Conversations\n"
    yield "```text"
    yield "client                    supervisor                      child"
    yield "hello              ->"
    yield "                   <-     hello"
    yield "request start      ->     (launch)"
    yield "                          init                     ->"
    yield "                                                   <-     trap_exit, event session_start, ready"
    yield "                   <-     reply"
    yield "request send       ->     call send                ->"
    yield "                                                   <-     event message_accepted, ... turn_end"
    yield "                   <-     reply                    <-     reply"
    yield "request subscribe  ->"
    yield "                   <-     reply, event..., live, delta..., event..."
    yield ""
    yield "client                    supervisor                      server"
    yield "                          init                     ->"
    yield "                                                   <-     trap_exit, ready"
    yield "request call       ->     call                     ->"
    yield "                   <-     reply                    <-     reply"
    yield "request monitor    ->"
    yield "                   <-     reply"
    yield "request take       ->"
    yield "                          stop                     ->"
    yield "                                                   <-     exiting"
    yield "                   <-     reply (down)                    (gone)"
    yield "request confirm    ->"
    yield "```\n"
    yield "The states of sessions and supervisors are in [states.md](states.md).\n"


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


def _size(count: int) -> str:
    return f"{count // 1024**2} MiB" if count % 1024**2 == 0 else f"{count // 1024} KiB"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
