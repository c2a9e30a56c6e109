"""A tree as those see it who look at it from outside: nobody is asked, so a busy supervisor is shown too."""

from __future__ import annotations

import time
from typing import Any

from supervisor.branch import Branch, Facts
from supervisor.dynamic import SimpleNode
from supervisor.node import Child
from supervisor.tree import StaticNode
from supervisor.tree_vocabulary import Phase


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
        "children": [_child_row(branch, record) for record in node.children],
    }


def _child_row(branch: Branch, record: Child) -> dict[str, Any]:
    spec = record.spec
    member = None if record.pid is None else branch.members.get(record.pid)
    facts = Facts() if branch.is_dynamic else branch.facts.get(spec.key, Facts())
    row: dict[str, Any] = {"name": spec.options.get("name"), "type": spec.type, "pid": None, "status_text": None}
    row["state"] = "restarting" if record.retry is not None else "stopped" if record.pid is None else "running"
    if isinstance(member, Branch):
        row |= tree_row(member)
    elif member is not None:
        row["pid"] = member.pid_value()
        row["status_text"] = member.status_text
    row |= {"id": spec.id, "restart": spec.restart.value, "last_reason": facts.last_reason}
    row["last_output"] = facts.last_output
    return {"children": [], **row, "restarts": max(0, facts.starts - 1)}


_STATES = {
    Phase.NEW: "starting",
    Phase.IDLE: "running",
    Phase.STARTING: "starting a child",
    Phase.TERMINATING: "ending a child",
    Phase.ENDED: "ended",
}
