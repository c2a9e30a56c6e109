"""What `supervisor/signals.py` must come to, said in another way: a list of what has happened, gone over each time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from athena.errors import Reason
from supervisor.signals import Deliver, Down, Effect, End, Exit

Fact = tuple[Any, ...]


@dataclass
class Model:
    """Keeps facts only. They are ``started``, ``traps``, ``doomed``, ``gone``, ``tied``, ``untied``, ``armed``,
    ``disarmed``; nothing is ever taken away."""

    facts: list[Fact] = field(default_factory=list)

    def add(self, *fact: Any) -> None:
        self.facts.append(fact)

    # --- what the facts say

    def known(self) -> list[int]:
        gone = {fact[1] for fact in self.facts if fact[0] == "gone"}
        return [fact[1] for fact in self.facts if fact[0] == "started" and fact[1] not in gone]

    def alive(self) -> list[int]:
        doomed = {fact[1] for fact in self.facts if fact[0] == "doomed"}
        return [pid for pid in self.known() if pid not in doomed]

    def is_client(self, pid: int) -> bool:
        return ("started", pid, True) in self.facts

    def traps(self, pid: int) -> bool:
        said = [fact[2] for fact in self.facts if fact[0] == "traps" and fact[1] == pid]
        return self.is_client(pid) or (said[-1] if said else False)

    def links(self) -> list[tuple[int, int]]:
        """As they were asked for, oldest first."""
        found: list[tuple[int, int]] = []
        for fact in self.facts:
            if fact[0] == "tied":
                found.append((fact[1], fact[2]))
            elif fact[0] == "untied":
                found = [pair for pair in found if set(pair) != {fact[1], fact[2]}]
            elif fact[0] == "gone":
                found = [pair for pair in found if fact[1] not in pair]
        return found

    def peers(self, pid: int) -> list[int]:
        return [a if b == pid else b for a, b in self.links() if pid in (a, b)]

    def monitors(self) -> list[tuple[int, int, int, Any]]:
        """Reference, watcher, target and name, oldest first."""
        removed = {fact[1] for fact in self.facts if fact[0] == "disarmed"}
        gone = {fact[1] for fact in self.facts if fact[0] == "gone"}
        armed = [(fact[1], fact[2], fact[3], fact[4]) for fact in self.facts if fact[0] == "armed"]
        return [one for one in armed if one[0] not in removed and not gone & {one[1], one[2]}]

    # --- what is done, and what must follow

    def link(self, caller: int, other: int) -> list[Effect] | str:
        if caller not in self.known() or caller == other or other in self.peers(caller):
            return []
        if other in self.alive():
            self.add("tied", caller, other)
            return []
        return self._told(caller, Exit(other, "noproc")) if self.traps(caller) else "noproc"

    def monitor(self, watcher: int, target: int | None, ref: int, name: Any) -> list[Effect]:
        if watcher not in self.known() or watcher == target:
            return []
        if target in self.alive():
            self.add("armed", ref, watcher, target, name)
            return []
        return self._told(watcher, Down(ref, name, target, "noproc"))

    def demonitor(self, watcher: int, ref: int) -> bool | str:
        owners = [one[1] for one in self.monitors() if one[0] == ref]
        if not owners:
            return False
        if owners != [watcher]:
            return "foreign"
        self.add("disarmed", ref)
        return True

    def exit(self, sender: int, target: int, reason: Reason) -> list[Effect]:
        """The table of otp.md 14, row by row."""
        if target not in self.alive():
            return []
        match reason, sender == target, self.traps(target), self.is_client(target):
            case "kill", _, _, False:
                return self._doomed(target, "killed")
            case _, _, True, _:
                return self._told(target, Exit(sender, reason))
            case "normal", False, False, _:
                return []
            case _:
                return self._doomed(target, reason)

    def exited(self, pid: int, reason: Reason) -> list[Effect]:
        if pid not in self.known():
            return []
        peers, monitors = self.peers(pid), self.monitors()
        self.add("gone", pid)
        effects: list[Effect] = []
        for peer in peers:
            if self.traps(peer):
                effects += self._told(peer, Exit(pid, reason))
            elif reason != "normal" and peer in self.alive():
                effects += self._doomed(peer, reason)
        for ref, watcher, target, name in monitors:
            if target == pid:
                effects += self._told(watcher, Down(ref, name, pid, reason))
        return effects

    def _told(self, to: int, message: Exit | Down) -> list[Effect]:
        return [Deliver(to, message)] if to in self.alive() else []

    def _doomed(self, pid: int, reason: Reason) -> list[Effect]:
        self.add("doomed", pid)
        return [End(pid, reason)]
