"""Links, monitors and exit signals between processes: who is told what when one of them ends. Pure, without a clock.

Two rules bind this file. Each call changes the tables and returns what follows from it, at once and in order, so that
there is no moment in which neither an answer nor a monitor exists. And what is said of a dead process is forgotten in
the call that ends it: the tables hold the living, those that are being killed, and what ties them.

What the driver owes: it carries out the effects of one call, in order, before it makes the next; it answers every
:class:`End` with one :meth:`Signals.exited` when the process is gone, and every other death as well; and before it
makes that call it has released the names of the dead (19.3).

Numbers in comments are sections of `reference/otp.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from athena.errors import InvalidOption, NoProcess, Reason

Name = Any
"""What a process was called by: text, or the wire form of another kind of name (JSON). ``None`` if by its pid."""


@dataclass(frozen=True, slots=True)
class Exit:
    """An exit signal that its receiver traps. ``sender`` has ended, or has sent it on purpose."""

    sender: int
    reason: Reason
    over_link: bool = field(default=False, compare=False)
    """Whether it says that the sender is gone."""


@dataclass(frozen=True, slots=True)
class Down:
    """The one message of a monitor. ``target`` is the name it was made by, ``pid`` is ``None`` if that was nobody's."""

    ref: int
    target: Name
    pid: int | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give the message to a process that is alive."""

    to: int
    message: Exit | Down


@dataclass(frozen=True, slots=True)
class End:
    """Kill the process at once. ``reason`` is its exit reason, whatever its wait status says (18.3, rule 1)."""

    pid: int
    reason: Reason


Effect = Deliver | End


class Sizes(NamedTuple):
    """How much the tables hold. A link counts once."""

    processes: int
    links: int
    monitors: int


@dataclass(slots=True)
class _Process:
    """The tables are dicts because they are ordered, and because an empty one is small."""

    is_client: bool
    traps: bool
    is_dying: bool = False  # a fatal signal has reached it, and its exit is awaited
    links: dict[int, None] = field(default_factory=dict)
    monitors: dict[int, None] = field(default_factory=dict)  # references that it watches others by
    watchers: dict[int, None] = field(default_factory=dict)  # references that it is watched by


class _Monitor(NamedTuple):
    watcher: int
    target: int
    name: Name


class Signals:
    """The processes of one supervisor, and what ties them together (14)."""

    def __init__(self) -> None:
        self._processes: dict[int, _Process] = {}
        self._monitors: dict[int, _Monitor] = {}

    def __repr__(self) -> str:
        return f"<Signals {self._processes!r} {self._monitors!r}>"

    # --- who is there

    def started(self, pid: int, *, traps: bool = False, client: bool = False) -> None:
        """A process is there, and whether it traps exits.

        A ``client`` is a program that is not ours to kill: it traps always, and even ``kill`` reaches it as a message.
        Raises ``ValueError`` if the pid is in use.
        """
        if pid in self._processes:
            raise ValueError(f"process {pid} has started already; each start needs a pid of its own")
        self._processes[pid] = _Process(client, traps or client)

    def set_trap_exit(self, pid: int, on: bool) -> None:
        """From now on it traps exits, or does not. Of a process that is gone it is ignored.

        Raises :class:`InvalidOption` if a client is not to trap.
        """
        process = self._processes.get(pid)
        if process is None:
            return
        if process.is_client and not on:
            raise InvalidOption(
                "a client always traps exits; only processes that the supervisor started can stop trapping",
                option="trap_exit",
                value=repr(on),
                expected="True",
            )
        process.traps = on

    def is_alive(self, pid: int) -> bool:
        """Whether it runs and no fatal signal has reached it."""
        return self._living(pid) is not None

    def is_known(self, pid: int) -> bool:
        """Whether it has started and its exit has not been told: alive, or being killed."""
        return pid in self._processes

    def traps_exits(self, pid: int) -> bool:
        """Whether exit signals reach it as messages."""
        process = self._processes.get(pid)
        return process is not None and process.traps

    # --- links

    def link(self, caller: int, other: int) -> list[Effect]:
        """Link two processes. A second link of the two, and one to oneself, change nothing.

        If ``other`` is dead, a caller that traps gets ``Exit(other, "noproc")``; for one that does not it raises
        :class:`NoProcess`, which is the answer to its call.
        """
        process = self._processes.get(caller)
        # One that is being killed may still link: the request was under way before the signal reached it.
        if process is None or other == caller or other in process.links:
            return []
        linked = self._living(other)
        if linked is not None:
            process.links[other] = linked.links[caller] = None
            return []
        if not process.traps:
            raise NoProcess(f"cannot link to process {other}: it is gone", target=other)
        return self._deliver(caller, Exit(other, "noproc", over_link=True))

    def unlink(self, caller: int, other: int) -> None:
        """Remove the link, if there is one. Nothing that happens from now on comes over it."""
        process = self._processes.get(caller)
        if process is not None and other in process.links:
            del process.links[other], self._processes[other].links[caller]

    # --- monitors

    def monitor(self, watcher: int, target: int | None, ref: int, name: Name = None) -> list[Effect]:
        """Watch a process; ``target`` is ``None`` if ``name`` is nobody's. ``ref`` is new, and no other process has it.

        What is dead or unknown is :class:`Down` with ``noproc`` at once. To watch oneself is legal and never tells.
        Raises ``ValueError`` if ``ref`` is in use.
        """
        process = self._processes.get(watcher)
        if process is None or target == watcher:
            return []
        watched = None if target is None else self._living(target)
        if target is None or watched is None:
            return self._deliver(watcher, Down(ref, name, target, "noproc"))
        if ref in self._monitors:
            raise ValueError(f"monitor {ref} exists already; each needs a reference of its own")
        self._monitors[ref] = _Monitor(watcher, target, name)
        process.monitors[ref] = watched.watchers[ref] = None
        return []

    def demonitor(self, watcher: int, ref: int) -> bool:
        """Remove a monitor: no :class:`Down` of it follows. Whether there was one.

        ``False`` means that it has fired, was removed before, watched its own process, or never was. Raises
        :class:`InvalidOption` if the monitor is another process's; it stays.
        """
        monitor = self._monitors.get(ref)
        if monitor is None:
            return False
        if monitor.watcher != watcher:
            raise InvalidOption(
                f"monitor {ref} belongs to process {monitor.watcher}; only that one can remove it",
                option="ref",
                value=repr(ref),
                expected="a reference of the caller's own",
            )
        self._remove(ref)
        return True

    # --- exit signals

    def exit(self, sender: int, target: int, reason: Reason) -> list[Effect]:
        """Send an exit signal on purpose. To a process that is gone, or that a signal has ended before, it is nothing.

        ``kill`` ends with ``killed`` and is not trapped; ``normal`` ends only the process that sends it to itself.
        """
        receiver = self._living(target)
        if receiver is None:
            return []
        if reason == "kill" and not receiver.is_client:
            return self._end(target, receiver, "killed")
        if reason == "normal" and sender == target and not receiver.traps:
            return self._end(target, receiver, reason)
        return self._signal(target, Exit(sender, reason))

    def exited(self, pid: int, reason: Reason) -> list[Effect]:
        """The process is gone: first its links tell, then its monitors, each in the order in which they were made.

        Of a process that is not known it is nothing, so that no death is told twice.
        """
        process = self._processes.get(pid)
        if process is None:
            return []
        for ref in [*process.monitors]:
            self._remove(ref)
        downs = [(ref, self._remove(ref)) for ref in [*process.watchers]]
        for other in process.links:
            del self._processes[other].links[pid]
        del self._processes[pid]
        effects: list[Effect] = []
        for other in process.links:
            effects += self._signal(other, Exit(pid, reason, over_link=True))
        for ref, monitor in downs:
            effects += self._deliver(monitor.watcher, Down(ref, monitor.name, pid, reason))
        return effects

    def lost(self, pid: int) -> list[Effect]:
        """A client's process has vanished; nobody knows why it ended."""
        return self.exited(pid, "noconnection")

    # --- to look at

    def links_of(self, pid: int) -> tuple[int, ...]:
        """The processes that it is linked to."""
        process = self._processes.get(pid)
        return () if process is None else tuple(process.links)

    def monitors_of(self, pid: int) -> dict[int, int]:
        """Whom it watches, by reference."""
        process = self._processes.get(pid)
        return {} if process is None else {ref: self._monitors[ref].target for ref in process.monitors}

    def watched_by(self, pid: int) -> dict[int, int]:
        """Who watches it, by reference."""
        process = self._processes.get(pid)
        return {} if process is None else {ref: self._monitors[ref].watcher for ref in process.watchers}

    def sizes(self) -> Sizes:
        """How much there is; all zero when everything has ended. Takes time with the number of processes."""
        ends = sum(len(process.links) for process in self._processes.values())
        return Sizes(len(self._processes), ends // 2, len(self._monitors))

    # --- inside

    def _living(self, pid: int) -> _Process | None:
        process = self._processes.get(pid)
        return None if process is None or process.is_dying else process

    def _remove(self, ref: int) -> _Monitor:
        monitor = self._monitors.pop(ref)
        del self._processes[monitor.watcher].monitors[ref], self._processes[monitor.target].watchers[ref]
        return monitor

    def _signal(self, to: int, signal: Exit) -> list[Effect]:
        """As it comes over a link, where ``kill`` is a reason like others, and only ``normal`` is harmless."""
        receiver = self._living(to)
        if receiver is None:
            return []
        if receiver.traps:
            return self._deliver(to, signal)
        return [] if signal.reason == "normal" else self._end(to, receiver, signal.reason)

    def _end(self, pid: int, process: _Process, reason: Reason) -> list[Effect]:
        process.is_dying = True
        return [End(pid, reason)]

    def _deliver(self, to: int, message: Exit | Down) -> list[Effect]:
        return [Deliver(to, message)] if self.is_alive(to) else []
