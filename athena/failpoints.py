"""Places at which a test can have a process die. Nothing happens at them unless the environment says so.

A place is one line: ``if failpoints.hit is not None: failpoints.hit("append:tool_call")``. While no point is armed
``hit`` is ``None``, and the line costs one comparison. It is armed from a variable: ``ATHENA_FAILPOINT`` in a session's
environment (its option ``env``), for the session's process; ``ATHENA_SUPERVISOR_FAILPOINT`` in the environment that a
supervisor is started with, for the supervisor. Neither reaches the other's process.

    ATHENA_FAILPOINT="append:tool_result@3=kill; log=/tmp/fired"

Clauses stand between semicolons. ``POINT@N=ACTION`` acts when the process passes the point for the N-th time (default
1); a point may end in ``*``. Actions: ``kill`` (SIGKILL to itself), ``freeze`` (SIGSTOP to itself), ``exit``
(``os._exit(3)``) and ``note``, which only writes, and each time from the N-th on. With ``log=FILE`` each act is a line
in the file, ``POINT@COUNT CLAUSE PID``, written before it, and a clause other than ``note`` that is in the file acts
no more, in whichever process: a session that is killed once comes back and goes on.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

from athena.errors import InvalidOption

CHILD_VARIABLE = "ATHENA_FAILPOINT"
SUPERVISOR_VARIABLE = "ATHENA_SUPERVISOR_FAILPOINT"

ACTIONS = ("kill", "freeze", "exit", "note")
EXIT_STATUS = 3

_CLAUSE = re.compile(r"([\w:.*-]+)(?:@([1-9]\d*))?=(\w+)")

hit: Callable[[str], None] | None = None
"""Passes a point, or ``None`` while none is armed."""


@dataclass(frozen=True, slots=True)
class Clause:
    """What to do at which passage of a point."""

    point: str
    count: int
    action: str

    def __str__(self) -> str:
        return f"{self.point}@{self.count}={self.action}"

    def covers(self, point: str) -> bool:
        """Whether it is about this point."""
        return point.startswith(self.point[:-1]) if self.point.endswith("*") else point == self.point


@dataclass(frozen=True, slots=True)
class Fired:
    """A line of the log: the passage, the clause that acted, and in which process."""

    point: str
    count: int
    clause: str
    pid: int


def parse(text: str) -> tuple[list[Clause], str | None]:
    """The clauses in ``text``, and the log's path. Raises :class:`InvalidOption`."""
    clauses: list[Clause] = []
    log = None
    for part in filter(None, map(str.strip, text.split(";"))):
        if part.startswith("log="):
            log = part.removeprefix("log=")
            continue
        found = _CLAUSE.fullmatch(part)
        if found is None or found[3] not in ACTIONS:
            expected = f"POINT@N=ACTION, with an action of {', '.join(ACTIONS)}, or log=FILE"
            raise InvalidOption(
                f"the fail point {part!r} cannot be read: expected {expected}",
                option=CHILD_VARIABLE, value=repr(part), expected=expected,
            )  # fmt: skip
        clauses.append(Clause(found[1], int(found[2] or 1), found[3]))
    return clauses, log


def arm(environ: MutableMapping[str, str], variable: str) -> None:
    """Arm what ``variable`` says, or nothing, and take it out: what this process starts is not meant. Raises
    :class:`InvalidOption`."""
    global hit
    text = environ.pop(variable, None)
    if text:
        clauses, log = parse(text)
        hit = _Armed(clauses, log).hit


def read_log(path: str) -> list[Fired]:
    """What has been written to a log so far."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = [line.split() for line in file.read().split("\n")[:-1]]
    except FileNotFoundError:
        return []
    return [Fired(*_passage(where), clause, int(pid)) for where, clause, pid in rows]


def _passage(where: str) -> tuple[str, int]:
    point, _, count = where.rpartition("@")
    return point, int(count)


class _Armed:
    """The points of this process. Several threads may pass them: a sync has one of its own."""

    def __init__(self, clauses: list[Clause], log: str | None) -> None:
        self._clauses = clauses
        self._log = log
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._over = {fired.clause for fired in read_log(log)} if log else set()

    def hit(self, point: str) -> None:
        with self._lock:
            self._counts[point] += 1
            count = self._counts[point]
            for clause in self._clauses:
                if clause.covers(point):
                    self._pass(clause, point, count)

    def _pass(self, clause: Clause, point: str, count: int) -> None:
        if clause.action == "note":
            if count >= clause.count:
                self._write(clause, point, count)
            return
        if count != clause.count or str(clause) in self._over:
            return
        self._over.add(str(clause))
        self._write(clause, point, count)
        match clause.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "exit":
                os._exit(EXIT_STATUS)

    def _write(self, clause: Clause, point: str, count: int) -> None:
        if self._log is None:
            return
        fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, f"{point}@{count} {clause} {os.getpid()}\n".encode())  # one write: others append too
        finally:
            os.close(fd)
