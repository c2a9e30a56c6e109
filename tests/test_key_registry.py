"""Keys and locks by key without processes, then tied to a process layer: Elixir's registry cases, and random walks."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from athena.errors import AlreadyRegistered, AlreadyStarted, InvalidOption, NoProcess, NotFound, Reason
from athena.names import Via, json_value, name_form
from athena.registry_calls import pattern_form
from supervisor.key_registry import Entry, KeyLocks, KeyRegistry, Keys, Sizes, canonical, matches, parse_registry
from supervisor.processes import Processes
from supervisor.registries import Registries, RegistryMember
from supervisor.registry import Registry as SessionRegistry
from supervisor.tree_vocabulary import Started, StartFailed

A, B, C = 1, 2, 3
EMPTY = Sizes(0, 0, 0)


def alive(serial: int) -> bool:
    return True


def registry(keys: Keys = "unique", **options: Any) -> KeyRegistry:
    return KeyRegistry("r", keys, **options)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_j01_a_unique_key_has_one_holder_and_a_refused_registration_leaves_no_residue() -> None:
    one = registry()
    assert one.register(A, "hello", "value", alive) is None
    before = one.sizes()
    assert one.register(A, "hello", "other", alive) == A  # the holder itself is refused too
    assert one.register(B, "hello", "other", alive) == A
    assert one.sizes() == before == Sizes(1, 1, 1)
    assert (one.keys(A), one.keys(B)) == (["hello"], [])
    assert one.lookup("hello") == [(A, "value")]
    assert not one.holds(B)
    assert one.register(A, "world", None, alive) is None
    assert one.keys(A) == ["hello", "world"]


def test_a_dead_holder_that_is_not_forgotten_yet_is_displaced_from_that_key_only() -> None:
    one = registry()
    one.register(A, "hello", 1, alive)
    one.register(A, "world", 2, alive)
    assert one.register(B, "hello", 3, lambda serial: serial != A) is None
    assert one.lookup("hello") == [(B, 3)]
    assert one.keys(A) == ["world"]
    one.forget(A)
    assert one.lookup("hello") == [(B, 3)]
    assert one.sizes() == Sizes(1, 1, 1)


def test_a_process_may_hold_a_duplicate_key_several_times_and_unregister_removes_all() -> None:
    many = registry("duplicate")
    for value in (1, 2):
        assert many.register(A, "hello", value, alive) is None
    many.register(B, "hello", 3, alive)
    many.register(A, "world", 4, alive)
    assert many.keys(A) == ["hello", "hello", "world"]
    assert many.values(A, "hello") == [1, 2]
    assert many.lookup("hello") == [(A, 1), (A, 2), (B, 3)]
    assert many.unregister(A, "hello")
    assert not many.unregister(A, "hello")
    assert many.lookup("hello") == [(B, 3)]
    assert many.count() == 2


@pytest.mark.parametrize("keys", ["unique", "duplicate"])
def test_j07_nothing_is_left_of_processes_that_have_ended(keys: Keys) -> None:
    one = registry(keys)
    one.register(A, "hello", 1, alive)
    one.register(B, "world", 1, alive)
    one.register(B, [1, {"x": 2}], 1, alive)
    assert one.forget(A)
    assert one.forget(B)
    assert not one.forget(B)
    assert one.sizes() == EMPTY


def test_keys_are_compared_strictly() -> None:
    one = registry()
    keys: list[Any] = [1, 1.0, True, "1", None, 0, 0.0, -0.0, False, [], {}, [1], [1.0], {"a": 1, "b": 2}, ""]
    for key in keys:
        assert one.register(A, key, repr(key), alive) is None
    assert one.register(A, {"b": 2, "a": 1}, None, alive) == A  # an object has no order
    assert [repr(key) for key in one.keys(A)] == [repr(key) for key in keys]
    assert one.lookup(1.0) == [(A, "1.0")]


def test_a_key_that_is_no_json_is_refused() -> None:
    for key in (float("nan"), {1, 2}, object()):
        with pytest.raises(InvalidOption):
            registry().register(A, key, None, alive)


def test_a_value_is_updated_by_its_owner_only_and_only_if_it_is_still_the_one_that_was_read() -> None:
    one = registry()
    with pytest.raises(NotFound):
        one.update(A, "hello", None, 1)
    one.register(A, "hello", 1, alive)
    with pytest.raises(NotFound):
        one.update(B, "hello", 1, 2)
    assert not one.update(A, "hello", 1.0, 2)
    assert one.update(A, "hello", 1, 2)
    assert one.lookup("hello") == [(A, 2)]
    with pytest.raises(InvalidOption):
        registry("duplicate").update(A, "hello", 1, 2)


def test_meta_belongs_to_the_registry() -> None:
    one = registry(meta={"given": 1})
    assert one.meta("given") == (1,)
    assert one.meta("unknown") is None
    one.put_meta(["list", "key"], None)
    assert one.meta(["list", "key"]) == (None,)
    one.delete_meta("given")
    one.delete_meta("given")
    assert one.meta("given") is None


# --- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        (..., None, True),
        ([1, ..., ...], [1, "atom", 1], True),
        ([1.0, ..., ...], [1, "atom", 1], False),
        ([..., "atom", ...], [1, "atom", 1], True),
        ([..., "atom"], [1, "atom", 1], False),
        ({"b": "b"}, {"a": "a", "b": "b"}, True),
        ({"c": ...}, {"a": "a", "b": "b"}, False),
        ({"a": {"b": [...]}}, {"a": {"b": [7]}}, True),
        ({}, [], False),
        ([], {}, False),
        (True, 1, False),
        (1, 1, True),
        ("...", "x", False),
    ],
)
def test_match_patterns(pattern: Any, value: Any, expected: bool) -> None:
    assert matches(pattern_form(pattern), value) is expected


def test_what_is_no_pattern_is_refused() -> None:
    for pattern in (["what"], "any", [], {"any": 1}, ["list", 1]):
        with pytest.raises(InvalidOption):
            matches(pattern, 1)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption):
        pattern_form(object())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([1.0, 0.0, 2.5]) | st.sampled_from(["", "a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, JSON)
def test_a_value_matches_itself_and_what_equals_it_strictly(one: Any, other: Any) -> None:
    assert matches(pattern_form(one), one)
    assert matches(["is", one], other) == (canonical(one) == canonical(other))
    assert json_value("value", one) == one
    assert canonical(json_value("value", one)) == canonical(one)


def test_unregister_match_select_and_count_match() -> None:
    many = registry("duplicate")
    for value in ([1, "atom", 1], [2, "atom", 2]):
        many.register(A, "hello", value, alive)
    many.register(B, "hello", [2, "atom", 2], alive)
    many.register(B, "any", ["any"], alive)
    assert many.match("hello", pattern_form([1, ..., ...])) == [(A, [1, "atom", 1])]
    assert not many.unregister_match(A, "hello", pattern_form([2.0, ..., ...]))
    assert many.unregister_match(A, "hello", pattern_form([2, ..., ...]))
    assert many.lookup("hello") == [(A, [1, "atom", 1]), (B, [2, "atom", 2])]
    assert many.unregister_match(A, "hello", pattern_form([..., "atom", ...]))
    assert not many.holds(A)
    assert many.select(["any"], ["any"]) == [Entry("hello", B, [2, "atom", 2]), Entry("any", B, ["any"])]
    assert many.select(pattern_form("any"), ["any"], B) == [Entry("any", B, ["any"])]
    assert many.select(["any"], ["any"], A) == []


# --- what a registry is made of ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"keys": "unique"}, "name"),
        ({"name": "", "keys": "unique"}, "name"),
        ({"name": "a\nb", "keys": "unique"}, "name"),
        ({"name": 1, "keys": "unique"}, "name"),
        ({"name": "r", "keys": "other"}, "keys"),
        ({"name": "r"}, "keys"),
        ({"name": "r", "keys": "unique", "listeners": "me"}, "listeners"),
        ({"name": "r", "keys": "unique", "listeners": [1]}, "listeners"),
        ({"name": "r", "keys": "unique", "meta": [1]}, "meta"),
    ],
)
def test_a_wrong_option_of_a_registry_is_named(given: dict[str, Any], option: str) -> None:
    with pytest.raises(InvalidOption) as raised:
        parse_registry(given)
    assert raised.value.option == option


def test_names_and_what_is_none() -> None:
    assert name_form(None) is None
    assert name_form("x") == "x"
    assert name_form(Via("r", 1.0)) == {"via": ["r", 1.0, None]}
    for wrong in ("", "a\nb", 1, ("via", "r"), {"via": ["r", 1, 2]}, Via("", 1), Via("r", object()), Via(1, 2)):  # type: ignore[arg-type]
        with pytest.raises(InvalidOption):
            name_form(wrong)


def test_a_value_that_json_would_alter_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for wrong in (float("inf"), {1: 2}, 2**64, "\ud800", {"\ud800": 1}, b"x", endless):
        with pytest.raises(InvalidOption):
            json_value("value", wrong)


# --- random walks -----------------------------------------------------------------------------------------------------

KEYS = st.sampled_from([1, 1.0, True, "a", "b", [1], [1.0]])
VALUES = st.sampled_from([None, 1, 1.0, "x"])
SERIALS = st.sampled_from([A, B, C])


def same(one: Any, other: Any) -> bool:
    """Equality as the model knows it: without the registry's own text form."""
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


