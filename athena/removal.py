"""Removing stored sessions: one by its id, or all that are old enough.

A session that a supervisor has is never removed, whatever its state: its name, its queue and its subscribers are there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from athena.client import ConnectionLost, SyncConnection
from athena.config import default_paths, default_socket, socket_path
from athena.errors import NotFound, NotRunning, Running, StoreError, Unresponsive, UnsupportedStore
from athena.events import check_session_id
from athena.stores import open_store
from athena.stores.base import DeletingStore
from athena.stores.blob_upkeep import remove_orphans
from athena.stores.forks import forks_first, forks_of
from athena.stores.jsonl import JsonlStore
from athena.stores.upkeep import delete_log, disk_bytes, files_beside
from athena.supervisors import Target, resolve
from athena.wire import Header

ANSWER_S = 10.0
"""How long a supervisor has for what it answers itself."""


def delete(
    session_id: str,
    store: str = "jsonl",
    *,
    root: str | Path | None = None,
    store_options: dict[str, Any] | None = None,
    supervisor: str | Path | Target | None = None,
) -> None:
    """Remove a stored session for good: its log, what a crash or a repair put beside it, and its processes' output.

    Refused with :class:`Running` while a supervisor of this state directory (or ``supervisor``) has the session, be it
    running, hibernated or failed, with :class:`athena.errors.LogLocked` while any other process writes the log, and
    with :class:`athena.errors.HasForks` while forks go on from it.
    Raises :class:`NotFound` for an id without a log, :class:`UnsupportedStore` for a store that cannot remove.
    """
    check_session_id(session_id)
    where = Path(root) if root is not None else default_paths().sessions
    opened = open_store(store, root=where, options=store_options)
    if not isinstance(opened, DeletingStore):
        raise UnsupportedStore(
            f"store {store!r} cannot remove a session: its class has no method 'delete'", session_id=session_id
        )
    refuse_held(session_id, supervisor)
    if not opened.delete(session_id):
        raise NotFound(f"store {store!r} has no session {session_id!r}", target=session_id)
    _remove_output(session_id)


def refuse_held(session_id: str, supervisor: str | Path | Target | None = None) -> None:
    """Raise :class:`Running` if a supervisor of this state directory, or this one, has the session."""
    for path in _sockets(supervisor):
        _refuse_held(session_id, _ask(path, "status", {"session": session_id}))


def collect(older_than_s: float, *, root: str | Path | None = None, dry_run: bool = False) -> list[dict[str, Any]]:
    """Remove the stored sessions whose logs were last written more than ``older_than_s`` seconds ago.

    Returns a row for each log of that age: ``session_id``, ``updated_at`` (seconds since the epoch), ``size_bytes`` of
    the log and what belongs to it, ``removed``, and in ``kept`` why not, if a supervisor or another process has it, or
    if a fork of it stays.
    With ``dry_run`` nothing is removed, and ``removed`` says what would be.
    """
    logs = JsonlStore(Path(root) if root is not None else default_paths().sessions, allow_network=True)
    held = _held()
    beside = files_beside(logs.root)
    written_before = time.time() - older_than_s
    rows = []
    forks = {parent: set(found) for parent, found in _forks(logs.root).items()}
    for session_id in forks_first(logs.list(), forks):
        files = [*beside.get(session_id, ()), *_output_files(session_id)]
        row = _row(logs.path(session_id), session_id, files)
        if row is None or row["updated_at"] > written_before:
            continue
        rows.append(row)
        if session_id in held:
            row["kept"] = f"it is {held[session_id]}"
        elif forks.get(session_id):
            row["kept"] = f"it has forks: {', '.join(sorted(forks[session_id]))}"
        elif dry_run:
            row["removed"] = True
        else:
            _collect(logs.path(session_id), row, beside.get(session_id, ()), written_before)
        if row["removed"]:
            for others in forks.values():
                others.discard(session_id)
    return sorted(rows, key=lambda row: str(row["session_id"]))


def collect_blobs(older_than_s: float, *, root: str | Path | None = None) -> int:
    """Remove blobs of that age that no line names, as a crash leaves them; returns the bytes that were freed.

    What a session uses, and what belongs to a damaged log, stays.
    """
    logs = JsonlStore(Path(root) if root is not None else default_paths().sessions, allow_network=True)
    held = _held()
    freed_bytes = 0
    for session_id in logs.list():
        if session_id in held:
            continue
        try:
            freed_bytes += remove_orphans(logs.path(session_id), session_id, written_before=time.time() - older_than_s)
        except StoreError:
            pass  # somebody writes it, or it is gone
    return freed_bytes


def _forks(root: Path) -> dict[str, list[str]]:
    try:
        return forks_of(root)
    except FileNotFoundError:
        return {}


def _collect(path: Path, row: dict[str, Any], beside: Iterable[Path], written_before: float) -> None:
    try:
        row["removed"] = delete_log(path, row["session_id"], beside, unless_after=written_before, knows_forks=True)
    except StoreError as error:  # one that cannot be removed is no reason to keep the others
        row["kept"] = error.message
        return
    if row["removed"]:
        _remove_output(row["session_id"])
    else:
        row["kept"] = "it was written just now"


def _row(log: Path, session_id: str, files: Iterable[Path]) -> dict[str, Any] | None:
    try:
        info = log.stat()
    except FileNotFoundError:
        return None  # somebody else has removed it
    size_bytes = info.st_size + disk_bytes(files)
    return {
        "session_id": session_id,
        "updated_at": info.st_mtime,
        "size_bytes": size_bytes,
        "removed": False,
        "kept": None,
    }


def _output_files(session_id: str) -> list[Path]:
    logs = default_paths().logs
    return [logs / f"{session_id}.log", logs / f"{session_id}.log.1"]


def _remove_output(session_id: str) -> None:
    for file in _output_files(session_id):
        file.unlink(missing_ok=True)


def _sockets(supervisor: str | Path | Target | None = None) -> list[Path]:
    """Of all supervisors of this user's state directory: one that hibernates a session holds no lock on its log."""
    paths = default_paths()
    found = [default_socket(), paths.socket]
    found += [socket_path(path / "athena.sock") for path in sorted(paths.runtime.glob("embedded-*"))]
    if supervisor is not None:
        found.append(resolve(supervisor, create=False).path)
    return list(dict.fromkeys(found))


def _ask(path: Path, op: str, header: Header) -> Any:
    """What the supervisor at ``path`` says; ``None`` if there is none, or if it does not know the session."""
    try:
        connection = SyncConnection(path)
    except (NotRunning, ConnectionLost):
        return None
    try:
        return connection.call(op, header, b"", ANSWER_S).json()
    except (NotFound, ConnectionLost):
        return None
    except TimeoutError:
        raise Unresponsive(f"the supervisor at {str(path)!r} does not answer; is it stopped?") from None
    finally:
        connection.close()


def _refuse_held(session_id: str, row: Any) -> None:
    if row is not None and row["session_id"] == session_id:  # not one that only has this name
        raise Running(
            f"session {session_id!r} is {row['state']}; stop it first",
            session_id=session_id,
            state=row["state"],
        )


def _held() -> dict[str, str]:
    """States of the sessions that supervisors have, by id."""
    answers = [_ask(path, "list", {}) for path in _sockets()]
    rows = [row for answer in answers if answer is not None for row in answer["sessions"]]
    return {row["session_id"]: row["state"] for row in rows if row["state"] != "stored"}
