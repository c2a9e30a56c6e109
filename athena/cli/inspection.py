"""Commands that look at a session, and the one that stops it. None of them starts a supervisor."""

from __future__ import annotations

from collections.abc import Iterator

from athena.cli import lookup, report
from athena.cli.border import EXIT_OK
from athena.cli.output import emit, note, write
from athena.events import Event


def supervisor(*, as_json: bool) -> int:
    """The daemon's state. Raises :class:`NotRunning`."""
    info = lookup.ask("info")
    if as_json:
        emit(info)
    else:
        report.supervisor(info)
    return EXIT_OK


def status(target: str, *, as_json: bool) -> int:
    """A session's state: as its supervisor knows it, else as its log says."""
    row = lookup.live_status(target)
    if row is not None:
        if as_json:
            emit(row)
        else:
            report.session(row)
        return EXIT_OK
    state = lookup.stored_state(target)
    row = lookup.flat({"session_id": target, "name": None, "state": "stored", "pid": None})
    row |= {
        "turn": None if state.turn is None else state.turn.id,
        "queue": len(state.queue),
        "events": state.events,
        "messages": len(state.messages),
        "turns": state.turns,
        "usage": state.usage.to_map(),
        "options": state.options,
        "log": str(lookup.log_path(target)),
    }
    if as_json:
        emit(row)
    else:
        report.stored_session(row)
    return EXIT_OK


def stop(target: str, *, as_json: bool) -> int:
    """Stop a session. Raises :class:`NotFound` and :class:`NotRunning`."""
    session = lookup.attach(target)
    session.stop()
    if as_json:
        emit({"session_id": session.session_id, "stopped": True})
    else:
        note(f"stopped {session.name or session.session_id}; continue its log with: athena resume {session.session_id}")
    return EXIT_OK


def restart(target: str, *, as_json: bool) -> int:
    """Start a failed session again. Raises :class:`Running`, :class:`NotFound` and what it refuses with."""
    session = lookup.restart(target)
    pid = session.pid
    if as_json:
        emit({"session_id": session.session_id, "restarted": target, "pid": None if pid is None else int(pid)})
    else:
        note(f"restarted {session.name or session.session_id}" + ("" if pid is None else f" (pid {int(pid)})"))
    return EXIT_OK


def messages(target: str, *, as_json: bool) -> int:
    """The conversation, from the session or from its log."""
    row = lookup.live_status(target)
    if row is None or row["state"].startswith("failed"):
        from athena.loop.state import closed_messages

        session_id = target if row is None else str(row["session_id"])
        found = closed_messages(lookup.stored_state(session_id).messages)
    else:
        found = lookup.attach(str(row["session_id"])).messages()
    if as_json:
        emit([message.to_map() for message in found])
    else:
        report.messages(found)
    return EXIT_OK


def events(target: str, after: int, *, follow: bool, as_json: bool) -> int:
    """Recorded events: those there are, and with ``follow`` those to come."""
    row = lookup.live_status(target)
    items = (
        _stored_events(target, after) if row is None else _live_events(row["session_id"], after, row["events"], follow)
    )
    for item in items:
        if as_json:
            write(item.line.decode(errors="replace") + "\n")
        else:
            report.event(item)
    if follow and row is None:
        note("the session is not running: there is nothing to wait for")
    return EXIT_OK


def _live_events(session_id: str, after: int, last: int, follow: bool) -> Iterator[Event]:
    if not follow and after >= last:
        return
    session = lookup.attach(session_id)
    with session.events(after, deltas=False) as stream:
        for item in stream:
            if isinstance(item, Event):
                yield item
                if not follow and item.seq >= last:
                    return


def _stored_events(session_id: str, after: int) -> Iterator[Event]:
    from athena.config import default_paths
    from athena.stores import open_store

    lookup.require_stored(session_id)
    yield from open_store("jsonl", root=default_paths().sessions).read(session_id, after)
