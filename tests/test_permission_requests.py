"""Permission requests end to end: durable, one winner, and nobody's silence is a yes. Real processes, real kills."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from athena import AsyncSession, Session, arun, run
from athena.approver import PermissionContext
from athena.config import default_socket
from athena.errors import AlreadyResolved, CallTimeout, InvalidOption, NotFound, ProtocolError
from athena.event_stream import EventStream
from athena.events import Event
from athena.loop.result import Result
from athena.permissions import rule_of
from athena.recovery import perform
from athena.session_calls import answer as answer_call
from athena.session_calls import start as start_call
from athena.session_calls import start_options
from athena.subscriber import Item
from athena.supervisors import DaemonTarget, Target, start_daemon
from tests.cli_fixtures import CTRL_C, CTRL_D, Terminal
from tests.cli_fixtures import daemon as cli_daemon
from tests.helpers import TIME_UNIT, wait_until
from tests.session_fixtures import (
    Files,
    Sessions,
    background,
    daemon,
    files,
    kill,
    kill_pid,
    kinds,
    log,
    own_sessions,
    own_supervisor,
    result,
    sessions,
    shared_supervisor,
    supervisor_pid,
)

__all__ = [
    "background", "cli_daemon", "daemon", "files", "own_sessions", "own_supervisor", "sessions", "shared_supervisor",
]  # fmt: skip

pytestmark = pytest.mark.slow

Background = Callable[[Callable[[], Any]], Future[Any]]
ANSWER_S = 20 * TIME_UNIT


def write(path: str = "a.txt", **more: Any) -> dict[str, Any]:
    """A step that writes a file, which phase ``default`` asks for."""
    return {"tool_calls": [{"name": "write", "arguments": {"path": path, "content": "hi"}}], **more}


def bash(command: str) -> dict[str, Any]:
    """A step that runs a command."""
    return {"tool_calls": [{"name": "bash", "arguments": {"command": command}}]}


def until(stream: EventStream, kind: str) -> Event:
    """The next event of this kind."""
    while True:
        item: Item | None = stream.next(ANSWER_S)
        assert item is not None, f"the stream ended before {kind}"
        if isinstance(item, Event) and item.event == kind:
            return item


def statuses(found: Result) -> list[str]:
    """Of its calls: ``ok`` or the first word of what went wrong."""
    results = [r for message in found.messages for r in message.tool_results]
    return ["error" if r.is_error else "ok" for r in results]


def data(session: Session, kind: str) -> list[dict[str, Any]]:
    """Of the recorded events of this kind."""
    return [event.data for event in log(session.session_id) if event.event == kind]


class Asked:
    """A session that waits for an answer, and the stream of who could give it."""

    def __init__(self, sessions: Sessions, mock: list[Any] | None = None, **options: Any) -> None:
        self.session = sessions.start(mock or [write(), "done"], **options)
        self.stream = self.session.events(approver=True)
        self.turn = self.session.submit("go")
        self.request = until(self.stream, "permission_request")
        self.id = str(self.request.data["request_id"])

    def end(self) -> Result:
        """The turn's result."""
        return self.turn.result(ANSWER_S)


@pytest.fixture
def asked(sessions: Sessions) -> Iterator[Asked]:
    """A session whose ``write`` waits for an answer."""
    found = Asked(sessions)
    yield found
    found.stream.close()


# --- asking and answering ---------------------------------------------------------------------------------------------


def test_without_an_approver_a_call_is_denied_at_once(sessions: Sessions, files: Files) -> None:
    session = sessions.start([write(), "done"])
    with session.events():  # who only looks is no approver, and neither is who waits
        found = session.send_message("go", timeout=ANSWER_S)
    assert (statuses(found), (files.root / "a.txt").exists()) == (["error"], False)
    assert data(session, "permission_request") == []
    assert "events(approver=True)" in found.messages[2].tool_results[0].content


