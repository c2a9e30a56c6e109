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

TIME_IS_UP = dumps({"timeout": True})
GONE = dumps({"gone": True})

Key = tuple[Channel, object]
"""Of a request: its connection, and its id there."""


@dataclass(slots=True, eq=False)
class Taker:
    """Somebody who waits for a message: for the one of a monitor or link (``ref``), or for the next plain one."""

    channel: Channel
    request_id: object
    ref: int | None
    timer: asyncio.TimerHandle | None = None

    @property
    def key(self) -> Key:
        """Which request this is."""
        return self.channel, self.request_id

    def answer(self, body: bytes) -> None:
        """Tell it, once."""
        self.stop_clock()
        reply(self.channel, self.request_id, body)

    def stop_clock(self) -> None:
        """It is answered, or waits no more."""
        if self.timer is not None:
            self.timer.cancel()


@dataclass(frozen=True, slots=True)
class Kept:
    """A message as it travels: as bytes, which are counted; as objects it would be many times larger. ``number`` is
    that of a plain one."""

    body: bytes
    number: int = 0


class Mailbox:
    """The messages of one process."""

    def __init__(self, supervisor_id: str) -> None:
        self._supervisor_id = supervisor_id
        self._number = itertools.count(1)
        self._open: set[int] = set()
        """References of monitors and links whose one message has not been taken."""
        self._links: dict[int, list[int]] = {}
        """By the serial of the other end."""
        self._told: dict[int, Kept] = {}
        self._inbox: deque[Kept] = deque()
        self._inbox_bytes = 0
        """Of plain messages, until they are confirmed."""
        self._takers: dict[Key, Taker] = {}
        self._lines: dict[int | None, dict[Key, Taker]] = {}
        """The same by what they wait for."""
        self._handed: dict[Key, tuple[Taker, Kept]] = {}
        """What is on its way, until it is confirmed."""

    # --- what there is to come

    def expect(self, ref: int, linked: int | None = None) -> None:
        """A monitor, or a link to the process ``linked``, has been made, and somebody will ask for its message."""
        self._open.add(ref)
        if linked is not None:
            self._links.setdefault(linked, []).append(ref)

    def forget(self, ref: int) -> None:
        """Nobody asks for it any more. Others who wait for the same message wait in vain."""
        self._open.discard(ref)
        self._told.pop(ref, None)
        for taker in [*self._lines.get(ref, {}).values()]:
            self._leave(taker)
            taker.answer(GONE)

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
                self._told[ref] = Kept(dumps(message))
                self._serve(ref)
            case {"exit": {"from": {"serial": serial}, "over_link": True}} if serial in self._links:
                kept = Kept(dumps(message))
                for ref in self._open.intersection(self._links.pop(serial)):
                    self._told[ref] = kept
                    self._serve(ref)
            case {"down": _}:
                pass  # of a monitor that is forgotten
            case {"exit": {"over_link": True}}:  # kept in any case: there is one for each link
                self._put_plain(message)
            case _ if self.has_room:
                self._put_plain(message)
            case _:
                return False
        return True

    def take(self, taker: Taker, timeout_s: float | None) -> None:
        """Answer with the message, now or when it comes; with ``{"timeout": true}`` if it takes longer, with ``{"gone":
        true}`` for a reference whose message was taken, or will never come."""
        if taker.ref is not None and taker.ref not in self._open:
            taker.answer(GONE)
            return
        self._takers[taker.key] = taker
        self._lines.setdefault(taker.ref, {})[taker.key] = taker
        self._serve(taker.ref)
        if timeout_s is not None and taker.key in self._takers:
            taker.timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, taker)

    def confirm(self, channel: Channel, request_id: object) -> None:
        """What was handed to that request has arrived."""
        taker, kept = self._handed.pop((channel, request_id), (None, None))
        if taker is None or kept is None:
            return
        if taker.ref is None:
            self._inbox_bytes -= len(kept.body)
        else:
            self.forget(taker.ref)

    def give_up(self, channel: Channel, *request_ids: object) -> None:
        """Whoever made these requests waits no more, or, without any, whoever is at that connection. What was handed to
        it and not confirmed is there again, before what came later."""
        keys: list[Key] = [(channel, request_id) for request_id in request_ids]
        refs = set()
        for key in keys or [key for key in (*self._takers, *self._handed) if key[0] is channel]:
            if key in self._takers:
                self._takers[key].stop_clock()
                self._leave(self._takers[key])
            elif key in self._handed:
                taker, kept = self._handed.pop(key)
                self._put_back(taker.ref, kept)
                refs.add(taker.ref)
        for ref in refs:
            self._serve(ref)

    def close(self) -> None:
        """Its process is gone."""
        for taker in self._takers.values():
            taker.stop_clock()

    # --- inside

    def _put_plain(self, message: Message) -> None:
        # Numbered, so that who takes it knows it again if its confirmation gets lost.
        number = next(self._number)
        kept = Kept(dumps({**message, "number": number, "supervisor": self._supervisor_id}), number)
        self._inbox.append(kept)
        self._inbox_bytes += len(kept.body)
        self._serve(None)

    def _put_back(self, ref: int | None, kept: Kept) -> None:
        if ref is None:
            earlier = itertools.takewhile(lambda one: one.number < kept.number, self._inbox)
            self._inbox.insert(sum(1 for _ in earlier), kept)  # others may have been put back before it
        elif ref in self._open:
            self._told[ref] = kept

    def _serve(self, ref: int | None) -> None:
        while (line := self._lines.get(ref)) and (kept := self._next(ref)) is not None:
            taker = next(iter(line.values()))
            self._leave(taker)
            self._handed[taker.key] = taker, kept
            taker.answer(kept.body)

    def _next(self, ref: int | None) -> Kept | None:
        if ref is not None:
            return self._told.pop(ref, None)
        return self._inbox.popleft() if self._inbox else None

    def _leave(self, taker: Taker) -> None:
        del self._takers[taker.key]
        line = self._lines[taker.ref]
        del line[taker.key]
        if not line:
            del self._lines[taker.ref]

    def _expire(self, taker: Taker) -> None:
        self._leave(taker)
        taker.answer(TIME_IS_UP)
