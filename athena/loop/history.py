"""The fold of what goes back or branches off: checkpoints, rewinds, forks, compactions, and edits of files. Pure.

None of these changes a log. Each is an event after which the history is another one; what it was before stays, so that
a rewind can be undone by one more rewind.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, NamedTuple

from athena.events import Event
from athena.messages import Message, Usage

if TYPE_CHECKING:
    from athena.loop.state import SessionState

SUMMARY_NAME = "compactor_summary"
"""The name of a message that stands for earlier ones, as the reference has it."""


class Mark(NamedTuple):
    """After the event ``seq`` the history was the first ``length`` of ``messages``."""

    seq: int
    messages: list[Message]
    length: int


@dataclass(slots=True)
class Timeline:
    """The history after each event that ended a step or changed it otherwise.

    A mark shares the list that the history grows in: what is before a complete step is only ever added to, and what
    goes back begins a list of its own.
    """

    marks: list[Mark] = field(default_factory=list)

    def mark(self, seq: int, messages: list[Message]) -> None:
        """The history after the event ``seq``, in which no call is open."""
        self.marks.append(Mark(seq, messages, len(messages)))

    def at(self, seq: int) -> list[Message]:
        """The history as it was after the event ``seq``, as a list of its own. A point inside a step means its start:
        a call is never cut from its results."""
        mark = self._before(seq)
        return [] if mark is None else _without_open_step(mark.messages[: mark.length])

    def mark_at(self, seq: int) -> int:
        """The seq of the event that the history after the event ``seq`` is of; 0 for none."""
        mark = self._before(seq)
        return 0 if mark is None else mark.seq

    def _before(self, seq: int) -> Mark | None:
        place = bisect_right(self.marks, seq, key=lambda mark: mark.seq)
        return self.marks[place - 1] if place else None


@dataclass(frozen=True, slots=True)
class Content:
    """What a file was. ``ref`` names its bytes, ``not_kept`` says why there are none."""

    mode: int
    sha256: str | None = None
    ref: str | None = None
    size_bytes: int | None = None
    not_kept: str | None = None

    @staticmethod
    def from_map(value: dict[str, Any] | None) -> Content | None:
        """``None`` for a file that was not there. Raises ``KeyError``, ``TypeError``."""
        if value is None:
            return None
        return Content(
            int(value["mode"]), value.get("sha256"), value.get("ref"), value.get("size_bytes"), value.get("not_kept")
        )


@dataclass(frozen=True, slots=True)
class FileEdit:
    """A file that was about to be changed: what it was, and what it was to become (``None``: absent)."""

    seq: int
    path: str
    before: Content | None
    after: str | None
    """The SHA-256 of its bytes."""
    outcome: str | None = None
    """Of a rewind's own edits: what it counts as."""


@dataclass(frozen=True, slots=True)
class Restoring:
    """A rewind whose files are not all back yet: ``to`` what they were behind the event of this seq."""

    seq: int
    to: int


@dataclass(slots=True)
class Rewind:
    """A rewind that was recorded. ``files`` is its report, ``None`` while it is not done; ``done_seq`` that of the
    event that says it is."""

    seq: int
    to: int
    files: list[dict[str, Any]] | None = None
    done_seq: int | None = None


def changed_files(edits: Iterable[FileEdit], after: int, before: int) -> dict[str, FileEdit]:
    """By path, the first edit between two seqs: what the file was at the first of them."""
    first: dict[str, FileEdit] = {}
    for edit in edits:
        if after < edit.seq < before:
            first.setdefault(edit.path, edit)
    return first


def last_edit(edits: Sequence[FileEdit], path: str) -> FileEdit:
    """The last edit of a file that has one: what we have left it as."""
    return next(edit for edit in reversed(edits) if edit.path == path)


def kept_ranges(state: SessionState, turns_back: Iterable[tuple[int, int]]) -> list[range]:
    """The seqs of the events that made the history of ``state``, in order; ``turns_back`` are the seq of each rewind
    and fork, and the one that it went back to."""
    found, last = [], state.cursor.seq
    for seq, to in sorted(turns_back, reverse=True):
        if seq <= last:
            found.append(range(seq, last + 1))
            last = state.timeline.mark_at(to)
    return [range(1, last + 1), *reversed(found)]