def test_with_an_approver_it_is_asked_and_waits(asked: Asked, files: Files) -> None:
    assert asked.request.data == {
        "request_id": asked.id,
        "call_id": "call_0_0",
        "tool": "write",
        "message_id": asked.turn.message_id,
        "arguments": {"path": "a.txt", "content": "hi"},
        "reason": "write is not read-only, and the session's phase asks before it runs",
    }
    row = {**asked.request.data, "turn": "t1", "at": asked.request.ts}
    assert asked.session.requests() == [row]
    words = ("request_id", "call_id", "tool", "turn", "at")
    assert asked.session.status()["permission_requests"] == [{word: row[word] for word in words}]
    assert kinds(asked.session.session_id)[-1] == "permission_request"
    assert not (files.root / "a.txt").exists()


def test_an_allowed_call_runs(asked: Asked, files: Files) -> None:
    asked.session.answer(asked.id, "allow")
    resolved = until(asked.stream, "permission_resolved")
    assert statuses(asked.end()) == ["ok"]
    assert (files.root / "a.txt").read_text() == "hi"
    by = resolved.data["by"]
    assert (resolved.data["decision"], by["pid"]) == ("allow", os.getpid())
    assert (asked.session.requests(), asked.session.status()["permission_requests"]) == ([], [])


def test_a_secret_in_a_reason_reaches_neither_log_nor_model(sessions: Sessions) -> None:
    asked = Asked(sessions, env={**os.environ, "SOME_API_KEY": "sk-canary-0123456789"})
    with asked.stream:
        asked.session.answer(asked.id, "deny", reason="use sk-canary-0123456789 instead")
        asked.end()
    assert data(asked.session, "permission_resolved")[0]["reason"] == "use [redacted:SOME_API_KEY] instead"
    assert not any(b"sk-canary" in event.line for event in log(asked.session.session_id))


def test_a_function_that_exits_denies_and_keeps_nobody_waiting(sessions: Sessions) -> None:
    def leaves(*_: Any) -> bool:
        raise SystemExit(3)

    session = sessions.start([write(), "done"], can_use_tool=leaves)
    assert statuses(session.send_message("go", timeout=ANSWER_S)) == ["error"]


def test_a_denied_call_tells_the_model_why(asked: Asked, files: Files) -> None:
    asked.session.answer(asked.id, "deny", reason="use the other directory")
    found = asked.end()
    assert found.messages[2].tool_results[0].content == "use the other directory"
    assert data(asked.session, "tool_result")[0]["code"] == "user_denied"
    assert not (files.root / "a.txt").exists()


def test_a_second_answer_is_told_who_was_first(asked: Asked) -> None:
    asked.session.answer(asked.id, "allow")
    resolved = until(asked.stream, "permission_resolved")
    for decision in ("allow", "deny"):
        with pytest.raises(AlreadyResolved, match="by process") as caught:
            asked.session.answer(asked.id, decision)
        assert (caught.value.by, caught.value.at) == (resolved.data["by"], resolved.ts)
    asked.end()
    with pytest.raises(AlreadyResolved):
        asked.session.answer(asked.id, "deny")
    with pytest.raises(NotFound):
        asked.session.answer("nothing", "allow")
    assert len(data(asked.session, "permission_resolved")) == 1


def test_the_same_answer_delivered_twice_is_one(asked: Asked) -> None:
    call = answer_call(asked.session.session_id, asked.id, "allow", remember=False, reason=None)
    asked.session._do(call)
    asked.session._do(call)  # as after a death between the record and the reply
    assert statuses(asked.end()) == ["ok"]
    assert len(data(asked.session, "permission_resolved")) == 1


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"request_id": 7, "decision": "allow"}, "request_id"),
        ({"request_id": "x", "decision": "yes"}, "decision"),
        ({"request_id": "x", "decision": None}, "decision"),
        ({"request_id": "x", "decision": "allow", "remember": 1}, "remember"),
        ({"request_id": "x", "decision": "deny", "reason": 1}, "reason"),
    ],
)
def test_an_answer_that_is_none_is_refused(sessions: Sessions, arguments: dict[str, Any], option: str) -> None:
    session = sessions.start(["x"])
    with pytest.raises(InvalidOption) as caught:
        session.answer(**arguments)
    assert caught.value.option == option


