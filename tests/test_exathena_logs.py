"""Logs written by ExAthena are read, continued and never rewritten."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from athena.events import Event, encode
from athena.messages import Message, ToolCall, ToolResult
from athena.stores.base import Damage
from athena.stores.jsonl import JsonlStore
from athena.testing.store_contract import append_events

DATA = Path(__file__).parent / "data" / "exathena"
MESSAGE_KINDS = ("user_message", "assistant_message", "tool_result", "system_message")


def rebuild(events: Iterable[Event]) -> list[Message]:
    return [Message.from_map(e.data["message"]) for e in events if e.event in MESSAGE_KINDS]


@pytest.fixture
def store(tmp_path: Path) -> JsonlStore:
    for file in DATA.glob("*.jsonl"):
        shutil.copy(file, tmp_path)
    return JsonlStore(tmp_path)


def test_the_conversation_is_rebuilt_with_calls_results_and_payloads(store: JsonlStore) -> None:
    arguments = {"jqlQuery": "status = Open", "größe": 3}
    payload = {"path": "/srv/demo/mix.exs", "content": "defmodule Demo.MixProject do\n", "line_range": None}
    read = ToolResult("c1", "1\tdefmodule Demo.MixProject do", ui_payload={"kind": "file", "payload": payload})
    calls = (ToolCall("c1", "read", {"path": "mix.exs"}), ToolCall("c2", "mcp__jira__search", arguments))
    assert rebuild(store.read("tools")) == [
        Message("user", "read mix.exs and deploy"),
        Message("system", "How we deploy: run the checks first.", name="skill:deploy"),
        Message("assistant", "", tool_calls=calls),
        Message("tool", tool_results=(read,)),
        Message("tool", tool_results=(ToolResult("c2", "connection refused", is_error=True),)),
        Message("assistant", "It is Demo’s project file; Jira does not answer."),
        Message("user", [{"type": "text", "text": "and now?"}]),
        Message("assistant", "Nothing to do."),
    ]


def test_lines_without_a_seq_are_numbered_by_counting(store: JsonlStore) -> None:
    events = list(store.read("tools"))
    assert [e.seq for e in events] == list(range(1, 11))
    assert store.tail("tools", 3) == events[-3:]
    assert list(store.read("tools", 7)) == events[7:]
    assert events[0].uuid == "kY7vZb3eQa0"


def test_our_events_continue_the_numbers_and_the_old_bytes_stay(store: JsonlStore) -> None:
    before = store.path("tools").read_bytes()
    log = store.open("tools")
    assert log.last_seq == 10
    ours = append_events(log, 3)
    log.close()
    assert store.path("tools").read_bytes() == before + b"".join(e.line + b"\n" for e in ours)
    events = list(store.read("tools"))
    assert [e.seq for e in events] == list(range(1, 14))
    for count in (1, 3, 4, 13):
        assert store.tail("tools", count) == events[-count:]
    for after in range(14):
        assert list(store.read("tools", after)) == events[after:]


def test_theirs_after_ours_are_numbered_on(store: JsonlStore) -> None:
    log = store.open("tools")
    append_events(log, 1)
    log.close()
    with store.path("tools").open("ab") as file:
        file.write(b'{"event":"user_message","data":{}}\n')
    log = store.open("tools")
    assert log.last_seq == 12
    log.append(encode(13, "user_message", {}))
    assert [e.seq for e in store.tail("tools", 3)] == [11, 12, 13]
    log.close()


def test_a_long_mixed_log_is_read_from_any_place(tmp_path: Path) -> None:
    store = JsonlStore(tmp_path)
    theirs = b"".join(b'{"event":"user_message","uuid":"%d","data":{"pad":"%200d"}}\n' % (n, n) for n in range(2000))
    store.path("a").write_bytes(theirs)
    log = store.open("a")
    append_events(log, 2000, pad="x" * 200)
    log.close()
    for after in (0, 1, 500, 1999, 2000, 2001, 3500, 3999, 4000):
        assert [e.seq for e in store.read("a", after)] == list(range(after + 1, 4001))
    assert [e.seq for e in store.tail("a", 2500)] == list(range(1501, 4001))


def test_a_whole_last_line_without_newline_is_completed_not_moved(store: JsonlStore) -> None:
    before = store.path("unfinished").read_bytes()
    assert len(list(store.read("unfinished"))) == 2
    log = store.open("unfinished")
    assert (log.damage, log.last_seq) == (Damage(), 3)
    assert store.path("unfinished").read_bytes() == before + b"\n"
    assert [m.content for m in rebuild(log.read())] == ["hello", "hi"]
    log.close()


def test_damage_costs_the_damaged_lines_and_nothing_else(store: JsonlStore) -> None:
    log = store.open("damaged")
    events = list(log.read())
    assert [(e.seq, e.event) for e in events[-2:]] == [(3, "episodic_note"), (4, "user_message")]
    assert events[2].data == {"anything": [1, 2, {"deep": None}]}
    assert b'"shard":4' in events[2].line
    assert (log.damage.bad_lines, log.damage.torn_bytes > 0) == (2, True)
    assert [m.content for m in rebuild(events)] == ["one", "two"]
    assert log.last_seq == 4
    log.close()
    assert store.verify("damaged") == Damage(bad_lines=2)


def test_the_samples_are_read_where_they_lie() -> None:
    assert JsonlStore(DATA).list() == ["damaged", "tools", "unfinished"]
