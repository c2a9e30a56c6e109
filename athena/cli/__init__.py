"""The command lines ``athena`` and ``athena-supervisor`` (:mod:`athena.cli.supervisor`).

They use the user's daemon, always. Modules are imported by the command that needs them: ``athena ls`` and shell
completion must not wait for what only a session's start needs.
"""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """The entry of ``athena``."""
    from athena.cli.app import app
    from athena.cli.border import run

    raise SystemExit(run(app, "athena"))