class RegistryWalk(RuleBasedStateMachine):
    """Against a model that is a list of facts."""

    keys: Keys = "unique"

    def __init__(self) -> None:
        super().__init__()
        self.real = registry(self.keys)
        self.facts: list[tuple[Any, int, Any]] = []
        self.dead: set[int] = set()

    @rule(serial=SERIALS, key=KEYS, value=VALUES)
    def register(self, serial: int, key: Any, value: Any) -> None:
        self.dead.discard(serial)
        holders = [holder for k, holder, _ in self.facts if same(k, key)] if self.keys == "unique" else []
        taken = next((holder for holder in holders if holder not in self.dead), None)
        assert self.real.register(serial, key, value, lambda one: one not in self.dead) == taken
        if taken is None:
            self.facts = [fact for fact in self.facts if self.keys == "duplicate" or not same(fact[0], key)]
            self.facts.append((key, serial, value))

    @rule(serial=SERIALS, key=KEYS)
    def unregister(self, serial: int, key: Any) -> None:
        left = [fact for fact in self.facts if not (same(fact[0], key) and fact[1] == serial)]
        assert self.real.unregister(serial, key) == (len(left) < len(self.facts))
        self.facts = left

    @rule(serial=SERIALS, key=KEYS, value=VALUES)
    def unregister_match(self, serial: int, key: Any, value: Any) -> None:
        gone = [f for f in self.facts if same(f[0], key) and f[1] == serial and same(f[2], value)]
        assert self.real.unregister_match(serial, key, ["is", value]) == bool(gone)
        self.facts = [f for f in self.facts if not any(all(map(same, f, one)) for one in gone)]

    @rule(serial=SERIALS)
    def die(self, serial: int) -> None:
        self.dead.add(serial)

    @rule(serial=SERIALS)
    def forget(self, serial: int) -> None:
        self.dead.add(serial)
        self.real.forget(serial)
        self.facts = [fact for fact in self.facts if fact[1] != serial]

    @invariant()
    def is_what_the_facts_say(self) -> None:
        entries = self.real.select(["any"], ["any"])
        assert sorted(map(repr, entries)) == sorted(repr(Entry(*fact)) for fact in self.facts)
        assert self.real.count() == len(self.facts)
        keys = {repr(key) for key, _, _ in self.facts}
        assert self.real.sizes() == (len(self.facts), len(keys), len({serial for _, serial, _ in self.facts}))
        for key, _, _ in self.facts:
            found = sorted(repr((serial, value)) for k, serial, value in self.facts if same(k, key))
            assert sorted(map(repr, self.real.lookup(key))) == found
            assert self.keys == "duplicate" or len(found) == 1
        for serial in (A, B, C):
            assert sorted(map(repr, self.real.keys(serial))) == sorted(repr(k) for k, s, _ in self.facts if s == serial)