def test_secrets_are_not_in_a_request(sessions: Sessions) -> None:
    mock = [write("hunter2-hunter2.txt"), "done"]
    asked = Asked(sessions, mock, env={"MY_TOKEN": "hunter2-hunter2", "PATH": "/usr/bin:/bin"})
    with asked.stream:
        assert asked.request.data["arguments"]["path"] == "[redacted:MY_TOKEN].txt"
        assert asked.session.requests()[0]["arguments"]["path"] == "[redacted:MY_TOKEN].txt"
        asked.session.answer(asked.id, "deny")
        asked.end()


@pytest.mark.parametrize("durability", ["turn", "event"])  # a sync is a pause between the look and the record
def test_many_answers_at_once_have_one_winner(sessions: Sessions, background: Background, durability: str) -> None:
    asked = Asked(sessions, durability=durability)
    begin = threading.Barrier(8)

    def one(number: int) -> str:
        handle = Session.attach(asked.session.session_id, supervisor=asked.session._target)
        begin.wait()
        try:
            handle.answer(asked.id, "allow" if number % 2 else "deny")
        except AlreadyResolved:
            return "late"
        return "won"

    found = [result(future) for future in [background(lambda n=number: one(n)) for number in range(8)]]  # type: ignore[misc]  # a default binds it
    assert sorted(found) == ["late"] * 7 + ["won"]
    asked.end()
    assert len(data(asked.session, "permission_resolved")) == 1


# --- what survives ----------------------------------------------------------------------------------------------------


def test_a_request_survives_its_process_and_is_announced_again(asked: Asked, files: Files) -> None:
    kill(asked.session)
    again = until(asked.stream, "permission_request")
    assert (again.data, again.seq > asked.request.seq) == (asked.request.data, True)
    with asked.session.events(0) as late:  # who comes later finds it in the log, and in the list
        assert until(late, "permission_request").data["request_id"] == asked.id
    assert [row["request_id"] for row in asked.session.requests()] == [asked.id]
    asked.session.answer(asked.id, "allow")
    assert (statuses(asked.end()), (files.root / "a.txt").exists()) == (["ok"], True)


def test_an_answer_that_is_recorded_holds_for_the_next_life(sessions: Sessions, files: Files) -> None:
    fail = f"append:permission_resolved=kill; log={files.path('fired')}"
    asked = Asked(sessions, env={"ATHENA_FAILPOINT": fail, "PATH": "/usr/bin:/bin"})
    with asked.stream:
        asked.session.answer(asked.id, "allow")  # the one who answered is told so by the next life
        assert statuses(asked.end()) == ["ok"]
        assert len(files.lines("fired")) == 1
        assert len(data(asked.session, "permission_resolved")) == 1
        with pytest.raises(AlreadyResolved):
            asked.session.answer(asked.id, "deny")


def test_answers_over_kills_of_the_process_have_one_winner(asked: Asked, background: Background) -> None:
    kill(asked.session)
    handles = [Session.attach(asked.session.session_id, supervisor=asked.session._target) for _ in range(4)]

    def one(handle: Session) -> bool:
        try:
            handle.answer(asked.id, "allow")
        except AlreadyResolved:
            return False
        return True

    futures = [background(lambda h=handle: one(h)) for handle in handles]  # type: ignore[misc]  # a default binds it
    assert [result(future) for future in futures].count(True) == 1
    assert statuses(asked.end()) == ["ok"]


def test_two_answers_over_a_restart_of_the_daemon_have_one_winner(
    daemon: Path, files: Files, background: Background
) -> None:
    asked = Asked(Sessions(daemon, files.root))  # type: ignore[arg-type]  # a path will do
    other = Session.attach(asked.session.session_id, supervisor=daemon)
    waiting = background(lambda: asked.turn.result(ANSWER_S))
    kill_pid(supervisor_pid(asked.session._target))

    def one(handle: Session) -> bool:
        try:
            handle.answer(asked.id, "allow")
        except AlreadyResolved:
            return False
        return True

    futures = [background(lambda h=handle: one(h)) for handle in (asked.session, other)]  # type: ignore[misc]  # a default binds it
    wait_until(lambda: not asked.session._target.answers())
    start_daemon()
    assert [result(future) for future in futures].count(True) == 1
    assert statuses(result(waiting)) == ["ok"]
    assert (files.root / "a.txt").exists()
    asked.stream.close()
    asked.session.stop()


