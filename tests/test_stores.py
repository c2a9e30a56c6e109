"""The contract over every registered store, the registry itself, and what only the memory store does."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from athena.errors import InvalidOption, LogLocked, StoreError, UnsupportedOption
from athena.events import Event, encode
from athena.stores import STORES, open_store
from athena.stores.base import Damage, Store
from athena.stores.jsonl import JsonlStore
from athena.stores.memory import MemoryStore
from athena.testing.store_contract import StoreContract, append_events


class TestRegisteredStores(StoreContract):
    @pytest.fixture(params=sorted(STORES))
    def store(self, request: pytest.FixtureRequest, tmp_path: Path) -> Store:
        return open_store(request.param, root=tmp_path / "logs")


class TestJsonlStoreOfAnotherProcess(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return JsonlStore(tmp_path)

    def reopened(self, store: Store) -> Store:
        assert isinstance(store, JsonlStore)
        return JsonlStore(store.root)


class HalfAStore:
    def open(self, session_id: str) -> None: ...

    def list(self) -> None: ...


class CustomStore(MemoryStore):
    def __init__(self, *, root: str = "none", size: int = 10) -> None:
        super().__init__(max_bytes=size)
        self.root = root


def test_a_custom_store_is_made_with_its_options_and_not_given_our_root(tmp_path: Path) -> None:
    store = open_store(f"{__name__}:CustomStore", root=tmp_path, options={"size": 7})
    assert type(store).__name__ == "CustomStore"
    assert isinstance(store, MemoryStore)
    assert (store.max_bytes, getattr(store, "root", None)) == (7, "none")


def test_the_default_root_is_the_users_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATHENA_HOME", str(tmp_path))
    store = open_store("jsonl")
    assert isinstance(store, JsonlStore)
    assert store.root == tmp_path / "sessions"
    assert not store.root.exists()


@pytest.mark.parametrize(
    "name", ["redis", "", ":", "athena.stores.jsonl", "no_such_module:Store", "athena:Nope", "os:sep"]
)
def test_an_unknown_store_is_refused_with_the_legal_names(name: str) -> None:
    with pytest.raises(InvalidOption, match="jsonl, in_memory or 'module:Class'") as caught:
        open_store(name)
    assert (caught.value.option, caught.value.value) == ("store", repr(name))


def test_a_store_of_another_type_is_refused() -> None:
    with pytest.raises(InvalidOption):
        open_store(None)  # type: ignore[arg-type]  # a wrong option of a user


def test_a_class_that_is_no_store_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(InvalidOption, match="'HalfAStore' lacks read, tail"):
        open_store(f"{__name__}:HalfAStore")


def test_store_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidOption, match="colour") as caught:
        open_store("in_memory", options={"colour": "red"})
    assert caught.value.option == "store_options"


def test_the_references_table_store_is_named_as_unsupported() -> None:
    with pytest.raises(UnsupportedOption, match="jsonl"):
        open_store("ets")


def test_the_sink_gets_each_event_before_it_counts() -> None:
    store = MemoryStore()
    seen: list[tuple[int, int]] = []
    store.sink = lambda event: seen.append((event.seq, len(list(store.read("a")))))
    append_events(store.open("a"), 3)
    assert seen == [(1, 0), (2, 1), (3, 2)]


def test_an_event_that_the_sink_refused_is_not_kept() -> None:
    def refuse(event: Event) -> None:
        raise BrokenPipeError

    store = MemoryStore(sink=refuse)
    log = store.open("a")
    with pytest.raises(BrokenPipeError):
        append_events(log, 1)
    assert (list(store.read("a")), store.size_bytes, log.last_seq) == ([], 0, 0)
    store.sink = None
    append_events(log, 1)
    assert log.last_seq == 1


def test_a_full_memory_store_refuses_and_keeps_what_it_has() -> None:
    store = MemoryStore(max_bytes=1000)
    log = store.open("a")
    events = append_events(log, 2)
    with pytest.raises(StoreError, match="full"):
        append_events(log, 1, text="x" * 1000)
    events += append_events(log, 1)
    assert list(store.read("a")) == events


def test_preloaded_lines_are_the_log() -> None:
    events = [encode(n, "user_message", {"n": n}) for n in (1, 2)]
    store = MemoryStore(sink=lambda event: pytest.fail("preloading is no appending"))
    damage = store.preload("a", [events[0].line + b"\n", b"rubbish\n", events[1].line, b'{"event":"theirs"}'])
    assert damage == Damage(bad_lines=1)
    log = store.open("a")
    assert (log.damage, log.last_seq) == (damage, 3)
    assert [(e.seq, e.event) for e in log.read(1)] == [(2, "user_message"), (3, "theirs")]


def test_preloading_a_log_in_use_is_refused() -> None:
    store = MemoryStore()
    log = store.open("a")
    with pytest.raises(StoreError):
        store.preload("a", [])
    append_events(log, 1)
    log.close()
    with pytest.raises(StoreError):
        store.preload("a", [])


def test_a_reader_cannot_change_what_the_memory_store_holds() -> None:
    store = MemoryStore()
    append_events(store.open("a"), 1)
    next(store.read("a")).data["n"] = "changed"
    assert next(store.read("a")).data["n"] == 0


def test_the_memory_lock_names_this_process() -> None:
    store = MemoryStore()
    store.open("a")
    with pytest.raises(LogLocked) as caught:
        store.open("a")
    assert caught.value.pid == os.getpid()


@pytest.fixture(params=[0o000, 0o022, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_what_we_make_is_private_whatever_the_umask(tmp_path: Path) -> None:
    store = JsonlStore(tmp_path / "one" / "two")
    store.open("a").close()
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "one", tmp_path / "one" / "two", store.path("a"))]
    assert modes == [0o700, 0o700, 0o600]
