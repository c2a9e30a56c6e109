"""Running turns from the command line: start, follow, interrupt."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from athena.cli.border import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, UsageError
from athena.cli.flags import StartFlags
from athena.cli.lookup import daemon, is_stored, stored_state
from athena.cli.output import emit, note, write
from athena.cli.screen import Screen, summary
from athena.errors import AthenaError
from athena.events import Event
from athena.loop.result import Result
from athena.loop.state import SessionState
from athena.session import Session, Turn, one_turn
from athena.subscriber import Item


class Interrupter:
    """While a turn is followed: the first Ctrl-C ends the turn, the second leaves (``KeyboardInterrupt``).

    The handler does not raise the first time, so what is being received is not lost and the turn's end is still shown.
    """

    def __init__(self, end_turn: Callable[[], object]) -> None:
        self._end_turn = end_turn
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> Interrupter:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        # In a thread: a handler runs between two steps of the main one, which may hold what a call needs.
        threading.Thread(target=self._ask, name="interrupt", daemon=True).start()

    def _ask(self) -> None:
        try:
            self._end_turn()
        except AthenaError as error:
            note(f"could not interrupt: {error}", style="red")


def start(options: dict[str, Any], *, linked: bool) -> Session:
    """Start a session on the daemon, which is started if need be. A linked one ends with this command."""
    begin = Session.start_link if linked else Session.start
    return begin(supervisor=daemon(autostart=True), **options)


def options_of(flags: StartFlags) -> dict[str, Any]:
    """The options to start with: of a new session, or of the log that ``--session-id`` names."""
    given = flags.options()
    session_id = given.get("session_id")
    if isinstance(session_id, str) and is_stored(session_id):
        return recorded(session_id, given)[0]
    return flags.options_for_new()


def recorded(session_id: str, flags: dict[str, Any]) -> tuple[dict[str, Any], SessionState]:
    """The options to continue a log with, and what it says. ``flags`` override what was recorded.

    The recorded working directory is given again: without it the library would take this command's.
    """
    state = stored_state(session_id)
    if flags.get("session_id", session_id) != session_id:
        raise UsageError(f"the log to continue is {session_id!r} and, by --session-id, {flags['session_id']!r}")
    options = {**flags, "session_id": session_id}
    if state.options.get("cwd"):
        options.setdefault("cwd", state.options["cwd"])
    if not state.options.get("provider") and "provider" not in options:  # a log of another program's
        raise UsageError(f"the log of session {session_id!r} names no provider; give --provider")
    return options, state


def ask(session: Session, text: str, *, screen: Screen | None) -> Result:
    """One message and its turn, followed on ``screen``. Ctrl-C ends the turn, or takes the message back if it waits.

    The person at a screen that approves is an approver from before the message is sent.
    """
    if screen is None or not screen.approves:
        return follow(session, session.submit(text), screen)
    with session.events(approver=True) as stream:
        turn = session.submit(text)
        return follow(session, turn, screen, one_turn(stream, turn.message_id))


def follow(session: Session, turn: Turn, screen: Screen | None, items: Iterator[Item] | None = None) -> Result:
    """The turn's result, with its stream on ``screen`` until then."""

    def end_turn() -> None:
        if not turn.cancel():
            session.interrupt()

    with Interrupter(end_turn):
        try:
            if screen is not None:
                for item in items or turn.events(approver=screen.approves):
                    screen.show(item)
            return turn.result()
        finally:
            if screen is not None:
                screen.end_line()


def follow_open(session: Session, state: SessionState, screen: Screen | None) -> Result | None:
    """Follow what a continued log still owes: its open turn, then its queue. The last result, or ``None``."""
    waiting = [state.turn.message_id] if state.turn is not None else []
    waiting += [accepted.message_id for accepted in state.queue]
    result = None
    for message_id in waiting:
        receipt = state.receipts.get(message_id)
        if receipt is None:
            continue  # the log lost the line that accepted it
        if screen is not None:
            note("a turn was open; it goes on (Ctrl-C ends it)")
        result = follow(session, Turn(session, message_id, receipt.seq), screen)
    return result


def follow_running(session: Session, screen: Screen) -> None:
    """Follow the turn that runs now, whoever asked for it, to its end."""
    with session.events(approver=screen.approves) as stream, Interrupter(session.interrupt):
        turn = session.status().get("turn")
        if turn is None:
            return
        note(f"turn {turn} is running; Ctrl-C ends it")
        screen.ask_open()
        for item in stream:  # it began before the question, so the end of that turn is in it
            screen.show(item)
            if isinstance(item, Event) and item.event in ("turn_end", "session_end") and item.turn in (turn, None):
                return


def report(result: Result, *, as_json: bool, streamed: bool) -> int:
    """Print a result as asked for; the exit code."""
    if as_json:
        emit(result.to_map())
    else:
        if not streamed and result.text is not None:
            write(result.text if result.text.endswith("\n") else result.text + "\n")
        summary(result)
    return code_of(result)


def code_of(result: Result) -> int:
    """The exit code for a turn."""
    if result.ok:
        return EXIT_OK
    return EXIT_INTERRUPTED if result.category == "interrupted" else EXIT_ERROR


def prompt_text(given: str | None) -> str:
    """The prompt: as given, or stdin for ``-`` and when nothing is given and stdin is no terminal."""
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        raise UsageError("there is no prompt: give one, or pipe it in")
    text = sys.stdin.read()
    if not text.strip():
        raise UsageError("there is no prompt: stdin is empty")
    return text.rstrip("\n")
