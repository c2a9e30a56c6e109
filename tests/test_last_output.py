"""What a child wrote before it died is shown; what can't start is given up, and started again when it is asked for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena import AsyncSession, Session
from athena.environment import ROOT
from athena.errors import InvalidOption, NotFound, Restarting, Running, SessionFailed, StartError
from athena.trees import Supervisor
from supervisor import logfile
from supervisor.logfile import LogFile, Mark, last_line
from tests.cli_fixtures import athena
from tests.helpers import TIME_UNIT, wait_until
from tests.session_fixtures import (
    Files,
    Sessions,
    background,
    daemon,
    files,
    is_gone,
    kill,
    log,
    result,
    sessions,
    shared_supervisor,
)
from tests.tree_fixtures import CHILD_S, Yard, pid, shared, wait_new, yard

__all__ = ["background", "daemon", "files", "sessions", "shared", "shared_supervisor", "yard"]

Background = Callable[[Callable[[], Any]], Future[Any]]

# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "logs" / "child.log")


def write(output: LogFile, data: bytes) -> None:
    """As one life does: opened, appended to, closed."""
    fd = output.open()
    os.write(fd, data)
    os.close(fd)


def test_only_what_was_written_after_the_mark_is_of_this_life(output: LogFile) -> None:
    first = output.mark()
    write(output, b"one\n")
    second = output.mark()
    assert (first, output.last_output(first), output.last_output(second)) == (Mark(), "one", None)
    write(output, b"two\nthree\n")
    assert output.last_output(second) == "two\nthree"


def test_no_more_than_the_last_lines_are_kept(output: LogFile) -> None:
    write(output, b"".join(b"line %d\n" % n for n in range(100)))
    text = output.last_output(Mark())
    assert text is not None
    assert text.split("\n") == [f"line {n}" for n in range(80, 100)]
    write(output, b"x" * 10 * logfile.LAST_BYTES)
    assert output.last_output(Mark()) == "x" * logfile.LAST_BYTES


def test_a_file_that_was_rotated_or_cut_holds_only_newer_output(
    output: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logfile, "ROTATE_AT_START_BYTES", 10)
    write(output, b"of an earlier life\n")
    mark = output.mark()
    write(output, b"of this one\n")
    assert (output.last_output(mark), output.previous.read_bytes()) == ("of this one", b"of an earlier life\n")
    monkeypatch.setattr(logfile, "TRIM_BYTES", 10)
    monkeypatch.setattr(logfile, "KEEP_BYTES", 5)
    mark = output.mark()
    fd = os.open(output.path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"and more\n")
    assert output.trim()
    os.write(fd, b"after\n")
    os.close(fd)
    assert output.last_output(mark) == "after"


def test_bytes_that_are_no_text_and_empty_lines_do_no_harm(output: LogFile) -> None:
    write(output, b"\n\n\xff\xfe ok\n\n\n")
    assert output.last_output(Mark()) == "�� ok"
    mark = output.mark()
    write(output, b"\n \n")
    assert output.last_output(mark) is None


def test_what_is_no_plain_file_has_no_output(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", ".", "missing"):
        assert LogFile(tmp_path / name).last_output(Mark()) is None
    assert LogFile(tmp_path / "target" / "below").mark() == Mark()


@given(st.lists(st.binary(max_size=50), max_size=5), st.lists(st.binary(max_size=50), max_size=5))
def test_earlier_lives_never_show(tmp_path_factory: pytest.TempPathFactory, before: Any, after: Any) -> None:
    both, alone = (LogFile(tmp_path_factory.mktemp("x") / "log") for _ in range(2))
    for data in before:
        write(both, data)
    mark = both.mark()
    for data in after:
        write(both, data)
        write(alone, data)
    assert both.last_output(mark) == alone.last_output(Mark())


def test_a_message_says_the_last_line_and_not_too_much_of_it() -> None:
    assert last_line(None) == ""
    assert last_line("Traceback\n  line\nImportError: no") == "; the last it said: ImportError: no"
    assert len(last_line("x" * 5000)) < 300
    assert last_line("\x1b[2Jred\a") == "; the last it said: \N{REPLACEMENT CHARACTER}[2Jred\N{REPLACEMENT CHARACTER}"


# --- sessions ---------------------------------------------------------------------------------------------------------

MOODY = """
import os, pathlib, time
from athena.tools.base import Parameters, Tool, ToolOutput

