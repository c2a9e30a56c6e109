"""A session as a child of a supervision tree: the tree decides whether it is started again, the session stays.

Its name, its subscribers and the calls that wait belong to the session and not to one life of it, so they are kept
until its supervisor has come to rest without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from athena.errors import AthenaError, Reason
from supervisor import vocabulary as session_words
from supervisor.child_spec import ChildSpec
from supervisor.core import SessionCore
from supervisor.keeper import Keeper, Supervision
from supervisor.member import Member, failure
from supervisor.restart import is_clean
from supervisor.session_request import SessionRequest
from supervisor.tree_vocabulary import Started, StartFailed, StartOutcome
from supervisor.vocabulary import State


class TreeKeeper(Keeper):
    """A session that a tree starts: each start of the tree is one life."""

    def __init__(self, request: SessionRequest, supervision: Supervision) -> None:
        super().__init__(request, supervision)
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Resolved when the life that runs now is over."""

    @property
    def is_down(self) -> bool:
        """Whether no life of it runs or begins."""
        return self.core.state in (State.NEW, State.ENDED)

    @property
    def state(self) -> str:
        return "restarting" if self.core.state is State.ENDED else self.core.state.value

    async def begin(self) -> None:
        """Its next life. Raises why it did not start; nothing of it is left then."""
        last = self.core
        if last.state is State.ENDED:
            self.core = SessionCore(self.request.spec)
            self.core.incarnation, self.core.last_reason = last.incarnation, last.last_reason
            self.over = asyncio.get_running_loop().create_future()
        await self.start()

    def end_life(self) -> None:
        """Have this life end in order. How long that may take, the tree knows; no turn is to blame for it."""
        if not self.is_down:
            self._intended = "shutdown"
            self.feed(session_words.StopRequested("shutdown", "infinity"))

    def kill(self, reason: Reason) -> None:
        if self.core.state is not State.NEW:
            super().kill(reason)

    def settle(self) -> None:
        """It is not started again: whoever waits is told, and its name is free."""
        reason = self.core.last_reason
        super()._on_calls_failed("stopped" if is_clean(reason) else "failed", reason)
        super()._on_removed(reason)

    def _on_calls_failed(self, kind: session_words.CallError, reason: Reason) -> None:
        """They wait for the next life."""

    def _on_removed(self, reason: Reason) -> None:
        self.over.set_result(None)


class SessionMember(Member):
    """One life of a session under a node."""

    def __init__(self, keeper: TreeKeeper, label: str, supervisor_id: str) -> None:
        super().__init__(0, label, supervisor_id)
        self._keeper = keeper

    @property
    def os_pid(self) -> int | None:
        return self._keeper.os_pid

    async def start(self) -> StartOutcome:
        try:
            await self._keeper.begin()
        except AthenaError as error:
            await self._keeper.over
            return StartFailed(failure(error))
        self.serial = self._keeper.serial
        return Started(self.serial)

    async def wait(self) -> Reason:
        await asyncio.shield(self._keeper.over)
        return self._keeper.core.last_reason

    def shut_down(self) -> None:
        self._keeper.end_life()

    def kill(self) -> None:
        self._keeper.kill("killed")

    def exit(self, reason: Reason) -> None:
        self._keeper.kill(reason)


def session_request(given: Mapping[Any, Any], spec: ChildSpec, around: Supervision) -> SessionRequest:
    """The request in a session's child specification. Raises what is wrong with it."""
    ours = {"restart": "temporary", "shutdown": "infinity", "start_timeout": spec.start_timeout}
    return SessionRequest.from_map({**given["spec"], **ours}, str(given["init"]).encode(), around.sessions)


def session_id_of(spec: ChildSpec) -> str | None:
    """The id of the session that a specification describes, if it does."""
    match spec.start:
        case {"session": {"spec": {"session_id": str(session_id)}}}:
            return session_id
        case _:
            return None
