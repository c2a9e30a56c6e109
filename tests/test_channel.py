"""The channel over real pipes and sockets, the greeting, and what a broken peer costs: its own connection."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import inspect
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from athena.channel import TRANSPORT_HIGH_BYTES, Channel, open_pipes, open_unix
from athena.client import AsyncConnection, ConnectionLost, Protocol, SyncConnection
from athena.config import PRODUCT
from athena.errors import AthenaError, NotRunning, ProtocolError, Refused, VersionMismatch, to_wire
from athena.wire import PROTOCOL, Frame, encode
from supervisor.calls import reply
from supervisor.server import Connection, Server
from tests.helpers import TIME_UNIT

SMALL_PIPE = 4096
BIG = 8 * 1024 * 1024


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test on each loop that Athena runs on."""

    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**arguments))

    functools.update_wrapper(run, test)
    del run.__dict__["__wrapped__"]  # a test runner would take the asynchronous one
    new_loop = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__dict__["__signature__"] = inspect.Signature([new_loop, *inspect.signature(test).parameters.values()])
    marked: Callable[..., None] = pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)(run)
    return marked


class End:
    """One end of a connection, with everything that it was told."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.ends: list[BaseException | None] = []
        self.changed = asyncio.Event()
        self.channel: Channel

    def on_frame(self, frame: Frame) -> None:
        if frame.kind == "fail":
            raise RuntimeError("the owner's mistake")
        self.frames.append(frame)
        self.changed.set()

    def on_close(self, error: BaseException | None) -> None:
        self.ends.append(error)
        self.changed.set()

    async def wait(self, predicate: Callable[[], bool]) -> None:
        """Until the predicate holds, which something received must make true."""
        async with asyncio.timeout(20 * TIME_UNIT):
            while not predicate():
                self.changed.clear()
                await self.changed.wait()

    async def wait_frames(self, count: int) -> list[Frame]:
        """Until so many frames have come."""
        await self.wait(lambda: len(self.frames) >= count)
        return self.frames


@asynccontextmanager
async def pipes(size: int | None = None) -> AsyncIterator[tuple[End, End]]:
    """Two ends over two pipes, ``size`` bytes each."""
    there, back = os.pipe(), os.pipe()
    if size is not None:
        for pipe in (there, back):
            assert fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, size) == size
    one, other = End(), End()
    one.channel = await open_pipes(back[0], there[1], one.on_frame, one.on_close)
    other.channel = await open_pipes(there[0], back[1], other.on_frame, other.on_close)
    try:
        yield one, other
    finally:
        one.channel.abort(None)
        other.channel.abort(None)
        await asyncio.sleep(0)  # the transports close their descriptors in the next iteration


# --- pipes of any size ------------------------------------------------------------------------------------------------


@on_both_loops
async def test_large_bodies_pass_both_ways_at_once_through_the_smallest_pipes() -> None:
    async with pipes(SMALL_PIPE) as (one, other):
        body = os.urandom(BIG)
        one.channel.send({"kind": "a"}, body)
        other.channel.send({"kind": "b"}, body)
        assert (await other.wait_frames(1))[0].body == body
        assert (await one.wait_frames(1))[0].body == body


@on_both_loops
async def test_control_overtakes_a_large_body_in_the_smallest_pipe() -> None:
    async with pipes(SMALL_PIPE) as (one, other):
        one.channel.send({"kind": "data"}, bytes(BIG))
        one.channel.send({"kind": "reply"}, b"", control=True)
        frames = await other.wait_frames(2)
        assert [frame.kind for frame in frames] == ["reply", "data"]


@on_both_loops
async def test_many_frames_keep_their_order_in_the_smallest_pipe() -> None:
    async with pipes(SMALL_PIPE) as (one, other):
        for n in range(2000):
            one.channel.send({"kind": "event", "n": n}, bytes(n % 300))
        frames = await other.wait_frames(2000)
        assert [frame.header["n"] for frame in frames] == list(range(2000))


@pytest.mark.parametrize("size", [SMALL_PIPE, None])
@on_both_loops
async def test_what_is_sent_soon_keeps_its_place(size: int | None) -> None:
    async with pipes(size) as (one, other):
        for n in range(0, 300, 3):
            one.channel.send_soon({"kind": "delta", "n": n}, bytes(n))
            one.channel.send_soon({"kind": "delta", "n": n + 1}, bytes(n))
            one.channel.send({"kind": "event", "n": n + 2}, bytes(n))
        one.channel.send_soon({"kind": "delta", "n": 300}, b"")
        frames = await other.wait_frames(301)
        assert [frame.header["n"] for frame in frames] == list(range(301))


@pytest.mark.parametrize("is_flushed", [True, False])
@on_both_loops
async def test_what_is_sent_soon_goes_out_before_the_end(is_flushed: bool) -> None:
    async with pipes() as (one, other):
        one.channel.send_soon({"kind": "delta"}, b"last words")
        if is_flushed:
            await one.channel.flushed()
            one.channel.abort(None)
        else:
            one.channel.close()
        await other.wait(lambda: bool(other.ends))
        assert [frame.body for frame in other.frames] == [b"last words"]


@pytest.mark.parametrize("size", [SMALL_PIPE, None])
@on_both_loops
async def test_flushed_means_that_the_kernel_has_every_byte(size: int | None) -> None:
    async with pipes(size) as (one, other):
        for n in range(50):
            one.channel.send({"kind": "event", "n": n}, bytes(10_000))
        async with asyncio.timeout(20 * TIME_UNIT):
            await one.channel.flushed()
        one.channel.abort(None)  # as a kill would: what the kernel has still arrives
        await other.wait(lambda: bool(other.ends))
        assert [frame.header["n"] for frame in other.frames] == list(range(50))
        assert other.ends == [None]


@on_both_loops
async def test_flushed_ends_when_the_reader_is_gone() -> None:
    async with pipes(SMALL_PIPE) as (one, other):
        other.channel.pause_reading()
        one.channel.send({"kind": "event"}, bytes(BIG))
        waiting = asyncio.ensure_future(one.channel.flushed())
        drained = asyncio.ensure_future(one.channel.drained())
        await asyncio.sleep(0)
        other.channel.abort(None)
        async with asyncio.timeout(20 * TIME_UNIT):
            await asyncio.gather(waiting, drained)


@on_both_loops
async def test_drained_waits_for_its_bound_and_counts_only_what_the_transport_has_not() -> None:
    async with pipes(SMALL_PIPE) as (one, other):
        other.channel.pause_reading()
        for _ in range(100):
            one.channel.send({"kind": "event"}, bytes(10_000))
        assert one.channel.queued_bytes > 1_000_000 - 2 * TRANSPORT_HIGH_BYTES - SMALL_PIPE
        waiting = asyncio.ensure_future(one.channel.drained(500_000))
        await asyncio.sleep(0)
        assert not waiting.done()
        other.channel.resume_reading()
        async with asyncio.timeout(20 * TIME_UNIT):
            await waiting
        assert one.channel.queued_bytes < 500_000
        await other.wait_frames(100)


@on_both_loops
async def test_dropped_data_leaves_whole_frames_and_all_control() -> None:
    async with pipes(SMALL_PIPE) as (one, other):
        for n in range(100):
            one.channel.send({"kind": "event", "n": n}, bytes(10_000))
            one.channel.send({"kind": "reply", "n": n}, b"", control=True)
        one.channel.drop_data()
        one.channel.send({"kind": "last"})
        await other.wait(lambda: bool(other.frames) and other.frames[-1].kind == "last")
        replies = [frame.header["n"] for frame in other.frames if frame.kind == "reply"]
        events = [frame.header["n"] for frame in other.frames if frame.kind == "event"]
        assert replies == list(range(100))
        assert events == list(range(len(events)))


@on_both_loops
async def test_the_last_words_of_a_writer_that_is_gone_are_still_read() -> None:
    async with pipes() as (one, other):
        other.channel.send({"kind": "exiting"}, b"why")
        async with asyncio.timeout(20 * TIME_UNIT):
            await other.channel.flushed()
        other.channel.abort(None)
        one.channel.send({"kind": "request"}, bytes(100_000))  # EPIPE, which must not hide what is in the other pipe
        await one.wait(lambda: bool(one.ends))
        assert [(frame.kind, frame.body) for frame in one.frames] == [("exiting", b"why")]
        assert len(one.ends) == 1


# --- ends -------------------------------------------------------------------------------------------------------------


@on_both_loops
async def test_an_end_between_frames_is_none_and_one_inside_a_frame_is_an_error() -> None:
    for raw, expected in (
        (encode({"kind": "x"}, b"abc"), type(None)),
        (encode({"kind": "x"}, b"abc")[:-1], ProtocolError),
    ):
        there, back = os.pipe(), os.pipe()
        end = End()
        end.channel = await open_pipes(there[0], back[1], end.on_frame, end.on_close)
        os.write(there[1], raw)
        os.close(there[1])
        await end.wait(partial(bool, end.ends))
        assert [type(error) for error in end.ends] == [expected]
        end.channel.abort(None)
        end.channel.send({"kind": "late"})
        assert len(end.ends) == 1
        os.close(back[0])
        await asyncio.sleep(0)


@on_both_loops
async def test_an_owner_that_fails_ends_its_own_channel_with_the_error() -> None:
    async with pipes() as (one, other):
        one.channel.send({"kind": "fail"})
        one.channel.send({"kind": "after"})
        await other.wait(lambda: bool(other.ends))
        assert [str(error) for error in other.ends] == ["the owner's mistake"]
        assert other.frames == []


@on_both_loops
async def test_a_polite_close_still_writes_what_is_queued() -> None:
    async with pipes() as (one, other):
        for n in range(100):
            one.channel.send({"kind": "event", "n": n}, bytes(10_000))
        one.channel.close()
        await other.wait(lambda: bool(other.ends))
        assert [frame.header["n"] for frame in other.frames] == list(range(100))
        assert one.ends == [None]


# --- the server -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Server]:
    """A server that echoes the body of every request."""

    def echo(connection: Connection, frame: Frame) -> None:
        if frame.header.get("op") == "refuse":
            raise NotRunning("no")
        reply(connection.channel, frame.header["id"], frame.body)

    server = Server(path, supervisor_id="s", mode="embedded", dispatch=echo, on_closed=lambda _: None)
    await server.start()
    try:
        yield server
    finally:
        server.close()
        await asyncio.sleep(0)


class Aborted(asyncio.Transport):
    """A transport of which it is asked whether it was aborted."""

    was_aborted = False

    def abort(self) -> None:
        self.was_aborted = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


async def test_a_connection_that_was_accepted_just_before_the_server_closed_is_closed_too(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as server:
        protocol = server._connected()  # accepted: it is told of its connection in a later turn of the loop
        server.close()
        transport = Aborted()
        protocol.connection_made(transport)
        assert transport.was_aborted
        assert server.connections == set()


@on_both_loops
async def test_a_broken_peer_closes_its_own_connection_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "s"
    hello = Protocol.greeting()
    async with serving(path) as server:
        good = await AsyncConnection.open(path)
        for bad in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, hello + b"\xff" * 64, hello + encode({"kind": "event"}),
                    encode({"kind": "request", "id": 1}), hello[:-1]):  # fmt: skip
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(bad)
            if bad == hello[:-1]:
                writer.write_eof()
            async with asyncio.timeout(20 * TIME_UNIT):
                await reader.read()  # to its end: the server hung up
            writer.close()
            await writer.wait_closed()
            assert (await good.call("echo", {}, b"1", 20 * TIME_UNIT)).body == b"1"
        assert len(server.connections) == 1
        good.close()


@on_both_loops
async def test_a_silent_peer_and_one_that_never_reads_hold_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(path):
        silent = await asyncio.open_unix_connection(str(path))
        deaf = await open_unix(path, lambda _: None, lambda _: None)
        deaf.pause_reading()
        deaf.send({"kind": "hello", "protocol": PROTOCOL, "product": PRODUCT})
        deaf.send({"kind": "request", "id": 1, "op": "echo"}, bytes(BIG))
        good = await AsyncConnection.open(path)
        body = os.urandom(BIG)
        assert (await good.call("echo", {}, body, 20 * TIME_UNIT)).body == body
        with pytest.raises(NotRunning, match="no"):
            await good.call("refuse", {}, b"", 20 * TIME_UNIT)
        good.close()
        deaf.abort(None)
        silent[1].close()
        await silent[1].wait_closed()


@on_both_loops
async def test_a_client_of_another_version_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    async with serving(path):
        for name, value in (("PRODUCT", "athena/99"), ("PROTOCOL", 99)):
            with monkeypatch.context() as patch:
                patch.setattr(f"athena.client.{name}", value)
                with pytest.raises(VersionMismatch, match=str(value)) as caught:
                    await AsyncConnection.open(path)
                assert list(caught.value.ours) == [PROTOCOL, PRODUCT]
                with pytest.raises(VersionMismatch, match=str(value)):
                    await asyncio.to_thread(SyncConnection, path)
        (await AsyncConnection.open(path)).close()


# --- what a client may meet at a socket -------------------------------------------------------------------------------


@contextmanager
def answering(path: Path, answer: bytes, *, hang_up: bool = True) -> Iterator[None]:
    """A listener that sends ``answer`` to everybody."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    held: list[socket.socket] = []

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            connection.sendall(answer)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10 * TIME_UNIT)
        for connection in held:
            connection.close()


