"""What this process is, if a supervisor started it as a function or as a server.

Set once, by the child's first frame, before any user code runs. A process that it forks inherits the values and is
another process: whoever needs to know compares ``pid`` with ``os.getpid()``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from athena.names import Name, Via
from athena.pid import Pid

pid: Pid | None = None
"""This process's own; ``None`` in a client."""

name: Name | None = None
"""The name that it is registered under, if it was started with one."""

socket: Path | None = None
"""Where its supervisor listens."""

is_server: bool = False
"""Whether it runs a :class:`athena.Server`."""


def enter(init: dict[str, Any]) -> None:
    """Take the facts over from the body of an ``init`` frame."""
    global pid, name, socket
    pid = Pid.from_map(init.get("pid"))
    given = init.get("name")
    name = Via(*given["via"]) if isinstance(given, dict) else given
    socket = Path(init["socket"]) if init.get("socket") else None


def become_server() -> None:
    """What this process was started for is a server."""
    global is_server
    is_server = True
