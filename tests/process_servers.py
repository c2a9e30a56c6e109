"""Servers that the tests of processes start."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import athena
from athena import Continue, Hibernate, Ignore, NoReply, Ready, Reply, Server, Stop
from athena.pid import Pid


class Scripted(Server):
    """Does what it is asked to: each request is the name of a method and its arguments."""

    def init(self, *orders: Any) -> Any:
        self.notes: list[Any] = []
        self.waiting: list[Any] = []
        self.monitors: dict[int, Any] = {}
        for order in orders:
            if (answer := self.obey(order)) is not None:
                return answer
        return None

    def handle_call(self, request: Any, caller: Any) -> Any:
        self.caller = caller
        match request:
            case ["value", value]:
                return Reply(value)
            case ["later"]:
                self.waiting.append(caller)
                return NoReply()
            case ["notes"]:
                return Reply(self.notes)
            case ["caller"]:
                return Reply(caller.pid.to_map())
            case ["stop", reason]:
                return Stop(reason)
            case ["stop and reply", reason, value]:
                return Stop(reason, reply=value)
            case ["nonsense"]:
                return 17
            case ["sleep", seconds]:
                time.sleep(seconds)
                return Reply("slept")
            case ["hibernate"]:
                return Reply(os.getpid(), then=Hibernate())
            case order:
                return Reply(self.obey(order))

    def handle_cast(self, message: Any) -> Any:
        match message:
            case ["answer", value]:
                for caller in self.waiting:
                    caller.reply(value)
                    caller.reply("twice")
            case ["stop", reason]:
                return Stop(reason)
            case _:
                self.obey(message)
        return None

    def obey(self, order: Any) -> Any:
        """Carry out an order; what ``init`` returns with it, or a value."""
        match order:
            case ["ready", info]:
                return Ready(info)
            case ["ignore"]:
                return Ignore()
            case ["refuse", reason]:
                return Stop(reason)
            case ["fail", text]:
                raise ValueError(text)
            case ["exit", status]:
                raise SystemExit(status)
            case ["continue", argument]:
                return Continue(argument)
            case ["thread", text]:
                thread = threading.Thread(target=self.obey, args=(["fail", text],))
                thread.start()
                thread.join()
            case ["note", value]:
                self.notes.append(value)
            case ["trap", bool(on)]:
                self.trap_exit = on
            case ["monitor", target]:
                found = athena.monitor(_process(target))
                self.monitors[found.ref] = found
                return found.ref
            case ["demonitor", ref]:
                return self.monitors[ref].demonitor()
            case ["link", target]:
                return athena.link(_process(target)).pid.to_map()
            case ["unlink", target]:
                athena.unlink(_process(target))
            case ["exit signal", target, reason]:
                athena.exit(_process(target), reason)
            case ["call", target, request]:
                return athena.call(_process(target), request)
            case ["stop other", target]:
                athena.stop(_process(target))
            case ["start", *orders]:
                started = Scripted.start_link(*orders)
                assert isinstance(started, athena.Started)
                return started.pid.to_map()
            case ["sleep", seconds]:
                time.sleep(seconds)
            case ["self"]:
                return athena.self_pid().to_map()
        return None

    def handle_continue(self, argument: Any) -> Any:
        self.notes.append(["continue", argument])

    def handle_info(self, message: Any) -> Any:
        match message:
            case athena.Down():
                pid = None if message.pid is None else message.pid.serial
                self.notes.append(["down", message.ref, pid, message.reason])
            case athena.Exit():
                self.notes.append(["exit", message.sender.serial if message.sender else None, message.reason])
            case _:
                self.notes.append(message)

    def terminate(self, reason: Any) -> None:
        print("terminate", reason, flush=True)


def _process(target: Any) -> Any:
    return Pid.from_map(target) if isinstance(target, dict) else target


def link_and_wait(target: dict[str, Any]) -> None:
    """A function that is linked to another process, and does not trap exits."""
    athena.link(_process(target))
    time.sleep(1000)


def trap_and_tell(target: dict[str, Any], server: dict[str, Any]) -> None:
    """A function that traps exits, and tells a server what reaches it."""
    athena.trap_exit()
    link = athena.link(_process(target))
    athena.send(_process(server), ["linked"])
    message = link.wait(60)
    assert message is not None
    athena.send(_process(server), ["got", type(message).__name__, message.reason])
