"""Classes of supervisors for the tests. Each ``init`` notes that it runs, and what it was given."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from athena import AsyncSupervisor, ChildSpec, DynamicSupervisor, Supervisor
from athena.server import Ignore
from tests.tree_children import note

SERVE = "tests.tree_children:serve"


def child(directory: str, name: str, **fields: Any) -> ChildSpec:
    """A child that obeys files."""
    return ChildSpec(name, SERVE, args=[directory, name], **{"shutdown": 1, **fields})


class Crew(Supervisor):
    """Two children, the second restarted with the first."""

    def init(self, directory: str, mark: str = "") -> Any:
        note(directory, f"init crew {mark}".rstrip())
        return self.spec([child(directory, "a"), child(directory, "b")], strategy="rest_for_one", max_restarts=50)


class AsyncCrew(AsyncSupervisor):
    """One child, and all of it awaited."""

    async def init(self, directory: str) -> Any:
        await asyncio.sleep(0)
        return self.spec([child(directory, "a")])


class Pool(DynamicSupervisor):
    """At most two children."""

    def init(self, directory: str) -> Any:
        note(directory, "init pool")
        return self.spec(max_children=2, extra_arguments=[directory])


class Templates(Supervisor):
    """One specification, any number of instances."""

    def init(self, directory: str) -> Any:
        spec = ChildSpec("t", SERVE, args=[directory], restart="temporary", shutdown=1)
        return self.spec([spec], strategy="simple_one_for_one")


class Says(Supervisor):
    """Returns what it is told to."""

    def init(self, value: Any) -> Any:
        return value


class SaysDynamic(DynamicSupervisor):
    """Likewise."""

    def init(self, value: Any) -> Any:
        return value


class Odd(Supervisor):
    """Ends in each way that is no answer."""

    def init(self, directory: str, how: str) -> Any:
        note(directory, f"init odd {os.getpid()}")
        match how:
            case "raise":
                raise RuntimeError("no plan")
            case "exit":
                sys.exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "object":
                return object()
            case "objects":
                return self.spec([child(directory, "a", kwargs={"x": object()})])
            case "hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(1000)
        return Ignore()


class Choosy(Supervisor):
    """Wants to run only where there is a file of this name, and notes each time that it was asked."""

    def init(self, directory: str, wanted: str, otherwise: str = "ignore") -> Any:
        note(directory, "init choosy")
        if (Path(directory) / wanted).exists():
            return self.spec([child(directory, "c")])
        if otherwise == "raise":
            raise FileNotFoundError(wanted)
        return Ignore()


class Patient(Supervisor):
    """Waits for a file."""

    def init(self, directory: str) -> Any:
        note(directory, "init patient")
        while not (Path(directory) / "go").exists():
            time.sleep(0.005)
        return self.spec([child(directory, "a")])


class Bare(Supervisor):
    """No init."""


class Outer:
    """A class is found inside another one too."""

    class Inner(Supervisor):
        """No children."""

        def init(self) -> Any:
            return self.spec([])
