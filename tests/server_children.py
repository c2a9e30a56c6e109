"""Servers for the tests. What they do is told in messages; what they did is in a file of notes, one line each."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from athena import (
    Caller,
    Continue,
    Down,
    Exit,
    Hibernate,
    Ignore,
    NoReply,
    Pid,
    Ready,
    Reply,
    Server,
    Stop,
    Timeout,
    Via,
    current,
)

POLL_S = 0.005

VALUES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "reply": lambda: Reply(1),
    "ready": lambda: Ready("info"),
    "noreply": NoReply,
    "continue": lambda: Continue("more"),
    "hibernate": Hibernate,
    "ignore": Ignore,
    "stop": lambda: Stop("stopped"),
    "stop normal": Stop,
    "stop clean": lambda: Stop({"shutdown": "done"}),
    "stop with reply": lambda: Stop("stopped", reply="bye"),
    "stop with bad reply": lambda: Stop("stopped", reply=object()),
    "stop for no JSON": lambda: Stop({1, 2}),
    "number": lambda: 7,
    "object": lambda: Unshown(),
    "long": lambda: ["x" * 10_000],
    "bad reply": lambda: Reply({"at": object()}),
    "nan": lambda: Reply(float("nan")),
    "bad timeout": lambda: Reply(1, timeout=True),
    "short timeout": lambda: NoReply(timeout=0.01),
    "no time": lambda: NoReply(timeout=0),
    "long timeout": lambda: NoReply(timeout=0.1),
    "endless timeout": lambda: NoReply(timeout="infinity"),
    "bad info": lambda: Ready(object()),
    "ready then continue": lambda: Ready({"a": 1}, then=Continue("more")),
    "ready with timeout": lambda: Ready(timeout=0.01),
    "reply then continue": lambda: Reply("first", then=Continue("more")),
    "reply then hibernate": lambda: Reply("slept", then=Hibernate()),
}


class Unshown:
    """What cannot even be printed."""

    def __repr__(self) -> str:
        raise ValueError("no")


class Noted(Server):
    """Notes what happens to it, in memory and in a file."""

    def init(self, path: str, how: str = "none", trap: bool | None = None) -> Any:
        self.path = Path(path)
        self.notes: list[str] = []
        self.callers: list[Caller] = []
        if trap is not None:
            self.trap_exit = trap
        return VALUES[how]()

    def note(self, text: str) -> None:
        self.notes.append(text)
        with self.path.open("a") as file:
            file.write(text + "\n")

    def terminate(self, reason: Any) -> Any:
        self.note(f"terminate {reason if isinstance(reason, str) else sorted(reason)}")


class Obedient(Noted):
    """Does what the message says: ``[order, argument]``."""

    def handle_call(self, request: Any, caller: Caller) -> Any:
        self.callers.append(caller)
        return self.obey(request)

    def handle_cast(self, message: Any) -> Any:
        return self.obey(message)

    def handle_info(self, message: Any) -> Any:
        match message:
            case Exit(sender, reason):
                return self.note(f"exit {sender!r} {reason}")
            case Down(ref, target, pid, reason):
                return self.note(f"down {ref} {target!r} {pid!r} {reason}")
            case Timeout():
                return self.note("timeout")
            case _:
                return self.obey(message)

    def handle_continue(self, argument: Any) -> Any:
        if isinstance(argument, list):
            return self.obey(argument)
        self.note(f"continue {argument}")
        return Continue(argument - 1) if isinstance(argument, int) and argument > 0 else None

    def obey(self, message: Any) -> Any:
        order, argument = message
        return getattr(self, f"do_{order}")(argument)

    def do_note(self, text: str) -> None:
        self.note(text)

    def do_notes(self, _: None) -> Any:
        return Reply(self.notes)

    def do_echo(self, value: Any) -> Any:
        return Reply(value)

    def do_return(self, name: str) -> Any:
        return VALUES[name]()

    def do_count(self, number: int) -> Any:
        return Continue(number)

    def do_raise(self, text: str) -> Any:
        raise RuntimeError(text)

    def do_exit(self, code: Any) -> Any:
        sys.exit(code)

    def do_who(self, _: None) -> Any:
        asked = self.callers[-1].pid
        return Reply(asked.to_map() if asked else None)

    def do_facts(self, _: None) -> Any:
        return Reply(facts(self.pid, self.name))

    def do_trap(self, on: Any) -> Any:
        self.trap_exit = on
        return Reply(on) if self.callers else None

    def do_sleep(self, seconds: float) -> Any:
        time.sleep(seconds)

    def do_later(self, _: None) -> Any:
        return NoReply()

    def do_answer(self, value: Any) -> None:
        self.callers.pop(0).reply(value)

    def do_answer_twice(self, value: Any) -> None:
        caller = self.callers.pop(0)
        caller.reply(value)
        caller.reply("again")

    def do_answer_in_thread(self, value: Any) -> None:
        threading.Thread(target=self.callers.pop(0).reply, args=[value]).start()
        time.sleep(0.01)  # while the main thread is busy

    def do_answer_and_reply(self, value: Any) -> Any:
        self.callers.pop().reply(value)
        return Reply("another")

    def do_answer_badly(self, _: None) -> None:
        self.callers.pop(0).reply({1})

    def do_thread(self, busy_s: float) -> None:
        threading.Thread(target=lambda: 1 / 0).start()
        time.sleep(busy_s)

    def do_background(self, _: None) -> None:
        asyncio.get_running_loop().create_task(fail())

    def do_background_exit(self, code: int) -> None:
        self.kept = asyncio.get_running_loop().create_task(leave(code))

    def do_soon(self, _: None) -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)

    def do_forgotten(self, _: None) -> None:
        """Something to complain of that is no error of anybody's: a task that is thrown away while it waits."""
        asyncio.get_running_loop().call_exception_handler({"message": "a remark"})

    def do_grow(self, megabytes: int) -> None:
        self.ballast = [bytearray(1000) for _ in range(megabytes * 1000)]

    def do_shrink(self, _: None) -> Any:
        cycle: list[Any] = [self.ballast]
        cycle.append(cycle)
        self.ballast = []
        return Hibernate()

    def do_fork(self, _: None) -> Any:
        """A forked process that gets SIGTERM dies of it, and of nothing that this one does."""
        context = multiprocessing.get_context("fork")
        runs = context.Event()
        child = context.Process(target=tell_and_sleep, args=[runs])
        child.start()
        runs.wait()
        child.terminate()
        child.join()
        return Reply(child.exitcode)

    def do_sleep_then_no_time(self, seconds: float) -> Any:
        time.sleep(seconds)
        return NoReply(timeout=0)

    def do_continue_with(self, message: Any) -> Any:
        return Continue(message)

    def do_via(self, _: None) -> Any:
        assert isinstance(self.name, Via)
        return Reply([self.name.registry, self.name.key, self.name.value])

    def do_loop(self, _: None) -> Any:
        return Reply(type(asyncio.get_running_loop()).__module__)

    def do_tool(self, _: None) -> Any:
        return Reply(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)


