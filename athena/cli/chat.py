"""``athena chat`` and ``athena resume``: a conversation line by line, with a session that may outlive it."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from athena.cli import turns
from athena.cli.border import EXIT_OK, UsageError
from athena.cli.flags import StartFlags
from athena.cli.lookup import attach, is_stored, live_status
from athena.cli.output import note
from athena.cli.prompts import AskingScreen
from athena.cli.screen import Screen, summary
from athena.errors import Cancelled, InvalidOption
from athena.session import Session

PROMPT = "> "

LOOK_UP_S = 0.5


def chat(target: str | None, flags: StartFlags, *, keep: bool) -> int:
    """Talk to the session ``target``: attach to it if it lives, continue its log if there is one, else start it."""
    given = flags.options()
    if target is not None and given.get("name", target) != target:
        raise UsageError(f"the session is to be called {target!r} and, by --name, {given['name']!r}")
    found = live_status(target) if target is not None else None
    if target is not None and found is not None and not found["state"].startswith("failed"):
        _refuse_options(target, given)
        return _attached(target)
    if target is not None and found is not None:
        given.setdefault("name", found["name"])  # its name and its log are kept for the next start
        return _continued(found["session_id"], {k: v for k, v in given.items() if v is not None}, keep=keep)
    if target is not None and is_stored(target):
        return _continued(target, given, keep=keep)
    options = {**turns.options_of(flags), **({"name": target} if target is not None else {})}
    stays = keep or "name" in options
    session = turns.start(options, linked=not stays)
    return _converse(session, stays=stays)


def resume(session_id: str, prompt: str | None, flags: StartFlags, *, keep: bool, as_json: bool) -> int:
    """Continue a stored log: what it left open first, then one prompt if there is one, else a conversation."""
    if prompt is None and as_json:
        raise UsageError("--json needs a prompt: a conversation is no document")
    given = flags.options()
    if prompt is None:
        return _continued(session_id, given, keep=keep)
    options, state = turns.recorded(session_id, given)
    text = turns.prompt_text(prompt)
    stays = keep or "name" in given
    session = turns.start(options, linked=not stays)
    try:
        screen = None if as_json else Screen()
        turns.follow_open(session, state, screen)
        result = turns.ask(session, text, screen=screen)
        return turns.report(result, as_json=as_json, streamed=True)
    finally:
        if not stays:
            session.stop()


def _attached(target: str) -> int:
    session = attach(target)
    note(f"attached to {session.name or session.session_id}")
    turns.follow_running(session, _screen(session, with_user=True))
    return _converse(session, stays=True)


def _continued(session_id: str, given: dict[str, Any], *, keep: bool) -> int:
    options, state = turns.recorded(session_id, given)
    stays = keep or "name" in options
    session = turns.start(options, linked=not stays)
    note(f"session {session_id} goes on after {len(state.messages)} messages")
    try:
        turns.follow_open(session, state, _screen(session, with_user=True))
    except BaseException:
        if not stays:
            session.stop()
        raise
    return _converse(session, stays=stays)


def _refuse_options(target: str, given: dict[str, Any]) -> None:
    ignored = sorted(set(given) - {"name"})
    if ignored:
        raise UsageError(f"session {target!r} runs already and keeps its options; leave out: {', '.join(ignored)}")


def _converse(session: Session, *, stays: bool) -> int:
    """One line, one message, until the input ends. A session that does not stay is stopped then."""
    if sys.stdin.isatty():
        note(f"session {session.session_id}; Ctrl-D leaves, Ctrl-C ends a running turn")
    try:
        while (line := _read_line()) is not None:
            if line.strip():
                _exchange(session, line)
    finally:
        if not stays:
            session.stop()
    _say_how_to_return(session, stays=stays)
    return EXIT_OK


def _exchange(session: Session, line: str) -> None:
    """A turn that fails is told and ends nothing; what ends the session, or loses it, is raised."""
    try:
        result = turns.ask(session, line, screen=_screen(session))
    except (Cancelled, InvalidOption) as error:
        note(error.message, style="yellow")
        return
    summary(result)


def _screen(session: Session, *, with_user: bool = False) -> Screen:
    """A person is asked for permission. What is piped in are messages, and no answers."""
    return AskingScreen(session, with_user=with_user) if sys.stdin.isatty() else Screen(with_user=with_user)


def _read_line() -> str | None:
    """The next line, or ``None`` when the person wants to leave."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    import readline  # noqa: F401  # gives input() its editing and history

    try:
        with _looking_up():
            return input(PROMPT)
    except (EOFError, KeyboardInterrupt):
        sys.stdout.write("\n")
        return None


@contextmanager
def _looking_up() -> Iterator[None]:
    """Interrupt a wait for the keyboard now and then.

    A Ctrl-C that comes after the prompt is shown and before the wait begins is noted, and waited over: only an
    interrupted wait looks at what is noted.
    """
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, LOOK_UP_S, LOOK_UP_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _say_how_to_return(session: Session, *, stays: bool) -> None:
    if stays:
        who = session.name or session.session_id
        note(f"the session lives on; come back with: athena chat {shlex.quote(who)}")
    else:
        note(f"the session was stopped, its log is kept; go on with: athena resume {session.session_id}")
