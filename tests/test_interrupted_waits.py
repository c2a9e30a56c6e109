"""A signal's handler that raises, at any moment of a wait, costs no message and repeats none."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import athena
from athena import ChildSpec
from athena.errors import CallTimeout
from tests.helpers import TIME_UNIT
from tests.tree_fixtures import Yard, shared, start_child, yard

__all__ = ["shared", "yard"]

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
# An interrupt between the opening of a socket and the first name it has leaves it to the garbage collector.

LONG_S = 10 * TIME_UNIT
ROUNDS = 600


class Interrupted(Exception):
    """Of the class that is hardest to tell from an answer."""


class Late(TimeoutError):
    """What many handlers of SIGALRM raise."""


@pytest.fixture(params=[Interrupted, Late, KeyboardInterrupt])
def error(request: pytest.FixtureRequest) -> Iterator[type[BaseException]]:
    """SIGALRM raises it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise request.param

    before = signal.signal(signal.SIGALRM, interrupt)
    yield request.param
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def interrupted(what: Callable[[], Any], error: type[BaseException], delay_s: float) -> tuple[bool, Any]:
    """Do it with an alarm set: whether it came through, and what it gave. The alarm is over in any case."""
    try:
        outcome = []
        try:
            signal.setitimer(signal.ITIMER_REAL, delay_s)
            outcome.append(what())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except error:
        pass
    return bool(outcome), outcome[0] if outcome else None


def server(name: str) -> ChildSpec:
    return ChildSpec(name, "tests.process_servers:Scripted", restart="temporary")


def assert_usable(yard: Yard) -> None:
    me = athena.self_pid(supervisor=yard.at)
    for number in range(20):
        athena.send(me, number, supervisor=yard.at)
    assert [athena.receive(LONG_S, supervisor=yard.at) for _ in range(20)] == list(range(20))
    with pytest.raises(CallTimeout):
        athena.receive(0.02, supervisor=yard.at)
    info = yard.at.pool.call("info", {}, b"", LONG_S).json()
    assert info["processes"]["calls"] == 0


def test_interrupts_of_receive(yard: Yard, error: type[BaseException]) -> None:
    me, chance, at = athena.self_pid(supervisor=yard.at), random.Random(1), yard.at
    got: list[Any] = []
    count, sent = 0, threading.Semaphore(0)

    def send() -> None:
        for number in range(ROUNDS):
            sent.acquire()
            time.sleep(chance.random() * 0.0003)
            athena.send(me, number, supervisor=at)

    sender = threading.Thread(target=send)
    sender.start()
    while len(got) < ROUNDS:
        if len(got) == count:
            sent.release()
            count += 1
        came, message = interrupted(lambda: athena.receive(supervisor=at), error, 0.00005 + chance.random() * 0.0008)
        if came:
            got.append(message)
    sender.join()
    assert got == list(range(ROUNDS))
    assert_usable(yard)


def test_interrupts_of_the_waits_for_an_end(yard: Yard, error: type[BaseException]) -> None:
    tree, chance, at = yard.start(), random.Random(2), yard.at
    me = athena.self_pid(supervisor=at)
    for number in range(ROUNDS // 20):
        one = start_child(tree, server(f"s{number}"))
        waits: list[Any] = [make(one, supervisor=at) for make in (athena.monitor, athena.link) for _ in range(3)]
        athena.exit(one, f"end {number}", supervisor=at)
        for what in waits:
            came, told = False, None
            while not came:
                came, told = interrupted(what.wait, error, 0.00002 + chance.random() * 0.0002)
            assert told is not None, "it was lost"
            assert told.reason == f"end {number}"
            assert what.wait(0.01) is None, "it was repeated"
    assert me == athena.self_pid(supervisor=at)
    assert_usable(yard)


# --- each moment, one by one ------------------------------------------------------------------------------------------


def interrupted_at(moment: int, what: Callable[[], Any], error: type[BaseException]) -> tuple[bool, Any]:
    """Do it, interrupted at the so-manieth moment at which Python runs the handlers of signals: where a function is
    entered, and where one of C's has returned. Whether it came through, and what it gave."""
    left = moment

    def look(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_globals.get("__name__") != __name__:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise error

    outcome = []
    with contextlib.suppress(error):
        sys.setprofile(look)
        try:
            outcome.append(what())
        finally:
            sys.setprofile(None)
    return bool(outcome), outcome[0] if outcome else None


@pytest.mark.parametrize("error", [Interrupted, Late, KeyboardInterrupt])
def test_each_moment_of_receive(yard: Yard, error: type[BaseException]) -> None:
    me, at = athena.self_pid(supervisor=yard.at), yard.at
    for moment in range(5000):
        athena.send(me, moment, supervisor=at)
        came, message = interrupted_at(moment, lambda: athena.receive(supervisor=at), error)
        if not came:
            message = athena.receive(LONG_S, supervisor=at)
        assert message == moment
        if came:
            break
    assert moment > 50
    assert_usable(yard)


@pytest.mark.parametrize("error", [Interrupted, Late, KeyboardInterrupt])
@pytest.mark.parametrize("what", ["monitor", "link"])
def test_each_moment_of_the_wait_for_an_end(yard: Yard, what: str, error: type[BaseException]) -> None:
    gone = start_child(yard.start(), server("gone"))
    athena.stop(gone, supervisor=yard.at)
    for moment in range(5000):
        waits = getattr(athena, what)(gone, supervisor=yard.at)
        came, told = interrupted_at(moment, waits.wait, error)
        if not came:
            told = waits.wait(LONG_S)
        assert told is not None, f"lost at {moment}"
        assert told.reason == "noproc"
        assert waits.wait(0.01) is None, f"repeated at {moment}"
        if came:
            break
    assert moment > 50
    assert_usable(yard)


def test_an_interrupted_call_leaves_no_half_of_it_in_the_pool(yard: Yard) -> None:
    one = start_child(yard.start(), server("one"))
    for moment in range(5000):
        came, value = interrupted_at(moment, lambda: athena.call(one, ["value", 1], supervisor=yard.at), Interrupted)
        assert athena.call(one, ["value", [2]], supervisor=yard.at) == [2]
        assert not any(connection.is_cut or connection.inbox for connection in yard.at.pool._idle), "of another call"
        if came:
            break
    assert (came, value) == (True, 1)
    assert_usable(yard)
