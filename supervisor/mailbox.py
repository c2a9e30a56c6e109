"""What a process is told that has no inbox of its own, and asks for it: kept until it says that it has it.

A client is its OS process and not its connection (design 7). So each message waits here until somebody in that process
takes it, over whatever connection; one that was handed out and not confirmed before its connection ended, or before
whoever asked gave up, is there again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass
from typing import Any

from athena.channel import Channel
from athena.wire import dumps
from supervisor.calls import reply

MESSAGES_MAX = 10_000
INBOX_BYTES = 16 * 1024 * 1024
"""Of plain messages that a process has not taken. Who sends more is told so: one that never asks must not fill the
supervisor. What its own monitors and links say is always kept: there is one message for each."""

Message = dict[str, Any]
"""In the form in which a server gets it: ``{"down": ...}``, ``{"exit": ...}``, ``{"message": ...}``."""


@dataclass(slots=True)
class Taker:
    """Somebody who waits for a message: for the one of a monitor or link (``ref``), or for the next plain one."""

    channel: Channel
    request_id: object
    ref: int | None
    timer: asyncio.TimerHandle | None = None

    def answer(self, value: Message) -> None:
        """Tell it, once."""
        if self.timer is not None:
            self.timer.cancel()
        reply(self.channel, self.request_id, dumps(value))


@dataclass(frozen=True, slots=True)
class Handed:
    """A message that is on its way, until it is confirmed."""

    taker: Taker
    message: Message
    size_bytes: int


class Mailbox:
    """The messages of one process."""

    def __init__(self, supervisor_id: str) -> None:
        self._supervisor_id = supervisor_id
        self._number = itertools.count(1)
        self._open: set[int] = set()
        """References of monitors and links whose one message has not been taken."""
        self._links: dict[int, list[int]] = {}
        """By the serial of the other end."""
        self._told: dict[int, Message] = {}
        self._inbox: deque[tuple[Message, int]] = deque()
        self._inbox_bytes = 0
        self._takers: list[Taker] = []
        self._handed: list[Handed] = []

    # --- what there is to come

    def expect(self, ref: int, linked: int | None = None) -> None:
        """A monitor, or a link to the process ``linked``, has been made, and somebody will ask for its message."""
        self._open.add(ref)
        if linked is not None:
            self._links.setdefault(linked, []).append(ref)

    def forget(self, ref: int) -> None:
        """Nobody asks for it any more."""
        self._open.discard(ref)
        self._told.pop(ref, None)
        self._release(ref)

    def forget_links(self, serial: int) -> None:
        """The links to that process are undone."""
        for ref in self._links.pop(serial, ()):
            self.forget(ref)

    # --- messages

    @property
    def has_room(self) -> bool:
        """Whether it takes another plain message."""
        return len(self._inbox) < MESSAGES_MAX and self._inbox_bytes < INBOX_BYTES

    def put(self, message: Message) -> bool:
        """Keep a message. ``False`` if it is a plain one and there is no room."""
        match message:
            case {"down": {"ref": ref}} if ref in self._open:
                self._told[ref] = message
            case {"exit": {"from": {"serial": serial}, "over_link": True}} if serial in self._links:
                self._told |= dict.fromkeys(self._links.pop(serial), message)
            case {"down": _}:
                return True  # of a monitor that is forgotten
            case _:
                if not self.has_room:
                    return False
                # Numbered, so that who takes it knows it again if its confirmation gets lost.
                message = {**message, "number": next(self._number), "supervisor": self._supervisor_id}
                size_bytes = len(dumps(message))
                self._inbox.append((message, size_bytes))
                self._inbox_bytes += size_bytes
        self._serve()
        return True

    def take(self, taker: Taker, timeout_s: float | None) -> None:
        """Answer with the message, now or when it comes; with ``{"timeout": true}`` if it takes longer, with ``{"gone":
        true}`` for a reference whose message was taken, or will never come."""
        if taker.ref is not None and taker.ref not in self._open:
            taker.answer({"gone": True})
            return
        self._takers.append(taker)
        self._serve()
        if taker in self._takers and timeout_s is not None:
            taker.timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, taker)

    def confirm(self, channel: Channel, request_id: object) -> None:
        """What was handed to that request has arrived."""
        for one in self._of(channel, request_id):
            self._handed.remove(one)
            if one.taker.ref is None:
                self._inbox_bytes -= one.size_bytes
            else:
                self.forget(one.taker.ref)

    def give_up(self, channel: Channel, *request_ids: object) -> None:
        """Who made these requests waits no more, or, without any, whoever is at that connection. What was handed to it
        and not confirmed is there again, before what came later."""
        for one in reversed(self._of(channel, *request_ids)):
            self._handed.remove(one)
            if one.taker.ref is None:
                self._inbox.appendleft((one.message, one.size_bytes))
            elif one.taker.ref in self._open:
                self._told[one.taker.ref] = one.message
        ours = [taker for taker in self._takers if taker.channel is channel]
        for taker in [taker for taker in ours if not request_ids or taker.request_id in request_ids]:
            self._takers.remove(taker)
            if taker.timer is not None:
                taker.timer.cancel()
        self._serve()

    def close(self) -> None:
        """Its process is gone."""
        for taker in self._takers:
            if taker.timer is not None:
                taker.timer.cancel()

    # --- inside

    def _serve(self) -> None:
        for taker in list(self._takers):
            found = self._next(taker.ref)
            if found is not None:
                self._takers.remove(taker)
                self._handed.append(Handed(taker, *found))
                taker.answer(found[0])

    def _next(self, ref: int | None) -> tuple[Message, int] | None:
        if ref is not None:
            message = self._told.pop(ref, None)
            return None if message is None else (message, 0)
        return self._inbox.popleft() if self._inbox else None

    def _expire(self, taker: Taker) -> None:
        self._takers.remove(taker)
        taker.answer({"timeout": True})

    def _release(self, ref: int) -> None:
        """Others who wait for the same message wait in vain."""
        for taker in [taker for taker in self._takers if taker.ref == ref]:
            self._takers.remove(taker)
            taker.answer({"gone": True})

    def _of(self, channel: Channel, *request_ids: object) -> list[Handed]:
        return [
            one
            for one in self._handed
            if one.taker.channel is channel and (not request_ids or one.taker.request_id in request_ids)
        ]
