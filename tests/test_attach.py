"""``athena attach``: terminals and pipes that come to a session, speak, leave, and outlast the daemon."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from athena import Session
from athena.supervisors import DaemonTarget, start_daemon
from tests.cli_fixtures import (
    CTRL_C,
    CTRL_D,
    LIMIT_S,
    Terminal,
    assert_one_line,
    athena,
    daemon,
    finish,
    start,
    supervisor,
)
from tests.helpers import wait_until
from tests.session_fixtures import Files, Sessions, files, guard_pid, kill_pid, kinds

__all__ = ["daemon", "files"]

pytestmark = pytest.mark.slow


class Bob:
    """A session of the daemon with a name and a script."""

    def __init__(self, cwd: Path, script: list[Any]) -> None:
        start_daemon()
        from athena.config import default_socket

        self.target = DaemonTarget(default_socket())
        self.session = Session.start(**Sessions(self.target, cwd).options(script, name="bob"))
        self.id = self.session.session_id

    def subscribers(self, count: int) -> None:
        """Wait until so many are attached."""
        wait_until(lambda: self.session.status()["subscribers"] == count, LIMIT_S)


def bob(files: Files, *script: Any) -> Bob:
    return Bob(files.root, list(script))


def attached(*flags: str) -> Terminal:
    """A terminal that is attached."""
    terminal = Terminal("attach", "bob", *flags)
    terminal.wait_for("attached to bob")
    terminal.wait_for("detaches")
    return terminal


def slow(files: Files, text: str = "first half, second half") -> dict[str, Any]:
    """A step that stops before its end until the file ``gate`` is there."""
    return {"text": text, "chunks": 2, "touch": files.path("asked"), "wait_before_end": files.path("gate")}


# --- two terminals ----------------------------------------------------------------------------------------------------


def test_two_terminals_on_one_session_see_the_same_and_both_may_speak(daemon: Path, files: Files) -> None:
    bob(files, {"text": "the first answer", "chunks": 4}, {"text": "the second answer", "chunks": 4})
    with attached() as one, attached() as other:
        one.type(b"hello from one\n")
        for terminal in (one, other):
            terminal.wait_for("the first answer")
            terminal.wait_for("turn t1 ended: stop")
        other.type(b"and from the other\n")
        for terminal in (one, other):
            terminal.wait_for("the second answer")
            terminal.wait_for("turn t2 ended: stop")
        assert "> hello from one" in other.seen
        assert "> hello from one" not in one.seen, "its terminal has shown that already"
        assert one.seen.count("hello from one") == 1
        assert "> and from the other" in one.seen
        texts = [terminal.seen.split("turn t1 ended")[1].split("the second")[1] for terminal in (one, other)]
        assert texts[0] == texts[1]
        one.type(CTRL_C)
        one.wait_for("detached; the session goes on")
        assert one.end() == 0
        other.type(CTRL_D)
        assert other.end() == 0
    assert Session.attach("bob").status()["state"] == "running"


def test_a_second_terminal_sees_the_text_so_far_and_then_the_rest(daemon: Path, files: Files) -> None:
    bob(files, slow(files))
    with attached() as one:
        one.type(b"hello\n")
        one.wait_for("first half, second half")
        with attached() as other:
            other.wait_for("> hello")
            other.wait_for("first half, second half")
            files.open("gate")
            for terminal in (one, other):
                terminal.wait_for("turn t1 ended: stop")
                assert terminal.seen.count("first half, second half") == 1
            one.type(CTRL_D)
            other.type(CTRL_D)
            assert (one.end(), other.end()) == (0, 0)


def test_what_was_said_before_is_shown_as_far_as_asked_for(daemon: Path, files: Files) -> None:
    session = bob(files, "answer one", "answer two", "answer three").session
    for text in ("one", "two", "three"):
        session.send_message(text)
    with attached() as latest, attached("--from", "0") as everything, attached("--from", "-1") as last:
        latest.wait_for("turn t3 ended")
        everything.wait_for("turn t3 ended")
        last.wait_for("turn t3 ended")
        shown = [[text for text in ("one", "two", "three") if f"answer {text}" in t.seen] for t in (latest, everything)]
        assert shown == [["three"], ["one", "two", "three"]]
        assert "answer" not in last.seen
        assert "> three" in latest.seen


# --- Ctrl-C and what is not typed -------------------------------------------------------------------------------------


def test_ctrl_c_leaves_a_turn_alone_and_twice_ends_it(daemon: Path, files: Files) -> None:
    session = bob(files, slow(files)).session
    with attached() as one, attached() as other:
        one.type(b"hello\n")
        for terminal in (one, other):
            terminal.wait_for("second half")
        one.type(CTRL_C)
        one.wait_for("detached")
        assert one.end() == 0
        assert session.status()["turn"] == "t1"
        other.type(CTRL_C)
        other.wait_for("another Ctrl-C")
        other.type(CTRL_C)
        other.wait_for("turn t1 ended")
        files.open("gate")
        other.type(b"go on\n")
        other.wait_for("turn t2 ended: stop")
        other.type(CTRL_C)
        assert other.end() == 0
    status = session.status()
    assert (status["state"], status["incarnation"], status["turn"]) == ("running", 1, None)
    assert kinds(session.session_id).count("interrupted") == 1


def test_a_typed_interrupt_ends_the_turn_and_what_was_typed_meanwhile_waits(daemon: Path, files: Files) -> None:
    session = bob(files, slow(files)).session
    with attached() as one:
        one.type(b"/interrupt\n")
        one.wait_for("no turn runs")
        one.type(b"hello\n")
        one.wait_for("second half")
        one.type(b"more\n")
        one.wait_for("waits for the turn that runs")
        one.type(b"/interrupt\n")
        one.wait_for("turn t1 ended: interrupted")
        files.open("gate")
        one.wait_for("turn t2 ended: stop")
        one.type(CTRL_D)
        assert one.end() == 0
    assert kinds(session.session_id).count("interrupted") == 1


def test_one_that_only_looks_can_neither_speak_nor_interrupt(daemon: Path, files: Files) -> None:
    session = bob(files, slow(files)).session
    session.submit("hello")
    with attached("--read-only") as one:
        assert "a line is a message" not in one.seen
        one.wait_for("second half")
        one.type(b"ignored\n/interrupt\n")
        one.type(CTRL_C)
        one.wait_for("detached")
        assert one.end() == 0
    assert (session.status()["turn"], session.status()["queue"]) == ("t1", 0)


def test_a_terminal_that_is_killed_leaves_no_subscription(daemon: Path, files: Files) -> None:
    found = bob(files, "x")
    with attached() as one:
        found.subscribers(1)
        os.kill(one.pid, signal.SIGKILL)
        one.end()
    found.subscribers(0)


# --- pipes ------------------------------------------------------------------------------------------------------------


def test_piped_lines_are_messages_and_it_leaves_with_their_answers(daemon: Path, files: Files) -> None:
    bob(files, "answer one", {"text": "answer two", "delay_s": 0.05})
    ran = athena("attach", "bob", stdin="one\n\ntwo")
    assert (ran.code, ran.out) == (0, "> one\nanswer one\n> two\nanswer two\n")
    assert "detached" in ran.err


def test_json_is_one_line_for_each_event_and_delta(daemon: Path, files: Files) -> None:
    session = bob(files, {"text": "some text", "chunks": 3}).session
    ran = athena("attach", "bob", "--from", "0", "--json", stdin="hello\n")
    assert ran.code == 0
    events = [item for item in ran.lines if item["event"] != "delta"]
    assert [item["event"] for item in events] == kinds(session.session_id)
    assert "".join(item["data"]["text"] for item in ran.lines if item["event"] == "delta") == "some text"


def test_without_input_it_listens_until_the_session_ends(daemon: Path, files: Files) -> None:
    found = bob(files, "an answer")
    listener = start("attach", "bob", wrap=(sys.executable, "-c", WITHOUT_INPUT))
    found.subscribers(1)
    found.session.send_message("hello")
    found.session.stop()
    ran = finish(listener)
    assert (ran.code, ran.out) == (0, "> hello\nan answer\n")


WITHOUT_INPUT = "import os, sys; os.dup2(os.open(os.devnull, 0), 0); os.execv(sys.argv[1], sys.argv[1:])"


def test_a_message_that_is_refused_is_told_and_ends_nothing(daemon: Path, files: Files) -> None:
    bob(files, slow(files), *["x"] * 70)
    process = start("attach", "bob")
    assert process.stdin is not None
    for number in range(66):  # one runs, 64 wait
        process.stdin.write(f"message {number}\n")
    process.stdin.flush()
    files.wait_lines("asked")
    wait_until(lambda: Session.attach("bob").status()["queue"] == 64, LIMIT_S)
    files.open("gate")
    ran = finish(process)
    assert ran.code == 0
    assert "64 messages are waiting already" in ran.err
    assert ran.out.count("\nx\n") == 64


def test_mistakes_are_told_in_one_line(daemon: Path, files: Files) -> None:
    assert_one_line(athena("attach", "bob"), 3, "no supervisor listens")
    bob(files, "x")
    assert_one_line(athena("attach", "nobody"), 1, "'nobody'")
    assert_one_line(athena("attach", "bob", "--from", "1000"), 2, "does not hold the event 1000", "after=0")
    assert_one_line(athena("attach", "bob", "--from", "x"), 2, "--from")
    assert json.loads(athena("attach", "nobody", "--json").err)["error"] == "NotFound"


# --- the daemon goes and comes back -----------------------------------------------------------------------------------


def test_terminals_outlast_a_daemon_that_is_killed(daemon: Path, files: Files) -> None:
    found = bob(files, "answer one", slow(files), "answer three")
    with attached() as one, attached("--read-only") as other:
        one.type(b"one\n")
        for terminal in (one, other):
            terminal.wait_for("turn t1 ended")
        one.type(b"two\n")
        other.wait_for("second half")
        kill_pid(guard_pid(found.target))
        DaemonTarget(found.target.path, autostart=True).ensure()
        files.open("gate")
        found.session.status()  # whoever started it presents its options again
        for terminal in (one, other):
            terminal.wait_for("turn t2 ended: stop")
        one.type(b"three\n")
        for terminal in (one, other):
            terminal.wait_for("answer three")
            assert terminal.seen.count("answer one") == 1
            terminal.type(CTRL_C)
            terminal.wait_for("detached")
            assert terminal.end() == 0
    assert [kind for kind in kinds(found.id) if kind == "turn_end"] == ["turn_end"] * 3


def test_terminals_outlast_an_ordered_restart_of_an_idle_session(daemon: Path, files: Files) -> None:
    found = bob(files, "answer one", "answer two")
    found.session.send_message("one")
    with attached() as one, attached("--read-only") as other:
        ran = supervisor("restart")
        assert ran.code == 0, ran.err
        for terminal in (one, other):
            terminal.wait_for("answer one")
        found.subscribers(2)
        one.type(b"two\n")
        for terminal in (one, other):
            terminal.wait_for("answer two")
            terminal.wait_for("turn t2 ended: stop")
            assert terminal.seen.count("answer one") == 1
            terminal.type(CTRL_C)
            assert terminal.end() == 0


# --- permission -------------------------------------------------------------------------------------------------------


def test_what_needs_permission_is_asked_in_all_terminals_and_one_answers(daemon: Path, files: Files) -> None:
    write = {"tool_calls": [{"name": "write", "arguments": {"path": "new", "content": "text"}}]}
    found = bob(files, write, "written", write, "refused")
    with attached() as one, attached() as other, attached("--read-only") as third:
        one.type(b"write it\n")
        for terminal in (one, other):
            terminal.wait_for("allow it? y(es), n(o)")
        other.type(b"y\n")
        for terminal in (one, other, third):
            terminal.wait_for("allowed by process")
            terminal.wait_for("turn t1 ended: stop")
        assert (files.root / "new").read_text() == "text"
        one.type(b"again\n")
        with attached() as late:
            for terminal in (one, other, late):
                terminal.wait_for("allow it? y(es), n(o)", 1 if terminal is late else 2)
            late.type(b"n\n")
            for terminal in (one, other, late):
                terminal.wait_for("denied by process")
                terminal.wait_for("refused")
        assert "allow it?" not in third.seen
        one.type(b"y\n")  # nothing is asked any more: a message
        other.wait_for("> y\n")
    assert found.session.status()["state"] == "running"
