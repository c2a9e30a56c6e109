"""The command ``athena``, run as people and scripts run it."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from athena.events import Event
from athena.stores.jsonl import JsonlStore
from athena.testing import FakeOpenAI
from tests.cli_fixtures import CTRL_C, CTRL_D, Terminal, assert_one_line, athena, daemon, finish, start
from tests.helpers import TIME_UNIT, wait_until

__all__ = ["daemon"]

ONE_KEY = "sk-test-0123456789abcdef"


def mock(*steps: Any) -> tuple[str, ...]:
    """The flags of a session with a scripted provider."""
    return ("--provider", "mock", "-o", f"mock={json.dumps(list(steps))}")


def events_of(home: Path, session_id: str) -> list[Event]:
    return list(JsonlStore(home / "sessions").read(session_id))


def kinds(home: Path, session_id: str) -> list[str]:
    return [event.event for event in events_of(home, session_id)]


def row(target: str) -> dict[str, Any]:
    found: dict[str, Any] = athena("status", target, "--json").json
    return found


def live() -> list[dict[str, Any]]:
    return [row for row in athena("ls", "--json").json if row["state"] != "stored"]


@pytest.fixture
def bob(daemon: Path) -> str:
    """A live session with a name and a script; its id."""
    ran = athena("chat", "bob", *mock("first answer", {"text": "second answer", "chunks": 4}))
    assert ran.code == 0, ran.err
    session_id: str = row("bob")["session_id"]
    return session_id


# --- without a supervisor --------------------------------------------------------------------------------------------


def test_version_and_help_need_nothing(home: Path) -> None:
    assert athena("--version").out == "athena 0.1.0\n"
    assert "resume" in athena().out
    assert not home.exists()


def test_looking_starts_no_supervisor(home: Path) -> None:
    assert athena("ls", "--json").json == []
    assert_one_line(athena("ls"), 0, "no sessions yet")
    assert_one_line(athena("status"), 3, "no supervisor listens", "athena-supervisor start")
    assert_one_line(athena("send", "bob", "hi"), 3, "no supervisor listens")
    assert_one_line(athena("stop", "bob"), 3, "no supervisor listens")
    assert_one_line(athena("messages", "bob"), 1, "'bob'")
    assert not home.exists()


def test_an_error_is_json_when_asked_for(home: Path) -> None:
    error = json.loads(athena("status", "--json").err)
    assert error["error"] == "NotRunning"
    assert "no supervisor" in error["message"]
    assert json.loads(athena("run", "--json", "--nonsense").err)["error"] == "UsageError"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("run", "hi", "--nonsense"), "athena run --help"),
        (("nonsense",), "nonsense"),
        (("run", "hi", "-o", "mock=["), "no JSON"),
        (("run", "hi", "-o", "mock"), "KEY=JSON"),
        (("run", "hi", "-o", "api_key=x"), "--api-key-env"),
        (("run", "hi", "-o", "supervisor=x"), "ATHENA_SOCKET"),
        (("run", "hi", "--model", "a", "-o", "model=b"), "twice"),
        (("run", "hi", "--api-key-env", "NOT_SET"), "NOT_SET"),
        (("run",), "stdin is empty"),
        (("chat", "bob", "--name", "eve"), "eve"),
        (("resume", "x", "--json"), "--json"),
    ],
)
def test_a_wrong_call_is_one_line_and_code_2(home: Path, arguments: tuple[str, ...], part: str) -> None:
    assert_one_line(athena(*arguments), 2, part)
    assert not home.exists()


def test_nothing_to_resume(home: Path) -> None:
    assert_one_line(athena("resume", "nothing", "hi"), 1, "'nothing'")
    assert_one_line(athena("resume", "../x", "hi"), 1, "'../x'")


def test_a_home_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert_one_line(
        athena("run", "hi", *mock("x"), env={"ATHENA_HOME": str(file / "home")}), 3, "Not a directory", "ATHENA_HOME"
    )


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_an_unwritable_home_is_one_line(tmp_path: Path) -> None:
    """Root without its right to write everywhere, because another user may not be able to run this interpreter."""
    tmp_path.chmod(0o500)
    powerless = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    process = start("run", "hi", *mock("x"), wrap=powerless, env={"ATHENA_HOME": str(tmp_path / "home")})
    assert_one_line(finish(process), 1, "cannot make the directory", "ATHENA_HOME")
    assert list(tmp_path.iterdir()) == []


# --- one prompt ------------------------------------------------------------------------------------------------------


def test_run_prints_the_answer_and_keeps_only_the_log(daemon: Path) -> None:
    ran = athena("run", "hello", *mock({"text": "good morning", "chunks": 3}))
    assert (ran.code, ran.out) == (0, "good morning\n")
    assert len(ran.err.splitlines()) == 1
    assert "stop · " in ran.err
    rows = athena("ls", "--json").json
    assert [r["state"] for r in rows] == ["stored"]
    assert rows[0]["session_id"] in ran.err
    assert kinds(daemon, rows[0]["session_id"])[-2:] == ["turn_end", "session_end"]


@pytest.mark.slow
def test_run_reads_stdin_and_answers_in_json(daemon: Path) -> None:
    ran = athena("run", "--json", *mock({"echo": True}), stdin="from the pipe\n")
    assert ran.code == 0
    assert ran.err == ""
    assert (ran.json["text"], ran.json["finish_reason"], ran.json["category"]) == ("from the pipe", "stop", "success")
    assert athena("run", "-", "--no-stream", *mock({"echo": True}), stdin="again").out == "again\n"


@pytest.mark.slow
def test_run_shows_tools_beside_the_answer(daemon: Path, tmp_path: Path) -> None:
    call = {"tool_calls": [{"name": "bash", "arguments": {"command": "echo 7 > made"}}], "text": "let me see"}
    ran = athena("run", "go", "--phase", "bypass_permissions", "--cwd", str(tmp_path), *mock(call, "done"))
    assert (ran.code, ran.out) == (0, "let me see\ndone\n")
    assert "→ bash command=echo 7 > made" in ran.err
    assert "← bash ok" in ran.err
    assert (tmp_path / "made").read_text() == "7\n"
    denied = athena("run", "go", *mock(call, "done"))
    assert "← bash command=echo 7 > made denied" in denied.err


@pytest.mark.slow
def test_a_wrong_option_is_told_by_the_library_and_leaves_no_process(daemon: Path) -> None:
    assert_one_line(athena("run", "hi", "--provider", "nope"), 2, "'nope'", "openai")
    assert_one_line(athena("run", "hi", *mock("x"), "--phase", "nope"), 2, "'phase'", "accept_edits")
    assert_one_line(athena("run", "hi", *mock("x"), "-o", "temperatur=1"), 2, "did you mean 'temperature'")
    assert live() == []


@pytest.mark.slow
def test_a_turn_that_fails_is_one_line_with_its_category(daemon: Path) -> None:
    closed = ("--provider", "openai_compatible", "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    assert_one_line(athena("run", "hi", *closed), 1, "retryable", "127.0.0.1:9")
    failed = athena("run", "hi", "--json", *mock({"error": {"kind": "unauthorized"}}))
    assert failed.code == 1
    assert (failed.json["category"], failed.err) == ("fatal", "")
    assert live() == []


@pytest.mark.slow
def test_a_bad_key_is_told_without_the_key(daemon: Path) -> None:
    with FakeOpenAI(api_key="another").in_thread() as fake:
        flags = ("--provider", "openai_compatible", "--base-url", fake.api_url, "--model", "fake")
        ran = athena("run", "hi", *flags, "--api-key-env", "MY_KEY", env={"MY_KEY": ONE_KEY})
        assert_one_line(ran, 1, "error_provider_auth (fatal)")
        assert ONE_KEY[-8:] not in ran.err
        good = athena("run", "hi", *flags, "--api-key-env", "MY_KEY", env={"MY_KEY": "another"})
        assert (good.code, good.out) == (0, "hi\n")


@pytest.mark.slow
def test_two_commands_may_start_the_daemon_at_once(daemon: Path) -> None:
    both = [start("run", "hi", *mock(f"answer {n}")) for n in (1, 2)]
    assert [finish(process).out for process in both] == ["answer 1\n", "answer 2\n"]


@pytest.mark.slow
def test_a_killed_run_leaves_no_session(daemon: Path, tmp_path: Path) -> None:
    process = start(
        "run", "hi", *mock({"text": "x", "touch": str(tmp_path / "asked"), "wait_for": str(tmp_path / "go")})
    )
    wait_until((tmp_path / "asked").exists, 20)
    assert [r["state"] for r in live()] == ["running"]
    process.kill()
    process.communicate()
    wait_until(lambda: live() == [], 20)


@pytest.mark.slow
def test_a_new_attempt_voids_what_was_streamed(daemon: Path, tmp_path: Path) -> None:
    step = {
        "text": "half an ans",
        "error": {"kind": "rate_limited", "retry_after_s": 0.01},
        "error_until": str(tmp_path / "ok"),
    }
    process = start("run", "hi", *mock(step))
    (tmp_path / "ok").touch()
    ran = finish(process)
    assert ran.code == 0
    assert ran.out.endswith("half an ans\n")


# --- live sessions ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_named_chat_lives_on_and_can_be_asked(bob: str) -> None:
    assert athena("send", "bob", "one").out == "first answer\n"
    streamed = athena("send", bob, "two", "--stream")
    assert streamed.out == "second answer\n"
    status = row("bob")
    assert (status["state"], status["name"], status["incarnation"]) == ("running", "bob", 1)
    assert athena("status", str(status["pid"]), "--json").json["session_id"] == bob
    assert bob in athena("ls").out
    live_text = athena("messages", "bob").out
    assert "second answer" in live_text
    live_json = athena("messages", "bob", "--json").json
    assert [m["role"] for m in live_json] == ["user", "assistant"] * 2

    assert athena("stop", "bob").code == 0
    assert_one_line(athena("send", "bob", "x"), 1, "'bob'")
    assert_one_line(athena("send", bob, "x"), 1, f"athena resume {bob}")
    assert athena("messages", bob).out == live_text
    assert athena("messages", bob, "--json").json == live_json
    assert row(bob)["state"] == "stored"


@pytest.mark.slow
def test_events_are_the_log_of_live_and_stored_sessions(bob: str, daemon: Path) -> None:
    athena("send", "bob", "one")
    shown = athena("events", "bob", "--json")
    recorded = events_of(daemon, bob)
    assert shown.out.splitlines() == [event.line.decode() for event in recorded]
    after = athena("events", "bob", "--after", str(recorded[-2].seq), "--json")
    assert [e["seq"] for e in after.lines] == [recorded[-1].seq]
    assert athena("events", "bob", "--after", str(recorded[-1].seq)).out == ""
    follower = start("events", "bob", "--follow", "--json")
    wait_until(lambda: row("bob")["subscribers"] == 1, 20)
    athena("stop", "bob")
    followed = finish(follower)
    assert [e["event"] for e in followed.lines] == kinds(daemon, bob)
    assert followed.lines[-1]["event"] == "session_end"
    assert athena("events", bob, "--json").out == followed.out
    assert len(athena("events", bob).out.splitlines()) == len(followed.lines)


@pytest.mark.slow
def test_no_wait_prints_the_id_of_an_accepted_message(bob: str, daemon: Path) -> None:
    message_id = athena("send", "bob", "one", "--no-wait").out.strip()
    assert message_id in [e.data.get("message_id") for e in events_of(daemon, bob) if e.event == "message_accepted"]
    assert athena("send", "bob", "two", "--no-wait", "--json").json["session_id"] == bob


@pytest.mark.slow
def test_attach_shows_what_another_client_talks(daemon: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    athena(
        "chat",
        "bob",
        *mock({"chunks": ["all ", "the ", "text"], "touch": str(tmp_path / "asked"), "wait_for": str(go)}),
    )
    people, programs = start("attach", "bob"), start("attach", "bob", "--json")
    for process in (people, programs):
        assert process.stderr is not None
        assert "attached to bob" in process.stderr.readline()
    sender = start("send", "bob", "hello", "--stream")
    wait_until((tmp_path / "asked").exists, 20)
    go.touch()
    assert finish(sender).out == "all the text\n"
    athena("stop", "bob")
    seen, items = finish(people), finish(programs).lines
    assert seen.out == "> hello\nall the text\n"
    assert "".join(i["data"]["text"] for i in items if i["event"] == "delta") == "all the text"
    assert items[-1]["event"] == "session_end"


@pytest.mark.slow
def test_chat_takes_lines_and_attaches_to_a_live_session(bob: str) -> None:
    ran = athena("chat", "bob", stdin="one\n\ntwo\n")
    assert (ran.code, ran.out) == (0, "first answer\nsecond answer\n")
    assert "athena chat bob" in ran.err
    assert_one_line(athena("chat", "bob", "--model", "other"), 2, "leave out: model")
    assert row("bob")["state"] == "running"


@pytest.mark.slow
def test_an_unnamed_chat_ends_with_its_client_unless_kept(daemon: Path) -> None:
    ran = athena("chat", *mock("x"), stdin="hi\n")
    assert ran.out == "x\n"
    assert "athena resume" in ran.err
    assert live() == []
    kept = athena("chat", "--keep", *mock("x"))
    assert [r["session_id"] for r in live()] == [kept.err.split()[-1]]


@pytest.mark.slow
def test_resume_goes_on_with_the_recorded_options(daemon: Path, tmp_path: Path) -> None:
    athena("run", "hello", "--session-id", "log", "--cwd", str(tmp_path), *mock("first", "second", "third"))
    again = athena("resume", "log", "and then?")
    assert (again.code, again.out) == (0, "second\n")
    assert events_of(daemon, "log")[-1].event == "session_end"
    assert athena("status", "log", "--json").json["options"]["cwd"] == str(tmp_path)
    assert athena("resume", "log", stdin="more\n").out == "third\n"
    assert live() == []


@pytest.mark.slow
def test_resume_ends_an_open_turn_first(daemon: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    process = start("run", "q1", "--session-id", "log", *mock({"text": "late", "wait_for": str(go)}, "next"))
    wait_until(lambda: (daemon / "sessions" / "log.jsonl").exists() and "user_message" in kinds(daemon, "log"), 20)
    process.kill()
    process.communicate()
    wait_until(lambda: live() == [], 20)
    assert row("log")["turn"] == "t1"
    go.touch()
    ran = athena("resume", "log", "q2")
    assert (ran.code, ran.out) == (0, "late\nnext\n")
    assert "goes on" in ran.err


@pytest.mark.slow
def test_a_live_session_is_not_resumed(bob: str) -> None:
    assert_one_line(athena("resume", bob, "x"), 1, "already running", "attach")


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(bob: str) -> None:
    with start("events", "bob", "--json", "--follow") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        athena("send", "bob", "one")
        athena("send", "bob", "two")
        assert process.stderr.read() == ""
        assert process.wait() == 141


@pytest.mark.slow
def test_the_shell_completes_sessions(bob: str) -> None:
    words = {"COMP_WORDS": "athena stop b", "COMP_CWORD": "2", "_ATHENA_COMPLETE": "complete_bash"}
    assert athena(env=words).out.split() == ["bob"]


# --- on a terminal ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_ends_the_turn_and_not_the_session(daemon: Path, tmp_path: Path) -> None:
    endless = {"text": "so far", "wait_before_end": str(tmp_path / "never")}
    with Terminal("chat", "bob", *mock(endless, "and on")) as terminal:
        terminal.wait_for("> ")
        terminal.type(b"hello\n")
        terminal.wait_for("so far")
        terminal.type(CTRL_C)
        terminal.wait_for("interrupted ·")
        assert row("bob")["state"] == "running"
        terminal.wait_for("> ", 2)
        terminal.type(CTRL_D)
        terminal.wait_for("athena chat bob")
        assert terminal.end() == 0
    status = row("bob")
    assert (status["state"], status["incarnation"], status["turn"]) == ("running", 1, None)


@pytest.mark.slow
def test_ctrl_c_at_the_prompt_leaves(daemon: Path) -> None:
    with Terminal("chat", "bob", *mock("x")) as terminal:
        terminal.wait_for("> ")
        terminal.type(CTRL_C)
        assert terminal.end() == 0
    assert row("bob")["state"] == "running"


NOTED_ONLY = """
import signal, threading
from athena.cli import chat

