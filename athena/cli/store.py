"""``athena store`` and ``athena rm``: looking after the logs in a directory. None of it starts a supervisor."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from athena.cli.border import EXIT_ERROR, EXIT_OK, UsageError
from athena.cli.lookup import complete_stored

if TYPE_CHECKING:
    from athena.stores.jsonl import JsonlStore
    from athena.stores.upkeep import LogReport

FORMATS = ("jsonl", "markdown", "exathena")

WRITTEN_AT_ONCE = 256
"""Pieces of an export in one write."""

_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

store = typer.Typer(help="Look after the logs of stored sessions.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable: one JSON document, or one a line for streams.")]
Root = Annotated[
    Path | None,
    typer.Option("--root", help="Directory of the logs. Default: that of the state directory.", show_default=False),
]
Stored = Annotated[
    str, typer.Argument(metavar="ID", help="Session id.", autocompletion=complete_stored, show_default=False)
]


@store.command()
def verify(
    session_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Session id; without one, all logs.", autocompletion=complete_stored),
    ] = None,
    root: Root = None,
    json: Json = False,
) -> int:
    """Read logs from end to end and tell what is wrong. Changes nothing. Exit code 1 if there is damage."""
    from athena.cli.output import emit, note
    from athena.errors import NotFound

    logs = _logs(root)
    wanted = logs.list() if session_id is None else [session_id]
    damaged = 0
    for one in wanted:
        try:
            report, misfits = logs.inspect(one), _misfits(logs, one)
        except NotFound:
            if session_id is None:
                continue  # it was removed meanwhile
            raise
        damaged += report.is_damaged or misfits > 0
        if json:
            emit(_report_row(report, misfits))
        elif session_id is not None or report.is_damaged or misfits:
            _tell_report(report, misfits)
    if not json:
        note(f"{len(wanted)} logs read, {damaged} damaged" if session_id is None else _verdict(damaged, session_id))
    return EXIT_ERROR if damaged else EXIT_OK


@store.command()
def repair(session_id: Stored, root: Root = None, json: Json = False) -> int:
    """Take what is no event out of a log, after a copy beside it. Refused while the session runs."""
    from athena.cli.output import emit, note

    done = _logs(root).repair(session_id)
    if json:
        backup = None if done.backup is None else str(done.backup)
        emit({"session_id": session_id, "repaired": backup is not None, "backup": backup, "found": _found(done.found)})
    elif done.backup is None:
        note(f"nothing is wrong with the log of {session_id}; it is unchanged")
    else:
        found = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in _found(done.found).items() if count)
        note(f"repaired {session_id} ({found}); the log as it was: {done.backup}")
    return EXIT_OK


@store.command()
def export(
    session_id: Stored,
    form: Annotated[
        str | None, typer.Option("--format", help="jsonl: its events; markdown: for people; exathena: its lines.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file. Default: stdout.", show_default=False)
    ] = None,
    root: Root = None,
    json: Json = False,
) -> int:
    """Write a session out: whole events without what is damaged, or its conversation."""
    from athena.cli.output import emit, note, write

    form = form or "jsonl"
    if form not in FORMATS:
        raise UsageError(f"format {form!r} is unknown; legal: {', '.join(FORMATS)}")
    if json and output is None and form != "jsonl":
        raise UsageError(f"--json and --format {form} exclude each other where the export goes to stdout")
    pieces = _chunks(_exported(_logs(root), session_id, form))
    if output is None:
        for piece in pieces:
            write(piece)
        return EXIT_OK
    size_bytes = _write_new(output, pieces)
    if json:
        emit({"session_id": session_id, "format": form, "path": str(output), "size_bytes": size_bytes})
    else:
        note(f"wrote {output} ({size_bytes} bytes)")
    return EXIT_OK


@store.command()
def gc(
    older_than: Annotated[str, typer.Option("--older-than", help="Age of the last write: 30d, 12h, 90min, 4w.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    root: Root = None,
    json: Json = False,
) -> int:
    """Remove stored sessions that nobody has written to for long, and blobs that no log names. Sessions of a supervisor
    stay."""
    from athena.cli.output import emit, mebibytes, note
    from athena.removal import collect, collect_blobs

    rows = collect(seconds(older_than), root=root, dry_run=dry_run)
    freed_bytes = sum(row["size_bytes"] for row in rows if row["removed"])
    if not dry_run:
        freed_bytes += collect_blobs(seconds(older_than), root=root)
    if json:
        emit({"sessions": rows, "freed_bytes": freed_bytes, "dry_run": dry_run})
        return EXIT_OK
    if rows:
        _tell_collected(rows, dry_run=dry_run)
    count = sum(row["removed"] for row in rows)
    note(f"{'would remove' if dry_run else 'removed'} {count} sessions, {mebibytes(freed_bytes)}")
    return EXIT_OK


def rm(session_id: Stored, root: Root = None, json: Json = False) -> int:
    """Remove a stored session for good: its log and all that belongs to it. A live one must be stopped first."""
    from athena.cli.lookup import live_status
    from athena.cli.output import emit, note
    from athena.errors import Running
    from athena.removal import delete

    row = live_status(session_id)  # by its name too: who says it means that session, not a log that is called so
    if row is not None:
        raise Running(
            f"session {session_id!r} is {row['state']}; stop it first: athena stop {session_id}", state=row["state"]
        )
    delete(session_id, root=root)
    if json:
        emit({"session_id": session_id, "removed": True})
    else:
        note(f"removed {session_id}")
    return EXIT_OK


def seconds(text: str) -> float:
    """An age as people write it. Raises :class:`UsageError`."""
    match = re.fullmatch(r"(\d{1,6})(s|min|h|d|w)", text)
    if match is None:
        raise UsageError(f"{text!r} is no age: a number and a unit, {', '.join(_UNITS_S)}, as in 30d")
    return float(match[1]) * _UNITS_S[match[2]]


def _logs(root: Path | None) -> JsonlStore:
    from athena.config import default_paths
    from athena.stores.jsonl import JsonlStore

    return JsonlStore(root if root is not None else default_paths().sessions, allow_network=True)


def _misfits(logs: JsonlStore, session_id: str) -> int:
    """Events that are whole and whose data is not what their kind has."""
    from athena.loop.state import fold

    return fold(logs.read(session_id)).misfits


def _found(report: LogReport) -> dict[str, int]:
    return {
        "bad_lines": report.damage.bad_lines,
        "missing_events": report.damage.missing_events,
        "unfinished_bytes": report.unfinished_bytes,
        "missing_blobs": len(report.missing_blobs),
    }


def _report_row(report: LogReport, misfits: int) -> dict[str, Any]:
    return {
        "session_id": report.session_id,
        "damaged": report.is_damaged or misfits > 0,
        "size_bytes": report.size_bytes,
        "events": report.events,
        "last_seq": report.last_seq,
        **_found(report),
        "gaps": [list(gap) for gap in report.gaps],
        "misfits": misfits,
        "orphan_blobs": len(report.orphan_blobs),
        "belongs_to": report.belongs_to,
        "parent": None if report.origin is None else report.origin.parent,
        "lost_parent": report.damage.lost_parent,
        "writer": report.writer,
    }


def _tell_report(report: LogReport, misfits: int) -> None:
    from athena.cli.output import facts

    missing = report.damage.missing_events
    gaps = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in report.gaps)
    facts(
        [
            ("session", report.session_id),
            ("events", f"{report.events}, the last is {report.last_seq}"),
            ("size", f"{report.size_bytes} bytes"),
            ("bad lines", report.damage.bad_lines or None),
            ("missing events", f"{missing} ({gaps})" if missing else None),
            ("unfinished bytes", report.unfinished_bytes or None),
            ("unreadable events", misfits or None),
            ("missing blobs", ", ".join(report.missing_blobs) or None),
            ("blobs without event", len(report.orphan_blobs) or None),
            ("fork of", None if report.origin is None else f"{report.origin.parent} at {report.origin.at.seq}"),
            ("lost parent", report.damage.lost_parent),
            ("copy of", report.belongs_to),
            ("written by pid", report.writer),
        ]
    )


def _verdict(damaged: int, session_id: str) -> str:
    return f"damaged; mend it with: athena store repair {session_id}" if damaged else "nothing is wrong"


def _tell_collected(rows: list[dict[str, Any]], *, dry_run: bool) -> None:
    from athena.cli.output import ago, mebibytes, table

    done = "would be removed" if dry_run else "removed"
    table(
        ("SESSION", "LAST WRITTEN", "SIZE", "WHAT"),
        [
            (
                row["session_id"],
                ago(row["updated_at"]),
                mebibytes(row["size_bytes"]),
                done if row["removed"] else f"kept: {row['kept']}",
            )
            for row in rows
        ],
    )


def _exported(logs: JsonlStore, session_id: str, form: str) -> Iterator[str]:
    from athena.cli import export as forms
    from athena.errors import NotFound
    from athena.loop.state import kept_seqs
    from athena.stores.blobs import in_line

    if not logs.path(session_id).is_file():
        raise NotFound(f"there is no log of session {session_id!r} in {str(logs.root)!r}", target=session_id)
    events = (in_line(event, logs.read_blob) for event in logs.read(session_id))
    match form:
        case "markdown":
            return forms.markdown(session_id, events)
        case "exathena":
            return forms.exathena(events, kept_seqs(logs.read(session_id)))
        case _:
            return (event.line.decode() + "\n" for event in events)


def _chunks(pieces: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    for piece in pieces:
        held.append(piece)
        if len(held) >= WRITTEN_AT_ONCE:
            yield "".join(held)
            held.clear()
    if held:
        yield "".join(held)


def _write_new(path: Path, pieces: Iterable[str]) -> int:
    """Write a file that must not be there yet; private, as a log is. What fails leaves none."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{str(path)!r} is there already; choose another name or remove it") from None
    try:
        with open(fd, "wb") as file:
            for piece in pieces:
                file.write(piece.encode())
            return file.tell()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
