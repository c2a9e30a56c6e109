"""``athena-supervisor``: the user's daemon, started, stopped and looked at.

It is on this side, and not in the package ``supervisor``, because it is a client: that package imports no client.
"""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from athena import proctree
from athena.cli.border import EXIT_OK, run
from athena.client import SyncConnection
from athena.config import VERSION, default_paths, default_socket
from athena.errors import AthenaError, NotRunning, Unavailable, VersionMismatch

NAME = "athena-supervisor"

STOP_S = 20.0
"""How long a stop may take: the supervisor's own limit, and the guard's clean-up after it."""

app = typer.Typer(help="The process that supervises Athena's sessions.", pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable: one JSON document.")]


class AlreadyRunning(AthenaError):
    """A supervisor runs already. Field: ``pid``."""


def main() -> NoReturn:
    """The entry of ``athena-supervisor``."""
    raise SystemExit(run(app, NAME))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """What holds for all commands."""
    if version:
        typer.echo(f"{NAME} {VERSION}")
        raise typer.Exit(EXIT_OK)


@app.command("run")
def run_foreground(json: Json = False) -> int:
    """Run in the foreground, until Ctrl-C or a signal: for a service manager, a container or a look."""
    from athena.cli.foreground import become_guard

    _refuse_second()
    become_guard(as_json=json)


@app.command()
def start(json: Json = False) -> int:
    """Start in the background, and return when it listens."""
    _refuse_second()
    return _start(as_json=json)


@app.command()
def stop(json: Json = False) -> int:
    """Stop, with all sessions; their logs stay. Returns when nothing is left."""
    path = default_socket()
    pid = _stop(path)
    if pid is None:
        raise NotRunning(f"no supervisor listens at {str(path)!r}; there is nothing to stop")
    _say({"stopped": True, "pid": pid}, f"stopped (pid {pid})", as_json=json)
    return EXIT_OK


@app.command()
def restart(json: Json = False) -> int:
    """Stop it in order if it runs, and start it. Its sessions come back, and who waits for one goes on waiting."""
    _stop(default_socket(), restart=True)
    return _start(as_json=json)


@app.command()
def install(
    show: Annotated[bool, typer.Option("--print", help="Only show the unit.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace another unit of that name.")] = False,
    json: Json = False,
) -> int:
    """Have systemd keep it: write the user unit athena.service for this installation."""
    from athena.cli.unit import NAME as UNIT
    from athena.cli.unit import unit_path, unit_text, write_unit

    text, path = unit_text(), unit_path()
    if show:
        _say({"path": str(path), "unit": text}, text.removesuffix("\n"), as_json=json)
        return EXIT_OK
    was_written = write_unit(text, path, force=force)
    what = "wrote" if was_written else "unchanged:"
    then = f"now run: systemctl --user daemon-reload && systemctl --user enable --now {UNIT}"
    _say({"path": str(path), "written": was_written}, f"{what} {path}\n{then}", as_json=json)
    return EXIT_OK


@app.command()
def status(json: Json = False) -> int:
    """Show how it is. Exit code 3 when it does not run."""
    from athena.cli import inspection

    return inspection.supervisor(as_json=json)


def _start(*, as_json: bool) -> int:
    from athena.supervisors import start_daemon

    ready, path = start_daemon(), str(default_socket())
    found = {name: ready.get(name, 0) for name in ("respawned", "lost")}
    text = f"started (pid {ready['pid']}), listening at {path}"
    if any(found.values()):
        text += f"\nsessions brought back: {found['respawned']}, lost: {found['lost']}"
    _say({"pid": ready["pid"], "socket": path, **found}, text, as_json=as_json)
    return EXIT_OK


def _refuse_second() -> None:
    """Raise :class:`AlreadyRunning` if a supervisor answers, and what is wrong if something else does."""
    pid = running_pid(default_socket())
    if pid is not None:
        raise AlreadyRunning(f"already running (pid {pid}) on {str(default_paths().state)!r}", pid=pid)


def running_pid(path: Path) -> int | None:
    """The pid of the supervisor that listens there, of this release or another; ``None`` if none does."""
    try:
        connection = SyncConnection(path)
    except NotRunning:
        return None
    except VersionMismatch:
        return _peer(path)
    connection.close()
    return int((connection.protocol.hello or {}).get("pid", 0))


def _stop(path: Path, *, restart: bool = False) -> int | None:
    """Stop what listens there; its pid, or ``None`` if nothing did."""
    from athena.supervisors import stop_supervisor

    pid = running_pid(path)
    if pid is None:
        return None
    try:
        stop_supervisor(path, STOP_S, restart=restart)
    except VersionMismatch:
        _terminate(pid)
    return pid


def _terminate(pid: int) -> None:
    """Stop a supervisor of another release, which takes no requests from us, by the signal that every release obeys."""
    row = proctree.stat(pid)
    if row is None:
        return
    guard = os.pidfd_open(row.ppid if row.ppid > 1 else pid)  # the guard ends last
    supervisor = os.pidfd_open(pid)
    try:
        proctree.send_signal(supervisor, signal.SIGTERM)
        if not select.select([guard], [], [], STOP_S)[0]:
            raise Unavailable(f"the supervisor (pid {pid}) did not stop within {STOP_S} s")
    finally:
        os.close(supervisor)
        os.close(guard)


def _peer(path: Path) -> int:
    """Who holds the other end of the socket, as the kernel says it."""
    import socket
    import struct

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.connect(str(path))
        return int(struct.unpack("iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def _say(value: dict[str, Any], text: str, *, as_json: bool) -> None:
    from athena.cli.output import emit, write

    if as_json:
        emit(value)
    else:
        write(text + "\n")


if __name__ == "__main__":
    main()
