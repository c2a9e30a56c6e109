"""The launcher that forks a preloaded interpreter, through :mod:`athena.zygote`.

The zygote is a child of the supervisor like any other. When it dies, children that it forked live on: they are the
supervisor's own. Launches that it had not answered are cleared (a half-made child is found by its cookie and killed)
and made again by the next zygote.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from athena.environment import COOKIE_VARIABLE, scrubbed_environment
from athena.errors import StartError
from supervisor.launcher import (
    Disposals,
    Launched,
    LaunchRequest,
    Pipes,
    PlainLauncher,
    own,
    spawn,
)
from supervisor.logfile import LogFile
from supervisor.process import OsProcess, ProcessTable
from supervisor.process_roster import SHARED_COOKIE
from supervisor.zygote_process import ZygoteDied, ZygoteProcess

logger = logging.getLogger(__name__)

CONTROL_FD = 3
IN_FLIGHT = 8
"""Requests sent and not answered. The zygote serves one at a time; more would only fill its socket."""

ATTEMPTS = 3
"""Zygotes that one launch may outlive: a request that kills each one must not take all other launches along."""

STARTS = 5
"""Tries to bring a zygote up before the launches that wait for it fail."""

BACKOFF_S = 0.1
STEADY_S = 1.0
"""One that lives shorter than this is replaced only when a launch needs it, or after as long again."""

ANSWER_TIMEOUT_S = 15.0
"""For the zygote's next answer. One that is silent this long is stuck, and is replaced."""


class ZygoteLauncher:
    """Sessions by fork of the zygote, programs by exec. `log_path` is the zygote's own log.

    `entry` is ``module:function(read_fd, write_fd)`` and `preload` replaces the built-in list of imports.
    """

    def __init__(
        self,
        table: ProcessTable,
        *,
        log_path: str | Path,
        entry: str = "athena.child:main",
        preload: Sequence[str] | None = None,
        python: str = sys.executable,
    ) -> None:
        self._table = table
        self._log = LogFile(log_path)
        self._argv = [python, "-P", "-m", "athena.zygote", "--fd", str(CONTROL_FD), "--entry", entry]
        if preload is not None:
            self._argv += ["--preload", ",".join(preload)]
        self._programs = PlainLauncher(table)
        self._disposals = Disposals()
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._starting = asyncio.Lock()
        self._zygote: ZygoteProcess | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def outstanding(self) -> int:
        """Launches and deaths under way in this table; no orphan is judged unless it is 0."""
        return self._table.busy

    @property
    def zygote(self) -> OsProcess | None:
        """The zygote's process, for its memory baseline and for status."""
        return self._zygote.process if self._zygote else None

    async def start(self) -> None:
        """Bring the zygote up, and keep one up until :meth:`close`. Raises :class:`StartError`."""
        await self._usable()
        self._keeper = asyncio.create_task(self._keep(), name="zygote keeper")

    async def launch(self, request: LaunchRequest) -> Launched:
        """Start a child. Raises :class:`StartError`. If it fails or is cancelled, no process stays behind."""
        if request.kind == "program":
            return await self._programs.launch(request)
        async with self._slots:
            for _ in range(ATTEMPTS):
                zygote = await self._usable()
                try:
                    return await self._attempt(zygote, request)
                except ZygoteDied:
                    logger.warning("launch lost its zygote zygote=%d", zygote.process.pid)
        raise StartError(f"{ATTEMPTS} zygotes died over this launch", reason="zygote")

    async def close(self) -> None:
        """End the zygote. Children live on; launches under way fail."""
        self._is_closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._zygote is not None:
            await self._zygote.close()
        await self._disposals.wait_empty()
        await self._programs.close()

    async def _attempt(self, zygote: ZygoteProcess, request: LaunchRequest) -> Launched:
        try:
            pipes = Pipes()
        except OSError as error:
            raise StartError(f"could not launch: {error}", reason={"exec": str(error)}) from error
        try:
            answer = self._send(zygote, request, pipes)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    process = await answer
            except TimeoutError:
                zygote.end()
                await zygote.wait_over()
                raise ZygoteDied from None
        except BaseException:
            pipes.close_own_ends()
            raise
        return Launched(process, pipes.read, pipes.write)

    def _send(self, zygote: ZygoteProcess, request: LaunchRequest, pipes: Pipes) -> asyncio.Future[OsProcess]:
        try:
            log_fd = LogFile(request.log_path).open()
            try:
                return zygote.request(request, (pipes.child_read, pipes.child_write, log_fd))
            finally:
                os.close(log_fd)
        except OSError as error:
            raise StartError(f"could not launch: {error}", reason={"exec": str(error)}) from error
        finally:
            pipes.close_child_ends()

    async def _usable(self) -> ZygoteProcess:
        """The zygote, started again if it has died. Raises :class:`StartError` after :data:`STARTS` tries."""
        async with self._starting:
            if self._is_closed:
                raise StartError("the launcher is closed", reason="zygote")
            failure: StartError | None = None
            for attempt in range(STARTS):
                if self._zygote is not None and self._zygote.is_usable:
                    return self._zygote
                if self._zygote is not None:
                    await self._zygote.wait_over()
                if attempt:
                    await asyncio.sleep(BACKOFF_S * 2**attempt)
                try:
                    self._zygote = await self._start_one()
                except StartError as error:
                    failure = error
                    logger.warning("zygote did not start attempt=%d error=%s", attempt + 1, error)
                else:
                    return self._zygote
            assert failure is not None
            raise failure

    async def _start_one(self) -> ZygoteProcess:
        environment = scrubbed_environment(os.environ, **{COOKIE_VARIABLE: SHARED_COOKIE})
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                pid = self._spawn(theirs.fileno(), environment)
            except OSError as error:
                ours.close()
                raise StartError(f"could not start the zygote: {error}", reason="zygote") from error
        zygote = ZygoteProcess(own(pid, cookie="", table=self._table), ours, self._table, self._disposals)
        try:
            await zygote.wait_ready()
        except BaseException:
            zygote.end()
            await zygote.wait_over()
            raise
        return zygote

    def _spawn(self, control_fd: int, environment: dict[str, str]) -> int:
        log_fd = self._log.open()
        null_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return spawn(self._argv, environment, {0: null_fd, 1: log_fd, 2: log_fd, CONTROL_FD: control_fd})
        finally:
            os.close(log_fd)
            os.close(null_fd)

    async def _keep(self) -> None:
        """Have the next zygote ready before somebody needs it."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                zygote = await self._usable()
            except StartError as error:
                logger.error("no zygote; the next launch tries again error=%s", error)
                return
            since = loop.time()
            await zygote.wait_over()
            logger.warning("zygote died pid=%d", zygote.process.pid)
            if loop.time() - since < STEADY_S:
                await asyncio.sleep(STEADY_S)
