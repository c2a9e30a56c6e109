"""Fail points: off unless a process's own environment arms them, and once where they are told to act once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena import Session, failpoints
from athena.environment import scrubbed_environment
from athena.errors import InvalidOption
from athena.failpoints import CHILD_VARIABLE, SUPERVISOR_VARIABLE, Clause, Fired, parse, read_log
from athena.supervisors import EmbeddedSupervisor
from tests.helpers import TIME_UNIT
from tests.session_fixtures import Sessions, files, kinds, sessions, shared_supervisor

__all__ = ["files", "sessions", "shared_supervisor"]

PROGRAM = """
import os, sys
from athena import failpoints
failpoints.arm(os.environ, failpoints.CHILD_VARIABLE)
assert failpoints.CHILD_VARIABLE not in os.environ
for number in range(5):
    if failpoints.hit is not None:
        failpoints.hit("here:a")
print("lived")
"""


def _run(clauses: str | None) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    if clauses is not None:
        environment[CHILD_VARIABLE] = clauses
    argv = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30 * TIME_UNIT, check=False)
    return done.returncode, done.stdout.strip()


def test_nothing_is_armed_in_a_process_that_nobody_armed() -> None:
    assert failpoints.hit is None
    assert _run(None) == (0, "lived")
    assert _run("") == (0, "lived")


@pytest.mark.parametrize(
    ("clauses", "status"),
    [
        ("here:a@5=kill", -9),
        ("here:a@6=kill", 0),
        ("here:b=kill", 0),
        ("here:*@2=exit", failpoints.EXIT_STATUS),
        ("here:a=note", 0),
        ("there=exit; here:a=kill", -9),
    ],
)
def test_a_clause_acts_at_its_passage_of_its_point(clauses: str, status: int) -> None:
    assert _run(clauses) == (status, "lived" if status == 0 else "")


def test_with_a_log_a_clause_acts_once_in_whichever_process(tmp_path: Path) -> None:
    clauses = f"here:a@2=kill; here:a@3=exit; log={tmp_path / 'fired'}"
    assert [_run(clauses)[0] for _ in range(3)] == [-9, failpoints.EXIT_STATUS, 0]
    found = read_log(str(tmp_path / "fired"))
    assert [(one.point, one.count, one.clause) for one in found] == [
        ("here:a", 2, "here:a@2=kill"), ("here:a", 3, "here:a@3=exit"),
    ]  # fmt: skip


def test_a_note_is_written_at_each_passage(tmp_path: Path) -> None:
    assert _run(f"*@4=note; log={tmp_path / 'notes'}")[0] == 0
    assert [one.count for one in read_log(str(tmp_path / "notes"))] == [4, 5]
    assert read_log(str(tmp_path / "none")) == []


@pytest.mark.parametrize("bad", ["here", "here=die", "here@0=kill", "here@x=kill", "=kill", "a b=kill"])
def test_what_cannot_be_read_is_an_error_that_names_it(bad: str) -> None:
    with pytest.raises(InvalidOption, match="POINT@N=ACTION") as caught:
        parse(f"fine=kill; {bad}")
    assert caught.value.value == repr(bad)


@given(st.lists(st.builds(Clause, st.from_regex(r"[a-z:_]+\*?", fullmatch=True), st.integers(1, 99),
                          st.sampled_from(failpoints.ACTIONS))))  # fmt: skip
def test_a_clause_reads_as_it_is_written(clauses: list[Clause]) -> None:
    assert parse(" ; ".join(map(str, clauses))) == (clauses, None)


def test_only_the_variable_for_supervisors_is_passed_to_one() -> None:
    given_environment = {CHILD_VARIABLE: "x=kill", SUPERVISOR_VARIABLE: "y=kill"}
    kept = scrubbed_environment(given_environment)
    assert kept[SUPERVISOR_VARIABLE] == "y=kill"
    assert CHILD_VARIABLE not in kept


def test_a_session_dies_where_its_environment_says_and_goes_on(sessions: Sessions, tmp_path: Path) -> None:
    clauses = f"appended:assistant_message=kill; log={tmp_path / 'fired'}"
    session = sessions.start(["one", "two"], env={**os.environ, CHILD_VARIABLE: clauses})
    assert session.send_message("go").text == "one"
    assert session.status()["last_reason"] == "killed"
    assert kinds(session.session_id).count("assistant_message") == 1
    assert [one.point for one in read_log(str(tmp_path / "fired"))] == ["appended:assistant_message"]


def test_a_session_with_a_fail_point_that_cannot_be_read_does_not_start(sessions: Sessions) -> None:
    with pytest.raises(InvalidOption, match="nonsense"):
        sessions.start(["one"], env={**os.environ, CHILD_VARIABLE: "nonsense"})


@pytest.mark.slow
def test_a_supervisor_dies_where_its_environment_says_and_its_client_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(SUPERVISOR_VARIABLE, f"frame_in:event@4=kill; log={tmp_path / 'fired'}")
    supervisor = EmbeddedSupervisor()
    try:
        session = Session.start_link(supervisor=supervisor, provider="mock", mock=["one"], cwd=str(tmp_path))
        assert session.send_message("go", timeout=30 * TIME_UNIT).text == "one"
        session.stop()
    finally:
        supervisor.stop()
    assert [one.clause for one in read_log(str(tmp_path / "fired"))] == ["frame_in:event@4=kill"]


def test_a_line_of_the_log_says_where_what_and_who(tmp_path: Path) -> None:
    log = tmp_path / "fired"
    log.write_text("append:x@3 append:*@3=freeze 42\n")
    assert read_log(str(log)) == [Fired("append:x", 3, "append:*@3=freeze", 42)]


def test_what_a_session_starts_does_not_see_its_fail_points(sessions: Sessions, tmp_path: Path) -> None:
    step = {"tool_calls": [{"name": "bash", "arguments": {"command": f"echo .${CHILD_VARIABLE}. > seen"}}]}
    session = sessions.start([step, "two"], phase="trusted", env={**os.environ, CHILD_VARIABLE: "never=kill"})
    assert session.send_message("go").text == "two"
    assert (tmp_path / "seen").read_text() == "..\n"
