"""Registries with real processes: Elixir's cases (named as in otp-cases.md), both clients, trees, locks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from athena import ChildSpec, Pid, Via, call, cast, exit, monitor, receive, stop, whereis
from athena.async_registries import AsyncRegistry
from athena.environment import ROOT
from athena.errors import (
    AlreadyRegistered,
    AlreadyStarted,
    AthenaError,
    CallTimeout,
    InvalidOption,
    NoProcess,
    NotAServer,
    NotFound,
    ProtocolError,
    StartError,
)
from athena.recovery import perform
from athena.registries import Registry
from athena.session_calls import Call
from athena.wire import dumps
from tests.helpers import TIME_UNIT, wait_until
from tests.session_fixtures import background, daemon
from tests.tree_fixtures import CHILD_S, Yard, pid, pids, shared, start_child, wait_new, yard

__all__ = ["background", "daemon", "shared", "yard"]

Background = Callable[[Callable[[], Any]], Future[Any]]


@pytest.fixture
def unique(yard: Yard) -> Iterator[Registry]:
    """A registry with unique keys, for the test."""
    with Registry.start_link(keys="unique", name="unique", supervisor=yard.at) as found:
        yield found


@pytest.fixture
def duplicate(yard: Yard) -> Iterator[Registry]:
    """One with duplicate keys."""
    with Registry.start_link(keys="duplicate", name="duplicate", supervisor=yard.at) as found:
        yield found


def holder(yard: Yard, name: str, registry: str, *keys: Any, **fields: Any) -> ChildSpec:
    """A child that registers under the keys."""
    args = [str(yard.directory), name, registry, *keys]
    return ChildSpec(
        name, "tests.registry_children:hold", args=args, **{"shutdown": 1, "restart": "temporary", **fields}
    )


def start_holder(yard: Yard, name: str, registry: str, *keys: Any) -> Pid:
    """Start such a child, and wait until it is registered."""
    tree = yard.start(holder(yard, name, registry, *keys))
    yard.wait_starts(name, 1)
    return pid(tree, name)


def kill(victim: Pid, yard: Yard) -> None:
    """Kill a process; returns when its ``Down`` is here."""
    watch = monitor(victim, supervisor=yard.at)
    os.kill(victim, signal.SIGKILL)
    down = watch.wait(CHILD_S)
    assert down is not None
    assert down.reason == "killed"


def received(yard: Yard) -> list[Any]:
    """What this program has been told; of registries that it started before too."""
    found: list[Any] = []
    while True:
        try:
            found.append(receive(0.05 * TIME_UNIT, supervisor=yard.at))
        except CallTimeout:
            return found


# --- entries ----------------------------------------------------------------------------------------------------------


def test_j01_a_unique_key_has_one_holder_whoever_asks(yard: Yard, unique: Registry) -> None:
    assert unique.register("hello", "value") == unique.pid
    with pytest.raises(AlreadyRegistered) as raised:
        unique.register("hello", "value")
    assert raised.value.pid == os.getpid()
    assert unique.keys() == ["hello"]
    other = start_holder(yard, "a", "unique", "world")
    with pytest.raises(AlreadyRegistered) as raised:
        unique.register("world", "mine")
    assert (raised.value.pid, raised.value.pid.serial) == (other, other.serial)
    assert unique.keys() == ["hello"]
    assert unique.keys(other) == unique.keys(int(other)) == ["world"]
    assert unique.lookup("world") == [(other, "a")]
    assert unique.values("world", other) == ["a"]
    assert (unique.values("world"), unique.values("hello"), unique.count()) == ([], ["value"], 2)


def test_keys_are_compared_strictly_and_come_back_as_they_were(unique: Registry) -> None:
    keys: list[Any] = [1, 1.0, True, "1", None, [1, {"a": None}]]
    for key in keys:
        unique.register(key, [repr(key)])
    assert list(map(repr, unique.keys())) == list(map(repr, keys))
    assert unique.lookup(1.0)[0][1] == ["1.0"]
    unique.unregister(True)
    assert unique.lookup(1)[0][1] == ["1"]
    assert unique.lookup(True) == []


def test_a_process_may_hold_a_duplicate_key_several_times(yard: Yard, duplicate: Registry) -> None:
    for value in (1, 2):
        duplicate.register("hello", value)
    other = start_holder(yard, "a", "duplicate", "hello")
    assert duplicate.keys() == ["hello", "hello"]
    assert [value for _, value in duplicate.lookup("hello")] == [1, 2, "a"]
    duplicate.unregister("hello")
    duplicate.unregister("hello")
    duplicate.unregister("nothing")
    assert duplicate.lookup("hello") == [(other, "a")]


@pytest.mark.parametrize("keys", ["unique", "duplicate"])
def test_j07_no_key_of_a_killed_process_is_left_when_its_down_is_seen(yard: Yard, keys: str) -> None:
    with Registry.start_link(keys=keys, name="r", supervisor=yard.at) as registry:
        one = start_holder(yard, "a", "r", "hello", [1])
        other = start_holder(yard, "b", "r", "world")
        assert registry.count() == 3
        kill(one, yard)
        assert registry.select() == [("world", other, "b")]
        kill(other, yard)
        assert (registry.count(), registry.select(), registry.keys(one)) == (0, [], [])
        registry.register("hello")  # and the registry lives


def test_update_value_is_for_the_owner_and_loses_no_update_of_a_thread(yard: Yard, unique: Registry) -> None:
    with pytest.raises(NotFound):
        unique.update_value("hello", pytest.fail)
    start_holder(yard, "a", "unique", "hello")
    with pytest.raises(NotFound):
        unique.update_value("hello", pytest.fail)
    unique.register("count", 1)
    assert unique.update_value("count", lambda old: old + 1) == (2, 1)
    threads = [threading.Thread(target=unique.update_value, args=("count", lambda old: old + 1)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert unique.values("count") == [10]


def test_update_value_is_refused_for_duplicate_keys(duplicate: Registry) -> None:
    duplicate.register("hello")
    with pytest.raises(InvalidOption):
        duplicate.update_value("hello", pytest.fail)


def test_j04_dispatch_calls_in_the_callers_thread_and_never_for_no_entries(duplicate: Registry) -> None:
    duplicate.dispatch("hello", lambda entries: pytest.fail("called for nothing"))
    for value in (1, 2):
        duplicate.register("hello", value)
    duplicate.register("world", 3)
    seen: list[Any] = []
    duplicate.dispatch("hello", lambda entries: seen.append((threading.get_ident(), entries)))
    own = duplicate.lookup("hello")[0][0]
    assert seen == [(threading.get_ident(), [(own, 1), (own, 2)])]
    with pytest.raises(ZeroDivisionError):
        duplicate.dispatch("world", lambda entries: 1 / 0)


def test_match_by_shape_and_by_function(duplicate: Registry) -> None:
    duplicate.register("hello", (1, "atom", {"a": 1, "b": 2}))
    duplicate.register("hello", [2, "atom", {}])
    first, second = duplicate.lookup("hello")
    assert duplicate.match("hello", [1, ..., ...]) == [first]
    assert duplicate.match("hello", [1.0, ..., ...]) == []
    assert duplicate.match("hello", (..., "atom", {"b": 2})) == [first]
    assert duplicate.match("hello", ...) == [first, second]
    assert duplicate.match("hello", lambda value: value[0] > 1) == [second]
    assert duplicate.count_match("hello", [..., "atom", ...]) == 2
    assert duplicate.count_match("hello", lambda value: value[0] > 2) == 0
    assert duplicate.select(key="hello", value=[2, ..., ...]) == [("hello", *second)]
    assert duplicate.select(pid=2**22 - 1) == []
    duplicate.unregister_match("hello", lambda value: value[0] == 2)
    assert duplicate.lookup("hello") == [first]
    duplicate.unregister_match("hello", [2, ..., ...])
    duplicate.unregister_match("hello", [1, ..., ...])
    assert duplicate.count() == 0


def test_meta(yard: Yard) -> None:
    with Registry.start_link(keys="unique", name="m", meta={"given": [1]}, supervisor=yard.at) as registry:
        assert registry.meta("given") == [1]
        assert registry.meta("other", "default") == "default"
        registry.put_meta(("tuple", 1), None)
        assert registry.meta(["tuple", 1], "default") is None
        registry.delete_meta("given")
        registry.delete_meta("given")
        assert registry.meta("given") is None


def test_what_is_no_json_is_refused_here(unique: Registry) -> None:
    own = unique.register("me") and unique.lookup("me")[0][0]
    for wrong in (float("nan"), {1: 2}, b"", object(), own):
        with pytest.raises(InvalidOption):
            unique.register(wrong)
        with pytest.raises(InvalidOption):
            unique.register("key", wrong)
        with pytest.raises(InvalidOption), unique.lock(wrong):
            pytest.fail("it is held")
    with pytest.raises(InvalidOption, match="to_map"):
        unique.register("key", own)


# --- the registry itself ----------------------------------------------------------------------------------------------


def test_an_unknown_registry_is_no_process(yard: Yard) -> None:
    with pytest.raises(NoProcess, match="no registry 'nobody'"):
        Registry.attach("nobody", supervisor=yard.at)
    gone = Registry.start(keys="unique", name="gone", supervisor=yard.at)
    gone.stop()
    for use in (lambda: gone.register(1), lambda: gone.lookup(1), gone.count, gone.stop, lambda: gone.meta("x")):
        with pytest.raises(NoProcess):
            use()
    with pytest.raises(NoProcess), gone.lock("x"):
        pytest.fail("it is held")


@pytest.mark.parametrize(
    "given",
    [
        {"keys": "other", "name": "r"},
        {"keys": "unique", "name": ""},
        {"keys": "unique", "name": 1},
        {"keys": "unique", "name": "r", "listeners": "me"},
        {"keys": "unique", "name": "r", "listeners": [1]},
        {"keys": "unique", "name": "r", "meta": {1: 2}},
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_started(yard: Yard, given: Any) -> None:
    with pytest.raises(InvalidOption):
        Registry.start_link(**given, supervisor=yard.at)
    with pytest.raises(NoProcess):
        Registry.attach("r", supervisor=yard.at)


def test_its_name_is_a_process_name_as_others_are(yard: Yard, unique: Registry) -> None:
    with pytest.raises(AlreadyStarted) as raised:
        Registry.start_link(keys="duplicate", name="unique", supervisor=yard.at)
    assert (raised.value.pid, raised.value.pid.serial) == (unique.pid, unique.pid.serial)
    with pytest.raises(AlreadyStarted):
        yard.start(name="unique")
    yard.start(name="tree")
    with pytest.raises(AlreadyStarted):
        Registry.start_link(keys="duplicate", name="tree", supervisor=yard.at)
    assert whereis("unique", supervisor=yard.at) == unique.pid
    assert repr(unique) == "<Registry unique unique>"


def test_who_is_registered_hears_of_its_end(yard: Yard) -> None:
    registry = Registry.start(keys="unique", name="r", supervisor=yard.at)
    registry.register("hello")
    child = start_holder(yard, "a", "r", "world")
    watch, ours = monitor(child, supervisor=yard.at), monitor("r", supervisor=yard.at)
    exit("r", "kill", supervisor=yard.at)
    down, gone = watch.wait(CHILD_S), ours.wait(CHILD_S)
    assert down is not None
    assert gone is not None
    assert (down.reason, gone.reason) == ("killed", "killed")
    told = {found.sender.serial: found.reason for found in received(yard)}
    assert told[registry.pid.serial] == "killed"


def test_it_is_stopped_as_other_processes_are_and_is_no_server(yard: Yard, unique: Registry) -> None:
    for use in (call, cast):
        with pytest.raises(NotAServer):
            use("unique", 1, supervisor=yard.at)
    watch = monitor("unique", supervisor=yard.at)
    stop("unique", {"shutdown": "done"}, supervisor=yard.at)
    down = watch.wait(CHILD_S)
    assert down is not None
    assert down.reason == {"shutdown": "done"}


def test_who_is_not_registered_any_more_hears_nothing(yard: Yard, duplicate: Registry) -> None:
    registry = Registry.start(keys="unique", name="r", supervisor=yard.at)
    registry.register("hello")
    registry.unregister("hello")
    registry.stop("shutdown")
    assert registry.pid.serial not in {found.sender.serial for found in received(yard)}


def test_a_linked_registry_ends_with_who_started_it(yard: Yard) -> None:
    args = [str(yard.directory), "a", "r1", "r2"]
    tree = yard.start(ChildSpec("a", "tests.registry_children:start_linked", args=args, restart="temporary"))
    yard.wait_starts("a", 1)
    watches = [monitor(name, supervisor=yard.at) for name in ("r1", "r2")]
    kill(pid(tree, "a"), yard)
    downs = [watch.wait(CHILD_S) for watch in watches]
    assert [down and down.reason for down in downs] == ["killed", "killed"]
    with pytest.raises(NoProcess):
        Registry.attach("r1", supervisor=yard.at)


@pytest.mark.slow
def test_of_a_program_the_linked_registry_ends_and_the_other_lives_on(daemon: Path) -> None:
    code = "import sys; from tests.registry_children import start_both; start_both('linked', 'free', sys.argv[1])"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(daemon)], check=True, env=env, timeout=60 * TIME_UNIT)

    def is_gone() -> bool:
        try:
            Registry.attach("linked", supervisor=daemon)
        except NoProcess:
            return True
        return False

    wait_until(is_gone, CHILD_S)
    Registry.attach("free", supervisor=daemon).stop()


# --- in a tree --------------------------------------------------------------------------------------------------------


def test_a_registry_is_a_child_that_ends_after_those_that_came_later(yard: Yard) -> None:
    spec = Registry.child_spec(keys="unique", name="r", meta={"m": 1})
    assert spec["id"] == "r"
    assert Registry.child_spec(keys="unique", name="r", id="other")["id"] == "other"
    tree = yard.start(spec, holder(yard, "a", "r", "hello"), strategy="rest_for_one")
    yard.wait_starts("a", 1)
    registry = Registry.attach("r", supervisor=yard.at)
    assert (registry.meta("m"), registry.lookup("hello")) == (1, [(pid(tree, "a"), "a")])
    assert [(row.id, row.type, row.pid) for row in tree.which_children()][1] == ("r", "supervisor", registry.pid)
    assert tree.get_childspec("r")["start"]["registry"]["keys"] == "unique"
    tree.stop()
    with pytest.raises(NoProcess):
        registry.count()


def test_one_that_is_killed_is_started_again_empty_and_whoever_was_in_it_too(yard: Yard) -> None:
    spec = Registry.child_spec(keys="unique", name="r")
    tree = yard.start(spec, holder(yard, "a", "r", "hello", restart="permanent"), strategy="rest_for_one")
    yard.wait_starts("a", 1)
    registry, before, child = Registry.attach("r", supervisor=yard.at), pid(tree, "r"), pid(tree, "a")
    registry.put_meta("lost", 1)
    exit("r", "kill", supervisor=yard.at)
    wait_new(tree, "a", child)
    yard.wait_starts("a", 2)
    assert registry.lookup("hello") == [(pid(tree, "a"), "a")]  # the handle goes by the name
    assert registry.meta("lost") is None
    assert pid(tree, "r").serial != before.serial
    assert yard.row(tree, "r")["last_reason"] == "killed"


def test_a_tree_with_a_wrong_registry_does_not_start(yard: Yard, unique: Registry) -> None:
    with pytest.raises(StartError) as raised:
        yard.start(Registry.child_spec(keys="none", name="r"))
    assert raised.value.reason["shutdown"]["failed_to_start_child"][1]["error"]["type"] == "InvalidOption"
    with pytest.raises(StartError) as raised:
        yard.start(Registry.child_spec(keys="unique", name="unique"))
    assert "already_started" in raised.value.reason["shutdown"]["failed_to_start_child"][1]
    tree = yard.start()
    with pytest.raises(AlreadyStarted) as taken:
        tree.start_child(Registry.child_spec(keys="unique", name="unique"))
    assert taken.value.pid == unique.pid


def test_registries_are_stopped_started_again_and_deleted_as_children(yard: Yard) -> None:
    tree = yard.start(Registry.child_spec(keys="duplicate", name="r"))
    registry = Registry.attach("r", supervisor=yard.at)
    tree.terminate_child("r")
    with pytest.raises(NoProcess):
        registry.count()
    assert pids(tree) == {"r": None}
    tree.restart_child("r")
    assert registry.count() == 0
    tree.terminate_child("r")
    tree.delete_child("r")
    dynamic = yard.start_dynamic()
    found = start_child(dynamic, Registry.child_spec(keys="unique", name="r"))
    assert Registry.attach("r", supervisor=yard.at).pid == found
    dynamic.terminate_child(found)


# --- via names --------------------------------------------------------------------------------------------------------


def counter(name: Any, *args: Any, **fields: Any) -> ChildSpec:
    """A server of that name."""
    return ChildSpec("counter", "tests.registry_children:Counter", args=args, name=name, **{"shutdown": 1, **fields})


def test_j06_a_server_is_started_called_and_found_through_via(yard: Yard, unique: Registry) -> None:
    name = Via("unique", ["counter", 1], {"the": "value"})
    tree = yard.start(counter(name, 5))
    server = pid(tree, "counter")
    assert unique.lookup(["counter", 1]) == [(server, {"the": "value"})]
    assert call(name, 1, supervisor=yard.at) == 6
    assert call(Via("unique", ["counter", 1]), 1, supervisor=yard.at) == 7
    assert whereis(name, supervisor=yard.at) == server
    with pytest.raises(AlreadyStarted) as raised:
        yard.start_dynamic().start_child(counter(name))
    assert raised.value.pid == server
    assert unique.count() == 1
    watch = monitor(name, supervisor=yard.at)
    os.kill(server, signal.SIGKILL)
    wait_new(tree, "counter", server)
    down = watch.wait(CHILD_S)
    assert down is not None
    assert (down.target, down.reason) == (name, "killed")
    assert call(name, 1, supervisor=yard.at) == 6  # the next one has the name, and the count begins again
    tree.terminate_child("counter")
    assert whereis(name, supervisor=yard.at) is None
    with pytest.raises(NoProcess):
        call(name, 1, supervisor=yard.at)


def test_a_key_that_a_process_took_itself_is_a_name_too(yard: Yard, unique: Registry) -> None:
    tree = yard.start(counter("plain"))
    owner = call("plain", {"register": ["unique", "other name"]}, supervisor=yard.at)
    assert owner["serial"] == unique.pid.serial
    assert call(Via("unique", "other name"), 3, supervisor=yard.at) == 3
    assert unique.keys(pid(tree, "counter")) == ["other name"]


def test_a_start_that_fails_leaves_no_name(yard: Yard, unique: Registry) -> None:
    tree = yard.start()
    broken = ChildSpec("b", "tests.registry_children:Nothing", name=Via("unique", "key"))
    with pytest.raises(StartError):
        tree.start_child(broken)
    assert unique.count() == 0


@pytest.mark.parametrize(("registry", "error"), [("duplicate", "InvalidOption"), ("nobody", "NoProcess")])
def test_via_on_duplicate_keys_or_an_unknown_registry_raises(
    yard: Yard, duplicate: Registry, registry: str, error: str
) -> None:
    name = Via(registry, "key")
    with pytest.raises(StartError) as raised:
        yard.start().start_child(counter(name))
    assert raised.value.reason["error"]["type"] == error
    expected = InvalidOption if error == "InvalidOption" else NoProcess
    with pytest.raises(expected):
        call(name, 1, supervisor=yard.at)
    with pytest.raises(expected):
        whereis(name, supervisor=yard.at)
    if expected is NoProcess:  # a cast is ok whoever is not there
        cast(name, 1, supervisor=yard.at)


def test_listeners_hear_what_comes_and_goes_and_nothing_of_deaths(yard: Yard) -> None:
    yard.start(counter("ear"))
    with Registry.start_link(keys="duplicate", name="r", listeners=["ear", "nobody"], supervisor=yard.at) as registry:
        registry.register("hello", [1])
        own = registry.lookup("hello")[0][0].to_map()
        registry.unregister("hello")
        child = start_holder(yard, "a", "r", "world")
        kill(child, yard)
        heard = call("ear", "heard", supervisor=yard.at)
    assert heard == [
        {"register": ["r", "hello", own, [1]]},
        {"unregister": ["r", "hello", own]},
        {"register": ["r", "world", child.to_map(), "a"]},
    ]


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_lock_excludes_threads_and_other_keys_do_not_matter(unique: Registry, background: Background) -> None:
    unique.register("k")  # locks have nothing to do with keys
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(5):
            with unique.lock("k"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    works = [background(work) for _ in range(4)]
    for one in works:
        one.result(CHILD_S * TIME_UNIT)
    assert max(most) == 1
    assert len(most) == 20
    with unique.lock("k"), unique.lock("other"), unique.lock(1), unique.lock(1.0):
        pass


def test_a_wait_for_a_lock_ends_by_timeout_and_leaves_no_wish_behind(unique: Registry, background: Background) -> None:
    with unique.lock("k"):
        for _ in range(2):
            with pytest.raises(CallTimeout, match="lock of 'k'"), unique.lock("k", timeout=0.05):
                pytest.fail("it is held by another")
    with pytest.raises(ZeroDivisionError), unique.lock("k", timeout=CHILD_S):
        raise ZeroDivisionError
    with unique.lock("k", timeout=CHILD_S):
        pass


@pytest.mark.slow
def test_a_lock_passes_on_when_its_holder_is_killed_and_dead_waiters_are_skipped(yard: Yard, unique: Registry) -> None:
    def start(name: str) -> Pid:
        args = [str(yard.directory), name, "unique", "k"]
        spec = ChildSpec(name, "tests.registry_children:hold_lock", args=args, restart="temporary", shutdown=1)
        return pid(yard.start(spec), name)

    first = start("first")
    yard.wait_starts("first", 1)
    second = start("second")
    wait_until(lambda: "wait second" in yard.log(), CHILD_S)
    with pytest.raises(CallTimeout), unique.lock("k", timeout=0.3 * TIME_UNIT):  # by now the second waits
        pytest.fail("it is held by another")
    start("third")
    wait_until(lambda: "wait third" in yard.log(), CHILD_S)
    kill(second, yard)
    assert yard.starts() == ["first"]
    kill(first, yard)
    yard.wait_starts("third", 1)
    yard.order("third", "stop")
    with unique.lock("k", timeout=CHILD_S * TIME_UNIT):
        assert yard.starts() == ["first", "third"]


def test_who_waits_for_a_lock_is_told_of_the_registrys_end(unique: Registry, background: Background) -> None:
    def wait() -> str:
        try:
            with unique.lock("k"):
                return "held"
        except NoProcess:
            return "told"

    with unique.lock("k"):
        with pytest.raises(CallTimeout), unique.lock("k", timeout=0.05):
            pass
        waiting = background(wait)
        wait_until(waiting.running, CHILD_S)
        unique.stop()
        assert waiting.result(CHILD_S * TIME_UNIT) == "told"


# --- the asyncio twin -------------------------------------------------------------------------------------------------


async def test_the_asyncio_twin_does_all_of_it(yard: Yard) -> None:
    async with await AsyncRegistry.start_link(keys="unique", name="r", meta={"a": 1}, supervisor=yard.at) as registry:
        assert await registry.register("hello", 1) == registry.pid
        with pytest.raises(AlreadyRegistered) as raised:
            await registry.register("hello", 2)
        assert raised.value.pid == os.getpid()
        assert await registry.update_value("hello", lambda old: old + 1) == (2, 1)
        ((own, value),) = await registry.lookup("hello")
        assert (int(own), value) == (os.getpid(), 2)
        assert await registry.keys() == ["hello"]
        assert await registry.values("hello", own) == [2]
        assert (await registry.count(), await registry.count_match("hello", 2)) == (1, 1)
        assert await registry.match("hello", ...) == [(own, 2)]
        assert await registry.match("hello", lambda v: v == 3) == []
        assert await registry.count_match("hello", lambda v: v == 2) == 1
        assert await registry.select() == [("hello", own, 2)]
        assert (await registry.meta("a"), await registry.meta("b", 2)) == (1, 2)
        await registry.put_meta("b", 3)
        await registry.delete_meta("a")
        assert (await registry.meta("a"), await registry.meta("b")) == (None, 3)
        await registry.unregister_match("hello", lambda v: v == 3)
        await registry.unregister_match("hello", 3)
        assert await registry.count() == 1
        await registry.unregister_match("hello", lambda v: v == 2)
        await registry.unregister("hello")
        with pytest.raises(NotFound):
            await registry.update_value("hello", pytest.fail)
        attached = await AsyncRegistry.attach("r", supervisor=yard.at)
        assert repr(attached) == "<AsyncRegistry r unique>"
        with pytest.raises(AlreadyStarted):
            await AsyncRegistry.start(keys="unique", name="r", supervisor=yard.at)
    with pytest.raises(NoProcess):
        await registry.count()
    assert AsyncRegistry.child_spec is Registry.child_spec


async def test_asyncio_dispatch_awaits_coroutines(yard: Yard) -> None:
    async with await AsyncRegistry.start(keys="duplicate", name="r", supervisor=yard.at) as registry:
        seen: list[Any] = []

        async def later(entries: Any) -> None:
            await asyncio.sleep(0)
            seen.append([value for _, value in entries])

        await registry.dispatch("hello", later)
        await registry.register("hello", 1)
        await registry.dispatch("hello", later)
        await registry.dispatch("hello", lambda entries: seen.append(len(entries)))
        assert seen == [[1], 1]


async def test_an_asyncio_wait_for_a_lock_can_be_cancelled(yard: Yard) -> None:
    async with await AsyncRegistry.start(keys="unique", name="r", supervisor=yard.at) as registry:

        async def hold() -> None:
            async with registry.lock("k"):
                pass

        async with registry.lock("k"):
            waiting = [asyncio.create_task(hold()) for _ in range(2)]
            with pytest.raises(CallTimeout, match="lock of 'k'"):
                async with registry.lock("k", timeout=0.05):
                    pass
            waiting[0].cancel()
            await asyncio.wait(waiting[:1])
        await asyncio.wait_for(waiting[1], CHILD_S * TIME_UNIT)
        assert waiting[0].cancelled()


def test_a_tree_and_a_registry_in_one_program(yard: Yard) -> None:
    """A supervisor above a registry and many holders: nothing is left when it has ended."""
    tree = yard.start(Registry.child_spec(keys="duplicate", name="r"))
    crowd = yard.start_dynamic()
    for number in range(3):
        start_child(crowd, holder(yard, f"h{number}", "r", "crowd", number))
        yard.wait_starts(f"h{number}", 1)
    registry = Registry.attach("r", supervisor=yard.at)
    assert [value for _, value in registry.lookup("crowd")] == ["h0", "h1", "h2"]
    assert registry.count() == 6
    assert tree.count_children().supervisors == 1
    crowd.stop()
    assert registry.count() == 0


@pytest.mark.parametrize(
    ("op", "body", "error"),
    [
        ("registry_register", b'{"key":1}', ProtocolError),
        ("registry_lookup", b"[1]", ProtocolError),
        ("registry_lock", b'{"key":1}', ProtocolError),
        ("registry_match", b'{"key":1,"pattern":["is"]}', InvalidOption),
        ("registry_start", b"{}", InvalidOption),
        ("registry_start", b'{"name":"x","keys":{}}', InvalidOption),
    ],
)
def test_a_request_that_makes_no_sense_is_answered_with_an_error(
    duplicate: Registry, yard: Yard, op: str, body: bytes, error: type[AthenaError]
) -> None:
    duplicate.register(1)
    with pytest.raises(error):
        perform(yard.at, Call(op, {"registry": "duplicate"}, body, lambda frame: frame), CHILD_S)


@pytest.mark.parametrize("of", [{}, 7, {"pid": "x"}, {"serial": 1, "supervisor": "another"}])
def test_a_pid_that_is_none_of_ours_has_no_keys(duplicate: Registry, yard: Yard, of: Any) -> None:
    duplicate.register(1)
    body = dumps({"pid": of, "key": ["any"], "value": ["any"]})
    for op in ("registry_keys", "registry_values", "registry_select"):
        asked: Call[Any] = Call(op, {"registry": "duplicate"}, body, lambda frame: frame.json())
        assert perform(yard.at, asked, CHILD_S) == []
