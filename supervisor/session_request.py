"""What a client asks for when it starts a session, as far as the supervisor has to understand it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from athena.errors import InvalidOption
from athena.events import check_session_id, new_session_id
from supervisor.spec import SessionSpec


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What a client asked to start. ``init`` is opaque: the child reads it."""

    session_id: str
    name: str | None
    spec: SessionSpec
    store: str
    root: str | None
    init: bytes = field(repr=False)
    link: bool = False

    @staticmethod
    def from_map(given: Mapping[str, Any], init: bytes, sessions: Path) -> SessionRequest:
        """The request that a client's ``spec`` makes; ``sessions`` is the default root. Raises what is wrong."""
        session_id = check_session_id(given.get("session_id") or new_session_id())
        name = given.get("name")
        if name is not None and (not isinstance(name, str) or not name or len(name) > 255 or "\n" in name):
            raise InvalidOption(
                f"name {name!r} is not legal: 1 to 255 characters on one line",
                option="name",
                value=repr(name),
                expected="a string",
            )
        store = given.get("store") or "jsonl"
        root = given.get("root") or str(sessions)
        if store == "jsonl" and not Path(root).is_absolute():
            raise InvalidOption(
                f"root {root!r} must be absolute", option="root", value=repr(root), expected="an absolute path"
            )
        return SessionRequest(
            session_id=session_id,
            name=name,
            spec=SessionSpec.from_options(given),
            store=store,
            root=root if store == "jsonl" else None,
            init=init,
            link=bool(given.get("link")),
        )
