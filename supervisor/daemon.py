"""One supervisor: its parts put together, from its first line to its last.

Run by the guard as ``python -m supervisor.daemon``, as the user's daemon or embedded for one calling program. It says
once, on the ready descriptor, that it listens or why it cannot, as one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import gc
import itertools
import logging
import logging.handlers
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from athena import failpoints, proctree
from athena.config import Paths
from athena.errors import AthenaError, Reason, Refused, to_wire
from athena.wire import Frame
from supervisor import commands, process_roster, roster
from supervisor.forest import Forest, check_name_is_free, settled
from supervisor.guard import GUARD_VARIABLE, watch_guard
from supervisor.keeper import Keeper
from supervisor.launcher import Launcher, PlainLauncher
from supervisor.left_behind import sweep, sweep_runtime
from supervisor.limits import Limits
from supervisor.probe import Probe
from supervisor.process import ProcessTable
from supervisor.process_roster import ProcessRoster
from supervisor.processes import Processes
from supervisor.readiness import ReadyLine, tell_service_manager
from supervisor.reaper import Reaper
from supervisor.registries import Registries
from supervisor.registry import Registry
from supervisor.respawn import Respawn
from supervisor.roster import Owner, Roster
from supervisor.server import Connection, Server
from supervisor.services import Services, ServiceSpec
from supervisor.session_request import SessionRequest
from supervisor.tree_session import TreeKeeper
from supervisor.vocabulary import State
from supervisor.zygote_launcher import ZygoteLauncher

logger = logging.getLogger(__name__)

STOP_LIMIT_S = 8.0
"""How long an ordered stop may take in all; what is left then is the guard's."""

LOG_BYTES, LOG_FILES = 1024 * 1024, 2

_MAY_BE_PRESENTED = frozenset({State.HIBERNATING, State.HIBERNATED, State.STARTING, State.RUNNING, State.BACKOFF})


