"""Messages round-trip through their maps, and whatever text comes in, UTF-8 can carry what goes out."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athena.errors import InvalidOption
from athena.messages import (
    MAX_DEPTH,
    ROLES,
    Message,
    ToolCall,
    ToolResult,
    Usage,
    clean_json,
    clean_text,
    cleaned,
    new_call_id,
)

settings.register_profile("no deadline", deadline=None)  # a slow machine is no failure
settings.load_profile("no deadline")

any_text = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates too
good_text = st.text(max_size=40)


def json_values(text: st.SearchStrategy[str], whole: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | whole | st.floats(allow_nan=False, allow_infinity=False) | text
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4))


good_json = json_values(good_text, st.integers(-(2**63), 2**64 - 1))
wild_json = json_values(any_text, st.integers())
good_objects = st.dictionaries(good_text, good_json, max_size=3)


def messages(text: st.SearchStrategy[str], objects: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Message]:
    nonempty = text.filter(bool)
    calls = st.builds(ToolCall, nonempty, text, objects, st.none() | text)
    results = st.builds(ToolResult, text, text, st.booleans(), st.none() | objects)
    parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": text}), max_size=2)
    return st.builds(
        Message,
        role=st.sampled_from(ROLES),
        content=st.none() | text | parts,
        tool_calls=st.lists(calls, max_size=2).map(tuple),
        tool_results=st.lists(results, max_size=2).map(tuple),
        name=st.none() | text,
        reasoning=st.none() | text,
        pin=st.booleans(),
    )


@given(messages(good_text, good_objects))
def test_a_message_survives_its_json_form(message: Message) -> None:
    assert Message.from_map(orjson.loads(orjson.dumps(message.to_map()))) == message
    assert cleaned(message) == message


@given(messages(any_text, st.dictionaries(any_text, wild_json, max_size=3)))
def test_a_cleaned_message_can_always_be_encoded(message: Message) -> None:
    safe = cleaned(message)
    assert Message.from_map(orjson.loads(orjson.dumps(safe.to_map()))) == safe
    assert cleaned(safe) == safe


@given(good_text)
def test_good_text_is_left_alone(text: str) -> None:
    assert clean_text(text) is text


@given(any_text)
def test_clean_text_loses_lone_surrogates_only(text: str) -> None:
    result = clean_text(text)
    result.encode("utf-8")
    kept = [c for c in text if not "\ud800" <= c <= "\udfff" and c <= "\uffff" and c != "\ufffd"]
    assert [c for c in result if c <= "\uffff" and c != "\ufffd"] == kept


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\ud800b", "a\ufffdb"),
        ("\udc00", "\ufffd"),
        ("end\ud83d", "end\ufffd"),
        ("\ud83d\ude00!", "😀!"),
        ("\udcff\x00\u2028", "\ufffd\x00\u2028"),
    ],
)
def test_surrogates_are_joined_or_replaced(text: str, expected: str) -> None:
    assert clean_text(text) == expected


@given(wild_json)
def test_clean_json_is_what_comes_back_from_json(value: Any) -> None:
    safe = clean_json(value)
    assert orjson.loads(orjson.dumps(safe)) == safe


@given(good_json)
def test_clean_json_leaves_good_values_alone(value: Any) -> None:
    assert clean_json(value) == value


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**100])
def test_an_int_beyond_64_bits_becomes_its_digits(number: int) -> None:
    assert clean_json([number, {"n": number}]) == [str(number), {"n": str(number)}]


def test_an_int_too_long_for_decimal_becomes_hexadecimal() -> None:
    assert clean_json(16**10_000) == "0x1" + "0" * 10_000


def test_nesting_without_end_is_cut_with_a_note() -> None:
    deep: Any = "bottom"
    for _ in range(900):
        deep = [deep]
    text = orjson.dumps({"data": {"message": {"tool_calls": [{"arguments": clean_json(deep)}]}}}).decode()
    assert f"deeper than {MAX_DEPTH} levels" in text


def test_clean_json_makes_tuples_lists_and_keys_text() -> None:
    assert clean_json({1: (1, 2), None: "\ud800"}) == {"1": [1, 2], "None": "\ufffd"}


def test_what_is_no_json_is_left_to_the_encoder_to_refuse() -> None:
    assert clean_json({"v": b"raw"}) == {"v": b"raw"}
    assert math.isnan(clean_json(math.nan))


@pytest.mark.parametrize("role", [None, "robot", 3, "User"])
def test_a_message_without_a_legal_role_is_refused(role: object) -> None:
    with pytest.raises(InvalidOption, match="role"):
        Message.from_map({"role": role, "content": "x"})


def test_null_fields_of_the_reference_read_as_absent() -> None:
    nulls = {"content": None, "name": None, "tool_calls": None, "tool_results": None}
    assert Message.from_map({"role": "assistant", **nulls}) == Message("assistant")
    assert ToolResult.from_map({"tool_call_id": "c", "content": None, "is_error": None}) == ToolResult("c", "")
    assert Usage.from_map(None) == Usage()


def test_the_text_of_parts_leaves_out_what_is_no_text() -> None:
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": "a"},
        {"type": "image", "data": "zzz"},
        {"type": "text", "text": None},
        {"type": "text"},
    ]
    assert Message("user", parts).text == "a"
    assert Message("user").text == ""


counts = st.integers(0, 2**40)
usages = st.builds(Usage, counts, counts, counts, counts, st.none() | st.floats(0, 1000))


@given(usages, usages)
def test_usage_adds_up_and_round_trips(a: Usage, b: Usage) -> None:
    assert Usage.from_map(orjson.loads(orjson.dumps(a.to_map()))) == a
    total = a + b
    assert total.input_tokens == a.input_tokens + b.input_tokens
    assert (total.cost_usd is None) == (a.cost_usd is None and b.cost_usd is None)


def test_call_ids_have_the_references_shape_and_differ() -> None:
    ids = {new_call_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(i.startswith("call_") and len(i) == 17 for i in ids)
