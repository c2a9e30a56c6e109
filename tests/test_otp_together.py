"""Many ask for the same at once, and who asks may be gone before the answer: one of them gets it, and nothing stays."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import athena
from athena import ChildSpec, Pid, Started
from athena.errors import (
    AlreadyStarted,
    AthenaError,
    CallTimeout,
    MaxChildren,
    NoProcess,
    NotFound,
    ProcessExited,
    Running,
)
from tests.helpers import TIME_UNIT, wait_until, wait_until_async
from tests.otp_invariants import sizes
from tests.otp_processes import LONG_S, end, reasons, server, stamps, started_pid, wait_state, watch
from tests.process_servers import Scripted
from tests.session_fixtures import is_gone
from tests.tree_fixtures import CHILD_S, Yard, counts, pid, pids, shared, start_child, wait_new, yard

__all__ = ["shared", "yard"]

pytestmark = pytest.mark.slow

MANY = 8


def at_once(ask: Callable[[], Any]) -> list[Any]:
    """What each of many who ask at once gets, errors included."""

    def one(_: int) -> Any:
        try:
            return ask()
        except AthenaError as error:
            return error

    with ThreadPoolExecutor(MANY) as pool:
        return list(pool.map(one, range(MANY)))


def kinds(outcomes: list[Any]) -> dict[type, int]:
    """How many of which kind they are."""
    found: dict[type, int] = {}
    for outcome in outcomes:
        found[type(outcome)] = found.get(type(outcome), 0) + 1
    return found


# --- one of many ------------------------------------------------------------------------------------------------------


def test_one_id_is_started_once(yard: Yard) -> None:
    tree = yard.start()
    outcomes = at_once(lambda: tree.start_child(server("a", ["sleep", 0.05])))
    assert kinds(outcomes) == {Started: 1, AlreadyStarted: MANY - 1}
    assert {outcome.pid for outcome in outcomes} == {pid(tree, "a")}


def test_one_name_is_started_once(yard: Yard) -> None:
    """G: start, with a name that many want. Who comes too late hears of who has it, which may not be ready yet."""
    outcomes = at_once(lambda: Scripted.start(["sleep", 0.05], name="wanted", supervisor=yard.at))
    assert kinds(outcomes) == {Started: 1, AlreadyStarted: MANY - 1}
    holder = athena.whereis("wanted", supervisor=yard.at)
    assert holder is not None
    assert {outcome.pid.serial for outcome in outcomes} == {holder.serial}
    athena.stop(holder, supervisor=yard.at)


def test_a_slot_is_taken_once(yard: Yard) -> None:
    tree = yard.start_dynamic(max_children=3)
    assert kinds(at_once(lambda: tree.start_child(server("a")))) == {Started: 3, MaxChildren: MANY - 3}


def test_a_child_is_restarted_deleted_and_ended_once(yard: Yard) -> None:
    tree = yard.start(server("a"))
    tree.terminate_child("a")
    assert kinds(at_once(lambda: tree.restart_child("a"))) == {Started: 1, Running: MANY - 1}
    assert kinds(at_once(lambda: tree.terminate_child("a"))) == {type(None): MANY}
    assert kinds(at_once(lambda: tree.delete_child("a"))) == {type(None): 1, NotFound: MANY - 1}
    pool = yard.start_dynamic()
    child = start_child(pool, server("b"))
    assert kinds(at_once(lambda: pool.terminate_child(child))) == {type(None): 1, NotFound: MANY - 1}


def test_all_who_stop_it_at_once_return_when_it_is_gone(yard: Yard) -> None:
    one = started_pid(Scripted.start(supervisor=yard.at))
    tree = yard.start(server("a", ["trap", True]))
    child = pid(tree, "a")
    assert set(kinds(at_once(lambda: athena.stop(one, supervisor=yard.at)))) <= {type(None), NoProcess}
    assert is_gone(int(one))
    assert set(kinds(at_once(tree.stop))) <= {type(None), NoProcess}
    assert is_gone(int(child))


def test_of_many_reasons_to_stop_the_first_counts(yard: Yard) -> None:
    one = started_pid(Scripted.start(["trap", True], supervisor=yard.at))
    monitors = watch(yard, one, one)
    numbers = iter(range(MANY))
    outcomes = at_once(lambda: athena.stop(one, {"number": next(numbers)}, LONG_S, supervisor=yard.at))
    (reason, again) = reasons(monitors)
    assert reason == again
    assert kinds(outcomes)[type(None)] == 1
    assert all(one.reason == reason for one in outcomes if isinstance(one, ProcessExited))


# --- who asks is gone -------------------------------------------------------------------------------------------------

STARTER = """
import sys
from athena import ChildSpec, Supervisor
tree = Supervisor.attach("watched", supervisor=sys.argv[1])
print(flush=True)
tree.start_child(ChildSpec("slow", "tests.process_servers:Scripted", args=[["sleep", 0.4]], shutdown=1))
"""


def test_a_child_whose_starter_dies_meanwhile_belongs_to_its_supervisor(yard: Yard) -> None:
    tree = yard.start(name="watched")
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(yard.at.path)], stdout=subprocess.PIPE)
    assert starter.stdout
    starter.stdout.readline()
    wait_state(yard, tree, "starting a child")
    starter.kill()
    starter.communicate()
    old = pid(tree, "slow")
    end(yard, old, "killed")
    wait_new(tree, "slow", old)


@pytest.mark.parametrize("how", ["cancelled", "timeout"])
async def test_a_call_that_nobody_waits_for_any_more_is_forgotten(yard: Yard, how: str) -> None:
    """G: call with a timeout. The connection lives on, and so its end cannot be what the supervisor forgets it by."""
    one = start_child(yard.start_dynamic(), server("one", restart="temporary"))
    timeout = 0.2 * TIME_UNIT if how == "timeout" else None
    waiting = asyncio.create_task(athena.acall(one, ["later"], timeout, supervisor=yard.at))
    await wait_until_async(lambda: sizes(yard.at)["calls"] == 1, CHILD_S)
    if how == "cancelled":
        waiting.cancel()
    with pytest.raises((asyncio.CancelledError, CallTimeout)):
        await waiting
    await wait_until_async(lambda: sizes(yard.at)["calls"] == 0, CHILD_S)
    await athena.acast(one, ["answer", "for nobody"], supervisor=yard.at)
    assert await athena.acall(one, ["value", 1], LONG_S, supervisor=yard.at) == 1


# --- names that are taken meanwhile -----------------------------------------------------------------------------------


def test_restart_child_of_a_name_that_somebody_else_has_says_who(yard: Yard) -> None:
    """otp.md 11: restart_child may come to already_started, and the spec is kept."""
    tree = yard.start(server("a", name="mine"))
    tree.terminate_child("a")
    other = started_pid(Scripted.start(name="mine", supervisor=yard.at))
    with pytest.raises(AlreadyStarted) as taken:
        tree.restart_child("a")
    assert taken.value.pid == other
    assert counts(tree) == [1, 0, 0, 1]
    athena.stop(other, supervisor=yard.at)
    assert athena.whereis("mine", supervisor=yard.at) is None
    assert tree.restart_child("a") == Started(pid(tree, "a"), None)
    assert stamps(yard, tree) == 0


def test_a_group_restart_that_cannot_have_a_name_back_is_one_that_fails(yard: Yard) -> None:
    """It revives who was ended by hand, whose name is another's now, until the limit is reached."""
    tree = yard.start(server("a"), server("b", name="lost"), strategy="rest_for_one", max_restarts=5, max_seconds=3600)
    tree.terminate_child("b")
    other = started_pid(Scripted.start(name="lost", supervisor=yard.at))
    old = pid(tree, "a")
    monitors = watch(yard, old, tree.pid)
    end(yard, old)
    assert reasons(monitors) == ["died", "shutdown"]
    assert athena.whereis("lost", supervisor=yard.at) == other
    athena.stop(other, supervisor=yard.at)


