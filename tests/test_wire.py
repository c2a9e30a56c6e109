"""The wire without I/O: what was framed comes out again, however it is cut, and nothing else does."""

from __future__ import annotations

import struct
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena.errors import ProtocolError
from athena.wire import MAX_ANSWER_BYTES, MAX_FRAME_BYTES, PART_BYTES, Frame, Framer, Outbox, encode

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)  # what JSON can carry: all of Unicode but lone surrogates
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
HEADERS = st.dictionaries(TEXT, VALUES, max_size=4).map(
    lambda h: {k: v for k, v in h.items() if k not in ("part", "more", "kind")} | {"kind": "test"}
)
FRAMES = st.lists(st.tuples(HEADERS, st.binary(max_size=200)), max_size=5)


def outbox_bytes(box: Outbox) -> bytes:
    """Everything that it would write."""
    return b"".join(iter(box.take, None))


def content(frames: list[Frame]) -> list[tuple[dict[str, Any], bytes]]:
    """What matters of frames to their receiver."""
    return [(frame.header, frame.body) for frame in frames]


# --- there and back ---------------------------------------------------------------------------------------------------


@given(FRAMES)
def test_frames_come_out_as_they_went_in(frames: list[tuple[dict[str, Any], bytes]]) -> None:
    raw = b"".join(encode(header, body) for header, body in frames)
    assert content(Framer().feed(raw)) == frames


@given(FRAMES, st.lists(st.integers(0, 2000), max_size=6))
def test_cuts_anywhere_change_nothing(frames: list[tuple[dict[str, Any], bytes]], cuts: list[int]) -> None:
    raw = b"".join(encode(header, body) for header, body in frames)
    framer, found, last = Framer(), [], 0
    for cut in [*sorted(min(c, len(raw)) for c in cuts), len(raw)]:
        found += framer.feed(raw[last:cut])
        last = cut
    assert content(found) == frames
    assert framer.pending_bytes == 0


def test_a_frame_cut_at_every_byte_is_complete_exactly_with_its_last() -> None:
    raw = encode({"kind": "event", "text": "ü\n"}, b"body\n\x00\xff")
    for cut in range(len(raw)):
        framer = Framer()
        assert framer.feed(raw[:cut]) == []
        assert framer.pending_bytes == cut
        (frame,) = framer.feed(raw[cut:])
        assert (frame.header, frame.body, frame.raw) == ({"kind": "event", "text": "ü\n"}, b"body\n\x00\xff", raw)


def test_one_byte_at_a_time_is_as_good_as_all_at_once() -> None:
    raw = encode({"kind": "a"}, b"1") + encode({"kind": "b"}) + encode({"kind": "c"}, b"3")
    framer = Framer()
    kinds = [frame.kind for at in range(len(raw)) for frame in framer.feed(raw[at : at + 1])]
    assert kinds == ["a", "b", "c"]


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, 3 * PART_BYTES + 7])
def test_a_body_of_any_length_arrives_whole(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    box = Outbox()
    box.put({"kind": "event", "seq": 3}, body[:size])
    (frame,) = Framer().feed(outbox_bytes(box))
    assert (frame.header, frame.body) == ({"kind": "event", "seq": 3}, body[:size])
    assert bool(frame.raw) == (size <= PART_BYTES)


def test_an_empty_body_is_no_json_and_a_broken_one_is_an_error() -> None:
    assert Frame({"kind": "x"}).json() is None
    assert Frame({"kind": "x"}, b"[1]").json() == [1]
    with pytest.raises(ProtocolError, match="not JSON"):
        Frame({"kind": "x"}, b"[1").json()


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_oversized_frame_is_refused_from_its_length_before_its_body_is_read() -> None:
    framer = Framer()
    with pytest.raises(ProtocolError, match=str(MAX_FRAME_BYTES)):
        framer.feed(struct.pack("!I", MAX_FRAME_BYTES + 1))
    assert framer.pending_bytes <= 4


def test_an_oversized_body_is_refused_where_it_is_sent() -> None:
    with pytest.raises(ProtocolError, match="limit"):
        encode({"kind": "x"}, bytes(MAX_FRAME_BYTES))
    with pytest.raises(ProtocolError, match="limit"):
        Framer().feed(b"".join(iter(parts(MAX_FRAME_BYTES + 1).take, None)))


def test_an_answer_may_be_larger_than_a_frame() -> None:
    raw = b"".join(iter(parts(MAX_FRAME_BYTES + 1).take, None))
    (frame,) = Framer(max_body_bytes=MAX_ANSWER_BYTES).feed(raw)
    assert (frame.kind, len(frame.body)) == ("x", MAX_FRAME_BYTES + 1)


def parts(size_bytes: int) -> Outbox:
    box = Outbox()
    box.put({"kind": "x"}, bytes(size_bytes))
    return box


def test_a_body_whose_parts_add_up_to_too_much_is_refused() -> None:
    framer = Framer(max_frame_bytes=100)
    framer.feed(encode({"kind": "x", "part": 1, "more": True}, bytes(60)))
    with pytest.raises(ProtocolError, match="limit of 100"):
        framer.feed(encode({"kind": "part", "part": 1, "more": True}, bytes(60)))


def test_many_unfinished_bodies_are_bounded_together() -> None:
    framer = Framer(max_frame_bytes=1000)
    raw = b"".join(encode({"kind": "x", "part": part, "more": True}, bytes(60)) for part in range(100))
    for at in range(0, 1000, 100):
        framer.feed(raw[at : at + 100])
    with pytest.raises(ProtocolError, match="limit of 1000"):
        framer.feed(raw[1000:])


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{}", b'{"kind":"x"}', b"nonsense\n", b"[1]\n", b'"x"\n', b'{"kind":3}\n', b"\n", b"\xff\xfe\n",
        b'{"kind":"x","part":[]}\n', b'{"kind":"x","part":{}}\n',
    ],
)  # fmt: skip
def test_what_is_no_frame_breaks_the_framer_for_good(payload: bytes) -> None:
    framer = Framer()
    with pytest.raises(ProtocolError) as first:
        framer.feed(struct.pack("!I", len(payload)) + payload)
    with pytest.raises(ProtocolError) as second:
        framer.feed(encode({"kind": "fine"}))
    assert second.value is first.value


