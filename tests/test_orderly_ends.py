"""Starts that fail, that nobody waits for, or that meet a stop: they leave nothing, and keep no other from its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import athena
from athena import AsyncSupervisor, ChildSpec, Pid, Session, Supervisor, Via
from athena.errors import AlreadyStarted, AthenaError, NoProcess, StartError
from athena.supervisors import EmbeddedSupervisor
from athena.trees import list_trees
from tests.bounds_children import Slow
from tests.helpers import TIME_UNIT, wait_until_async
from tests.tree_fixtures import Yard, shared, yard

__all__ = ["shared", "yard"]

pytestmark = pytest.mark.slow


@pytest.fixture
def alone() -> Iterator[EmbeddedSupervisor]:
    """A supervisor that the test may stop."""
    found = EmbeddedSupervisor()
    found.ensure()
    yield found
    found.stop()


def ready(path: Path) -> Path:
    """What a :class:`Slow` server waits for is there: it starts at once."""
    path.touch()
    return path


def crew(at: EmbeddedSupervisor, path: Path) -> Path:
    """A tree of one server that notes its end; where it does."""
    spec = ChildSpec("a", "tests.bounds_children:Slow", args=[str(ready(path))], name="orderly")
    Supervisor.start_link([spec], supervisor=at)
    return path.with_name(path.name + ".ended")


def test_a_server_whose_name_cannot_be_given_leaves_nothing(alone: EmbeddedSupervisor, tmp_path: Path) -> None:
    ended = crew(alone, tmp_path / "crew")
    with pytest.raises(NoProcess):
        Slow.start(str(tmp_path / "ghost"), name=Via("no such registry", 1), supervisor=alone)
    assert [row["label"] for row in list_trees(supervisor=alone) if row["type"] == "worker"] == []
    alone.stop()
    assert ended.read_text() == "shutdown"


def test_a_stop_that_meets_starts_ends_the_others_in_order(alone: EmbeddedSupervisor, tmp_path: Path) -> None:
    ended = crew(alone, tmp_path / "crew")
    path, begun, is_over = ready(tmp_path / "one"), threading.Semaphore(0), threading.Event()

    def start_for_ever() -> None:
        while not is_over.is_set():  # its supervisor would be started again
            begun.release()
            try:
                Slow.start(str(path), supervisor=alone)
            except AthenaError:
                return

    starters = [threading.Thread(target=start_for_ever) for _ in range(4)]
    for starter in starters:
        starter.start()
    for _ in range(8):
        begun.acquire()
    is_over.set()
    alone.stop()
    assert ended.read_text() == "shutdown"
    for starter in starters:
        starter.join(30 * TIME_UNIT)
        assert not starter.is_alive()


def test_a_function_whose_arguments_do_not_fit_does_not_start(yard: Yard, tmp_path: Path) -> None:
    spec = ChildSpec("f", "tests.tree_children:note", args=[str(tmp_path), "text", "one too many"])
    with pytest.raises(StartError, match="TypeError"):
        Supervisor.start_link([spec], supervisor=yard.at)


async def test_a_tree_whose_start_nobody_waits_for_any_more_is_undone(yard: Yard, tmp_path: Path) -> None:
    path = tmp_path / "slow"
    spec = ChildSpec("a", "tests.bounds_children:Slow", args=[str(path)])
    starting = asyncio.create_task(AsyncSupervisor.start_link([spec], name="unwanted", supervisor=yard.at))
    await wait_until_async(lambda: path.with_name("slow.begun").exists())
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    path.touch()
    await wait_until_async(lambda: path.with_name("slow.ended").exists())
    await wait_until_async(lambda: athena.whereis("unwanted", supervisor=yard.at) is None)


def test_whoever_has_the_name_of_a_session_is_told_as_a_pid(yard: Yard) -> None:
    with pytest.raises(AlreadyStarted) as caught, Session.start_link(provider="mock", name="taken", supervisor=yard.at):
        Session.start_link(provider="mock", name="taken", supervisor=yard.at)
    assert isinstance(caught.value.pid, Pid)
