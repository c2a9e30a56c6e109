"""What this process is told by one supervisor: the messages of its monitors and links, and those sent to it.

A connection may break and the process lives on, so messages are numbered, and come again on the next connection after
the last that was read. Whichever thread waits first reads for all. When the supervisor itself is gone, all that wait
are told ``noconnection``, once; the next supervisor knows nothing of them.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import defaultdict, deque
from typing import Any

from athena import process_calls as calls
from athena.client import ConnectionLost, SyncConnection
from athena.errors import AthenaError, NotRunning, Refused
from athena.recovery import ANSWER_S, RETRY_S
from athena.supervisors import Target
from athena.wire import Frame

CAME_BACK_S = 1.0
"""How long a supervisor that still listens may refuse to talk before it counts as lost."""

Key = tuple[str, int]


class Box:
    """The readable end of one box, without I/O: what has come, for whom, and up to which number."""

    def __init__(self, supervisor_id: str = "") -> None:
        self.name = secrets.token_urlsafe(6)
        self.supervisor_id = supervisor_id
        """Whose box it is the other end of."""
        self.read_to: dict[str, int] = {}
        """By box: the default one and our own are numbered each for itself."""
        self.waiting: defaultdict[Key, deque[Any]] = defaultdict(deque)

    def put(self, frame: Frame) -> None:
        """Sort in a message; one that came before, on another connection, is dropped."""
        box, number = str(frame.header["box"]), int(frame.header["n"])
        if number > self.read_to.get(box, 0):
            self.read_to[box] = number
            self.waiting[calls.key_of(frame)].append(calls.message_of(frame))

    def take(self, key: Key) -> Any:
        """The next message for that reader; :data:`NOTHING` if there is none."""
        queue = self.waiting.get(key)
        if not queue:
            return NOTHING
        message = queue.popleft()
        if not queue:
            del self.waiting[key]
        return message


class _Nothing:
    """No message."""


NOTHING = _Nothing()


class Mailbox:
    """This process' boxes at one supervisor, for all its threads. ``is_lost``: that supervisor is gone."""

    def __init__(self, target: Target) -> None:
        """Connect. Raises as :class:`~athena.client.SyncConnection`."""
        self._target = target
        self._lock = threading.Condition()
        self._is_reading = False
        self._pid = os.getpid()
        self.is_lost = False
        connection = SyncConnection(target.path, ANSWER_S)
        self.box = Box(str((connection.protocol.hello or {}).get("supervisor")))
        self._connection: SyncConnection = connection
        self._boxes = [self.box.name]
        self._attach(connection)

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)  # there is none if it could not connect
        if connection is not None and self.is_ours:
            connection.close()

    @property
    def is_ours(self) -> bool:
        """Whether it is of this process, and no copy that a fork made."""
        return self._pid == os.getpid()

    def take(self, key: Key, deadline: float | None) -> Any:
        """Wait for the next message for ``key``; :data:`NOTHING` when the supervisor is lost.

        Raises ``TimeoutError`` at the deadline (monotonic).
        """
        with self._lock:
            if key == calls.INBOX and calls.DEFAULT_BOX not in self._boxes:
                self._boxes.append(calls.DEFAULT_BOX)
                self._connection.tell("mailbox", calls.mailbox(calls.DEFAULT_BOX, 0))
            while True:
                message = self.box.take(key)
                if message is not NOTHING or self.is_lost:
                    return message
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError
                if self._is_reading:
                    self._lock.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
                else:
                    self._read(deadline)

    def drop(self, key: Key) -> None:
        """Nobody reads that any more."""
        with self._lock:
            self.box.waiting.pop(key, None)

    def _read(self, deadline: float | None) -> None:
        """Read for all who wait, without the lock. Raises ``TimeoutError``."""
        self._is_reading = True
        self._lock.release()
        frame: Frame | None = None
        try:
            frame = self._next(deadline)
        finally:
            self._lock.acquire()
            self._is_reading = False
            if frame is not None:
                self.box.put(frame)
            self._lock.notify_all()

    def _next(self, deadline: float | None) -> Frame | None:
        """The next message; ``None`` if the connection was made anew, or the supervisor is lost."""
        try:
            frame = self._connection.next_frame(deadline)
        except ConnectionLost:
            self._connection.close()
            self._reconnect()
            return None
        if frame.kind in ("down", "exit", "message"):
            self._connection.tell("has_read", {"box": frame.header["box"], "n": frame.header["n"]})
            return frame
        return None

    def _reconnect(self) -> None:
        until = time.monotonic() + CAME_BACK_S
        while time.monotonic() < until:
            try:
                connection = SyncConnection(self._target.path, ANSWER_S)
                if (connection.protocol.hello or {}).get("supervisor") == self.box.supervisor_id:
                    self._attach(connection)
                    self._connection = connection
                    return
                connection.close()
                break
            except ConnectionLost:
                time.sleep(RETRY_S)
            except (NotRunning, Refused, AthenaError, TimeoutError):
                break
        self._lose()

    def _attach(self, connection: SyncConnection) -> None:
        for box in self._boxes:
            connection.call("mailbox", calls.mailbox(box, self.box.read_to.get(box, 0)), b"", ANSWER_S)

    def _lose(self) -> None:
        self.is_lost = True
        self._connection.close()


_mailboxes: dict[str, Mailbox] = {}
_opening = threading.Lock()


def mailbox_at(target: Target) -> Mailbox:
    """This process' mailbox at a supervisor; a new one if that was lost. Raises as :class:`Mailbox`."""
    with _opening:
        found = _mailboxes.get(str(target.path))
        if found is None or found.is_lost or not found.is_ours:
            found = _mailboxes[str(target.path)] = Mailbox(target)
        return found
