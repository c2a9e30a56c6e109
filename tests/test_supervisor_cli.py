"""The command ``athena-supervisor``, run as people and service managers run it."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from athena.config import default_socket
from tests.cli_fixtures import CTRL_C, Terminal, assert_one_line, athena, daemon, finish, start, supervisor
from tests.helpers import wait_until
from tests.process_fixtures import is_gone

__all__ = ["daemon"]

PROGRAM = "athena.cli.supervisor"


def test_none_runs(home: Path) -> None:
    assert supervisor("--version").out == "athena-supervisor 0.1.0\n"
    assert_one_line(supervisor("status"), 3, "no supervisor listens")
    assert_one_line(supervisor("stop"), 3, "nothing to stop")
    assert json.loads(supervisor("status", "--json").err)["error"] == "NotRunning"
    assert not home.exists()


def test_start_status_stop(daemon: Path) -> None:
    started = supervisor("start", "--json")
    assert started.code == 0, started.err
    pid = started.json["pid"]
    assert started.json["socket"] == str(default_socket())
    assert supervisor("status", "--json").json["pid"] == pid
    assert f"running (pid {pid})" in supervisor("status").out
    assert_one_line(supervisor("start"), 1, f"already running (pid {pid})")
    assert_one_line(supervisor("run"), 1, f"already running (pid {pid})")
    stopped = supervisor("stop")
    assert (stopped.code, stopped.out) == (0, f"stopped (pid {pid})\n")
    assert is_gone(pid)
    assert not default_socket().exists()


@pytest.mark.slow
def test_restart_ends_one_and_starts_another(daemon: Path) -> None:
    first = supervisor("restart", "--json").json["pid"]
    second = supervisor("restart", "--json").json["pid"]
    assert first != second
    assert is_gone(first)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["start", "run", "stop", "status"])
def test_another_programs_socket_is_left_alone(home: Path, command: str) -> None:
    path = default_socket()
    path.parent.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen()
        process = start(command, program=PROGRAM)
        with foreign.accept()[0] as peer:
            peer.recv(65536)
            peer.sendall(b"220 mail.example ESMTP ready, and then some\r\n")
        assert_one_line(finish(process), 3, "no Athena supervisor")
    assert path.is_socket()


@pytest.mark.slow
def test_a_file_in_the_sockets_place_is_left_alone(home: Path) -> None:
    path = default_socket()
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_text("precious")
    assert_one_line(supervisor("start"), 3, "in the way")
    assert path.read_text() == "precious"


@pytest.mark.slow
def test_a_second_daemon_on_one_state_directory_is_refused(daemon: Path, tmp_path: Path) -> None:
    pid = supervisor("start", "--json").json["pid"]
    other = {"ATHENA_SOCKET": str(tmp_path / "other.sock")}
    assert_one_line(supervisor("start", env=other), 3, f"pid {pid}", "ATHENA_HOME")
    ran = finish(start("run", program=PROGRAM, env=other))
    assert ran.code == 1
    assert f"pid {pid}" in ran.err
    assert not (tmp_path / "other.sock").exists()


@pytest.mark.slow
def test_ctrl_c_ends_the_foreground_with_everything_in_it(daemon: Path) -> None:
    with Terminal("run", program=PROGRAM) as terminal:
        terminal.wait_for("listening at")
        guard = terminal.pid
        pid = supervisor("status", "--json").json["pid"]
        kept = athena("chat", "bob", "--provider", "mock")
        assert kept.code == 0, kept.err
        child = athena("status", "bob", "--json").json["pid"]
        terminal.type(CTRL_C)
        assert terminal.end() == 0
    assert all(is_gone(p) for p in (guard, pid, child))
    assert not default_socket().exists()


@pytest.mark.slow
def test_sigterm_ends_the_foreground(daemon: Path) -> None:
    process = start("run", "--json", program=PROGRAM)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert Path(ready["socket"]) == default_socket()
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 0
    wait_until(lambda: is_gone(ready["pid"]))


@pytest.mark.slow
def test_a_killed_supervisor_is_started_again_by_the_next_session(daemon: Path) -> None:
    pid = supervisor("start", "--json").json["pid"]
    os.kill(pid, signal.SIGKILL)
    ran = athena("run", "hi", "--provider", "mock", "-o", 'mock=["there"]')
    assert (ran.code, ran.out) == (0, "there\n")
