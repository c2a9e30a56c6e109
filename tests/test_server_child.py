"""The process of a server, over real pipes: what each callback may say, what becomes of it, and how it ends.

Numbers in names are sections of `reference/otp.md`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from athena import proctree
from athena.channel import Channel, open_pipes
from athena.errors import InvalidOption
from athena.server import Continue, Hibernate, NoReply, Ready, Reply, json_safe, shortened
from athena.wire import Frame, dumps
from supervisor.launcher import Launched, Launcher, LaunchRequest, PlainLauncher
from supervisor.process import ProcessTable, exit_reason
from supervisor.zygote_launcher import ZygoteLauncher
from tests.helpers import TIME_UNIT, wait_until, wait_until_async
from tests.server_children import Unshown

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = str(Path(__file__).resolve().parents[1])
WAIT_S = 10 * TIME_UNIT
KILLED_BY_TERM = (os.CLD_KILLED, int(signal.SIGTERM))
OK, ERROR = (os.CLD_EXITED, 0), (os.CLD_EXITED, 1)
PID = {"pid": 12345, "serial": 7, "supervisor": "s"}

_numbers = itertools.count()


class Peer:
    """The supervisor's side of one server."""

    def __init__(self, launched: Launched, notes: Path) -> None:
        self.process = launched.process
        self.notes_path = notes
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()
        self._launched = launched
        self._calls = itertools.count(1)
        self._closed = asyncio.Event()
        self.channel: Channel  # from open() on

    async def open(self, header: dict[str, Any], body: dict[str, Any]) -> None:
        fds = self._launched.read_fd, self._launched.write_fd
        self.channel = await open_pipes(*fds, self.frames.put_nowait, lambda _: self._closed.set())
        self.send(header, body)

    def send(self, header: dict[str, Any], body: Any = None) -> None:
        self.channel.send(header, b"" if body is None else dumps(body), control=True)

    def cast(self, order: str, argument: Any = None) -> None:
        self.send({"kind": "cast"}, [order, argument])

    def ask(self, order: str, argument: Any = None, caller: Any = None) -> int:
        number = next(self._calls)
        self.send({"kind": "call", "id": number, "from": caller}, [order, argument])
        return number

    async def next(self) -> Frame:
        async with asyncio.timeout(WAIT_S):
            return await self.frames.get()

    async def expect(self, header: dict[str, Any]) -> Frame:
        frame = await self.next()
        assert frame.header == header, f"body {frame.body!r}"
        return frame

    async def ready(self) -> Peer:
        await self.expect({"kind": "ready", "server": True})
        return self

    async def reply(self, number: int) -> Any:
        return (await self.expect({"kind": "reply", "id": number, "ok": True})).json()

    async def call(self, order: str, argument: Any = None) -> Any:
        return await self.reply(self.ask(order, argument))

    def notes(self) -> list[str]:
        return self.notes_path.read_text().splitlines() if self.notes_path.exists() else []

    async def wait_note(self, text: str) -> None:
        await wait_until_async(lambda: text in self.notes(), WAIT_S)

    async def end(self) -> tuple[Any, tuple[int, int], list[Frame]]:
        """The reason as the supervisor sees it, the status, and all that was said last."""
        async with asyncio.timeout(WAIT_S):
            status = await self.process.wait()
            await self._closed.wait()
        frames = [self.frames.get_nowait() for _ in range(self.frames.qsize())]
        said = [f.header["reason"] for f in frames if f.kind in ("exiting", "init_error")]
        reason = exit_reason(status.si_code, status.si_status, said[-1] if said else None)
        return reason, (status.si_code, status.si_status), frames

    async def ends(self, reason: Any, status: tuple[int, int]) -> None:
        found, found_status, frames = await self.end()
        assert (found, found_status) == (reason, status)
        assert [f.kind for f in frames] == (["exiting"] if status[0] == os.CLD_EXITED else [])

    async def crashes(self, kind: str, text: str) -> None:
        """It ends with this error, and says nothing else."""
        reason, status, frames = await self.end()
        assert [f.kind for f in frames] == ["exiting"]
        error = reason["error"]
        assert error["type"] == kind
        assert text in error["message"]
        assert "Traceback" in error["traceback"]
        assert status == ERROR

    async def lose(self) -> None:
        """The supervisor dies."""
        self.channel.abort(None)

    def rss_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def output(self) -> str:
        return self.notes_path.with_suffix(".log").read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ZygoteLauncher]:
    was_subreaper = proctree.is_subreaper()
    proctree.become_subreaper()
    found = ZygoteLauncher(
        ProcessTable(),
        log_path=tmp_path_factory.mktemp("zygote") / "log",
        entry="athena.function_child:main",
        preload=("athena.function_child", "uvloop"),
    )
    await found.start()
    yield found
    await found.close()
    proctree.become_subreaper(was_subreaper)


