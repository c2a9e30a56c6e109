"""Looks at process trees: real ones, with pages that are shared, forked, and none of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from supervisor import sampling
from tests.helpers import wait_until

MIB = 1024 * 1024


@pytest.fixture
def program() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a Python program and returns when it has written a line; its tree is killed at the end."""
    started = []

    def start(code: str) -> subprocess.Popen[str]:
        one = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(one)
        assert one.stdout is not None
        assert one.stdout.readline()
        return one

    yield start
    for one in started:
        os.killpg(one.pid, 9)
        one.wait()
        assert one.stdout is not None
        one.stdout.close()


def test_a_look_sees_all_that_live_below_and_no_zombie(program: Callable[[str], subprocess.Popen[str]]) -> None:
    root = program("""
import os, time
if os.fork() == 0:
    os._exit(0)  # never reaped
children = [os.fork() for _ in range(3)]
if all(children):
    time.sleep(0.1)
    print("up", flush=True)
time.sleep(1000)
""").pid
    assert len(sampling.look(root).pids) >= 4
    assert sampling.look(root).pids[0] == root
    assert len(sampling.look(root, stop_above=2).pids) == 3


def test_an_exact_count_divides_what_is_shared_and_counts_shared_memory(
    program: Callable[[str], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "VFORK_S", 0.0)
    root = program(f"""
import mmap, os, time
held = bytearray(b"x") * {60 * MIB}
shared = mmap.mmap(-1, {40 * MIB})
shared[:] = b"x" * {40 * MIB}
if os.fork() and os.fork():
    print("up", flush=True)
time.sleep(1000)
""").pid
    wait_until(lambda: len(sampling.look(root).pids) == 3)
    seen = sampling.look(root)
    exact = sampling.count_exactly(seen.pids)
    assert seen.memory_bytes > 3 * 60 * MIB
    assert 100 * MIB < exact.memory_bytes < 160 * MIB


def test_a_process_that_runs_in_its_parents_pages_is_not_counted_twice(
    program: Callable[[str], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "VFORK_S", 3600.0)
    root = program(f"""
import ctypes, mmap, signal, time
held = bytearray(b"x") * {60 * MIB}
libc = ctypes.CDLL(None, use_errno=True)
stack = mmap.mmap(-1, 1 << 20)
top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + (1 << 20)
CLONE_VM = 0x100
libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
sleep = ctypes.cast(libc.sleep, ctypes.c_void_p)
assert libc.clone(sleep, top, CLONE_VM | signal.SIGCHLD, 1000) > 0
print("up", flush=True)
time.sleep(1000)
""").pid
    pids = sampling.look(root).pids
    assert len(pids) == 2
    assert sampling.count_exactly(pids).memory_bytes < 100 * MIB
    monkeypatch.setattr(sampling, "VFORK_S", 0.0)
    assert sampling.count_exactly(pids).memory_bytes > 120 * MIB


def test_a_look_at_nothing_finds_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert sampling.look(gone.pid) == sampling.Sample((), 0)


def test_the_counter_tells_of_a_kill_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    vmstat = [b"nr_free_pages 1\noom_kill 7\n"]
    monkeypatch.setattr(sampling, "_read", lambda path: vmstat[0])
    counter = sampling.OomCounter()
    assert not counter.has_risen(100.0)
    vmstat[0] = b"oom_kill 8\n"
    assert counter.has_risen(200.0)
    assert counter.has_risen(200.0 + sampling.OOM_WINDOW_S)
    assert not counter.has_risen(200.1 + sampling.OOM_WINDOW_S)
    vmstat[0] = b"nr_free_pages 1\n"  # a kernel that doesn't count
    assert not counter.has_risen(300.0)
