"""Where a program says that it is ready: the socket of sd_notify(3), one for each start.

Abstract, so that nothing of it stays. Everybody on the machine may send to it; what counts is the kernel's word about
who sent: the program's own process, or one below it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import struct
from collections.abc import Callable

from athena import proctree
from athena.environment import COOKIE_VARIABLE

logger = logging.getLogger(__name__)

VARIABLE = "NOTIFY_SOCKET"

DATAGRAM_BYTES = 4096
"""As systemd reads; a longer one is no notice of a state."""

DATAGRAMS_AT_ONCE = 16
"""Read in one turn of the loop: a stranger who floods the socket holds up nobody else."""

_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


class NotifySocket:
    """Receives the notices of one program. ``on_ready`` is called at each ``READY=1``."""

    def __init__(self, cookie: str, on_ready: Callable[[], None]) -> None:
        """Raises OSError."""
        self.status: str | None = None
        """The last ``STATUS=`` that it gave."""
        self._cookie = cookie
        self._on_ready = on_ready
        self._leader: int | None = None
        name = f"athena-notify-{secrets.token_hex(8)}"
        self.address = f"@{name}"
        """The value of ``NOTIFY_SOCKET``."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind(f"\0{name}")
        except OSError:
            self._socket.close()
            raise

    def follow(self, pid: int) -> None:
        """Listen to the process with this number, which the caller keeps from being used again, and to its tree."""
        self._leader = pid
        asyncio.get_running_loop().add_reader(self._socket, self.read)

    def read(self) -> bool:
        """Take some of what has come. Whether there may be more."""
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                # Room for the credentials only: descriptors that somebody sends along are closed by the kernel.
                data, ancillary, flags, _ = self._socket.recvmsg(
                    DATAGRAM_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return False
            if not flags & socket.MSG_TRUNC:
                self._take(data, _sender(ancillary))
        return True

    def close(self) -> None:
        """Listen no more. A second time is a no-op."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def _take(self, data: bytes, sender: int | None) -> None:
        if sender is None or not self._is_ours(sender):
            logger.warning("a notice to %s from a stranger is ignored pid=%s", self.address, sender)
            return
        for line in data.decode(errors="replace").split("\n"):
            name, _, value = line.partition("=")
            if name == "STATUS":
                self.status = value
            elif (name, value) == ("READY", "1"):
                self._on_ready()

    def _is_ours(self, sender: int) -> bool:
        """Whether it is the program or below it. One that has been reaped already is not known any more."""
        if sender == self._leader:
            return True
        if proctree.read_environ(sender).get(COOKIE_VARIABLE) == self._cookie:
            return True
        return self._leader is not None and sender in proctree.descendants(self._leader)


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) >= _CREDENTIALS.size:
            pid, _, _ = _CREDENTIALS.unpack_from(data)
            return int(pid) or None
    return None