def turn_back(event: Event) -> tuple[int, int] | None:
    """The seq of an event after which the history is an older one, and the seq of that."""
    to = event.data.get("to") if event.event == "rewind" else event.seq - 1 if event.event == "fork" else None
    return (event.seq, to) if type(to) is int and 0 < to < event.seq else None


# --- one function for each kind --------------------------------------------------------------------------------------


def fold_checkpoint(state: SessionState, event: Event) -> None:
    """A point that somebody may want to go back to. Of two with one label the later one has it."""
    label = event.data.get("label")
    if isinstance(label, str):
        state.labels[label] = event.cursor


def fold_rewind(state: SessionState, event: Event) -> None:
    """The history is what it was at ``to``. What was spent, answered or waits is not undone by it."""
    to, number = event.data["to"], str(event.data.get("id") or event.seq)
    if type(to) is not int or not 0 < to < event.seq:
        raise ValueError("a rewind to no event before it")
    state.messages = state.timeline.at(to)
    wants_files = bool(event.data.get("files"))
    state.restoring = Restoring(event.seq, _files_at(state, to)) if wants_files else None
    state.rewinds[number] = Rewind(event.seq, to, None if wants_files else [])


def fold_files_restored(state: SessionState, event: Event) -> None:
    """A rewind is done with its files."""
    for rewind in state.rewinds.values():
        if rewind.seq == event.data["rewind"]:
            rewind.files, rewind.done_seq = list(event.data["files"]), event.seq
    if state.restoring is not None and state.restoring.seq == event.data["rewind"]:
        state.restoring = None


def fold_file_edit(state: SessionState, event: Event) -> None:
    """A file is about to change. What it was is kept already."""
    data = event.data
    before, after = Content.from_map(data["before"]), data["after"]
    state.edits.append(FileEdit(event.seq, str(data["path"]), before, after, data.get("outcome")))


def fold_fork(state: SessionState, event: Event) -> None:
    """What comes from here on is another session's than what came before.

    It has the history, and its answers. What was open or waited is the parent's to carry out, and was spent by it.
    """
    state.messages = state.timeline.at(event.seq - 1)
    state.turn = None
    state.queue.clear()
    state.receipts = {k: v for k, v in state.receipts.items() if k in state.ended or k in state.cancelled}
    state.usage = Usage()
    state.restoring = None
    state.rewinds = {seq: rewind for seq, rewind in state.rewinds.items() if rewind.files is not None}


def fold_compaction(state: SessionState, event: Event) -> None:
    """From here on the model gets other messages: ``messages``, or a ``summary`` in the place of the first
    ``kept_from`` that there were."""
    data = event.data
    if state.turn is not None and state.turn.open_calls:
        raise ValueError("a compaction inside a step")
    if "messages" in data:
        state.messages = [Message.from_map(message) for message in data["messages"]]
        return
    summary, kept_from = data["summary"], data["kept_from"]
    if type(kept_from) is not int or not 0 <= kept_from <= len(state.messages):
        raise ValueError("kept_from is no place in the history")
    said = Message("assistant", summary, name=SUMMARY_NAME) if isinstance(summary, str) else Message.from_map(summary)
    kept = dropwhile(lambda message: message.role == "tool", state.messages[kept_from:])  # results without their calls
    state.messages = [said, *kept]


def _files_at(state: SessionState, seq: int) -> int:
    """The seq behind which files were as they are to be for the history at ``seq``: a step's edits are undone with it,
    and a rewind is one with what it did to files."""
    for rewind in state.rewinds.values():
        if rewind.done_seq is not None and rewind.seq <= seq <= rewind.done_seq:
            return rewind.done_seq
    return state.timeline.mark_at(seq)


def _without_open_step(messages: list[Message]) -> list[Message]:
    """``messages`` without a last answer whose calls have not all results; logs of ExAthena have no turns that tell."""
    results, place = 0, len(messages) - 1
    while place >= 0 and messages[place].role == "tool":
        results += len(messages[place].tool_results)
        place -= 1
    is_open = place >= 0 and messages[place].role == "assistant" and len(messages[place].tool_calls) > results
    return messages[:place] if is_open else messages
