"""Cgroups: which one is taken, and what a leaf does. Real ones where this machine lets one be made."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from athena.environment import ROOT
from supervisor import cgroup
from supervisor.process import ProcessTable, exit_reason
from tests.helpers import TIME_UNIT
from tests.process_fixtures import is_gone, start_python, table

__all__ = ["table"]

MIB = 1024 * 1024


@pytest.fixture
def delegated(tmp_path: Path) -> Path:
    """A directory with the files that a delegated cgroup shows."""
    path = tmp_path / "athena.service"
    path.mkdir()
    (path / "cgroup.controllers").write_text("cpu memory pids\n")
    (path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (path / "cgroup.subtree_control").write_text("")
    own = path / cgroup.OWN_LEAF
    own.mkdir()
    (own / "cgroup.procs").write_text("")
    return path


def test_a_delegated_cgroup_is_taken_and_its_processes_make_room(delegated: Path) -> None:
    (delegated / "session-1-1").mkdir()  # of a supervisor that was killed
    assert cgroup.Cgroups.claim(os.getpid(), own=delegated) is not None
    assert (delegated / cgroup.OWN_LEAF / "cgroup.procs").read_text() == str(os.getpid())
    assert (delegated / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert not (delegated / "session-1-1").exists()


def test_a_service_manager_may_have_put_us_into_the_leaf_already(delegated: Path) -> None:
    (delegated / "cgroup.procs").write_text("")
    assert cgroup.Cgroups.claim(os.getpid(), own=delegated / cgroup.OWN_LEAF) is not None
    assert (delegated / "cgroup.subtree_control").read_text() == "+memory +pids"


@pytest.mark.parametrize("what", ["a stranger in it", "no pids controller", "not shown"])
def test_a_cgroup_that_is_not_ours_is_left_alone(what: str, delegated: Path) -> None:
    if what == "a stranger in it":
        (delegated / "cgroup.procs").write_text(f"{os.getpid()}\n{os.getppid()}\n")
    elif what == "no pids controller":
        (delegated / "cgroup.controllers").write_text("memory\n")
    else:
        (delegated / "cgroup.controllers").unlink()
    assert cgroup.Cgroups.claim(os.getpid(), own=delegated) is None
    assert (delegated / "cgroup.subtree_control").read_text() == ""


def test_a_leaf_that_the_kernel_refuses_leaves_nothing(delegated: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = cgroup.Cgroups.claim(os.getpid(), own=delegated)
    assert found is not None
    assert found.leaf("2-2", os.getpid(), memory_bytes=MIB, processes=5) is None  # these files are nobody's
    assert "sampled only" in caplog.text
    assert not (delegated / "session-2-2").exists()


IN_A_REAL_CGROUP = """
import json, os, pathlib, subprocess, sys, time
from supervisor.cgroup import Cgroups, own_path
base = pathlib.Path(sys.argv[1])
(base / "cgroup.procs").write_text(str(os.getpid()))
controllers = sys.argv[2].split()
groups = Cgroups.claim(os.getpid(), controllers=controllers)
command = "read go; setsid sleep 1000 & setsid sleep 1000 & wait"
tree = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE)
leaf = groups.leaf("1-1", tree.pid, memory_bytes=64 << 20 if "memory" in controllers else None,
                   processes=8 if "pids" in controllers else None)
tree.stdin.write(b"go\\n")
tree.stdin.close()
def inside():
    return (leaf.path / "cgroup.procs").read_text().split()
def wait(condition):
    for _ in range(2000):
        if condition():
            return True
        time.sleep(0.005)
    return False
found = {"own": str(own_path()), "grew": wait(lambda: len(inside()) == 3)}
leaf.kill()
found["ended"] = tree.wait(10)
leaf.end()
found["is_left"] = leaf.path.exists()
print(json.dumps(found))
"""


@pytest.fixture
def real_cgroup() -> Iterator[Path]:
    """An empty cgroup of the second version, made for the test."""
    kinds = [(kind, mount) for kind, _, mount in cgroup._mounts() if kind == "cgroup2"]
    if not kinds:
        pytest.skip("no cgroup v2 is mounted here")
    path = kinds[0][1] / f"athena-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield path
    for one in (path / cgroup.OWN_LEAF, path):
        if one.exists():
            one.rmdir()


def test_a_real_leaf_holds_a_tree_and_is_killed_as_a_whole(real_cgroup: Path) -> None:
    offered = (real_cgroup / "cgroup.controllers").read_text().split()
    asked = " ".join(name for name in cgroup.CONTROLLERS if name in offered)
    ended = subprocess.run(
        [sys.executable, "-c", IN_A_REAL_CGROUP, str(real_cgroup), asked],
        capture_output=True, text=True, check=True, cwd=ROOT, timeout=30 * TIME_UNIT,
    )  # fmt: skip
    own = str(real_cgroup / cgroup.OWN_LEAF)
    assert json.loads(ended.stdout) == {"own": own, "grew": True, "ended": -9, "is_left": False}


def test_the_memory_of_the_machine_is_known_and_a_containers_is_less() -> None:
    assert 64 * MIB < cgroup.memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


async def test_a_death_takes_what_is_in_the_leaf_along_and_the_leaf(table: ProcessTable, real_cgroup: Path) -> None:
    leaf = cgroup.Cgroup(real_cgroup / "session-1-1")
    leaf.path.mkdir()
    process = start_python("import time; time.sleep(1000)", table)
    stranger = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)  # by no mark the child's
    for pid in (process.pid, stranger.pid):
        leaf.add(pid)
    process.cgroup = leaf
    process.kill()
    status = await process.wait()
    assert exit_reason(status.si_code, status.si_status) == "killed"
    assert is_gone(stranger.pid)
    assert await stranger.wait() == -9
    assert not leaf.path.exists()


async def test_a_child_that_ends_by_itself_takes_its_leaf_along(table: ProcessTable, real_cgroup: Path) -> None:
    leaf = cgroup.Cgroup(real_cgroup / "session-1-1")
    leaf.path.mkdir()
    process = start_python("input()", table)
    leaf.add(process.pid)
    process.cgroup = leaf
    await process.wait()
    assert not leaf.path.exists()
    assert leaf.oom_kills == 0