def refused() -> bytes:
    """What a supervisor of another version says."""
    error = VersionMismatch("other", ours=[7, "athena/7"], theirs=[PROTOCOL, PRODUCT])
    from athena.wire import dumps

    return encode({"kind": "hello", "protocol": 7, "product": "athena/7", "refused": True}, dumps(to_wire(error)))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Refused),
        (encode({"kind": "event"}), Refused),
        (struct.pack("!I", 3) + b"abc", Refused),
        (refused(), VersionMismatch),
        (b"", ConnectionLost),
    ],
)
@on_both_loops
async def test_what_is_no_supervisor_of_ours_is_an_error_that_says_what_it_is(
    answer: bytes, expected: type[AthenaError], tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with answering(path, answer):
        with pytest.raises(AthenaError) as caught:
            await asyncio.to_thread(SyncConnection, path)
        assert type(caught.value) is expected
        with pytest.raises(AthenaError) as caught:
            await AsyncConnection.open(path)
        assert type(caught.value) is expected


@on_both_loops
async def test_nobody_at_the_socket_is_not_running(tmp_path: Path) -> None:
    with pytest.raises(NotRunning):
        await asyncio.to_thread(SyncConnection, tmp_path / "nothing")
    with pytest.raises(NotRunning):
        await AsyncConnection.open(tmp_path / "nothing")


@on_both_loops
async def test_a_lost_connection_fails_every_call_that_waits_on_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(path) as server:
        connection = await AsyncConnection.open(path)
        server.dispatch = lambda *_: None  # never answers
        calls = [asyncio.ensure_future(connection.call("echo", {}, b"", None)) for _ in range(3)]
        await asyncio.sleep(0)
        for one in list(server.connections):
            one.channel.abort(None)
        for call in calls:
            with pytest.raises(ConnectionLost):
                async with asyncio.timeout(20 * TIME_UNIT):
                    await call
        assert not connection.is_open
        with pytest.raises(ConnectionLost):
            await connection.call("echo", {}, b"", 1)


@on_both_loops
async def test_a_call_that_runs_out_of_time_leaves_the_connection_to_the_others(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(path) as server:
        connection = await AsyncConnection.open(path)
        echo, held = server.dispatch, []
        server.dispatch = lambda c, f: held.append((c, f))
        with pytest.raises(TimeoutError):
            await connection.call("echo", {}, b"late", 0.01)
        server.dispatch = echo
        for one in held:
            echo(*one)  # the late answer is for nobody
        assert (await connection.call("echo", {}, b"2", 20 * TIME_UNIT)).body == b"2"
        connection.close()


@on_both_loops
async def test_the_socket_is_private_and_a_second_server_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(path):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(Refused, match="listens"):
            async with serving(path):
                pass
        assert path.exists()
    assert not path.exists()


@on_both_loops
async def test_a_dead_servers_socket_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(path):
        (await AsyncConnection.open(path)).close()
    path.write_text("precious")
    with pytest.raises(Refused, match="in the way"):
        async with serving(path):
            pass
    assert path.read_text() == "precious"
