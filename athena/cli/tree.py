"""``athena tree``, and the commands on one child of a supervisor. None of them starts a daemon."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from athena.child_specs import ChildId
from athena.cli import lookup
from athena.cli.border import EXIT_OK
from athena.cli.output import emit, indented, note, one_line, printable, show
from athena.pid import Pid
from athena.tree_calls import Ignored
from athena.trees import Supervisor, list_trees

STYLES = {"running": "green", "stopped": "dim", "restarting": "yellow"}

REASON_CHARS = 80


def tree(*, as_json: bool, with_output: bool = False) -> int:
    """Every tree of the daemon as it is now; ``with_output`` shows people what the dead wrote last, too."""
    at = lookup.daemon()
    try:
        found = list_trees(supervisor=at)
    finally:
        at.pool.close()
    if as_json:
        emit([_flat(root) for root in found])
        return EXIT_OK
    if not found:
        note("no supervision trees; a program starts one with Supervisor.start")
    for root in found:
        _show(root, with_output)
    return EXIT_OK


def act(action: str, child: str, supervisor: str, *, as_json: bool) -> int:
    """``restart``, ``terminate`` or ``delete`` a child of the supervisor of that name."""
    at = lookup.daemon()
    try:
        handle = Supervisor.attach(supervisor, supervisor=at)
        target = _child(handle, child)
        match action:
            case "restart":
                started = handle.restart_child(target)
                pid = None if isinstance(started, Ignored) else int(started.pid)
                said, text = {"restarted": child, "pid": pid}, f"restarted {child}" + (f" (pid {pid})" if pid else "")
            case "terminate":
                handle.terminate_child(target)
                is_kept = target in [row.id for row in handle.which_children()]
                text = f"terminated {child}" + ("; it stays down until it is asked for" if is_kept else "")
                said = {"terminated": child}
            case _:
                handle.delete_child(target)
                said, text = {"deleted": child}, f"deleted {child}"
    finally:
        at.pool.close()
    if as_json:
        emit({"supervisor": supervisor, **said})
    else:
        note(text)
    return EXIT_OK


def complete_supervisors(incomplete: str) -> list[str]:
    """Names of supervisors, for the shell."""
    from athena.errors import AthenaError

    try:
        names = [row["name"] for row in _all(list_trees(supervisor=lookup.daemon())) if row["name"]]
    except AthenaError:
        return []  # a completion that fails says nothing
    return [name for name in names if name.startswith(incomplete)]


def _child(handle: Supervisor, text: str) -> ChildId | Pid:
    """The child that ``text`` means: by id, or by pid where children have no ids."""
    for row in handle.which_children():
        if row.id is not None and str(row.id) == text:
            return row.id
        if isinstance(row.pid, Pid) and str(int(row.pid)) == text:
            return row.pid if row.id is None else row.id
    return text


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row as programs want it: the pid a number, of a supervisor none."""
    pid = row["pid"] or {"pid": None, "serial": None}
    return {
        **row, "pid": pid["pid"], "serial": pid["serial"], "children": [_flat(child) for child in row["children"]]
    }  # fmt: skip


def _all(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for row in rows:
        yield row
        yield from _all(row["children"])


def _show(root: dict[str, Any], with_output: bool) -> None:
    from rich.text import Text
    from rich.tree import Tree

    def grow(branch: Tree, row: dict[str, Any]) -> None:
        for child in row["children"]:
            line = _line(child)
            if with_output and child.get("last_output"):
                line.append(Text(printable(str(indented(child["last_output"])), sys.stdout), style="dim"))
            grow(branch.add(line), child)

    top = Tree(_line(root), guide_style="dim")
    grow(top, root)
    show(top)


def _of_limit(row: dict[str, Any]) -> str | None:
    """How near a supervisor is to giving up."""
    if not row.get("restarts_in_window") or "max_restarts" not in row:
        return None
    return f"{row['restarts_in_window']} of {row['max_restarts']} restarts"


def _line(row: dict[str, Any]) -> Any:
    from rich.text import Text

    from athena.cli.screen import reason_text

    line = Text(printable(str(row.get("id", row["name"] or row.get("label"))), sys.stdout), style="bold")
    pid = row["pid"] and row["pid"]["pid"]
    words = [row["state"], f"pid {pid}" if pid else None, row.get("strategy"), row.get("restart")]
    words += [f"restarts {row['restarts']}" if row.get("restarts") else None]
    words += [_of_limit(row)]
    words += [f"{row['memory_bytes'] / 1e6:.1f} MB" if row.get("memory_bytes") else None]
    line.append("  " + "  ".join(word for word in words if word), style=STYLES.get(row["state"], ""))
    if row.get("last_reason") is not None:
        text = one_line(reason_text(row["last_reason"]), REASON_CHARS)
        line.append(printable(f"  last ended with {text}", sys.stdout), style="dim")
    return line
