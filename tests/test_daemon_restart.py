"""What a restart of the daemon brings back: all sessions by name, in one event, without grants, and each turn once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from athena import AsyncSession, Session
from athena.config import default_paths
from athena.errors import AlreadyStarted, AthenaError, NoProcess, NotFound, SessionFailed, Unavailable
from athena.supervisors import resolve, start_daemon, stop_supervisor
from tests.cli_fixtures import finish, start, supervisor
from tests.helpers import TIME_UNIT, wait_until, wait_until_async
from tests.session_fixtures import (
    Files,
    Program,
    background,
    daemon,
    files,
    guard_pid,
    is_gone,
    kill,
    kinds,
    log,
    program,
    result,
    supervisor_pid,
)

__all__ = ["background", "daemon", "files", "program"]

pytestmark = pytest.mark.slow

Background = Callable[[Callable[[], Any]], Future[Any]]
StartProgram = Callable[[str], Program]

CANARY = "sk-canary-2b7f11d0c3a94e58"


def kill_all(path: Path) -> None:
    """``kill -9`` of guard and supervisor, and what is left of a boot: nothing but the state directory."""
    target = resolve(path)
    pids = [guard_pid(target), supervisor_pid(target)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(map(is_gone, pids)))


def terminate(path: Path) -> None:
    """SIGTERM, as a service manager stops it."""
    guard = guard_pid(resolve(path))
    os.kill(guard, signal.SIGTERM)
    wait_until(lambda: is_gone(guard), 20)


def reboot(path: Path) -> None:
    """All processes are gone, the runtime directory is wiped, and the boot has another id."""
    kill_all(path)
    shutil.rmtree(default_paths().runtime)
    roster = default_paths().state / "roster.jsonl"
    boot = json.loads(roster.read_text().split("\n")[0])["boot"]
    roster.write_text(roster.read_text().replace(boot, "0" * len(boot)))


def info(path: Path) -> dict[str, Any]:
    """What the supervisor says of itself."""
    value: dict[str, Any] = resolve(path).pool.call("info", {}, b"", 10 * TIME_UNIT).json()
    return value


def begin(path: Path, mock: list[Any], **options: Any) -> Session:
    """A session that is not linked."""
    return Session.start(supervisor=path, **{"provider": "mock", "mock": mock, "shutdown": 1.0, **options})


def state_of(name: str, path: Path) -> str:
    """As ``athena status`` shows it."""
    return str(Session.attach(name, supervisor=path).status()["state"])


def effect(files: Files) -> dict[str, Any]:
    """A step that needs the grants: its effect is a line in a file."""
    command = f"echo ran >> {files.path('effects')}"
    return {"tool_calls": [{"name": "bash", "arguments": {"command": command}}]}


# --- all of them, by name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [kill_all, terminate, reboot])
def test_all_sessions_are_back_under_their_names_with_their_history(end: Callable[[Path], None], daemon: Path) -> None:
    for n in range(20):
        session = begin(daemon, [f"answer {n}", "more"], name=f"name{n}", hibernate_after=0.1 if n < 5 else 600)
        assert session.send_message("go").text == f"answer {n}"
    begin(daemon, ["x"], name="stopped").stop()
    begin(daemon, ["x"], name="temporary", restart="temporary")
    wait_until(lambda: state_of("name0", daemon) == "hibernated")
    end(daemon)
    ready = start_daemon()
    assert (ready["respawned"], ready["lost"]) == (20, 0)
    found = info(daemon)
    assert (found["respawned"], found["lost"], found["sessions"]) == (20, 0, 20)
    lines = (default_paths().logs / "supervisor.log").read_text().split("\n")
    assert [line.split(" roster: ")[1] for line in lines if " respawned=" in line] == ["respawned=20 lost=0"]
    for n in range(20):
        session = Session.attach(f"name{n}", supervisor=daemon)
        assert [m.content for m in session.messages()] == ["go", f"answer {n}"]
    assert state_of("name7", daemon) == "hibernated"  # nothing was open: no process
    assert session.send_message("on").text == "more"
    assert kinds(session.session_id).count("session_resume") == 1
    for name in ("stopped", "temporary"):
        with pytest.raises(NotFound):
            Session.attach(name, supervisor=daemon)


def test_it_comes_back_again_and_again(daemon: Path) -> None:
    session = begin(daemon, ["0", "1", "2", "3"], name="bob")
    for n in range(4):
        assert session.send_message("go").text == str(n)
        kill_all(daemon)
        assert start_daemon()["respawned"] == 1
    assert Session.attach("bob", supervisor=daemon).session_id == session.session_id


def test_a_failed_one_is_back_as_failed_and_can_be_restarted(daemon: Path) -> None:
    session = begin(daemon, ["x"], name="bob", max_restarts=0)
    kill(session)
    wait_until(lambda: state_of("bob", daemon) == "failed")
    kill_all(daemon)
    start_daemon()
    bob = Session.attach("bob", supervisor=daemon)
    assert (bob.status()["state"], bob.status()["last_reason"]) == ("failed", "killed")
    with pytest.raises(SessionFailed):
        bob.send_message("go")
    assert Session.restart("bob", supervisor=daemon).send_message("go").text == "x"
    kill_all(daemon)
    start_daemon()
    assert state_of("bob", daemon) == "hibernated"


def test_monitors_and_pids_are_of_the_new_supervisor(daemon: Path) -> None:
    old = begin(daemon, ["x"], name="bob").pid
    kill_all(daemon)
    start_daemon()
    assert old is not None
    with pytest.raises(NoProcess):
        Session.attach(old, supervisor=daemon)
    bob = Session.attach("bob", supervisor=daemon)
    assert bob.pid is not None
    assert bob.pid.is_logical
    monitor = bob.monitor()
    bob.stop()
    down = monitor.wait(10 * TIME_UNIT)
    assert down is not None
    assert down.reason == "normal"


def test_a_session_whose_log_was_removed_meanwhile_does_not_rise_from_the_dead(daemon: Path) -> None:
    session = begin(daemon, ["x"], name="bob")
    terminate(daemon)
    Session.delete(session.session_id)
    assert start_daemon()["respawned"] == 0
    assert not (default_paths().sessions / f"{session.session_id}.jsonl").exists()


def test_what_cannot_come_back_is_counted_and_comes_back_when_it_can(daemon: Path) -> None:
    for name in ("a", "b", "c"):
        begin(daemon, ["x"], name=name)
    kill_all(daemon)
    ran = supervisor("start", "--json", env={"ATHENA_MAX_SESSIONS": "2"})
    assert (ran.json["respawned"], ran.json["lost"]) == (2, 1)
    kill_all(daemon)
    assert start_daemon()["respawned"] == 3


def test_a_store_that_only_its_client_can_open_waits_for_it(daemon: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"store": "athena.stores.jsonl:JsonlStore", "store_options": {"root": str(tmp_path)}}
    session = begin(daemon, ["one", "two"], name="bob", **options)
    assert session.send_message("go").text == "one"
    assert str(tmp_path) not in (default_paths().state / "roster.jsonl").read_text()
    kill_all(daemon)
    assert start_daemon()["respawned"] == 1
    with pytest.raises(SessionFailed, match="store_options"):
        Session.attach("bob", supervisor=daemon).send_message("go")
    assert session.send_message("go").text == "two"  # the handle presents them


# --- linked ones ------------------------------------------------------------------------------------------------------

LINKED = """
import time
from athena import Session
session = Session.start_link(supervisor={supervisor!r}, provider="mock", mock=["x"], name="linked")
print("up", flush=True)
time.sleep(1000)
"""


def test_a_linked_one_comes_back_only_if_its_program_is_there(daemon: Path, program: StartProgram) -> None:
    running = program(LINKED.format(supervisor=str(daemon)))
    assert running.line() == "up"
    kill_all(daemon)
    assert start_daemon()["respawned"] == 1
    assert state_of("linked", daemon) == "hibernated"
    kill_all(daemon)
    running.kill()
    assert start_daemon()["respawned"] == 0
    assert Session.whereis("linked", supervisor=daemon) is None


def test_the_link_holds_over_the_restart(daemon: Path, program: StartProgram) -> None:
    running = program(LINKED.format(supervisor=str(daemon)))
    assert running.line() == "up"
    kill_all(daemon)
    start_daemon()
    running.kill()
    wait_until(lambda: Session.whereis("linked", supervisor=daemon) is None, 10)


def test_after_a_reboot_no_linked_one_comes_back(daemon: Path) -> None:
    Session.start_link(supervisor=daemon, provider="mock", mock=["x"], name="linked")
    reboot(daemon)
    assert start_daemon()["respawned"] == 0


# --- grants -----------------------------------------------------------------------------------------------------------


def test_an_open_turn_waits_for_its_client_and_then_ends_once(
    daemon: Path, files: Files, background: Background
) -> None:
    first = {**effect(files), "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = begin(daemon, [first, "done"], name="bob", phase="trusted")
    session.submit("go", message_id="m1")
    files.wait_lines("asked")
    kill_all(daemon)
    start_daemon()
    files.open("gate")
    wait_until(lambda: state_of("bob", daemon) == "needs_grants", 10)
    assert info(daemon)["needs_grants"] == 1
    other = Session.attach("bob", supervisor=daemon)  # it has no options to present: the turn waits on
    assert [m.content for m in other.messages()] == ["go"]
    waiting = background(lambda: other.send_message("and more", message_id="m2"))
    wait_until(lambda: other.status()["queue"] == 1)
    assert files.lines("effects") == []
    assert kinds(session.session_id).count("assistant_message") == 0
    assert session.send_message("go", message_id="m1", timeout=20 * TIME_UNIT).text == "done"
    assert files.lines("effects") == ["ran"]
    assert result(waiting).ok  # one answered by a script that begins again
    found = kinds(session.session_id)
    assert [found.count(kind) for kind in ("turn_start", "turn_end", "tool_call")] == [2, 2, 1]
    assert state_of("bob", daemon) == "running"
    assert session.status()["restarts_in_window"] == 0


def test_a_blocked_caller_presents_by_itself_and_gets_its_answer(
    daemon: Path, files: Files, background: Background
) -> None:
    first = {**effect(files), "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = begin(daemon, [first, "done"], phase="trusted")
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("asked")
    kill_all(daemon)
    start_daemon()
    files.open("gate")
    assert result(answer).text == "done"
    assert files.lines("effects") == ["ran"]


def test_the_command_restart_keeps_blocked_callers(daemon: Path, files: Files, background: Background) -> None:
    first = {**effect(files), "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = begin(daemon, [first, "done"], phase="trusted")
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("asked")
    ran = supervisor("restart", "--json")
    assert (ran.json["respawned"], ran.json["lost"]) == (1, 0)
    files.open("gate")
    assert result(answer).text == "done"
    assert "brought back: 1, lost: 0" in supervisor("restart").out


def test_a_program_that_is_started_again_presents_by_a_start_under_the_id(daemon: Path, files: Files) -> None:
    first = {**effect(files), "touch": files.path("asked"), "wait_for": files.path("gate")}
    old = begin(daemon, [first, "done"], session_id="bob", phase="trusted")
    old.submit("go", message_id="m1")
    files.wait_lines("asked")
    reboot(daemon)
    start_daemon()
    files.open("gate")
    wait_until(lambda: state_of("bob", daemon) == "needs_grants", 10)
    with pytest.raises(AlreadyStarted, match="under the name"):
        begin(daemon, [], session_id="bob", name="robert")
    with pytest.raises(AthenaError, match="seed"):
        begin(daemon, ["x"], session_id="bob", messages=[{"role": "user", "content": "hi"}])
    wait_until(lambda: state_of("bob", daemon) == "needs_grants", 10)  # a start that fails changes nothing
    new = begin(daemon, [first, "done"], session_id="bob", phase="trusted")
    assert new.send_message("go", message_id="m1", timeout=20 * TIME_UNIT).text == "done"
    assert files.lines("effects") == ["ran"]
    with pytest.raises(AlreadyStarted):
        begin(daemon, [], session_id="bob")


def test_nothing_open_means_idle_and_unprivileged_until_somebody_presents(daemon: Path, files: Files) -> None:
    session = begin(daemon, ["hello", effect(files), "one", effect(files), "two"], name="bob", phase="trusted")
    session.send_message("go")
    kill_all(daemon)
    start_daemon()
    bob = Session.attach("bob", supervisor=daemon)
    assert bob.send_message("without", timeout=20 * TIME_UNIT).text == "one"
    assert files.lines("effects") == []  # denied, as unattended as it is
    assert session.send_message("with", timeout=20 * TIME_UNIT).text == "two"
    assert files.lines("effects") == ["ran"]


def test_what_is_presented_while_a_turn_runs_without_holds_from_the_next_one_on(
    daemon: Path, files: Files, background: Background
) -> None:
    slow = {**effect(files), "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = begin(daemon, ["hello", slow, "one", effect(files), "two"], name="bob", phase="trusted")
    session.send_message("go")
    kill_all(daemon)
    start_daemon()
    bob = Session.attach("bob", supervisor=daemon)
    without = background(lambda: bob.send_message("without"))
    files.wait_lines("asked")
    assert session.status()["state"] == "running"  # any call presents, and does not wait for the turn
    files.open("gate")
    assert result(without).text == "one"
    assert files.lines("effects") == []
    assert session.send_message("with", timeout=20 * TIME_UNIT).text == "two"
    assert files.lines("effects") == ["ran"]


def test_an_idle_handle_presents_before_its_next_message(daemon: Path, files: Files) -> None:
    session = begin(daemon, ["hello", effect(files), "done"], phase="trusted")
    session.send_message("go")  # its connection stays in the pool, and is cut while nobody looks
    kill_all(daemon)
    start_daemon()
    assert session.send_message("more", timeout=20 * TIME_UNIT).text == "done"
    assert files.lines("effects") == ["ran"]


async def test_the_async_client_presents_too(daemon: Path, files: Files) -> None:
    first = {**effect(files), "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = await AsyncSession.start(
        supervisor=daemon, provider="mock", mock=["hello", first, "done"], phase="trusted", shutdown=1.0
    )
    await session.send_message("hi")
    turn = await session.submit("go")
    await wait_until_async(lambda: bool(files.lines("asked")), 20)
    kill_all(daemon)
    start_daemon()
    files.open("gate")
    assert (await turn.result(20 * TIME_UNIT)).text == "done"
    assert files.lines("effects") == ["ran"]
    await session.stop()
    assert info(daemon)["sessions"] == 0


def test_an_event_stream_presents_and_has_no_gap(daemon: Path, files: Files) -> None:
    first = {**effect(files), "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = begin(daemon, [first, "done"], phase="trusted")
    with session.events(0, deltas=False) as stream:
        session.submit("go")
        files.wait_lines("asked")
        kill_all(daemon)
        start_daemon()
        files.open("gate")
        seen: list[Any] = []
        while not seen or getattr(seen[-1], "event", None) != "turn_end":
            seen.append(stream.next(20 * TIME_UNIT))
    assert [e.seq for e in seen if hasattr(e, "seq")] == [e.seq for e in log(session.session_id)]
    assert files.lines("effects") == ["ran"]


def test_after_its_time_it_goes_on_without(daemon: Path, files: Files) -> None:
    first = {**effect(files), "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = begin(daemon, [first, "done"], name="bob", phase="trusted", grants_timeout=0.3)
    session.submit("go", message_id="m1")
    files.wait_lines("asked")
    kill_all(daemon)
    start_daemon()
    files.open("gate")
    wait_until(lambda: "turn_end" in kinds(session.session_id), 20)
    assert files.lines("effects") == []
    assert [e.data["status"] for e in log(session.session_id) if e.event == "tool_result"] == ["denied"]
    assert state_of("bob", daemon) == "running"
    assert info(daemon)["needs_grants"] == 0


def test_a_waiting_turn_can_be_interrupted_and_the_next_message_runs(daemon: Path, files: Files) -> None:
    first = {"touch": files.path("asked"), "wait_for": files.path("gate")}
    begin(daemon, [first, "fresh"], name="bob").submit("go")
    files.wait_lines("asked")
    kill_all(daemon)
    start_daemon()
    wait_until(lambda: state_of("bob", daemon) == "needs_grants", 10)
    bob = Session.attach("bob", supervisor=daemon)
    assert bob.interrupt()
    assert bob.status()["state"] == "running"
    files.open("gate")
    assert bob.send_message("next", timeout=20 * TIME_UNIT).ok
    ends = [e.data["finish_reason"] for e in log(bob.session_id) if e.event == "turn_end"]
    assert ends == ["interrupted", "stop"]


def test_a_child_that_dies_while_it_waits_waits_on(daemon: Path, files: Files) -> None:
    first = {**effect(files), "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = begin(daemon, [first, "done"], name="bob", phase="trusted", max_restarts=10)
    session.submit("go", message_id="m1")
    files.wait_lines("asked")
    kill_all(daemon)
    start_daemon()
    files.open("gate")
    bob = Session.attach("bob", supervisor=daemon)
    for life in range(1, 5):  # so many deaths would end a turn that runs as error_crashed
        wait_until(lambda: [bob.status()[k] for k in ("state", "incarnation")] == ["needs_grants", life], 10)  # noqa: B023
        if life < 4:
            kill(bob)
    assert session.send_message("go", message_id="m1", timeout=20 * TIME_UNIT).text == "done"
    assert files.lines("effects") == ["ran"]


def test_messages_that_waited_behind_a_turn_wait_with_it_and_keep_their_own_grants(daemon: Path, files: Files) -> None:
    first = {"text": "one", "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = begin(daemon, [first, effect(files), "two", effect(files), "three"], name="bob")
    turns = [session.submit("a"), session.submit("b", phase="trusted"), session.submit("c")]
    files.wait_lines("asked")
    kill_all(daemon)
    start_daemon()
    files.open("gate")
    wait_until(lambda: state_of("bob", daemon) == "needs_grants", 10)
    assert Session.attach("bob", supervisor=daemon).status()["queue"] == 2
    for turn, text in zip(turns, ("one", "two", "three"), strict=True):
        assert turn.result(20 * TIME_UNIT).text == text
    assert files.lines("effects") == ["ran"]


def test_no_grant_no_key_and_no_environment_is_in_any_file(
    daemon: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_VARIABLE", CANARY)
    look = {"tool_calls": [{"name": "bash", "arguments": {"command": f"env > {files.path('env')}"}}]}
    session = begin(
        daemon, [look, "done"], phase="bypass_permissions", allowed_tools=["bash"], api_key=CANARY,
        env_allow=["SOME_VARIABLE"], extra_headers={"x-key": CANARY},
    )  # fmt: skip
    assert session.send_message("go", phase="trusted").text == "done"
    assert CANARY in Path(files.path("env")).read_text()
    kill_all(daemon)
    start_daemon()
    assert session.status()["state"] == "running"  # and has them again
    terminate(daemon)
    words = [CANARY, "bypass_permissions", "trusted", "SOME_VARIABLE", '"allowed_tools":["']
    for path in default_paths().state.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [word for word in words if word.encode() in data], path


def test_who_goes_on_without_the_allow_list_of_a_session_is_allowed_no_more_than_it_was(daemon: Path) -> None:
    look = {"tool_calls": [{"name": "glob", "arguments": {"pattern": "*"}}]}
    begin(daemon, [look, "one", look, "two"], name="bob", allowed_tools=["grep"])
    kill_all(daemon)
    start_daemon()
    told = Session.attach("bob", supervisor=daemon).send_message("go").messages[-2].tool_results[0]
    assert told.is_error
    assert "allowed_tools (none)" in told.content


# --- stops, and the service manager -----------------------------------------------------------------------------------


def test_a_stop_that_was_asked_for_counts_even_if_the_daemon_dies_before_it_is_done(
    daemon: Path, files: Files, background: Background
) -> None:
    command = f"trap '' TERM; echo $$ >> {files.path('pids')}; sleep 1000"
    step = {"tool_calls": [{"name": "bash", "arguments": {"command": command}}]}
    session = begin(daemon, [step], name="bob", phase="trusted", shutdown=30)
    session.submit("go")
    files.wait_lines("pids")
    os.kill(int(session.pid or 0), signal.SIGSTOP)
    stopped = background(session.stop)
    wait_until(lambda: state_of("bob", daemon) == "stopping")
    kill_all(daemon)
    assert start_daemon()["respawned"] == 0
    result(stopped)
    assert Session.whereis("bob", supervisor=daemon) is None


def test_a_stop_while_there_is_no_daemon_says_that_the_session_will_come_back(
    daemon: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("athena.recovery.RECONNECT_S", 0.2)
    session = begin(daemon, ["x"], name="bob")
    terminate(daemon)
    with pytest.raises(Unavailable, match="lost"):
        session.stop()
    start_daemon()
    session.stop()
    assert Session.whereis("bob", supervisor=daemon) is None


def test_it_tells_the_service_manager_when_it_listens_and_when_it_stops(daemon: Path, tmp_path: Path) -> None:
    stop_supervisor(daemon, 20 * TIME_UNIT)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20 * TIME_UNIT)
        running = start("run", program="athena.cli.supervisor", env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(100) == b"READY=1"
        assert supervisor("status").code == 0
        running.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        assert finish(running).code == 0


def test_install_writes_a_unit_that_systemd_reads(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "ATHENA_HOME": str(tmp_path / "a state 100%")}
    shown = supervisor("install", "--print", env=env)
    assert not (tmp_path / ".config").exists()
    ran = supervisor("install", "--json", env=env)
    path = tmp_path / ".config" / "systemd" / "user" / "athena.service"
    assert ran.json == {"path": str(path), "written": True}
    assert path.read_text() == shown.out
    for line in ("Type=notify", "Delegate=yes", f'Environment="ATHENA_HOME={tmp_path}/a state 100%%"'):
        assert line in shown.out.split("\n")
    assert supervisor("install", "--json", env=env).json["written"] is False
    path.write_text("[Service]\n")
    refused = supervisor("install", env=env)
    assert refused.code != 0
    assert "--force" in refused.err
    assert supervisor("install", "--force", env=env).code == 0
    assert path.read_text() == shown.out
