"""What programs hold of supervision trees: answers, errors, both clients, and the command line.

The cases in the names are those of otp-cases.md.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from athena import (
    AsyncDynamicSupervisor,
    AsyncSupervisor,
    ChildCounts,
    ChildInfo,
    ChildSpec,
    DynamicSupervisor,
    Pid,
    Session,
    Started,
    Supervisor,
)
from athena.errors import (
    AlreadyPresent,
    AlreadyStarted,
    CallTimeout,
    InvalidOption,
    InvalidSpec,
    MaxChildren,
    NoProcess,
    NotFound,
    ProcessExited,
    Running,
    StartError,
)
from athena.supervisors import EmbeddedSupervisor
from athena.trees import list_trees
from tests.cli_fixtures import assert_one_line, athena
from tests.session_fixtures import background, daemon, is_gone
from tests.tree_fixtures import Yard, counts, pid, pids, shared, start_child, wait_new, yard

__all__ = ["background", "daemon", "shared", "yard"]

NOWHERE = Pid(2**22 - 1, 999_999)

# --- starting ---------------------------------------------------------------------------------------------------------


def test_a_child_that_does_not_start_is_the_reason_and_what_was_started_is_ended(yard: Yard) -> None:
    with pytest.raises(StartError) as raised:
        yard.start(yard.spec("a"), ChildSpec("b", "tests.tree_children:nothing"), yard.spec("c"), name="failing")
    name, reason = raised.value.reason["shutdown"]["failed_to_start_child"]
    assert (name, reason["error"]["type"]) == ("b", "AttributeError")
    assert "AttributeError: module 'tests.tree_children' has no attribute 'nothing'" in raised.value.message
    assert yard.starts() in ([], ["a"])  # and no c
    assert list_trees(supervisor=yard.at) == []
    yard.start(yard.spec("a"), name="failing")  # its name is free


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (["/no/such/program"], "exec"),
        ("tests.no_such_module:run", "error"),
        ("tests.tree_children:POLL_S", "error"),
    ],
)
def test_a06_start_child_of_what_cannot_start(yard: Yard, start: Any, reason: str) -> None:
    tree = yard.start()
    with pytest.raises(StartError) as raised:
        tree.start_child(ChildSpec("a", start))
    assert set(raised.value.reason) == {reason}
    assert raised.value.spec["id"] == "a"
    assert tree.which_children() == []
    dynamic = yard.start_dynamic()
    with pytest.raises(StartError) as raised:
        dynamic.start_child(ChildSpec("a", start))
    assert raised.value.spec is None
    assert dynamic.which_children() == []


def test_a07_get_childspec_shows_every_default(yard: Yard) -> None:
    start = "tests.tree_children:serve"
    args = [str(yard.directory), "x"]
    inner = Supervisor.child_spec([], id="s")
    tree = yard.start({"id": "a", "start": start, "args": args}, yard.spec("b", shutdown="brutal_kill"), inner)
    bare = tree.get_childspec("a")
    assert (bare["restart"], bare["shutdown"], bare["type"]) == ("permanent", 5.0, "worker")
    assert (bare["modules"], bare["start"]) == (["tests.tree_children"], start)
    assert tree.get_childspec("b")["shutdown"] == "brutal_kill"
    assert (tree.get_childspec("s")["shutdown"], tree.get_childspec("s")["type"]) == ("infinity", "supervisor")
    with pytest.raises(NotFound):
        tree.get_childspec("nobody")


@pytest.mark.parametrize(
    ("fields", "tag"),
    [
        ({"restart": "perhaps"}, "invalid_restart_type"),
        ({"shutdown": -10}, "invalid_shutdown"),
        ({"type": "wrkr"}, "invalid_child_type"),
        ({"start": "nothing"}, "invalid_mfa"),
        ({"significant": True}, "bad_combination"),
    ],
)
def test_a09_a_wrong_specification_is_named_as_otp_does(yard: Yard, fields: dict[str, Any], tag: str) -> None:
    given = {"id": "a", "start": "tests.tree_children:serve", **fields}
    tree = yard.start()
    with pytest.raises(InvalidSpec) as raised:
        tree.start_child(given)
    assert raised.value.tag == tag
    with pytest.raises(StartError) as failed:
        yard.start(given)
    assert set(failed.value.reason["start_spec"]) == {tag}


def test_a11_wrong_flags_and_what_is_no_list(yard: Yard) -> None:
    for options, tag in (({"strategy": "x"}, "invalid_strategy"), ({"max_restarts": -1}, "invalid_intensity")):
        with pytest.raises(StartError) as raised:
            yard.start(**options)
        assert set(raised.value.reason["supervisor_data"]) == {tag}
    with pytest.raises(StartError) as raised:
        yard.start(yard.spec("a"), yard.spec("a"))
    assert raised.value.reason == {"start_spec": {"duplicate_child_name": "a"}}
    with pytest.raises(StartError) as raised:
        yard.start_dynamic(max_children=-1)
    assert set(raised.value.reason["supervisor_data"]) == {"invalid_max_children"}
    with pytest.raises(InvalidSpec, match="JSON"):
        yard.start(yard.spec("a", kwargs={"x": object()}))
    with pytest.raises(InvalidOption, match="name"):
        yard.start(name="")


def test_a_name_is_taken_once_by_trees_and_sessions_together(yard: Yard, shared: EmbeddedSupervisor) -> None:
    tree = yard.start(yard.spec("a"), name="taken")
    with pytest.raises(AlreadyStarted) as raised:
        yard.start(name="taken")
    assert raised.value.pid == tree.pid
    assert raised.value.pid.serial == tree.pid.serial
    with pytest.raises(AlreadyStarted):
        Session.start_link(provider="mock", mock=["x"], name="taken", supervisor=shared)
    with Session.start_link(provider="mock", mock=["x"], name="talk", supervisor=shared), pytest.raises(AlreadyStarted):
        yard.start(name="talk")
    with pytest.raises(StartError) as failed:
        yard.start(Supervisor.child_spec([], name="taken"))
    assert failed.value.reason["shutdown"]["failed_to_start_child"][1] == {"already_started": tree.pid.serial}
    assert Supervisor.attach("taken", supervisor=shared).pid == tree.pid


# --- administration ---------------------------------------------------------------------------------------------------


def test_b01_b02_the_life_of_a_child(yard: Yard) -> None:
    tree = yard.start(yard.spec("a"))
    first = pid(tree, "a")
    with pytest.raises(AlreadyStarted) as raised:
        tree.start_child(yard.spec("a"))
    assert raised.value.pid.serial == first.serial
    for call in (tree.terminate_child, tree.restart_child, tree.delete_child, tree.which_child):
        with pytest.raises(NotFound):
            call("nobody")
    for call in (tree.restart_child, tree.delete_child):
        with pytest.raises(Running):
            call("a")
    assert counts(tree) == [1, 1, 0, 1]
    tree.terminate_child("a")
    tree.terminate_child("a")
    assert is_gone(first)
    assert counts(tree) == [1, 0, 0, 1]
    with pytest.raises(AlreadyPresent):
        tree.start_child(yard.spec("a"))
    again = tree.restart_child("a")
    assert isinstance(again, Started)
    assert again.pid.serial != first.serial
    tree.terminate_child("a")
    tree.delete_child("a")
    with pytest.raises(NotFound):
        tree.restart_child("a")
    assert counts(tree) == [0, 0, 0, 0]


def test_b02_restart_child_of_one_that_cannot_start_keeps_its_spec(yard: Yard) -> None:
    tree = yard.start(yard.switch("a"))
    tree.terminate_child("a")
    yard.set_flag()
    with pytest.raises(StartError) as raised:
        tree.restart_child("a")
    assert raised.value.reason["error"]["message"] == "flag"
    assert tree.which_child("a").pid is None


def test_b04_a_supervisor_that_is_not_there(yard: Yard, shared: EmbeddedSupervisor) -> None:
    for target in ("nobody", NOWHERE):
        with pytest.raises(NoProcess):
            Supervisor.attach(target, supervisor=shared)
    tree = yard.start(yard.spec("a"), name="over")
    tree.stop()
    for call in (tree.which_children, tree.count_children, tree.stop, lambda: tree.terminate_child("a")):
        with pytest.raises(NoProcess):
            call()
    with pytest.raises(NoProcess):
        Supervisor.attach("over", supervisor=shared)


def test_b05_simple_one_for_one_is_administered_by_pid(yard: Yard) -> None:
    template = ChildSpec("t", "tests.tree_children:serve", args=[str(yard.directory)])
    tree = yard.start(template, strategy="simple_one_for_one")
    assert counts(tree) == [1, 0, 0, 0]
    one, two = start_child(tree, ["one"]), start_child(tree, ["two", "more"])
    assert counts(tree) == [1, 2, 0, 2]
    yard.wait_starts("two", 1)
    assert f"start two {int(two)} more" in yard.log()
    for call in (tree.terminate_child, tree.restart_child, tree.delete_child):
        with pytest.raises(InvalidSpec) as raised:
            call("t")
        assert raised.value.tag == "simple_one_for_one"
    tree.terminate_child(one)
    tree.terminate_child(one)  # of any dead process it is ok
    tree.terminate_child(int(two))  # a plain number is looked up among those that live
    assert counts(tree) == [1, 0, 0, 0]
    assert tree.get_childspec("t")["id"] == "t"


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_b09_only_a_temporary_child_can_be_started_again_under_its_id(yard: Yard, restart: str) -> None:
    tree = yard.start(yard.spec("a", restart=restart))
    tree.terminate_child("a")
    if restart == "temporary":
        tree.start_child(yard.spec("a", restart=restart))
        return
    with pytest.raises(AlreadyPresent):
        tree.start_child(yard.spec("a", restart=restart))


def test_rows_are_values_and_the_newest_comes_first(yard: Yard) -> None:
    tree = yard.start(yard.spec("a"), Supervisor.child_spec([], id="s"), ChildSpec("p", ["sleep", "1000"]))
    rows = tree.which_children()
    assert [row.id for row in rows] == ["p", "s", "a"]
    assert rows[2] == ChildInfo("a", pid(tree, "a"), "worker", ("tests.tree_children",))
    assert rows[0].modules == ("sleep",)
    assert tree.count_children() == ChildCounts(specs=3, active=3, supervisors=1, workers=2)
    assert isinstance(rows[1].pid, Pid)
    assert rows[1].pid.is_logical
    with pytest.raises(OverflowError):
        os.kill(rows[1].pid, 0)  # nobody can be hit with it
    assert pickle.loads(pickle.dumps(tree.pid)) == tree.pid


def test_ids_may_be_any_scalar(yard: Yard) -> None:
    tree = yard.start(*(yard.spec(name) for name in (1, "1", 1.5, None, True)))
    assert [row.id for row in reversed(tree.which_children())] == [1, "1", 1.5, None, True]
    tree.terminate_child(1)
    assert [row.pid is None for row in reversed(tree.which_children())] == [True, False, False, False, False]


def test_a_handle_holds_one_supervisor_and_a_name_leads_to_the_one_of_now(yard: Yard) -> None:
    tree = yard.start(yard.spec("a"), name="n")
    held = Supervisor.attach(tree.pid, supervisor=yard.at)
    assert (held.name, repr(held)) == ("n", "<Supervisor n>")
    tree.stop()
    again = yard.start(yard.spec("a"), name="n")
    with pytest.raises(NoProcess):
        held.which_children()
    assert Supervisor.attach("n", supervisor=yard.at).pid == again.pid


def test_stop_has_a_reason_and_a_timeout_that_ends_the_wait_only(yard: Yard) -> None:
    tree = yard.start(yard.spec("slow", shutdown=20, kwargs={"linger_s": 0.5}), name="slow")
    yard.wait_starts("slow", 1)
    with pytest.raises(CallTimeout):
        tree.stop("because", timeout=0.1)
    with pytest.raises(ProcessExited) as raised:
        tree.which_children()
    assert raised.value.reason == "because"


def test_a_busy_supervisor_is_shown_without_being_asked(yard: Yard) -> None:
    tree = yard.start(yard.spec("slow", shutdown=20, kwargs={"linger_s": 0.5}), name="busy")
    yard.wait_starts("slow", 1)
    with pytest.raises(CallTimeout):
        tree.stop(timeout=0.05)
    (root,) = list_trees(supervisor=yard.at)
    assert (root["name"], root["state"]) == ("busy", "ending a child")


# --- dynamic supervisors ----------------------------------------------------------------------------------------------


def test_g02_extra_arguments_come_first_on_restarts_too(yard: Yard) -> None:
    tree = yard.start_dynamic(extra_arguments=[str(yard.directory)])
    start_child(tree, ChildSpec("a", "tests.tree_children:serve", args=["a"]))
    yard.wait_starts("a", 1)
    yard.order("a", "die")
    yard.wait_starts("a", 2)
    assert [row.id for row in tree.which_children()] == [None]


def test_g04_wrong_specifications_and_max_children(yard: Yard) -> None:
    tree = yard.start_dynamic(max_children=1)
    for given, tag in (
        ({}, "invalid_child_spec"),
        ({"id": 1, "start": "x"}, "invalid_mfa"),
        ({"id": 1, "start": "a:b", "shutdown": -1}, "invalid_shutdown"),
        ({"id": 1, "start": "a:b", "significant": True, "restart": "temporary"}, "invalid_significant"),
    ):
        with pytest.raises(InvalidSpec) as raised:
            tree.start_child(given)
        assert raised.value.tag == tag
    child = start_child(tree, yard.spec("a"))
    with pytest.raises(MaxChildren):
        tree.start_child(yard.spec("a"))
    assert tree.get_childspec(child)["id"] == "a"
    assert tree.which_child(child).pid == child
    for wrong in ("a", NOWHERE, os.getpid()):
        with pytest.raises(NotFound):
            tree.terminate_child(wrong)


def test_a_dynamic_supervisor_under_a_supervisor(yard: Yard) -> None:
    root = yard.start(DynamicSupervisor.child_spec(id="pool", name="pool", max_children=2))
    pool = DynamicSupervisor.attach("pool", supervisor=yard.at)
    children = [start_child(pool, yard.spec("a")) for _ in range(2)]
    assert counts(root) == [1, 1, 1, 0]
    root.terminate_child("pool")
    assert all(is_gone(child) for child in children)


def test_an_unknown_kind_of_start_is_refused(yard: Yard) -> None:
    for start in ({"session": {"provider": "mock"}}, {"server": "a:B"}):
        with pytest.raises(StartError) as raised:
            yard.start().start_child({"id": "s", "start": start})
        assert set(raised.value.reason) == {"invalid_mfa"}


# --- asyncio ----------------------------------------------------------------------------------------------------------


async def test_the_asyncio_twins_do_the_same(yard: Yard) -> None:
    tree = await AsyncSupervisor.start_link([yard.spec("a")], supervisor=yard.at, name="async")
    async with tree:
        started = await tree.start_child(yard.spec("b"))
        assert isinstance(started, Started)
        assert [row.id for row in await tree.which_children()] == ["b", "a"]
        assert (await tree.which_child("b")).pid == started.pid
        await tree.terminate_child("b")
        assert isinstance(await tree.restart_child("b"), Started)
        with pytest.raises(Running):
            await tree.delete_child("b")
        await tree.terminate_child("b")
        await tree.delete_child("b")
        assert (await tree.get_childspec("a"))["id"] == "a"
        with pytest.raises(AlreadyStarted) as raised:
            await tree.start_child(yard.spec("a"))
        assert isinstance(raised.value.pid, Pid)
        attached = await AsyncSupervisor.attach("async", supervisor=yard.at)
        assert (await attached.count_children()).active == 1
    with pytest.raises(NoProcess):
        await tree.stop()
    unlinked = await AsyncSupervisor.start([], supervisor=yard.at)
    await unlinked.stop()


async def test_the_asyncio_twin_of_a_dynamic_supervisor(yard: Yard) -> None:
    for how in (AsyncDynamicSupervisor.start_link, AsyncDynamicSupervisor.start):
        async with await how(supervisor=yard.at, max_children=1) as pool:
            started = await pool.start_child(yard.spec("a"))
            assert isinstance(started, Started)
            await pool.terminate_child(started.pid)
            assert (await pool.count_children()).specs == 0


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_commands_on_trees(daemon: Path, tmp_path: Path) -> None:
    assert athena("tree", "--json").json == []
    inner = Supervisor.child_spec([ChildSpec("n", ["sleep", "1000"])], id="inner")
    children: list[Any] = [ChildSpec("a", ["sleep", "1000"]), inner, ChildSpec("once", ["false"], restart="temporary")]
    tree = Supervisor.start(children, name="top", supervisor=daemon)
    old = pid(tree, "a")
    os.kill(old, 9)
    wait_new(tree, "a", old)
    (root,) = athena("tree", "--json").json
    assert (root["name"], [row["id"] for row in root["children"]]) == ("top", ["a", "inner"])
    assert [row["pid"] for row in root["children"]] == [pid(tree, "a"), None]
    shown = athena("tree").out
    for part in ("top", f"pid {int(pid(tree, 'a'))}", "restarts 1", "last ended with killed", "inner", "one_for_one"):
        assert part in shown
    assert athena("terminate", "a", "--supervisor", "top", "--json").json == {"supervisor": "top", "terminated": "a"}
    assert "stopped" in athena("tree").out
    assert athena("restart", "a", "--supervisor", "top", "--json").json["pid"] == pid(tree, "a")
    assert_one_line(athena("restart", "a", "--supervisor", "top"), 1, "runs; terminate it first")
    assert_one_line(athena("delete", "a", "--supervisor", "nobody"), 1, "no supervisor 'nobody'")
    athena("terminate", "a", "--supervisor", "top")
    assert athena("delete", "a", "--supervisor", "top").code == 0
    assert list(pids(tree)) == ["inner"]
    tree.stop()
    assert "no supervision trees" in athena("tree").err


def test_the_commands_on_a_dynamic_supervisor_take_a_pid(daemon: Path) -> None:
    pool = DynamicSupervisor.start(name="pool", supervisor=daemon)
    child = start_child(pool, ChildSpec("a", ["sleep", "1000"]))
    assert athena("terminate", str(int(child)), "--supervisor", "pool").code == 0
    assert is_gone(child)
    assert counts(pool) == [0, 0, 0, 0]
    pool.stop()
