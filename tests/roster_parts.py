"""What the tests of the roster and of what it is read for share: processes to note, and lines that make no sense."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from supervisor.process_roster import dumps

COOKIE = "cookie-of-a-launch"


@dataclass
class Noted:
    """A launched process, as the table gives it."""

    pid: int
    start_time: int = 7
    cookie: str = COOKIE


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "processes"


def only_file(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


def line(**given: Any) -> str:
    """A line as it is written for a launch, with something else in it; ``...`` leaves a key out."""
    fields = {"pid": 11, "start": 7, "cookie": COOKIE, **given}
    return json.dumps({key: value for key, value in fields.items() if value is not ...})


GARBAGE = [
    "", "null", "[]", "7", '"pid"', "not json", "[" * 100_000, "1" * 5000, "\x00\xff", "{}",
    line(pid="11"), line(pid=True), line(pid=1), line(pid=0), line(pid=-1), line(pid=1e3), line(pid=10**20),
    line(pid=[11]), line(pid=None), line(pid=...), line(start=-7), line(start=None), line(start=...), line(start=2**70),
    line(cookie=""), line(cookie=None), line(cookie=...), line(cookie="a b c d e f"), line(cookie="x" * 65),
    dumps({"end": "11", "start": 7}).decode().strip(), dumps({"boot": 1, "supervisor": 2, "start": 3}).decode().strip(),
]  # fmt: skip