class Trapping(Obedient):
    """Traps exits from the start."""

    trap_exit = True


class Asynchronous(Obedient):
    """The same with coroutines."""

    async def init(self, path: str, how: str = "none", trap: bool | None = None) -> Any:
        await asyncio.sleep(0)
        return super().init(path, how, trap)

    async def handle_call(self, request: Any, caller: Caller) -> Any:
        await asyncio.sleep(0)
        return super().handle_call(request, caller)

    async def handle_cast(self, message: Any) -> Any:
        await asyncio.sleep(0)
        return super().handle_cast(message)

    async def handle_info(self, message: Any) -> Any:
        await asyncio.sleep(0)
        return super().handle_info(message)

    async def handle_continue(self, argument: Any) -> Any:
        await asyncio.sleep(0)
        return super().handle_continue(argument)

    async def terminate(self, reason: Any) -> None:
        await asyncio.sleep(0)
        super().terminate(reason)


class AsynchronousTrapping(Asynchronous):
    """Traps exits, with coroutines."""

    trap_exit = True


class Held(Obedient):
    """Its ``hold`` takes until the file ``<notes>.go`` is there, and keeps the event loop free."""

    async def handle_cast(self, message: Any) -> Any:
        if message[0] == "hold":
            self.note("holding")
            while not self.path.with_suffix(".go").exists():  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(POLL_S)
            return None
        return self.obey(message)


class Minimal(Server):
    """Defines nothing."""


class BadEnd(Trapping):
    """Cannot terminate: ``how`` it fails."""

    def init(self, path: str, how: str = "raise", trap: bool | None = None) -> Any:
        super().init(path, trap=trap)
        self.how = how

    def terminate(self, reason: Any) -> None:
        super().terminate(reason)
        match self.how:
            case "raise":
                raise ValueError("terminate failed")
            case "exit":
                sys.exit(5)
            case "hang":
                time.sleep(1000)
            case "term":
                os.kill(os.getpid(), signal.SIGTERM)


class NeverReady(Noted):
    """Its ``init`` does not return by itself; ``how`` it ends."""

    async def init(self, path: str, how: str = "wait", trap: bool | None = None) -> Any:
        super().init(path, trap=trap)
        self.note("init")
        match how:
            case "wait":
                await asyncio.sleep(1000)
            case "raise":
                raise RuntimeError("no start")
            case "exit":
                sys.exit(4)
            case "exit text":
                sys.exit("no start")
            case "background":
                asyncio.get_running_loop().create_task(fail())
                await asyncio.sleep(1000)


class WantsArguments(Noted):
    """Takes its arguments in the wrong place."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)


class BadTrap(Noted):
    """Takes a number for a boolean."""

    trap_exit = 1  # type: ignore[assignment]


def tell_and_sleep(runs: Any) -> None:
    """A process that says when it runs."""
    runs.set()
    time.sleep(1000)


async def fail() -> None:
    """A coroutine that fails."""
    await asyncio.sleep(0)
    raise RuntimeError("background failed")


async def leave(code: int) -> None:
    """A coroutine that exits."""
    sys.exit(code)


def facts(pid: Pid | None, name: Any) -> list[Any]:
    """What the process knows of itself."""
    mine = current.pid.to_map() if current.pid else None
    return [pid.to_map() if pid else None, name, mine, current.name, str(current.socket), current.is_server]


def plain(path: str) -> None:
    """A function, which is no server, and knows what it is too."""
    Path(path).write_text(repr(facts(current.pid, current.name)))
