"""``athena-supervisor run``: this process becomes the guard, so that a service manager's, a container's or a terminal's
signals go to it."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, NoReturn

from athena.cli.output import encode, one_line
from athena.config import default_paths, default_socket
from athena.environment import scrubbed_environment
from athena.errors import from_wire
from athena.supervisors import check_import_name, foreground_command


def become_guard(*, as_json: bool) -> NoReturn:
    """Exec the guard of the daemon. Returns never; raises what can be told to be wrong before."""
    check_import_name()
    paths, path = default_paths(), default_socket()
    paths.make()
    ready_read, ready_write = os.pipe()
    _announce(ready_read, ready_write, as_json=as_json)
    os.close(ready_read)
    os.set_inheritable(ready_write, True)
    _take_terminal()
    command = foreground_command(paths, path, ready_write)
    os.chdir("/")
    os.execve(command[0], command, scrubbed_environment(os.environ))


def _announce(read: int, write: int, *, as_json: bool) -> None:
    """Leave a process that says when the supervisor listens, or why it does not, and ends.

    Forked twice, so that it is not a child of the guard that this process becomes.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    if os.fork() == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.close(write)
        with os.fdopen(read) as pipe:
            line = pipe.readline()
        if line:  # else it ended without a word: what it wrote to stderr tells why
            _tell(json.loads(line), as_json=as_json)
    os._exit(0)


def _tell(ready: dict[str, Any], *, as_json: bool) -> None:
    path, log = str(default_socket()), str(default_paths().logs / "supervisor.log")
    if not ready.get("ready"):
        error = from_wire(ready)
        value = {"error": type(error).__name__, "message": error.message}
        print(
            encode(value) if as_json else f"athena-supervisor: {one_line(error.message)}", file=sys.stderr, flush=True
        )
    elif as_json:
        print(encode({"pid": ready["pid"], "socket": path, "log": log}), flush=True)
    else:
        print(f"running (pid {ready['pid']}), listening at {path}; log: {log}", flush=True)


def _take_terminal() -> None:
    """Be the terminal's foreground process group, so that Ctrl-C reaches the supervisor.

    A guard that leads a group stays in its session, where otherwise it would make one of its own, out of the terminal's
    reach. Without a terminal it may do just that.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # who is in the background may not take it else
            os.tcsetpgrp(terminal, os.getpgrp())
            signal.signal(signal.SIGTTOU, before)
    except OSError:
        pass  # not ours to take: SIGTERM still ends it
    finally:
        os.close(terminal)
