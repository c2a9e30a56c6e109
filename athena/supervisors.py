"""Which supervisor a client talks to, and how one is started.

Chosen in this order (design 3): the explicit ``supervisor=``, ``ATHENA_SOCKET``, a supervisor that this program
embeds already, a daemon that answers on the default socket, a new embedded one. An embedded supervisor follows this
program by its pidfd and is started again, on the same directories, if it dies.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from athena import current
from athena.client import ConnectionLost, Pool, SyncConnection
from athena.config import Paths, default_paths, default_socket, private_dir, socket_path
from athena.environment import COOKIE_VARIABLE, ROOT, scrubbed_environment
from athena.errors import InvalidOption, NotRunning, Refused, Unavailable, from_wire
from athena.wire import dumps

START_S = 30.0
"""How long a supervisor has to listen; it takes a tenth of a second on a quiet machine."""

HANDOVER_S = 15.0
"""How long a client that may start the daemon waits for one that holds the lock and does not listen."""

POLL_S = 0.05

RECONNECT_S = 10.0
"""How long a call waits for a lost supervisor to come back."""


class Target:
    """One supervisor as its clients know it: a socket, connections to it, and what to do when it is gone."""

    can_start = False
    forgets = False
    """Whether its sessions end with it. A daemon's come back with the next one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pool = Pool(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def ensure(self) -> None:
        """Make sure that it runs, if this target can."""

    def answers(self) -> bool:
        """Whether a supervisor of ours listens there now. Raises :class:`Refused` if something else does."""
        try:
            self.pool.open().close()
        except (NotRunning, ConnectionLost):
            return False
        return True


class DaemonTarget(Target):
    """The user's daemon. ``autostart``: start it when it isn't there (the command line does)."""

    def __init__(self, path: Path, *, autostart: bool = False) -> None:
        super().__init__(path)
        self.can_start = autostart

    def ensure(self) -> None:
        """Start the daemon if it is not running and this target may.

        Somebody else may be starting it at this moment, or an ordered stop may not be over: its lock is held then, and
        nobody listens yet, or still not again.
        """
        deadline = time.monotonic() + HANDOVER_S
        while self.can_start and not self.answers():
            try:
                start_daemon()
            except Refused as error:  # the one that holds the lock has a moment in which it has not said its pid
                if "holder" not in error.data or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)


class EmbeddedSupervisor(Target):
    """A private supervisor for this program, started on first use. Pass it as ``supervisor=`` to share or separate."""

    can_start = forgets = True

    def __init__(self) -> None:
        self._paths = default_paths()
        name = f"embedded-{os.getpid()}-{secrets.token_hex(4)}"
        self._runtime = self._paths.runtime / name
        super().__init__(socket_path(self._runtime / "athena.sock"))
        self._lock = threading.Lock()

    def ensure(self) -> None:
        """Start it, or start it again."""
        with self._lock:
            if not self.answers():
                private_dir(self._paths.runtime)
                paths = Paths(self._paths.state, self._runtime)
                launch_supervisor(paths, self.path, "embedded", owner=os.getpid())

    def stop(self, timeout: float = 20.0) -> None:
        """Stop it with all its sessions, and return when nothing of it is left. A no-op if it doesn't run."""
        self.pool.close()
        stop_supervisor(self.path, timeout)
        shutil.rmtree(self._runtime, ignore_errors=True)


_embedded: tuple[int, EmbeddedSupervisor] | None = None
_embedded_lock = threading.Lock()


def embedded() -> EmbeddedSupervisor:
    """This program's embedded supervisor; a forked program gets its own."""
    global _embedded
    with _embedded_lock:
        if _embedded is None or _embedded[0] != os.getpid():
            _embedded = (os.getpid(), EmbeddedSupervisor())
            atexit.register(_remove_runtime, _embedded[1], os.getpid())
        return _embedded[1]


def _remove_runtime(supervisor: EmbeddedSupervisor, pid: int) -> None:
    if pid == os.getpid():
        supervisor.stop()


def resolve(supervisor: str | Path | Target | None, *, create: bool = True) -> Target:
    """The target for ``supervisor=``: ``"embedded"``, ``"daemon"``, a socket's path, a handle, or ``None`` to choose.

    With ``create=False`` nothing is started. Raises :class:`InvalidOption` and :class:`NotRunning`.
    """
    target = _named(supervisor)
    if create:
        target.ensure()
    return target


def _named(supervisor: str | Path | Target | None) -> Target:
    match supervisor:
        case Target():
            return supervisor
        case "embedded":
            return embedded()
        case "daemon":
            return _daemon(default_paths().socket)
        case Path():
            return _daemon(supervisor)
        case str() if "/" in supervisor:
            return _daemon(Path(supervisor))
        case None:
            return _chosen()
        case _:
            raise InvalidOption(
                f"option 'supervisor' got {supervisor!r}: expected 'embedded', 'daemon', a socket's path or a handle",
                option="supervisor",
                value=repr(supervisor),
                expected="'embedded' | 'daemon' | path | handle",
            )


def _chosen() -> Target:
    if current.socket is not None:
        return _daemon(current.socket)  # a supervised process belongs to its own supervisor
    if os.environ.get("ATHENA_SOCKET"):
        return _daemon(default_socket())
    if _embedded is not None and _embedded[0] == os.getpid():
        return _embedded[1]
    daemon = _daemon(default_paths().socket)
    return daemon if daemon.answers() else embedded()


_daemons: dict[Path, DaemonTarget] = {}


def _daemon(path: Path) -> DaemonTarget:
    return _daemons.setdefault(path, DaemonTarget(path))


# --- starting and stopping processes ----------------------------------------------------------------------------------


