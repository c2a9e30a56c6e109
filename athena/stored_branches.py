"""Checkpoints, rewinds and forks of stored sessions, without a process of their own.

Whoever does it takes the log's lock for that long, so a session that runs is refused: ask it, by its handle.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from athena import events
from athena.branches import Branches
from athena.config import default_paths
from athena.errors import Busy, NotFound
from athena.events import Event, check_session_id, new_uuid
from athena.loop.state import fold
from athena.points import Checkpoint, Point, Rewound, check_label, point_map
from athena.recorder import Recorder
from athena.redact import Redactor, session_secrets
from athena.removal import refuse_held
from athena.stores import open_store
from athena.stores.base import Store

T = TypeVar("T")


def fork_stored(
    session_id: str,
    at: Point | None = None,
    *,
    new_session_id: str | None = None,
    store: str = "jsonl",
    root: str | Path | None = None,
    store_options: dict[str, Any] | None = None,
) -> str:
    """Make a session that goes on from a point of a stored one, by default from its end. Returns its id; nothing is
    started.

    Raises :class:`NotFound`, :class:`athena.errors.LogLocked` while the session runs,
    :class:`athena.errors.UnsupportedStore`.
    """
    new_id = _new_id(new_session_id)
    point = None if at is None else point_map(at, "at")
    opened = _opened(session_id, store, root, store_options)

    async def work(branches: Branches) -> str:
        await branches.fork(point, new_id)
        return new_id

    return _with_log(opened, session_id, work)


def checkpoint_stored(session_id: str, label: str | None = None, *, root: str | Path | None = None) -> Checkpoint:
    """Name the end of a stored session as a point to go back to. Raises as :func:`rewind_stored`."""
    check_label(label)
    refuse_held(session_id)
    return _with_log(_opened(session_id, "jsonl", root, None), session_id, lambda branches: branches.checkpoint(label))


def rewind_stored(session_id: str, to: Point, *, files: bool = True, root: str | Path | None = None) -> Rewound:
    """Go back to a point of a stored session, with its files.

    Raises :class:`NotFound`, :class:`athena.errors.Running` while a supervisor has it, :class:`Busy` if its last turn
    has not ended, :class:`athena.errors.LogLocked`.
    """
    point = point_map(to)
    refuse_held(session_id)

    async def work(branches: Branches) -> Rewound:
        if branches.state.turn is not None:
            raise Busy(
                f"turn {branches.state.turn.id} of session {session_id!r} has not ended; resume the session to end it,"
                " or fork it",
                turn=branches.state.turn.id,
                limit=None,
            )
        return await branches.rewind(point, new_uuid(), files=files)

    return _with_log(_opened(session_id, "jsonl", root, None), session_id, work)


def _new_id(given: str | None) -> str:
    return events.new_session_id() if given is None else check_session_id(given)


def _opened(session_id: str, store: str, root: str | Path | None, options: dict[str, Any] | None) -> Store:
    opened = open_store(store, root=Path(root) if root is not None else default_paths().sessions, options=options)
    if not opened.tail(check_session_id(session_id), 1):
        raise NotFound(f"store {store!r} has no session {session_id!r}", target=session_id)
    return opened


def _with_log(store: Store, session_id: str, work: Callable[[Branches], Awaitable[T]]) -> T:
    """``work`` with the log locked and folded; in a thread, as the caller may have an event loop of its own."""

    async def run() -> T:
        log = store.open(session_id)
        recorder = Recorder(log, fold(log.read()), durability="turn", publish=_nobody)
        try:
            redactor = Redactor(session_secrets(dict(os.environ), None, {}))
            return await work(Branches(session_id, recorder, store, redactor))
        finally:
            recorder.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, run()).result()


def _nobody(event: Event) -> None:
    """Nobody subscribes to a session without a process."""
