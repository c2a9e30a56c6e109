"""The invariants of reference/otp.md 19 for trees of real processes, asserted around every test that has a yard.

Numbers in comments and messages are those of section 19. What only a model can see (6: why a child ended, 8: the moment
of a start, 11: frames that come late) is asserted by the state machines of ``test_tree_walk.py`` and
``test_signals.py`` as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import athena
from athena import Monitor, Pid, proctree
from athena.environment import COOKIE_VARIABLE
from athena.errors import CallTimeout, NoProcess, ProcessExited
from athena.supervisors import EmbeddedSupervisor
from athena.tree_calls import which_children
from athena.trees import TreeHandle, list_trees
from athena.wire import Frame
from tests.helpers import TIME_UNIT, wait_until
from tests.session_fixtures import is_gone

REST_S = 20.0
"""Within this a supervisor has forgotten everything about what has ended."""

BUSY_S = 0.5
"""A supervisor that does not answer in this time is busy with what the test has it do: it is looked at only."""


def info(at: EmbeddedSupervisor) -> dict[str, Any]:
    """What the supervisor says of itself."""
    found: dict[str, Any] = at.pool.call("info", {}, b"", REST_S).json()
    return found


def sizes(at: EmbeddedSupervisor) -> dict[str, int]:
    """How much it remembers of processes. Mailboxes are the clients' own, and stay as long as these."""
    return {name: count for name, count in info(at)["processes"].items() if name != "mailboxes"}


def all_rows(at: EmbeddedSupervisor) -> Iterator[dict[str, Any]]:
    """Every supervisor and child of every tree, each after its parent."""
    rows = list_trees(supervisor=at)
    while rows:
        row = rows.pop(0)
        yield row
        rows += row["children"]


def processes_below(pid: int) -> dict[int, str]:
    """The descendants of a supervisor, zombies included, and what they are; zygotes, which are its own, left out."""
    found = {}
    for one in proctree.descendants(pid):
        row = proctree.stat(one)
        if row is not None and not _is_zygote(one):
            found[one] = f"{one} state={row.state} {_command(one)!r}"
    return found


def _is_zygote(pid: int) -> bool:
    """Its cookie is a placeholder, which each child that it forks writes over."""
    return "athena.zygote" in _command(pid) and not proctree.read_environ(pid).get(COOKIE_VARIABLE, "").strip("-")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


@dataclass(slots=True)
class Witness:
    """Two monitors of one process: what they say must be one thing, said once each."""

    pid: Pid
    name: str | None
    monitors: tuple[Monitor, Monitor]


@dataclass(slots=True)
class Invariants:
    """Looks at one supervisor before a test, while its trees run, and when they have ended."""

    at: EmbeddedSupervisor
    sizes_before: dict[str, int] = field(default_factory=dict)
    below_before: set[int] = field(default_factory=set)
    witnesses: list[Witness] = field(default_factory=list)

    def begin(self) -> None:
        """What there is before the test."""
        self.at.ensure()
        athena.self_pid(supervisor=self.at)  # from now on this program is a process there
        self.sizes_before = sizes(self.at)
        self.below_before = set(processes_below(info(self.at)["pid"]))

    # --- while trees run

    def look_at(self, trees: Sequence[TreeHandle]) -> None:
        """What holds of those that still run, and witnesses for their end."""
        for row in all_rows(self.at):
            self._name(row)
            self._limits(row)
            self._watch(row)
            if row["state"] == "stopped":
                assert row["restart"] != "temporary", f"8: {row['id']!r} has a specification and no process"
                assert row["pid"] is None
        for tree in trees:
            self._order(tree)

    def _name(self, row: dict[str, Any]) -> None:
        """3: a name is a live process' or nobody's."""
        if isinstance(row["name"], str):
            holder = athena.whereis(row["name"], supervisor=self.at)
            assert holder is None or athena.is_alive(holder, supervisor=self.at), f"3: {row['name']!r} is {holder!r}"

    def _limits(self, row: dict[str, Any]) -> None:
        """7: a supervisor that goes on has had no more restarts than it may; 12: nor more children."""
        if row["state"] not in ("running", "starting a child") or "max_restarts" not in row:  # else it may be giving up
            return
        assert row["restarts_in_window"] <= row["max_restarts"], f"7: {row['label']} had {row['restarts_in_window']}"
        if row["max_children"] is not None:
            assert len(row["children"]) <= row["max_children"], f"12: {row['label']} has {len(row['children'])}"

    def _watch(self, row: dict[str, Any]) -> None:
        pid = Pid.from_map(row["pid"])
        if pid is not None:
            first, second = (athena.monitor(pid, supervisor=self.at) for _ in range(2))
            self.witnesses.append(Witness(pid, row["name"] if isinstance(row["name"], str) else None, (first, second)))

    def _order(self, tree: TreeHandle) -> None:
        """5: the newest child is shown first; 4: no two have one id, and no process is shown twice."""
        try:
            children = tree._do(which_children(tree.pid), BUSY_S * TIME_UNIT)
        except (CallTimeout, NoProcess, ProcessExited):
            return  # it is busy, or on its way out
        found = [row for row in list_trees(supervisor=self.at) if row["pid"]["serial"] == tree.pid.serial]
        pids = [child.pid.serial for child in children if isinstance(child.pid, Pid)]
        assert len(set(pids)) == len(pids), "4"
        if not found or found[0]["strategy"] in ("dynamic", "simple_one_for_one"):
            return
        shown = [row["id"] for row in found[0]["children"]]
        if len(shown) == len(children):  # else one has come or gone since
            assert [child.id for child in children] == shown[::-1], "5"
        keys = [(type(child.id), child.id) for child in children]
        assert len(set(keys)) == len(keys), "4"

    # --- when all have ended

    def at_rest(self) -> None:
        """No process, no zombie, no name, no link, monitor or call is left (9, 10), and each end was told once."""
        supervisor = info(self.at)["pid"]
        left: dict[str, Any] = {}

        def nothing_left() -> bool:
            found = processes_below(supervisor)
            left["processes"] = [text for pid, text in found.items() if pid not in self.below_before]
            left["sizes"] = {name: n for name, n in sizes(self.at).items() if n > self.sizes_before[name]}
            return not (left["processes"] or left["sizes"])

        for witness in self.witnesses:
            self._told_once(witness)
        try:
            wait_until(nothing_left, REST_S)
        except AssertionError:
            raise AssertionError(f"9, 10: the ended trees left {left}") from None

    def _told_once(self, witness: Witness) -> None:
        """1, 2, 3: one reason, one ``Down`` for each monitor, and by then the name is not its any more."""
        told = []
        for monitor in witness.monitors:
            down = monitor.wait(REST_S * TIME_UNIT)
            assert down is not None, "2"
            told.append(down.reason)
            asked = {"ref": monitor.ref, "supervisor": monitor._armed.supervisor, "timeout": 0}
            assert self.at.pool.take(asked, REST_S * TIME_UNIT, Frame.json) == {"gone": True}, "2"
        assert told[0] == told[1] or "noproc" in told, f"1: {told}"
        if witness.name is not None:
            holder = athena.whereis(witness.name, supervisor=self.at)
            assert holder is None or holder.serial != witness.pid.serial, "3"
        assert not athena.is_alive(witness.pid, supervisor=self.at)
        assert witness.pid.is_logical or is_gone(int(witness.pid)), "10"