Start = Callable[..., Awaitable[Peer]]


@pytest_asyncio.fixture(loop_scope="module")
async def start(launcher: ZygoteLauncher, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts servers of :mod:`tests.server_children`; what is left of them is killed."""
    peers: list[Peer] = []

    async def begin(name: str, /, *args: Any, at: Launcher = launcher, **more: Any) -> Peer:
        notes = tmp_path / f"{name}-{next(_numbers)}"
        cookie = f"cookie-{os.getpid()}-{next(_numbers)}"
        log = notes.with_suffix(".log")
        peer = Peer(await at.launch(LaunchRequest(kind="function", cookie=cookie, log_path=log)), notes)
        peers.append(peer)
        body: dict[str, Any] = {
            "args": [str(notes), *args],
            "kwargs": {},
            "env": None,
            "cwd": str(tmp_path),
            "python_path": [ROOT],
        }
        await peer.open({"kind": "init", "function": f"tests.server_children:{name}"}, {**body, **more})
        return peer

    yield begin
    for peer in peers:
        peer.channel.abort(None)
        peer.process.kill()
        await peer.process.wait()


def both(*names: str) -> pytest.MarkDecorator:
    """The test holds for plain callbacks and for coroutines."""
    return pytest.mark.parametrize("name", names or ("Obedient", "Asynchronous"))


# --- init (5) ---------------------------------------------------------------------------------------------------------


@both()
@pytest.mark.parametrize(
    ("how", "facts"),
    [
        ("none", {}),
        ("hibernate", {}),
        ("ready", {"info": "info"}),
        ("ready then continue", {"info": {"a": 1}}),
        ("continue", {}),
        ("ready with timeout", {}),
    ],
)
async def test_5_ready_is_said_when_init_has_returned(start: Start, name: str, how: str, facts: dict[str, Any]) -> None:
    peer = await start(name, how)
    await peer.expect({"kind": "ready", "server": True, **facts})
    if "continue" in how:
        assert await peer.call("notes") == ["continue more"]
    if "timeout" in how:
        await peer.wait_note("timeout")
    assert await peer.call("echo", 1) == 1


@both()
@pytest.mark.parametrize(
    ("how", "reason", "status"),
    [
        ("stop", "stopped", ERROR),
        ("stop normal", "normal", OK),
        ("stop with reply", {"bad_return_value": "Stop(reason='stopped', reply='bye')"}, ERROR),
        ("stop for no JSON", None, ERROR),
        ("number", {"bad_return_value": 7}, ERROR),
        ("reply", {"bad_return_value": "Reply(value=1, timeout=None, then=None)"}, ERROR),
        ("noreply", {"bad_return_value": "NoReply(timeout=None, then=None)"}, ERROR),
        ("bad info", None, ERROR),
    ],
)
async def test_5_a_failed_init_is_a_start_error_without_terminate(
    start: Start, name: str, how: str, reason: Any, status: tuple[int, int]
) -> None:
    peer = await start(name, how)
    _, found_status, frames = await peer.end()
    assert [f.kind for f in frames] == ["init_error"]
    said = frames[0].header["reason"]
    if how == "bad info":
        assert said["error"]["type"] == "InvalidOption"
        assert "it must be JSON" in said["error"]["message"]
    elif how == "stop for no JSON":
        assert said["bad_return_value"].startswith("Stop(reason={")
    else:
        assert said == reason
    assert found_status == status
    assert peer.notes() == []


@pytest.mark.parametrize(
    ("name", "how", "reason"),
    [
        ("NeverReady", "raise", "RuntimeError"),
        ("NeverReady", "background", "RuntimeError"),
        ("NeverReady", "exit", {"exit": 4}),
        ("NeverReady", "exit text", {"exit": 1}),
        ("WantsArguments", "", "TypeError"),
        ("BadTrap", "", "InvalidOption"),
        ("Nothing", "", "AttributeError"),
    ],
)
async def test_5_an_error_before_ready_is_a_start_error(start: Start, name: str, how: str, reason: Any) -> None:
    peer = await start(name, how)
    _, _, frames = await peer.end()
    assert [f.kind for f in frames] == ["init_error"]
    said = frames[0].header["reason"]
    assert (said["error"]["type"] if "error" in said else said) == reason
    assert [note for note in peer.notes() if "terminate" in note] == []


async def test_5_ignore_is_no_error(start: Start) -> None:
    peer = await start("Trapping", "ignore")
    await peer.expect({"kind": "trap_exit", "on": True})
    _, status, frames = await peer.end()
    assert [f.kind for f in frames] == ["ignore"]
    assert status == OK
    assert peer.notes() == []


async def test_a_server_knows_what_it_is(start: Start, tmp_path: Path) -> None:
    identity = {"pid": PID, "name": "me", "socket": "/run/s"}
    peer = await (await start("Obedient", **identity)).ready()
    assert await peer.call("facts") == [PID, "me", PID, "me", "/run/s", True]
    named = await (await start("Obedient", name={"via": ["reg", "key", 1]})).ready()
    assert await named.call("via") == ["reg", "key", 1]


async def test_a_function_is_as_before_and_knows_what_it_is_too(start: Start) -> None:
    peer = await start("plain", pid=PID, name=None, socket="/run/s")
    await peer.expect({"kind": "ready"})
    await peer.ends("normal", OK)
    assert peer.notes() == [repr([PID, None, PID, None, "/run/s", False])]


# --- messages (16) ----------------------------------------------------------------------------------------------------


@both()
async def test_16_messages_are_handled_one_at_a_time_in_order(start: Start, name: str) -> None:
    peer = await (await start(name)).ready()
    for number in range(300):
        peer.cast("note", str(number))
        peer.send({"kind": "info"}, {"message": ["note", f"info {number}"]})
    notes = await peer.call("notes")
    assert notes == [text for number in range(300) for text in (str(number), f"info {number}")]


@both()
async def test_16_a_call_is_answered_and_says_who_asked(start: Start, name: str) -> None:
    peer = await (await start(name)).ready()
    assert await peer.call("echo", {"a": [1, None]}) == {"a": [1, None]}
    assert await peer.reply(peer.ask("who", None, PID)) == PID
    assert await peer.call("who") is None
    assert await peer.reply(peer.ask("return", "reply then hibernate")) == "slept"
    assert await peer.call("echo", "x" * 2_000_000) == "x" * 2_000_000


@both()
@pytest.mark.parametrize("answer", ["answer", "answer_twice", "answer_in_thread"])
async def test_h07_a_deferred_reply_is_given_once(start: Start, name: str, answer: str) -> None:
    peer = await (await start(name)).ready()
    first, second = peer.ask("later"), peer.ask("later")
    assert await peer.call("notes") == []
    peer.cast(answer, "one")
    assert await peer.reply(first) == "one"
    peer.cast(answer, "two")
    assert await peer.reply(second) == "two"
    assert await peer.call("echo", 1) == 1


async def test_16_a_reply_after_the_reply_is_dropped(start: Start) -> None:
    peer = await (await start("Obedient")).ready()
    assert await peer.call("answer_and_reply", "one") == "one"
    assert await peer.call("echo", 1) == 1


@both()
async def test_16_exits_downs_and_messages_come_as_info(start: Start, name: str) -> None:
    peer = await (await start(name)).ready()
    for target in ("a name", PID, {"via": ["reg", "key", None]}):
        peer.send({"kind": "info"}, {"down": {"ref": 3, "target": target, "pid": PID, "reason": "killed"}})
    peer.send({"kind": "info"}, {"down": {"ref": 4, "target": "x", "pid": None, "reason": "noproc"}})
    peer.send({"kind": "info"}, {"exit": {"from": PID, "reason": {"shutdown": "x"}}})
    pid = "Pid(12345, serial=7)"
    assert await peer.call("notes") == [
        f"down 3 'a name' {pid} killed",
        f"down 3 {pid} {pid} killed",
        f"down 3 Via(registry='reg', key='key', value=None) {pid} killed",
        "down 4 'x' None noproc",
        f"exit {pid} {{'shutdown': 'x'}}",
    ]


async def test_16_a_server_without_handle_info_logs_the_message(start: Start) -> None:
    peer = await (await start("Minimal")).ready()
    peer.send({"kind": "info"}, {"message": "for nobody"})
    peer.send({"kind": "nonsense"})
    peer.send({"kind": "stop", "reason": "normal"})
    await peer.ends("normal", OK)
    assert "tests.server_children:Minimal ignores a message: it has no handle_info: 'for nobody'" in peer.output()
    assert "kind='nonsense'" in peer.output()


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ({"kind": "call", "id": 1, "from": None}, "got a call and has no handle_call: 'hello'"),
        ({"kind": "cast"}, "got a cast and has no handle_cast: 'hello'"),
    ],
)
async def test_16_an_undefined_callback_is_a_crash_when_it_is_needed(
    start: Start, header: dict[str, Any], text: str
) -> None:
    peer = await (await start("Minimal")).ready()
    peer.send(header, "hello")
    await peer.crashes("NotImplementedError", text)


async def test_16_an_undefined_handle_continue_is_a_crash(start: Start) -> None:
    peer = await (await start("Noted", "continue")).ready()
    await peer.crashes("NotImplementedError", "continues and has no handle_continue: 'more'")


@both()
async def test_16_a_continuation_comes_before_any_message(start: Start, name: str) -> None:
    peer = await start(name, "continue")
    for _ in range(3):  # right behind init, so that they wait already when it returns
        peer.cast("count", 2)
    peer.cast("note", "last")
    await peer.ready()
    chain = ["continue 2", "continue 1", "continue 0"]
    assert await peer.call("notes") == ["continue more", *chain, *chain, *chain, "last"]
    first = peer.ask("return", "reply then continue")
    notes = peer.ask("notes")
    assert await peer.reply(first) == "first"
    assert (await peer.reply(notes))[-1] == "continue more"


async def test_a_server_that_does_not_read_leaves_the_rest_with_the_supervisor(start: Start) -> None:
    peer = await (await start("Held")).ready()
    peer.cast("hold")
    await peer.wait_note("holding")
    for number in range(40):
        peer.channel.send({"kind": "cast"}, dumps(["note", f"{number:0100000}"]))
    await wait_until_async(lambda: 0 < peer.channel.queued_bytes < 3_500_000)
    assert peer.channel.queued_bytes > 1_500_000  # of four: one in its inbox, some in the pipe
    peer.notes_path.with_suffix(".go").touch()
    await wait_until_async(lambda: len(peer.notes()) == 41, WAIT_S)
    assert [int(note[-10:]) for note in peer.notes()[1:]] == list(range(40))


# --- time and memory --------------------------------------------------------------------------------------------------


@both()
@pytest.mark.parametrize("how", ["short timeout", "no time"])
async def test_16_a_timeout_comes_when_no_message_does(start: Start, name: str, how: str) -> None:
    peer = await (await start(name)).ready()
    peer.cast("return", how)
    await peer.wait_note("timeout")
    await asyncio.sleep(0.05)
    assert peer.notes() == ["timeout"]  # once


@both()
@pytest.mark.parametrize("how", ["no time", "long timeout", "endless timeout"])
async def test_16_any_message_cancels_the_timeout(start: Start, name: str, how: str) -> None:
    peer = await (await start(name)).ready()
    peer.cast("sleep", 0.05)  # so that what follows waits when it ends
    peer.cast("return", how)
    peer.cast("note", "first")
    await peer.wait_note("first")
    await asyncio.sleep(0.15)
    assert peer.notes() == ["first"]


async def test_16_a_message_that_comes_while_it_is_busy_is_before_the_timeout(start: Start) -> None:
    peer = await (await start("Obedient")).ready()
    peer.cast("return", "no time")
    await peer.wait_note("timeout")
    peer.cast("sleep_then_no_time", 0.1)
    peer.cast("note", "first")
    await peer.wait_note("first")
    await asyncio.sleep(0.05)
    assert peer.notes() == ["timeout", "first"]


@pytest.mark.slow
async def test_h12_a_hibernating_server_gives_memory_back_and_answers(start: Start) -> None:
    peer = await (await start("Obedient")).ready()
    before = peer.rss_bytes()
    peer.cast("grow", 60)
    await peer.call("echo", 1)
    assert peer.rss_bytes() > before + 50_000_000
    peer.cast("shrink")
    await wait_until_async(lambda: peer.rss_bytes() < before + 10_000_000)
    assert await peer.call("echo", 1) == 1


async def test_h12_a_queued_message_wakes_it_at_once(start: Start) -> None:
    peer = await start("Obedient", "hibernate")
    numbers = [peer.ask("return", "reply then hibernate") for _ in range(50)]
    await peer.ready()
    assert [await peer.reply(number) for number in numbers] == ["slept"] * 50


# --- how it ends (16) -------------------------------------------------------------------------------------------------


@both()
@pytest.mark.parametrize("kind", ["cast", "info", "call", "continue"])
@pytest.mark.parametrize(
    ("order", "argument", "reason", "code"),
    [
        ("return", "stop", "stopped", 1),
        ("return", "stop normal", "normal", 0),
        ("return", "stop clean", {"shutdown": "done"}, 0),
        ("return", "number", {"bad_return_value": 7}, 1),
        ("raise", "oops", "RuntimeError", 1),
        ("exit", 3, {"exit": 3}, 3),
        ("exit", 256, {"exit": 256}, 0),
        ("exit", None, "normal", 0),
    ],
)
async def test_16_terminate_is_called_when_a_callback_ends_it(
    start: Start, name: str, kind: str, order: str, argument: Any, reason: Any, code: int
) -> None:
    peer = await (await start(name)).ready()
    message = [order, argument]
    if kind == "continue":
        message = ["continue_with", message]
    body = {"message": message} if kind == "info" else message
    peer.send({"kind": "cast" if kind == "continue" else kind, "id": 1, "from": None}, body)
    found, status, frames = await peer.end()
    assert [f.kind for f in frames] == ["exiting"]
    assert (found["error"]["type"] if "error" in found else found) == reason
    assert status == (os.CLD_EXITED, code)
    shown = reason if isinstance(reason, str) and order != "raise" else sorted(found)
    assert peer.notes()[-1:] == [f"terminate {shown}"]


@both()
@pytest.mark.parametrize(
    ("how", "value"),
    [
        ("none", None),
        ("continue", "Continue(argument='more')"),
        ("hibernate", "Hibernate()"),
        ("ignore", "Ignore()"),
        ("ready", "Ready(info='info', timeout=None, then=None)"),
        ("number", 7),
        ("object", "<Unshown whose repr raises ValueError>"),
        ("long", "['" + "x" * 1998 + "..."),
        ("stop for no JSON", None),
    ],
)
async def test_h07_a_call_that_is_answered_with_nonsense_ends_it(start: Start, name: str, how: str, value: Any) -> None:
    peer = await (await start(name)).ready()
    peer.ask("return", how)
    reason, status, frames = await peer.end()
    assert [f.kind for f in frames] == ["exiting"]
    if how == "stop for no JSON":
        assert reason["bad_return_value"].startswith("Stop(reason={")
    else:
        assert reason == {"bad_return_value": value}
    assert status == ERROR
    assert peer.notes() == ["terminate ['bad_return_value']"]


@pytest.mark.parametrize("how", ["reply", "ignore", "ready", "stop with reply"])
async def test_16_what_answers_is_no_answer_to_a_cast(start: Start, how: str) -> None:
    peer = await (await start("Obedient")).ready()
    peer.cast("return", how)
    reason, _, _ = await peer.end()
    assert reason["bad_return_value"].lower().startswith(how.split()[0])


@both()
@pytest.mark.parametrize("how", ["bad reply", "nan", "stop with bad reply"])
async def test_a_reply_that_is_no_json_is_a_crash(start: Start, name: str, how: str) -> None:
    peer = await (await start(name)).ready()
    peer.ask("return", how)
    await peer.crashes("InvalidOption", "reply got")
    assert peer.notes() == ["terminate ['error']"]


async def test_a_deferred_reply_that_is_no_json_is_a_crash(start: Start) -> None:
    peer = await (await start("Obedient")).ready()
    peer.ask("later")
    peer.cast("answer_badly")
    await peer.crashes("InvalidOption", "reply got {1}")


async def test_a_way_to_go_on_that_makes_no_sense_is_a_crash_where_it_is_said(start: Start) -> None:
    peer = await (await start("Obedient")).ready()
    peer.ask("return", "bad timeout")
    await peer.crashes("InvalidOption", 'timeout=True must be seconds from 0 on, or "infinity" for never')


@both()
async def test_16_with_stop_and_reply_the_reply_comes_after_terminate_and_before_the_end(
    start: Start, name: str
) -> None:
    peer = await (await start(name)).ready()
    number = peer.ask("return", "stop with reply")
    assert await peer.reply(number) == "bye"
    assert peer.notes() == ["terminate stopped"]
    await peer.ends("stopped", ERROR)


@pytest.mark.parametrize(("how", "reason"), [("raise", "ValueError"), ("exit", {"exit": 5})])
async def test_16_if_terminate_fails_that_is_the_reason(start: Start, how: str, reason: Any) -> None:
    peer = await start("BadEnd", how)
    await peer.expect({"kind": "trap_exit", "on": True})
    await peer.ready()
    number = peer.ask("return", "stop with reply")
    assert await peer.reply(number) == "bye"
    found, _, _ = await peer.end()
    assert (found["error"]["type"] if "error" in found else found) == reason
    assert peer.notes() == ["terminate stopped"]


@both()
@pytest.mark.parametrize("reason", ["normal", "shutdown", {"shutdown": 1}, "other_reason", {"error": {"type": "x"}}])
async def test_h04_stop_runs_terminate_behind_what_is_queued(start: Start, name: str, reason: Any) -> None:
    peer = await (await start(name)).ready()
    peer.cast("note", "queued")
    peer.send({"kind": "stop", "reason": reason})
    peer.cast("note", "too late")
    is_clean = reason in ("normal", "shutdown", {"shutdown": 1})
    await peer.ends(reason, OK if is_clean else ERROR)
    assert peer.notes() == ["queued", f"terminate {reason if isinstance(reason, str) else sorted(reason)}"]
    assert ("ends with reason" in peer.output()) == (not is_clean)


async def test_nothing_that_it_started_stays(start: Start) -> None:
    peer = await (await start("Obedient")).ready()
    tool = await peer.call("tool")
    peer.send({"kind": "stop", "reason": "normal"})
    await peer.ends("normal", OK)
    wait_until(lambda: (row := proctree.stat(tool)) is None or row.state in "ZX")


# --- trapping exits (14, 16, 18.4) ------------------------------------------------------------------------------------


@both()
async def test_18_4_a_server_that_does_not_trap_dies_of_sigterm_at_once(start: Start, name: str) -> None:
    peer = await (await start(name)).ready()
    peer.cast("sleep", 1000)
    await asyncio.sleep(0.05)
    peer.process.terminate()
    await peer.ends("shutdown", KILLED_BY_TERM)
    assert peer.notes() == []


@both("Trapping", "AsynchronousTrapping")
@pytest.mark.parametrize("reason", ["shutdown", "normal", {"shutdown": 1}, "other"])
async def test_16_a_trapping_server_handles_what_is_queued_and_terminates(start: Start, name: str, reason: Any) -> None:
    peer = await start(name)
    await peer.expect({"kind": "trap_exit", "on": True})
    await peer.ready()
    for number in range(100):
        peer.cast("note", str(number))
    peer.send({"kind": "shutdown", "reason": reason})
    peer.process.terminate()  # it follows the frame, and is no second end
    peer.process.terminate()
    await peer.ends(reason, ERROR if reason == "other" else OK)
    shown = reason if isinstance(reason, str) else sorted(reason)
    assert peer.notes() == [*map(str, range(100)), f"terminate {shown}"]


@both("Trapping", "AsynchronousTrapping")
async def test_18_4_sigterm_alone_is_a_shutdown_too(start: Start, name: str) -> None:
    peer = await start(name)
    await peer.expect({"kind": "trap_exit", "on": True})
    await peer.ready()
    peer.cast("note", "queued")
    peer.process.terminate()
    await peer.ends("shutdown", OK)
    assert peer.notes() == ["queued", "terminate shutdown"]


async def test_16_sigterm_does_not_overtake_messages_that_have_no_room_in_the_pipe(start: Start) -> None:
    peer = await start("Trapping")
    await peer.expect({"kind": "trap_exit", "on": True})
    await peer.ready()
    peer.cast("sleep", 0.05)
    for number in range(30):
        peer.cast("note", f"{number:0100000}")
    peer.send({"kind": "shutdown", "reason": "normal"})
    peer.process.terminate()
    await peer.ends("normal", OK)
    assert [note[-10:].lstrip("0") for note in peer.notes()] == ["", *map(str, range(1, 30)), "ate normal"]


async def test_16_terminate_is_run_once(start: Start) -> None:
    peer = await start("BadEnd", "term")
    await peer.expect({"kind": "trap_exit", "on": True})
    await peer.ready()
    peer.send({"kind": "stop", "reason": "normal"})
    peer.send({"kind": "shutdown", "reason": "shutdown"})
    await peer.ends("normal", OK)
    assert peer.notes() == ["terminate normal"]


@both()
async def test_14_trap_exit_may_change_at_any_time(start: Start, name: str) -> None:
    peer = await start(name, kwargs={"trap": True})
    await peer.expect({"kind": "trap_exit", "on": True})
    await peer.ready()
    off = peer.ask("trap", False)
    await peer.expect({"kind": "trap_exit", "on": False})
    assert await peer.reply(off) is False
    assert await peer.call("trap", False) is False  # no news, no frame
    on = peer.ask("trap", True)
    await peer.expect({"kind": "trap_exit", "on": True})
    assert await peer.reply(on) is True
    peer.process.terminate()
    await peer.ends("shutdown", OK)
    assert peer.notes() == ["terminate shutdown"]


async def test_14_a_server_that_traps_no_more_dies_at_once(start: Start) -> None:
    peer = await start("Trapping")
    await peer.expect({"kind": "trap_exit", "on": True})
    await peer.ready()
    off = peer.ask("trap", False)
    await peer.expect({"kind": "trap_exit", "on": False})
    await peer.reply(off)
    peer.process.terminate()
    await peer.ends("shutdown", KILLED_BY_TERM)
    assert peer.notes() == []


async def test_14_a_shutdown_for_who_does_not_trap_is_the_end(start: Start) -> None:
    peer = await (await start("Held")).ready()
    peer.cast("hold")
    await peer.wait_note("holding")
    peer.cast("note", "queued")
    peer.send({"kind": "shutdown", "reason": "boom"})
    await peer.ends("boom", ERROR)
    assert peer.notes() == ["holding"]


async def test_trap_exit_is_a_boolean(start: Start) -> None:
    peer = await (await start("Obedient")).ready()
    peer.cast("trap", 1)
    await peer.crashes("InvalidOption", "trap_exit is 1; set it to True or False")


async def test_a_forked_process_that_gets_sigterm_is_not_the_server(start: Start) -> None:
    peer = await start("Trapping")
    await peer.expect({"kind": "trap_exit", "on": True})
    await peer.ready()
    assert await peer.call("fork") == -signal.SIGTERM
    await asyncio.sleep(0.05)
    assert await peer.call("echo", 1) == 1
    assert peer.notes() == []


# --- a lost supervisor (18.5) -----------------------------------------------------------------------------------------


@both("Trapping", "AsynchronousTrapping")
async def test_18_5_a_trapping_server_terminates_when_its_supervisor_is_lost(start: Start, name: str) -> None:
    peer = await start(name)
    await peer.expect({"kind": "trap_exit", "on": True})
    await peer.ready()
    peer.cast("note", "queued")
    await peer.channel.flushed()
    await peer.lose()
    status = await peer.process.wait()
    assert (status.si_code, status.si_status) == ERROR
    assert peer.notes() == ["queued", "terminate noconnection"]


async def test_18_5_one_that_does_not_trap_ends_at_once(start: Start) -> None:
    peer = await (await start("Held")).ready()
    peer.cast("hold")
    await peer.wait_note("holding")
    await peer.lose()
    status = await peer.process.wait()
    assert (status.si_code, status.si_status) == ERROR
    assert peer.notes() == ["holding"]


@pytest.mark.parametrize("trap", [True, False])
async def test_18_5_a_start_is_for_nobody_then(start: Start, trap: bool) -> None:
    peer = await start("NeverReady", kwargs={"trap": trap})
    await peer.wait_note("init")
    await peer.lose()
    status = await peer.process.wait()
    assert (status.si_code, status.si_status) == ERROR
    assert peer.notes() == ["init"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BadEnd", "Held"])
async def test_18_5_terminate_and_all_before_it_have_three_seconds(start: Start, name: str) -> None:
    peer = await start(name, "hang" if name == "BadEnd" else "none", kwargs={"trap": True})
    await peer.expect({"kind": "trap_exit", "on": True})
    await peer.ready()
    if name == "Held":
        peer.cast("hold")
        await peer.wait_note("holding")
    await peer.lose()
    async with asyncio.timeout(5 * TIME_UNIT):
        status = await peer.process.wait()
    assert (status.si_code, status.si_status) == ERROR
    assert peer.notes() == (["terminate noconnection"] if name == "BadEnd" else ["holding"])


# --- errors outside callbacks (18.3) ----------------------------------------------------------------------------------


@both()
@pytest.mark.parametrize(
    ("order", "argument", "kind"),
    [
        ("thread", 0, "ZeroDivisionError"),
        ("thread", 1000, "ZeroDivisionError"),
        ("background", None, "RuntimeError"),
        ("soon", None, "ZeroDivisionError"),
    ],
)
async def test_18_3_an_error_that_nobody_awaits_ends_the_process_at_once(
    start: Start, name: str, order: str, argument: Any, kind: str
) -> None:
    peer = await (await start(name, kwargs={"trap": False})).ready()
    peer.cast(order, argument)
    await peer.crashes(kind, "")
    assert peer.notes() == []


async def test_18_3_an_exit_in_the_background_is_one_of_the_process(start: Start) -> None:
    peer = await (await start("Obedient")).ready()
    peer.cast("background_exit", 7)
    await peer.ends({"exit": 7}, (os.CLD_EXITED, 7))


async def test_18_3_a_remark_of_the_event_loop_ends_nothing(start: Start) -> None:
    peer = await (await start("Obedient")).ready()
    peer.cast("forgotten")
    assert await peer.call("echo", 1) == 1
    assert "a remark" in peer.output()


# --- without the zygote, without uvloop -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("has_uvloop", [True, False])
async def test_a_server_runs_in_an_interpreter_of_its_own(start: Start, tmp_path: Path, has_uvloop: bool) -> None:
    if not has_uvloop:
        (tmp_path / "uvloop.py").write_text("raise ImportError('not here')")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    plain = PlainLauncher(ProcessTable())
    peer = await start("AsynchronousTrapping", at=_WithEnvironment(plain, env))
    await peer.expect({"kind": "trap_exit", "on": True})
    await peer.ready()
    assert (await peer.call("loop")).partition(".")[0] == ("uvloop" if has_uvloop else "asyncio")
    peer.cast("return", "no time")
    await peer.wait_note("timeout")
    assert await peer.call("fork") == -signal.SIGTERM
    for number in range(20):
        peer.cast("note", str(number))
    peer.process.terminate()
    await peer.ends("shutdown", OK)
    assert peer.notes() == ["timeout", *map(str, range(20)), "terminate shutdown"]


class _WithEnvironment:
    """A launcher whose children get an environment."""

    def __init__(self, launcher: PlainLauncher, env: dict[str, str]) -> None:
        self._launcher = launcher
        self._env = env

    async def launch(self, request: LaunchRequest) -> Launched:
        return await self._launcher.launch(dataclasses.replace(request, env=self._env))


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [True, -1, float("nan"), float("inf"), "soon", [1]])
@pytest.mark.parametrize("make", [lambda t: Reply(1, timeout=t), lambda t: NoReply(t), lambda t: Ready(timeout=t)])
async def test_a_timeout_is_seconds(make: Callable[[Any], Any], timeout: Any) -> None:
    with pytest.raises(InvalidOption, match="seconds from 0 on") as caught:
        make(timeout)
    assert caught.value.option == "timeout"


async def test_what_comes_next_is_a_continuation_or_hibernation() -> None:
    wrong: Any = "more"
    with pytest.raises(InvalidOption, match="then='more' must be Continue"):
        Reply(1, then=wrong)
    with pytest.raises(InvalidOption, match="None beside Continue"):
        NoReply(timeout=1, then=Continue(1))
    assert NoReply(timeout=1, then=Hibernate()).timeout == 1
    assert NoReply(timeout="infinity").timeout == "infinity"


async def test_values_are_shown_short_and_safe() -> None:
    assert json_safe({"a": (1, None)}) == {"a": [1, None]}
    assert json_safe(Reply(1)) == "Reply(value=1, timeout=None, then=None)"
    assert json_safe("x" * 3000) == "'" + "x" * 1999 + "..."
    assert shortened(Unshown()) == "<Unshown whose repr raises ValueError>"
