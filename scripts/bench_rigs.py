"""What a run needs around it: helper processes, a log of a thousand events, sessions and their turns."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from athena import AsyncSession, Session, events
from athena.messages import Message, ToolCall, ToolResult
from athena.providers import openai_wire
from athena.providers.base import ModelRequest
from athena.providers.http import encode
from athena.stores.jsonl import JsonlStore
from athena.supervisors import EmbeddedSupervisor
from athena.tools import resolve
from scripts.bench_peers import unique_bytes

ROOT = Path(__file__).resolve().parents[1]
TURNS_PER_SESSION = 10
"""A turn's cost grows with its history, so a session is replaced after this many."""


class Helper:
    """A process that answers one line with one line, and ends when we do."""

    def __init__(self, module: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, pass_fds=pass_fds,
        )  # fmt: skip

    def read(self) -> str:
        """Its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended")
        return line.decode().strip()

    def write(self, data: bytes) -> None:
        """Tell it something."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def values(self, command: str) -> list[float]:
        """What a peer measured."""
        self.write(command.encode() + b"\n")
        found: list[float] = json.loads(self.read())["values"]
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


class Floor:
    """An interpreter that has imported everything and forks on demand: no start can be cheaper."""

    def __init__(self) -> None:
        lifeline, self._lifeline = os.pipe()
        self._helper = Helper("scripts.bench_peers", str(lifeline), pass_fds=(lifeline,))
        os.close(lifeline)
        self._helper.read()

    def _fork(self) -> int:
        self._helper.write(b".")
        return int(self._helper.read())

    def start(self) -> list[float]:
        """Seconds to a running event loop."""
        begin = time.perf_counter()
        pid = self._fork()
        took_s = time.perf_counter() - begin
        os.kill(pid, signal.SIGKILL)
        return [took_s]

    def memory(self) -> list[float]:
        """Unique bytes of an idle child."""
        pid = self._fork()
        found = float(unique_bytes(pid))
        os.kill(pid, signal.SIGKILL)
        return [found]

    def close(self) -> None:
        """End it with its children."""
        os.close(self._lifeline)
        self._helper.close()


