"""What a program is told reaches it once, whatever comes between: the mailbox against a model, then real processes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import athena
from athena import ChildSpec, Exit, Pid, process_calls
from athena.client import ConnectionLost
from athena.errors import CallTimeout, InvalidOption
from athena.mailboxes import Seen
from supervisor import mailbox as product
from supervisor.mailbox import Mailbox, Taker
from tests.helpers import TIME_UNIT
from tests.tree_fixtures import Yard, shared, start_child, yard

__all__ = ["shared", "yard"]

LONG_S = 10 * TIME_UNIT


# --- the mailbox against a model --------------------------------------------------------------------------------------

Key = tuple[int, int]

REFS_MAX = 8
REFS = st.integers(1, REFS_MAX)
SERIALS = st.integers(1, 2)
CHANNELS = st.integers(0, 2)
MESSAGES_MAX = 6
INBOX_BYTES = 1000


class Clock:
    """An event loop of which only the timers are real, and these go off when the test says so."""

    def __init__(self) -> None:
        self.timers: list[mock.Mock] = []

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> mock.Mock:
        timer = mock.Mock(fire=lambda: callback(*args), taker=args[0])
        timer.cancel = lambda: self.timers.remove(timer) if timer in self.timers else None
        self.timers.append(timer)
        return timer


class Wire:
    """A connection that notes what goes over it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.answers: list[tuple[Key, Any]] = []

    def send(self, header: dict[str, Any], body: bytes, *, control: bool) -> None:
        self.answers.append(((self.number, header["id"]), json.loads(body)))