def test_a_function_answers_for_a_turn_that_goes_on_after_its_supervisors_death(
    own_sessions: Sessions, files: Files, background: Background
) -> None:
    mock = [write(touch=files.path("asked"), wait_for=files.path("gate")), "done"]
    session = own_sessions.start(mock, can_use_tool=lambda name, arguments, context: True)
    waiting = background(lambda: session.send_message("go"))
    wait_until(lambda: (files.root / "asked").exists(), 20)
    files.open("gate")  # the next life goes on without a pause, so the call comes as early as it can
    kill_pid(supervisor_pid(own_sessions.supervisor))
    assert statuses(result(waiting)) == ["ok"]


@pytest.mark.parametrize(("approvers", "expected"), [([], "error"), ([True], "ok")])
def test_who_is_about_to_subscribe_counts_as_there(
    sessions: Sessions, approvers: list[bool | str], expected: str
) -> None:
    target = sessions.supervisor
    target.ensure()
    given = {k: v for k, v in sessions.options([write(), "done"]).items() if k != "supervisor"}
    identity = perform(target, start_call(start_options(given, link=True), approvers), ANSWER_S)
    session = Session.attach(identity.session_id, supervisor=target)
    turn = session.submit("go")
    wait_until(lambda: session.requests() or session.status()["turn"] is None, 20)
    with session.events(approver=True):
        for row in session.requests():
            session.answer(row["request_id"], "allow")
        assert statuses(turn.result(ANSWER_S)) == [expected]
    session.stop()


# --- nobody's silence is a yes ----------------------------------------------------------------------------------------


def test_when_its_approver_leaves_the_request_waits_for_another(asked: Asked) -> None:
    asked.stream.close()
    wait_until(lambda: asked.session.status()["subscribers"] == 0)
    with pytest.raises(CallTimeout):
        asked.turn.result(0.5)
    with asked.session.events(approver=True):
        asked.session.answer(asked.session.requests()[0]["request_id"], "allow")
        assert statuses(asked.end()) == ["ok"]


def test_permission_timeout_denies(sessions: Sessions, files: Files) -> None:
    asked = Asked(sessions, permission_timeout=0.2)
    with asked.stream:
        found = asked.end()
    assert "nobody answered within 0.2 s" in found.messages[2].tool_results[0].content
    assert data(asked.session, "tool_result")[0]["code"] == "permission_timeout"
    assert not (files.root / "a.txt").exists()
    with pytest.raises(AlreadyResolved, match=r"by nobody \(permission_timeout\)") as caught:
        asked.session.answer(asked.id, "allow")
    assert (caught.value.by, caught.value.decision) == (None, "deny")


@pytest.mark.parametrize("value", [0, -1, True, "soon", float("nan")])
def test_a_permission_timeout_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(InvalidOption) as caught:
        Session.start_link(provider="mock", permission_timeout=value)
    assert caught.value.option == "permission_timeout"


def test_an_interrupt_closes_the_call_and_its_request(asked: Asked, files: Files) -> None:
    assert asked.session.interrupt()
    assert asked.end().finish_reason == "interrupted"
    resolved = data(asked.session, "permission_resolved")
    assert [(one["decision"], one["by"], one["code"]) for one in resolved] == [("closed", None, "interrupted")]
    assert [one["status"] for one in data(asked.session, "tool_result")] == ["interrupted"]
    with pytest.raises(AlreadyResolved):
        asked.session.answer(asked.id, "allow")
    assert (asked.session.requests(), (files.root / "a.txt").exists()) == ([], False)


def test_an_interrupt_of_a_session_whose_process_died_meanwhile_closes_it_too(asked: Asked) -> None:
    kill(asked.session)
    until(asked.stream, "permission_request")
    assert asked.session.interrupt()
    assert asked.end().finish_reason == "interrupted"
    assert len(data(asked.session, "permission_resolved")) == 1


def test_a_session_with_an_open_request_does_not_sleep(sessions: Sessions) -> None:
    asked = Asked(sessions, hibernate_after=0.2)
    pid = int(asked.session.pid or 0)
    asked.stream.close()
    with pytest.raises(CallTimeout):
        asked.turn.result(1.0)
    assert int(asked.session.pid or 0) == pid
    asked.session.answer(asked.id, "allow")
    asked.end()
    wait_until(lambda: asked.session.status()["state"] == "hibernated", 20)
    with pytest.raises(AlreadyResolved):  # it wakes to say so
        asked.session.answer(asked.id, "deny")


