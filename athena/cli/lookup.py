"""Questions to the daemon and to the stored logs that need neither a provider nor a model of options.

Nothing here starts a daemon but :func:`daemon` with ``autostart``, for the commands that start sessions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from athena.config import default_paths, default_socket
from athena.errors import AthenaError, InvalidSessionId, NotFound, NotRunning, Unresponsive
from athena.supervisors import DaemonTarget
from athena.wire import Header

if TYPE_CHECKING:
    from athena.loop.state import SessionState
    from athena.session import Session

ANSWER_S = 10.0
"""How long the daemon has for what it answers itself."""


def daemon(*, autostart: bool = False) -> DaemonTarget:
    """The user's daemon."""
    return DaemonTarget(default_socket(), autostart=autostart)


def ask(op: str, header: Header | None = None) -> Any:
    """The daemon's answer. Raises :class:`NotRunning`, :class:`Unresponsive` and what it answers."""
    target = daemon()
    try:
        return target.pool.call(op, header or {}, b"", ANSWER_S).json()
    except AthenaError:
        raise
    except TimeoutError:
        raise Unresponsive(f"the supervisor at {str(target.path)!r} does not answer; is it stopped?") from None
    finally:
        target.pool.close()


def rows() -> list[dict[str, Any]]:
    """All sessions: what the daemon says of its own, and the stored ones. ``updated_at`` is the log's last change."""
    try:
        found: list[dict[str, Any]] = ask("list")["sessions"]
    except NotRunning:
        from athena.stored import stored_rows

        found = stored_rows()
    return [flat(row) for row in found]


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row as people and programs want it: the pid a number, and when something was last written."""
    pid = row.get("pid")
    try:
        updated: float | None = log_path(row["session_id"]).stat().st_mtime
    except OSError:
        updated = None  # in memory, or under another root
    return {**row, "pid": pid["pid"] if isinstance(pid, dict) else pid, "updated_at": updated}


def log_path(session_id: str) -> Path:
    """Where a log in the default store is."""
    return default_paths().sessions / f"{session_id}.jsonl"


def live_status(target: str) -> dict[str, Any] | None:
    """What the daemon knows of a session; ``None`` if it has none of this name, id or pid, or does not run."""
    for key in _keys(target):
        try:
            return flat(ask("status", {"session": key}))
        except NotRunning:
            return None
        except LookupError:
            continue
    return None


def attach(target: str) -> Session:
    """A handle on a live session by name, id or pid.

    Raises :class:`NotRunning`, and :class:`NotFound` that says so if its log is all there is.
    """
    from athena.session import Session

    at = daemon()
    for key in _keys(target):
        try:
            return Session.attach(key, supervisor=at)
        except LookupError:
            continue
    hint = f"; its log is there, continue it with: athena resume {target}" if is_stored(target) else ""
    raise NotFound(f"no live session has the name, id or pid {target!r}{hint}", target=target)


def restart(target: str) -> Session:
    """Start a failed session again, by name or id. Raises :class:`NotFound`, which says what else can be restarted."""
    from athena.session import Session

    try:
        return Session.restart(target, supervisor=daemon())
    except NotFound:
        hint = f"; its log is there, continue it with: athena resume {target}" if is_stored(target) else ""
        raise NotFound(
            f"no session of the daemon has the name or id {target!r}; a supervisor's child is restarted with "
            f"--supervisor NAME{hint}",
            target=target,
        ) from None


def is_stored(session_id: str) -> bool:
    """Whether the default store has a log of this id."""
    from athena.events import check_session_id

    try:
        return log_path(check_session_id(session_id)).is_file()
    except InvalidSessionId:
        return False


def require_stored(session_id: str) -> None:
    """Raise :class:`NotFound` unless the default store has this log."""
    if not is_stored(session_id):
        raise NotFound(f"neither a live session nor a stored log is called {session_id!r}", target=session_id)


def stored_state(session_id: str) -> SessionState:
    """The fold of a stored log. Raises :class:`NotFound`."""
    from athena.stored import read_state

    require_stored(session_id)
    return read_state(session_id)


def complete_live(incomplete: str) -> list[str]:
    """Names and ids of supervised sessions, for the shell."""
    return _complete(incomplete, is_live=True)


def complete_any(incomplete: str) -> list[str]:
    """Names and ids of all sessions, for the shell."""
    return _complete(incomplete, is_live=False)


def complete_stored(incomplete: str) -> list[str]:
    """Ids of sessions that can be resumed, for the shell."""
    try:
        found = [row["session_id"] for row in rows() if row["state"].startswith(("stored", "failed"))]
    except AthenaError:
        return []
    return [value for value in found if value.startswith(incomplete)]


def _complete(incomplete: str, *, is_live: bool) -> list[str]:
    try:
        found = [row for row in rows() if not is_live or row["state"] != "stored"]
    except AthenaError:
        return []  # a completion that fails says nothing
    values = [value for row in found for value in (row["name"], row["session_id"]) if value]
    return [value for value in values if value.startswith(incomplete)]


def _keys(target: str) -> list[str | int]:
    """What ``target`` can mean: names and ids before pids."""
    return [target, int(target)] if target.isascii() and target.isdigit() and len(target) <= 10 else [target]
