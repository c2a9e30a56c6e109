"""A client as a process: its identity is its OS process, not its connection (design 7)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from athena.errors import NoProcess, Reason


class ClientProcess:
    """An OS process that talks to this supervisor and is none of its children, followed by its pidfd.

    ``on_gone`` is called with its serial when it ends, however it does. Raises :class:`NoProcess` if it has.
    """

    def __init__(self, serial: int, pid: int, supervisor_id: str, on_gone: Callable[[int], None]) -> None:
        self.serial = serial
        self.label = f"client {pid}"
        self._pid = pid
        self._supervisor_id = supervisor_id
        self._on_gone = on_gone
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise NoProcess(f"the client {pid} cannot be followed: {error.strerror}", target=pid) from None
        asyncio.get_running_loop().add_reader(self._pidfd, self._gone)

    @property
    def os_pid(self) -> int:
        return self._pid

    def pid_value(self) -> dict[str, Any]:
        """Its pid as it travels."""
        return {"pid": self._pid, "serial": self.serial, "supervisor": self._supervisor_id}

    def end_for(self, reason: Reason) -> None:
        """Exit signals never end a client: it belongs to its user."""

    def inform(self, message: dict[str, Any]) -> bool:
        """It asks for what is in its mailbox."""
        return False

    def _gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._on_gone(self.serial)
