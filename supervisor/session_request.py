"""What a client asks for when it starts a session, as far as the supervisor has to understand it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from athena.errors import AlreadyStarted, InvalidOption
from athena.events import check_session_id, new_session_id
from supervisor.restart import Restart
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
    """One line of JSON that may be written down, and one that may not: grants, keys, the environment."""
    link: bool = False
    approvers: tuple[bool | str, ...] = ()
    """For what the client is about to subscribe as an approver. A grant, so in no file."""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    """``spec`` as the client sent it, from which this request can be made again."""

    @property
    def public_init(self) -> bytes:
        """What of ``init`` may be written down."""
        return self.init.partition(b"\n")[0]

    @property
    def outlives_supervisor(self) -> bool:
        """Whether the next supervisor brings it back. An in_memory log ends with this one."""
        return self.spec.restart is not Restart.TEMPORARY and self.store != "in_memory"

    @property
    def needs_client(self) -> bool:
        """Whether nobody but a client can say how its store is opened: what may be a password is not written down."""
        return bool(self.recorded.get("private_store"))

    def presented(self, other: SessionRequest) -> SessionRequest:
        """``other`` in the place of this one, for the session that there is already, whose name and log stay.

        Raises :class:`AlreadyStarted` if it means another log, or another name.
        """
        if (other.store, other.root) != (self.store, self.root) or other.name not in (None, self.name):
            where = f"under the name {self.name!r}, with its log in {self.root or self.store!r}"
            raise AlreadyStarted(
                f"session {self.session_id!r} is already there {where}; start it so, attach to it or stop it",
                pid=None,
                session_id=self.session_id,
            )
        return replace(other, name=self.name, recorded={**other.recorded, "name": self.name})

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
            recorded={**given, "session_id": session_id},
        )
