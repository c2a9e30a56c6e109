"""Calls from processes to servers: kept until the server answers, ends, or nobody waits any more (otp.md 16)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Protocol

from athena.channel import Channel
from athena.errors import NotAServer, ProcessExited, Reason
from athena.wire import Frame, Header
from supervisor.calls import reply, reply_error
from supervisor.tree_answers import shortened


class ServerProcess(Protocol):
    """A process that answers calls."""

    serial: int
    label: str

    def ask(self, header: Header, body: bytes = b"") -> None:
        """Put a call, a message or an order to stop into its inbox. Raises :class:`NotAServer` and
        :class:`~athena.errors.Busy`."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A call that its server has not answered."""

    channel: Channel
    request_id: object
    serial: int


class ServerCalls:
    """The calls under way in one supervisor."""

    def __init__(self) -> None:
        self._waiting: dict[int, Waiting] = {}
        self._ids = itertools.count(1)

    def __len__(self) -> int:
        return len(self._waiting)

    def call(self, server: ServerProcess, sender: dict[str, Any], channel: Channel, frame: Frame) -> None:
        """Hand a call to its server; the answer goes back as it comes. Raises as :meth:`ServerProcess.ask`."""
        number = next(self._ids)
        server.ask({"kind": "call", "id": number, "from": sender}, frame.body)
        self._waiting[number] = Waiting(channel, frame.header.get("id"), server.serial)

    def answered(self, serial: int, frame: Frame) -> None:
        """A server's reply. One to a call that nobody waits for any more, or a second one, is dropped."""
        number = frame.header.get("id")
        call = self._waiting.get(number) if isinstance(number, int) else None
        if call is not None and call.serial == serial:
            del self._waiting[int(frame.header["id"])]
            reply(call.channel, call.request_id, frame.body)

    def refuse(self, number: object, error: NotAServer) -> None:
        """It has turned out that who was called is no server."""
        call = self._waiting.pop(number, None) if isinstance(number, int) else None
        if call is not None:
            reply_error(call.channel, call.request_id, error)

    def ended(self, serial: int, label: str, reason: Reason) -> None:
        """A server has ended: whoever waits for it is told."""
        for number in [number for number, call in self._waiting.items() if call.serial == serial]:
            call = self._waiting.pop(number)
            error = ProcessExited(f"{label} ended before it answered: {shortened(reason)}", reason=reason)
            reply_error(call.channel, call.request_id, error)

    def give_up(self, channel: Channel, *request_ids: object) -> None:
        """Whoever made these calls waits no more, or, without any, whoever is at that connection."""
        for number, call in list(self._waiting.items()):
            if call.channel is channel and (not request_ids or call.request_id in request_ids):
                del self._waiting[number]
