"""The operations on registries that any process, a client or a child, can ask for.

A process registers itself and nobody else: who it is, the connection says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from athena.errors import AlreadyStarted, NotFound, ProtocolError, Refused
from athena.wire import Frame
from supervisor.key_registry import KeyRegistry
from supervisor.member import label_of
from supervisor.registries import RegistryMember
from supervisor.server import Connection, object_of
from supervisor.tree_vocabulary import StartFailed

if TYPE_CHECKING:
    from supervisor.daemon import Daemon

Command = Callable[["Daemon", Connection, Frame], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Request:
    """One operation on one registry."""

    daemon: Daemon
    connection: Connection
    member: RegistryMember
    given: Mapping[str, Any]

    @property
    def registry(self) -> KeyRegistry:
        return self.member.registry

    @property
    def caller(self) -> int:
        """Who asks."""
        return self.daemon.processes.caller(self.connection)

    def __getitem__(self, name: str) -> Any:
        """A field that the operation needs. Raises :class:`ProtocolError`."""
        try:
            return self.given[name]
        except KeyError:
            raise ProtocolError(f"the operation needs {name!r}, got {sorted(self.given)}") from None

    def process(self) -> int | None:
        """The process that is asked about: the caller, or ``pid`` in wire form. ``None`` if it is nobody of ours."""
        match self.given.get("pid"):
            case None:
                return self.caller
            case {"serial": int(serial), "supervisor": of} if of in (None, self.daemon.supervisor_id):
                return serial
            case {"serial": None, "pid": int(number)}:
                return self.daemon.processes.by_os_pid(number)
            case _:
                return None

    def entries(self, found: list[tuple[int, Any]]) -> list[list[Any]]:
        """Processes and values as they travel."""
        return [[self.daemon.processes.pid_value(serial), value] for serial, value in found]


async def _start(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Start a registry of its own, linked to who asks if so wanted."""
    if daemon.is_stopping:
        raise Refused("the supervisor is stopping")
    given = object_of(frame)
    member = daemon.registries.make(given, label_of(None, str(given.get("name"))))
    parent = daemon.processes.caller(connection) if given.get("link") else None
    outcome = await member.start()
    match outcome:
        case StartFailed({"already_started": int(serial)}):
            pid = daemon.processes.pid_value(serial)
            raise AlreadyStarted(f"a process is called {member.registry.name!r}", pid=pid)
    if parent is not None:
        member.parent = parent
        daemon.processes.link(member.serial, parent)
    connection.answer(frame, _identity(member))


async def _stop(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    await _member(daemon, frame).stop(object_of(frame).get("reason", "normal"))
    connection.answer(frame, {"stopped": True})


async def _lock(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Answered when the lock is held. A wish whose connection has ended meanwhile is nobody's."""
    asked = Request(daemon, connection, _member(daemon, frame), object_of(frame))
    caller = asked.caller
    await asked.member.lock(asked["key"], caller, str(asked["ticket"]))
    if connection.channel.closed:
        asked.member.unlock(asked["key"], caller, str(asked["ticket"]))
    connection.answer(frame, {"held": True})


def _operation(carry_out: Callable[[Request], Any]) -> Command:
    """One that is answered at once."""

    async def command(daemon: Daemon, connection: Connection, frame: Frame) -> None:
        asked = Request(daemon, connection, _member(daemon, frame), object_of(frame))
        connection.answer(frame, carry_out(asked))

    return command


def _register(asked: Request) -> Any:
    asked.member.register(asked.caller, asked["key"], asked["value"])
    return {"owner": asked.member.pid_value()}


def _unregister(asked: Request) -> None:
    asked.member.unregister(asked.caller, asked["key"])


def _unregister_match(asked: Request) -> None:
    asked.member.unregister_match(asked.caller, asked["key"], asked["pattern"])


def _update(asked: Request) -> Any:
    """Compare and set: the caller has computed the new value from the old one, maybe in two threads at once."""
    return {"done": asked.registry.update(asked.caller, asked["key"], asked["old"], asked["new"])}


def _keys(asked: Request) -> Any:
    serial = asked.process()
    return [] if serial is None else asked.registry.keys(serial)


def _values(asked: Request) -> Any:
    serial = asked.process()
    return [] if serial is None else asked.registry.values(serial, asked["key"])


def _select(asked: Request) -> Any:
    serial = asked.process() if "pid" in asked.given else None
    if serial is None and "pid" in asked.given:
        return []
    found = asked.registry.select(asked["key"], asked["value"], serial)
    return [[entry.key, asked.daemon.processes.pid_value(entry.serial), entry.value] for entry in found]


def _meta(asked: Request) -> Any:
    found = asked.registry.meta(asked["key"])
    if found is None:
        raise NotFound(f"the registry {asked.registry.name!r} has no meta {asked['key']!r}", target=asked["key"])
    return found[0]


def _unlock(asked: Request) -> None:
    asked.member.unlock(asked["key"], asked.caller, str(asked["ticket"]))


def _identity(member: RegistryMember) -> dict[str, Any]:
    return {"pid": member.pid_value(), "name": member.registry.name, "keys": member.registry.kind}


def _member(daemon: Daemon, frame: Frame) -> RegistryMember:
    return daemon.registries.find(frame.header.get("registry"))


REGISTRY_COMMANDS: dict[str, Command] = {
    "registry_start": _start,
    "registry_attach": _operation(lambda asked: _identity(asked.member)),
    "registry_stop": _stop,
    "registry_register": _operation(_register),
    "registry_unregister": _operation(_unregister),
    "registry_unregister_match": _operation(_unregister_match),
    "registry_update": _operation(_update),
    "registry_lookup": _operation(lambda asked: asked.entries(asked.registry.lookup(asked["key"]))),
    "registry_keys": _operation(_keys),
    "registry_values": _operation(_values),
    "registry_count": _operation(lambda asked: asked.registry.count()),
    "registry_match": _operation(lambda asked: asked.entries(asked.registry.match(asked["key"], asked["pattern"]))),
    "registry_count_match": _operation(lambda asked: len(asked.registry.match(asked["key"], asked["pattern"]))),
    "registry_select": _operation(_select),
    "registry_put_meta": _operation(lambda asked: asked.registry.put_meta(asked["key"], asked["value"])),
    "registry_meta": _operation(_meta),
    "registry_delete_meta": _operation(lambda asked: asked.registry.delete_meta(asked["key"])),
    "registry_lock": _lock,
    "registry_unlock": _operation(_unlock),
}
