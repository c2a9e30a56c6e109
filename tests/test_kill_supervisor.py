"""What ``kill -9`` of anything above a session costs: no process, no socket and no accepted message is left behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from athena import Session
from athena.client import ConnectionLost
from athena.config import default_paths
from athena.errors import NotFound, NotRunning, Unavailable
from athena.recovery import Granted, Recovery
from athena.supervisors import EmbeddedSupervisor, Target, resolve, start_daemon, stop_supervisor
from tests.helpers import TIME_UNIT, wait_until
from tests.session_fixtures import (
    Files,
    Program,
    Sessions,
    background,
    below,
    daemon,
    files,
    guard_pid,
    is_gone,
    is_stopped,
    kill_pid,
    kinds,
    log,
    own_sessions,
    own_supervisor,
    program,
    result,
    stubborn,
    supervisor_pid,
    unix_sockets,
    wait_nothing_below,
    zygote_pid,
)
from tests.session_tools import ALL

__all__ = ["background", "daemon", "files", "own_sessions", "own_supervisor", "program"]

pytestmark = pytest.mark.slow

Background = Callable[[Callable[[], Any]], Future[Any]]
StartProgram = Callable[[str], Program]

GONE_S = 10.0
"""Within this nothing of a dead supervisor may be left."""


def bash(command: str) -> dict[str, Any]:
    """A step that calls bash."""
    return {"tool_calls": [{"name": "bash", "arguments": {"command": command}}]}


def call(name: str, files: Files) -> dict[str, Any]:
    """A step that calls one of :mod:`tests.session_tools`."""
    return {"tool_calls": [{"name": name, "arguments": {"gate": files.path("gate"), "effects": files.path("effects")}}]}


class Household:
    """A daemon with two sessions: one runs tools that refuse to die, the other's process is frozen."""

    def __init__(self, socket: Path, files: Files) -> None:
        self.target = resolve(socket)
        self.files = files
        options: dict[str, Any] = {"supervisor": socket, "provider": "mock", "cwd": str(files.root), "phase": "trusted"}
        command = stubborn(files, then=f"echo ran >> {files.path('effects')}; sleep 1000")
        self.busy = Session.start(mock=[bash(command), "found out"], **options)
        self.frozen = Session.start(mock=[{"touch": files.path("asked"), "wait_for": files.path("gate")}], **options)
        self.busy_turn = self.busy.submit("go")
        self.frozen.submit("go")
        files.wait_lines("effects")
        files.wait_lines("asked")
        self.tools = [int(pid) for pid in files.wait_lines("pids", 3)]
        self.children = [int(self.busy.pid or 0), int(self.frozen.pid or 0)]
        os.kill(self.children[1], signal.SIGSTOP)
        wait_until(lambda: is_stopped(self.children[1]))
        self.supervisor = supervisor_pid(self.target)
        self.guard = guard_pid(self.target)
        self.zygote = zygote_pid(self.target)

    def wait_gone(self) -> None:
        """Wait until nothing of it is left: processes by number and by mark, and the socket."""
        for pid in (self.guard, self.supervisor, self.zygote, *self.children, *self.tools):
            wait_until(partial(is_gone, pid), GONE_S)
        wait_nothing_below(default_paths().state, self.files.root, timeout_s=GONE_S)
        assert unix_sockets(str(self.target.path)) == []
        assert not self.target.path.exists()

    def goes_on(self) -> None:
        """A new daemon starts on the same directories, and the session continues from its log."""
        start_daemon()
        again = Session.start(
            supervisor=self.target.path,
            session_id=self.busy.session_id,
            mock=[{}, "found out"],
            cwd=str(self.files.root),
        )
        assert (
            again.send_message("go", message_id=self.busy_turn.message_id, timeout=20 * TIME_UNIT).text == "found out"
        )
        assert self.files.lines("effects") == ["ran"]
        statuses = [e.data["status"] for e in log(again.session_id) if e.event == "tool_result"]
        assert statuses == ["in_doubt"]
        again.stop()


@pytest.mark.parametrize("victims", [("supervisor",), ("guard",), ("supervisor", "child"), ("supervisor", "zygote")])
def test_nothing_is_left_of_a_killed_daemon_and_a_new_one_goes_on(
    victims: tuple[str, ...], daemon: Path, files: Files
) -> None:
    house = Household(daemon, files)
    pids = {"supervisor": house.supervisor, "guard": house.guard, "zygote": house.zygote, "child": house.children[0]}
    for victim in victims:
        os.kill(pids[victim], signal.SIGKILL)
    house.wait_gone()
    house.goes_on()


