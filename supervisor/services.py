"""Programs that sessions share, started on first use: the embedded model's server is one.

A service is named by who asks for it; all who name it get the same process. It is restarted like any permanent child,
and who uses it asks again before each use, so a new address after a restart reaches everybody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from athena.environment import scrubbed_environment
from athena.errors import AthenaError, InvalidOption, Reason, StartError
from supervisor import core
from supervisor.core import SessionCore, State
from supervisor.launcher import Launched, Launcher, LaunchRequest
from supervisor.process import OsProcess, exit_reason
from supervisor.restart import Restart
from supervisor.spec import SessionSpec

logger = logging.getLogger(__name__)

READY_LINE_BYTES = 64 * 1024
SPEC = SessionSpec(restart=Restart.PERMANENT, start_timeout=120.0, shutdown=2.0)
"""A model server loads weights before it is ready: seconds, on a slow disk a minute."""


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """What to run: ``argv`` (``"{python}"`` is this interpreter) prints one JSON line when it is ready."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict, repr=False)

    @staticmethod
    def from_map(value: Any) -> ServiceSpec:
        """Raises :class:`InvalidOption` unless ``value`` is ``{"name", "argv", "env"}``."""
        match value:
            case {"name": str(name), "argv": [*argv], **rest} if argv and all(isinstance(a, str) for a in argv):
                return ServiceSpec(name, tuple(argv), dict(rest.get("env") or {}))
            case _:
                raise InvalidOption(
                    "a service needs name and argv", option="service", value=repr(value), expected="argv"
                )


class Service:
    """One shared program under supervision."""

    def __init__(self, spec: ServiceSpec, launcher: Launcher, logs: Path, new_cookie: Any) -> None:
        self.spec = spec
        self.core = SessionCore(SPEC)
        self._launcher = launcher
        self._logs = logs
        self._new_cookie = new_cookie
        self._process: OsProcess | None = None
        self._stdin: int | None = None
        self._intended: Reason = None
        self._ready: dict[str, Any] = {}
        self._waiters: list[asyncio.Future[dict[str, Any]]] = []
        self._removed: list[asyncio.Future[None]] = []
        self._timers: dict[core.Timer, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def log_file(self) -> Path:
        return self._logs / f"service-{self.spec.name}.log"

    def status(self) -> dict[str, Any]:
        """For listings."""
        return {
            "service": self.spec.name,
            "state": self.core.state.value,
            "pid": self.core.pid,
            "incarnation": self.core.incarnation,
            "last_reason": self.core.last_reason,
            "log_file": str(self.log_file),
        }

    async def endpoint(self) -> dict[str, Any]:
        """What it said when it was ready, and its ``env``. Waits for a start. Raises :class:`StartError`."""
        if self.core.state is State.RUNNING:
            return self._ready
        waiter: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if self.core.state is State.NEW:
            self._feed(core.Start())
        elif self.core.state is State.FAILED:
            self._feed(core.RestartRequested())
        return await waiter

    async def stop(self) -> None:
        """End it and return when nothing of it is left."""
        if self.core.state in (State.NEW, State.ENDED):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._removed.append(waiter)
        self._feed(core.StopRequested("shutdown"))
        await waiter

    def _feed(self, given: core.Input) -> None:
        for effect in self.core.handle(given, time.monotonic()):
            self._carry_out(effect)

    def _carry_out(self, effect: core.Effect) -> None:
        match effect:
            case core.Spawn(incarnation):
                self._track(self._live(incarnation))
            case core.SendShutdown(_):
                self._close_stdin()
                if self._process is not None:
                    self._process.terminate()
            case core.Kill(reason):
                self._intended = reason
                if self._process is not None:
                    self._process.kill()
            case core.SetTimer(kind, delay_s, then):
                self._cancel(kind)
                self._timers[kind] = asyncio.get_running_loop().call_later(delay_s, self._feed, then)
            case core.CancelTimer(kind):
                self._cancel(kind)
            case core.Announce(state, reason):
                logger.info("service=%s state=%s reason=%r", self.spec.name, state.value, reason)
                if state is State.RUNNING:
                    self._answer(self._ready)
                elif state is State.FAILED:
                    self._answer(self._error(reason))
            case core.StartFailed(reason) | core.FailCalls(_, reason):
                self._answer(self._error(reason))
            case core.Removed(_):
                for waiter in self._removed:
                    waiter.set_result(None)
            case core.StartSucceeded() | core.Died() | core.RestartRefused():
                pass
            case _:
                assert_never(effect)

    async def _live(self, incarnation: int) -> None:
        self._intended = None
        env = self.spec.env | scrubbed_environment(os.environ)
        argv = [sys.executable if a == "{python}" else a for a in self.spec.argv]
        request = LaunchRequest(kind="program", cookie=self._new_cookie(), log_path=self.log_file, argv=argv, env=env)
        try:
            launched = await self._launcher.launch(request)
        except AthenaError as error:
            self._feed(core.Exited(incarnation, error.data.get("reason", str(error)), random.random()))
            return
        self._process, self._stdin = launched.process, launched.write_fd
        self._feed(core.Spawned(incarnation, launched.process.pid))
        reader = self._track(self._read_stdout(incarnation, launched))
        status = await launched.process.wait()
        reader.cancel()
        self._close_stdin()
        was_killed = status.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        reason = exit_reason(status.si_code, status.si_status, None, self._intended if was_killed else None)
        self._feed(core.Exited(incarnation, reason, random.random()))

    async def _read_stdout(self, incarnation: int, launched: Launched) -> None:
        """Its first line tells that it is ready; what follows is read so that it never blocks, and dropped."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=READY_LINE_BYTES)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(launched.read_fd, "rb", 0)
        )
        try:
            line = await reader.readline()
            ready = json.loads(line) if line else None
            if not isinstance(ready, dict):
                return  # it ended, or said nothing we know; the exit or the start timeout follows
            self._ready = {**ready, "env": self.spec.env}
            self._feed(core.Ready(incarnation))
            while await reader.read(READY_LINE_BYTES):
                pass
        except ValueError as error:
            self._feed(core.InitFailed(incarnation, {"error": f"its first line is not JSON: {error}"}))
        finally:
            transport.close()

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

    def _error(self, reason: Reason) -> StartError:
        return StartError(
            f"service {self.spec.name!r} did not start: {reason!r}; its output is in {self.log_file}", reason=reason
        )

    def _answer(self, outcome: dict[str, Any] | StartError) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if isinstance(outcome, StartError):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)

    def _cancel(self, kind: core.Timer) -> None:
        handle = self._timers.pop(kind, None)
        if handle is not None:
            handle.cancel()

    def _track(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Services:
    """The shared programs of one supervisor, by name."""

    def __init__(self, launcher: Launcher, logs: Path, new_cookie: Any) -> None:
        self._launcher = launcher
        self._logs = logs
        self._new_cookie = new_cookie
        self.by_name: dict[str, Service] = {}

    async def endpoint(self, spec: ServiceSpec) -> dict[str, Any]:
        """The endpoint of this service, started if it isn't there or has ended."""
        found = self.by_name.get(spec.name)
        if found is None or found.core.state is State.ENDED:
            found = self.by_name[spec.name] = Service(spec, self._launcher, self._logs, self._new_cookie)
        return await found.endpoint()

    async def stop(self) -> None:
        """End all."""
        await asyncio.gather(*(service.stop() for service in self.by_name.values()))