def test_options_that_ask_for_nothing_resolve_what_is_open(sessions: Sessions) -> None:
    asked = Asked(sessions)
    asked.stream.close()
    asked.session.stop()
    again = sessions.start([write(), "done"], session_id=asked.session.session_id, phase="accept_edits")
    found = again.send_message("go", message_id=asked.turn.message_id, timeout=ANSWER_S)
    assert statuses(found) == ["ok"]
    assert [one["code"] for one in data(again, "permission_resolved")] == ["not_needed"]


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_a_remembered_answer_holds_for_the_session_in_memory_only(
    own_sessions: Sessions, home: Path, files: Files
) -> None:
    mock = [write("a"), "one", write("b"), "two", write("c"), "three"]
    asked = Asked(own_sessions, mock)
    session = asked.session
    asked.stream.close()
    session.answer(asked.id, "allow", remember=True)
    asked.end()
    assert statuses(session.send_message("more", timeout=ANSWER_S)) == ["ok", "ok"]
    kill(session)
    assert statuses(session.send_message("and more", timeout=ANSWER_S)) == ["ok"] * 3
    assert len(data(session, "permission_request")) == 1
    assert session.status()["incarnation"] == 2
    assert [path for path in home.rglob("*") if path.is_file() and b'"remember' in path.read_bytes()] == []
    session.stop()
    again = own_sessions.start([*mock, write("d"), "four"], session_id=session.session_id)
    assert statuses(again.send_message("x", timeout=ANSWER_S))[-1] == "error"  # a resume has nothing of it


def test_a_remembered_denial_holds_too(sessions: Sessions) -> None:
    asked = Asked(sessions, [write("a"), "one", write("b"), "two"])
    with asked.stream:
        asked.session.answer(asked.id, "deny", remember=True)
        asked.end()
        found = asked.session.send_message("more", timeout=ANSWER_S)
    assert statuses(found) == ["error", "error"]
    assert "for the rest of the session" in found.messages[-2].tool_results[0].content


def test_of_bash_one_command_is_remembered(sessions: Sessions) -> None:
    asked = Asked(sessions, [bash("echo a"), bash("echo a"), bash("echo a; echo b"), "done"])
    with asked.stream:
        asked.session.answer(asked.id, "allow", remember=True)
        second = until(asked.stream, "permission_request")
        assert second.data["arguments"]["command"] == "echo a; echo b"
        asked.session.answer(second.data["request_id"], "deny")
        assert statuses(asked.end()) == ["ok", "ok", "error"]


def test_no_grant_is_in_any_file(home: Path, files: Files, daemon: Path) -> None:
    options = {
        "phase": "accept_edits", "allowed_tools": ["bash", "granted_tool"], "readonly_tools": ["vouched_tool"],
        "api_key": "sk-secret-secret", "env": {"GIVEN_VARIABLE": "given-value", "PATH": "/usr/bin:/bin"},
    }  # fmt: skip
    mock = [bash("echo a"), "one", bash("echo b"), "two"]
    asked = Asked(Sessions(daemon, files.root), mock, **options)  # type: ignore[arg-type]  # a path will do
    asked.session.answer(asked.id, "allow", remember=True)
    asked.end()
    kill(asked.session)
    found = asked.session.send_message("more", can_use_tool=lambda *_: True, phase="default", timeout=ANSWER_S)
    assert statuses(found) == ["ok", "ok"]
    grants = [
        b"accept_edits", b"granted_tool", b"vouched_tool", b"sk-secret", b"given-value", b"approver", b'"remember',
        rule_of("bash", {"command": "echo a"}).split()[1].encode(),
    ]  # fmt: skip
    kept = [(p.name, grant) for p in home.rglob("*") if p.is_file() for grant in grants if grant in p.read_bytes()]
    assert kept == []
    asked.stream.close()
    asked.session.stop()


