"""What ``ls``, ``status``, ``messages`` and ``events`` print."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from athena.cli.output import ago, duration, facts, indented, mebibytes, note, one_line, styled, table, write

STORED_SHOWN = 20
"""Stored sessions that ``ls`` shows without ``--all``: the ones used last."""

EVENT_CHARS = 100


def sessions(rows: list[dict[str, Any]], *, everything: bool) -> None:
    """A table of sessions, supervised ones first."""
    live = [row for row in rows if row["state"] != "stored"]
    stored = sorted((row for row in rows if row["state"] == "stored"), key=lambda r: r["updated_at"] or 0, reverse=True)
    shown = stored if everything else stored[:STORED_SHOWN]
    if not live and not stored:
        note("no sessions yet; start one with: athena chat NAME")
        return
    table(
        ("NAME", "SESSION", "STATE", "PID", "TURN", "QUEUE", "STARTED", "LAST WRITTEN"),
        [
            (
                row["name"],
                row["session_id"],
                row["state"],
                row["pid"],
                row.get("turn"),
                row.get("queue") or None,
                ago(row.get("started_at")),
                ago(row["updated_at"]),
            )
            for row in live + shown
        ],
    )
    if len(stored) > len(shown):
        note(f"{len(stored) - len(shown)} more stored sessions: athena ls --all")


def session(row: dict[str, Any]) -> None:
    """One supervised session in full."""
    from athena.cli.screen import reason_text

    reason = row.get("last_reason")
    facts(
        [
            ("session", row["session_id"]),
            ("name", row["name"]),
            ("state", row["state"]),
            ("pid", row["pid"]),
            ("incarnation", row["incarnation"]),
            ("restarts in window", row["restarts_in_window"]),
            ("last reason", None if reason is None else reason_text(reason)),
            ("turn", row["turn"]),
            ("queue", row["queue"]),
            ("events", row["events"]),
            ("subscribers", row["subscribers"]),
            ("damage", row["damage"]),
            ("store", row["store"]),
            ("memory", mebibytes(row.get("memory_bytes"))),
            ("cpu", None if row.get("cpu_s") is None else f"{row['cpu_s']} s"),
            ("started", ago(row["started_at"])),
            ("last written", ago(row["updated_at"]) or None),
            ("output", row["log_file"]),
            ("last output", indented(row["last_output"])),
        ]
    )


def stored_session(row: dict[str, Any]) -> None:
    """One stored session in full."""
    facts(
        [
            ("session", row["session_id"]),
            ("state", row["state"]),
            ("open turn", row["turn"]),
            ("queue", row["queue"]),
            ("events", row["events"]),
            ("messages", row["messages"]),
            ("turns", row["turns"]),
            ("provider", row["options"].get("provider")),
            ("model", row["options"].get("model")),
            ("tokens", f"{row['usage']['input_tokens']} in, {row['usage']['output_tokens']} out"),
            ("last written", ago(row["updated_at"]) or None),
            ("log", row["log"]),
        ]
    )


def supervisor(info: dict[str, Any]) -> None:
    """The daemon itself."""
    services = ", ".join(f"{s['service']} ({s['state']})" for s in info["services"]) or None
    facts(
        [
            ("supervisor", f"running (pid {info['pid']})"),
            ("version", info["product"]),
            ("socket", info["socket"]),
            ("state directory", info["state_dir"]),
            ("up for", duration(info["uptime_s"])),
            ("sessions", info["sessions"]),
            ("hibernated", info["hibernated"]),
            ("failed", info["failed"]),
            ("services", services),
            ("connections", info["connections"]),
            ("memory", mebibytes(info["memory_bytes"])),
        ]
    )


def messages(found: Iterable[Any]) -> None:
    """A conversation; ``found`` are messages of the library."""
    from athena.cli.screen import ARGUMENTS_CHARS

    for message in found:
        styled(message.role, "bold")
        if message.text:
            write(message.text if message.text.endswith("\n") else message.text + "\n")
        for call in message.tool_calls:
            styled(one_line(f"→ {call.name} {call.arguments}", ARGUMENTS_CHARS), "dim")
        for result in message.tool_results:
            write(f"{'error: ' if result.is_error else ''}{result.content}\n")


def event(item: Any) -> None:
    """One event on one line."""
    write(
        f"{item.seq:>6}  {item.ts[:19]}  {item.turn or '':<5} {item.event:<18} {one_line(_gist(item), EVENT_CHARS)}\n"
    )


def _gist(item: Any) -> str:
    data = item.data
    message = data.get("message")
    if isinstance(message, dict):
        calls = " ".join(f"→ {call.get('name')}" for call in message.get("tool_calls") or ())
        results = " ".join(str(result.get("content")) for result in message.get("tool_results") or ())
        return " ".join(
            part for part in (data.get("status"), str(message.get("content") or ""), calls, results) if part
        )
    kept = {k: v for k, v in data.items() if k not in ("messages", "usage", "text")}
    return " ".join([str(data["text"])] if "text" in data else [f"{k}={v}" for k, v in kept.items()])
