"""A model endpoint that costs next to nothing: canned chat completions, in a process of its own.

``python -m scripts.bench_endpoint`` prints its port and serves until its standard input ends. A conversation whose last
message is a tool's result gets a text of :data:`PIECES` pieces, any other a call of ``read``; each as server-sent
events, one chunk each, in a single write. A request for the model ``paced`` gets pieces :data:`GAP_S` apart instead,
each of them the monotonic time of its sending, which is the same clock in every process of the machine.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

PIECES = 16
PACED_PIECES = 200
GAP_S = 0.004
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    value = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "canned",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }
    return _chunk(b"data: " + json.dumps(value).encode() + b"\n\n")


def _ending(finish_reason: str) -> bytes:
    usage = {"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 20}}
    last = _chunk(b"data: " + json.dumps(usage).encode() + b"\n\n") + _chunk(b"data: [DONE]\n\n")
    return _event({}, finish_reason) + last + b"0\r\n\r\n"


def _call_answer() -> bytes:
    pieces = [
        {"id": "call_1", "type": "function", "index": 0, "function": {"name": "read", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"path": "no'}},
        {"index": 0, "function": {"arguments": 'tes.txt"}'}},
    ]
    return _HEAD + b"".join(_event({"tool_calls": [p]}) for p in pieces) + _ending("tool_calls")


CALL = _call_answer()
TEXT = _HEAD + b"".join(_event({"content": f"piece {n} "}) for n in range(PIECES)) + _ending("stop")


class Endpoint(asyncio.Protocol):
    """One connection, any number of requests one after the other."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: Any = None
        self._streaming: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it for the answers."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer as soon as a whole request is here."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < _length(head):
            return
        self._received = b""
        if b'"model":"paced"' in body:
            self._streaming = asyncio.get_running_loop().create_task(self._stream())
        else:
            last_role = body[body.rfind(b'"role":"') + 8 :]
            self._transport.write(TEXT if last_role.startswith(b"tool") else CALL)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has gone."""
        if self._streaming is not None:
            self._streaming.cancel()

    async def _stream(self) -> None:
        self._transport.write(_HEAD)
        for _ in range(PACED_PIECES):
            self._transport.write(_event({"content": f"{time.monotonic_ns()} "}))
            await asyncio.sleep(GAP_S)
        self._transport.write(_ending("stop"))


def _length(head: bytes) -> int:
    lower = head.lower()
    at = lower.index(b"content-length:") + 15
    return int(lower[at:].split(b"\r\n", 1)[0])


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Endpoint, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    over = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), over.set)
    await over.wait()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # slower, for everybody who is measured
        return asyncio.new_event_loop
    return uvloop.new_event_loop


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve())