def test_a_daemon_that_is_terminated_stops_in_order_and_leaves_nothing(daemon: Path, files: Files) -> None:
    house = Household(daemon, files)
    os.kill(house.guard, signal.SIGTERM)
    house.wait_gone()
    assert kinds(house.busy.session_id)[-1] == "session_end"
    house.goes_on()


def test_the_death_of_the_zygote_ends_no_session_and_new_ones_start(daemon: Path, files: Files) -> None:
    options: dict[str, Any] = {"supervisor": daemon, "provider": "mock", "cwd": str(files.root)}
    session = Session.start(
        mock=[{"text": "one", "touch": files.path("asked"), "wait_for": files.path("gate")}], **options
    )
    turn = session.submit("go")
    files.wait_lines("asked")
    pid, old = session.pid, zygote_pid(resolve(daemon))
    kill_pid(old)
    other = Session.start(mock=["other"], **options)
    assert other.send_message("go").text == "other"
    files.open("gate")
    assert turn.result(20 * TIME_UNIT).text == "one"
    assert session.pid == pid
    assert session.status()["incarnation"] == 1
    assert zygote_pid(resolve(daemon)) != old


def test_a_second_daemon_on_the_same_directory_is_refused_with_the_first_ones_pid(daemon: Path) -> None:
    with pytest.raises(Unavailable, match=str(supervisor_pid(resolve(daemon)))):
        start_daemon()
    assert resolve(daemon).answers()


# --- the calling program ----------------------------------------------------------------------------------------------

START_TWO = """
import time
from athena import Session
options = dict(supervisor={supervisor!r}, provider="mock", cwd={cwd!r}, phase="trusted")
command = {command!r}
step = {{"tool_calls": [{{"name": "bash", "arguments": {{"command": command}}}}]}}
linked = Session.start_link(mock=[step, "x"], session_id="linked", **options)
kept = Session.start(mock=["y"], session_id="kept", **options)
linked.submit("go")
print("up", flush=True)
time.sleep(1000)
"""


def test_a_linked_session_on_a_daemon_ends_with_the_program_and_a_started_one_lives_on(
    daemon: Path, files: Files, program: StartProgram
) -> None:
    running = program(START_TWO.format(supervisor=str(daemon), cwd=str(files.root), command=stubborn(files)))
    assert running.line() == "up"
    tools = [int(pid) for pid in files.wait_lines("pids", 3)]
    linked = Session.attach("linked", supervisor=daemon)
    pid = int(linked.pid or 0)
    running.kill()
    wait_until(lambda: is_gone(pid) and all(is_gone(tool) for tool in tools), GONE_S)
    wait_until(lambda: Session.whereis("linked", supervisor=daemon) is None, GONE_S)
    assert kinds("linked")[-1] == "session_end"
    assert Session.attach("kept", supervisor=daemon).send_message("go").text == "y"


def test_nothing_is_left_of_an_embedded_supervisor_when_its_program_is_killed(
    files: Files, program: StartProgram
) -> None:
    running = program(START_TWO.format(supervisor="embedded", cwd=str(files.root), command=stubborn(files)))
    assert running.line() == "up"
    tools = [int(pid) for pid in files.wait_lines("pids", 3)]
    running.kill()
    wait_nothing_below(default_paths().state, files.root, timeout_s=GONE_S)
    assert all(is_gone(tool) for tool in tools)
    assert unix_sockets(str(default_paths().runtime)) == []
    again = Session.start(session_id="linked", mock=[{}, "x"])
    wait_until(lambda: kinds("linked")[-1] == "turn_end", 20)
    assert [r.content for m in again.messages() for r in m.tool_results]
    again.stop()


def test_a_program_that_ends_by_itself_leaves_nothing_either(files: Files, program: StartProgram) -> None:
    code = START_TWO.replace("time.sleep(1000)", "pass")
    running = program(code.format(supervisor="embedded", cwd=str(files.root), command=stubborn(files)))
    assert running.line() == "up"
    assert running.process.wait(30 * TIME_UNIT) == 0
    wait_nothing_below(default_paths().state, files.root, timeout_s=GONE_S)
    assert list(default_paths().runtime.glob("embedded-*")) == []


