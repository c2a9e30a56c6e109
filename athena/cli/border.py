"""The border between a command and the shell: the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

import typer
from typer.main import get_command

from athena.cli.output import ReaderLeft, encode, one_line
from athena.errors import AthenaError, Cancelled, InvalidOption, InvalidSpec, Unavailable, UnsupportedStore

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

EXIT_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended: who read our output has left, and that is no error."""

# Newer typers carry their own copy of click, older ones depend on it: this is the base of its errors in both.
_CLICK_ERROR: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]


class UsageError(AthenaError):
    """A command was called in a way that makes no sense."""


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command to its end; the exit code. A mistake is one line on stderr, as JSON if ``--json`` was given."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal of another charset is no reason to fail
    try:
        code = get_command(app).main(args=given or ["--help"], prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except AthenaError as error:
        return _tell(name, type(error).__name__, error.message, exit_code(error), as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except (ReaderLeft, BrokenPipeError):
        _discard(sys.stdout)
        return EXIT_PIPE
    except OSError as error:
        _discard(sys.stdout)
        return _tell(name, "OSError", str(error), EXIT_ERROR, as_json=as_json)
    except _CLICK_ERROR as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else name
        text = f"{error.format_message()}; see: {command} --help"  # type: ignore[attr-defined]  # as all errors of click
        return _tell(name, "UsageError", text, EXIT_USAGE, as_json=as_json)


def exit_code(error: AthenaError) -> int:
    """2: what was asked for is wrong; 3: there is no supervisor to ask; 130: taken back; 1: anything else."""
    if isinstance(error, UsageError | InvalidOption | InvalidSpec | UnsupportedStore):
        return EXIT_USAGE
    if isinstance(error, Cancelled):
        return EXIT_INTERRUPTED
    return EXIT_UNAVAILABLE if isinstance(error, Unavailable) else EXIT_ERROR


def _tell(name: str, error: str, message: str, code: int, *, as_json: bool) -> int:
    line = encode({"error": error, "message": message}) if as_json else f"{name}: {one_line(message)}"
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)  # nobody can be told
    return code


def _discard(stream: TextIO) -> None:
    """Let the interpreter flush what is left into nothing at its exit, where an error could not be caught."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