here = pathlib.Path(__file__).parent
with open(here / "boots", "a") as file:
    file.write(f"{time.monotonic()}\\n")
while (here / "hold").exists():
    time.sleep(0.01)
if (here / "mood").exists():
    print("in a bad mood", flush=True)
    os.abort()


class Nothing(Parameters):
    pass


async def die(args, ctx):
    if (here / "gate").exists():
        return ToolOutput("lived")
    print("\\n".join(f"tired {n}" for n in range(30)), flush=True)
    os._exit(7)


DIE = Tool("die", "For tests.", Nothing, die, read_only=True, on_crash="safe")
"""


@pytest.fixture
def moody(files: Files) -> dict[str, Any]:
    """Options of a session with a tool of the user's: while there is a file ``mood``, its module aborts the import."""
    (files.root / "moody.py").write_text(MOODY)
    return {"tools": ["bash", "moody:DIE"], "python_path": [str(ROOT), str(files.root)], "name": "moody"}


def boots(files: Files) -> list[float]:
    return [float(line) for line in files.lines("boots")]


def state(session: Session) -> str:
    return str(session.status()["state"])


DIE = {"tool_calls": [{"name": "die", "arguments": {}}]}


@pytest.mark.slow
def test_the_output_of_the_last_death_is_in_the_status_until_a_life_ends_well(
    sessions: Sessions, files: Files, moody: dict[str, Any]
) -> None:
    session = sessions.start([DIE, "fine"], **moody)
    assert session.status()["last_output"] is None
    assert session.send_message("go").finish_reason == "error_crashed"
    status = session.status()
    assert status["last_reason"] == {"exit": 7}
    assert status["last_output"].split("\n") == [f"tired {n}" for n in range(10, 30)]
    kill(session)
    wait_until(lambda: session.status()["last_reason"] == "killed")
    assert session.status()["last_output"] is None, "that life said nothing"


@pytest.mark.slow
def test_what_dies_alike_before_it_is_ready_has_failed_to_boot_after_pauses(
    sessions: Sessions, files: Files, background: Background, moody: dict[str, Any]
) -> None:
    session = sessions.start(["one", {"text": "two", "wait_for": files.path("gate")}], **moody)
    session.send_message("first")
    answer = background(lambda: session.send_message("second"))
    wait_until(lambda: session.status()["turn"] is not None)
    files.open("mood")
    kill(session)
    for ask in (lambda: result(answer), lambda: session.send_message("third")):
        with pytest.raises(SessionFailed, match=r"SIGABRT.*the last it said: in a bad mood; its log is kept") as caught:
            ask()
        assert caught.value.reason == {"boot": {"signal": "SIGABRT"}}
    status = session.status()
    assert (status["state"], status["pid"], status["last_output"]) == ("failed(boot)", None, "in a bad mood")
    assert status["last_reason"] == {"signal": "SIGABRT"}
    times = boots(files)
    assert len(times) == 4, "the first, one at once after the kill, and two more"
    assert times[2] - times[1] >= 0.05
    assert times[3] - times[2] >= 0.1


@pytest.mark.slow
def test_a_first_start_that_fails_says_what_was_said_last_and_leaves_nothing(
    sessions: Sessions, files: Files, moody: dict[str, Any]
) -> None:
    files.open("mood")
    with pytest.raises(StartError, match=r"SIGABRT.*the last it said: in a bad mood; its output is in "):
        sessions.start(["one"], **moody)
    assert len(boots(files)) == 1
    with pytest.raises(NotFound):
        Session.restart("moody", supervisor=sessions.supervisor)


def fail(session: Session) -> None:
    """Have it fail: it may not be restarted once."""
    kill(session)
    wait_until(lambda: state(session) == "failed")


