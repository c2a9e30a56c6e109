"""What a session's child is told of permissions: who can answer a request now, and which answers hold from now on.

Both are grants (design 9): they are held here, in memory, for every life of the child under this supervisor, and are
in no file. An approver is a subscriber that said it can answer, for all turns or for that of one message. A client
that starts the session may say that one is about to subscribe; after a supervisor's death that spares a turn that goes
on at once the moment in which nobody is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from athena.errors import ProtocolError
from athena.wire import Header
from supervisor.hub import Topic
from supervisor.session_request import SessionRequest

JOIN_S = 10.0
"""How long somebody who is about to subscribe counts as there."""

REMEMBERED_LIMIT = 256
"""As many answers as the child keeps."""


def check_approvers(given: object) -> tuple[bool | str, ...]:
    """What a client says it answers for: ``True`` is everything, a text one message's turn. Raises
    :class:`ProtocolError`."""
    if isinstance(given, list | tuple) and all(isinstance(one, bool | str) for one in given):
        return tuple(given)
    raise ProtocolError(f"approvers are true or ids of messages, got {given!r}")


class Approvers:
    """Who can answer for one session, and what was answered for the rest of it."""

    def __init__(self, topic: Topic, tell: Callable[[Any], None]) -> None:
        self._topic = topic
        self._tell = tell
        self._told: list[bool | str] = []
        self._expected: tuple[bool | str, ...] = ()
        self._expected_by: SessionRequest | None = None
        self._remembered: dict[str, str] = {}
        topic.on_approvers = self._changed

    def begins(self, request: SessionRequest) -> Header:
        """A life of the child begins. Returns what to say of it."""
        if request.approvers and request is not self._expected_by:
            self._expected_by = request
            self._expected = tuple(one for one in request.approvers if one not in self._topic.approvers())
            asyncio.get_running_loop().call_later(JOIN_S, self._waited, request)
        self._told = self._present()
        said: Header = {"approvers": self._told} if self._told else {}
        return {**said, "remembered": self._remembered} if self._remembered else said

    def remember(self, header: Header) -> None:
        """The child has an answer that holds for the rest of the session."""
        rule = str(header["rule"])
        self._remembered.pop(rule, None)  # the child forgets the oldest, so the order counts
        self._remembered[rule] = str(header["decision"])
        while len(self._remembered) > REMEMBERED_LIMIT:
            del self._remembered[next(iter(self._remembered))]

    def _present(self) -> list[bool | str]:
        return list(dict.fromkeys([*self._topic.approvers(), *self._expected]))

    def _changed(self) -> None:
        present = self._topic.approvers()
        self._expected = tuple(one for one in self._expected if one not in present)
        present = self._present()
        if set(present) != set(self._told):
            self._told = present
            self._tell({"approvers": present})

    def _waited(self, request: SessionRequest) -> None:
        if request is self._expected_by:
            self._expected = ()
            self._changed()