def start_daemon() -> dict[str, Any]:
    """Start the user's daemon in the background. Returns its ready line. Raises :class:`Refused` if one runs
    already."""
    if COOKIE_VARIABLE in os.environ:
        raise Refused(
            "this runs inside a session, and a daemon started here would end with it; start one outside: "
            "athena-supervisor start"
        )
    paths = default_paths()
    return launch_supervisor(paths, default_socket(), "daemon")


def launch_supervisor(paths: Paths, socket: Path, mode: str, *, owner: int | None = None) -> dict[str, Any]:
    """Start guard and supervisor, detached from this process, and wait until it listens.

    Raises what the supervisor says is wrong, or :class:`Unavailable`.
    """
    check_import_name()
    paths.make()
    ready_read, ready_write = os.pipe()
    try:
        with open(paths.logs / f"{mode}.out", "ab", opener=_private) as output:
            guard = subprocess.Popen(
                _command(paths, socket, mode, owner, ready_write),
                env=scrubbed_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[ready_write],
                cwd="/",
                start_new_session=True,
            )
        os.close(ready_write)
        ready_write = -1
        guard.wait()  # it detaches: nothing of ours stays a child of the calling program
        return _ready(ready_read, paths.logs / f"{mode}.out")
    finally:
        os.close(ready_read)
        if ready_write >= 0:
            os.close(ready_write)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def foreground_command(paths: Paths, socket: Path, ready_fd: int) -> list[str]:
    """What to exec to become the guard of the user's daemon."""
    return _command(paths, socket, "daemon", None, ready_fd, detach=False)


def _command(
    paths: Paths, socket: Path, mode: str, owner: int | None, ready_fd: int, *, detach: bool = True
) -> list[str]:
    guard = [sys.executable, "-I", "-S", str(ROOT / "supervisor" / "guard.py"), *(["--detach"] if detach else [])]
    if mode == "embedded":
        guard += ["--rmdir", str(paths.runtime)]
    guard += ["--socket", str(socket), "--fds", str(ready_fd), "--"]
    supervisor = [sys.executable, "-P", "-m", "supervisor.daemon", "--mode", mode, "--socket", str(socket)]
    supervisor += ["--state", str(paths.state), "--runtime", str(paths.runtime), "--ready-fd", str(ready_fd)]
    if not detach and os.environ.get("NOTIFY_SOCKET"):
        supervisor += ["--notify", os.environ["NOTIFY_SOCKET"]]
    if owner is not None:
        supervisor += ["--owner", str(owner)]
    for name in ("max-sessions", "max-live"):
        limit = _limit(f"ATHENA_{name.upper().replace('-', '_')}")
        supervisor += [] if limit is None else [f"--{name}", str(limit)]
    if not detach:
        supervisor.append("--log-stderr")
    if os.environ.get("ATHENA_LAUNCHER") == "plain":
        supervisor.append("--plain-launcher")
    return guard + supervisor


def _limit(variable: str) -> int | None:
    """A count from the environment of who starts the supervisor. Raises :class:`InvalidOption`."""
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise InvalidOption(
            f"the variable {variable} is {text!r}: expected an integer >= 1; unset it for no limit",
            option=variable,
            value=repr(text),
            expected="an integer >= 1",
        )
    return int(text)


def _ready(fd: int, output: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_S
    line = b""
    while not line.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
            raise Unavailable(f"the supervisor did not start within {START_S} s; its output is in {output}")
        data = os.read(fd, 65536)
        if not data:
            raise Unavailable(f"the supervisor ended while it started; its output is in {output}")
        line += data
        deadline = time.monotonic() + START_S  # one that brings many sessions back says now and then that it goes on
    value: dict[str, Any] = json.loads(line)
    if not value.get("ready"):
        raise from_wire(value)
    return value


def stop_supervisor(path: Path, timeout: float, *, restart: bool = False) -> bool:
    """Ask the supervisor at ``path`` to stop; return when it has and its guard has cleaned up. ``False``: none ran.

    ``restart``: another one follows at once, so whoever waits for a session is to go on waiting.
    """
    try:
        connection = SyncConnection(path)
    except (NotRunning, ConnectionLost):
        return False
    try:
        guard = _parent_of(int((connection.protocol.hello or {}).get("pid", 0)))
        connection.call("shutdown", {}, dumps({"restart": restart}), timeout)
    except (TimeoutError, ConnectionLost):
        pass  # the guard's end is what counts
    finally:
        connection.close()
    if guard is not None and not _wait_gone(guard, timeout):
        raise Unavailable(f"the supervisor at {str(path)!r} did not stop within {timeout} s")
    return True


def _parent_of(pid: int) -> int | None:
    """A pidfd of the parent of ``pid``: the guard, which ends last."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            parent = int(file.read().rpartition(")")[2].split()[1])
        return os.pidfd_open(parent) if parent > 1 else os.pidfd_open(pid)
    except OSError:
        return None


def _wait_gone(pidfd: int, timeout: float) -> bool:
    try:
        return bool(select.select([pidfd], [], [], timeout)[0])
    finally:
        os.close(pidfd)


def check_import_name() -> None:
    """Refuse to start beside the process manager from PyPI that is imported as ``supervisor`` too.

    Both would be installed into the same folder, each over the other's files.
    """
    try:
        version = importlib.metadata.version("supervisor")
    except importlib.metadata.PackageNotFoundError:
        version = None
    mine = ROOT / "supervisor" / "daemon.py"
    if version is not None:
        raise Refused(
            f"the package 'supervisor' {version} is installed here and has the same import name as Athena's "
            "supervisor; install one of them in another virtual environment, then reinstall athena-supervisor here"
        )
    if not mine.exists():
        raise Refused(f"{str(mine)!r} is missing: reinstall athena-supervisor")