# --- can_use_tool -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "expected", "said"),
    [
        (True, "ok", None),
        ("allow", "ok", None),
        (("allow", None), "ok", None),
        (False, "error", "denied by the user"),
        (("deny", "not that"), "error", "not that"),
        (1, "error", "returned 1, which is no answer"),
        (None, "error", "returned None"),
        (ValueError("x"), "error", "can_use_tool raised ValueError"),
    ],
)
def test_a_function_answers_in_the_client(sessions: Sessions, returned: Any, expected: str, said: str | None) -> None:
    seen: list[tuple[str, dict[str, Any], PermissionContext, str]] = []

    def can_use_tool(name: str, arguments: dict[str, Any], context: PermissionContext) -> Any:
        seen.append((name, arguments, context, threading.current_thread().name))
        if isinstance(returned, Exception):
            raise returned
        return returned

    session = sessions.start([write(), "done"], can_use_tool=can_use_tool)
    found = session.send_message("go", timeout=ANSWER_S)
    assert statuses(found) == [expected]
    name, arguments, context, thread = seen[0]
    assert (len(seen), name, arguments["path"], context.turn, thread) == (1, "write", "a.txt", "t1", "can_use_tool")
    assert said is None or said in found.messages[2].tool_results[0].content


def test_a_function_for_one_message_is_asked_for_its_turn_only(sessions: Sessions, files: Files) -> None:
    session = sessions.start([write("a", wait_for=files.path("gate")), "one", write("b"), "two"])
    seen: list[str] = []

    def can_use_tool(name: str, arguments: dict[str, Any], context: PermissionContext) -> bool:
        seen.append(arguments["path"])
        return True

    first = session.submit("first")
    second = session.submit("second", can_use_tool=can_use_tool)
    files.open("gate")
    assert statuses(first.result(ANSWER_S)) == ["error"]  # nobody answers for it, so it does not wait
    assert statuses(second.result(ANSWER_S)) == ["error", "ok"]
    assert seen == ["b"]
    wait_until(lambda: session.status()["subscribers"] == 0)  # and then it is gone


def test_a_function_of_a_message_that_was_sent_before_does_not_stay(sessions: Sessions) -> None:
    session = sessions.start([write("a"), "one"])
    turn = session.submit("first", can_use_tool=lambda *_: True)
    turn.result(ANSWER_S)
    for again in (session.submit, session.send_message):
        again("first", message_id=turn.message_id, can_use_tool=lambda *_: True)
        wait_until(lambda: session.status()["subscribers"] == 0)


@pytest.mark.parametrize("value", [3, "allow"])
def test_a_can_use_tool_that_cannot_be_called_is_refused(sessions: Sessions, value: object) -> None:
    with pytest.raises(InvalidOption, match="can_use_tool"):
        sessions.start(["x"], can_use_tool=value)
    session = sessions.start(["x"])
    with pytest.raises(InvalidOption, match="can_use_tool"):
        session.send_message("go", can_use_tool=value)  # type: ignore[arg-type]  # that is the point

    async def later(*_: Any) -> bool:
        return True

    with pytest.raises(InvalidOption, match="AsyncSession"):
        session.send_message("go", can_use_tool=later)


async def test_the_asyncio_twin_does_the_same(sessions: Sessions) -> None:
    async def can_use_tool(name: str, arguments: dict[str, Any], context: PermissionContext) -> str:
        await asyncio.sleep(0)
        return "allow"

    mock = [write("a"), "one", write("b"), "two", write("c"), "three"]
    session = await AsyncSession.start_link(**sessions.options(mock))
    async with session:
        first = await session.send_message("1", can_use_tool=can_use_tool, timeout=ANSWER_S)
        turn = await session.submit("2", can_use_tool=lambda *_: ("deny", "no"))
        second = await turn.result(ANSWER_S)
        async with session.events(approver=True) as stream:
            turn = await session.submit("3")
            async for item in stream:
                if isinstance(item, Event) and item.event == "permission_request":
                    break
            (row,) = await session.requests()
            await session.answer(row["request_id"], "allow")
            with pytest.raises(AlreadyResolved):
                await session.answer(row["request_id"], "deny")
            third = await turn.result(ANSWER_S)
    assert [statuses(one)[-1] for one in (first, second, third)] == ["ok", "error", "ok"]