class Rig:
    """A running supervisor, an endpoint and helpers, all of them gone at the end of ``with``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.project = home / "project"
        self.project.mkdir(parents=True)
        (self.project / "notes.txt").write_text("a line of notes\n" * 40)
        os.environ["ATHENA_HOME"] = str(home)
        self.supervisor = EmbeddedSupervisor()
        self.supervisor.ensure()
        self.endpoint = Helper("scripts.bench_endpoint")
        self.url = f"http://127.0.0.1:{self.endpoint.read()}/v1"
        self.peers = Helper("scripts.bench_peers")
        self.floor = Floor()
        self.loop = asyncio.new_event_loop()

    def close(self) -> None:
        """Stop everything."""
        self.loop.close()
        for part in (self.peers, self.floor, self.endpoint):
            part.close()
        self.supervisor.stop()

    def options(self, **more: Any) -> dict[str, Any]:
        """Options of a session at the endpoint."""
        return {
            "provider": "openai_compatible", "model": "canned", "base_url": self.url, "cwd": str(self.project),
            "env": {"PATH": os.environ.get("PATH", "")}, "supervisor": self.supervisor, **more,
        }  # fmt: skip

    def session(self, **more: Any) -> Session:
        """A session at the endpoint."""
        return Session.start_link(**self.options(**more))

    def async_session(self) -> AsyncSession:
        """One on our own event loop."""
        return self.loop.run_until_complete(AsyncSession.start_link(**self.options()))

    def long_log(self, count: int) -> Session:
        """A session whose log has ``count`` events of finished turns, each with a call of ``read``."""
        session_id = events.new_session_id()
        log = JsonlStore(self.home / "sessions").open(session_id)
        for seq, (kind, data, turn) in zip(range(1, count + 1), _history(session_id), strict=False):
            log.append(events.encode(seq, kind, data, turn))
        log.close()
        return self.session(session_id=session_id, max_restarts=1_000_000)


@contextmanager
def rig(home: Path) -> Iterator[Rig]:
    """A :class:`Rig` for a ``with`` block."""
    made = Rig(home)
    try:
        yield made
    finally:
        made.close()


def _history(session_id: str) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    yield "session_start", {"format": events.FORMAT, "session_id": session_id, "options": {}}, None
    number = 0
    while True:
        number += 1
        turn, call_id = f"t{number}", f"call_{number}"
        call = ToolCall(call_id, "read", {"path": "notes.txt"})
        answers = (
            Message("assistant", "", (call,)),
            Message("tool", tool_results=(ToolResult(call_id, "1\ta line of notes\n" * 10),)),
            Message("assistant", f"The notes say the same thing {number} times. " * 4),
        )
        yield "message_accepted", {"message_id": f"m{number}", "text": "read the notes"}, None
        yield "turn_start", {"message_id": f"m{number}"}, turn
        yield "user_message", {"message": Message("user", "read the notes").to_map()}, turn
        yield "assistant_message", {"message": answers[0].to_map(), "model": "canned"}, turn
        yield "tool_call", {"id": call_id, "name": "read", "on_crash": "safe"}, turn
        yield "tool_result", {"message": answers[1].to_map(), "status": "ok"}, turn
        yield "assistant_message", {"message": answers[2].to_map(), "model": "canned"}, turn
        yield "turn_end", {"message_id": f"m{number}", "finish_reason": "stop", "text": answers[2].text}, turn


class Turns:
    """Seconds of one turn after another: two streamed model calls and one ``read`` each."""

    def __init__(self, rig: Rig, durability: str) -> None:
        self._start: Callable[[], Session] = lambda: rig.session(durability=durability)
        self._session: Session | None = None
        self._done = 0

    def sample(self) -> list[float]:
        """One turn of a session that has had at least one."""
        if self._session is None or self._done >= TURNS_PER_SESSION:
            self.close()
            self._session, self._done = self._start(), 0
            self.sample()
        begin = time.perf_counter()
        result = self._session.send_message("read the notes")
        took_s = time.perf_counter() - begin
        if result.finish_reason != "stop" or result.tool_calls_made != 1:
            raise RuntimeError(f"a turn failed: {result}")
        self._done += 1
        return [took_s]

    def close(self) -> None:
        """Stop its session."""
        if self._session is not None:
            self._session.stop()
            self._session = None


class BareHttpx:
    """The floor of a turn: an async httpx client in this process, the same two requests, no answer looked into."""

    def __init__(self, rig: Rig) -> None:
        call = ToolCall("call_1", "read", {"path": "notes.txt"})
        asked = (Message("user", "read the notes"),)
        shown = "\n".join(f"{n}\ta line of notes" for n in range(1, 41))
        answered = (
            *asked,
            Message("assistant", "", (call,)),
            Message("tool", tool_results=(ToolResult("call_1", shown),)),
        )
        tools = tuple(tool.spec() for tool in resolve("all").values())
        self._bodies = [
            encode(openai_wire.body(ModelRequest("canned", messages, tools=tools))) for messages in (asked, answered)
        ]
        self._loop = rig.loop
        self._url = f"{rig.url}/chat/completions"
        self._client = httpx.AsyncClient(headers={"content-type": "application/json"}, trust_env=False)

    async def _turn(self) -> float:
        begin = time.perf_counter()
        for body in self._bodies:
            async with self._client.stream("POST", self._url, content=body) as response:
                async for _ in response.aiter_raw():
                    pass
        return time.perf_counter() - begin

    def sample(self) -> list[float]:
        """Seconds of the two requests."""
        return [self._loop.run_until_complete(self._turn())]

    def close(self) -> None:
        """Close its connection."""
        self._loop.run_until_complete(self._client.aclose())
