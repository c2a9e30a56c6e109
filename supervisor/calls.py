"""Requests that wait for a session's child: kept until they are answered, over any number of its lives.

A request is relayed with its body untouched. One that a death left unanswered is delivered again to the next
incarnation, under the same id and with the same body: every operation is safe to repeat, a message by its
``message_id``. So a caller who is blocked in ``send_message`` needs no part in a restart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from athena.channel import Channel
from athena.errors import AthenaError, Busy, to_wire
from athena.wire import PART_BYTES, Frame, Header, dumps

WAITING_LIMIT = 1024
"""Unanswered requests of one session; the next one is refused with :class:`Busy`."""

HELD_BYTES = 256 * 1024 * 1024
"""What the kept requests and messages of one session may hold in all; one that is above it alone is refused too."""


def reply(channel: Channel, request_id: object, body: bytes, *, ok: bool = True, **extra: object) -> None:
    """Answer a client's request. A long answer goes as data, so that a short one never waits behind it."""
    if request_id is not None:
        header: Header = {"kind": "reply", "id": request_id, "ok": ok, **extra}
        channel.send(header, body, control=len(body) <= PART_BYTES)


def reply_error(channel: Channel, request_id: object, error: AthenaError) -> None:
    """Answer a client's request with an error."""
    reply(channel, request_id, dumps(to_wire(error)), ok=False)


@dataclass(frozen=True, slots=True)
class Pending:
    """One unanswered request: who asked, under which id, and what."""

    channel: Channel
    client_id: object
    header: Header
    body: bytes

    @property
    def op(self) -> str:
        return str(self.header.get("op"))


class Calls:
    """The unanswered requests of one session, and the messages whose turns have not ended."""

    def __init__(self) -> None:
        self.pending: dict[int, Pending] = {}
        self.sends: dict[str, tuple[Header, bytes]] = {}
        """By message id, in order: what a new incarnation must be told again, since a message's grants are in no
        file."""
        self._ids = itertools.count(1)

    def add(self, channel: Channel, frame: Frame, **extra: object) -> int:
        """Keep a client's request. Returns the id it has towards the child. Raises :class:`Busy`."""
        self._check_room(len(frame.body))
        request_id = next(self._ids)
        header = {**frame.header, **extra, "kind": "call", "id": request_id}
        self.pending[request_id] = Pending(channel, frame.header.get("id"), header, frame.body)
        if header.get("op") == "send":
            self.sends.setdefault(str(header.get("message_id")), (header, frame.body))
        return request_id

    def _check_room(self, size_bytes: int) -> None:
        if len(self.pending) >= WAITING_LIMIT:
            raise Busy(f"{WAITING_LIMIT} requests wait for this session already; try again", limit=WAITING_LIMIT)
        bodies = {id(body): len(body) for _, body in self.sends.values()}  # a message that waits is in both tables
        bodies |= {id(one.body): len(one.body) for one in self.pending.values()}
        if sum(bodies.values()) + size_bytes > HELD_BYTES:
            raise Busy(f"requests of {HELD_BYTES} bytes wait for this session already; try again", limit=HELD_BYTES)

    def answer(self, frame: Frame) -> None:
        """The child's reply: relay it. A late one, already answered otherwise, is dropped."""
        pending = self.pending.pop(int(frame.header.get("id") or 0), None)
        if pending is None:
            return
        ok = bool(frame.header.get("ok"))
        if pending.op == "send" and not ok:
            self._refused(pending)
        reply(pending.channel, pending.client_id, frame.body, ok=ok)

    def _refused(self, pending: Pending) -> None:
        """Forget a message that was not taken; a second one under the id of a taken one leaves that in place."""
        message_id = str(pending.header.get("message_id"))
        kept = self.sends.get(message_id)
        if kept is not None and kept[0].get("id") == pending.header.get("id"):
            del self.sends[message_id]

    def settled(self, *message_ids: str) -> None:
        """These messages' turns have ended, or will never begin: they need no telling again."""
        for message_id in message_ids:
            self.sends.pop(message_id, None)

    def follow_up(self) -> list[tuple[Header, bytes]]:
        """What goes to a new incarnation before it goes on with its turn: the messages, in their order."""
        waiting = {str(p.header.get("message_id")): p for p in self.pending.values() if p.op == "send"}
        out = []
        for message_id, (header, body) in self.sends.items():
            asked = waiting.get(message_id)
            if asked is not None:
                out.append((asked.header, asked.body))
            else:
                out.append(({k: v for k, v in header.items() if k != "id"}, body))
        return out

    def others(self, told: list[tuple[Header, bytes]]) -> list[Pending]:
        """The requests that :meth:`follow_up` did not cover."""
        covered = {header.get("id") for header, _ in told}
        return [p for request_id, p in self.pending.items() if request_id not in covered]

    def fail(self, error: AthenaError) -> None:
        """Answer everything with an error."""
        pending, self.pending = self.pending, {}
        self.sends = {}
        for one in pending.values():
            reply_error(one.channel, one.client_id, error)

    def drop_client(self, channel: Channel) -> None:
        """The client is gone: nobody waits for these any more. Its messages keep their turns."""
        self.pending = {k: p for k, p in self.pending.items() if p.channel is not channel}

    def is_waiting(self, predicate: Callable[[Pending], bool] = lambda _: True) -> bool:
        """Whether an unanswered request satisfies ``predicate``."""
        return any(predicate(p) for p in self.pending.values())