async def test_a_session_of_the_asyncio_twin_may_have_a_function_for_all_turns(sessions: Sessions) -> None:
    session = await AsyncSession.start_link(**sessions.options([write(), "done"], can_use_tool=lambda *_: True))
    async with session:
        assert statuses(await session.send_message("go", timeout=ANSWER_S)) == ["ok"]


def test_a_run_in_this_process_asks_the_function_too(tmp_path: Path) -> None:
    async def allow(name: str, arguments: dict[str, Any], context: PermissionContext) -> bool:
        return name == "write"

    options: dict[str, Any] = {"provider": "mock", "mock": [write(), "done"], "cwd": str(tmp_path)}
    assert statuses(run("go", **options)) == ["error"]
    assert statuses(run("go", can_use_tool=lambda *_: False, **options)) == ["error"]
    assert statuses(asyncio.run(arun("go", can_use_tool=allow, **options))) == ["ok"]


# --- the terminal -----------------------------------------------------------------------------------------------------


def mocked(*steps: Any) -> list[str]:
    """The flags of a session with this script."""
    return ["--provider", "mock", "--option", f"mock={json.dumps(steps)}"]


def test_chat_asks_the_person(cli_daemon: Path, tmp_path: Path) -> None:
    mock = [write("a"), "one", write("b"), "two", write("c"), "three", write("d"), "four"]
    with Terminal("chat", "bob", "--cwd", str(tmp_path), *mocked(*mock)) as chat:
        for number, (reply, answer) in enumerate([(b"n\n", "one"), (b"hm\ny\n", "two"), (b"always\n", "three")], 1):
            chat.wait_for("> ", number)
            chat.type(b"go\n")
            chat.wait_for("allow it?", number + (number > 2))
            chat.type(reply)
            chat.wait_for(answer)
        chat.wait_for("> ", 4)
        chat.type(b"go\n")
        chat.wait_for("> ", 5)
        chat.type(CTRL_D)
        assert chat.end() == 0
    assert sorted(p.name for p in tmp_path.iterdir() if len(p.name) == 1) == ["b", "c", "d"]


def test_attached_terminals_are_asked_and_one_of_them_answers(cli_daemon: Path, tmp_path: Path) -> None:
    session = Session.start(**Sessions(daemon_target(), tmp_path).options([write("a"), "one"], name="bob"))
    with Terminal("attach", "bob") as one:
        one.wait_for("detaches")
        session.submit("go")
        one.wait_for("allow it?")
        with Terminal("attach", "bob") as late:
            late.wait_for("allow it?")
            late.type(b"y\n")
            for terminal in (one, late):
                terminal.wait_for("turn t1 ended: stop")
                terminal.wait_for("allowed by process")
        with Terminal("attach", "bob", "--from", "0") as later:
            later.wait_for("turn t1 ended: stop")
            assert "allow it?" not in later.seen
    assert (tmp_path / "a").exists()


def daemon_target() -> Target:
    """Of a daemon that is started here."""
    start_daemon()
    return DaemonTarget(default_socket())


def test_a_question_on_a_terminal_is_taken_back_when_somebody_else_has_answered(
    cli_daemon: Path, tmp_path: Path
) -> None:
    with Terminal("chat", "bob", "--cwd", str(tmp_path), *mocked(write("a"), "one", write("b"), "two")) as chat:
        chat.wait_for("> ")
        chat.type(b"go\n")
        chat.wait_for("allow it?")
        other = Session.attach("bob")
        other.answer(other.requests()[0]["request_id"], "allow")
        chat.wait_for("one")
        chat.wait_for("> ", 2)
        chat.type(b"again\n")
        chat.wait_for("allow it?", 2)
        chat.type(CTRL_C)
        chat.wait_for("> ", 3)
        chat.type(CTRL_D)
        assert chat.end() == 0
    assert [p.name for p in tmp_path.iterdir() if len(p.name) == 1] == ["a"]


def test_a_subscriber_that_says_nonsense_of_its_approval_is_refused(sessions: Sessions) -> None:
    session = sessions.start(["x"])
    with pytest.raises(ProtocolError, match="approvers are true or ids of messages"):
        session.events(approver=["all"])  # type: ignore[arg-type]  # that is the point
    assert session.send_message("still there", timeout=ANSWER_S).text == "x"
