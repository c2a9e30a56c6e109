"""The process of a :class:`athena.Server`: an inbox, one message at a time, and the rules of its end.

Numbers in comments are sections of `reference/otp.md`. Frames are read by the event loop and written at once
(:class:`athena.last_words.Words`), so a deferred reply from any thread needs no detour.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from athena import current
from athena.errors import REASON_BYTES, InvalidOption, Reason
from athena.last_words import Words, is_clean, reason_of
from athena.pid import Pid
from athena.server import (
    ABSENT,
    Caller,
    Continue,
    Hibernate,
    Ignore,
    NoReply,
    Ready,
    Reply,
    Server,
    Stop,
    Timeout,
    checked_json,
    json_safe,
    shortened,
)
from athena.server_inbox import Inbox
from athena.signals import message_of
from athena.wire import Frame

LOST_S = 3.0
"""How long a server may take to end after its supervisor did."""

QUIET_S = 0.02
QUIET_ROUNDS = 100
"""After SIGTERM a server looks for what the supervisor sent before it, until nothing came for this long, and at most so
many times."""

GO_ON = NoReply()


def serve(server: Server, args: list[Any], kwargs: dict[str, Any], inbox: Inbox, words: Words) -> NoReturn:
    """Run a server to its end, which is the end of the process.

    Raises what ``init`` raises, and :class:`InvalidOption` if ``trap_exit`` is no boolean.
    """
    server.pid, server.name = current.pid, current.name
    # Not asyncio.Runner: its handling of Ctrl-C and its clean-up, which os._exit makes pointless, touch half a megabyte
    # of the zygote's memory, and each page of that is copied.
    _new_event_loop().run_until_complete(Runtime(server, inbox, words).run(args, kwargs))
    raise AssertionError("a server's process ends inside its loop")


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class Runtime:
    """Carries out what the callbacks of one server say."""

    def __init__(self, server: Server, inbox: Inbox, words: Words) -> None:
        self._server = server
        self._label = f"{type(server).__module__}:{type(server).__qualname__}"
        self._inbox = inbox
        self._words = words
        self._os_pid = os.getpid()
        self._traps = False
        self._has_started = False
        self._must_end = False
        """The parent's exit signal is in the inbox, or handled."""

    async def run(self, args: list[Any], kwargs: dict[str, Any]) -> NoReturn:
        """From ``init`` to the end of the process. An error of ``init`` is raised: it is a start error."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._background_failed)
        self._notice_trap_exit()
        self._inbox.open(self._shut_down, self._lost)
        onward: NoReply | Reply | Ready = await self._start(args, kwargs)
        while True:
            onward = await self._step(onward)

    # --- callbacks

    async def _start(self, args: list[Any], kwargs: dict[str, Any]) -> NoReply | Ready:
        value = self._server.init(*args, **kwargs)
        if inspect.isawaitable(value):
            value = await value
        self._notice_trap_exit()
        match value:
            case None:
                onward: NoReply | Ready = GO_ON
            case Ready():
                onward = value
            case Continue() | Hibernate():
                onward = NoReply(then=value)
            case Ignore():
                self._words.end("normal", kind="ignore")
            case Stop() if value.reply is ABSENT:
                self._words.end(self._reason(value.reason))
            case _:
                self._words.end(self._bad_return("init", value))
        info = {} if not isinstance(onward, Ready) or onward.info is None else {"info": onward.info}
        checked_json("info", info)
        self._words.ready(server=True, **info)
        self._has_started = True
        return onward

    async def _step(self, onward: NoReply | Reply | Ready) -> NoReply | Reply:
        """Whatever comes next: a continuation before any message, a message, or the time without one."""
        server = self._server
        if isinstance(onward.then, Continue):
            return await self._told("handle_continue", await self._call(server.handle_continue, onward.then.argument))
        if isinstance(onward.then, Hibernate) and not self._inbox:
            give_memory_back()
        frame = await self._inbox.next(None if onward.timeout == "infinity" else onward.timeout)
        if frame is None:
            return await self._told("handle_info", await self._call(server.handle_info, Timeout()))
        match frame.kind:
            case "call":
                return await self._on_call(frame)
            case "cast":
                return await self._told("handle_cast", await self._call(server.handle_cast, frame.json()))
            case "info":
                return await self._told("handle_info", await self._call(server.handle_info, message_of(frame.json())))
            case _:  # stop, or the parent's exit signal
                return await self._terminate(frame.header.get("reason", "normal"))

    async def _on_call(self, frame: Frame) -> NoReply | Reply:
        number = frame.header["id"]
        caller = Caller(
            Pid.from_map(frame.header.get("from")),
            lambda body, ok: self._words.frame({"kind": "reply", "id": number, "ok": ok}, body),
        )
        # A call with an operation in its header is a session's, which reads the body where an error is an answer.
        request = frame if "op" in frame.header else frame.json()
        value = await self._call(self._server.handle_call, request, caller)
        match value:
            case Reply():
                await self._call(caller.reply, value.value)
                return value
            case NoReply():
                return value
            case Stop() if value.reply is ABSENT:
                return await self._terminate(self._reason(value.reason))
            case Stop():
                await self._call(checked_json, "reply", value.reply)
                return await self._terminate(self._reason(value.reason), answer=lambda: caller.reply(value.reply))
            case _:
                return await self._terminate(self._bad_return("handle_call", value))

    async def _told(self, callback: str, value: Any) -> NoReply | Reply:
        """How it goes on after a callback that answers nobody."""
        match value:
            case None:
                return GO_ON
            case NoReply():
                return value
            case Continue() | Hibernate():
                return NoReply(then=value)
            case Stop() if value.reply is ABSENT:
                return await self._terminate(self._reason(value.reason))
            case _:
                return await self._terminate(self._bad_return(callback, value))

    async def _call(self, callback: Callable[..., Any], *args: Any) -> Any:
        """What the callback returns. If it raises, that ends the process."""
        try:
            value = callback(*args)
            if inspect.isawaitable(value):
                value = await value
            self._notice_trap_exit()
        except BaseException as error:
            await self._terminate(reason_of(error), error)
        return value

    def _bad_return(self, callback: str, value: Any) -> Reason:
        hint = " (a call is answered with Reply, or NoReply for later)" if callback == "handle_call" else ""
        print(f"{self._label}.{callback} returned {shortened(value)}{hint}", file=sys.stderr)
        return {"bad_return_value": json_safe(value)}

    def _reason(self, reason: Any) -> Reason:
        """The reason of a ``Stop``, which has to be JSON."""
        try:
            if len(checked_json("reason", reason)) > REASON_BYTES:
                return {"bad_return_value": json_safe(Stop(reason))}
        except InvalidOption as error:
            print(f"{self._label} stops: {error}", file=sys.stderr)
            return {"bad_return_value": json_safe(Stop(reason))}
        return reason

    # --- the end

    async def _terminate(
        self, reason: Reason, error: BaseException | None = None, answer: Callable[[], None] | None = None
    ) -> NoReturn:
        """Run ``terminate``, then give the last answer, then end (16)."""
        self._must_end = True
        if error is None and not is_clean(reason):
            print(f"{self._label} ends with reason {shortened(reason)}", file=sys.stderr)
        try:
            value = self._server.terminate(reason)
            if inspect.isawaitable(value):
                await value
        except BaseException as failure:  # "if terminate itself fails, that failure becomes the exit reason"
            reason, error = reason_of(failure), failure
        if answer is not None:
            answer()
        self._words.end(reason, error)

    def _shut_down(self, reason: Reason) -> None:
        """The parent's exit signal: behind what is in the inbox for who traps exits, the end for who does not (14)."""
        if not self._traps:
            self._words.end(reason)
        if not self._must_end:
            self._must_end = True
            self._inbox.put(Frame({"kind": "shutdown", "reason": reason}))

    def _lost(self) -> None:
        """The supervisor is gone, which is an exit signal of the parent too (18.5). Nobody insists on the end now."""
        if not self._has_started:
            self._words.end("noconnection")
        insist = threading.Timer(LOST_S, self._words.end, ["noconnection"])
        insist.daemon = True
        insist.start()
        self._shut_down("noconnection")

    def _background_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The event loop tells of an error that nobody awaits. It ends the process, as one in a thread does (18.3)."""
        error = context.get("exception")
        if error is None:
            loop.default_exception_handler(context)
            return
        print(f"{self._label} ends: {context.get('message')}", file=sys.stderr)
        # In a turn of its own: this may run in the middle of anything, and in any thread, by a garbage collection.
        loop.call_soon_threadsafe(self._words.end, reason_of(error), error)

    # --- trapping exits

    def _notice_trap_exit(self) -> None:
        """Carry out what the server made of its ``trap_exit``. SIGTERM is ours only while it traps exits."""
        wanted: Any = self._server.trap_exit
        if wanted is self._traps:
            return
        if not isinstance(wanted, bool):
            shown = shortened(wanted)
            raise InvalidOption(
                f"{self._label}.trap_exit is {shown}; set it to True or False",
                option="trap_exit", value=shown, expected="True or False",
            )  # fmt: skip
        self._traps = wanted
        signal.signal(signal.SIGTERM, self._on_sigterm if wanted else signal.SIG_DFL)
        self._words.frame({"kind": "trap_exit", "on": wanted})

    def _on_sigterm(self, number: int, _: object) -> None:
        """Not a handler of the event loop's: one that fires in a forked process would wake the loop of this one."""
        if os.getpid() == self._os_pid:
            self._loop.call_soon_threadsafe(self._terminated)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _terminated(self, seen: int = -1, rounds: int = QUIET_ROUNDS) -> None:
        """SIGTERM overtakes the parent's exit signal, which may be in the pipe still, or wait for room in it, behind
        messages (16)."""
        while self._inbox.read():
            pass
        if self._must_end:
            return
        if self._inbox.received == seen or rounds == 0:  # a SIGTERM of somebody else's: as exit(pid, "shutdown")
            self._shut_down("shutdown")
        else:
            self._loop.call_later(QUIET_S, self._terminated, self._inbox.received, rounds - 1)


def give_memory_back() -> None:
    """What is garbage, and what the allocator keeps of it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
    if trim is not None:
        trim(0)
