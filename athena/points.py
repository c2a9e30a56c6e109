"""Points in a session's history: what names one, and what going back to one has done. Values only, without I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from athena.errors import InvalidOption
from athena.events import Cursor, Event
from athena.messages import clean_text

LABEL_CHARS = 256

Point = int | str | Cursor | Event
"""A seq, a checkpoint's label or a turn's message id, a cursor or checkpoint, or an event."""

RESTORED, DELETED, UNCHANGED, CONFLICT, NOT_KEPT, FAILED = (
    "restored", "deleted", "unchanged", "conflict", "not_kept", "failed"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint(Cursor):
    """A cursor that was recorded as a point to go back to."""

    label: str | None = None


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """What a rewind has done with one file.

    ``outcome``: ``restored``; ``deleted``, as it was not there; ``unchanged``, as it is so already; ``conflict``:
    somebody else had changed it, and it was restored all the same, after their version was kept, or left alone where
    that could not be (``detail`` says so); ``not_kept``: nobody knows any more what it was, and it was left alone;
    ``failed``. ``detail`` says why.
    """

    path: str
    outcome: str
    detail: str | None = None

    def to_map(self) -> dict[str, Any]:
        return {"path": self.path, "outcome": self.outcome, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Rewound:
    """A rewind that is done: its own seq, the seq that it went back to, and its files. Rewinding to ``undo`` undoes
    it."""

    seq: int
    to: int
    files: tuple[FileOutcome, ...] = ()

    @property
    def undo(self) -> int:
        """The last event before it."""
        return self.seq - 1

    def to_map(self) -> dict[str, Any]:
        return {"seq": self.seq, "to": self.to, "undo": self.undo, "files": [file.to_map() for file in self.files]}

    @staticmethod
    def from_map(value: dict[str, Any]) -> Rewound:
        files = (FileOutcome(f["path"], f["outcome"], f.get("detail")) for f in value["files"])
        return Rewound(value["seq"], value["to"], tuple(files))


def point_map(point: Point, option: str = "to") -> dict[str, Any]:
    """``point`` as JSON: ``{"seq", "uuid"}`` or ``{"name"}``. Raises :class:`InvalidOption` for what names no point."""
    if isinstance(point, Event):
        point = point.cursor
    if isinstance(point, Cursor) and type(point.seq) is int and point.seq > 0:
        return {"seq": point.seq, "uuid": point.uuid}
    if type(point) is int and point > 0:
        return {"seq": point, "uuid": None}
    if isinstance(point, str) and point:
        return {"name": clean_text(point)}
    expected = "the seq of an event (from 1), a label, a message id, a cursor, a checkpoint or an event"
    raise InvalidOption(
        f"option {option!r} got {repr(point)[:80]}: expected {expected}",
        option=option,
        value=repr(point)[:80],
        expected=expected,
    )


def check_label(label: object) -> str | None:
    """``label`` if it may name a checkpoint. Raises :class:`InvalidOption`; one of digits would be taken for a seq."""
    if label is None:
        return None
    is_text = isinstance(label, str) and 0 < len(label) <= LABEL_CHARS and "\n" not in label
    if is_text and clean_text(str(label)) == label and not str(label).isdigit():
        return str(label)
    expected = f"1 to {LABEL_CHARS} characters on one line that are not all digits, or None"
    raise InvalidOption(
        f"option 'label' got {label!r}: expected {expected}", option="label", value=repr(label)[:80], expected=expected
    )
