"""Servers and functions that the tests of bounds start."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

from athena import Server


class Mute(Server):
    """Cannot write to its log: ``how``. Fails when it is told anything."""

    def init(self, how: str) -> None:
        match how:
            case "closed":
                os.close(2)
            case "full":
                fd = os.open("/dev/full", os.O_WRONLY)
                os.dup2(fd, 1)
                os.dup2(fd, 2)
            case "no file":
                sys.stderr = sys.stdout = None
            case "closed file":
                sys.stderr.close()
                sys.stdout.close()

    def handle_cast(self, message: Any) -> None:
        with contextlib.suppress(Exception):
            print("something to flush")
        raise ValueError("these are the last words")


class Slow(Server):
    """Is ready when the file is there, and notes that it has begun and how it ends."""

    trap_exit = True

    def init(self, path: str) -> None:
        self.path = path
        with open(f"{path}.part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(f"{path}.part", f"{path}.begun")
        while not os.path.exists(path):
            time.sleep(0.005)

    def terminate(self, reason: Any) -> None:
        with open(f"{self.path}.ended", "w") as file:
            file.write(str(reason))


class LongName(Server):
    """Fails with an error of whose type the name alone is too long for a reason."""

    def handle_cast(self, message: Any) -> None:
        raise type("E" * 200_000, (Exception,), {})("boom")


def deaf() -> None:
    """A function that never receives."""
    time.sleep(1000)
