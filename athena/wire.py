"""The one protocol of both hops, without I/O (design: the wire).

A frame is a 4-byte big-endian length, then a compact JSON header line, a newline, then an opaque body. The header
routes; the body is relayed untouched and is, for an event, the log line itself.

:class:`Framer` turns received bytes into frames, :func:`encode` makes bytes of one frame, :class:`Outbox` decides
what is written next: control before data, long bodies in parts, so that a reply never waits behind a large event.
"""

from __future__ import annotations

import itertools
import struct
from collections import deque
from dataclasses import dataclass
from typing import Any

import orjson

from athena.errors import ProtocolError

PROTOCOL = 1
"""Raised on purpose when frames or operations change so that older peers would misread them."""

MAX_FRAME_BYTES = 64 * 1024 * 1024
PART_BYTES = 256 * 1024
"""Bodies above this travel in parts."""

MAX_ANSWER_BYTES = 1024 * 1024 * 1024
"""The largest body in parts that a child or a supervisor may answer with: a whole history has no other bound. What is
asked, and every event, is under :data:`MAX_FRAME_BYTES`."""

BODIES_AT_ONCE = 2
"""An :class:`Outbox` has no more under way in parts: one of control and one of data."""

_LENGTH = struct.Struct("!I")

Header = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame. ``raw`` is its bytes as received, for relaying, or empty if it came in parts."""

    header: Header
    body: bytes = b""
    raw: bytes = b""

    @property
    def kind(self) -> str:
        return str(self.header.get("kind"))

    def json(self) -> Any:
        """The body as JSON; an empty body is ``None``. Raises :class:`ProtocolError`."""
        if not self.body:
            return None
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise ProtocolError(f"the body of a {self.kind!r} frame is not JSON: {error}") from None


def encode(header: Header, body: bytes = b"") -> bytes:
    """The bytes of one frame. Raises :class:`ProtocolError` above :data:`MAX_FRAME_BYTES`."""
    head = orjson.dumps(header)
    length = len(head) + 1 + len(body)
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES} bytes")
    return b"".join((_LENGTH.pack(length), head, b"\n", body))


def dumps(value: Any) -> bytes:
    """JSON for a body."""
    return orjson.dumps(value)


def loads(raw: bytes) -> Any:
    """What :func:`dumps` made."""
    return orjson.loads(raw)


class Framer:
    """Bytes in, frames out. After a :class:`ProtocolError` it stays broken: the peer's next byte has no meaning."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES, max_body_bytes: int | None = None) -> None:
        self._buffer = bytearray()
        self._max = max_frame_bytes
        self._max_body = max_frame_bytes if max_body_bytes is None else max_body_bytes
        self._parts: dict[int, tuple[Header, list[bytes], int]] = {}
        self._parts_bytes = 0
        self._error: ProtocolError | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """All frames that are complete with ``data``. Raises :class:`ProtocolError`, before reading a body that is too
        long."""
        if self._error is not None:
            raise self._error
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start, end = 0, len(buffer)
        try:
            while end - start >= 4:
                (length,) = _LENGTH.unpack_from(buffer, start)
                if length > self._max:
                    raise ProtocolError(f"a frame of {length} bytes is over the limit of {self._max} bytes")
                stop = start + 4 + length
                if stop > end:
                    break
                frame = self._whole(_parse(bytes(buffer[start:stop])))
                if frame is not None:
                    frames.append(frame)
                start = stop
        except ProtocolError as error:
            self._error = error
            raise
        if start:
            del buffer[:start]
        return frames

    @property
    def pending_bytes(self) -> int:
        """Bytes of frames that are not complete yet: at end of stream, more than 0 means it was cut."""
        return len(self._buffer) + self._parts_bytes

    def _whole(self, frame: Frame) -> Frame | None:
        """``frame`` if it is complete, the joined frame if it was the last part, else ``None``."""
        part = frame.header.get("part")
        if part is None:
            return frame
        if not isinstance(part, int):
            raise ProtocolError(f"a part's number is {part!r}, no integer")
        header, pieces, size = self._parts.pop(part, (frame.header, [], 0))
        size += len(frame.body)
        self._parts_bytes += len(frame.body)
        if size > self._max_body or self._parts_bytes > BODIES_AT_ONCE * self._max_body:
            raise ProtocolError(f"bodies in parts are over the limit of {self._max_body} bytes")
        pieces.append(frame.body)
        if frame.header.get("more"):
            self._parts[part] = (header, pieces, size)
            return None
        self._parts_bytes -= size
        return Frame({k: v for k, v in header.items() if k not in ("part", "more")}, b"".join(pieces))


def _parse(raw: bytes) -> Frame:
    cut = raw.find(b"\n", 4)
    if cut < 0:
        raise ProtocolError("a frame has no header line")
    try:
        header = orjson.loads(raw[4:cut])
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"a frame's header is not JSON: {error}") from None
    if not isinstance(header, dict) or not isinstance(header.get("kind", "part"), str):
        raise ProtocolError("a frame's header is not an object with a kind")
    return Frame(header, raw[cut + 1 :], raw)


class Outbox:
    """What is waiting to be written to one peer, without I/O.

    Control frames (replies, interrupts, stops) leave before data frames (events, deltas), between the parts of a long
    body too. The owner asks :attr:`data_bytes` before it adds data: what to do when the bound is reached is the owner's
    policy (a child waits, a subscriber is told ``lagged``).
    """

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._data: deque[bytes] = deque()
        self._ids = itertools.count(1)
        self.data_bytes = 0
        self.control_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._control or self._data)

    def put(self, header: Header, body: bytes = b"", *, control: bool = False) -> None:
        """Queue a frame, in parts if its body is long."""
        for piece in self._pieces(header, body):
            self.put_raw(piece, control=control)

    def put_raw(self, raw: bytes, *, control: bool = False) -> None:
        """Queue bytes that are whole frames already."""
        if control:
            self._control.append(raw)
            self.control_bytes += len(raw)
        else:
            self._data.append(raw)
            self.data_bytes += len(raw)

    def take(self) -> bytes | None:
        """The next bytes to write, or ``None``. One part at a time, so that control can go in between."""
        if self._control:
            raw = self._control.popleft()
            self.control_bytes -= len(raw)
            return raw
        if self._data:
            raw = self._data.popleft()
            self.data_bytes -= len(raw)
            return raw
        return None

    def drop_data(self) -> None:
        """Forget all queued data frames (a subscriber that lagged reads them from the log again)."""
        self._data.clear()
        self.data_bytes = 0

    def _pieces(self, header: Header, body: bytes) -> list[bytes]:
        if len(body) <= PART_BYTES:
            return [encode(header, body)]
        if len(body) > MAX_ANSWER_BYTES:
            raise ProtocolError(f"a body of {len(body)} bytes is over the limit of {MAX_ANSWER_BYTES} bytes")
        part = next(self._ids)
        cuts = range(0, len(body), PART_BYTES)
        first = encode({**header, "part": part, "more": True}, body[:PART_BYTES])
        rest = [
            encode(
                {"kind": "part", "part": part, **({"more": True} if at != cuts[-1] else {})}, body[at : at + PART_BYTES]
            )
            for at in cuts[1:]
        ]
        return [first, *rest]
