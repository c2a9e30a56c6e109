"""Programs that sessions share, started on first use: the embedded model's server is one.

A service is named by who asks for it; all who name it get the same process. It is restarted like any permanent child,
and who uses it asks again before each use, so a new address after a restart reaches everybody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from athena.environment import scrubbed_environment
from athena.errors import InvalidOption, Reason, StartError
from supervisor import vocabulary as words
from supervisor.launcher import Launched, Launcher, LaunchRequest
from supervisor.leaf import Leaf, Waiters
from supervisor.restart import Restart
from supervisor.spec import SessionSpec
from supervisor.vocabulary import State

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
            case {"name": str(name), "argv": [*argv], "env": dict(env)} if argv:
                return ServiceSpec(name, tuple(map(str, argv)), {str(k): str(v) for k, v in env.items()})
            case _:
                expected = '{"name": ..., "argv": [...], "env": {...}}'
                raise InvalidOption(
                    f"a service needs {expected}", option="service", value=repr(value), expected=expected
                )


class Service(Leaf):
    """One shared program under supervision."""

    def __init__(self, spec: ServiceSpec, launcher: Launcher, logs: Path, new_cookie: Any) -> None:
        super().__init__(SPEC, f"service {spec.name!r}")
        self.spec = spec
        self._launcher = launcher
        self._logs = logs
        self._new_cookie = new_cookie
        self._stdin: int | None = None
        self._ready: dict[str, Any] = {}
        self._endpoints: Waiters[dict[str, Any]] = Waiters()

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
        waiter = self._endpoints.add()
        if self.core.state is State.NEW:
            self.feed(words.Start())
        elif self.core.state is State.FAILED:
            self.feed(words.RestartRequested())
        return await waiter

    def _ask_to_end(self, reason: Reason) -> None:
        self._close_stdin()
        if self._process is not None:
            self._process.terminate()

    def _on_state(self, state: State, reason: Reason) -> None:
        if state is State.RUNNING:
            self._endpoints.resolve(self._ready)
        elif state in (State.FAILED, State.ENDED):
            self._endpoints.resolve(self._start_error(reason))

    async def _live(self, incarnation: int) -> Reason:
        self._intended = None
        env = self.spec.env | scrubbed_environment(os.environ)
        argv = [sys.executable if a == "{python}" else a for a in self.spec.argv]
        launched = await self._launcher.launch(
            LaunchRequest(kind="program", cookie=self._new_cookie(), log_path=self.log_file, argv=argv, env=env)
        )
        self._process, self._stdin = launched.process, launched.write_fd
        self.feed(words.Spawned(incarnation, launched.process.pid))
        reader = self._spawn_task(self._read_stdout(incarnation, launched))
        status = await launched.process.wait()
        reader.cancel()
        self._close_stdin()
        return self._reason(status)

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
            self.feed(words.Ready(incarnation))
            while await reader.read(READY_LINE_BYTES):
                pass
        except ValueError as error:
            self.feed(words.InitFailed(incarnation, {"error": f"its first line is not JSON: {error}"}))
        finally:
            transport.close()

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

    def _start_error(self, reason: Reason) -> StartError:
        return StartError(f"{self.label} did not start: {reason!r}; its output is in {self.log_file}", reason=reason)


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
