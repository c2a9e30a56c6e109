"""Processes when something is lost: connections, clients, the supervisor; and many rounds of it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import athena
from athena import ChildSpec, Down, DynamicSupervisor, Exit, Pid, Started
from athena.errors import NoProcess, ProcessExited
from athena.supervisors import EmbeddedSupervisor
from tests.helpers import TIME_UNIT, wait_until
from tests.session_fixtures import is_gone
from tests.tree_fixtures import CHILD_S, Yard, shared, start_child, yard

__all__ = ["shared", "yard"]

pytestmark = pytest.mark.slow

LONG_S = 10 * TIME_UNIT
ROUNDS = 1000


def server(name: str, /, *orders: Any, **fields: Any) -> ChildSpec:
    return ChildSpec(name, "tests.process_servers:Scripted", args=list(orders), **{"restart": "temporary", **fields})


@pytest.fixture
def alone() -> Iterator[EmbeddedSupervisor]:
    """A supervisor that the test may kill."""
    found = EmbeddedSupervisor()
    yield found
    found.stop()


def supervisor_pid(at: EmbeddedSupervisor) -> int:
    return int(at.pool.call("info", {}, b"", LONG_S).json()["pid"])


def cut_connections(path: Path) -> None:
    """End every connection of this process to that socket, whoever uses it at this moment."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.family == socket.AF_UNIX and one.getpeername() == str(path):
                    one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was closed since it was listed, or is not connected


# --- a connection is cut ----------------------------------------------------------------------------------------------


def test_a_cut_connection_loses_no_monitor(yard: Yard) -> None:
    tree = yard.start()
    before, during, after = (start_child(tree, server(name)) for name in "abc")
    monitors = [athena.monitor(one, supervisor=yard.at) for one in (before, during, after)]
    link = athena.link(after, supervisor=yard.at)
    athena.stop(before, "first", supervisor=yard.at)
    cut_connections(yard.at.path)
    athena.stop(during, "second", supervisor=yard.at)
    assert [monitor.wait(LONG_S).reason for monitor in monitors[:2]] == ["first", "second"]  # type: ignore[union-attr]
    waiting: list[Any] = []
    readers = [threading.Thread(target=lambda one=one: waiting.append(one.wait(LONG_S))) for one in (monitors[2], link)]
    for reader in readers:
        reader.start()
    for _ in range(20):  # while both wait
        cut_connections(yard.at.path)
    athena.stop(after, "third", supervisor=yard.at)
    for reader in readers:
        reader.join()
    assert sorted(type(one).__name__ for one in waiting) == ["Down", "Exit"]
    assert [one.reason for one in waiting] == ["third", "third"]
    assert [monitor.wait(0.01) for monitor in monitors] == [None] * 3


# --- a client ends ----------------------------------------------------------------------------------------------------

CLIENT = """
import sys, athena
from athena import Pid
pid = Pid(int(sys.argv[2]), int(sys.argv[3]))
kept = athena.link(pid, supervisor=sys.argv[1]), athena.monitor(pid, supervisor=sys.argv[1])
print(athena.self_pid(supervisor=sys.argv[1]).serial, flush=True)
sys.stdin.read()
"""


def test_what_is_linked_to_a_client_learns_of_its_end(yard: Yard) -> None:
    tree = yard.start()
    plain, trapping = start_child(tree, server("plain")), start_child(tree, server("t", ["trap", True]))
    monitor = athena.monitor(plain, supervisor=yard.at)
    clients = []
    for pid in (plain, trapping):
        argv = [sys.executable, "-c", CLIENT, str(yard.at.path), str(int(pid)), str(pid.serial)]
        client = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert client.stdout
        clients.append((client, int(client.stdout.readline())))
    for client, _ in clients:
        client.kill()
        client.communicate()
    down = monitor.wait(LONG_S)
    assert down is not None
    assert down.reason == "noconnection"
    expected = [["exit", clients[1][1], "noconnection"]]
    wait_until(lambda: athena.call(trapping, ["notes"], supervisor=yard.at) == expected, CHILD_S)


# --- the supervisor is lost -------------------------------------------------------------------------------------------


