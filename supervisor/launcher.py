"""How children are started: the launcher interface and the plain launcher.

A launcher hands out processes that are the supervisor's own direct children, each in a session and group of its own, a
subreaper before any user code runs, stdin empty, stdout and stderr in its own log, and nothing of the supervisor's
descriptors but its two pipe ends. :class:`supervisor.zygote_launcher.ZygoteLauncher` forks a preloaded interpreter;
:class:`PlainLauncher` execs a new one, and execs programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from athena import proctree
from athena.environment import COOKIE_VARIABLE, scrubbed_environment
from athena.errors import InvalidOption, StartError
from supervisor import trampoline
from supervisor.logfile import LogFile
from supervisor.process import OsProcess, ProcessTable, wait_readable

COOKIE_PATTERN = re.compile(r"[A-Za-z0-9_-]{8,64}")

FUNCTION_MODULE = "athena.function_child"
"""The entry point of a child that runs a function of the user's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """What to start. Raises :class:`InvalidOption` if it makes no sense.

    ``session``, ``function``: the child's entry point, talking over two pipes. ``program``: `argv`, whose stdin and
    stdout are the pipes, or with `is_quiet` nothing and the log; its whole environment is `env` (default: the scrubbed
    one); stderr is the log. `cookie` is new for every launch and ends up as ``ATHENA_COOKIE`` in everything the child
    starts. `cwd` defaults to ``/``.
    """

    kind: Literal["session", "function", "program"]
    cookie: str
    log_path: str | Path
    argv: Sequence[str] = ()
    cwd: str | None = None
    env: Mapping[str, str] | None = None
    is_quiet: bool = False

    def __post_init__(self) -> None:
        if not COOKIE_PATTERN.fullmatch(self.cookie):
            raise InvalidOption(option="cookie", value=repr(self.cookie), expected=COOKIE_PATTERN.pattern)
        if (self.kind == "program") != bool(self.argv):
            raise InvalidOption(option="argv", value=repr(self.argv), expected="for a program, and only there")


@dataclass(frozen=True, slots=True)
class Launched:
    """A started child. The receiver owns both descriptors: non-blocking, close-on-exec, of the supervisor's side."""

    process: OsProcess
    read_fd: int
    write_fd: int


class Launcher(Protocol):
    """Starts children. One launcher serves a supervisor for its whole life."""

    async def start(self) -> None:
        """Make ready to launch. Raises :class:`StartError`."""

    async def launch(self, request: LaunchRequest) -> Launched:
        """Start a child. Raises :class:`StartError`. If it fails or is cancelled, no process stays behind."""

    async def close(self) -> None:
        """End the launcher's own helpers. Children live on."""


class Pipes:
    """The two pipes of one launch: ``child_read``/``child_write`` go to the child, ``read``/``write`` stay here."""

    def __init__(self) -> None:
        self.child_read, self.write = os.pipe()
        try:
            self.read, self.child_write = os.pipe()
        except OSError:
            os.close(self.child_read)
            os.close(self.write)
            raise
        os.set_blocking(self.read, False)
        os.set_blocking(self.write, False)

    def close_child_ends(self) -> None:
        """The child has its copies. Ours must go, or the end of the child would not end the pipe."""
        os.close(self.child_read)
        os.close(self.child_write)

    def close_own_ends(self) -> None:
        """The launch failed: a child that did come up sees the end of its pipe."""
        os.close(self.read)
        os.close(self.write)


