"""The text of a session's running step so far, kept for subscribers who come late or have missed some. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from athena.wire import Frame

JOIN_PIECES = 256
"""After so many deltas their text is kept as one: a piece of few characters costs twenty times its text."""

PARTIAL_BYTES = 8 * 1024 * 1024
"""Text of the running step above which its beginning is forgotten; the recorded message will have it."""


@dataclass(slots=True)
class Partial:
    """The text of the running step so far, for those who come late or have missed some."""

    key: tuple[object, object, object] = (None, None, None)
    """Turn, step and attempt: a new attempt voids the old text."""
    generation: int = 0
    """Which text this is; a later one has nothing to do with it."""
    pieces: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    """By type: offset in characters, and text."""
    size_bytes: int = 0
    fresh: int = 0
    """Deltas since pieces were joined last."""

    def add(self, frame: Frame) -> None:
        """Keep one delta."""
        header = frame.header
        key = (header.get("turn"), header.get("step"), header.get("attempt"))
        if key != self.key:
            self.clear()
            self.key = key
        pieces = self.pieces.setdefault(str(header.get("type")), [])
        pieces.append((int(header.get("offset") or 0), frame.body))
        self.size_bytes += len(frame.body)
        self.fresh += 1
        if self.fresh >= JOIN_PIECES:
            self._join()
        while self.size_bytes > PARTIAL_BYTES and len(pieces) > 1:
            self.size_bytes -= len(pieces.pop(0)[1])

    def _join(self) -> None:
        """Each type's latest pieces, which may include some that were joined before."""
        for pieces in self.pieces.values():
            latest = pieces[-self.fresh :]
            pieces[-self.fresh :] = [(latest[0][0], b"".join(body for _, body in latest))]
        self.fresh = 0

    def clear(self) -> None:
        """The step is recorded: its text is in the log now."""
        self.pieces = {}
        self.size_bytes = self.fresh = 0
        self.generation += 1

    def frames(self, session: str, missed: dict[str, int] | None) -> Iterator[tuple[dict[str, object], bytes]]:
        """The partial text as one delta for each type: of the types ``missed``, from there, or for ``None`` all of it.
        It may begin a little before that; the client drops what it has."""
        turn, step, attempt = self.key
        for kind, pieces in self.pieces.items():
            if missed is not None and kind not in missed:
                continue
            since = 0 if missed is None else missed[kind]
            first = max((i for i, (offset, _) in enumerate(pieces) if offset <= since), default=0)
            offset = pieces[first][0]
            pieces[first:] = [(offset, b"".join(body for _, body in pieces[first:]))]
            header = {"kind": "delta", "session": session, "turn": turn, "step": step, "attempt": attempt}
            yield {**header, "offset": offset, "type": kind}, pieces[first][1]
