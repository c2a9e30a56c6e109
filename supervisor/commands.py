"""The command table: one small function for each operation a client can ask for.

Operations on a session's content are relayed to its child; what the supervisor knows itself it answers at once, so
those answers come while a child is frozen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import psutil

from athena.config import PRODUCT
from athena.errors import NoProcess, NotFound, ProtocolError
from athena.stores.jsonl import JsonlStore
from athena.wire import Frame, dumps
from supervisor.calls import reply
from supervisor.keeper import Keeper, SessionRequest
from supervisor.server import Connection
from supervisor.services import ServiceSpec
from supervisor.tree_commands import TREE_COMMANDS
from supervisor.vocabulary import State

if TYPE_CHECKING:
    from supervisor.daemon import Daemon


def dispatch(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Carry out one request. Raises an :class:`~athena.errors.AthenaError` that answers it."""
    op = frame.header.get("op")
    if op in RELAYED:
        daemon.registry.find(*_target(frame)).relay(connection.channel, frame)
        return
    command = COMMANDS.get(str(op))
    if command is None:
        raise ProtocolError(f"unknown operation {op!r}")
    connection.run(command(daemon, connection, frame), frame.header.get("id"))


def _target(frame: Frame) -> tuple[str | int, int | None]:
    target = frame.header.get("session")
    if isinstance(target, bool) or not isinstance(target, str | int):
        raise ProtocolError(f"the operation {frame.header.get('op')!r} needs a session, got {target!r}")
    return target, frame.header.get("serial")


def _answer(connection: Connection, frame: Frame, value: Any) -> None:
    reply(connection.channel, frame.header.get("id"), dumps(value))


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
    keeper = Keeper(request, daemon)
    link = connection.pid if keeper.request.link and daemon.mode == "daemon" else None
    await daemon.start_session(keeper, link)
    _answer(connection, frame, _identity(keeper))


async def _attach(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    _answer(connection, frame, _identity(daemon.registry.find(*_target(frame))))


async def _whereis(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    try:
        value = daemon.registry.find(*_target(frame)).pid_value()
    except (NotFound, NoProcess):
        value = None
    _answer(connection, frame, value)


async def _list(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    rows = [keeper.status() for keeper in daemon.registry.by_id.values()]
    live = {row["session_id"] for row in rows}
    stored = JsonlStore(daemon.paths.sessions, allow_network=True).list()
    rows += [{"session_id": s, "name": None, "state": "stored", "pid": None} for s in stored if s not in live]
    _answer(connection, frame, {"sessions": rows, "services": [s.status() for s in daemon.services.by_name.values()]})


async def _status(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    keeper = daemon.registry.find(*_target(frame))
    _answer(connection, frame, {**keeper.status(), **_resources(keeper.os_pid)})


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
    keeper = daemon.registry.find(*_target(frame))
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
    subscription = keeper.topic.subscribe(connection.channel, after=after, deltas=bool(given.get("deltas", True)))
    connection.subscriptions[keeper.session_id] = subscription
    _answer(connection, frame, {"after": subscription.sent, "reset": reset, "state": keeper.state})
    subscription.start()


async def _unsubscribe(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    keeper = daemon.registry.find(*_target(frame))
    subscription = connection.subscriptions.pop(keeper.session_id, None)
    if subscription is not None:
        subscription.close()
    _answer(connection, frame, {})


async def _monitor(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Watch the process that runs a session now. Armed or answered ``noproc``, with nothing in between."""
    reference = daemon.next_reference()
    try:
        keeper = daemon.registry.find(*_target(frame))
    except (NotFound, NoProcess):
        keeper = None
    pid = keeper.pid_value() if keeper is not None else None
    if keeper is None or pid is None:
        _answer(connection, frame, {"ref": reference, "pid": None, "reason": "noproc"})
        return

    def down(reason: Any) -> None:
        connection.monitors.pop(reference, None)
        connection.channel.send({"kind": "down", "ref": reference, "pid": pid, "reason": reason}, control=True)

    keeper.monitors[reference] = down
    connection.monitors[reference] = keeper
    _answer(connection, frame, {"ref": reference, "pid": pid, "reason": None})


async def _stop(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Stop a session; the answer comes when nothing of it is left. Twice is a no-op."""
    given = frame.json() or {}
    try:
        keeper = daemon.registry.find(*_target(frame))
    except (NotFound, NoProcess):
        if given.get("strict"):
            raise
        _answer(connection, frame, {"stopped": False})
        return
    await keeper.stop(given.get("reason", "normal"), given.get("timeout"))
    _answer(connection, frame, {"stopped": True})


async def _service(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    _answer(connection, frame, await daemon.services.endpoint(ServiceSpec.from_map(frame.json())))


async def _info(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """What this supervisor is and how it does."""
    _answer(
        connection,
        frame,
        {
            "product": PRODUCT,
            "pid": os.getpid(),
            "mode": daemon.mode,
            "socket": str(daemon.paths_socket),
            "state_dir": str(daemon.paths.state),
            "uptime_s": round(time.monotonic() - daemon.started_at, 3),
            "sessions": sum(1 for k in daemon.registry.by_id.values() if k.core.state is not State.FAILED),
            "failed": sum(1 for k in daemon.registry.by_id.values() if k.core.state is State.FAILED),
            "services": [s.status() for s in daemon.services.by_name.values()],
            "connections": len(daemon.server.connections),
            "memory_bytes": psutil.Process().memory_info().rss,
        },
    )


async def _shutdown(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    _answer(connection, frame, {"pid": os.getpid()})
    daemon.stop("shutdown")


RELAYED = frozenset({"send", "result", "cancel", "interrupt", "messages", "usage", "queue", "ping"})
"""Operations whose meaning only the child knows."""

COMMANDS: dict[str, Callable[[Daemon, Connection, Frame], Awaitable[None]]] = {
    "start": _start,
    "attach": _attach,
    "whereis": _whereis,
    "list": _list,
    "status": _status,
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "monitor": _monitor,
    "stop": _stop,
    "service": _service,
    "info": _info,
    "shutdown": _shutdown,
    **TREE_COMMANDS,
}
