"""The registries of one daemon, each a process without an OS process: a child of a supervisor, or linked to a program.

What is in a registry is :class:`~supervisor.key_registry.KeyRegistry`'s to know. Here it is tied to the processes: who
registers is linked to the registry until its last key goes, listeners are told, locks are waited for, and a death takes
its keys and locks along before anybody hears of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from athena.errors import AlreadyRegistered, AlreadyStarted, Busy, InvalidOption, NoProcess, NotAServer, Reason
from athena.wire import Header
from supervisor.key_registry import KeyLocks, KeyRegistry, Pattern, parse_registry, parse_via
from supervisor.member import Member
from supervisor.tree_vocabulary import Started, StartFailed, StartOutcome

if TYPE_CHECKING:
    from supervisor.keeper import Supervision

logger = logging.getLogger(__name__)


class RegistryMember(Member):
    """One registry, from its start to its end. It traps exits, and those of strangers are nothing to it."""

    def __init__(self, registry: KeyRegistry, label: str, around: Supervision, registries: Registries) -> None:
        super().__init__(around.next_serial(), label, around.supervisor_id)
        self.registry = registry
        self._around = around
        self._registries = registries
        self._locks = KeyLocks()
        self._waiting: dict[tuple[int, str], asyncio.Future[None]] = {}
        """Wishes for locks that are not granted, and whose answer somebody waits for."""
        self._is_ending = False
        self.parent: int | None = None
        """The process that it is linked to from its start, outside a tree: it ends with it."""
        self.ended: asyncio.Future[Reason] = asyncio.get_running_loop().create_future()

    # --- as somebody's child, and as a process

    async def start(self) -> StartOutcome:
        name, processes = self.registry.name, self._around.processes
        try:
            processes.register(name, self.serial)
        except AlreadyStarted as error:
            return StartFailed({"already_started": error.data["serial"]})
        processes.add(self, traps=True)
        self._registries.by_name[name] = self
        return Started(self.serial)

    async def wait(self) -> Reason:
        return await asyncio.shield(self.ended)

    async def stop(self, reason: Reason = "shutdown") -> None:
        """End it, and return when it has ended."""
        self.end_for(reason)
        await self.wait()

    def shut_down(self) -> None:
        self.end_for("shutdown")

    def kill(self) -> None:
        self.end_for("killed")

    def exit(self, reason: Reason) -> None:
        self.end_for(reason)

    def end_for(self, reason: Reason) -> None:
        if not self._is_ending:
            self._is_ending = True
            # Not at once: the effects of the signal that ends it are being carried out.
            asyncio.get_running_loop().call_soon(self._end, reason)

    def _end(self, reason: Reason) -> None:
        self._around.processes.exited(self.serial, reason)  # which has it forgotten, and fires its links
        self.ended.set_result(reason)

    def ask(self, header: Header, body: bytes = b"") -> None:
        """An order to stop. Raises :class:`NotAServer` for calls and casts."""
        if header["kind"] != "stop":
            raise NotAServer(f"{self.label} is a registry, no Server: it takes no calls and casts", target=self.serial)
        self.end_for(header["reason"])

    def inform(self, message: dict[str, Any]) -> bool:
        match message:
            case {"exit": {"from": {"serial": serial}, "reason": reason}} if serial == self.parent:
                # Of a client nobody knows why it ended, and it has lost no connection.
                self.end_for("shutdown" if reason == "noconnection" else reason)
        return True

    # --- entries

    def register(self, serial: int, key: Any, value: Any) -> None:
        """Add an entry for a process. Raises :class:`AlreadyRegistered` with the holder's pid."""
        holder = self.registry.register(serial, key, value, self._keeps)
        if holder is not None:
            pid = self._around.processes.pid_value(holder)
            text = f"the key {key!r} of the registry {self.registry.name!r} is taken"
            raise AlreadyRegistered(text, pid=pid, serial=holder)
        self.tie(serial)
        self._tell("register", key, serial, value)

    def unregister(self, serial: int, key: Any) -> None:
        """Remove its entries under the key."""
        if self.registry.unregister(serial, key):
            self._removed(serial, key)

    def unregister_match(self, serial: int, key: Any, pattern: Pattern) -> None:
        """Remove those whose value matches."""
        if self.registry.unregister_match(serial, key, pattern):
            self._removed(serial, key)

    def tie(self, serial: int) -> None:
        """Link a process that has entries. One that is named before it has started is linked when it has."""
        if self._around.processes.is_alive(serial):
            self._around.processes.link(self.serial, serial)

    def _removed(self, serial: int, key: Any) -> None:
        if not self.registry.holds(serial) and serial != self.parent:  # whose link is not for its keys
            self._around.processes.unlink(self.serial, serial)
        self._tell("unregister", key, serial)

    def _tell(self, what: str, key: Any, serial: int, *value: Any) -> None:
        processes = self._around.processes
        for name in self.registry.listeners:
            listener = processes.whereis(name)
            if listener is not None:
                try:
                    processes.send(listener, {what: [self.registry.name, key, processes.pid_value(serial), *value]})
                except Busy as error:  # a listener that does not read holds nobody up
                    logger.warning("a notice is dropped: %s", error)

    def _keeps(self, serial: int) -> bool:
        """Whether a process keeps its keys against others: it lives, or is about to be started under this name."""
        processes = self._around.processes
        return processes.is_alive(serial) or not processes.signals.is_known(serial)

    # --- locks

    async def lock(self, key: Any, serial: int, ticket: str) -> None:
        """Return when the lock is held. Raises :class:`NoProcess` if the registry ends first."""
        if self._locks.acquire(key, serial, ticket):
            return
        waiter = self._waiting.get((serial, ticket))
        if waiter is None:
            waiter = self._waiting[serial, ticket] = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiter)

    def unlock(self, key: Any, serial: int, ticket: str) -> None:
        """Give the lock back, or wait for it no more."""
        self._give_up(serial, ticket)
        self._grant(self._locks.release(key, serial, ticket))

    def _give_up(self, serial: int, ticket: str) -> None:
        waiter = self._waiting.pop((serial, ticket), None)
        if waiter is not None:
            waiter.cancel()

    def _grant(self, wish: tuple[int, str] | None) -> None:
        waiter = None if wish is None else self._waiting.pop(wish, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- ends

    def forget(self, serial: int) -> None:
        """A process is gone: its keys are free, its locks are the next one's."""
        self.registry.forget(serial)
        for wish in [wish for wish in self._waiting if wish[0] == serial]:
            self._give_up(*wish)
        for holder in self._locks.forget(serial):
            self._grant(holder)

    def close(self) -> None:
        """The registry itself is gone."""
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            waiter.set_exception(NoProcess(f"the registry {self.registry.name!r} has ended", target=self.registry.name))


class Registries:
    """All registries that run, by name. Told of each process: by :meth:`started`, and by :meth:`forget` of its end."""

    def __init__(self, around: Supervision) -> None:
        self.by_name: dict[str, RegistryMember] = {}
        self._around = around

    def make(self, given: Mapping[str, Any], label: str) -> RegistryMember:
        """The registry that a request or a specification describes, not started. Raises :class:`InvalidOption`."""
        return RegistryMember(parse_registry(given), label, self._around, self)

    def find(self, name: object) -> RegistryMember:
        """The registry of this name. Raises :class:`NoProcess`."""
        found = self.by_name.get(name) if isinstance(name, str) else None
        if found is None:
            raise NoProcess(f"no registry {name!r} is running: start one, or put it into a tree", target=name)
        return found

    # --- via names

    def register(self, serial: int, via: object) -> None:
        """Name a process that is being started. Raises :class:`AlreadyStarted` with the holder's ``pid`` and
        ``serial``, :class:`NoProcess` for an unknown registry, :class:`InvalidOption` for one without unique keys."""
        registry, key, value = parse_via(via)
        try:
            self._unique(registry).register(serial, key, value)
        except AlreadyRegistered as error:
            raise AlreadyStarted(f"a process is called {key!r} in {registry!r}", **error.data) from None

    def whereis(self, via: object) -> int | None:
        """Who has this name and lives. Raises as :meth:`register` does for the registry."""
        registry, key, _ = parse_via(via)
        holder = self._unique(registry).registry.holder(key)
        return holder if holder is not None and self._around.processes.is_alive(holder) else None

    def _unique(self, name: str) -> RegistryMember:
        found = self.find(name)
        if not found.registry.is_unique:
            raise InvalidOption(
                f"the registry {name!r} has duplicate keys, so that none of them names one process: "
                "use one with unique keys for Via",
                option="name",
                value=repr(name),
                expected="a registry with keys='unique'",
            )
        return found

    # --- what processes do

    def started(self, serial: int) -> None:
        """A process lives that may have been named before."""
        for member in self.by_name.values():
            if member.registry.holds(serial):
                member.tie(serial)

    def forget(self, serial: int) -> None:
        """A process, or a registry, is gone."""
        for member in [*self.by_name.values()]:
            if member.serial == serial:
                del self.by_name[member.registry.name]
                member.close()
            else:
                member.forget(serial)
