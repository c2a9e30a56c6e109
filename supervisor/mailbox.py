"""What has been said to a process that reads it over connections: kept until it says that it has it.

A client is its OS process and not its connection (design 7), so a message that was on its way when a connection broke
must come again on the next one, and once. Each reader in a process (a blocking client, an event loop) has a box of its
own, named by itself.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from athena.channel import Channel
from athena.wire import Header, dumps

logger = logging.getLogger(__name__)

DEFAULT_BOX = "inbox"
"""Where plain messages go, and exit signals that came over no link of a reader's."""

MESSAGES_MAX = 10_000
"""In the box for plain messages: who sends to a process that never reads must not fill the supervisor. What a monitor
says, or a link that the process made, is never dropped: there is one for each."""


class Box:
    """Numbered messages for one reader, in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.channel: Channel | None = None
        self._entries: deque[tuple[int, Header, bytes]] = deque()
        self._last = 0

    def put(self, header: Header, body: bytes = b"") -> None:
        """Say something, now or when the reader is back."""
        self._last += 1
        entry = (self._last, {**header, "box": self.name, "n": self._last}, body)
        self._entries.append(entry)
        self._send(entry)

    @property
    def is_full(self) -> bool:
        """Whether it holds as much as a box for plain messages may."""
        return len(self._entries) >= MESSAGES_MAX

    def attach(self, channel: Channel, after: int) -> None:
        """The reader is here, and has all up to the number ``after``."""
        self.has_read(after)
        self.channel = channel
        for entry in self._entries:
            self._send(entry)

    def detach(self, channel: Channel) -> None:
        """That connection has ended; the reader may come back on another."""
        if self.channel is channel:
            self.channel = None

    def has_read(self, number: int) -> None:
        """The reader has all up to this one."""
        while self._entries and self._entries[0][0] <= number:
            self._entries.popleft()

    def _send(self, entry: tuple[int, Header, bytes]) -> None:
        if self.channel is not None:
            self.channel.send(entry[1], entry[2], control=True)


class Mailbox:
    """All boxes of one process, and which reader waits for what."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.boxes: dict[str, Box] = {}
        self.of_links: dict[int, str] = {}
        """By the serial of who is linked: the box of its exit signal."""
        self.of_monitors: dict[int, str] = {}
        """By reference."""

    def box(self, name: str) -> Box:
        """The box of this name, made if it is not there."""
        found = self.boxes.get(name)
        if found is None:
            found = self.boxes[name] = Box(name)
        return found

    def put(self, message: dict[str, Any]) -> None:
        """A message in the form that a server's ``handle_info`` gets it."""
        match message:
            case {"exit": {"from": {"serial": sender}} as value} if sender in self.of_links:
                self.box(self.of_links.pop(sender)).put({"kind": "exit", **value})
            case {"down": {"ref": ref} as value}:
                self.box(self.of_monitors.pop(ref, DEFAULT_BOX)).put({"kind": "down", **value})
            case _ if self.box(DEFAULT_BOX).is_full:
                logger.warning("%s reads no messages: one is dropped", self.label)
            case {"exit": value}:
                self.box(DEFAULT_BOX).put({"kind": "exit", **value})
            case _:
                self.box(DEFAULT_BOX).put({"kind": "message"}, dumps(message["message"]))

    def detach(self, channel: Channel) -> None:
        """That connection has ended; its readers may come back on another."""
        for box in self.boxes.values():
            box.detach(channel)
