"""Running the real command lines as processes, with pipes or on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from athena.config import default_socket
from athena.environment import ROOT
from athena.supervisors import stop_supervisor
from tests.helpers import TIME_UNIT

LIMIT_S = 30.0
CTRL_C, CTRL_D = b"\x03", b"\x04"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its one document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Its JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def daemon(home: Path) -> Iterator[Path]:
    """Whatever daemon the test's commands start ends with the test. The value is the state directory."""
    yield home
    stop_supervisor(default_socket(), LIMIT_S * TIME_UNIT)


def argv(*arguments: str, program: str = "athena.cli") -> list[str]:
    """The command line of a command."""
    return [sys.executable, "-m", program, *arguments]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The test's own environment, in which this tree is imported."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **(extra or {})}


def athena(*arguments: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Ran:
    """Run ``athena`` to its end."""
    return finish(start(*arguments, env=env), stdin)


def supervisor(*arguments: str, env: Mapping[str, str] | None = None) -> Ran:
    """Run ``athena-supervisor`` to its end."""
    return finish(start(*arguments, program="athena.cli.supervisor", env=env))


def start(
    *arguments: str, program: str = "athena.cli", wrap: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a command with three pipes."""
    return subprocess.Popen(
        [*wrap, *argv(*arguments, program=program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(env),
        text=True,
    )


def finish(process: subprocess.Popen[str], stdin: str = "") -> Ran:
    """Give it its input and wait for its end."""
    try:
        out, err = process.communicate(stdin, LIMIT_S * TIME_UNIT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args!r} did not end; stdout {out!r}, stderr {err!r}") from None
    return Ran(process.returncode, out, err)


def assert_one_line(ran: Ran, code: int, *parts: str) -> None:
    """A mistake is told in one line, with nothing on stdout."""
    assert (ran.code, ran.out) == (code, ""), ran
    assert len(ran.err.splitlines()) == 1, ran.err
    assert "Traceback" not in ran.err
    for part in parts:
        assert part in ran.err


class Terminal:
    """A command on a terminal of its own; ``seen`` is all that it has shown."""

    def __init__(self, *arguments: str, program: str = "athena.cli") -> None:
        ours, theirs = pty.openpty()
        self._fd = ours
        self.seen = ""
        self._process = subprocess.Popen(
            argv(*arguments, program=program),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment({"TERM": "dumb"}),
            start_new_session=True,
            preexec_fn=lambda: _own_terminal(0),
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        os.close(self._fd)

    @property
    def pid(self) -> int:
        """Of the command."""
        return self._process.pid

    def type(self, data: bytes) -> None:
        """Press keys."""
        os.write(self._fd, data)

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until ``text`` has been shown this many times."""
        deadline = time.monotonic() + LIMIT_S * TIME_UNIT
        while self.seen.count(text) < count:
            assert self._read(deadline), f"{text!r} did not come; seen: {self.seen}"

    def end(self) -> int:
        """Wait for its end; the exit code."""
        deadline = time.monotonic() + LIMIT_S * TIME_UNIT
        while self._read(deadline):
            pass
        return self._process.wait(LIMIT_S * TIME_UNIT)

    def _read(self, deadline: float) -> bool:
        if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError(f"nothing more came; seen: {self.seen}")
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO: nobody holds the other end any more
            return False
        self.seen += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


def _own_terminal(fd: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
