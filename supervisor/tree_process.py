"""Leaves of a supervision tree: one OS process each, a program, a function or a server.

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
from typing import Any

from athena.errors import AlreadyStarted, AthenaError, Reason
from supervisor.child_spec import ChildSpec
from supervisor.keeper import Supervision
from supervisor.launcher import Launched, LaunchRequest
from supervisor.logfile import LogFile, Mark
from supervisor.member import Caller, Member, failure
from supervisor.notify import VARIABLE as NOTIFY_VARIABLE
from supervisor.notify import NotifySocket
from supervisor.process import OsProcess, exit_reason
from supervisor.processes import Name
from supervisor.restart import is_clean
from supervisor.tree_vocabulary import Ignored, Started, StartFailed, StartOutcome

logger = logging.getLogger(__name__)


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
        self._is_ready: asyncio.Future[Started | Ignored] = asyncio.get_running_loop().create_future()
        self._end: asyncio.Task[Reason] | None = None
        self._log = LogFile(self.log_file)
        self._mark = Mark()
        self.last_output: str | None = None
        """The end of what it wrote, once it has ended abnormally."""

    @property
    def os_pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def log_file(self) -> Path:
        """Where its output goes."""
        return self._around.logs / f"tree-{self.label}.log"

    # --- what a node says

    @property
    def name(self) -> Name | None:
        """What it is called, if its specification says so."""
        return self._spec.options.get("name")

    async def start(self) -> StartOutcome:
        limit = self._spec.start_timeout
        try:
            self._around.processes.register(self.name, self.serial)
            async with asyncio.timeout(None if isinstance(limit, str) else limit):
                outcome = await self._start()
        except TimeoutError:
            outcome = StartFailed("timeout")
        except AlreadyStarted as error:
            return StartFailed({"already_started": error.data["serial"]})
        if isinstance(outcome, Ignored) and self._intended is None:
            self._intended = "normal"  # it is on its way out by itself: that the kill may be faster is not told (5)
        if not isinstance(outcome, Started):
            await self._vanish()  # an immediate retry must find nothing of it (5)
        return outcome

    async def _vanish(self) -> None:
        if self._end is not None:
            self.kill()
            await asyncio.shield(self._end)
        self._around.processes.release_names(self.serial)

    @property
    def is_launched(self) -> bool:
        """Whether there has been a process."""
        return self._end is not None

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
            self.end_for(reason)

    def end_for(self, reason: Reason) -> None:
        self._intended = reason
        self.kill()

    def inform(self, message: dict[str, Any]) -> bool:
        return False  # if it has a use for messages, it reads them over a connection of its own

    # --- its life

    async def _start(self) -> StartOutcome:
        self._mark = self._log.mark()
        try:
            launched = await self._around.launcher.launch(self._request())
        except AthenaError as error:
            return StartFailed(failure(error))
        self._process = launched.process
        self._around.processes.add(self)
        self._end = asyncio.create_task(self._live(launched), name=f"{self.label} {launched.process.pid}")
        if self._is_doomed:
            launched.process.kill()
        await asyncio.wait([self._is_ready, self._end], return_when=asyncio.FIRST_COMPLETED)
        return self._is_ready.result() if self._is_ready.done() else StartFailed(self._end.result())

    async def _live(self, launched: Launched) -> Reason:
        """To the end of the whole process tree. Whoever wants to know of it has been told when this returns."""
        reason = await self._run(launched)
        self._around.processes.exited(self.serial, reason)
        self.on_gone(reason)  # in this turn: who has seen a Down and asks the supervisor must find that it knows (14)
        return reason

    async def _run(self, launched: Launched) -> Reason:
        try:
            await self._connect(launched)
        except (OSError, AthenaError) as error:
            self._intended = {"pipe": str(error)}
            launched.process.kill()
        status = await launched.process.wait()
        await self._drain()
        was_killed = status.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        intended = self._intended if was_killed else None
        reason = exit_reason(status.si_code, status.si_status, self._announced, intended)
        if not is_clean(reason):
            self.last_output = self._log.last_output(self._mark)
        with contextlib.suppress(OSError):  # a log that cannot be looked at holds nothing up
            self._log.discard_if_empty()
        return reason

    @abstractmethod
    def _request(self) -> LaunchRequest:
        """What to launch."""

    @abstractmethod
    async def _connect(self, launched: Launched) -> None:
        """Take charge of its pipes. Raises OSError."""

    async def _drain(self) -> None:
        """Nothing of it is left: read its last words."""


class Program(Leaf):
    """A program: ready when its exec has succeeded, or when it has notified, if its specification says that it does."""

    _notices: NotifySocket | None = None

    @property
    def status_text(self) -> str | None:
        """What it says of itself, if it notifies."""
        return None if self._notices is None else self._notices.status

    async def _start(self) -> StartOutcome:
        try:
            return await super()._start()
        except OSError as error:  # no socket for its notices
            return StartFailed({"exec": str(error)})
        finally:
            if self._process is None and self._notices is not None:
                self._notices.close()

    def _request(self) -> LaunchRequest:
        assert isinstance(self._spec.start, tuple)
        cookie, env = self._around.new_cookie(), self._caller.env
        if self._spec.ready == "notify":
            self._notices = NotifySocket(cookie, self._on_ready)
            env = {**env, NOTIFY_VARIABLE: self._notices.address}
        return LaunchRequest(
            kind="program",
            cookie=cookie,
            log_path=self.log_file,
            argv=[*self._spec.start, *map(str, self._spec.args or ())],
            cwd=self._caller.cwd,
            env=env,
            is_quiet=True,
        )

    async def _connect(self, launched: Launched) -> None:
        os.close(launched.read_fd)
        os.close(launched.write_fd)
        if self._notices is None:
            self._on_ready()
        else:
            self._notices.follow(launched.process.pid)

    async def _drain(self) -> None:
        if self._notices is not None:
            self._notices.read()
            self._notices.close()

    def _on_ready(self) -> None:
        if not self._is_ready.done():
            self._is_ready.set_result(Started(self.serial))
