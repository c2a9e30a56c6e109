"""Sessions as their stores hold them, read without any process."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from athena.config import default_paths
from athena.errors import AthenaError, InvalidOption, UnsupportedStore
from athena.events import check_session_id
from athena.loop.state import SessionState, closed_messages, fold
from athena.messages import Message
from athena.stores import open_store
from athena.stores.base import Store
from athena.stores.blobs import BlobStore, ref_of, resolved


def read_state(
    session_id: str,
    store: str = "jsonl",
    *,
    root: str | Path | None = None,
    store_options: dict[str, Any] | None = None,
) -> SessionState:
    """The fold of a stored log; an unknown id gives the empty state."""
    check_session_id(session_id)
    return fold(_opened(store, root, store_options).read(session_id))


def read_blob(
    ref: str, store: str = "jsonl", *, root: str | Path | None = None, store_options: dict[str, Any] | None = None
) -> bytes:
    """What is out of line under ``ref``, which a payload for people has in ``["blob"]["ref"]``: JSON, as bytes.

    Needs no process and takes no lock. Raises :class:`athena.errors.NotFound` if it is gone,
    :class:`UnsupportedStore` for a store that keeps nothing out of line, :class:`athena.errors.StoreError`.
    """
    opened = _opened(store, root, store_options)
    if not isinstance(opened, BlobStore):
        raise UnsupportedStore(f"store {store!r} keeps nothing out of line: its class has no method 'read_blob'")
    return opened.read_blob(ref)


def resume(
    session_id: str,
    store: str = "jsonl",
    as_: Literal["messages", "state", "map"] = "messages",
    replay_last_user_turn: bool = False,
    *,
    root: str | Path | None = None,
    store_options: dict[str, Any] | None = None,
) -> list[Message] | SessionState | dict[str, Any]:
    """Rebuild a session's history from a store. Needs no process and takes no lock.

    ``as_``: ``"messages"`` a list of :class:`Message`; ``"state"`` the whole :class:`SessionState`; ``"map"`` a dict
    of ``session_id``, ``messages``, ``last_user``, ``last_assistant`` (the last of each role, or ``None``).
    ``replay_last_user_turn`` drops what follows the last user message. An unknown id has an empty history (reference
    2.4).

    Raises :class:`InvalidOption`, :class:`athena.errors.StoreError`.
    """
    if as_ not in ("messages", "state", "map"):
        raise InvalidOption(
            f"option 'as_' got {as_!r}: expected 'messages', 'state' or 'map'",
            option="as_",
            value=repr(as_),
            expected="'messages' | 'state' | 'map'",
        )
    check_session_id(session_id)
    opened = _opened(store, root, store_options)
    state = fold(opened.read(session_id))
    state.messages = [_whole(m, opened) for m in closed_messages(state.messages)]
    if replay_last_user_turn:
        while state.messages and state.messages[-1].role != "user":
            state.messages.pop()
    if as_ == "state":
        return state
    if as_ == "messages":
        return state.messages
    return {
        "session_id": session_id,
        "messages": state.messages,
        "last_user": _last(state.messages, "user"),
        "last_assistant": _last(state.messages, "assistant"),
    }


def stored_rows() -> list[dict[str, Any]]:
    """Rows of the sessions in the default store."""
    store = open_store("jsonl", root=default_paths().sessions, options=None)
    return [{"session_id": s, "name": None, "state": "stored", "pid": None} for s in store.list()]


def discard_fork(session_id: str, where: dict[str, Any]) -> None:
    """Remove a fork that could not be started; one that somebody has started all the same, or before, stays."""
    from athena.removal import delete

    with suppress(AthenaError):
        last = _opened(where["store"], where["root"], None).tail(session_id, 1)
        if last and last[0].event == "fork":
            delete(session_id, where["store"], root=where["root"])


def _opened(store: str, root: str | Path | None, store_options: dict[str, Any] | None) -> Store:
    return open_store(store, root=Path(root) if root is not None else default_paths().sessions, options=store_options)


def _whole(message: Message, store: Store) -> Message:
    """``message`` with what it has out of line."""
    if not isinstance(store, BlobStore) or not any(ref_of(r.ui_payload) for r in message.tool_results):
        return message
    results = tuple(
        replace(r, ui_payload=resolved(r.ui_payload, store.read_blob)) if r.ui_payload else r
        for r in message.tool_results
    )
    return replace(message, tool_results=results)


def _last(messages: list[Message], role: str) -> Message | None:
    return next((m for m in reversed(messages) if m.role == role), None)
