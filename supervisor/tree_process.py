"""Leaves of a supervision tree: one OS process each, a program or a function.

What a leaf owes its node: a start that failed has left nothing; an end is told when the whole tree of the process is
gone. Numbers in comments are sections of `reference/otp.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from abc import abstractmethod
from pathlib import Path

from athena.channel import Channel, open_pipes
from athena.errors import AthenaError, Reason
from athena.wire import Frame, dumps
from supervisor.child_spec import ChildSpec
from supervisor.keeper import Supervision
from supervisor.launcher import Launched, LaunchRequest
from supervisor.logfile import LogFile
from supervisor.member import Caller, Member, failure
from supervisor.process import OsProcess, exit_reason
from supervisor.tree_vocabulary import Started, StartFailed, StartOutcome

logger = logging.getLogger(__name__)

DRAIN_S = 1.0
"""How long a dead child's pipe is read for its last words."""


class Leaf(Member):
    """One process under a node."""

    def __init__(self, spec: ChildSpec, label: str, caller: Caller, around: Supervision) -> None:
        super().__init__(around.next_serial(), label, around.supervisor_id)
        self._spec = spec
        self._caller = caller
        self._around = around
        self._process: OsProcess | None = None
        self._announced: Reason = None
        """The reason that it gave itself before it ended."""
        self._intended: Reason = None
        """The reason for which we killed it."""
        self._is_doomed = False
        self._is_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._end: asyncio.Task[Reason] | None = None

    @property
    def os_pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def log_file(self) -> Path:
        """Where its output goes."""
        return self._around.logs / f"tree-{self.label}.log"

    # --- what a node says

    async def start(self) -> StartOutcome:
        limit = self._spec.start_timeout
        try:
            async with asyncio.timeout(None if isinstance(limit, str) else limit):
                outcome = await self._start()
        except TimeoutError:
            outcome = StartFailed("timeout")
        if isinstance(outcome, StartFailed) and self._end is not None:
            self.kill()
            await asyncio.shield(self._end)  # an immediate retry must find nothing of it (5)
        return outcome

    async def wait(self) -> Reason:
        assert self._end is not None, "it was started"
        return await asyncio.shield(self._end)

    def shut_down(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        self._is_doomed = True
        if self._process is not None:
            self._process.kill()

    def exit(self, reason: Reason) -> None:
        if reason != "normal":  # which does nothing to who is not trapping (14)
            self._intended = reason
            self.kill()

    # --- its life

    async def _start(self) -> StartOutcome:
        try:
            launched = await self._around.launcher.launch(self._request())
        except AthenaError as error:
            return StartFailed(failure(error))
        self._process = launched.process
        self._end = asyncio.create_task(self._live(launched), name=f"{self.label} {launched.process.pid}")
        if self._is_doomed:
            launched.process.kill()
        await asyncio.wait([self._is_ready, self._end], return_when=asyncio.FIRST_COMPLETED)
        if self._is_ready.done():
            return Started(self.serial)
        return StartFailed(self._end.result())

    async def _live(self, launched: Launched) -> Reason:
        """To the end of the whole process tree."""
        try:
            await self._connect(launched)
        except (OSError, AthenaError) as error:
            self._intended = {"pipe": str(error)}
            launched.process.kill()
        status = await launched.process.wait()
        await self._drain()
        with contextlib.suppress(OSError):  # a log that cannot be looked at holds nothing up
            LogFile(self.log_file).discard_if_empty()
        was_killed = status.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        intended = self._intended if was_killed else None
        return exit_reason(status.si_code, status.si_status, self._announced, intended)

    @abstractmethod
    def _request(self) -> LaunchRequest:
        """What to launch."""

    @abstractmethod
    async def _connect(self, launched: Launched) -> None:
        """Take charge of its pipes. Raises OSError."""

    async def _drain(self) -> None:
        """Nothing of it is left: read its last words."""


class Program(Leaf):
    """A program: ready when its exec has succeeded."""

    def _request(self) -> LaunchRequest:
        assert isinstance(self._spec.start, tuple)
        return LaunchRequest(
            kind="program",
            cookie=self._around.new_cookie(),
            log_path=self.log_file,
            argv=[*self._spec.start, *map(str, self._spec.args or ())],
            cwd=self._caller.cwd,
            env=self._caller.env,
            is_quiet=True,
        )

    async def _connect(self, launched: Launched) -> None:
        os.close(launched.read_fd)
        os.close(launched.write_fd)
        self._is_ready.set_result(None)


class Function(Leaf):
    """A function of the user's: ready when it is entered, ``normal`` when it returns."""

    _channel: Channel | None = None
    _closed: asyncio.Event | None = None

    def _request(self) -> LaunchRequest:
        return LaunchRequest(kind="function", cookie=self._around.new_cookie(), log_path=self.log_file)

    async def _connect(self, launched: Launched) -> None:
        closed = asyncio.Event()
        self._channel = await open_pipes(launched.read_fd, launched.write_fd, self._on_frame, lambda _: closed.set())
        self._closed = closed
        self._send_init(self._channel)

    async def _drain(self) -> None:
        if self._channel is None or self._closed is None:
            return
        try:
            await asyncio.wait_for(self._closed.wait(), DRAIN_S)
        except TimeoutError:
            self._channel.abort(None)

    def _send_init(self, channel: Channel) -> None:
        body = {
            "args": list(self._spec.args or ()),
            "kwargs": dict(self._spec.kwargs),
            "env": self._caller.env,
            "cwd": self._caller.cwd,
            "python_path": list(self._caller.python_path),
        }
        channel.send({"kind": "init", "function": self._spec.start}, dumps(body), control=True)

    def _on_frame(self, frame: Frame) -> None:
        match frame.kind:
            case "ready":
                if not self._is_ready.done():
                    self._is_ready.set_result(None)
            case "init_error" | "exiting":
                self._announced = frame.header.get("reason")
            case other:
                logger.warning("%s sent an unknown frame kind=%r", self.label, other)