class MailboxMachine(RuleBasedStateMachine):
    """The model: messages in the order of arrival, waits in the order of asking, and what is on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        asyncio_here = SimpleNamespace(get_running_loop=lambda: self.clock)
        self.patch = mock.patch.multiple(
            product, asyncio=asyncio_here, MESSAGES_MAX=MESSAGES_MAX, INBOX_BYTES=INBOX_BYTES
        )
        self.patch.start()
        self.box = Mailbox("here")
        self.wires = [Wire(number) for number in range(3)]
        self.requests = 0
        self.sent = 0
        self.last_ref = 0
        self.unread: list[int] = []
        self.sizes: dict[int, int] = {}
        self.refs: dict[int, str | None] = {}
        """Open ones, with what was told."""
        self.links: dict[int, list[int]] = {}
        self.waits: list[tuple[Key, int | None]] = []
        self.handed: dict[Key, tuple[int | None, Any]] = {}
        self.expected: list[tuple[Key, Any]] = []
        self.confirmed: list[Any] = []

    # --- the model

    def serve(self) -> None:
        for wait in list(self.waits):
            key, ref = wait
            what: Any
            if ref is None and self.unread:
                what = self.unread.pop(0)
            elif ref is not None and self.refs.get(ref) is not None:
                what, self.refs[ref] = self.refs[ref], None
            else:
                continue
            self.waits.remove(wait)
            self.handed[key] = ref, what
            self.expected.append((key, what))

    def close_ref(self, ref: int) -> None:
        self.refs.pop(ref, None)
        for wait in [wait for wait in self.waits if wait[1] == ref]:
            self.waits.remove(wait)
            self.expected.append((wait[0], "gone"))

    def unread_bytes(self) -> int:
        on_the_way = [what for ref, what in self.handed.values() if ref is None]
        return sum(self.sizes[number] for number in (*self.unread, *on_the_way))

    def drop(self, keys: list[Key]) -> None:
        self.waits = [wait for wait in self.waits if wait[0] not in keys]
        for key in keys:
            ref, what = self.handed.pop(key, (None, None))
            if ref is None and what is not None:
                self.unread = sorted([*self.unread, what])
            elif ref in self.refs:
                self.refs[ref] = what
        self.serve()

    # --- what happens

    @rule(size=st.sampled_from([1, 1, 1, 300]), kind=st.sampled_from(["message", "exit", "link"]))
    def put_plain(self, size: int, kind: str) -> None:
        has_room = len(self.unread) < MESSAGES_MAX and self.unread_bytes() < INBOX_BYTES
        self.sent += 1
        told: dict[str, Any] = {"message": {"n": self.sent, "text": "x" * size}}
        if kind != "message":
            reason = told["message"]
            told = {"exit": {"from": {"serial": 99}, "reason": reason, "over_link": kind == "link"}}
        assert self.box.put(told) == (has_room or kind == "link")
        if not has_room and kind != "link":
            self.sent -= 1
            return
        self.sizes[self.sent] = len(json.dumps({**told, "number": self.sent, "supervisor": "here"}).replace(" ", ""))
        self.unread.append(self.sent)
        self.serve()

    @precondition(lambda self: self.last_ref < REFS_MAX)
    @rule(serial=st.none() | SERIALS)
    def expect(self, serial: int | None) -> None:
        self.last_ref = ref = self.last_ref + 1
        self.box.expect(ref, serial)
        self.refs[ref] = None
        if serial is not None:
            self.links.setdefault(serial, []).append(ref)

    @rule(ref=REFS)
    def down(self, ref: int) -> None:
        if self.refs.get(ref) is not None or any(ref in refs for refs in self.links.values()):
            return  # each tells once
        if any(one == ref for one, _ in self.handed.values()):
            return
        assert self.box.put({"down": {"ref": ref}})
        if ref in self.refs:
            self.refs[ref] = f"down {ref}"
            self.serve()

    @rule(serial=SERIALS)
    def linked_ends(self, serial: int) -> None:
        if serial not in self.links:
            return
        assert self.box.put({"exit": {"from": {"serial": serial}, "reason": "end", "over_link": True}})
        for ref in self.links.pop(serial):
            if ref in self.refs:
                self.refs[ref] = f"exit {serial}"
        self.serve()

    @rule(channel=CHANNELS, ref=st.none() | REFS, timeout_s=st.none() | st.just(1.0))
    def take(self, channel: int, ref: int | None, timeout_s: float | None) -> None:
        self.requests += 1
        key = (channel, self.requests)
        self.box.take(Taker(self.wires[channel], self.requests, ref), timeout_s)  # type: ignore[arg-type]
        if ref is not None and ref not in self.refs:
            self.expected.append((key, "gone"))
            return
        self.waits.append((key, ref))
        self.serve()

    @precondition(lambda self: self.handed)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.handed)))
        for _ in range(2):  # the second is nothing
            self.box.confirm(self.wires[key[0]], key[1])  # type: ignore[arg-type]
        ref, what = self.handed.pop(key)
        self.confirmed.append(what)
        if ref is not None:
            self.close_ref(ref)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), channel=CHANNELS)
    def give_up_one(self, data: st.DataObject, channel: int) -> None:
        request = data.draw(st.integers(1, self.requests))
        self.box.give_up(self.wires[channel], request)  # type: ignore[arg-type]
        self.drop([(channel, request)])

    @rule(channel=CHANNELS)
    def cut(self, channel: int) -> None:
        self.box.give_up(self.wires[channel])  # type: ignore[arg-type]
        self.drop([key for key in (*self.handed, *(key for key, _ in self.waits)) if key[0] == channel])

    @precondition(lambda self: self.clock.timers)
    @rule(data=st.data())
    def time_is_up(self, data: st.DataObject) -> None:
        timer = data.draw(st.sampled_from(self.clock.timers))
        self.clock.timers.remove(timer)
        key = (timer.taker.channel.number, timer.taker.request_id)
        timer.fire()
        self.waits = [wait for wait in self.waits if wait[0] != key]
        self.expected.append((key, "timeout"))

    @rule(ref=REFS)
    def forget(self, ref: int) -> None:
        self.box.forget(ref)
        self.close_ref(ref)

    @rule(serial=SERIALS)
    def unlink(self, serial: int) -> None:
        self.box.forget_links(serial)
        for ref in self.links.pop(serial, ()):
            self.close_ref(ref)

    # --- what must hold

    @invariant()
    def answers_are_as_expected(self) -> None:
        answers = [(key, shown(value)) for wire in self.wires for key, value in wire.answers]
        assert Counter(answers) == Counter(self.expected)
        assert max(Counter(key for key, _ in answers).values(), default=0) <= 1, "a wait was answered twice"
        waiting = {key for key, _ in self.waits}
        assert {(timer.taker.channel.number, timer.taker.request_id) for timer in self.clock.timers} <= waiting

    def teardown(self) -> None:
        """Whatever happened, who asks for the rest gets all of it, in order, and nothing is remembered then."""
        try:
            for channel in range(3):
                self.cut(channel)
            rest = list(self.unread)
            before = len(self.confirmed)
            while self.unread or any(self.refs.values()):
                ref = None if self.unread else next(ref for ref, told in self.refs.items() if told is not None)
                self.take(0, ref, None)
                self.answers_are_as_expected()
                key = next(iter(self.handed))
                self.box.confirm(self.wires[0], key[1])  # type: ignore[arg-type]
                one, what = self.handed.pop(key)
                self.confirmed.append(what)
                if one is not None:
                    self.close_ref(one)
            plain = [what for what in self.confirmed if isinstance(what, int)]
            assert self.confirmed[before : before + len(rest)] == rest
            assert sorted(plain) == list(range(1, self.sent + 1)), "each message reached one, once"
            for ref in list(self.refs):
                self.forget(ref)
            for serial in list(self.links):
                self.unlink(serial)
            tables = {
                name: value for name, value in vars(self.box).items() if name not in ("_supervisor_id", "_number")
            }
            assert not any(tables.values()), f"{tables} are left"
            self.box.close()
        finally:
            self.patch.stop()


def shown(value: dict[str, Any]) -> Any:
    """An answer in the model's words."""
    match value:
        case {"gone": True}:
            return "gone"
        case {"timeout": True}:
            return "timeout"
        case {"message": {"n": number}, "number": same, "supervisor": "here"} if number == same:
            return number
        case {"exit": {"reason": {"n": number}}, "number": same} if number == same:
            return number
        case {"down": {"ref": ref}}:
            return f"down {ref}"
        case {"exit": {"from": {"serial": serial}}}:
            return f"exit {serial}"
    raise AssertionError(value)


MailboxMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestMailbox = MailboxMachine.TestCase


def test_a_closed_mailbox_stops_its_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(product, "asyncio", SimpleNamespace(get_running_loop=lambda: clock))
    box = Mailbox("here")
    for request in range(3):
        box.take(Taker(Wire(0), request, None), 1.0)  # type: ignore[arg-type]
    assert len(clock.timers) == 3
    box.close()
    assert clock.timers == []


def test_a_message_put_back_is_before_what_came_later() -> None:
    """Also if those who had them give up in another order than they got them."""
    box, wire = Mailbox("here"), Wire(0)
    for request in (1, 2, 3):
        box.take(Taker(wire, request, None), None)  # type: ignore[arg-type]
    for number in range(1, 5):
        box.put({"message": number})
    for request in (2, 1, 3):
        box.give_up(wire, request)  # type: ignore[arg-type]
    for request in (4, 5, 6, 7):
        box.take(Taker(wire, request, None), None)  # type: ignore[arg-type]
    assert [value["message"] for _, value in wire.answers[3:]] == [1, 2, 3, 4]


# --- the client's side ------------------------------------------------------------------------------------------------


def test_a_wait_outlives_cuts_that_are_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(process_calls, "time", SimpleNamespace(monotonic=lambda: now))
    waiting = process_calls.Waiting(None, None, "receive")
    for now in (100.0, 200.0, 300.0):  # each wait lasts that long
        waiting.header()
        now += 50
        assert not waiting.is_lost(ConnectionLost("cut"))
    lost = []
    for _ in range(30):  # who hangs up at once, again and again, is lost after a while
        waiting.header()
        now += 0.05
        lost.append(waiting.is_lost(ConnectionLost("refused")))
    assert (lost[0], lost[-1]) == (False, True)
    assert waiting.is_lost(athena.errors.NotRunning("nobody listens"))


def test_a_message_is_claimed_once() -> None:
    seen, one, other = Seen(), object(), object()
    keys = [("a", 1), ("b", 1), ("a", 1), ("a", 2)]
    assert [seen.claim(key, taker) for key, taker in zip(keys, (one, one, other, other), strict=True)] == [
        True, True, False, True,
    ]  # fmt: skip
    assert seen.claim(("a", 1), one), "who has it has it"
    seen.clear()
    assert seen.claim(("a", 1), other)


# --- real processes ---------------------------------------------------------------------------------------------------


def server(name: str, /, *orders: Any, **fields: Any) -> ChildSpec:
    return ChildSpec(name, "tests.process_servers:Scripted", args=list(orders), **{"restart": "temporary", **fields})


def me(yard: Yard) -> Pid:
    return athena.self_pid(supervisor=yard.at)


def send_all(yard: Yard, count: int, pause_s: Callable[[], float]) -> threading.Thread:
    """Send this program the numbers below ``count``, from a thread."""
    target = me(yard)

    def run() -> None:
        for number in range(count):
            time.sleep(pause_s())
            athena.send(target, number, supervisor=yard.at)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def assert_nothing_more(yard: Yard) -> None:
    with pytest.raises(CallTimeout):
        athena.receive(0.02, supervisor=yard.at)


