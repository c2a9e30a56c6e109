"""A session's process: a server whose state is an engine and a log.

Entered by the zygote's fork or by ``python -m athena.child READ_FD WRITE_FD``. It folds the log, is ready, and
from then on answers calls while the engine runs beside them. How it starts, takes its messages and ends is that of all
servers (:mod:`athena.server_child`).
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
from contextlib import suppress
from typing import Any

import orjson

from athena import branches
from athena.errors import AthenaError, DiskError, ProtocolError, Reason, to_wire
from athena.last_words import reason_of
from athena.loop.permission import open_requests
from athena.loop.result import Result
from athena.recorder import RETRY_FIRST_S, RETRY_MAX_S
from athena.runner import Runner
from athena.server import Caller, Continue, NoReply, Ready, Server, Stop
from athena.server_child import serve
from athena.server_inbox import Inbox, first_frames
from athena.session_setup import SessionParts, build_session, read_init
from athena.session_words import SessionWords
from athena.wire import Frame, Framer, Header, dumps


class SessionServer(Server):
    """One life of a session. A call is a whole frame, since its body is for who carries it out."""

    trap_exit = True

    def __init__(self, words: SessionWords) -> None:
        self.words = words
        self._parts: SessionParts | None = None
        self._engine: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_ending = False
        self._hibernates = False
        """Whether this process ends and the session does not."""

    @property
    def runner(self) -> Runner:
        """The engine; there is one from ``ready`` on."""
        assert self._parts is not None
        return self._parts.runner

    # --- callbacks

    async def init(self, frames: list[Frame]) -> Any:
        """Empties ``frames``: an ``init``, an in_memory log's past, and messages of an earlier life whose turns have
        not ended."""
        header, given = frames[0].header, read_init(frames[0].body)
        past = 1 + int(header.get("preload", 0))
        lines, messages = [frame.body for frame in frames[1:past]], [frame.json() for frame in frames[past:]]
        frames.clear()
        # What a tool leaves running and nobody awaits may fail: the turn goes on without it.
        asyncio.get_running_loop().set_exception_handler(None)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, signal.raise_signal, signal.SIGTERM)
        await self.words.open()
        try:
            self._parts = parts = await self._build(header, given, lines)
            self.words.state = state = parts.runner.state
            approvals = parts.runner.approvals
            approvals.approvers, approvals.remembered = header.get("approvers", ()), dict(header.get("remembered", {}))
            approvals.on_remember = self.words.remember
            if header.get("needs_grants"):
                parts.runner.hold()
                self.words.is_held = lambda: parts.runner.is_held
            # One that wakes goes on as if it had never slept: its log does not grow by that.
            if not (header.get("wakes") and state.events and state.turn is None):
                await parts.runner.begin(
                    header.get("reason"),
                    counted=bool(header.get("counted")),
                    interrupt=header.get("interrupt"),
                    is_later_life=_is_later_life(header),
                )
        except AthenaError as error:
            await self.words.close()
            return Stop(to_wire(error))
        facts = {"damage": parts.damage, "seq": state.cursor.seq, **self.words.position()}
        # What its sender was never told is accepted comes again from there, or was refused.
        granted = [one for one in given.get("granted") or () if one["message_id"] in state.receipts]
        return Ready(facts, then=Continue([*granted, *messages]))

    async def _build(self, header: Header, given: dict[str, Any], lines: list[bytes]) -> SessionParts:
        """The session's parts. A later life waits for a disk that is full: its session is not to fail by that."""
        delay_s = RETRY_FIRST_S
        while True:
            try:
                return await build_session(header, given, self.words, lines)
            except DiskError as error:
                if not _is_later_life(header) or "max_log_bytes" in error.data:
                    raise
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MAX_S)

    async def handle_continue(self, messages: list[Any]) -> None:
        """The engine must know its messages, and the grants that came with them, before it goes on with an open
        turn."""
        for message in messages:
            try:
                await self.accept(message)
            except AthenaError:
                pass  # answering its call raises the same again, for the caller
        self._engine = asyncio.create_task(self.runner.run())
        self._engine.add_done_callback(self._engine_ended)

    async def handle_call(self, request: Frame, caller: Caller) -> NoReply:
        if request.header.get("op") in _AT_ONCE:
            await self._answer(request, caller)
        else:
            self._spawn(self._answer(request, caller))
        return _LATER

    def handle_cast(self, message: Any) -> NoReply | Stop:
        """``"hibernate"``, or ``"go_on"`` with what waits for grants, without them, or who can answer now."""
        if message == "go_on":
            self.runner.release()
            return _LATER
        if isinstance(message, dict):
            self.runner.approvals.approvers = message["approvers"]
            return _LATER
        self._hibernates = True
        return Stop()

    def handle_info(self, message: Any) -> None:
        match message:
            case {"answer_to": number, "ok": ok, "value": value}:
                self.words.answered(number, value, ok=ok)
            case _:
                super().handle_info(message)

    async def terminate(self, reason: Reason) -> None:
        """The engine is cancelled (its tools die with it), the log is closed."""
        self._is_ending = True
        assert self._parts is not None
        try:
            if self._engine is not None:
                self._engine.cancel()
                await asyncio.wait([self._engine])
            if not (self._hibernates or reason == "noconnection"):
                with suppress(DiskError):  # it says what is so without it; a full disk must not hold up a stop
                    await self.runner.recorder.record("session_end", {"reason": reason}, waits=False)
            await self._parts.provider.aclose()
            self.runner.recorder.close()
        finally:
            await self.words.close()

    # --- beside them

    async def accept(self, message: dict[str, Any]) -> None:
        """Queue a message, or know one again. Raises as :meth:`athena.runner.Runner.accept`."""
        await self.runner.accept(message["message_id"], message["text"], message.get("options"))
        self.words.settled(message["message_id"])

    async def _answer(self, request: Frame, caller: Caller) -> None:
        try:
            op = _OPS.get(str(request.header.get("op")))
            if op is None:
                raise ProtocolError(f"unknown operation {request.header.get('op')!r}")
            args = request.json() or {}
            # The turn that ran when its interrupt was asked for, and no later one; the process that answers a request.
            args = {**args, **{word: request.header[word] for word in ("turn", "client") if word in request.header}}
            caller.answer(await op(self, args))
        except AthenaError as error:
            if not self._is_ending:  # else the next life answers, or the supervisor says that there is none
                caller.answer(dumps(to_wire(error)), ok=False)

    def _engine_ended(self, engine: asyncio.Task[None]) -> None:
        error = None if engine.cancelled() or self._is_ending else engine.exception()
        if error is not None:
            self._spawn(self._crash(error))

    async def _crash(self, error: BaseException) -> None:
        """A bug has ended the engine. The log stays as it is: the next life goes on with it."""
        await self.words.close()
        self.words.end(reason_of(error), error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_LATER = NoReply()


def _is_later_life(header: Header) -> bool:
    """Whether nobody waits for this start: an earlier life, or an earlier supervisor's, goes on."""
    return int(header.get("incarnation", 1)) > 1 or bool(header.get("needs_grants"))


# --- operations -----------------------------------------------------------------------------------------------------


def result_body(result: Result) -> bytes:
    """A result and its history as JSON."""
    return orjson.dumps({**result.to_map(), "messages": [m.to_map() for m in result.messages]})


async def _send(session: SessionServer, args: dict[str, Any]) -> bytes:
    await session.accept(args)
    if args.get("wait"):
        return await _result(session, args)
    message_id = args["message_id"]
    return dumps({"message_id": message_id, "seq": session.runner.state.receipts[message_id].seq})


async def _result(session: SessionServer, args: dict[str, Any]) -> bytes:
    runner, message_id = session.runner, args["message_id"]
    found = await runner.result_of(message_id)
    if found is None:
        runner.require(message_id)
        found = await runner.waiters.wait_for(message_id)
    return result_body(found)


async def _cancel(session: SessionServer, args: dict[str, Any]) -> bytes:
    return dumps({"cancelled": await session.runner.cancel(args["message_id"])})


async def _interrupt(session: SessionServer, args: dict[str, Any]) -> bytes:
    done = await session.runner.interrupt(turn=args.get("turn"), clear_queue=bool(args.get("clear_queue")))
    return dumps({"interrupted": done})


async def _answer(session: SessionServer, args: dict[str, Any]) -> bytes:
    await session.runner.approvals.answer(
        args["request_id"],
        args["decision"],
        answer_id=args["answer_id"],
        by=args.get("client"),
        remember=bool(args.get("remember")),
        reason=args.get("reason"),
    )
    return b"{}"


async def _requests(session: SessionServer, args: dict[str, Any]) -> bytes:
    return orjson.dumps(open_requests(session.runner.state))


async def _messages(session: SessionServer, args: dict[str, Any]) -> bytes:
    return orjson.dumps([m.to_map() for m in session.runner.state.messages])


async def _usage(session: SessionServer, args: dict[str, Any]) -> bytes:
    return dumps(session.runner.state.usage.to_map())


async def _queue(session: SessionServer, args: dict[str, Any]) -> bytes:
    return dumps([{"message_id": m.message_id, "text": m.text} for m in session.runner.state.queue])


async def _ping(session: SessionServer, args: dict[str, Any]) -> bytes:
    return b"{}"


_OPS: dict[str, Callable[[SessionServer, dict[str, Any]], Awaitable[bytes]]] = {
    "send": _send,
    "result": _result,
    "cancel": _cancel,
    "interrupt": _interrupt,
    "answer": _answer,
    "requests": _requests,
    "messages": _messages,
    "usage": _usage,
    "queue": _queue,
    "ping": _ping,
    **branches.OPERATIONS,
}

_AT_ONCE = frozenset({"requests", "messages", "usage", "queue", "ping"})
"""What waits for nothing, and needs no task of its own."""


def main(read_fd: int, write_fd: int) -> None:
    """Run a session over these pipe descriptors. Never returns."""
    for fd in (read_fd, write_fd):
        os.set_inheritable(fd, False)
        os.set_blocking(fd, True)
    # What the hang probe asks for before it kills. Written by a C handler: code that blocks cannot prevent it.
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    gc.enable()
    framer = Framer()
    frames = first_frames(read_fd, framer)
    if not frames:
        os._exit(0)
    init = frames[0].header
    words = SessionWords(write_fd, str(init["session"]))
    try:
        count = 1 + int(init.get("preload", 0)) + int(init.get("follow", 0))
        frames += first_frames(read_fd, framer, count - len(frames))
        if len(frames) < count:
            os._exit(0)
        # A message of an earlier life is a call besides, if its sender still waits.
        asked = (frame for frame in frames[1:count] if "id" in frame.header)
        inbox = Inbox(read_fd, framer, [*asked, *frames[count:]])
        del frames[count:]
        serve(SessionServer(words), [frames], {}, inbox, words)
    except BaseException:  # whatever it was, SystemExit too, is no end in order
        traceback.print_exc()
        words.end({"exit": 1})


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
