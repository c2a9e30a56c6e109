"""Trees as those see them who look from outside: nobody is asked, so a busy supervisor is shown too."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from supervisor.branch import Branch, Facts
from supervisor.dynamic import DynamicNode, SimpleNode
from supervisor.keeper import Keeper
from supervisor.node import Child
from supervisor.tree import StaticNode
from supervisor.tree_function import Function
from supervisor.tree_session import TreeKeeper
from supervisor.tree_vocabulary import Phase

if TYPE_CHECKING:
    from supervisor.forest import Forest

PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def forest_rows(forest: Forest, keepers: Iterable[Keeper]) -> list[dict[str, Any]]:
    """Every tree; the servers that are in none; and the sessions that are in none, below the root they hang under."""
    rows = [tree_row(root) for root in forest.roots.values()]
    rows += [_leaf_row(solo.leaf) for solo in forest.solos.values()]
    sessions = [_session_row(keeper) for keeper in keepers if not isinstance(keeper, TreeKeeper)]
    if sessions:
        pid = {"pid": None, "serial": 0, "supervisor": forest.around.supervisor_id}  # nobody can ask it for anything
        root = {"name": None, "label": "sessions", "pid": pid, "type": "supervisor", "strategy": "dynamic"}
        rows.append({**root, "state": "running", "restarts_in_window": 0, "memory_bytes": None, "children": sessions})
    return rows


def tree_row(branch: Branch) -> dict[str, Any]:
    """A supervisor and what is below it, now."""
    node = branch.node
    return {
        "name": branch.name,
        "label": branch.label,
        "pid": branch.pid_value(),
        "type": "supervisor",
        "strategy": str(node.flags.strategy) if isinstance(node, StaticNode | SimpleNode) else "dynamic",
        "state": _STATES[node.phase],
        "restarts_in_window": node.restarts_in_window(time.monotonic()),
        "max_restarts": node.max_restarts,
        "max_children": node.flags.max_children if isinstance(node, DynamicNode) else None,
        "memory_bytes": None,
        "children": [_child_row(branch, record) for record in node.children],
    }


def _child_row(branch: Branch, record: Child) -> dict[str, Any]:
    spec = record.spec
    member = None if record.pid is None else branch.members.get(record.pid)
    facts = Facts() if branch.is_dynamic else branch.facts.get(spec.key, Facts())
    row: dict[str, Any] = {"name": spec.options.get("name"), "type": spec.type, "pid": None, "status_text": None}
    row["memory_bytes"] = None
    row["state"] = "restarting" if record.retry is not None else "stopped" if record.pid is None else "running"
    if isinstance(member, Branch):
        row |= tree_row(member)
    elif member is not None:
        row |= {"pid": member.pid_value(), "status_text": member.status_text, "memory_bytes": _memory(member.os_pid)}
    row |= {"id": spec.id, "restart": spec.restart.value, "last_reason": facts.last_reason}
    row["last_output"] = facts.last_output
    return {"children": [], **row, "restarts": max(0, facts.starts - 1)}


def _leaf_row(leaf: Function) -> dict[str, Any]:
    row = {"name": leaf.name, "label": leaf.label, "pid": leaf.pid_value(), "type": "worker", "state": "running"}
    return {**row, "restart": "temporary", "memory_bytes": _memory(leaf.os_pid), "children": []}


def _session_row(keeper: Keeper) -> dict[str, Any]:
    return {
        "id": keeper.name or keeper.session_id,
        "name": keeper.name,
        "type": "worker",
        "state": keeper.state,
        "pid": keeper.pid_value(),
        "memory_bytes": _memory(keeper.os_pid),
        "restart": keeper.request.spec.restart.value,
        "restarts": keeper.core.restarts_in_window(time.monotonic()),
        "last_reason": keeper.core.last_reason,
        "children": [],
    }


def _memory(pid: int | None) -> int | None:
    """Resident memory of a process; of its tree and less what it shares, ``status`` has more."""
    if pid is None:
        return None
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE_BYTES
    except OSError:
        return None  # it has ended


_STATES = {
    Phase.NEW: "starting",
    Phase.IDLE: "running",
    Phase.STARTING: "starting a child",
    Phase.TERMINATING: "ending a child",
    Phase.ENDED: "ended",
}
