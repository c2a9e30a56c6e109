"""Who is told that a supervisor listens: its starter, by one line, and the service manager that it belongs to."""

from __future__ import annotations

import json
import logging
import os
import socket
from typing import Any

logger = logging.getLogger(__name__)


class ReadyLine:
    """The one line that the starter waits for, on the descriptor that it gave."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def __call__(self, value: dict[str, Any]) -> None:
        if self._fd is not None:
            self._write(json.dumps(value).encode() + b"\n")
            os.close(self._fd)
            self._fd = None

    def wait(self) -> None:
        """The line will come: its time begins anew."""
        if self._fd is not None:
            self._write(b" ")

    def _write(self, data: bytes) -> None:
        assert self._fd is not None
        try:
            os.write(self._fd, data)
        except BrokenPipeError:
            pass  # the starter is gone; its pidfd tells if we belonged to it


def tell_service_manager(path: str | None, state: str) -> None:
    """Send ``READY=1`` or ``STOPPING=1`` to the socket that systemd named (sd_notify); nothing without one."""
    if path is None:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError as error:
        logger.warning("the service manager could not be told %r: %s", state, error)