def test_a_lost_supervisor_is_noconnection_once_for_each(alone: EmbeddedSupervisor) -> None:
    tree = DynamicSupervisor.start_link(supervisor=alone)
    one = start_child(tree, server("one", name="uno"))
    monitors = [athena.monitor(target, supervisor=alone) for target in (one, "uno")]
    link = athena.link(one, supervisor=alone)
    failed: list[ProcessExited] = []

    def call() -> None:
        try:
            athena.call(one, ["later"], None, supervisor=alone)
        except ProcessExited as error:
            failed.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    wait_until(lambda: alone.pool.call("info", {}, b"", LONG_S).json()["processes"]["calls"] == 1, CHILD_S)
    os.kill(supervisor_pid(alone), signal.SIGKILL)
    caller.join()
    assert [error.reason for error in failed] == ["noconnection"]
    assert monitors[0].wait(LONG_S) == Down(monitors[0].ref, one, one, "noconnection")
    assert monitors[1].wait(LONG_S) == Down(monitors[1].ref, "uno", one, "noconnection")
    assert link.wait(LONG_S) == Exit(one, "noconnection")
    assert [*(found.wait(0.01) for found in monitors), link.wait(0.01)] == [None] * 3
    assert not monitors[0].demonitor()
    wait_until(lambda: is_gone(int(one)), CHILD_S)
    # The next supervisor knows nothing of it: what bears the old pid is dead, whatever has its serial now.
    again = DynamicSupervisor.start_link(supervisor=alone)
    others = [start_child(again, server("other")) for _ in range(3)]
    assert one.serial in [other.serial for other in others] or len(others) == 3
    assert not athena.is_alive(one, supervisor=alone)
    late = athena.monitor(one, supervisor=alone)
    down = late.wait(LONG_S)
    assert down == Down(late.ref, one, one, "noproc")
    with pytest.raises(NoProcess):
        athena.call(one, ["value", 1], supervisor=alone)


async def test_a_lost_supervisor_for_the_asyncio_twins(alone: EmbeddedSupervisor) -> None:
    tree = DynamicSupervisor.start_link(supervisor=alone)
    one = start_child(tree, server("one"))
    monitor, link = await athena.amonitor(one, supervisor=alone), await athena.alink(one, supervisor=alone)
    os.kill(supervisor_pid(alone), signal.SIGKILL)
    assert await monitor.wait(LONG_S) == Down(monitor.ref, one, one, "noconnection")
    assert await link.wait(LONG_S) == Exit(one, "noconnection")
    assert (await monitor.wait(0.01), await link.wait(0.01)) == (None, None)


# --- many rounds ------------------------------------------------------------------------------------------------------


def test_a_thousand_rounds_leave_nothing(alone: EmbeddedSupervisor) -> None:
    tree = DynamicSupervisor.start_link(supervisor=alone)
    supervisor = psutil.Process(supervisor_pid(alone))
    for _ in range(50):  # what is made once is made
        one_round(alone, tree)
    before = look(alone, supervisor)
    for _ in range(ROUNDS):
        one_round(alone, tree)
    wait_until(lambda: look(alone, supervisor)[0] == before[0], CHILD_S)
    grown = look(alone, supervisor)[1] - before[1]
    assert grown < 2 * 1024 * 1024, f"the supervisor's memory grew by {grown} bytes"


def one_round(at: EmbeddedSupervisor, tree: DynamicSupervisor) -> None:
    started = tree.start_child(server("one", name="phoenix"))
    assert isinstance(started, Started)
    monitors = [athena.monitor(target, supervisor=at) for target in ("phoenix", started.pid)]
    os.kill(int(started.pid), signal.SIGKILL)
    downs = [monitor.wait(LONG_S) for monitor in monitors]
    assert [down.reason for down in downs if down is not None] == ["killed", "killed"]
    assert athena.whereis("phoenix", supervisor=at) is None


def look(at: EmbeddedSupervisor, supervisor: psutil.Process) -> tuple[dict[str, Any], int]:
    """What must be as before, and the memory."""
    info = at.pool.call("info", {}, b"", LONG_S).json()
    fixed = {**info["processes"], "fds": supervisor.num_fds(), "tasks": info["tasks"]}
    return fixed, supervisor.memory_info().rss


def test_a_dead_incarnation_answers_noproc(yard: Yard) -> None:
    tree = yard.start(server("one", restart="permanent"))
    old = tree.which_child("one").pid
    assert isinstance(old, Pid)
    athena.exit(old, "kill", supervisor=yard.at)
    wait_until(lambda: tree.which_child("one").pid not in (old, "restarting", None), CHILD_S)
    monitor = athena.monitor(old, supervisor=yard.at)
    assert monitor.wait(LONG_S) == Down(monitor.ref, old, old, "noproc")
    with pytest.raises(NoProcess):
        athena.call(old, ["value", 1], supervisor=yard.at)
    assert not athena.is_alive(old, supervisor=yard.at)
