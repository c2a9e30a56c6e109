"""A session's first turn, rehearsed in the zygote before it forks.

What a first time costs (imports inside functions, schemas, regular expressions, the interpreter's own specialising)
then costs no child anything. The rehearsal is the real thing, with a throw-away log and a throw-away model that asks
for one tool call; only the supervisor's pipe is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
import traceback
from pathlib import Path
from typing import Any

import orjson

from athena.events import Event
from athena.providers.base import Delta
from athena.runner import Runner
from athena.session_setup import build_session

TURNS = 3
"""Enough for the interpreter, which specialises what has run eight times: much of this runs several times a turn."""

PREFIX = "athena-rehearsal-"
"""Of the folder, before the zygote's pid."""

LIMIT_S = 10.0
"""A rehearsal that hangs must not keep the zygote from its work."""


class _Nobody:
    """The host of a session that nobody watches."""

    def publish(self, event: Event) -> None: ...

    def delta(self, turn: str, step: int, attempt: int, offset: int, piece: Delta) -> None: ...

    def degraded(self, what: str | None) -> None: ...

    async def flushed(self) -> None: ...

    async def call(self, op: str, body: bytes) -> Any: ...


async def rehearse() -> None:
    """Run a few turns against a model of our own. What fails here costs children time, and nobody else anything."""
    # A ready socket and a numeric address: a name look-up would start a thread pool, and a fork needs a single thread.
    try:
        listener = socket.create_server(("127.0.0.1", 0))
    except OSError:
        return
    server = await asyncio.start_server(_serve, sock=listener)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    try:
        async with asyncio.timeout(LIMIT_S):
            sweep(Path(tempfile.gettempdir()))
            prefix = f"{PREFIX}{os.getpid()}-"
            with tempfile.TemporaryDirectory(prefix=prefix) as folder, contextlib.chdir(folder):
                await _turns(url, folder)
    except Exception:  # whatever it was, children can be forked: they only start slower
        traceback.print_exc()
    finally:
        server.close()
        await server.wait_closed()


def sweep(directory: Path) -> None:
    """Remove the folders of this user's zygotes that were killed while they rehearsed."""
    for folder in directory.glob(PREFIX + "*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            is_ours = folder.lstat().st_uid == os.geteuid() and not folder.is_symlink()
            if is_ours and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
                shutil.rmtree(folder)


async def _turns(url: str, folder: str) -> None:
    Path(folder, "notes.txt").write_text("a line\n", encoding="utf-8")
    options = {"provider": "openai_compatible", "model": "m", "base_url": url, "cwd": folder, "durability": "os"}
    parts = await build_session({"session": "rehearsal"}, {"options": options, "root": folder}, _Nobody())
    try:
        await parts.runner.begin()
        engine = asyncio.create_task(parts.runner.run())
        for number in range(TURNS):
            await _turn(parts.runner, f"m{number}", engine)
        engine.cancel()
        await asyncio.wait([engine])
    finally:
        await parts.provider.aclose()
        parts.runner.recorder.close()


async def _turn(runner: Runner, message_id: str, engine: asyncio.Task[None]) -> None:
    await runner.accept(message_id, "rehearse")
    both: list[asyncio.Future[Any]] = [runner.waiters.wait_for(message_id), engine]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)


# --- the model --------------------------------------------------------------------------------------------------------


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A call of ``read`` for a user's message, a text for anything else, on one connection as long as it lasts."""
    with contextlib.suppress(EOFError, ConnectionError, asyncio.CancelledError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            last = orjson.loads(await reader.readexactly(length))["messages"][-1]
            writer.write(_answer(_CALL if last["role"] == "user" else {"content": "done"}))
            await writer.drain()
    writer.close()


_CALL = {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "read", "arguments": '{"path": "notes.txt"}'}}]}


def _answer(delta: dict[str, Any]) -> bytes:
    chunk: dict[str, Any] = {"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}
    body = b"data: %s\n\ndata: [DONE]\n\n" % orjson.dumps(chunk)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