class DuplicateWalk(RegistryWalk):
    keys = "duplicate"


TestUnique = RegistryWalk.TestCase
TestUnique.settings = settings(max_examples=25, stateful_step_count=25)
TestDuplicate = DuplicateWalk.TestCase
TestDuplicate.settings = settings(max_examples=25, stateful_step_count=25)

TICKETS = st.sampled_from(["t1", "t2"])


class LocksWalk(RuleBasedStateMachine):
    """Against one list of wishes, in the order of their coming: the first of each key holds."""

    def __init__(self) -> None:
        super().__init__()
        self.real = KeyLocks()
        self.wishes: list[tuple[Any, int, str]] = []

    def holder(self, key: Any) -> tuple[int, str] | None:
        return next(((serial, ticket) for k, serial, ticket in self.wishes if same(k, key)), None)

    def index(self, key: Any, serial: int, ticket: str) -> int | None:
        found = (i for i, (k, s, t) in enumerate(self.wishes) if same(k, key) and (s, t) == (serial, ticket))
        return next(found, None)

    @rule(key=KEYS, serial=SERIALS, ticket=TICKETS)
    def acquire(self, key: Any, serial: int, ticket: str) -> None:
        if self.index(key, serial, ticket) is None:
            self.wishes.append((key, serial, ticket))
        assert self.real.acquire(key, serial, ticket) == (self.holder(key) == (serial, ticket))

    @rule(key=KEYS, serial=SERIALS, ticket=TICKETS)
    def release(self, key: Any, serial: int, ticket: str) -> None:
        before, found = self.holder(key), self.index(key, serial, ticket)
        if found is not None:
            del self.wishes[found]
        after = self.holder(key)
        assert self.real.release(key, serial, ticket) == (after if after != before else None)

    @rule(serial=SERIALS)
    def forget(self, serial: int) -> None:
        keys = {repr(key): key for key, _, _ in self.wishes}
        before = {text: self.holder(key) for text, key in keys.items()}
        self.wishes = [wish for wish in self.wishes if wish[1] != serial]
        after = {text: self.holder(key) for text, key in keys.items()}
        new = [after[text] for text in keys if after[text] not in (None, before[text])]
        assert sorted(self.real.forget(serial)) == sorted(one for one in new if one is not None)

    @invariant()
    def remembers_no_more_than_the_wishes(self) -> None:
        assert len(self.real) == len(self.wishes)


