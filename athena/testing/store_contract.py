"""What every store promises, as a suite to run over yours.

Subclass :class:`StoreContract` in a test file and say how your store is made::

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self, tmp_path):
            return MyStore(tmp_path)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from athena.errors import InvalidSessionId, LogLocked, NotFound, StoreError
from athena.events import Event, decode, encode
from athena.stores.base import Damage, DeletingStore, Log, Store
from athena.stores.blobs import BlobLog, BlobStore

STRANGE_TEXT = 'line\u2028and\u2029paragraph, \x00 \x7f \x85 "quoted" \\ \r\n\ttab, Ωλ 漢字 😀 \U0010fffd \ufeff'
ILLEGAL_IDS = ("", ".", "..", "../up", "a/b", "/etc/passwd", "a.b", "a b", "a\n", "a\x00", "é", "x" * 129)


def append_events(log: Log, count: int, **data: Any) -> list[Event]:
    """Append ``count`` events to ``log`` and return them."""
    events = [encode(log.last_seq + 1 + n, "user_message", {"n": n, **data}, turn="t1") for n in range(count)]
    for event in events:
        log.append(event)
    return events


class StoreContract:
    """The contract. ``locks = False`` for a store that cannot keep a second writer out. What it says of ``delete`` is
    skipped for a store without one."""

    locks = True

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        """An empty store; to be overridden."""
        raise NotImplementedError("a subclass makes its store here")

    def reopened(self, store: Store) -> Store:
        """``store`` as a new process would open it; override where this is another object."""
        return store

    def test_events_are_read_in_the_order_of_their_append(self, store: Store) -> None:
        log = store.open("a")
        events = append_events(log, 20)
        assert list(log.read()) == events
        assert list(store.read("a")) == events
        log.close()

    def test_events_come_back_with_their_seq_and_the_line_that_was_written(self, store: Store) -> None:
        log = store.open("a")
        events = append_events(log, 3)
        found = list(store.read("a"))
        assert [e.seq for e in found] == [1, 2, 3]
        assert [e.line for e in found] == [e.line for e in events]
        assert log.last_seq == 3
        log.close()

    def test_reading_after_a_seq_gives_what_follows_it(self, store: Store) -> None:
        log = store.open("a")
        events = append_events(log, 10)
        for after in range(12):
            assert list(store.read("a", after)) == events[after:]
            assert list(log.read(after)) == events[after:]
        log.close()

    def test_the_tail_is_the_last_events_in_order(self, store: Store) -> None:
        log = store.open("a")
        events = append_events(log, 10)
        assert store.tail("a", 3) == events[-3:]
        assert store.tail("a", 100) == events
        assert store.tail("a", 0) == []
        log.close()

    def test_sessions_are_listed_in_order_and_do_not_mix(self, store: Store) -> None:
        written = {}
        for session_id in ("b", "A_1-x", "c" * 128):
            log = store.open(session_id)
            written[session_id] = append_events(log, 2, session=session_id)
            log.close()
        assert store.list() == sorted(written)
        assert {i: list(store.read(i)) for i in store.list()} == written

    def test_an_empty_store_has_nothing(self, store: Store) -> None:
        assert store.list() == []
        assert list(store.read("nobody")) == []
        assert store.tail("nobody", 5) == []
        assert store.list() == []

    def test_a_fresh_log_is_undamaged_and_at_zero(self, store: Store) -> None:
        log = store.open("a")
        assert log.damage == Damage()
        assert log.last_seq == 0
        assert list(log.read()) == []
        log.sync()
        log.close()

    def test_everything_is_there_after_a_reopen_and_numbering_goes_on(self, store: Store) -> None:
        log = store.open("a")
        events = append_events(log, 5, text=STRANGE_TEXT)
        log.sync()
        log.close()
        again = self.reopened(store)
        log = again.open("a")
        assert log.last_seq == 5
        events += append_events(log, 5)
        assert list(again.read("a")) == events
        assert log.damage == Damage()
        log.close()

    def test_any_text_comes_back_as_it_was(self, store: Store) -> None:
        log = store.open("a")
        append_events(log, 1, text=STRANGE_TEXT, **{STRANGE_TEXT: [None, True, -1, 0.5, {}]})
        (event,) = store.read("a")
        assert event.data == {"n": 0, "text": STRANGE_TEXT, STRANGE_TEXT: [None, True, -1, 0.5, {}]}
        log.close()

    def test_a_large_event_comes_back_among_small_ones(self, store: Store) -> None:
        log = store.open("a")
        events = append_events(log, 2) + append_events(log, 2, text="é\u2028" * 400_000) + append_events(log, 2)
        assert list(store.read("a")) == events
        assert store.tail("a", 3) == events[-3:]
        assert list(store.read("a", 3)) == events[3:]
        log.close()

    def test_unknown_kinds_and_keys_are_kept(self, store: Store) -> None:
        log = store.open("a")
        line = b'{"seq":1,"event":"from_the_future","ts":"then","uuid":"u","data":{"new":1},"extra":[2]}'
        log.append(decode(line, 1))
        (event,) = store.read("a")
        assert (event.event, event.data, event.line) == ("from_the_future", {"new": 1}, line)
        log.close()

    def test_a_wrong_seq_is_refused_and_changes_nothing(self, store: Store) -> None:
        log = store.open("a")
        events = append_events(log, 2)
        for seq in (0, 1, 2, 4):
            with pytest.raises(StoreError):
                log.append(encode(seq, "user_message", {}))
        assert list(store.read("a")) == events
        log.close()

    def test_an_event_that_cannot_be_encoded_leaves_the_log_usable(self, store: Store) -> None:
        log = store.open("a")
        events = append_events(log, 1)
        for value in (object(), b"bytes", {1, 2}, "\ud800", 2**70):
            with pytest.raises(TypeError):
                log.append(encode(log.last_seq + 1, "tool_result", {"value": value}))
        events += append_events(log, 1)
        assert list(store.read("a")) == events
        log.close()

    def test_a_second_writer_is_kept_out_until_the_first_closes(self, store: Store) -> None:
        if not self.locks:
            return
        log = store.open("a")
        with pytest.raises(LogLocked) as caught:
            store.open("a")
        assert caught.value.session_id == "a"
        store.open("b").close()
        events = append_events(log, 1)
        log.close()
        log = store.open("a")
        assert list(log.read()) == events
        log.close()

    def test_closing_twice_is_safe_and_does_not_free_anothers_lock(self, store: Store) -> None:
        first = store.open("a")
        first.close()
        second = store.open("a")
        first.close()
        if self.locks:
            with pytest.raises(LogLocked):
                store.open("a")
        second.close()

    def test_a_closed_log_takes_nothing(self, store: Store) -> None:
        log = store.open("a")
        log.close()
        with pytest.raises(StoreError):
            append_events(log, 1)
        assert list(store.read("a")) == []

    def test_a_deleted_log_is_gone_and_the_others_stay(self, store: Store) -> None:
        deleting = _deleting(store)
        events = {}
        for session_id in ("a", "b", "ab"):
            log = store.open(session_id)
            events[session_id] = append_events(log, 3)
            log.close()
        assert deleting.delete("a")
        assert store.list() == ["ab", "b"]
        assert (list(store.read("a")), store.tail("a", 5)) == ([], [])
        assert {i: list(store.read(i)) for i in ("ab", "b")} == {i: events[i] for i in ("ab", "b")}
        log = store.open("a")
        assert (log.last_seq, log.damage) == (0, Damage())
        assert append_events(log, 1) == list(log.read())
        log.close()

    def test_deleting_what_is_not_there_says_so(self, store: Store) -> None:
        deleting = _deleting(store)
        assert not deleting.delete("nobody")
        assert store.list() == []
        with pytest.raises(InvalidSessionId):
            deleting.delete("../up")

    def test_a_log_in_use_is_not_deleted(self, store: Store) -> None:
        deleting = _deleting(store)
        if not self.locks:
            return
        log = store.open("a")
        events = append_events(log, 2)
        with pytest.raises(LogLocked):
            deleting.delete("a")
        events += append_events(log, 1)
        assert list(store.read("a")) == events
        log.close()
        assert deleting.delete("a")

    def test_a_large_value_out_of_line_comes_back_by_its_reference(self, store: Store) -> None:
        log = store.open("a")
        if not (isinstance(store, BlobStore) and isinstance(log, BlobLog)):
            log.close()
            pytest.skip("this store keeps nothing out of line")
        values = [b"", b"x" * 100_000, STRANGE_TEXT.encode()]
        refs = [log.put_blob(value, durable=durable) for value in values for durable in (False, True)]
        assert len(set(refs)) == len(values)  # the same bytes are one blob
        append_events(log, 1)
        log.close()
        again = self.reopened(store)
        assert isinstance(again, BlobStore)
        assert [again.read_blob(ref) for ref in refs[::2]] == values
        with pytest.raises(NotFound):
            again.read_blob(refs[0][:-1] + ("0" if refs[0][-1] != "0" else "1"))
        with pytest.raises(StoreError):
            log.put_blob(b"x", durable=False)
        _deleting(store).delete("a")
        with pytest.raises(NotFound):
            again.read_blob(refs[0])

    @pytest.mark.parametrize("session_id", ILLEGAL_IDS)
    def test_an_illegal_session_id_is_refused_everywhere(self, store: Store, session_id: str) -> None:
        with pytest.raises(InvalidSessionId):
            store.open(session_id)
        with pytest.raises(InvalidSessionId):
            list(store.read(session_id))
        with pytest.raises(InvalidSessionId):
            store.tail(session_id, 1)
        assert store.list() == []


def _deleting(store: Store) -> DeletingStore:
    if not isinstance(store, DeletingStore):
        pytest.skip("this store has no delete")
    return store
