"""Everything that counts as a process, and what processes say to each other: links, monitors, exit signals, calls.

Processes are the leaves of trees, supervisors, the lives of sessions, and clients. Who is linked to whom is
:class:`~supervisor.signals.Signals`' to know; here its effects are carried out. When a process ends, one turn of the
event loop frees its names and keys, fails the calls that wait for it, and tells its links and monitors, in this order,
before its supervisor acts (otp.md 14).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, assert_never, runtime_checkable

from athena.errors import AlreadyStarted, Busy, NoProcess, NotAServer, Reason
from athena.wire import Header, loads
from supervisor.client_process import ClientProcess
from supervisor.mailbox import INBOX_BYTES, MESSAGES_MAX, Mailbox, Message
from supervisor.server_calls import ServerCalls, ServerProcess
from supervisor.signals import Deliver, Down, Effect, End, Exit, Signals
from supervisor.tree_answers import shortened

if TYPE_CHECKING:
    from supervisor.registry import Registry
    from supervisor.server import Connection

logger = logging.getLogger(__name__)


Name: TypeAlias = str | Mapping[str, Any]
"""Text, or ``{"via": [registry, key, value]}``."""


class Vias(Protocol):
    """The registries, as far as names are in them."""

    def register(self, serial: int, name: Mapping[str, Any]) -> None: ...

    def whereis(self, name: Mapping[str, Any]) -> int | None: ...

    def started(self, serial: int) -> None: ...


class Process(Protocol):
    """What a process is to the others."""

    serial: int
    label: str

    @property
    def os_pid(self) -> int | None: ...

    def pid_value(self) -> dict[str, Any] | None: ...

    def end_for(self, reason: Reason) -> None:
        """A fatal exit signal has arrived: end at once, with this reason."""

    def inform(self, message: dict[str, Any]) -> bool:
        """A message for its ``handle_info``. ``False`` if it has none: it asks for what is in its mailbox."""


@runtime_checkable
class Inbox(Protocol):
    """A process that may have an inbox: a function may turn out to be a server."""

    @property
    def has_inbox(self) -> bool: ...

    def check_room(self) -> None:
        """Raise :class:`Busy` if it has too much unread."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom somebody names. ``serial`` is ``None`` for a name that nobody has; ``os_pid`` is as it was given."""

    serial: int | None
    os_pid: int | None = None