TestLocks = LocksWalk.TestCase
TestLocks.settings = settings(max_examples=25, stateful_step_count=25)


# --- with processes ---------------------------------------------------------------------------------------------------


class FakeProcess:
    """One that notes what it is told, and dies of a fatal signal when the test says so."""

    os_pid = None

    def __init__(self, world: World, *, traps: bool = False) -> None:
        self.serial = world.next_serial()
        self.label = f"fake {self.serial}"
        self.heard: list[dict[str, Any]] = []
        self.ends_for: list[Reason] = []
        world.processes.add(self, traps=traps)

    def pid_value(self) -> dict[str, Any]:
        return {"pid": None, "serial": self.serial, "supervisor": "s"}

    def end_for(self, reason: Reason) -> None:
        self.ends_for.append(reason)

    def inform(self, message: dict[str, Any]) -> bool:
        self.heard.append(message)
        return True


class World:
    """What a registry needs of a daemon."""

    def __init__(self) -> None:
        self.next_serial = itertools.count(1).__next__
        self.supervisor_id = "s"
        self.registry = SessionRegistry()
        self.processes = Processes("s", self.next_serial, self.registry)
        self.registries = Registries(self)  # type: ignore[arg-type]  # as much of a daemon as is used here
        self.processes.vias = self.registries
        self.processes.on_exit.append(self.registries.forget)

    async def start(self, keys: Keys = "unique", name: str = "r", **options: Any) -> RegistryMember:
        """A running registry."""
        member = self.registries.make({"name": name, "keys": keys, **options}, name)
        assert await member.start() == Started(member.serial)
        return member

    def links(self, process: FakeProcess) -> tuple[int, ...]:
        """Of the process, with whom it is linked."""
        return self.processes.signals.links_of(process.serial)


async def test_who_registers_is_linked_until_its_last_key_goes() -> None:
    world = World()
    member, one = await world.start(), FakeProcess(world)
    member.register(one.serial, "hello", None)
    member.register(one.serial, "world", None)
    assert world.links(one) == (member.serial,)
    member.unregister(one.serial, "hello")
    assert world.links(one) == (member.serial,)
    member.unregister_match(one.serial, "world", ["any"])
    assert world.links(one) == ()


async def test_a_refused_registration_links_nobody() -> None:
    world = World()
    member, one, other = await world.start(), FakeProcess(world), FakeProcess(world)
    member.register(one.serial, "hello", None)
    with pytest.raises(AlreadyRegistered) as raised:
        member.register(other.serial, "hello", None)
    assert raised.value.pid == one.pid_value()
    assert world.links(other) == ()