class Daemon:
    """A running supervisor."""

    def __init__(self, paths: Paths, socket_path: Path, mode: str, *, plain: bool = False) -> None:
        self.paths = paths
        self.mode = mode
        self.logs = paths.logs
        self.supervisor_id = secrets.token_urlsafe(6)
        self.started_at = time.monotonic()
        self.registry = Registry()
        guard_pid = os.environ.get(GUARD_VARIABLE) if mode == "daemon" else None
        self.limits = Limits(self.registry, None if guard_pid is None else int(guard_pid))
        self._serials = itertools.count(1)
        self.table = ProcessTable(ProcessRoster(paths.state / process_roster.DIRECTORY))
        self.launcher: Launcher = (
            PlainLauncher(self.table) if plain else ZygoteLauncher(self.table, log_path=paths.logs / "zygote.log")
        )
        self.services = Services(self.launcher, paths.logs, self.new_cookie)
        self.socket = socket_path
        self.processes = Processes(self.supervisor_id, self.next_serial, self.registry)
        self.registries = Registries(self)
        self.processes.vias = self.registries
        self.processes.on_exit.append(self.registries.forget)
        self.forest = Forest(self, self.unlink)
        self.server = Server(
            socket_path,
            supervisor_id=self.supervisor_id,
            mode=mode,
            dispatch=lambda c, f: commands.dispatch(self, c, f),
            on_closed=self._connection_closed,
        )
        self._references = itertools.count(1)
        self._links: dict[int, _Owner] = {}
        self._stopping: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self.service_manager: str | None = None
        """The socket of who wants to know when this supervisor listens and when it stops."""
        self.roster = Roster(paths.state / roster.FILE) if mode == "daemon" else None
        """An embedded one has none: its program holds what it would say, and presents it."""
        self.respawn = None if self.roster is None else Respawn(self, self.roster)

    # --- what keepers, trees and commands need

    @property
    def sessions(self) -> Path:
        """The default root of event logs."""
        return self.paths.sessions

    def next_serial(self) -> int:
        """A number no other incarnation under this supervisor ever had."""
        return next(self._serials)

    def next_reference(self) -> int:
        """A monitor's reference."""
        return next(self._references)

    def new_cookie(self) -> str:
        """What everything below one child carries in its environment."""
        return secrets.token_urlsafe(18)

    def service(self, keeper: Keeper, frame: Frame) -> None:
        """A child asks for a shared program."""
        self._track(self._answer_service(keeper, frame))

    async def _answer_service(self, keeper: Keeper, frame: Frame) -> None:
        try:
            value = await self.services.endpoint(ServiceSpec.from_map(frame.json()))
        except AthenaError as error:
            keeper.answer_child(frame, to_wire(error), ok=False)
        else:
            keeper.answer_child(frame, value)

    async def start_session(self, keeper: Keeper, link: int | None) -> Keeper:
        """Register and start. A failed session of the same id gives way to its next start; one that came back from the
        roster goes on, with what its client presents here. Returns the session."""
        if self._stopping.done():
            raise Refused("the supervisor is stopping")
        known = self.registry.by_id.get(keeper.session_id)
        if known is not None and known.grants.are_missing and known.core.state in _MAY_BE_PRESENTED:
            await self._present(known, keeper.request, link)
            return known
        for old in {self.registry.by_id.get(keeper.session_id), self.registry.by_name.get(keeper.name or "")}:
            if old is not None and old.core.state is State.FAILED and old.session_id == keeper.session_id:
                await old.stop()
        check_name_is_free(self, keeper.name, keeper.session_id)
        self.registry.add(keeper)
        self.link(keeper, link)
        try:
            synced = self._note(keeper.request, link)
        except AthenaError:
            self.registry.remove(keeper)
            self.unlink(keeper)
            raise
        await keeper.start()
        await self._noted(keeper, synced)
        return keeper

    async def _present(self, keeper: Keeper, request: SessionRequest, link: int | None) -> None:
        """Raises why it does not start like that; nothing has changed then, neither for it nor for who had it."""
        request = keeper.request.presented(request)
        await keeper.grants.present(request)
        if self.registry.by_id.get(keeper.session_id) is not keeper:
            return  # somebody has stopped it meanwhile: it is not to be noted as one that comes back
        synced = self._note(request, link)
        self.unlink(keeper)
        self.link(keeper, link)
        if synced is not None:
            await synced

    def _note(self, request: SessionRequest, link: int | None) -> asyncio.Task[None] | None:
        """Have the roster name a session. The sync goes on beside its start."""
        if self.roster is None:
            return None
        if not request.outlives_supervisor:
            self.roster.stopped(request.session_id)
            return None
        self.roster.started(request, None if link is None else Owner.of(link))
        return asyncio.create_task(self.roster.synced())

    async def _noted(self, keeper: Keeper, synced: asyncio.Task[None] | None) -> None:
        if synced is None:
            return
        try:
            await synced
        except AthenaError:
            await keeper.stop("shutdown")
            raise

    def forget(self, keeper: Keeper) -> None:
        """Somebody stops it: it is not to come back, whatever happens to this supervisor meanwhile."""
        if self.roster is not None:
            self.roster.stopped(keeper.session_id)

    def entered(self, keeper: Keeper, state: State) -> None:
        """A session is in another state. What an ordered stop of the supervisor does to it is not its own end."""
        if self.roster is None or self.is_stopping:
            return
        match state:
            case State.STOPPING | State.ENDED:
                self.roster.stopped(keeper.session_id)
            case State.FAILED:
                self.roster.failed(keeper.session_id, keeper.core.reason)
            case State.STARTING:
                self.roster.restarted(keeper.session_id)

    @property
    def came_back(self) -> dict[str, int]:
        """How many sessions of the roster this supervisor has again, and how many it has not."""
        return {"respawned": self.respawn.respawned, "lost": self.respawn.lost} if self.respawn is not None else {}

    async def roster_synced(self) -> None:
        """What the roster was told so far survives a power cut. Raises :class:`~athena.errors.DiskError`."""
        if self.roster is not None:
            await self.roster.synced()

    def removed(self, keeper: Keeper) -> None:
        """A session is gone."""
        self.unlink(keeper)

    @property
    def is_stopping(self) -> bool:
        """Whether nothing new may be started."""
        return self._stopping.done()

    def stop(self, why: str) -> None:
        """Stop in order. Safe to call more than once."""
        if not self._stopping.done():
            logger.info("stopping why=%s", why)
            tell_service_manager(self.service_manager, "STOPPING=1")
            self._stopping.set_result(why)

    # --- links to client processes

    def link(self, linked: Linked, pid: int | None) -> None:
        """End ``linked`` when the process ``pid`` goes away; nothing for ``None``."""
        if pid is None:
            return
        owner = self._links.get(pid)
        if owner is None:
            owner = self._links[pid] = _Owner(pid, lambda: self._owner_gone(pid))
        owner.linked.add(linked)

    def unlink(self, linked: Linked) -> None:
        """It has ended."""
        for owner in self._links.values():
            owner.linked.discard(linked)

    def _owner_gone(self, pid: int) -> None:
        for linked in list(self._links.pop(pid).linked):
            self._track(linked.stop("shutdown"))

    def _connection_closed(self, connection: Connection) -> None:
        for keeper in self.registry.awake:
            keeper.calls.drop_client(connection.channel)
        self.processes.connection_closed(connection)

    # --- life

    async def run(self, owner_pid: int | None, on_ready: Callable[[], None], still_busy: Callable[[], None]) -> None:
        """Serve until told to stop, the guard dies, or the owning program goes away."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, signal.Signals(number).name)
        watch_guard(loop, lambda: self.stop("the guard died"), environ=os.environ)
        if owner_pid is not None:
            _Owner(owner_pid, lambda: self.stop("the owning program is gone"))
        reaper = Reaper(self.table)
        reaper.start()
        probe = Probe(self.registry)
        if self.respawn is not None:
            self.respawn.restore(still_busy)
        await self.server.start()
        on_ready()
        tell_service_manager(self.service_manager, "READY=1")
        self._track(self.launcher.start())
        if self.respawn is not None:
            self._track(self.respawn.wake())
        probe.start()
        self.limits.start()
        gc.collect()
        gc.freeze()
        try:
            await self._stopping
        finally:
            probe.close()
            self.limits.close()
            await self._stop_all(self._stopping.result() if self._stopping.done() else "failed")
            reaper.close()
            if self.table.roster is not None:
                self.table.roster.close()
            if self.roster is not None:
                self.roster.close()

    async def _stop_all(self, why: str) -> None:
        self.server.stop_listening()
        if why != commands.ASKED:
            self.server.close()  # nobody wanted this: callers and readers see a lost supervisor, not a stopped session
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                keepers = [one for one in self.registry.by_id.values() if not isinstance(one, TreeKeeper)]
                sessions = [keeper.stop("shutdown") for keeper in keepers]
                await settled(self.forest.stop(), *sessions)
                await self.services.stop()
        except TimeoutError:
            logger.error("some sessions or trees did not stop in %s s; the guard kills them", STOP_LIMIT_S)
        self.server.close()
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await self.launcher.close()
        except TimeoutError:
            logger.error("the launcher did not close")

    def _track(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task failed", exc_info=task.exception())


class Linked(Protocol):
    """What can be linked to a client process: a session, a tree."""

    async def stop(self, reason: Reason = ...) -> None: ...


class _Owner:
    """A client process, watched by its pidfd: its end is known however it ends."""

    def __init__(self, pid: int, on_gone: Callable[[], None]) -> None:
        self.linked: set[Linked] = set()
        loop = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            loop.call_soon(on_gone)
            return

        def gone() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            on_gone()

        loop.add_reader(pidfd, gone)


def main(argv: list[str] | None = None) -> None:
    """The entry of ``python -m supervisor.daemon``."""
    parser = argparse.ArgumentParser(prog="supervisor.daemon")
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--runtime", required=True, type=Path)
    parser.add_argument("--socket", required=True, type=Path)
    parser.add_argument("--mode", choices=("daemon", "embedded"), required=True)
    parser.add_argument("--owner", type=int, help="pid of the program an embedded supervisor belongs to")
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--notify", help="socket of the service manager that wants to know when this listens")
    parser.add_argument("--max-sessions", type=int, help="sessions there may be, in whatever state")
    parser.add_argument("--max-live", type=int, help="above this many processes, idle sessions are hibernated early")
    parser.add_argument("--plain-launcher", action="store_true", help="exec each child instead of forking the zygote")
    parser.add_argument("--log-stderr", action="store_true", help="log to standard error too (run in the foreground)")
    given = parser.parse_args(argv)
    os.set_inheritable(given.ready_fd, False)
    say = ReadyLine(given.ready_fd)
    try:
        failpoints.arm(os.environ, failpoints.SUPERVISOR_VARIABLE)
        paths = Paths(given.state, given.runtime)
        paths.make()
        lock = _lock(paths) if given.mode == "daemon" else None
        name = "supervisor.log" if given.mode == "daemon" else "embedded.log"
        _log_to(paths.logs / name, also_stderr=given.log_stderr)
        proctree.become_subreaper()
        _sweep(paths, given.mode)
        asyncio.Runner(loop_factory=_loop_factory()).run(_serve(given, paths, say))
    except AthenaError as error:
        say({"ready": False, **to_wire(error)})
        raise SystemExit(1) from None
    if lock is not None:
        os.close(lock)


def _sweep(paths: Paths, mode: str) -> None:
    """Before anything is started: an old child would still act, and hold its log's lock."""
    sweep(paths.state / process_roster.DIRECTORY)
    sweep_runtime(paths.runtime if mode == "daemon" else paths.runtime.parent, paths.runtime)


async def _serve(given: argparse.Namespace, paths: Paths, say: ReadyLine) -> None:
    daemon = Daemon(paths, given.socket, given.mode, plain=given.plain_launcher)
    daemon.registry.max_sessions, daemon.registry.max_live = given.max_sessions, given.max_live

    daemon.service_manager = given.notify
    ids = {"pid": os.getpid(), "supervisor": daemon.supervisor_id}
    await daemon.run(given.owner, lambda: say({"ready": True, **ids, **daemon.came_back}), say.wait)


def _lock(paths: Paths) -> int:
    """The lock of this state directory, held until this process ends. Raises :class:`Refused`, naming the holder."""
    fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise Refused(
            f"a supervisor already runs on {str(paths.state)!r} (pid {holder}); stop it or set ATHENA_HOME",
            holder=holder,
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _log_to(path: Path, *, also_stderr: bool) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    path.chmod(0o600)
    handlers: list[logging.Handler] = [handler, logging.StreamHandler()] if also_stderr else [handler]
    layout = "%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=layout, handlers=handlers)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


if __name__ == "__main__":
    main(sys.argv[1:])
