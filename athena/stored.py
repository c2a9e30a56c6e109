"""Sessions as their stores hold them, read without any process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from athena.config import default_paths
from athena.errors import InvalidOption
from athena.events import check_session_id
from athena.loop.state import SessionState, closed_messages, fold
from athena.messages import Message
from athena.stores import open_store


def read_state(
    session_id: str,
    store: str = "jsonl",
    *,
    root: str | Path | None = None,
    store_options: dict[str, Any] | None = None,
) -> SessionState:
    """The fold of a stored log; an unknown id gives the empty state."""
    check_session_id(session_id)
    where = Path(root) if root is not None else default_paths().sessions
    return fold(open_store(store, root=where, options=store_options).read(session_id))


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
    state = read_state(session_id, store, root=root, store_options=store_options)
    state.messages = closed_messages(state.messages)
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


def _last(messages: list[Message], role: str) -> Message | None:
    return next((m for m in reversed(messages) if m.role == role), None)
