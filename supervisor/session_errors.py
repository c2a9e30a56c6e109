"""What callers of a session are told when it could not start, or has failed."""

from __future__ import annotations

from pathlib import Path

from athena.errors import AthenaError, Reason, SessionFailed, StartError, from_wire
from supervisor.logfile import last_line


def start_error(
    label: str, reason: Reason, log_file: Path, last_output: str | None, *, is_degraded: bool
) -> AthenaError:
    """For whoever started it: what its child refused with, which names the option, or where to look."""
    if isinstance(reason, dict) and isinstance(reason.get("error"), str):
        return from_wire(reason)
    if is_degraded:
        return StartError(f"{label} could not start: its log cannot be written (disk full?)", reason=reason)
    hint = f"; its output is in {log_file}" if log_file.exists() and log_file.stat().st_size else ""
    return StartError(f"{label} could not start: {reason!r}{last_line(last_output)}{hint}", reason=reason)


def failed_error(label: str, reason: Reason, last_output: str | None) -> SessionFailed:
    """For whoever calls it: its restarts are used up."""
    said, remedy = last_line(last_output), "restart it, or start it again under its id, to go on"
    return SessionFailed(f"{label} has failed: {reason!r}{said}; its log is kept, {remedy}", reason=reason)
