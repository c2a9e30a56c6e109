"""``athena-supervisor install``: the systemd user unit that keeps the daemon."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from athena.errors import Refused, StoreError

NAME = "athena.service"

KEPT_VARIABLES = (
    "ATHENA_HOME", "ATHENA_SOCKET", "ATHENA_MAX_SESSIONS", "ATHENA_MAX_LIVE", "ATHENA_LAUNCHER", "XDG_STATE_HOME",
)  # fmt: skip
"""What of the caller's environment decides where the daemon lives, and how: systemd would not know it."""

UNIT = """\
[Unit]
Description=Athena's supervisor

[Service]
Type=notify
NotifyAccess=all
ExecStart={command} run
{environment}\
KillMode=mixed
Delegate=yes
Restart=on-failure
TimeoutStopSec=30

[Install]
WantedBy=default.target
"""


def unit_path(env: Mapping[str, str] = os.environ) -> Path:
    """Where systemd looks for this user's units."""
    base = env.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path(env.get("HOME") or Path.home()) / ".config") / "systemd" / "user" / NAME


def unit_text(env: Mapping[str, str] = os.environ) -> str:
    """The unit, for this installation and the variables that are set now."""
    program = Path(sys.executable).with_name("athena-supervisor")
    command = [str(program)] if program.exists() else [sys.executable, "-m", "athena.cli.supervisor"]
    lines = [f"Environment={_quoted(f'{name}={env[name]}')}\n" for name in KEPT_VARIABLES if env.get(name)]
    words = (_quoted(word).replace("$", "$$") for word in command)
    return UNIT.format(command=" ".join(words), environment="".join(lines))


def write_unit(text: str, path: Path, *, force: bool) -> bool:
    """Write the unit. ``False`` if it is there already.

    Raises :class:`Refused` for another one under that name, unless ``force``; :class:`StoreError`.
    """
    found = path.read_text() if path.exists() else None
    if found == text:
        return False
    if found is not None and not force:
        raise Refused(f"{str(path)!r} is another unit than this would be; look at it, or replace it with --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write the unit {str(path)!r}: {error.strerror}", path=str(path)) from None
    return True


def _quoted(text: str) -> str:
    """As systemd reads one word."""
    text = text.replace("%", "%%")
    if not any(one in text for one in " \t\"'\\;"):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
