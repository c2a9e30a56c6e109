"""What a supervisor notes of its processes, and what the next one does with it: it ends what is left, nobody else."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena import proctree
from athena.proctree import Identity
from supervisor import process_roster
from supervisor.process_roster import SHARED_COOKIE, Entry, ProcessRoster, boot_id, dumps, parse
from tests.helpers import TIME_UNIT
from tests.roster_parts import COOKIE, GARBAGE, Noted, directory, only_file

__all__ = ["directory"]


def test_what_has_not_ended_is_in_the_file_which_is_private_and_says_whose_it_is(directory: Path) -> None:
    roster = ProcessRoster(directory)
    for pid in (11, 12, 13):
        roster.add(Noted(pid))
    roster.end(Noted(12))
    path = only_file(directory)
    found = parse(path.read_bytes())
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(directory.stat().st_mode)) == (0o600, 0o700)
    assert (found.boot, found.supervisor) == (boot_id(), proctree.identity(os.getpid()))
    assert found.entries == [Entry(Identity(11, 7), COOKIE), Entry(Identity(13, 7), COOKIE)]
    assert found.problems == []


def test_a_number_that_is_used_again_is_another_process(directory: Path) -> None:
    roster = ProcessRoster(directory)
    for start_time in (1, 2):
        roster.add(Noted(11, start_time))
    roster.end(Noted(11, 1))
    roster.end(Noted(11, 99))
    assert parse(only_file(directory).read_bytes()).entries == [Entry(Identity(11, 2), COOKIE)]


def test_a_process_without_a_cookie_of_its_own_is_a_zygote(directory: Path) -> None:
    roster = ProcessRoster(directory)
    roster.add(Noted(11, cookie=""))
    assert parse(only_file(directory).read_bytes()).entries == [Entry(Identity(11, 7), SHARED_COOKIE)]


def test_a_file_that_grows_is_replaced_by_one_with_what_lives(directory: Path) -> None:
    roster = ProcessRoster(directory)
    first = only_file(directory)
    roster.add(Noted(11))
    for number in range(process_roster.SPARE_LINES):
        roster.add(Noted(100 + number))
        roster.end(Noted(100 + number))
    second = only_file(directory)
    assert second != first
    assert parse(second.read_bytes()).entries == [Entry(Identity(11, 7), COOKIE)]
    assert len(second.read_bytes().splitlines()) < process_roster.SPARE_LINES + 10


def test_the_file_goes_with_its_last_process_and_stays_while_one_lives(directory: Path) -> None:
    clean, unclean = ProcessRoster(directory), ProcessRoster(directory)
    clean.add(Noted(11))
    clean.end(Noted(11))
    unclean.add(Noted(12))
    clean.close()
    unclean.close()
    unclean.close()
    assert parse(only_file(directory).read_bytes()).entries == [Entry(Identity(12, 7), COOKIE)]


def test_a_supervisor_without_a_roster_says_so_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "processes").write_text("a file is in its place")
    roster = ProcessRoster(tmp_path / "processes")
    for pid in (11, 12):
        roster.add(Noted(pid))
        roster.end(Noted(pid))
    roster.close()
    assert caplog.text.count("launched processes are not noted") == 1


def short_writes(given: pytest.MonkeyPatch, length: int) -> None:
    """As on a disk that gets full: at most so many bytes of anything are written."""
    write = os.write
    given.setattr(os, "write", lambda fd, data: write(fd, data[:length]))


def test_what_could_not_be_noted_on_a_full_disk_is_noted_when_there_is_room(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    roster = ProcessRoster(directory)
    roster.add(Noted(10))
    short_writes(monkeypatch, 9)
    roster.add(Noted(11))
    roster.add(Noted(12))
    roster.end(Noted(12))
    found = parse(only_file(directory).read_bytes())
    assert found.entries == [Entry(Identity(10, 7), COOKIE)], "the whole file was not given up for a torn one"
    monkeypatch.undo()
    roster.add(Noted(13))
    found = parse(only_file(directory).read_bytes())
    assert [entry.identity.pid for entry in found.entries] == [10, 11, 13]
    assert found.problems == []
    assert caplog.text.count("launched processes are not noted") == 1


def test_a_torn_line_spoils_no_other(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roster = ProcessRoster(directory)
    short_writes(monkeypatch, 9)
    roster.add(Noted(11))
    monkeypatch.undo()
    monkeypatch.setattr(process_roster, "_new_file", refuse)
    roster.add(Noted(12))
    found = parse(only_file(directory).read_bytes())
    assert found.entries == [Entry(Identity(12, 7), COOKIE)]
    assert len(found.problems) == 1


def refuse(*_: object, **__: object) -> Any:
    """No room, no right, no luck."""
    raise OSError("refused")


def test_a_file_that_cannot_be_replaced_goes_on_growing_and_misses_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster = ProcessRoster(directory)
    first = only_file(directory)
    monkeypatch.setattr(process_roster, "_new_file", refuse)
    monkeypatch.setattr(process_roster, "SPARE_LINES", 10)
    roster.add(Noted(11))
    for number in range(100):
        roster.add(Noted(100 + number))
        roster.end(Noted(100 + number))
    roster.add(Noted(12))
    assert [entry.identity.pid for entry in parse(first.read_bytes()).entries] == [11, 12]
    monkeypatch.setattr(Path, "unlink", refuse)
    roster.end(Noted(11))
    roster.end(Noted(12))
    roster.close()


def test_a_closed_roster_writes_nothing_more(directory: Path) -> None:
    roster = ProcessRoster(directory)
    roster.close()
    for number in range(2 * process_roster.SPARE_LINES):
        roster.add(Noted(100 + number))
    assert list(directory.iterdir()) == []


def test_noting_a_launch_costs_next_to_nothing(directory: Path) -> None:
    roster = ProcessRoster(directory)
    began = time.perf_counter()
    for pid in range(2, 2002):
        roster.add(Noted(pid))
    assert (time.perf_counter() - began) / 2000 < 50e-6 * TIME_UNIT


@given(
    st.binary() | st.lists(st.sampled_from([b"{", b"}", b'"pid":', b"1", b",", b'"start":', b"\n", b"["])).map(b"".join)
)
def test_no_bytes_make_reading_fail(data: bytes) -> None:
    assert parse(data).entries == []


@pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
def test_a_line_that_makes_no_sense_counts_for_nothing_and_is_a_problem(text: str) -> None:
    good = dumps({"pid": 12, "start": 7, "cookie": COOKIE})
    found = parse(good + text.encode("latin-1") + b"\n" + dumps({"pid": 13, "start": 7, "cookie": COOKIE}))
    assert [entry.identity.pid for entry in found.entries] == [12, 13]
    assert len(found.problems) == (text not in ("", "null"))
    assert all(len(problem) < 400 for problem in found.problems)