class Processes:
    """The processes of one supervisor."""

    def __init__(self, supervisor_id: str, next_serial: Callable[[], int], sessions: Registry) -> None:
        self.supervisor_id = supervisor_id
        self.signals = Signals()
        self.names: dict[str, int] = {}
        """Of supervisors and of the leaves of trees. A session's name outlives its processes: the registry has it."""
        self.calls = ServerCalls()
        self.on_exit: list[Callable[[int], None]] = []
        """Called with the serial of what has ended, before anybody is told."""
        self.vias: Vias
        """Set by who makes both: each needs the other."""
        self.sessions = sessions
        self._next_serial = next_serial
        self._live: dict[int, Process] = {}
        self._by_os_pid: dict[int, int] = {}
        self._os_pids: dict[int, int] = {}
        self._mailboxes: dict[int, Mailbox] = {}
        self._ends: dict[int, list[asyncio.Future[Reason]]] = {}
        self._to_do: deque[tuple[int, Callable[[Process], None]]] = deque()
        """Effects of signals that are still to be carried out, each for a process if it lives then."""
        self._is_carrying_out = False

    # --- who there is

    def add(self, process: Process, *, traps: bool = False, client: bool = False) -> None:
        """It lives from now on."""
        self._live[process.serial] = process
        self.runs_as(process.serial, process.os_pid)
        self.signals.started(process.serial, traps=traps, client=client)
        self.vias.started(process.serial)

    def runs_as(self, serial: int, os_pid: int | None) -> None:
        """The OS process it is now; ``None`` if it has none, as a session that sleeps."""
        before = self._os_pids.pop(serial, None)
        if before is not None and self._by_os_pid.get(before) == serial:
            del self._by_os_pid[before]
        if os_pid is not None:
            self._os_pids[serial] = os_pid
            self._by_os_pid[os_pid] = serial

    def exited(self, serial: int, reason: Reason) -> None:
        """It is gone, with everything below it. Nothing for one that is not known (any more)."""
        process = self._live.pop(serial, None)
        if process is None:
            return
        self.release_names(serial)
        if serial in self._mailboxes:
            self._mailboxes.pop(serial).close()
        self.calls.ended(serial, process.label, reason)
        self._carry_out(self.signals.exited(serial, reason))
        self.runs_as(serial, None)  # last: its number is in what the others are told
        for end in self._ends.pop(serial, ()):
            if not end.done():
                end.set_result(reason)

    def lost(self, serial: int) -> None:
        """A client is gone; nobody knows why it ended."""
        self.exited(serial, "noconnection")

    def misdirected(self, process: Process, header: Header, body: bytes) -> None:
        """What waited for a process to be ready that has turned out to be no server."""
        kind = header["kind"]
        if kind == "info":
            self._keep(process, loads(body))
        elif kind == "call":
            self.calls.refuse(header["id"], not_a_server(process))

    def is_alive(self, serial: int) -> bool:
        """Whether it lives, and is not dying of an exit signal already."""
        return self.signals.is_alive(serial)

    async def end_of(self, serial: int) -> Reason:
        """Wait until it has ended. Why it did; ``noproc`` if it had."""
        if serial not in self._live:
            return "noproc"
        end: asyncio.Future[Reason] = asyncio.get_running_loop().create_future()
        self._ends.setdefault(serial, []).append(end)
        return await end

    def server(self, serial: int) -> ServerProcess:
        """The server of this serial. Raises :class:`NoProcess` and :class:`NotAServer`."""
        process = self._live.get(serial)
        if process is None or not self.is_alive(serial):
            raise NoProcess("the process has ended", target=serial)
        if not hasattr(process, "ask"):
            raise not_a_server(process)
        found: ServerProcess = process  # type: ignore[assignment]  # the attribute is what makes it one
        return found

    def get(self, serial: int) -> Process | None:
        """The process of this serial, if it lives."""
        return self._live.get(serial)

    def pid_value(self, serial: int, number: int | None = None) -> dict[str, Any]:
        """A pid as it travels, also of one that is gone; ``number`` is what its OS pid was, if anybody knows."""
        return {"pid": self._os_pids.get(serial, number), "serial": serial, "supervisor": self.supervisor_id}

    def by_os_pid(self, number: int) -> int | None:
        """The serial of the live process that has this number."""
        return self._by_os_pid.get(number)

    def whereis(self, name: Name) -> int | None:
        """Who has this name; nobody while it is on its way out."""
        serial = self.names.get(name) if isinstance(name, str) else self.vias.whereis(name)
        return serial if serial is not None and self.is_alive(serial) else None

    def register(self, name: Name | None, serial: int) -> None:
        """Give a process a name; nothing for ``None``. Raises :class:`AlreadyStarted` with the holder's pid."""
        if name is None:
            return
        if not isinstance(name, str):
            self.vias.register(serial, name)
            return
        session = self.sessions.holder(name)
        if session is not None:
            raise AlreadyStarted(f"a session is called {name!r}", pid=session.pid_value(), serial=session.serial)
        holder = self.names.setdefault(name, serial)
        if holder != serial:
            value = self.pid_value(holder)
            raise AlreadyStarted(f"a process is called {name!r}", pid=value, serial=holder)

    def release_names(self, serial: int) -> None:
        """It has none any more."""
        for name in [name for name, holder in self.names.items() if holder == serial]:
            del self.names[name]
        for forget in self.on_exit:
            forget(serial)

    def caller(self, connection: Connection) -> int:
        """The process at the other end of a connection: one of ours, or a client, which becomes known by this.

        Raises :class:`NoProcess` if that process has ended.
        """
        known = self._by_os_pid.get(connection.pid)
        if known is not None:
            return known
        client = ClientProcess(self._next_serial(), connection.pid, self.supervisor_id, self.lost)
        self.add(client, client=True)
        return client.serial

    # --- signals

    def monitor(self, watcher: int, target: Target, ref: int, name: object, *, asks: bool) -> None:
        """One ``Down`` for the watcher when the target ends; now, with ``noproc``, if it is not there.

        ``asks``: the watcher will ask for it, as those do that have no inbox.
        """
        if asks and watcher != target.serial:
            self.mailbox(watcher).expect(ref)
        self._carry_out(self.signals.monitor(watcher, target.serial, ref, name), target)

    def demonitor(self, watcher: int, ref: int, *, flush: bool) -> bool:
        """No ``Down`` from now on; with ``flush`` not even one that was told. Whether one was still to come."""
        was_armed = self.signals.demonitor(watcher, ref)
        if (was_armed or flush) and watcher in self._mailboxes:
            self._mailboxes[watcher].forget(ref)
        return was_armed

    def link(self, one: int, other: int | Target, ref: int | None = None) -> None:
        """Tie the ends of two together. With a ``ref`` the ``Exit`` over the link is asked for by that.

        Raises :class:`NoProcess` if the other is gone and ``one`` does not trap.
        """
        target = Target(other) if isinstance(other, int) else other
        assert target.serial is not None, "only what has had a pid can be linked"
        effects = self.signals.link(one, target.serial)
        if ref is not None and one != target.serial:
            self.mailbox(one).expect(ref, linked=target.serial)
        self._carry_out(effects, target)

    def unlink(self, one: int, other: int) -> None:
        """Undo :meth:`link`."""
        for side, far in ((one, other), (other, one)):
            if side in self._mailboxes:
                self._mailboxes[side].forget_links(far)
        self.signals.unlink(one, other)

    def exit(self, sender: int, target: int, reason: Reason) -> None:
        """Send an exit signal. Raises :class:`Busy` if it is a message for one that has too much unread."""
        effects = self.signals.exit(sender, target, reason)
        if any(isinstance(effect, Deliver) for effect in effects):  # one that ends it always does
            self._check_room(self._live[target])
        self._carry_out(effects)

    def set_trap_exit(self, serial: int, on: bool) -> None:
        """Exit signals but ``kill`` are messages for it, or are not."""
        self.signals.set_trap_exit(serial, on)

    def send(self, serial: int, message: Any) -> None:
        """A plain message; nothing if the process is gone. Raises :class:`Busy` if it has too much unread."""
        process = self._live.get(serial)
        if process is None or not self.is_alive(serial):
            return
        self._check_room(process)
        self._tell(process, {"message": message})

    def _check_room(self, process: Process) -> None:
        """Raise :class:`Busy` if it has too much unread."""
        if isinstance(process, Inbox) and process.has_inbox:
            process.check_room()
            return
        mailbox = self._mailboxes.get(process.serial)
        if mailbox is not None and not mailbox.has_room:
            text = f"{process.label} has {INBOX_BYTES} bytes or {MESSAGES_MAX} messages unread"
            raise Busy(text, limit=INBOX_BYTES)

    def _carry_out(self, effects: Iterable[Effect], asked: Target | None = None) -> None:
        """``asked`` is what the caller named: the number of one that is gone is known from there only.

        One after another, also if an effect ends a process at once and so has effects of its own.
        """
        number = None if asked is None else asked.os_pid
        for effect in effects:
            self._to_do.append(self._order(effect, number))
        if self._is_carrying_out:
            return
        self._is_carrying_out = True
        try:
            while self._to_do:
                serial, order = self._to_do.popleft()
                if serial in self._live:
                    self._carry_out_one(self._live[serial], order)
        finally:
            self._is_carrying_out = False

    def _carry_out_one(self, process: Process, order: Callable[[Process], None]) -> None:
        try:
            order(process)
        except Exception:  # one that cannot be told must not keep the others from it
            logger.exception("%s could not be told", process.label)

    def _order(self, effect: Effect, number: int | None) -> tuple[int, Callable[[Process], None]]:
        """What is to be done, with pids as they are now: soon nobody knows the number of who has ended."""
        match effect:
            case End(serial, reason):
                return serial, lambda process: self._end(process, reason)
            case Deliver(to, Exit(sender, reason, over_link)):
                value = {"from": self.pid_value(sender, number), "reason": reason, "over_link": over_link}
                return to, lambda process: self._tell(process, {"exit": value})
            case Deliver(to, Down(ref, target, pid, reason)):
                who = None if pid is None else self.pid_value(pid, number)
                told = {"ref": ref, "target": who if target is None else target, "pid": who, "reason": reason}
                return to, lambda process: self._tell(process, {"down": told})
        assert_never(effect)  # type: ignore[arg-type]  # mypy does not see that a Deliver has one of two messages

    def _end(self, process: Process, reason: Reason) -> None:
        logger.info("%s ends by an exit signal reason=%s", process.label, shortened(reason))
        process.end_for(reason)

    def _tell(self, process: Process, message: Message) -> None:
        if not process.inform(message):
            self._keep(process, message)

    def _keep(self, process: Process, message: Message) -> None:
        if not self.mailbox(process.serial).put(message):
            logger.warning("%s takes no messages: one is dropped", process.label)

    def mailbox(self, serial: int) -> Mailbox:
        """What waits for a process that reads over connections. Raises :class:`NoProcess`."""
        found = self._mailboxes.get(serial)
        if found is None:
            if serial not in self._live:
                raise NoProcess("the process has ended", target=serial)
            found = self._mailboxes[serial] = Mailbox(self.supervisor_id)
        return found

    def connection_closed(self, connection: Connection) -> None:
        """Its calls have nobody to answer to any more; what was on its way to it waits for the next connection."""
        self.calls.give_up(connection.channel)
        mailbox = self._mailboxes.get(self._by_os_pid.get(connection.pid, 0))
        if mailbox is not None:
            mailbox.give_up(connection.channel)

    def sizes(self) -> dict[str, int]:
        """How much is remembered: nothing of what has ended."""
        signals = self.signals.sizes()._asdict()
        return {**signals, "calls": len(self.calls), "mailboxes": len(self._mailboxes), "names": len(self.names)}


def not_a_server(process: Process) -> NotAServer:
    """What a caller gets who takes another process for one."""
    return NotAServer(f"{process.label} is no Server: it takes no calls, casts and stops", target=process.serial)
