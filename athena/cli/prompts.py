"""Permission requests put to the person at a terminal."""

from __future__ import annotations

import os
import select
from typing import Any

from athena.cli.output import encode, note
from athena.cli.screen import Screen
from athena.errors import AlreadyResolved, AthenaError, NotFound
from athena.events import Event
from athena.loop.permission import Answer
from athena.session import Session

LOOK_S = 0.5
"""How often it is looked whether somebody else has answered meanwhile."""

ARGUMENTS_CHARS = 2_000
"""How much is shown of what is to be allowed; how much more there is, is said."""

REPLIES: dict[str, tuple[Answer, bool]] = {
    "y": ("allow", False), "yes": ("allow", False), "n": ("deny", False), "no": ("deny", False),
    "a": ("allow", True), "always": ("allow", True),
}  # fmt: skip
"""What may be typed: the answer, and whether it holds for the rest of the session."""

HOW = "allow it? y(es), n(o), a(lways in this session)"


def question(row: dict[str, Any]) -> str:
    """What is asked for, in one line. Nothing that matters may be hidden, so a cut is told."""
    arguments = encode(row["arguments"])
    more = len(arguments) - ARGUMENTS_CHARS
    shown = arguments if more <= 0 else f"{arguments[:ARGUMENTS_CHARS]}… and {more} characters more"
    return f"{row['tool']} {shown}"


def tell_how(row: dict[str, Any]) -> None:
    """Show one request and how to answer it."""
    what = "this very command" if row["tool"] == "bash" else f"every {row['tool']}"
    note(question(row), style="bold yellow")
    note(f"{HOW}: {what}", style="yellow")


class Questions:
    """The requests that wait for a person who may type other things meanwhile, the oldest first."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}

    def add(self, row: dict[str, Any]) -> None:
        """One more. Announced again it is the same."""
        if row["request_id"] not in self._rows:
            self._rows[row["request_id"]] = row
            if len(self._rows) == 1:
                tell_how(row)

    def remove(self, request_id: str) -> None:
        """It is resolved. The next one is asked."""
        row = self._rows.pop(request_id, None)
        if row is not None and self._rows:
            tell_how(next(iter(self._rows.values())))

    def reply(self, text: str) -> tuple[str, Answer, bool] | None:
        """If ``text`` answers the oldest: which one, the answer, and whether it is remembered."""
        answer = REPLIES.get(text.lower())
        return (next(iter(self._rows)), *answer) if answer is not None and self._rows else None


class AskingScreen(Screen):
    """A screen whose person is an approver: asked whenever a request is announced, between two items of the stream.

    Whoever answers first wins, so a question that somebody else has answered is taken back. A person who ends the input
    answers nothing: the request stays open.
    """

    approves = True

    def __init__(self, session: Session, *, with_user: bool = False) -> None:
        super().__init__(with_user=with_user)
        self._session = session

    def _permission(self, event: Event) -> None:
        if self._is_open(str(event.data.get("request_id"))):
            self.ask_open()
        else:  # it is long ago
            super()._permission(event)

    def ask_open(self) -> None:
        """Ask for whatever is open now. Returns when nothing is that this person would answer."""
        while rows := self._session.requests():
            self.end_line()
            if not self._ask(rows[0]):
                return

    def _ask(self, row: dict[str, Any]) -> bool:
        """``False``: this person leaves the request to others."""
        tell_how(row)
        while (line := self._typed(row["request_id"])) is not None:
            reply = REPLIES.get(line.strip().lower())
            if reply is None:
                note(HOW, style="yellow")
                continue
            try:
                self._session.answer(row["request_id"], reply[0], remember=reply[1])
            except (AlreadyResolved, NotFound) as error:
                note(error.message, style="yellow")
            except AthenaError as error:
                note(f"could not answer: {error.message}", style="red")
                continue
            return True
        return not self._is_open(row["request_id"])

    def _typed(self, request_id: str) -> str | None:
        """What is typed next, or ``None``: the request is not open any more, or the input has ended.

        Not with ``sys.stdin``, whose buffer would keep what is meant for the next prompt.
        """
        while not select.select([0], [], [], LOOK_S)[0]:
            if not self._is_open(request_id):
                note("it was answered, or closed, elsewhere", style="yellow")
                return None
        data = os.read(0, 4096)
        if not data:
            note("the request stays open; Ctrl-C ends the turn")
        return data.decode(errors="replace") if data else None

    def _is_open(self, request_id: str) -> bool:
        return any(row["request_id"] == request_id for row in self._session.requests())
