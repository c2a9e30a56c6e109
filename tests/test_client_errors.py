"""What a client is told when its supervisor, its session or its own request is not as it should be."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from athena import AsyncSession, Message, Session, client, supervisors
from athena.config import PRODUCT
from athena.environment import ROOT
from athena.errors import (
    AlreadyStarted,
    AthenaError,
    InvalidOption,
    InvalidSessionId,
    NoProcess,
    NotFound,
    NotRunning,
    Refused,
    SessionStopped,
    Unavailable,
    Unresponsive,
    VersionMismatch,
)
from athena.session_calls import Identity
from athena.wire import PROTOCOL, Outbox
from tests.helpers import TIME_UNIT
from tests.session_fixtures import Sessions, is_gone
from tests.session_fixtures import sessions as sessions
from tests.session_fixtures import shared_supervisor as shared_supervisor

Answer = Callable[[socket.socket], None]


@contextmanager
def listener(path: Path, answer: Answer) -> Iterator[Path]:
    """Something that listens where a supervisor should; ``answer`` is called with each connection."""
    stop = threading.Event()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(0.05)

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection, suppress(OSError):  # the client may have left first
                    connection.settimeout(5 * TIME_UNIT)
                    answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            stop.set()
            thread.join()


def hello(**more: Any) -> bytes:
    box = Outbox()
    box.put({"kind": "hello", "protocol": PROTOCOL, "product": PRODUCT, "pid": 1, "supervisor": "x", **more})
    return box.take() or b""


def greets_and_hangs_up(connection: socket.socket) -> None:
    connection.sendall(hello())
    connection.recv(65536)


def greets_and_is_silent(connection: socket.socket) -> None:
    connection.sendall(hello())
    is_silent(connection)


@pytest.fixture
def where(home: Path) -> Path:
    """A path for a socket, short enough for one."""
    home.mkdir(parents=True, exist_ok=True)
    return home / "x.sock"


# --- no supervisor ---------------------------------------------------------------------------------------------------


def test_without_a_supervisor_the_error_says_how_to_start_one(where: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: Session.attach("x", supervisor=where),
        lambda: Session.start(supervisor=where, provider="mock"),
    ]
    for call in calls:
        with pytest.raises(NotRunning, match="athena-supervisor start") as caught:
            call()
        assert isinstance(caught.value, Unavailable)
        assert str(where) in caught.value.message


def test_a_dead_supervisors_socket_is_no_supervisor(where: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(where))
    with pytest.raises(NotRunning, match="no supervisor listens"):
        Session.attach("x", supervisor=where)


def test_questions_need_no_supervisor_and_start_none(home: Path) -> None:
    assert Session.whereis("x") is None
    assert Session.list() == []
    assert Session.resume("x") == []
    assert not home.exists()


def test_a_socket_that_cannot_be_reached_names_the_variables(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="ATHENA_SOCKET and ATHENA_HOME"):
        Session.attach("x", supervisor=tmp_path / "file" / "x.sock")
    with pytest.raises(Unavailable):
        Session.attach("x", supervisor=tmp_path / "file")


async def test_the_async_client_says_the_same(where: Path) -> None:
    with pytest.raises(NotRunning, match="athena-supervisor start"):
        await AsyncSession.attach("x", supervisor=where)


@pytest.mark.parametrize("value", ["deamon", 5, "", ["x"]])
def test_a_supervisor_that_is_none_is_an_option_error(value: Any) -> None:
    with pytest.raises(InvalidOption, match="'embedded', 'daemon', a socket's path or a handle") as caught:
        Session.attach("x", supervisor=value)
    assert caught.value.option == "supervisor"


# --- something else at the socket ------------------------------------------------------------------------------------


def hangs_up(connection: socket.socket) -> None:
    pass


def is_silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def speaks_http(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def sends_another_frame(connection: socket.socket) -> None:
    box = Outbox()
    box.put({"kind": "event"})
    connection.sendall(box.take() or b"")
    connection.recv(65536)


FOREIGN = [speaks_http, sends_another_frame]


CLIENTS: dict[str, Callable[[Path], object]] = {
    "blocking": lambda where: Session.attach("x", supervisor=where),
    "async": lambda where: asyncio.run(_attach(where)),
}
both_clients = pytest.mark.parametrize("attach", CLIENTS.values(), ids=CLIENTS)


async def _attach(where: Path) -> AsyncSession:
    return await AsyncSession.attach("x", supervisor=where)


@both_clients
@pytest.mark.parametrize("answer", FOREIGN)
def test_what_is_no_supervisor_is_refused(
    answer: Answer, attach: Callable[[Path], object], where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "HELLO_S", 0.1)
    with listener(where, answer), pytest.raises(Refused, match="Athena"):
        attach(where)


@both_clients
def test_what_is_silent_may_be_a_stopped_supervisor(
    attach: Callable[[Path], object], where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "HELLO_S", 0.1)
    with listener(where, is_silent), pytest.raises(Unresponsive, match="or another program"):
        attach(where)


@both_clients
def test_what_hangs_up_at_once_may_be_a_dying_supervisor(attach: Callable[[Path], object], where: Path) -> None:
    with listener(where, hangs_up), pytest.raises(Unavailable, match="connection to the supervisor ended"):
        attach(where)


@both_clients
def test_another_users_socket_is_refused_before_anything_is_sent(
    attach: Callable[[Path], object], where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_peer_uid", lambda _: os.geteuid() + 1)
    received: list[bytes] = []
    with listener(where, lambda c: received.append(c.recv(1))), pytest.raises(Refused, match="another user"):
        attach(where)
    assert received in ([], [b""])


def test_a_supervisor_of_another_release_says_both(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions.start(["hi"])
    monkeypatch.setattr(client, "PRODUCT", "athena/9.9.9")
    with pytest.raises(VersionMismatch, match=r"athena/9\.9\.9") as caught:
        Session.attach("x", supervisor=sessions.supervisor.path)
    assert PRODUCT in caught.value.message
    assert "same release" in caught.value.message
    assert (caught.value.ours, caught.value.theirs) == ([PROTOCOL, PRODUCT], [PROTOCOL, "athena/9.9.9"])


@pytest.mark.parametrize(
    "call",
    [lambda w: Session.start(supervisor=w, provider="mock"), lambda w: Session.attach("x", supervisor=w),
     lambda w: Session.whereis("x", supervisor=w), lambda w: Session.list(supervisor=w),
     lambda w: Session(supervisors.DaemonTarget(w), Identity("x", None, None)).monitor()],
    ids=["start", "attach", "whereis", "list", "monitor"],
)  # fmt: skip
def test_a_supervisor_that_dies_during_a_call_is_unavailable(call: Callable[[Path], object], where: Path) -> None:
    with listener(where, greets_and_hangs_up), pytest.raises(Unavailable, match="supervisor"):
        call(where)


@pytest.mark.parametrize(
    "call",
    [lambda w: AsyncSession.start(supervisor=w, provider="mock"), lambda w: AsyncSession.attach("x", supervisor=w),
     lambda w: AsyncSession.whereis("x", supervisor=w), lambda w: AsyncSession.list(supervisor=w)],
    ids=["start", "attach", "whereis", "list"],
)  # fmt: skip
def test_a_supervisor_that_dies_during_a_call_is_unavailable_to_the_async_client(
    call: Callable[[Path], Coroutine[Any, Any, object]], where: Path
) -> None:
    with listener(where, greets_and_hangs_up), pytest.raises(Unavailable, match="supervisor"):
        asyncio.run(call(where))


def test_a_silent_supervisor_is_unresponsive_and_no_timeout_of_a_turn(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("session", "recovery"):
        monkeypatch.setattr(f"athena.{module}.ANSWER_S", 0.1)
    with listener(where, greets_and_is_silent), pytest.raises(Unresponsive, match="does not answer"):
        Session.attach("x", supervisor=where)


# --- sessions that are not there -------------------------------------------------------------------------------------


def test_a_name_a_pid_and_a_supervisor_that_are_not_there_are_three_errors(sessions: Sessions, where: Path) -> None:
    sessions.start(["hi"])
    errors: list[type[AthenaError]] = []
    for target, supervisor in (("nobody", sessions.supervisor), (2**22 + 1, sessions.supervisor), ("nobody", where)):
        with pytest.raises(AthenaError) as caught:
            Session.attach(target, supervisor=supervisor)
        errors.append(type(caught.value))
    assert errors == [NotFound, NoProcess, NotRunning]
    assert not any(issubclass(a, b) for a in errors for b in errors if a is not b)


def test_attach_creates_nothing(sessions: Sessions) -> None:
    before = len(Session.list(supervisor=sessions.supervisor))
    for target in ("nobody", "A" * 22):
        with pytest.raises(NotFound, match=target):
            Session.attach(target, supervisor=sessions.supervisor)
    assert len(Session.list(supervisor=sessions.supervisor)) == before


def test_attach_by_name_by_id_and_by_pid_is_one_session(sessions: Sessions) -> None:
    session = sessions.start(["hi"], name="finder")
    pid = session.pid
    assert pid is not None
    for target in ("finder", session.session_id, int(pid), pid):
        assert Session.attach(target, supervisor=sessions.supervisor).session_id == session.session_id
    assert Session.whereis("finder", supervisor=sessions.supervisor) == pid


def test_a_pid_of_an_earlier_life_names_no_process(sessions: Sessions) -> None:
    session = sessions.start(["hi"])
    old = session.pid
    assert old is not None
    os.kill(int(old), 9)
    session.send_message("x")
    assert is_gone(int(old))
    with pytest.raises(NoProcess, match=str(int(old))):
        Session.attach(old, supervisor=sessions.supervisor)


@pytest.mark.parametrize("target", [None, 1.5, True, b"x", ["x"]])
def test_what_names_no_session_is_an_option_error(target: Any, sessions: Sessions) -> None:
    with pytest.raises(InvalidOption, match="a name, a session id or a pid"):
        Session.attach(target, supervisor=sessions.supervisor)


def test_a_handle_of_a_stopped_session_says_that_its_process_is_gone(sessions: Sessions) -> None:
    session = sessions.start(["hi"])
    session.stop()
    session.stop()
    for call in (session.messages, session.status, lambda: session.send_message("x"), session.events):
        with pytest.raises(NoProcess, match="start it again under its id"):
            call()
    assert session.pid is None
    down = session.monitor().wait(5 * TIME_UNIT)
    assert down is not None
    assert down.reason == "noproc"


def test_a_turn_that_a_stop_cuts_short_says_so(sessions: Sessions, tmp_path: Path) -> None:
    session = sessions.start([{"wait_for": str(tmp_path / "never")}])
    turn = session.submit("x")
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            turn.result()
        except AthenaError as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    session.stop()
    thread.join(10 * TIME_UNIT)
    assert isinstance(failures[0], SessionStopped | NoProcess)


# --- starts that are refused -----------------------------------------------------------------------------------------


def test_a_live_session_is_not_started_twice_by_id_or_by_name(sessions: Sessions) -> None:
    session = sessions.start(["hi"], name="single")
    for given in ({"session_id": session.session_id}, {"name": "single"}):
        with pytest.raises(AlreadyStarted, match="attach to it or stop it") as caught:
            sessions.start(["hi"], **given)
        assert repr(caught.value.pid) == repr(session.pid)
    assert session.send_message("x").text == "hi"


def test_a_name_that_is_an_id_and_an_id_that_is_a_name_are_refused(sessions: Sessions) -> None:
    session = sessions.start(["hi"], name="taken")
    with pytest.raises(InvalidOption, match="is the id of a session") as caught:
        sessions.start(["hi"], name=session.session_id)
    assert caught.value.option == "name"
    with pytest.raises(InvalidOption, match="is the name of a session") as caught:
        sessions.start(["hi"], session_id="taken")
    assert caught.value.option == "session_id"


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", 5, True, ["x"]])
def test_a_name_that_is_none_is_refused(name: Any, sessions: Sessions) -> None:
    with pytest.raises(InvalidOption, match="name") as caught:
        sessions.start(["hi"], name=name)
    assert caught.value.option == "name"


def test_history_for_a_session_that_has_one_is_refused_and_the_log_stays(sessions: Sessions) -> None:
    session = sessions.start(["one", "two"], session_id="kept")
    session.send_message("a")
    session.stop()
    history = [Message("user", "other")]
    with pytest.raises(InvalidOption, match="leave it out to continue the log") as caught:
        sessions.start(["one", "two"], session_id="kept", messages=history)
    assert caught.value.option == "messages"
    again = sessions.start(["one", "two"], session_id="kept")
    assert again.send_message("b").text == "two"
    assert [m.text for m in again.messages()] == ["a", "one", "b", "two"]


@pytest.mark.parametrize("session_id", ["../up", "a/b", "..", "", "x" * 129, "a b", "ä"])
def test_a_session_id_that_is_none_is_refused_everywhere(session_id: str, sessions: Sessions, home: Path) -> None:
    with pytest.raises(InvalidSessionId, match="not legal"):
        sessions.start(["hi"], session_id=session_id)
    with pytest.raises(InvalidSessionId):
        Session.resume(session_id)
    assert [p for p in home.rglob("*") if p.suffix == ".jsonl"] == []


@pytest.mark.parametrize(
    ("given", "option"),
    [({"store": "no_such"}, "store"), ({"store": "tests.engine:Engine"}, "store"), ({"store": "ets"}, "store"),
     ({"tools": ["no_such"]}, "tools"), ({"tools": ["tests.engine:OK", "tests.engine:calls"]}, "tools"),
     ({"provider": "no_such"}, "provider"), ({"provider": "no.such:thing"}, "provider"),
     ({"mock": [{"textt": "x"}]}, "mock"), ({"store_options": {"colour": 1}}, "store_options")],
)  # fmt: skip
def test_a_start_that_only_the_child_can_refuse_is_refused_at_the_start(
    given: dict[str, Any], option: str, sessions: Sessions
) -> None:
    before = Session.list(supervisor=sessions.supervisor)
    with pytest.raises(InvalidOption) as caught:
        sessions.start(**given)
    assert caught.value.option == option
    assert caught.value.expected
    assert [r["session_id"] for r in Session.list(supervisor=sessions.supervisor)] == [r["session_id"] for r in before]


@pytest.mark.parametrize(
    "field",
    [
        "restart", "max_restarts", "max_seconds", "shutdown", "start_timeout", "hang_timeout",
        "hibernate_after", "max_memory", "max_processes", "max_files", "turn_timeout",
    ],
)  # fmt: skip
def test_a_wrong_field_of_the_specification_is_named(field: str, sessions: Sessions) -> None:
    for value in ("sometimes", -1, True, [1]):
        with pytest.raises(AthenaError, match=field) as caught:
            sessions.start(["hi"], **{field: value})
        assert isinstance(caught.value, ValueError)


# --- the other package of this name ----------------------------------------------------------------------------------


def test_the_process_manager_of_the_same_import_name_is_refused(tmp_path: Path, home: Path) -> None:
    info = tmp_path / "supervisor-4.2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: supervisor\nVersion: 4.2.5\n")
    code = "import athena; athena.Session.start_link(provider='mock')"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60 * TIME_UNIT, check=False
    )
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "Refused" in last
    assert "'supervisor' 4.2.5" in last
    assert "another virtual environment" in last
    assert not home.exists() or not list(home.rglob("*.sock"))


# --- frames ---------------------------------------------------------------------------------------------------------


def test_what_comes_right_behind_an_answer_is_not_lost(where: Path) -> None:
    def answers_with_more(connection: socket.socket) -> None:
        connection.sendall(hello())
        while b"subscribe" not in connection.recv(65536):
            pass
        box = Outbox()
        box.put({"kind": "event", "seq": 1}, b"{}")
        box.put({"kind": "reply", "id": 1, "ok": True}, b"{}")
        box.put({"kind": "event", "seq": 2}, b"{}")
        connection.sendall(b"".join(iter(box.take, None)))  # in one piece, as a busy machine delivers it
        connection.recv(1)

    with listener(where, answers_with_more):
        connection = client.SyncConnection(where)
        try:
            connection.call("subscribe", {}, b"", 5 * TIME_UNIT)
            assert [connection.next_frame().header["seq"] for _ in range(2)] == [1, 2]
        finally:
            connection.close()