async def test_keys_are_free_before_a_down_is_told_and_a_death_does_no_harm_to_the_registry() -> None:
    world = World()
    member, one = await world.start(), FakeProcess(world)
    seen: list[Any] = []

    class Watcher(FakeProcess):
        def inform(self, message: dict[str, Any]) -> bool:
            seen.append((message, member.registry.sizes()))
            return True

    watcher = Watcher(world)
    member.register(one.serial, "hello", None)
    assert world.processes.signals.monitor(watcher.serial, one.serial, 7) == []
    world.processes.exited(one.serial, {"exit": 3})
    ((message, sizes),) = seen
    assert message["down"]["reason"] == {"exit": 3}
    assert sizes == EMPTY
    assert world.processes.is_alive(member.serial)


async def test_a_holder_that_a_fatal_signal_has_reached_is_displaced() -> None:
    world = World()
    member, one, other = await world.start(), FakeProcess(world), FakeProcess(world)
    member.register(one.serial, "hello", 1)
    world.processes.exit(other.serial, one.serial, "kill")
    assert one.ends_for == ["killed"]  # and it is not gone yet
    assert member.registry.lookup("hello") == [(one.serial, 1)]
    assert world.processes.whereis(Via("r", "hello").to_map()) is None
    member.register(other.serial, "hello", 2)
    world.processes.exited(one.serial, "killed")
    assert member.registry.lookup("hello") == [(other.serial, 2)]
    assert world.processes.whereis(Via("r", "hello").to_map()) == other.serial


async def test_listeners_hear_of_entries_and_not_of_deaths() -> None:
    world = World()
    ear, one = FakeProcess(world), FakeProcess(world)
    world.processes.register("ear", ear.serial)
    member = await world.start("duplicate", listeners=["ear", "nobody"])
    member.register(one.serial, "hello", "world")
    member.unregister(one.serial, "hello")
    member.unregister(one.serial, "hello")  # of which there are no more
    member.register(one.serial, [1], {"a": 1})
    member.unregister_match(one.serial, [1], ["any"])
    member.register(one.serial, "last", None)
    world.processes.exited(one.serial, "killed")
    pid = one.pid_value()
    assert [message["message"] for message in ear.heard] == [
        {"register": ["r", "hello", pid, "world"]},
        {"unregister": ["r", "hello", pid]},
        {"register": ["r", [1], pid, {"a": 1}]},
        {"unregister": ["r", [1], pid]},
        {"register": ["r", "last", pid, None]},
    ]


async def test_j06_a_process_is_named_by_via_before_it_starts_and_linked_when_it_has() -> None:
    world = World()
    member = await world.start()
    via, serial = Via("r", "hello", {"v": 1}).to_map(), world.next_serial()
    world.processes.register(via, serial)
    assert member.registry.lookup("hello") == [(serial, {"v": 1})]
    with pytest.raises(AlreadyStarted) as raised:  # one that is being started keeps its name
        world.processes.register(via, world.next_serial())
    assert raised.value.serial == serial
    assert world.processes.whereis(via) is None
    process = FakeProcess.__new__(FakeProcess)
    process.serial, process.label, process.heard, process.ends_for = serial, "late", [], []
    world.processes.add(process)
    world.registries.started(serial)
    assert world.links(process) == (member.serial,)
    assert world.processes.whereis(via) == serial
    world.processes.exited(serial, "normal")
    assert member.registry.sizes() == EMPTY


async def test_a_failed_start_frees_its_via_name() -> None:
    world = World()
    member = await world.start()
    serial = world.next_serial()
    world.processes.register(Via("r", "hello").to_map(), serial)
    world.processes.release_names(serial)
    assert member.registry.sizes() == EMPTY


async def test_via_on_duplicate_keys_or_an_unknown_registry_raises() -> None:
    world = World()
    await world.start("duplicate")
    for via, error in ((Via("r", 1), InvalidOption), (Via("nobody", 1), NoProcess)):
        with pytest.raises(error):
            world.processes.register(via.to_map(), 7)
        with pytest.raises(error):
            world.processes.whereis(via.to_map())
    with pytest.raises(InvalidOption):
        world.processes.whereis({"via": ["r"]})
    with pytest.raises(NoProcess):
        world.registries.find(["r"])