def test_a_static_supervisor_knows_no_child_by_its_pid(yard: Yard) -> None:
    """otp.md 11: terminate_child with a pid is not_found there, and nothing happens to it."""
    tree = yard.start(server("a"))
    child = pid(tree, "a")
    for ask in (tree.terminate_child, tree.which_child, tree.get_childspec):
        with pytest.raises(NotFound):
            ask(child)
    assert pid(tree, "a") == child


# --- a child that is not what it was ----------------------------------------------------------------------------------


def test_a_function_that_becomes_another_program_is_followed_to_the_end(yard: Yard) -> None:
    """18.5: its channel ends with the exec; only the process counts."""
    for status, expected in (("exit 0", "normal"), ("exit 7", {"exit": 7}), ("kill -9 $$", "killed")):
        tree = yard.start_dynamic()
        spec = ChildSpec("x", "tests.otp_suite_servers:become", args=[f"sleep 0.1; {status}"], restart="temporary")
        assert reasons(watch(yard, start_child(tree, spec))) == [expected]


def test_a_program_that_a_function_became_is_ended_as_the_function(yard: Yard) -> None:
    spec = ChildSpec("x", "tests.otp_suite_servers:become", args=["exec sleep 1000"], shutdown=1)
    tree = yard.start(spec)
    child = pid(tree, "x")
    wait_until(lambda: b"sleep" in _command(child), CHILD_S)
    monitors = watch(yard, child)
    tree.terminate_child("x")
    assert reasons(monitors) == ["shutdown"]


def _command(one: Pid) -> bytes:
    with open(f"/proc/{int(one)}/cmdline", "rb") as file:
        return file.read()


@pytest.mark.parametrize("how", ["return", "raise", "exit", "os._exit", "kill"])
def test_a_fork_of_a_child_is_not_the_child(yard: Yard, how: str) -> None:
    """However it ends, it says nothing in the child's name, and goes with it."""
    tree = yard.start(ChildSpec("f", "tests.otp_suite_servers:fork_and_serve", args=[str(yard.directory), how]))
    wait_until(lambda: any(line.startswith("forked ") for line in yard.log()), CHILD_S)
    child = pid(tree, "f")
    assert counts(tree) == [1, 1, 0, 1]
    os.kill(int(child), signal.SIGTERM)
    wait_new(tree, "f", child)
    assert yard.row(tree, "f")["last_reason"] == "shutdown"
    assert stamps(yard, tree) == 1
    assert list(pids(tree)) == ["f"]
