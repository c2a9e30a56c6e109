"""A session's process: an engine, a log and two pipes to the supervisor.

Entered by the zygote's fork or by ``python -m athena.child READ_FD WRITE_FD``. It waits for one ``init`` frame, folds
the log, says ``ready``, and from then on answers requests while the engine runs beside them. End of file on the pipe
means that the supervisor is gone: finish the write in hand, kill what the tools left, exit.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson

from athena import proctree
from athena.channel import Channel, open_pipes
from athena.config import PRODUCT
from athena.errors import AthenaError, ProtocolError, StartError, from_wire, to_wire
from athena.events import Event
from athena.loop.result import Result
from athena.providers.base import Delta
from athena.runner import Runner
from athena.session_setup import SessionParts, build_session
from athena.wire import PROTOCOL, Frame, Header, dumps

PIPE_BACKLOG_BYTES = 1024 * 1024
"""Unsent event bytes above which deltas are no longer sent: they can be missed, events cannot."""

LOST_S = 3.0
"""How long the engine may take to end after the supervisor did."""

_ENDS_STEP = frozenset({"assistant_message", "interrupted", "turn_end"})

EXIT_OK, EXIT_ERROR = 0, 1


class Child:
    """The protocol side of a session's process."""

    def __init__(self) -> None:
        self._channel: Channel | None = None
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()
        self._ended = asyncio.get_running_loop().create_future()
        """The reason this process ends for: resolved by a shutdown frame, a signal, or the end of the pipe."""
        self._parts: SessionParts | None = None
        self._session = ""
        self._ready = False
        self._hibernates = False
        """Whether this process ends and the session does not."""
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._held: list[tuple[Header, list[str]]] = []
        """Text that waits until the pipe has room."""
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life

    async def main(self, read_fd: int, write_fd: int) -> int:
        """Run until told to end. Returns the exit status."""
        self._channel = await open_pipes(read_fd, write_fd, self._on_frame, self._on_close)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, "shutdown")
        self._send({"kind": "hello", "protocol": PROTOCOL, "product": PRODUCT, "pid": os.getpid()})
        try:
            engine = await self._start()
        except AthenaError as error:
            return await self._refuse(error)
        if engine is None:
            return EXIT_OK
        await asyncio.wait([engine, self._ended], return_when=asyncio.FIRST_COMPLETED)
        return await self._stop(engine)

    async def _start(self) -> asyncio.Task[None] | None:
        init = await self._next_frame()
        if init is None:
            return None
        if init.kind != "init":
            raise ProtocolError(f"the first frame must be init, not {init.kind!r}")
        self._session = str(init.header["session"])
        given = init.json()
        self._parts = parts = await build_session(init.header, given, self)
        runner = parts.runner
        # One that wakes goes on as if it had never slept: its log does not grow by that.
        if not (init.header.get("wakes") and runner.state.events and runner.state.turn is None):
            await runner.begin(
                init.header.get("reason"),
                counted=bool(init.header.get("counted")),
                interrupt=init.header.get("interrupt"),
            )
        facts = {"damage": parts.damage, "seq": runner.state.cursor.seq, "pid": os.getpid()}
        self._send({"kind": "ready", **facts, **self._position()}, control=True)
        # Messages whose senders still wait, or whose options are grants, come with it or right behind: the engine must
        # know them before it goes on with an open turn.
        for message in given.get("granted") or ():
            await self._accept_again(Frame({}, dumps(message)))
        for _ in range(int(init.header.get("follow", 0))):
            frame = await self._next_frame()
            if frame is None:
                return None
            await self._accept_again(frame)
        self._ready = True
        while not self._frames.empty():
            self._spawn(self._answer(self._frames.get_nowait()))
        return asyncio.create_task(runner.run())

    async def _accept_again(self, frame: Frame) -> None:
        """A message of an earlier life: the engine knows it, and its grants, when this returns; the answer comes
        later."""
        args = frame.json()
        try:
            await self.runner.accept(args["message_id"], args["text"], args.get("options"))
            self.tell_settled(args["message_id"])
        except AthenaError:
            pass  # answering it raises the same again, for the caller
        if frame.header.get("id") is not None:
            self._spawn(self._answer(frame))

    async def _next_frame(self) -> Frame | None:
        getter = asyncio.ensure_future(self._frames.get())
        await asyncio.wait([getter, self._ended], return_when=asyncio.FIRST_COMPLETED)
        if getter.done():
            return getter.result()
        getter.cancel()
        return None

    async def _refuse(self, error: AthenaError) -> int:
        assert self._channel is not None
        self._send({"kind": "init_error"}, dumps(to_wire(error)), control=True)
        await self._close_parts()
        await self._channel.flushed()
        return EXIT_ERROR

    async def _stop(self, engine: asyncio.Task[None]) -> int:
        """The ordered end: the engine is cancelled (its tools die with it), the log closed, the reason announced."""
        assert self._channel is not None
        crashed = engine.done() and not engine.cancelled()
        engine.cancel()
        # Nobody is left to insist once the supervisor is gone: a tool that swallows its cancellation must not keep us.
        await asyncio.wait([engine], timeout=LOST_S if self._is_lost() else None)
        if crashed:
            engine.result()  # raises what ended the engine: a bug, and main reports it
        reason = self._ended.result() if self._ended.done() else "normal"
        lost = self._is_lost()
        if self._parts is not None and not lost and not self._hibernates:
            await self._parts.runner.recorder.record("session_end", {"reason": reason})
        await self._close_parts()
        proctree.kill_descendants()
        if not lost:
            self._send({"kind": "exiting", "reason": reason}, control=True)
            await self._channel.flushed()
        return EXIT_OK

    async def _close_parts(self) -> None:
        if self._parts is not None:
            await self._parts.provider.aclose()
            self._parts.runner.recorder.close()

    def _is_lost(self) -> bool:
        """Whether this process ends because its supervisor did."""
        return self._ended.done() and self._ended.result() == "noconnection"

    def _end(self, reason: Any) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    # --- the pipe

    def _send(self, header: Header, body: bytes = b"", *, control: bool = False) -> None:
        assert self._channel is not None
        self._channel.send(header, body, control=control)

    def _on_close(self, error: BaseException | None) -> None:
        if error is not None:
            print(f"athena.child: the supervisor's pipe broke: {error!r}", file=sys.stderr, flush=True)
        self._end("noconnection")
        for future in self._calls.values():
            if not future.done():
                future.set_exception(StartError("the supervisor is gone", reason="noconnection"))

    def _on_frame(self, frame: Frame) -> None:
        match frame.kind:
            case "request" if self._ready:
                self._spawn(self._answer(frame))
            case "init" | "request":
                self._frames.put_nowait(frame)
            case "event":  # an in_memory log's past, before init
                self._frames.put_nowait(frame)
            case "reply":
                self._on_reply(frame)
            case "shutdown":
                self._end(frame.header.get("reason", "shutdown"))
            case "hibernate":
                self._hibernates = not self._ended.done()
                self._end("normal")
            case "hello":
                pass  # the launcher started this very release
            case other:
                raise ProtocolError(f"unknown frame kind {other!r}")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, frame: Frame) -> None:
        request_id = frame.header.get("id")
        op = _OPS.get(str(frame.header.get("op")))
        try:
            if op is None:
                raise ProtocolError(f"unknown operation {frame.header.get('op')!r}")
            self._reply(request_id, await op(self, frame.json() or {}))
        except AthenaError as error:
            self._reply(request_id, dumps(to_wire(error)), ok=False)

    def _reply(self, request_id: Any, body: bytes, *, ok: bool = True) -> None:
        if request_id is None or (not ok and self._ended.done()):
            return  # an error of the end: the next life answers, or the supervisor says that there is none
        self._send({"kind": "reply", "id": request_id, "ok": ok, "session": self._session}, body, control=True)

    # --- calls to the supervisor (build_session's interface)

    async def call(self, op: str, body: bytes) -> Any:
        """Ask the supervisor. Raises what it answers, and :class:`StartError` when it is gone."""
        request_id = len(self._calls) + 1
        while request_id in self._calls:
            request_id += 1
        future = self._calls[request_id] = asyncio.get_running_loop().create_future()
        self._send({"kind": "request", "id": request_id, "op": op}, body, control=True)
        try:
            return await future
        finally:
            del self._calls[request_id]

    def _on_reply(self, frame: Frame) -> None:
        future = self._calls.get(int(frame.header.get("id", 0)))
        if future is None or future.done():
            return
        if frame.header.get("ok"):
            future.set_result(frame.json())
        else:
            future.set_exception(from_wire(frame.json()))

    async def preloaded(self, count: int) -> list[bytes]:
        """The next ``count`` event lines the supervisor kept for an in_memory log."""
        lines = []
        for _ in range(count):
            frame = await self._next_frame()
            if frame is None:
                break
            lines.append(frame.body)
        return lines

    async def flushed(self) -> None:
        """Everything sent so far is in the pipe."""
        assert self._channel is not None
        await self._channel.flushed()

    # --- what the engine publishes

    def _position(self) -> dict[str, Any]:
        assert self._parts is not None
        state = self._parts.runner.state
        return {
            "turn": state.turn.id if state.turn else None,
            "message_id": state.turn.message_id if state.turn else None,
            "queue": len(state.queue),
        }

    def publish(self, event: Event) -> None:
        """Send a recorded event. The header says what the supervisor needs to know without reading the line."""
        header: Header = {"kind": "event", "session": self._session, "seq": event.seq, "uuid": event.uuid}
        header["event"] = event.event
        if event.event == "turn_end":
            header["settled"] = [event.data["message_id"]]
        elif event.event == "message_cancelled":
            header["settled"] = event.data["message_ids"]
        if self._parts is not None:
            state = self._parts.runner.state
            header["turn"] = state.turn.id if state.turn else None
            header["queue"] = len(state.queue)
        if event.event in _ENDS_STEP:
            self._held.clear()
        self._send(header, event.line)

    def delta(self, turn: str, step: int, attempt: int, offset: int, piece: Delta) -> None:
        """Send a piece of text. While the pipe is far behind, pieces are held back and joined: they can wait, events
        cannot; what is held when the step is recorded needs no sending any more."""
        assert self._channel is not None
        header: Header = {
            "kind": "delta", "session": self._session, "turn": turn, "step": step, "attempt": attempt,
            "offset": offset, "type": piece.type,
        }  # fmt: skip
        if self._channel.queued_bytes <= PIPE_BACKLOG_BYTES and not self._held:
            self._channel.send_soon(header, piece.text.encode())
            return
        if not self._held:
            self._spawn(self._send_held())
        last = self._held[-1] if self._held else None
        if last is not None and {**last[0], "offset": offset} == header:
            last[1].append(piece.text)
        else:
            self._held.append((header, [piece.text]))

    async def _send_held(self) -> None:
        assert self._channel is not None
        await self._channel.drained(PIPE_BACKLOG_BYTES // 2)
        held, self._held = self._held, []
        for header, texts in held:
            self._send(header, "".join(texts).encode())

    def tell_settled(self, message_id: str) -> None:
        """If this message's turn has ended, or will never begin, say so: whoever keeps it may forget it.

        The event that says it may have been lost with the last process, or sent before the message came again.
        """
        state = self.runner.state
        if message_id in state.ended or message_id in state.cancelled:
            self._send({"kind": "settled", "messages": [message_id]}, control=True)

    def degraded(self, what: str | None) -> None:
        """Tell the supervisor that writing fails, or works again."""
        self._send({"kind": "state", "session": self._session, "degraded": what}, control=True)

    @property
    def runner(self) -> Runner:
        """The engine; there is one from ``ready`` on."""
        assert self._parts is not None
        return self._parts.runner


# --- operations -----------------------------------------------------------------------------------------------------


def result_body(result: Result) -> bytes:
    """A result and its history as JSON."""
    return orjson.dumps({**result.to_map(), "messages": [m.to_map() for m in result.messages]})


async def _send(child: Child, args: dict[str, Any]) -> bytes:
    runner, message_id = child.runner, args["message_id"]
    await runner.accept(message_id, args["text"], args.get("options"))
    child.tell_settled(message_id)
    if args.get("wait"):
        return await _result(child, args)
    return dumps({"message_id": message_id, "seq": runner.state.receipts[message_id].seq})


async def _result(child: Child, args: dict[str, Any]) -> bytes:
    runner, message_id = child.runner, args["message_id"]
    found = runner.result_of(message_id)
    if found is None:
        runner.require(message_id)
        found = await runner.waiters.wait_for(message_id)
    return result_body(found)


async def _cancel(child: Child, args: dict[str, Any]) -> bytes:
    return dumps({"cancelled": await child.runner.cancel(args["message_id"])})


async def _interrupt(child: Child, args: dict[str, Any]) -> bytes:
    runner = child.runner
    done = await runner.interrupt(turn=args.get("turn"), clear_queue=bool(args.get("clear_queue")))
    return dumps({"interrupted": done})


async def _messages(child: Child, args: dict[str, Any]) -> bytes:
    return orjson.dumps([m.to_map() for m in child.runner.state.messages])


async def _usage(child: Child, args: dict[str, Any]) -> bytes:
    return dumps(child.runner.state.usage.to_map())


async def _queue(child: Child, args: dict[str, Any]) -> bytes:
    return dumps([{"message_id": m.message_id, "text": m.text} for m in child.runner.state.queue])


async def _ping(child: Child, args: dict[str, Any]) -> bytes:
    return b"{}"


_OPS: dict[str, Callable[[Child, dict[str, Any]], Awaitable[bytes]]] = {
    "send": _send,
    "result": _result,
    "cancel": _cancel,
    "interrupt": _interrupt,
    "messages": _messages,
    "usage": _usage,
    "queue": _queue,
    "ping": _ping,
}


def main(read_fd: int, write_fd: int) -> None:
    """Run a session over these pipe descriptors. Never returns."""
    # First thing, so that no process started from here keeps the pipe open after us.
    os.set_inheritable(read_fd, False)
    os.set_inheritable(write_fd, False)
    # What the hang probe asks for before it kills. Written by a C handler: code that blocks cannot prevent it.
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    status = EXIT_ERROR
    try:
        status = _run(read_fd, write_fd)
    except BaseException:  # the child's one broad handler: whatever it was becomes a log entry and an exit status
        traceback.print_exc()
    finally:
        try:
            proctree.kill_descendants()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)  # no atexit of the zygote's, no waiting for user threads


def _run(read_fd: int, write_fd: int) -> int:
    gc.enable()
    try:
        import uvloop

        new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    except ImportError:
        new_loop = asyncio.new_event_loop

    async def run() -> int:
        return await Child().main(read_fd, write_fd)

    # Not asyncio.Runner: its handling of Ctrl-C and its clean-up, which os._exit makes pointless, touch half a megabyte
    # of the zygote's memory, and each page of that is copied.
    return new_loop().run_until_complete(run())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