@pytest.mark.slow
def test_a_failed_session_is_restarted_by_name_with_its_grants_its_log_and_its_queue(
    sessions: Sessions, files: Files, background: Background, moody: dict[str, Any]
) -> None:
    effect = {"tool_calls": [{"name": "bash", "arguments": {"command": f"echo ran >> {files.path('effects')}"}}]}
    step = {**effect, "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = sessions.start(["zero", step, "one", "two"], phase="trusted", max_restarts=0, **moody)
    session.send_message("0")
    turn, queued = session.submit("1"), session.submit("2")
    wait_until(lambda: session.status()["queue"] == 1)
    answer = background(turn.result)
    fail(session)
    with pytest.raises(SessionFailed):
        result(answer)
    files.open("gate")
    again = Session.restart("moody", supervisor=sessions.supervisor)
    assert (again.session_id, again.name, state(again)) == (session.session_id, "moody", "running")
    assert turn.result(20 * TIME_UNIT).text == "one"
    assert queued.result(20 * TIME_UNIT).text == "two"
    assert files.lines("effects") == ["ran"]
    assert session.send_message("3").ok, "an old handle is good again"
    assert [e.event for e in log(session.session_id)].count("session_start") == 1


@pytest.mark.slow
def test_only_a_failed_session_is_restarted(sessions: Sessions, files: Files, moody: dict[str, Any]) -> None:
    at = sessions.supervisor
    session = sessions.start(["one"], max_restarts=0, **moody)
    with pytest.raises(Running, match="has not failed"):
        Session.restart("moody", supervisor=at)
    with pytest.raises(NotFound, match="nobody"):
        Session.restart("nobody", supervisor=at)
    with pytest.raises(InvalidOption):
        Session.restart(None, supervisor=at)  # type: ignore[arg-type]
    fail(session)
    files.open("mood")
    with pytest.raises(StartError, match="in a bad mood"):
        Session.restart(session.session_id, supervisor=at)
    assert state(session) == "failed(boot)"
    os.unlink(files.path("mood"))
    assert Session.restart("moody", supervisor=at).send_message("go").text == "one"
    session.stop()
    with pytest.raises(NotFound):
        Session.restart("moody", supervisor=at)


@pytest.mark.slow
def test_one_that_is_being_started_is_not_restarted(sessions: Sessions, files: Files, moody: dict[str, Any]) -> None:
    session = sessions.start(["one"], **moody)
    files.open("hold")
    kill(session)
    wait_until(lambda: len(boots(files)) == 2)
    with pytest.raises(Restarting, match="'moody' is being started already"):
        Session.restart("moody", supervisor=sessions.supervisor)
    os.unlink(files.path("hold"))
    assert session.send_message("go").text == "one"


@pytest.mark.slow
def test_what_one_message_was_granted_ends_with_the_failure(
    sessions: Sessions, files: Files, moody: dict[str, Any]
) -> None:
    effect = {"tool_calls": [{"name": "bash", "arguments": {"command": f"echo ran >> {files.path('effects')}"}}]}
    step = {**effect, "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = sessions.start([step, "refused"], max_restarts=0, **moody)
    turn = session.submit("go", phase="trusted")
    wait_until(lambda: session.status()["turn"] is not None)
    fail(session)
    files.open("gate")
    Session.restart("moody", supervisor=sessions.supervisor)
    assert turn.result(20 * TIME_UNIT).text == "refused"
    assert files.lines("effects") == []


@pytest.mark.slow
def test_of_two_who_restart_at_once_one_does_and_a_caller_meanwhile_waits(
    sessions: Sessions, background: Background, moody: dict[str, Any]
) -> None:
    session = sessions.start(["one"], max_restarts=0, **moody)
    fail(session)

    async def both() -> list[Any]:
        restarts = [AsyncSession.restart("moody", supervisor=sessions.supervisor) for _ in range(2)]
        return await asyncio.gather(*restarts, return_exceptions=True)

    outcomes = asyncio.run(both())
    assert sorted(isinstance(one, AsyncSession) for one in outcomes) == [False, True]
    assert any(isinstance(one, Restarting | Running) for one in outcomes)
    assert session.send_message("go").text == "one"
    assert session.status()["restarts_in_window"] == 0, "it was asked for"


# --- trees ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_look_at_a_tree_shows_what_a_child_that_died_wrote_last(yard: Yard) -> None:
    tree = yard.start(yard.spec("a"))
    assert yard.row(tree, "a")["last_output"] is None
    for order, said in (("exit 3", None), ("die", "RuntimeError: died"), ("kill", None)):
        old = pid(tree, "a")
        yard.order("a", order)
        wait_new(tree, "a", old)
        found = yard.row(tree, "a")["last_output"]
        assert found == said if said is None else (found or "").endswith(said)


@pytest.mark.slow
def test_a_program_and_a_session_in_a_tree_too(yard: Yard, sessions: Sessions, moody: dict[str, Any]) -> None:
    program = {"id": "p", "start": ["sh", "-c", "echo to stdout; echo to stderr >&2; exit 3"], "restart": "transient"}
    options = {k: v for k, v in sessions.options([DIE, "fine"], **moody).items() if k != "supervisor"}
    tree = yard.start(program, Session.child_spec(**options), max_restarts=50)
    wait_until(lambda: yard.row(tree, "p")["last_output"], CHILD_S)
    assert yard.row(tree, "p")["last_output"] == "to stdout\nto stderr"
    tree.terminate_child("p")
    assert Session.attach("moody", supervisor=yard.at).send_message("go").finish_reason == "error_crashed"
    wait_until(lambda: (yard.row(tree, "moody")["last_output"] or "").endswith("tired 29"), CHILD_S)


@pytest.mark.slow
def test_a_session_of_a_tree_is_its_supervisors_to_restart(
    yard: Yard, sessions: Sessions, files: Files, moody: dict[str, Any]
) -> None:
    options = {k: v for k, v in sessions.options(["one"], **moody).items() if k != "supervisor"}
    tree = yard.start(Session.child_spec(**options), max_restarts=50)
    with pytest.raises(Running):
        Session.restart("moody", supervisor=yard.at)
    files.open("hold")
    kill(Session.attach("moody", supervisor=yard.at))
    wait_until(lambda: len(boots(files)) == 2)
    with pytest.raises(Restarting):
        Session.restart("moody", supervisor=yard.at)
    os.unlink(files.path("hold"))
    tree.terminate_child("moody")
    with pytest.raises(NotFound):
        Session.restart("moody", supervisor=yard.at)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_commands_show_the_output_and_restart_by_name(
    daemon: Path, files: Files, moody: dict[str, Any], background: Background
) -> None:
    session = Session.start(
        supervisor=daemon, provider="mock", mock=[DIE, "fine"], cwd=str(files.root), max_restarts=0, **moody
    )
    assert athena("restart", "moody").err.strip().startswith("athena: session 'moody' has not failed")
    with pytest.raises(SessionFailed, match="the last it said: tired 29"):
        session.send_message("go")
    shown = athena("status", "moody")
    assert "failed" in shown.out
    assert "last output" in shown.out
    assert "\n  tired 10\n" in shown.out
    assert "tired 9\n" not in shown.out
    assert athena("status", "moody", "--json").json["last_output"].endswith("tired 29")
    files.open("gate")
    done = athena("restart", "moody", "--json")
    assert (done.code, done.json["restarted"], is_gone(done.json["pid"])) == (0, "moody", False)
    missing = athena("restart", "nobody")
    assert missing.code == 1
    assert "--supervisor" in missing.err


@pytest.mark.slow
def test_the_tree_command_shows_output_when_asked(daemon: Path) -> None:
    spec = {"id": "p", "start": ["sh", "-c", "echo why it died; exit 3"], "restart": "transient"}
    with Supervisor.start([spec], supervisor=daemon, name="crew", max_restarts=10**6):
        wait_until(lambda: "why it died" in athena("tree", "--output").out, CHILD_S)
        assert "why it died" not in athena("tree").out
        (root,) = athena("tree", "--json").json
        assert root["children"][0]["last_output"] == "why it died"
