"""The rules that the suite puts on itself are kept: no network, no secrets, and a leak is seen."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from athena.config import SOCKET_PATH_MAX_BYTES, default_paths
from tests.helpers import TIME_UNIT
from tests.house import NetworkForbidden, end, is_loopback, leftovers, wait_gone


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80, 0, 0), ("example.org", 443)])
def test_addresses_outside_this_machine_are_refused(address: tuple[object, ...]) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize("address", [("127.0.0.1", 80), ("::1", 80, 0, 0), ("localhost", 1), "/run/a.sock", b"\0name"])
def test_addresses_of_this_machine_are_allowed(address: object) -> None:
    assert is_loopback(address)


def test_a_connection_out_of_this_machine_is_refused_before_it_is_made() -> None:
    with socket.socket() as sock, pytest.raises(NetworkForbidden):
        sock.connect(("192.0.2.1", 9))


def test_a_name_of_another_machine_is_not_looked_up() -> None:
    with pytest.raises(NetworkForbidden):
        socket.getaddrinfo("example.org", 443)


def test_each_test_has_a_home_of_its_own_that_is_short_enough_for_a_socket(home: Path) -> None:
    paths = default_paths()
    assert paths.state == home
    assert len(os.fsencode(paths.runtime / "embedded-4194304-01234567" / "athena.sock")) <= SOCKET_PATH_MAX_BYTES


def test_secrets_and_proxies_of_the_tester_are_out_of_sight() -> None:
    assert not [name for name in os.environ if name.upper().endswith(("_API_KEY", "_PROXY", "_TOKEN"))]


@pytest.mark.parametrize(
    "mark",
    [
        pytest.param({"env": True}, id="by its environment"),
        pytest.param({"argument": True}, id="by its command line"),
        pytest.param({"cwd": True}, id="by its directory"),
    ],
)
def test_a_process_that_left_its_family_is_still_found(mark: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    pid = _orphan(root, **mark)
    left = leftovers([root])
    assert pid in [process.pid for process in left]
    assert "kill -STOP" in str(next(process for process in left if process.pid == pid))
    end(left)
    assert pid not in [process.pid for process in wait_gone([root], 5 * TIME_UNIT)]


def test_a_process_below_a_marked_one_is_found_though_it_shed_every_mark(tmp_path: Path) -> None:
    pid = _orphan(tmp_path, argument=True, shell="env -i sleep 1000 & kill -STOP $$")
    left = wait_gone([tmp_path], 0)
    while len(left) < 2:  # the shell has not started its child yet
        left = leftovers([tmp_path])
    assert {process.pid for process in left} > {pid}
    end(left)
    assert wait_gone([tmp_path], 5 * TIME_UNIT) == []


def test_a_directory_whose_name_begins_alike_is_anothers(tmp_path: Path) -> None:
    pid = _orphan(tmp_path / "root-12", argument=True)
    assert pid not in [process.pid for process in leftovers([tmp_path / "root", tmp_path / "root-1"])]
    end(leftovers([tmp_path / "root-12"]))


def _orphan(
    root: Path, *, env: bool = False, argument: bool = False, cwd: bool = False, shell: str = "kill -STOP $$"
) -> int:
    """A shell whose parent has gone, carrying ``root`` in one place only. It stops itself, so it starts nothing."""
    code = (
        "import subprocess, sys\n"
        "p = subprocess.Popen(['sh', '-c', *sys.argv[1:]], start_new_session=True, stdout=2)\n"
        "print(p.pid, flush=True); p.returncode = 0"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, shell, *([str(root)] if argument else [])],
        env={"PATH": os.environ["PATH"], **({"MARK": str(root)} if env else {})},
        cwd=root if cwd else "/",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        text=True,
    )
    return int(done.stdout)