class Disposals:
    """Children that came up after nobody wanted them any more: each is killed and seen to its end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()

    def add(self, process: OsProcess) -> None:
        """Kill `process`; its death is carried out in the background."""
        process.kill()
        task: asyncio.Task[object] = asyncio.create_task(process.wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait_empty(self) -> None:
        """Wait until all of them are over."""
        if self._tasks:
            await asyncio.wait(self._tasks)


class PlainLauncher:
    """Execs what it launches: slow (an interpreter's start), works with any `python`, needs no helper process.

    `module` is what a session child runs, as ``python -P -m MODULE READ_FD WRITE_FD``.
    """

    def __init__(self, table: ProcessTable, *, python: str = sys.executable, module: str = "athena.child") -> None:
        self._table = table
        self._python = python
        self._module = module
        self._disposals = Disposals()

    @property
    def outstanding(self) -> int:
        """Launches and deaths under way in this table; no orphan is judged unless it is 0."""
        return self._table.busy

    async def start(self) -> None:
        """Nothing to prepare."""

    async def launch(self, request: LaunchRequest) -> Launched:
        """Start a child and wait for its exec. Raises :class:`StartError` with what exec said."""
        self._table.begin()
        try:
            return await self._launch(request)
        except OSError as error:
            raise StartError(f"could not launch: {error}", reason={"exec": str(error)}) from error
        finally:
            self._table.end()

    async def close(self) -> None:
        """Wait for unwanted children to be gone."""
        await self._disposals.wait_empty()

    async def _launch(self, request: LaunchRequest) -> Launched:
        pipes = Pipes()
        report_fd, child_report_fd = os.pipe()
        try:
            try:
                process = self._spawn(request, pipes, child_report_fd)
            finally:
                pipes.close_child_ends()
                os.close(child_report_fd)
            try:
                await wait_readable(report_fd)
                if problem := os.read(report_fd, 1024):
                    raise OSError(problem.decode(errors="replace"))
            except BaseException:
                self._disposals.add(process)
                raise
        except BaseException:
            pipes.close_own_ends()
            raise
        finally:
            os.close(report_fd)
        return Launched(process, pipes.read, pipes.write)

    def _spawn(self, request: LaunchRequest, pipes: Pipes, report_fd: int) -> OsProcess:
        """Without a wait in it, so that between the spawn and the pidfd nothing else can run and reap."""
        first = trampoline.FIRST_PASSED_FD
        environment = scrubbed_environment(os.environ) if request.env is None else dict(request.env)
        module = FUNCTION_MODULE if request.kind == "function" else self._module
        argv = list(request.argv) or [self._python, "-P", "-m", module, str(first), str(first + 1)]
        spec = {
            "argv": argv,
            "env": environment | {COOKIE_VARIABLE: request.cookie},
            "cwd": request.cwd or "/",
            "fds": 0 if request.kind == "program" else 2,
        }
        with contextlib.ExitStack() as stack:
            log_fd = stack.enter_context(_closing(LogFile(request.log_path).open()))
            null_fd = stack.enter_context(_closing(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)))
            spec_fd = stack.enter_context(_closing(_memory_file(json.dumps(spec).encode())))
            placed = {2: log_fd, trampoline.REPORT_FD: report_fd, trampoline.SPEC_FD: spec_fd}
            if request.is_quiet:
                placed |= {0: null_fd, 1: log_fd}
            elif request.kind == "program":
                placed |= {0: pipes.child_read, 1: pipes.child_write}
            else:
                placed |= {0: null_fd, 1: log_fd, first: pipes.child_read, first + 1: pipes.child_write}
            trampoline_argv = [sys.executable, "-I", "-S", trampoline.__file__]
            pid = spawn(trampoline_argv, scrubbed_environment(os.environ), placed)
        return own(pid, cookie=request.cookie, table=self._table)


def own(pid: int, *, cookie: str, table: ProcessTable) -> OsProcess:
    """Take charge of a child that was just spawned: call it before anything else gets to run."""
    pidfd = os.pidfd_open(pid)
    row = proctree.stat(pid)
    assert row is not None, "a child that nobody has reaped has a row"
    return OsProcess(pid, pidfd, row.starttime, cookie=cookie, table=table)


def spawn(argv: Sequence[str], environment: Mapping[str, str], placed: Mapping[int, int]) -> int:
    """Start `argv` in a new session with default signals; descriptor ``placed[n]`` of ours is its ``n``. Its pid.

    All other descriptors of a supervisor are close-on-exec. Raises OSError.
    """
    with contextlib.ExitStack() as stack:
        # Copied above all targets first: a source could have the number of a target that is filled before it.
        above = max(placed) + 1
        copies = {
            target: stack.enter_context(_closing(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, above)))
            for target, source in placed.items()
        }
        return os.posix_spawn(
            argv[0],
            list(argv),
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, copy, target) for target, copy in copies.items()],
            setsid=True,
            setsigmask=(),
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _memory_file(content: bytes) -> int:
    """Not a pipe: an environment can be larger than a pipe of an ordinary user takes at once."""
    fd = os.memfd_create("athena-launch", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    return fd