def interrupt():
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # noted for the main thread, whose wait it does not end

threading.Timer(0.2, interrupt).start()
print("line", chat._read_line(), flush=True)
"""


@pytest.mark.slow
def test_ctrl_c_that_comes_just_before_the_wait_for_the_keyboard_is_not_waited_over() -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", NOTED_ONLY])
    seen = b""
    try:
        while b"line None" not in seen:
            assert select.select([terminal], [], [], 10 * TIME_UNIT)[0], seen
            seen += os.read(terminal, 4096)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)


@pytest.mark.slow
def test_ctrl_c_in_run_ends_turn_and_session(daemon: Path, tmp_path: Path) -> None:
    endless = {"text": "so far", "wait_before_end": str(tmp_path / "never")}
    with Terminal("run", "hello", "--session-id", "log", *mock(endless)) as terminal:
        terminal.wait_for("so far")
        terminal.type(CTRL_C)
        assert terminal.end() == 130
    assert kinds(daemon, "log")[-3:] == ["interrupted", "turn_end", "session_end"]
    assert live() == []


@pytest.mark.slow
def test_ctrl_c_detaches(bob: str) -> None:
    with Terminal("attach", "bob") as terminal:
        terminal.wait_for("Ctrl-C detaches")
        athena("send", "bob", "hello")
        terminal.wait_for("first answer")
        terminal.type(CTRL_C)
        terminal.wait_for("detached")
        assert terminal.end() == 0
    assert row("bob")["state"] == "running"


@pytest.mark.slow
def test_a_waiting_message_is_taken_back_by_ctrl_c(daemon: Path, tmp_path: Path) -> None:
    """The turn that runs is somebody else's: it goes on."""
    go = tmp_path / "go"
    athena("chat", "bob", *mock({"text": "slow", "touch": str(tmp_path / "asked"), "wait_for": str(go)}))
    first = start("send", "bob", "first")
    wait_until((tmp_path / "asked").exists, 20)
    second = start("send", "bob", "second")
    wait_until(lambda: row("bob")["queue"] == 1, 20)
    second.send_signal(signal.SIGINT)
    assert_one_line(finish(second), 130, "taken back")
    go.touch()
    assert finish(first).out == "slow\n"