@given(st.binary(max_size=64))
def test_garbage_never_raises_anything_but_a_protocol_error(garbage: bytes) -> None:
    try:
        frames = Framer().feed(garbage)
    except ProtocolError:
        return
    assert all(isinstance(frame.header, dict) for frame in frames)


@given(st.dictionaries(st.sampled_from(["kind", "part", "more", "id"]), VALUES), st.binary(max_size=20))
def test_a_strange_header_never_raises_anything_but_a_protocol_error(header: dict[str, Any], body: bytes) -> None:
    payload = orjson.dumps(header) + b"\n" + body
    try:
        Framer().feed(struct.pack("!I", len(payload)) + payload)
    except ProtocolError:
        pass


# --- what is written next ---------------------------------------------------------------------------------------------


def test_control_leaves_before_data_that_was_there_first() -> None:
    box = Outbox()
    box.put({"kind": "event"}, b"1")
    box.put({"kind": "event"}, b"2")
    box.put({"kind": "reply"}, b"", control=True)
    box.put({"kind": "stop"}, b"", control=True)
    assert [frame.kind for frame in Framer().feed(outbox_bytes(box))] == ["reply", "stop", "event", "event"]


def test_control_goes_between_the_parts_of_a_long_body() -> None:
    box = Outbox()
    box.put({"kind": "event"}, b"x" * (3 * PART_BYTES))
    framer = Framer()
    assert framer.feed(box.take() or b"") == []
    box.put({"kind": "reply"}, b"now", control=True)
    kinds = []
    while raw := box.take():
        kinds += [(frame.kind, len(frame.body)) for frame in framer.feed(raw)]
    assert kinds == [("reply", 3), ("event", 3 * PART_BYTES)]


def test_two_long_bodies_may_be_mixed() -> None:
    first, second = Outbox(), Outbox()
    first.put({"kind": "a"}, b"a" * (2 * PART_BYTES + 1))
    for _ in range(5):  # other ids than the first one's
        second.put({"kind": "skip"}, bytes(PART_BYTES + 1))
    outbox_bytes(second)
    second.put({"kind": "b"}, b"b" * (2 * PART_BYTES + 1))
    framer, found = Framer(), []
    while first or second:
        for box in (first, second):
            found += framer.feed(box.take() or b"")
    assert [(frame.kind, set(frame.body)) for frame in found] == [("a", {97}), ("b", {98})]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=20))
def test_the_byte_counts_are_those_of_what_is_queued(steps: list[tuple[bool, int]]) -> None:
    box, data, control = Outbox(), 0, 0
    for is_control, size in steps:
        raw = encode({"kind": "x"}, bytes(size * 100))
        box.put_raw(raw, control=is_control)
        control += len(raw) * is_control
        data += len(raw) * (not is_control)
    assert (box.data_bytes, box.control_bytes) == (data, control)
    assert bool(box) == bool(steps)
    box.drop_data()
    assert box.data_bytes == 0
    assert len(outbox_bytes(box)) == control
    assert (box.data_bytes, box.control_bytes, bool(box)) == (0, 0, False)
