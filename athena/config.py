"""Where things live and which release this is: paths, environment names, versions. No files are touched on import."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from athena.errors import Refused, StoreError

VERSION = "0.1.0"
PRODUCT = f"athena/{VERSION}"

SOCKET_PATH_MAX_BYTES = 107
"""``sun_path`` holds 108 bytes with its NUL (unix(7))."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The directories of one user. ``state`` outlives a reboot, ``runtime`` does not."""

    state: Path
    runtime: Path

    @property
    def sessions(self) -> Path:
        """Event logs."""
        return self.state / "sessions"

    @property
    def logs(self) -> Path:
        """Standard output and error of supervised processes."""
        return self.state / "logs"

    @property
    def lock(self) -> Path:
        """Held by the one daemon of this state directory."""
        return self.state / "supervisor.lock"

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return socket_path(self.runtime / "athena.sock")

    def make(self) -> None:
        """Make the directories. Raises as :func:`private_dir`."""
        private_dir(self.state, tighten=False)  # it may be a directory that the user has for more than this
        private_dir(self.runtime)
        private_dir(self.logs)


def default_paths(env: Mapping[str, str] = os.environ) -> Paths:
    """Paths from ``ATHENA_HOME``, else the XDG directories, else ``~/.local/state/athena``."""
    home = env.get("ATHENA_HOME")
    if home:
        state = Path(home).expanduser().absolute()
        return Paths(state, state / "run")
    base = env.get("XDG_STATE_HOME")
    state = (Path(base) if base else Path(env.get("HOME") or Path.home()) / ".local" / "state") / "athena"
    runtime = env.get("XDG_RUNTIME_DIR")
    return Paths(state.absolute(), Path(runtime) / "athena" if runtime else state.absolute() / "run")


def default_socket(env: Mapping[str, str] = os.environ) -> Path:
    """``ATHENA_SOCKET``, else the daemon's socket of :func:`default_paths`."""
    return Path(env["ATHENA_SOCKET"]) if env.get("ATHENA_SOCKET") else default_paths(env).socket


def socket_path(wanted: Path) -> Path:
    """``wanted``, or a short hashed path in the temporary directory if the kernel cannot bind one so long."""
    if len(os.fsencode(wanted)) <= SOCKET_PATH_MAX_BYTES:
        return wanted
    digest = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"athena-{os.getuid()}" / f"{digest}.sock"


def private_dir(path: Path, *, tighten: bool = True) -> Path:
    """Make ``path`` a directory of ours with mode 0700; one that is there keeps its mode unless ``tighten``.

    Raises :class:`StoreError` or, if another user owns it, :class:`Refused`.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
    except OSError as error:
        raise StoreError(
            f"cannot make the directory {str(path)!r}: {error.strerror}; set ATHENA_HOME to a directory you can write"
        ) from None
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise Refused(
            f"{str(path)!r} is not a directory of this user (uid {os.geteuid()}); remove it or set ATHENA_HOME"
        )
    if tighten and stat.S_IMODE(info.st_mode) != 0o700:
        path.chmod(0o700)
    return path