@pytest.mark.slow
@pytest.mark.parametrize("then", ["loop", "blocking"])
def test_what_arrived_when_its_loop_ended_is_there_for_the_next(yard: Yard, then: str) -> None:
    target = me(yard)

    async def one_that_ends(number: int) -> None:
        waiting = asyncio.create_task(athena.areceive(supervisor=yard.at))
        while not (await athena.ais_alive(target, supervisor=yard.at) and info(yard)["mailboxes"]):
            pass
        await athena.ais_alive(target, supervisor=yard.at)  # behind the wait on its connection
        athena.send(target, number, supervisor=yard.at)  # which blocks the loop until the supervisor has handed it over
        assert not waiting.done()

    for number in range(20):
        asyncio.run(one_that_ends(number))
        if then == "loop":
            assert asyncio.run(athena.areceive(LONG_S, supervisor=yard.at)) == number
        else:
            assert athena.receive(LONG_S, supervisor=yard.at) == number
    assert_nothing_more(yard)


def info(yard: Yard) -> dict[str, Any]:
    found: dict[str, Any] = yard.at.pool.call("info", {}, b"", LONG_S).json()["processes"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("is_told_first", [True, False])
def test_what_was_handed_to_a_connection_that_ends_is_there_for_the_next(yard: Yard, is_told_first: bool) -> None:
    for number in range(50):
        connection = yard.at.pool.open(LONG_S)
        _, raw = connection.protocol.request("take", {"ref": None, "timeout": None}, b"")
        if is_told_first:  # then the end may come right behind the question
            athena.send(me(yard), number, supervisor=yard.at)
        connection._send(raw, LONG_S)
        if not is_told_first:
            athena.send(me(yard), number, supervisor=yard.at)
        connection.close()
        assert athena.receive(LONG_S, supervisor=yard.at) == number
    assert_nothing_more(yard)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_cancelled_waits_lose_and_repeat_nothing(yard: Yard, how: str) -> None:
    count, chance = 400, random.Random(how)
    sender = send_all(yard, count, lambda: chance.random() * 0.001)

    async def receive_all() -> tuple[list[Any], int]:
        got: list[Any] = []
        cancelled = 0
        while len(got) < count:
            delay_s = chance.random() * 0.003
            if how == "timeout":
                try:
                    async with asyncio.timeout(delay_s):
                        got.append(await athena.areceive(LONG_S, supervisor=yard.at))
                except TimeoutError:
                    cancelled += 1
                continue
            wait = asyncio.create_task(athena.areceive(LONG_S, supervisor=yard.at))
            await asyncio.sleep(delay_s)
            wait.cancel()
            try:
                got.append(await wait)
            except asyncio.CancelledError:
                cancelled += 1
        return got, cancelled

    got, cancelled = asyncio.run(receive_all())
    sender.join()
    assert got == list(range(count))
    assert cancelled > 10, "the waits were to be cancelled"
    assert_nothing_more(yard)


@pytest.mark.slow
async def test_cancelled_waits_for_the_end_of_a_process_give_it_later(yard: Yard) -> None:
    tree, chance = yard.start(), random.Random(1)
    for number in range(15):
        one = start_child(tree, server(f"s{number}"))
        monitor, link = await athena.amonitor(one, supervisor=yard.at), await athena.alink(one, supervisor=yard.at)
        ending = asyncio.create_task(athena.astop(one, "end", supervisor=yard.at))
        found: list[Any] = []
        for waits in (monitor, link):
            told = None
            while told is None:
                try:
                    async with asyncio.timeout(chance.random() * 0.002):
                        told = await waits.wait()
                        assert told is not None, "it was lost"
                except TimeoutError:
                    continue
            found.append(told)
        await ending
        assert [one.reason for one in found] == ["end", "end"]
        assert [await monitor.wait(0.01), await link.wait(0.01)] == [None, None]


@pytest.mark.slow
def test_of_many_readers_each_message_reaches_one(yard: Yard) -> None:
    threads, coroutines, count = 6, 40, 1000
    got: list[list[int]] = [[] for _ in range(threads + coroutines)]
    target = me(yard)

    def read(number: int) -> None:
        while (message := athena.receive(LONG_S, supervisor=yard.at)) is not None:
            got[number].append(message)

    async def aread(number: int) -> None:
        while (message := await athena.areceive(LONG_S, supervisor=yard.at)) is not None:
            got[number].append(message)

    async def read_together() -> None:
        await asyncio.gather(*(aread(threads + number) for number in range(coroutines)))

    readers = [threading.Thread(target=read, args=[number]) for number in range(threads)]
    readers.append(threading.Thread(target=lambda: asyncio.run(read_together())))
    for reader in readers:
        reader.start()
    for number in range(count):
        athena.send(target, number, supervisor=yard.at)
    for _ in got:
        athena.send(target, None, supervisor=yard.at)
    for reader in readers:
        reader.join()
    assert sorted(number for one in got for number in one) == list(range(count))
    assert all(one == sorted(one) for one in got), "each reader gets them in order"
    assert sum(1 for one in got if one) > 5, "they share them"
    assert_nothing_more(yard)


@pytest.mark.slow
def test_an_explicit_exit_signal_of_a_linked_process_is_no_end_of_the_link(yard: Yard) -> None:
    tree = yard.start()
    one = start_child(tree, server("one"))
    link = athena.link(one, supervisor=yard.at)
    for reason in ("just so", "normal", "kill"):
        athena.call(one, ["exit signal", me(yard).to_map(), reason], supervisor=yard.at)
        assert athena.receive(LONG_S, supervisor=yard.at) == Exit(one, reason)
        with pytest.raises(CallTimeout):
            link.wait(0.02)
    athena.stop(one, "the end", supervisor=yard.at)
    assert link.wait(LONG_S) == Exit(one, "the end")
    assert link.wait(0.01) is None
    assert_nothing_more(yard)


@pytest.mark.slow
def test_a_fork_has_messages_of_its_own_and_not_its_parents(yard: Yard) -> None:
    tree = yard.start()
    one = start_child(tree, server("one"))
    monitor, link = athena.monitor(one, supervisor=yard.at), athena.link(one, supervisor=yard.at)
    for number in range(3):
        athena.send(me(yard), number, supervisor=yard.at)
        assert athena.receive(LONG_S, supervisor=yard.at) == number
    athena.stop(one, "gone", supervisor=yard.at)

    def in_fork() -> list[Any]:
        refused = []
        for what in (monitor.wait, monitor.demonitor, link.wait, link.unlink):
            try:
                refused.append(repr(what()))
            except InvalidOption as error:
                refused.append(error.message)
        for number in range(3):  # numbered as the parent's were
            athena.send(me(yard), ["own", number], supervisor=yard.at)
        return [refused, [athena.receive(LONG_S, supervisor=yard.at) for _ in range(3)]]

    refused, own = forked(in_fork)
    expected = f"of process {os.getpid()}, and this is a fork of it: make one here"
    assert [expected in text for text in refused] == [True] * 4, refused
    assert own == [["own", 0], ["own", 1], ["own", 2]]
    down = monitor.wait(LONG_S)
    assert down is not None
    assert (down.reason, link.wait(LONG_S)) == ("gone", Exit(one, "gone"))
    assert_nothing_more(yard)


def forked(what: Callable[[], Any]) -> Any:
    """What a fork of this process makes of it."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(int(6 * LONG_S))
            os.write(write_fd, json.dumps(what()).encode())
        except BaseException as error:
            os.write(write_fd, json.dumps(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        raw = file.read()
    os.waitpid(child, 0)
    return json.loads(raw)


@pytest.mark.slow
def test_ten_thousand_messages_leave_nothing(yard: Yard, capsys: pytest.CaptureFixture[str]) -> None:
    import psutil

    target = me(yard)
    supervisor = psutil.Process(int(yard.at.pool.call("info", {}, b"", LONG_S).json()["pid"]))

    def rounds(count: int) -> float:
        began = time.perf_counter()
        for number in range(count):
            athena.send(target, number, supervisor=yard.at)
            assert athena.receive(LONG_S, supervisor=yard.at) == number
        return count / (time.perf_counter() - began)

    rounds(500)  # what is made once is made
    before, sizes = supervisor.memory_info().rss, info(yard)
    rate = rounds(10_000)
    grown = supervisor.memory_info().rss - before
    with capsys.disabled():
        print(f"\n{rate:.0f} messages/s through send and receive, {grown} bytes grown")
    assert info(yard) == sizes
    assert grown < 1024 * 1024
