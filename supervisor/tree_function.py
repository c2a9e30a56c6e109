"""A leaf of a supervision tree that runs a function or a server of the user's."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

from athena.channel import Channel, open_pipes
from athena.errors import Busy, NotAServer, ProcessExited, Reason
from athena.wire import Frame, Header, dumps
from supervisor.child_spec import ChildSpec
from supervisor.keeper import Supervision
from supervisor.launcher import Launched, LaunchRequest
from supervisor.mailbox import INBOX_BYTES, MESSAGES_MAX
from supervisor.member import Caller
from supervisor.restart import bounded
from supervisor.tree_process import Leaf
from supervisor.tree_vocabulary import Ignored, Started

logger = logging.getLogger(__name__)

HELD_BYTES = 500
"""What a message takes beside its body while it waits for a start."""

DRAIN_S = 1.0
"""How long a dead child's pipe is read for its last words."""


class Function(Leaf):
    """A function or a server of the user's; which it is, the child says when it has imported it.

    A function is ready when it is entered, and ``normal`` when it returns. A server is ready when its ``init`` has
    returned, and what is sent to it before that waits.
    """

    _channel: Channel | None = None
    _closed: asyncio.Event | None = None
    _cut_timer: asyncio.TimerHandle | None = None

    def __init__(self, spec: ChildSpec, label: str, caller: Caller, around: Supervision) -> None:
        super().__init__(spec, label, caller, around)
        self._is_server: bool | None = None
        """Unknown until it is ready."""
        self._traps = False
        self._held: list[tuple[Header, bytes]] = []
        self._held_bytes = 0
        self._is_stopping = False
        """An order to stop is in its inbox: what comes behind it is never read."""
        self._is_cut = False
        """It has closed its end of the pipe, and lives."""
        self._kept_fd: int | None = None
        """The pipe to it, a second time: to see it closed would end it, as if this supervisor were gone."""
        self.parent: int | None = None
        """Of one that no supervisor has: the process that started it, if the two are linked."""
        self.on_parent_exit: Callable[[Reason], None] = lambda _: None

    # --- what others say to it

    def ask(self, header: Header, body: bytes = b"") -> None:
        """Put a call, a message or an order to stop into a server's inbox.

        Raises :class:`NotAServer`, :class:`Busy` while a server leaves :data:`INBOX_BYTES` unread, and
        :class:`ProcessExited` (``noconnection``) if it could not answer.
        """
        if self._is_cut and header["kind"] != "cast":
            raise ProcessExited(f"{self.label} has closed its end of the pipe", reason="noconnection")
        if self._is_server is False:
            raise NotAServer(f"{self.label} is a function, no Server: it takes no calls, casts and stops")
        if header["kind"] != "stop":
            self.check_room()
            self._put(header, body)
        elif not self._is_stopping:  # there is room for one, which ends a server that reads nothing more
            self._is_stopping = True
            self._put(header, body)

    @property
    def has_inbox(self) -> bool:
        """Whether it is a server, or may be one."""
        return self._is_server is not False

    def check_room(self) -> None:
        """Raise :class:`Busy` while it leaves :data:`INBOX_BYTES` unread, those that wait for its start included."""
        queued = 0 if self._channel is None else self._channel.queued_bytes
        if self._held_bytes + queued > INBOX_BYTES:
            raise Busy(f"{self.label} has {INBOX_BYTES} bytes of messages unread", limit=INBOX_BYTES)
        if len(self._held) >= MESSAGES_MAX:  # it may be a function, whose mailbox takes no more
            raise Busy(f"{self.label} has {MESSAGES_MAX} messages waiting for its start", limit=MESSAGES_MAX)

    def inform(self, message: dict[str, Any]) -> bool:
        match message:
            case {"exit": {"from": {"serial": self.parent}, "reason": reason}}:
                self.on_parent_exit(reason)
                return True
        if self._is_server is False:
            return False
        self._put({"kind": "info"}, dumps(message))
        return True

    def shut_down(self, reason: Reason = "shutdown") -> None:
        self._order_shutdown(reason)
        super().shut_down()

    def exit(self, reason: Reason) -> None:
        if self._order_shutdown(reason):
            super().shut_down()
        else:
            super().exit(reason)

    def _order_shutdown(self, reason: Reason) -> bool:
        """To a trapping server its parent's exit signal comes behind what is in its inbox. Whether it is one."""
        if self._is_server and self._traps:
            self._put({"kind": "shutdown", "reason": reason})
            return True
        return False

    def _put(self, header: Header, body: bytes = b"") -> None:
        if self._is_server is None or self._channel is None:
            self._held.append((header, body))
            self._held_bytes += HELD_BYTES + len(body)
        else:
            self._channel.send(header, body)  # as data, which is counted, and in order

    # --- its life

    def _request(self) -> LaunchRequest:
        return LaunchRequest(kind="function", cookie=self._around.new_cookie(), log_path=self.log_file)

    async def _connect(self, launched: Launched) -> None:
        if self.parent is not None:
            self._around.processes.link(self.serial, self.parent)  # raises if that is gone
        self._closed = asyncio.Event()
        self._kept_fd = os.dup(launched.write_fd)
        self._channel = await open_pipes(launched.read_fd, launched.write_fd, self._on_frame, self._on_close)
        self._send_init(self._channel)

    def _on_close(self, error: BaseException | None) -> None:
        assert self._closed is not None
        self._closed.set()
        self._cut_timer = asyncio.get_running_loop().call_later(DRAIN_S, self._on_cut)

    def _on_cut(self) -> None:
        """The pipe has ended and the process has not: it is supervised on by signals, and answers nobody (18.5)."""
        logger.warning("%s has closed its end of the pipe, and lives", self.label)
        self._is_cut = True
        self._around.processes.calls.ended(self.serial, self.label, "noconnection")

    async def _drain(self) -> None:
        if self._kept_fd is not None:
            os.close(self._kept_fd)
            self._kept_fd = None
        if self.parent is not None and self._is_server is None:
            self._around.processes.unlink(self.serial, self.parent)  # of a start that failed it learns as such
        if self._channel is None or self._closed is None:
            return
        try:
            await asyncio.wait_for(self._closed.wait(), DRAIN_S)
        except TimeoutError:
            self._channel.abort(None)
        if self._cut_timer is not None:
            self._cut_timer.cancel()

    def _send_init(self, channel: Channel) -> None:
        body = {
            "args": list(self._spec.args or ()),
            "kwargs": dict(self._spec.kwargs),
            "env": self._caller.env,
            "cwd": self._caller.cwd,
            "python_path": list(self._caller.python_path),
            "socket": str(self._around.socket),
            "pid": self.pid_value(),
            "name": self.name,
        }
        channel.send({"kind": "init", "function": self._spec.start}, dumps(body), control=True)

    def _on_frame(self, frame: Frame) -> None:
        processes = self._around.processes
        match frame.kind:
            case "ready" | "ignore" if self._is_ready.done():
                logger.warning("%s was ready already and sent kind=%r", self.label, frame.kind)
            case "ready":
                self._on_ready(is_server=bool(frame.header.get("server")))
                self._is_ready.set_result(Started(self.serial, frame.header.get("info")))
            case "ignore":
                self._is_ready.set_result(Ignored())
            case "reply":
                processes.calls.answered(self.serial, frame)
            case "trap_exit":
                self._traps = bool(frame.header.get("on"))
                processes.set_trap_exit(self.serial, self._traps)
            case "init_error" | "exiting":
                self._announced = bounded(frame.header.get("reason"))
            case other:
                logger.warning("%s sent an unknown frame kind=%r", self.label, other)

    def _on_ready(self, *, is_server: bool) -> None:
        self._is_server = is_server
        held, self._held, self._held_bytes = self._held, [], 0
        for header, body in held:
            if is_server:
                self._put(header, body)
            else:
                self._around.processes.misdirected(self, header, body)
