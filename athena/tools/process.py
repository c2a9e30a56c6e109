"""Run one program for a tool: bounded in time and memory, and gone with all its descendants when the call is over.

The end of the program is a readable pidfd and its status a ``waitid`` on it; no child watcher and no signal handler
takes part, so this works the same on asyncio and uvloop, in any number of parallel calls.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from athena import proctree
from athena.tools.base import ToolFailure

COOKIE = "ATHENA_CALL"
"""Environment variable, random for each call, by which processes that left the tree are still known."""

KILL_LIMIT_S = 1.0
"""Longest time that the end of a call may take; only uninterruptible sleep can need it."""

_FAST_KILL_S = 0.02
"""How long a hunt may hold the event loop. A killed tree is normally gone after two milliseconds."""

_CHUNK_BYTES = 64 * 1024
_FIRST_LOOK_S = 0.005
_LAST_LOOK_S = 1.0

Sink = Callable[[bytes], bool]
"""Takes a piece of output; returns ``False`` when no more is wanted, which ends the program."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended. ``status`` is its exit code, or minus the signal; ``None`` if even a kill did not end it."""

    cause: Literal["exit", "timeout", "sink"]
    status: int | None
    duration_s: float
    survivors: tuple[int, ...] = ()


async def run_process(argv: Sequence[str], *, cwd: Path, env: dict[str, str], limit_s: float, sink: Sink) -> Ended:
    """Run ``argv`` with stdin from ``/dev/null`` and its output, stderr included, to ``sink``.

    When this returns or raises, cancellation included, the program and all that came from it are dead and reaped.
    Raises :class:`ToolFailure` if the program cannot be started.
    """
    started_at = time.monotonic()
    process = _Process(argv, cwd, env, sink)
    try:
        cause = await process.wait(limit_s)
    finally:
        await process.finish()
    return Ended(cause, process.status, time.monotonic() - started_at, tuple(process.survivors))


class _Process:
    def __init__(self, argv: Sequence[str], cwd: Path, env: dict[str, str], sink: Sink) -> None:
        self.status: int | None = None
        self.survivors: list[int] = []
        self._sink: Sink | None = sink
        self._cookie = (COOKIE, secrets.token_hex(12))
        self._seen: set[proctree.Identity] = set()
        self._look_s = _FIRST_LOOK_S
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[Literal["exit", "sink"]] = self._loop.create_future()
        self._output, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._output, False)
        try:
            self._pid, self._pidfd = _spawn(argv, cwd, {**env, self._cookie[0]: self._cookie[1]}, writer)
        except BaseException:
            os.close(self._output)
            raise
        finally:
            os.close(writer)

    async def wait(self, limit_s: float) -> Literal["exit", "timeout", "sink"]:
        self._loop.add_reader(self._output, self._read)
        self._loop.add_reader(self._pidfd, self._finished, "exit")
        self._timer = self._loop.call_later(self._look_s, self._look)
        try:
            async with asyncio.timeout(limit_s):
                return await self._done
        except TimeoutError:
            return "timeout"
        finally:
            self._timer.cancel()
            self._loop.remove_reader(self._output)
            self._loop.remove_reader(self._pidfd)

    async def finish(self) -> None:
        """Kill what is left, take the output that is there, reap. Done even if cancelled meanwhile."""
        try:
            with proctree.Hunt(self._pid, self._pidfd, cookie=self._cookie, seen=self._seen) as hunt:
                try:
                    await _drive(hunt)
                finally:
                    self.survivors = hunt.alive()
        finally:
            # Only now: with the writers dead the pipe holds what they wrote and nothing can add to it, so a background
            # process that keeps the pipe open neither delays the call nor loses output.
            self._drain()
            os.close(self._output)
            try:
                self.status = proctree.exit_status(self._pidfd)
            except ChildProcessError:
                pass  # other code in this process waited for all children; the status is lost, the call is not
            os.close(self._pidfd)

    def _finished(self, cause: Literal["exit", "sink"]) -> None:
        if not self._done.done():
            self._done.set_result(cause)

    def _read(self) -> bool:
        """Take one chunk of output. Returns whether there may be more now."""
        try:
            chunk = os.read(self._output, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._output)
        elif self._sink is not None and not self._sink(chunk):
            self._sink = None
            self._finished("sink")
        return bool(chunk)

    def _drain(self) -> None:
        capacity_bytes = fcntl.fcntl(self._output, fcntl.F_GETPIPE_SZ)
        for _ in range(capacity_bytes // 4096 + 1):  # even one page at a time: a survivor must not keep us here
            if not self._read():
                return

    def _look(self) -> None:
        """Remember who is below the program now.

        A daemon may leave the session, lose its parent and overwrite its environment (nginx and PostgreSQL do). It is
        then known only by having been seen below us, and no kernel event says "forked"; hence looks at growing
        intervals, at most one a second.
        """
        still_there = {member for member in self._seen if proctree.identity(member.pid) == member}
        self._seen = still_there | proctree.family(self._pid)
        self._look_s = min(self._look_s * 2, _LAST_LOOK_S)
        self._timer = self._loop.call_later(self._look_s, self._look)


async def _drive(hunt: proctree.Hunt) -> None:
    """Run the hunt to its end or the limit, at first without and then with turns for others."""
    try:
        if hunt.run(_FAST_KILL_S):
            return
        deadline = time.monotonic() + KILL_LIMIT_S
        while not hunt.sweep() and time.monotonic() < deadline:  # noqa: ASYNC110 - nothing to await: /proc has no events
            await asyncio.sleep(_FAST_KILL_S / 2)
    except asyncio.CancelledError:
        hunt.run(KILL_LIMIT_S)  # whoever is this impatient waits for the kill: leaving a tree behind is worse
        raise


def _spawn(argv: Sequence[str], cwd: Path, env: dict[str, str], output: int) -> tuple[int, int]:
    """Start the program in a session of its own. Returns its pid and pidfd."""
    try:
        process = subprocess.Popen(  # returns after the exec, about a millisecond
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=env, start_new_session=True
        )
    except (OSError, ValueError) as error:
        raise ToolFailure(f"could not start {argv[0]!r} in {str(cwd)!r}: {error}") from error
    # Tells Popen that there is nothing to wait for: its finaliser would reap the process, or warn that it has not.
    process.returncode = 0
    try:
        return process.pid, os.pidfd_open(process.pid)
    except OSError as error:
        os.killpg(process.pid, 9)  # our unreaped child: the number is its own
        os.waitpid(process.pid, 0)
        raise ToolFailure(f"could not watch {argv[0]!r}: {error}") from error
