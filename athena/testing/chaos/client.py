"""The client of a trial: it holds the conversation, and writes down what it is told.

In a thread of the harness, or, where it is to be killed, in a process of its own, of which :func:`main` is the program.
What it is told it appends to two files, so that it is known when the client is dead.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from athena import Session
from athena.errors import (
    AlreadyStarted,
    AthenaError,
    LogLocked,
    NoProcess,
    NotFound,
    SessionStopped,
    StartError,
    Unavailable,
)
from athena.events import Cursor, Event
from athena.session import EventStream
from athena.supervisors import Target
from athena.testing.chaos.scenario import CONVERSATION, message_id

START_S = 15.0
RETRY_S = 0.05
STREAM_END_S = 5.0

_PASSING = (AlreadyStarted, LogLocked, NoProcess, SessionStopped, StartError, Unavailable)


@dataclass(slots=True)
class Spoken:
    """What a client is to do, and where it writes what it was told."""

    trial: str
    options: dict[str, Any]
    directory: str
    supervisor: str = ""
    """A socket's path, for a client in a process of its own."""
    linked: bool = True
    limit_s: float = 20.0
    answers: list[str] = field(default_factory=list)

    @property
    def stream_file(self) -> Path:
        """``SEQ UUID`` of each event seen."""
        return Path(self.directory) / "stream"

    @property
    def accepted_file(self) -> Path:
        """The id of each message that was acknowledged."""
        return Path(self.directory) / "accepted"


class Client:
    """One life of a trial's client. ``again``: it comes after one that was killed, and so has more patience."""

    def __init__(self, spoken: Spoken, target: Target | str, *, again: bool = False) -> None:
        self._spoken = spoken
        self._target = target
        self._again = again
        self._session: Session | None = None
        self._stream: EventStream | None = None
        self._reader: threading.Thread | None = None
        self.stream_end = "it was told the session's end"
        """Why the stream is over."""

    def converse(self) -> list[str]:
        """The answers of all three messages; the session is stopped then. Raises what a client cannot mend."""
        deadline = time.monotonic() + self._spoken.limit_s
        while True:
            try:
                return self._once(deadline)
            except _PASSING:
                if not self._again or time.monotonic() > deadline:
                    raise
                self._leave()  # the session that the dead client was linked to was being stopped
                time.sleep(RETRY_S)

    def stop(self) -> None:
        """End the session, if it runs still, and the stream."""
        if self._session is not None:
            self._session.stop()
        self._leave(STREAM_END_S)

    def _once(self, deadline: float) -> list[str]:
        session = self._session = self._start()
        self._follow(session)
        spoken = self._spoken
        turns = []
        for number, said in enumerate(CONVERSATION[:-1]):
            turns.append(session.submit(said.text, message_id=message_id(spoken.trial, number)))
            _append(spoken.accepted_file, turns[-1].message_id)
        answers = [turn.result(_left(deadline)).text or "" for turn in turns]
        last = len(CONVERSATION) - 1
        result = session.send_message(
            CONVERSATION[last].text, message_id=message_id(spoken.trial, last), timeout=_left(deadline)
        )
        _append(spoken.accepted_file, message_id(spoken.trial, last))
        self.stop()
        return [*answers, result.text or ""]

    def _start(self) -> Session:
        """The session, started, or attached to where it lives on. A child that was killed while it started is an error
        that a client answers by starting again."""
        deadline = time.monotonic() + START_S
        start = Session.start_link if self._spoken.linked else Session.start
        while True:
            try:
                return start(supervisor=self._target, session_id=self._spoken.trial, **self._spoken.options)
            except (AlreadyStarted, StartError, LogLocked, Unavailable) as error:
                if time.monotonic() > deadline:
                    raise
                if isinstance(error, AlreadyStarted) and self._again and not self._spoken.linked:
                    with suppress(NotFound, NoProcess):  # the dead client's start has failed since
                        return Session.attach(self._spoken.trial, supervisor=self._target)
            time.sleep(RETRY_S)

    def _follow(self, session: Session) -> None:
        self._stream = session.events(_last_seen(self._spoken.stream_file), deltas=False)
        self._reader = threading.Thread(target=self._read, args=[self._stream], daemon=True)
        self._reader.start()

    def _read(self, stream: EventStream) -> None:
        with open(self._spoken.stream_file, "a", encoding="utf-8", buffering=1) as file:
            try:
                for item in stream:
                    if isinstance(item, Event):
                        file.write(f"{item.seq} {item.uuid}\n")
            except AthenaError as error:  # whether anything is missing by that, the comparison finds
                self.stream_end = f"{type(error).__name__}: {error}"

    def _leave(self, limit_s: float = 0.0) -> None:
        if self._stream is None or self._reader is None:
            return
        self._reader.join(limit_s)
        self._stream.close()
        self._reader.join(STREAM_END_S)


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _append(path: Path, line: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def _last_seen(path: Path) -> Cursor | int:
    """Where the last client's stream ended. Half a line is of an event that it has not seen."""
    seen = read_stream(path)
    return Cursor(*seen[-1]) if seen else 0


def read_stream(path: Path) -> list[tuple[int, str]]:
    """Seq and uuid of each event that clients saw. Removes half a line at the end."""
    if not path.exists():
        return []
    whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        path.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return [(int(seq), uuid) for seq, uuid in (line.split() for line in whole.split("\n") if line)]


def write_order(spoken: Spoken) -> Path:
    """The file that a client in a process of its own reads."""
    path = Path(spoken.directory) / "client.json"
    path.write_text(json.dumps(asdict(spoken)), encoding="utf-8")
    return path


def main(path: str) -> None:
    """Hold the conversation, and print the answers as one line of JSON."""
    spoken = Spoken(**json.loads(Path(path).read_text(encoding="utf-8")))
    try:
        answers = Client(spoken, spoken.supervisor).converse()
    except AthenaError as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        raise SystemExit(1) from None
    print(json.dumps({"answers": answers}), flush=True)
