"""What the OTP conformance tests share: scripted servers that end as they are told, and witnesses of their ends.

The fixture child of otp-cases.md has three forms here: a function that obeys files (``yard.spec``), a program, and
:func:`server`, which can end with any reason.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import athena
from athena import ChildSpec, Monitor, Pid, Started, Supervisor
from athena.trees import TreeHandle, list_trees
from tests.helpers import TIME_UNIT, wait_until
from tests.process_servers import Scripted
from tests.tree_children import note, serve
from tests.tree_fixtures import CHILD_S, Yard, pid

LONG_S = 10 * TIME_UNIT


def server(name: Any, /, *orders: Any, **fields: Any) -> ChildSpec:
    """A permanent server with a shutdown of 1 s. ``orders`` are obeyed in its ``init``."""
    return ChildSpec(name, "tests.process_servers:Scripted", args=list(orders), **{"shutdown": 1, **fields})


def trapping(name: Any, /, *orders: Any, **fields: Any) -> ChildSpec:
    """One that traps exits, as the fixture child of otp-cases.md does."""
    return server(name, ["trap", True], *orders, **fields)


def call(yard: Yard, target: Any, *request: Any, timeout: float | None = LONG_S) -> Any:
    """Have a server obey."""
    return athena.call(target, list(request), timeout, supervisor=yard.at)


def end(yard: Yard, target: Any, reason: Any = "died") -> None:
    """Have a server end by itself, with this reason; ``kill`` it from outside for ``"killed"``."""
    if reason == "killed":
        os.kill(int(target), 9)
    else:
        athena.cast(target, ["stop", reason], supervisor=yard.at)


def watch(yard: Yard, *targets: Any) -> list[Monitor]:
    """A monitor of each."""
    return [athena.monitor(target, supervisor=yard.at) for target in targets]


def reasons(monitors: list[Monitor]) -> list[Any]:
    """Why they ended. Each has said so once."""
    downs = [monitor.wait(LONG_S) for monitor in monitors]
    assert [monitor.wait(0) for monitor in monitors] == [None] * len(monitors)
    return [None if down is None else down.reason for down in downs]


def is_alive(yard: Yard, target: Any) -> bool:
    """Whether it is."""
    return athena.is_alive(target, supervisor=yard.at)


def serial(tree: Supervisor, name: Any) -> int:
    """The serial of a child that runs."""
    found = pid(tree, name).serial
    assert found is not None
    return found


def root_row(yard: Yard, tree: TreeHandle) -> dict[str, Any]:
    """What a look at a tree shows of its root."""
    (found,) = [row for row in list_trees(supervisor=yard.at) if row["pid"]["serial"] == tree.pid.serial]
    return found


def stamps(yard: Yard, tree: TreeHandle) -> int:
    """How many restarts count against its intensity now."""
    return int(root_row(yard, tree)["restarts_in_window"])


def wait_state(yard: Yard, tree: TreeHandle, state: str) -> None:
    """Wait until a supervisor is in this state, without asking it."""
    wait_until(lambda: root_row(yard, tree)["state"] == state, CHILD_S)


def states(yard: Yard, tree: TreeHandle) -> dict[Any, str]:
    """The state of each child, by id, without asking the supervisor."""
    return {row["id"]: row["state"] for row in root_row(yard, tree)["children"]}


def started_pid(started: Any) -> Pid:
    """The pid of what has started."""
    assert isinstance(started, Started)
    return started.pid


# --- children that these tests run ------------------------------------------------------------------------------------


def hand_over_pipe(directory: str, name: str, socket_path: str) -> None:
    """Give the ends of this process' pipes to a stranger, who keeps them open beyond its end; then serve."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.connect(socket_path)
        socket.send_fds(stranger, [b"x"], _pipes())
        stranger.recv(1)
    serve(directory, name)


def unlink_itself(directory: str, name: str, only_writing: bool = False) -> None:
    """Close this process' end of the channel to the supervisor, or half of it, and live."""
    for fd in _pipes():
        if fd > 2 and (_writes(fd) or not only_writing):
            os.close(fd)
    serve(directory, name)


class Asking(Scripted):
    """Asks the test what its init should answer, by a file with one order; without it it just starts."""

    def init(self, directory: str, name: str) -> Any:
        note(directory, f"try {os.getpid()}")
        file = Path(directory) / f"{name}.answer"
        return super().init(*([json.loads(file.read_text())] if file.exists() else []))


def asking(yard: Yard, name: str, /, **fields: Any) -> ChildSpec:
    """An :class:`Asking`."""
    args = [str(yard.directory), name]
    return ChildSpec(name, "tests.otp_processes:Asking", args=args, **{"shutdown": 1, **fields})


def answer(yard: Yard, name: str, *order: Any) -> None:
    """What the next starts of an :func:`asking` child do, as ``["ignore"]``."""
    part = yard.directory / f"{name}.part"
    part.write_text(json.dumps(order))
    part.rename(yard.directory / f"{name}.answer")


class Unlinking(Scripted):
    """A server that closes its end of the channel when it is told to, and lives."""

    def handle_cast(self, message: Any) -> Any:
        for fd in [fd for fd in _pipes() if fd > 2 and _writes(fd)]:
            os.close(fd)


class Noting(Scripted):
    """Notes each start, and fails while there is a file: a start that fails and can be counted."""

    def init(self, directory: str, *orders: Any) -> Any:
        note(directory, f"try {os.getpid()}")
        if (Path(directory) / "refuse").exists():
            raise RuntimeError("refused")
        return super().init(*orders)


def tries(yard: Yard) -> list[int]:
    """The processes in which :class:`Noting` was started."""
    return [int(line.split()[1]) for line in yard.log() if line.startswith("try ")]


def noting(yard: Yard, name: str, /, **fields: Any) -> ChildSpec:
    """A :class:`Noting`; ``refuse(yard)`` has its later starts fail."""
    args = [str(yard.directory)]
    return ChildSpec(name, "tests.otp_processes:Noting", args=args, **{"shutdown": 1, **fields})


def refuse(yard: Yard, on: bool = True) -> None:
    """From now on :func:`noting` children do not start, or do again."""
    path = yard.directory / "refuse"
    path.touch() if on else path.unlink()


def _pipes() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("pipe:"):
                found.append(int(name))
        except OSError:
            continue  # the one that listed the directory
    return found


def _writes(fd: int) -> bool:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