async def test_a_registry_has_a_name_as_other_processes_have() -> None:
    world = World()
    member = await world.start()
    other = world.registries.make({"name": "r", "keys": "duplicate"}, "r")
    assert await other.start() == StartFailed({"already_started": member.serial})
    world.registry.by_id["s1"] = SimpleNamespace(serial=99, pid_value=lambda: None)  # type: ignore[assignment]  # enough of one
    session = world.registries.make({"name": "s1", "keys": "duplicate"}, "s1")
    assert await session.start() == StartFailed({"already_started": 99})
    assert world.processes.whereis("r") == member.serial


@pytest.mark.parametrize(
    ("how", "reason"),
    [("shut_down", "shutdown"), ("kill", "killed"), ("exit", {"exit": 3}), ("stop", "normal"), ("signal", "killed")],
)
async def test_when_a_registry_ends_its_name_is_free_and_its_links_fire(how: str, reason: Reason) -> None:
    world = World()
    member, one, trapping = await world.start(), FakeProcess(world), FakeProcess(world, traps=True)
    member.register(one.serial, 1, None)
    member.register(trapping.serial, 2, None)
    match how:
        case "exit":
            member.exit(reason)
        case "stop":
            await member.stop(reason)
        case "signal":
            world.processes.exit(one.serial, member.serial, "kill")
        case _:
            getattr(member, how)()
    member.kill()  # the first decides
    assert await member.wait() == reason
    assert world.processes.whereis("r") is None
    with pytest.raises(NoProcess):
        world.registries.find("r")
    assert one.ends_for == ([] if reason == "normal" else [reason])
    assert trapping.heard == [{"exit": {"from": member.pid_value(), "reason": reason, "over_link": True}}]
    await world.start()  # it can be started again, empty
    assert world.registries.find("r").registry.sizes() == EMPTY


async def test_exit_signals_of_strangers_mean_nothing_to_a_registry() -> None:
    world = World()
    member, one = await world.start(), FakeProcess(world)
    world.processes.exit(one.serial, member.serial, "shutdown")
    await asyncio.sleep(0)
    assert not member.ended.done()


async def test_locks_are_granted_in_order_and_those_of_the_dead_pass_on() -> None:
    world = World()
    member = await world.start()
    one, other, third = FakeProcess(world), FakeProcess(world), FakeProcess(world)
    await member.lock("k", one.serial, "t")
    order: list[str] = []

    async def wait(process: FakeProcess, ticket: str) -> None:
        await member.lock("k", process.serial, ticket)
        order.append(ticket)

    waits = [asyncio.create_task(wait(p, t)) for p, t in ((other, "a"), (third, "b"), (one, "c"), (third, "d"))]
    await member.lock("K", other.serial, "t")  # another key is another lock
    await asyncio.sleep(0)
    world.processes.exited(other.serial, "killed")  # a waiter dies: it is skipped
    world.processes.exited(one.serial, "killed")  # the holder dies, with a wish of its own
    await asyncio.wait(waits, timeout=1, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)
    assert order == ["b"]
    assert waits[0].cancelled()
    assert waits[2].cancelled()
    member.unlock("k", third.serial, "b")
    await waits[3]
    assert order == ["b", "d"]
    member.unlock("k", third.serial, "d")
    member.unlock("k", third.serial, "d")
    assert len(member._locks) == 0


async def test_a_wish_that_is_given_up_is_not_granted_and_one_that_is_repeated_is_one() -> None:
    world = World()
    member, one = await world.start(), FakeProcess(world)
    await member.lock("k", one.serial, "t")
    await member.lock("k", one.serial, "t")
    first = asyncio.create_task(member.lock("k", one.serial, "a"))
    again = asyncio.create_task(member.lock("k", one.serial, "a"))
    last = asyncio.create_task(member.lock("k", one.serial, "b"))
    await asyncio.sleep(0)
    member.unlock("k", one.serial, "a")
    await asyncio.wait([first, again])
    member.unlock("k", one.serial, "t")
    await last
    assert (first.cancelled(), again.cancelled()) == (True, True)


async def test_who_waits_for_a_lock_is_told_that_the_registry_has_ended() -> None:
    world = World()
    member, one = await world.start(), FakeProcess(world)
    await member.lock("k", one.serial, "t")
    waiting = asyncio.create_task(member.lock("k", one.serial, "a"))
    await asyncio.sleep(0)
    await member.stop()
    with pytest.raises(NoProcess):
        await waiting
