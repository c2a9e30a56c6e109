"""The command table: one small function for each operation a client can ask for.

Operations on a session's content are relayed to its child; what the supervisor knows itself it answers at once, so
those answers come while a child is frozen.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil

from athena.config import PRODUCT
from athena.errors import NoProcess, NotFound, ProtocolError, Restarting, Running
from athena.stores.jsonl import JsonlStore
from athena.wire import Frame
from supervisor.approvers import check_approvers
from supervisor.keeper import Keeper
from supervisor.process_commands import PROCESS_COMMANDS
from supervisor.registry_commands import REGISTRY_COMMANDS
from supervisor.server import Connection
from supervisor.services import ServiceSpec
from supervisor.session_request import SessionRequest
from supervisor.tree_commands import TREE_COMMANDS
from supervisor.vocabulary import State

if TYPE_CHECKING:
    from supervisor.daemon import Daemon


def dispatch(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Carry out one request. Raises an :class:`~athena.errors.AthenaError` that answers it."""
    op = frame.header.get("op")
    if op in RELAYED:
        _find(daemon, frame).relay(connection.channel, frame, connection.pid)
        return
    command = COMMANDS.get(str(op))
    if command is None:
        raise ProtocolError(f"unknown operation {op!r}")
    connection.run(command(daemon, connection, frame), frame.header.get("id"))


def _find(daemon: Daemon, frame: Frame) -> Keeper:
    """The session that a request names. A pid is told by its serial: the number of one that slept is another now."""
    target, serial = frame.header.get("session"), frame.header.get("serial")
    if isinstance(target, bool) or not isinstance(target, str | int):
        raise ProtocolError(f"the operation {frame.header.get('op')!r} needs a session, got {target!r}")
    if serial is None:
        return daemon.registry.find(target)
    is_ours = frame.header.get("supervisor") in (None, daemon.supervisor_id)
    process = daemon.processes.get(serial) if is_ours else None
    if not isinstance(process, Keeper):
        raise NoProcess(f"no live session has pid {target}", target=target)
    return process


def _identity(keeper: Keeper) -> dict[str, Any]:
    return {
        "session_id": keeper.session_id,
        "name": keeper.name,
        "pid": keeper.pid_value(),
        "state": keeper.state,
        "store": keeper.request.store,
    }


