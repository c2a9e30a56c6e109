"""``athena checkpoint``, ``fork`` and ``rewind``: of a live session by asking it, of a stored one by its log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from athena.cli.border import EXIT_ERROR, EXIT_OK
from athena.cli.lookup import complete_any, complete_stored

if TYPE_CHECKING:
    from athena.points import Rewound
    from athena.session import Session

Json = Annotated[bool, typer.Option("--json", help="Machine-readable: one JSON document.")]
Target = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="Name, session id or pid.", autocompletion=complete_any, show_default=False),
]
POINT = "A checkpoint's label, the seq of an event, or a message's id: the end of its turn."


def checkpoint(
    target: Target,
    label: Annotated[str | None, typer.Option("--label", "-l", help="Its name, for rewind and fork.")] = None,
    json: Json = False,
) -> int:
    """Record the point that a session is at as one to go back to."""
    from athena.cli.output import emit, note, write
    from athena.stored_branches import checkpoint_stored

    live = _live(target)
    made = checkpoint_stored(target, label) if live is None else live.checkpoint(label)
    if json:
        session_id = target if live is None else live.session_id
        emit({"session_id": session_id, "seq": made.seq, "uuid": made.uuid, "label": made.label})
    else:
        write(f"{made.seq}\n")
        note(f"go back to it with: athena rewind {target} {made.label or made.seq}")
    return EXIT_OK


def fork(
    target: Target,
    at: Annotated[str | None, typer.Option("--at", metavar="POINT", help=f"{POINT} Default: its end.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Start it, too, under this name.")] = None,
    json: Json = False,
) -> int:
    """Make a session that goes on from a point of another one, without a copy. Files stay as they are."""
    from athena import branch_calls
    from athena.cli.output import emit, note, write
    from athena.events import new_session_id
    from athena.stored_branches import fork_stored

    live, point = _live(target), None if at is None else _point(at)
    if live is None:
        new_id, parent = fork_stored(target, point), target
    else:
        new_id, parent = new_session_id(), live.session_id
        live._do(branch_calls.fork(parent, point, new_id))
    if name is not None:
        _start(new_id, name)
    if json:
        emit({"session_id": new_id, "parent": parent, "name": name})
    else:
        write(f"{new_id}\n")
        note(f"go on with: athena chat {name}" if name else f"go on with: athena resume {new_id}")
    return EXIT_OK


def rewind(
    target: Target,
    point: Annotated[str, typer.Argument(metavar="POINT", help=POINT, show_default=False)],
    files: Annotated[
        bool, typer.Option("--files/--no-files", help="Bring the files back too that its tools have changed since.")
    ] = True,
    json: Json = False,
) -> int:
    """Take a session back to a point. Exit code 1 if a file could not be brought back."""
    from athena.cli.output import emit
    from athena.points import FAILED, NOT_KEPT
    from athena.stored_branches import rewind_stored

    live, to = _live(target), _point(point)
    done = rewind_stored(target, to, files=files) if live is None else live.rewind(to, files=files)
    if json:
        emit({"session_id": target if live is None else live.session_id, **done.to_map()})
    else:
        _tell(target, done)
    return EXIT_ERROR if any(file.outcome in (FAILED, NOT_KEPT) for file in done.files) else EXIT_OK


def materialise(
    session_id: Annotated[
        str, typer.Argument(metavar="ID", help="Session id of a fork.", autocompletion=complete_stored)
    ],
    root: Annotated[Path | None, typer.Option("--root", help="Directory of the logs.", show_default=False)] = None,
    json: Json = False,
) -> int:
    """Give a fork a copy of its past, so that its parent can be removed. Refused while the session runs."""
    from athena.cli.output import emit, note
    from athena.config import default_paths
    from athena.removal import refuse_held
    from athena.stores.jsonl import JsonlStore

    refuse_held(session_id)
    copied_bytes = JsonlStore(root if root is not None else default_paths().sessions).materialise(session_id)
    if json:
        emit({"session_id": session_id, "materialised": copied_bytes > 0, "copied_bytes": copied_bytes})
    elif copied_bytes:
        note(f"copied {copied_bytes} bytes into the log of {session_id}; it needs no other log any more")
    else:
        note(f"{session_id} is no fork; its log is unchanged")
    return EXIT_OK


def _live(target: str) -> Session | None:
    """A handle, if the daemon has the session; else it must be stored. Raises :class:`NotFound`."""
    from athena.cli.lookup import attach, live_status, require_stored

    row = live_status(target)
    if row is None or row["state"].startswith("failed"):
        require_stored(target)
        return None
    return attach(str(row["session_id"]))


def _point(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else text


def _start(session_id: str, name: str) -> None:
    from athena.cli.lookup import daemon
    from athena.session import Session

    Session.start(session_id=session_id, name=name, supervisor=daemon(autostart=True))


def _tell(target: str, done: Rewound) -> None:
    from athena.cli.output import note, table

    if done.files:
        table(("FILE", "WHAT", "WHY"), [(file.path, file.outcome, file.detail) for file in done.files])
    note(f"back at event {done.to}; undo it with: athena rewind {target} {done.undo}")
