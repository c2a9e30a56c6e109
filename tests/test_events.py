"""Events round-trip through their line, and any line is either an event or refused with ``ValueError``."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athena.errors import InvalidSessionId, RecordTooLarge
from athena.events import (
    KINDS,
    MAX_RECORD_BYTES,
    Cursor,
    check_session_id,
    decode,
    encode,
    new_session_id,
    new_uuid,
    now,
)
from athena.messages import clean_json

settings.register_profile("no deadline", deadline=None)  # a slow machine is no failure
settings.load_profile("no deadline")

leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
values = st.recursive(leaves, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4))
objects = st.dictionaries(st.text(), values, max_size=4)
wild_text = st.text(st.characters(exclude_categories=()))


@given(st.integers(1, 2**53), st.sampled_from(sorted(KINDS)), objects, st.none() | st.text())
def test_an_event_survives_its_line(seq: int, kind: str, data: dict[str, Any], turn: str | None) -> None:
    data = orjson.loads(orjson.dumps(data))  # infinities are null in JSON
    event = encode(seq, kind, data, turn)
    assert b"\n" not in event.line
    assert decode(event.line, 999) == event
    assert event.cursor == Cursor(seq, event.uuid)


@given(st.dictionaries(wild_text, wild_text | st.integers(), max_size=4))
def test_cleaned_data_of_any_kind_can_be_encoded(data: dict[str, Any]) -> None:
    event = encode(1, "tool_result", clean_json(data))
    assert decode(event.line, 1) == event


@pytest.mark.parametrize("text", ["\u2028", "\u2029", "\x00", "\x85", "\r\n", "\x7f", "\ufeff", "\U0010ffff"])
def test_odd_characters_stay_and_never_split_a_line(text: str) -> None:
    event = encode(1, "user_message", {"text": text, text: 1})
    assert decode(event.line, 1).data == {"text": text, text: 1}
    assert len(event.line.split(b"\n")) == 1


@given(st.binary() | values.map(orjson.dumps) | objects.map(orjson.dumps))
def test_any_line_is_an_event_or_refused(line: bytes) -> None:
    try:
        event = decode(line, 5)
    except ValueError:
        return
    assert event.line == line
    assert event.seq >= 1


@given(
    st.fixed_dictionaries({"event": st.text()}, optional=dict.fromkeys(["seq", "ts", "uuid", "turn", "data"], values))
)
def test_any_object_with_a_kind_is_an_event(record: dict[str, Any]) -> None:
    event = decode(orjson.dumps(record), 5)
    assert event.event == record["event"]
    assert isinstance(event.ts, str)
    assert isinstance(event.uuid, str)
    assert event.turn is None or isinstance(event.turn, str)
    assert isinstance(event.data, dict)


@pytest.mark.parametrize("own", ["null", "true", "0", "-3", '"4"', "1.0", "1e30", "[]"])
def test_a_line_without_a_usable_seq_takes_the_readers(own: str) -> None:
    assert decode(b'{"event":"x","seq":%s}' % own.encode(), 8).seq == 8


def test_a_line_of_the_reference_has_no_seq() -> None:
    event = decode(b'{"ts":"2026-04-26T12:34:56Z","event":"user_message","uuid":"kY7vZb3eQa0","data":{}}', 3)
    assert (event.seq, event.ts, event.uuid, event.turn) == (3, "2026-04-26T12:34:56Z", "kY7vZb3eQa0", None)


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b"null", b'"event"', b'{"event":1}', b'{"event":"x"', b'{"event":"\xff"}']
)
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(line, 1)


@pytest.mark.parametrize("value", [object(), b"bytes", {1}, "\ud800", 2**64, 1j])
def test_what_json_cannot_carry_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        encode(1, "tool_result", {"value": value})


def test_an_event_over_the_limit_is_refused_with_its_size() -> None:
    with pytest.raises(RecordTooLarge) as caught:
        encode(1, "tool_result", {"text": "x" * MAX_RECORD_BYTES})
    assert caught.value.size_bytes > MAX_RECORD_BYTES


@given(st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True))
def test_a_legal_session_id_is_returned(session_id: str) -> None:
    assert check_session_id(session_id) == session_id


@given(st.text(max_size=140) | st.integers() | st.none() | st.binary())
def test_any_other_session_id_is_refused(session_id: object) -> None:
    legal = isinstance(session_id, str) and re.fullmatch(r"[A-Za-z0-9_\-]{1,128}", session_id) is not None
    if legal:
        assert check_session_id(session_id) == session_id
    else:
        with pytest.raises(InvalidSessionId) as caught:
            check_session_id(session_id)
        assert caught.value.option == "session_id"


@pytest.mark.parametrize("bad", ["", "a\n", "\na", "../a", "a/b", "a.jsonl", "ａ", "a" * 129, "a\x00"])
def test_a_session_id_can_never_be_a_path(bad: str) -> None:
    with pytest.raises(InvalidSessionId):
        check_session_id(bad)


def test_new_ids_are_legal_and_differ() -> None:
    ids = {new_session_id() for _ in range(2000)}
    assert len(ids) == 2000
    assert all(len(check_session_id(i)) == 22 and not i.startswith("-") for i in ids)
    assert len(new_uuid()) == 11


def test_the_time_is_utc_with_microseconds() -> None:
    stamp = now()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stamp)
    assert abs((datetime.fromisoformat(stamp) - datetime.now(UTC)).total_seconds()) < 60