async def _start(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Start a session; the answer comes when it is ready."""
    request = SessionRequest.from_map(frame.header.get("spec") or {}, frame.body, daemon.paths.sessions)
    request = replace(request, approvers=check_approvers(frame.header.get("approvers", ())))
    keeper = Keeper(request, daemon)
    link = connection.pid if keeper.request.link and daemon.mode == "daemon" else None
    connection.answer(frame, _identity(await daemon.start_session(keeper, link)))


async def _attach(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    connection.answer(frame, _identity(_find(daemon, frame)))


async def _whereis(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    try:
        value = _find(daemon, frame).pid_value()
    except (NotFound, NoProcess):
        value = None
    connection.answer(frame, value)


async def _list(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    rows = [keeper.status() for keeper in daemon.registry.by_id.values()]
    live = {row["session_id"] for row in rows}
    stored = JsonlStore(daemon.paths.sessions, allow_network=True).list()
    rows += [{"session_id": s, "name": None, "state": "stored", "pid": None} for s in stored if s not in live]
    connection.answer(frame, {"sessions": rows, "services": [s.status() for s in daemon.services.by_name.values()]})


async def _status(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    keeper = _find(daemon, frame)
    connection.answer(frame, {**keeper.status(), **_resources(keeper.os_pid)})


def _resources(pid: int | None) -> dict[str, Any]:
    """Memory (resident, unique) and cpu of the child now; nothing if it is gone meanwhile."""
    if pid is None:
        return {"memory_bytes": None, "cpu_s": None}
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
        return {"memory_bytes": memory.rss, "cpu_s": round(times.user + times.system, 3)}
    except psutil.Error:
        return {"memory_bytes": None, "cpu_s": None}


async def _subscribe(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Join a session's topic. The answer says after which event the stream begins."""
    keeper = _find(daemon, frame)
    given = frame.json() or {}
    after, uuid = given.get("after"), given.get("uuid")
    reset = False
    if after and uuid:
        event = await keeper.topic.event_at(int(after))
        if event is None or event.uuid != uuid:  # a power cut took unsynced events, and their numbers were used again
            after, reset = 0, True
    old = connection.subscriptions.pop(keeper.session_id, None)
    if old is not None:
        old.close()
    (approves,) = check_approvers([given.get("approver", False)])
    deltas = bool(given.get("deltas", True))
    subscription = keeper.topic.subscribe(connection.channel, after=after, deltas=deltas, approves=approves)
    connection.subscriptions[keeper.session_id] = subscription
    connection.answer(frame, {"after": subscription.sent, "reset": reset, "state": keeper.state})
    subscription.start()


async def _unsubscribe(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    keeper = _find(daemon, frame)
    subscription = connection.subscriptions.pop(keeper.session_id, None)
    if subscription is not None:
        subscription.close()
    connection.answer(frame, {})


async def _restart(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Start a failed session again; the answer comes when it is ready."""
    keeper = _find(daemon, frame)
    match keeper.core.state:
        case State.FAILED:
            await keeper.restart()
        case State.RUNNING | State.HIBERNATING | State.HIBERNATED:
            raise Running(f"{keeper.label} has not failed; to replace its process, kill or stop it")
        case State.STOPPING:
            raise NoProcess(f"{keeper.label} is ending; start it again under its id", target=keeper.session_id)
        case _:  # one of a tree is in the state ENDED, or NEW, between two lives
            raise Restarting(f"{keeper.label} is being started already; wait for it, or stop it")
    connection.answer(frame, _identity(keeper))


async def _stop(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Stop a session; the answer comes when nothing of it is left. Twice is a no-op."""
    given = frame.json() or {}
    try:
        keeper = _find(daemon, frame)
    except (NotFound, NoProcess):
        if given.get("strict"):
            raise
        connection.answer(frame, {"stopped": False})
        return
    daemon.forget(keeper)
    await keeper.stop(given.get("reason", "normal"), given.get("timeout"))
    await daemon.roster_synced()
    connection.answer(frame, {"stopped": True})


async def _service(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    connection.answer(frame, await daemon.services.endpoint(ServiceSpec.from_map(frame.json())))


async def _info(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """What this supervisor is and how it does."""
    states = Counter(keeper.core.state for keeper in daemon.registry.by_id.values())
    connection.answer(
        frame,
        {
            "product": PRODUCT,
            "pid": os.getpid(),
            "mode": daemon.mode,
            "socket": str(daemon.socket),
            "state_dir": str(daemon.paths.state),
            "uptime_s": round(time.monotonic() - daemon.started_at, 3),
            "sessions": len(daemon.registry.by_id) - states[State.FAILED],
            "hibernated": states[State.HIBERNATED],
            "failed": states[State.FAILED],
            "max_sessions": daemon.registry.max_sessions,
            **daemon.came_back,
            "needs_grants": sum(keeper.grants.are_awaited for keeper in daemon.registry.by_id.values()),
            "services": [s.status() for s in daemon.services.by_name.values()],
            "limits": daemon.limits.describe(),
            "connections": len(daemon.server.connections),
            "processes": daemon.processes.sizes(),
            "tasks": len(asyncio.all_tasks()),
            "memory_bytes": psutil.Process().memory_info().rss,
        },
    )


async def _shutdown(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    connection.answer(frame, {"pid": os.getpid()})
    daemon.stop(RESTART if (frame.json() or {}).get("restart") else ASKED)


ASKED, RESTART = "shutdown", "restart"
"""Why a supervisor stops that a client asked to: for good, or to be started again at once."""

RELAYED = frozenset(
    {
        "send", "result", "cancel", "interrupt", "answer", "requests", "messages", "usage", "queue", "ping",
        "checkpoint", "rewind", "fork",
    }
)  # fmt: skip
"""Operations whose meaning only the child knows."""

COMMANDS: dict[str, Callable[[Daemon, Connection, Frame], Awaitable[None]]] = {
    "start": _start,
    "attach": _attach,
    "whereis": _whereis,
    "list": _list,
    "status": _status,
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "restart": _restart,
    "stop": _stop,
    "service": _service,
    "info": _info,
    "shutdown": _shutdown,
    **TREE_COMMANDS,
    **PROCESS_COMMANDS,
    **REGISTRY_COMMANDS,
}