# --- embedded: the client brings the supervisor back ------------------------------------------------------------------


def test_a_blocked_caller_gets_its_turns_result_when_the_embedded_supervisor_is_killed(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files, background: Background
) -> None:
    step = {"text": "survived", "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = own_sessions.start([step], name="survivor")
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("asked")
    kill_pid(supervisor_pid(own_supervisor))
    files.wait_lines("asked", 2)
    files.open("gate")
    assert result(answer).text == "survived"
    assert session.name == "survivor"
    assert kinds(session.session_id).count("turn_start") == 1
    assert kinds(session.session_id).count("turn_end") == 1
    assert session.send_message("more").ok


def test_an_unsafe_tool_is_in_doubt_after_the_supervisors_death_and_not_run_again(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files, background: Background
) -> None:
    command = stubborn(files, then=f"echo ran >> {files.path('effects')}; sleep 1000")
    session = own_sessions.start([bash(command), "checked"], phase="trusted")
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("effects")
    tools = [int(pid) for pid in files.wait_lines("pids", 3)]
    kill_pid(supervisor_pid(own_supervisor))
    assert result(answer).text == "checked"
    assert files.lines("effects") == ["ran"]
    assert all(is_gone(pid) for pid in tools)
    assert [e.data["status"] for e in log(session.session_id) if e.event == "tool_result"] == ["in_doubt"]


@pytest.mark.parametrize("how", ["frozen", "stuck", "stubborn"])
def test_the_old_child_is_gone_before_the_new_supervisors_child_goes_on(
    how: str, own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files, background: Background
) -> None:
    step = call("block_once" if how == "stuck" else "wait_once", files)
    if how == "stubborn":
        step = bash(stubborn(files, then=f"echo ran >> {files.path('effects')}; sleep 1000"))
    session = own_sessions.start([step, {"touch": files.path("asked")}], tools=["bash", *ALL], phase="trusted")
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("effects")
    pid = int(session.pid or 0)
    if how == "frozen":
        os.kill(pid, signal.SIGSTOP)
    os.kill(supervisor_pid(own_supervisor), signal.SIGKILL)
    files.wait_lines("asked")
    assert is_gone(pid)
    assert result(answer).ok
    assert len(files.lines("effects")) == 1


def test_grants_are_presented_again_to_the_new_embedded_supervisor(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files, background: Background
) -> None:
    effect = bash(f"echo ran >> {files.path('effects')}")
    session = own_sessions.start(
        [{**effect, "touch": files.path("asked"), "wait_for": files.path("gate")}, "done"], phase="trusted"
    )
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("asked")
    kill_pid(supervisor_pid(own_supervisor))
    files.wait_lines("asked", 2)
    files.open("gate")
    assert result(answer).text == "done"
    assert files.lines("effects") == ["ran"]


def test_grants_of_one_message_are_presented_again_too(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files, background: Background
) -> None:
    effect = bash(f"echo ran >> {files.path('effects')}")
    step = {**effect, "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = own_sessions.start([step, "done"])
    answer = background(lambda: session.send_message("go", phase="trusted"))
    files.wait_lines("asked")
    kill_pid(supervisor_pid(own_supervisor))
    files.wait_lines("asked", 2)
    files.open("gate")
    assert result(answer).text == "done"
    assert files.lines("effects") == ["ran"]


def test_grants_of_submitted_messages_are_presented_again_until_their_turns_have_ended(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files
) -> None:
    effect = bash(f"echo ran >> {files.path('effects')}")
    first = {**effect, "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = own_sessions.start([first, "one", effect, "two", effect, "three"])
    turns = [session.submit("a", phase="trusted"), session.submit("b", phase="trusted"), session.submit("c")]
    files.wait_lines("asked")
    kill_pid(supervisor_pid(own_supervisor))
    session.status()
    files.wait_lines("asked", 2)
    files.open("gate")
    assert [turn.result(20 * TIME_UNIT).text for turn in turns] == ["one", "two", "three"]
    assert files.lines("effects") == ["ran", "ran"]
    assert '"phase"' not in (default_paths().sessions / f"{session.session_id}.jsonl").read_text()


def test_a_second_loss_of_the_supervisor_long_after_the_first_is_waited_for_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Back(Target):
        def answers(self) -> bool:
            return True

    monkeypatch.setattr("athena.recovery.RECONNECT_S", 0.0)
    monkeypatch.setattr("athena.recovery.STEADY_S", -1.0)
    recovery = Recovery(Back(Path("nowhere")), None, None, Granted())
    for _ in range(3):
        recovery.lost(ConnectionLost("gone"))
        recovery.try_again()
    recovery.lost(ConnectionLost("gone"))
    with pytest.raises(Unavailable):  # but what does not come back is not waited for
        recovery.lost(ConnectionLost("gone"))


def test_several_sessions_and_callers_survive_the_embedded_supervisor(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files, background: Background
) -> None:
    answers = []
    for n in range(4):
        step = {"text": f"answer {n}", "touch": files.path("asked"), "wait_for": files.path("gate")}
        session = own_sessions.start([step, f"second {n}"])
        answers.append(background(partial(session.send_message, "go")))
        answers.append(background(partial(session.send_message, "more")))
    files.wait_lines("asked", 4)
    wait_until(lambda: all(s.status()["queue"] == 1 for s in own_sessions.started))
    kill_pid(supervisor_pid(own_supervisor))
    files.wait_lines("asked", 8)
    files.open("gate")
    texts = [result(answer).text for answer in answers]
    assert sorted(texts) == sorted(f"{word} {n}" for word in ("answer", "second") for n in range(4))


def test_an_embedded_supervisor_can_be_killed_again_and_again(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files
) -> None:
    session = own_sessions.start([f"{n}" for n in range(4)])
    for n in range(3):
        assert session.send_message("go").text == f"{n}"
        kill_pid(supervisor_pid(own_supervisor))
    assert session.send_message("go").text == "3"
    assert [m.text for m in session.messages() if m.role == "assistant"] == ["0", "1", "2", "3"]


def test_every_call_survives_the_supervisors_death(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files
) -> None:
    session = own_sessions.start(["one"])
    session.send_message("go")
    for ask in (
        session.messages,
        session.status,
        session.usage,
        session.queue,
        session.interrupt,
        lambda: session.pid,
    ):
        kill_pid(supervisor_pid(own_supervisor))
        ask()
    assert len(session.messages()) == 2


def test_a_stop_after_the_supervisors_death_leaves_nothing(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files
) -> None:
    session = own_sessions.start([{"touch": files.path("asked"), "wait_for": files.path("gate")}])
    session.submit("go")
    files.wait_lines("asked")
    kill_pid(supervisor_pid(own_supervisor))
    session.stop()
    wait_nothing_below(files.root, timeout_s=GONE_S)
    assert own_supervisor.answers() is False


def test_a_monitor_says_noconnection_when_the_supervisor_is_lost(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor
) -> None:
    session = own_sessions.start(["x"])
    monitor = session.monitor()
    kill_pid(supervisor_pid(own_supervisor))
    down = monitor.wait(10 * TIME_UNIT)
    assert down is not None
    assert down.reason == "noconnection"
    assert monitor.wait(0.05) is None


def test_a_frozen_supervisor_is_an_error_and_not_a_wait_for_ever(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, background: Background
) -> None:
    session = own_sessions.start(["x"])
    pid = supervisor_pid(own_supervisor)
    os.kill(pid, signal.SIGSTOP)
    try:
        started = threading.Event()
        large = "x" * 8_000_000  # more than a socket holds: sending it blocks

        def send() -> Any:
            started.set()
            return session.send_message(large, timeout=0.5)

        with pytest.raises(TimeoutError):
            result(background(send), 5)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert session.send_message("small").ok


def test_without_a_supervisor_attach_is_an_error_that_says_so() -> None:
    with pytest.raises(NotRunning):
        Session.attach("nobody", supervisor="daemon")


def test_a_name_that_nobody_has_is_not_found(own_sessions: Sessions) -> None:
    own_sessions.start(["x"])
    with pytest.raises(NotFound):
        Session.attach("nobody", supervisor=own_sessions.supervisor)


def test_a_stopped_supervisor_leaves_no_process_and_no_file_of_its_own(files: Files) -> None:
    supervisor = EmbeddedSupervisor()
    Session.start_link(supervisor=supervisor, provider="mock", mock=[bash(stubborn(files))], phase="trusted",
                       cwd=str(files.root)).submit("go")  # fmt: skip
    files.wait_lines("pids", 3)
    supervisor.stop()
    assert below(default_paths().state, files.root) == []
    assert not supervisor.path.parent.exists()
    stop_supervisor(supervisor.path, 1.0)  # none runs: no error
