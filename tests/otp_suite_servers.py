"""Children that do what a child should not: ask who waits for them, fail in each callback, fork, become another."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from athena import Continue, Reply, Server, Supervisor
from tests.tree_children import note


class AsksAtTheEnd(Server):
    """When it is ended it asks its own supervisor, which waits for that very end."""

    trap_exit = True

    def init(self, supervisor: str) -> None:
        self.supervisor = supervisor

    def terminate(self, reason: Any) -> None:
        Supervisor.attach(self.supervisor).which_children()


class AsksAtTheStart(Server):
    """While it starts it asks its own supervisor, which waits for that very start."""

    def init(self, supervisor: str) -> None:
        Supervisor.attach(supervisor).which_children()


class Badly(Server):
    """Each callback of it fails in another way."""

    def init(self, how: str = "") -> Any:
        return Continue(how) if how else None

    def handle_call(self, request: Any, caller: Any) -> Any:
        if request == "raise":
            raise ValueError("in a call")
        return Reply(request)

    def handle_info(self, message: Any) -> Any:
        return {"no": "answer"} if message == "return" else self._no_such_name  # type: ignore[attr-defined]

    def handle_continue(self, argument: Any) -> Any:
        if argument == "raise":
            raise ValueError("in a continue")
        return argument


def become(script: str) -> None:
    """A function whose process becomes a shell."""
    os.execv("/bin/sh", ["sh", "-c", script])


def fork_and_serve(directory: str, how: str) -> None:
    """Fork a process that ends in one of the ways there are; serve when it has ended."""
    forked = os.fork()
    if forked == 0:
        match how:
            case "return":
                return
            case "raise":
                raise RuntimeError("only in the fork")
            case "exit":
                sys.exit(3)
            case "os._exit":
                os._exit(4)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(forked, 0)
    note(directory, f"forked {forked}")
    time.sleep(1000)
