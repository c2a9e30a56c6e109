"""The chaos harness: a slice of its trials, that it goes where it says, and that it sees each fault it looks for."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena import failpoints
from athena.events import encode
from athena.failpoints import Fired
from athena.testing.chaos import (
    ROUND,
    Effect,
    Evidence,
    Outcome,
    Outcomes,
    Plan,
    Trial,
    World,
    effects_table,
    failures,
    judge,
    marked,
    plan,
    run,
    table,
)
from athena.testing.chaos.plans import CHILD_POINTS, SHARES, SUPERVISOR_POINTS
from athena.testing.chaos.run import was_reached_in
from athena.testing.chaos.scenario import CONVERSATION, KINDS, message_id
from tests.helpers import TIME_UNIT, wait_until

ROOT = Path(__file__).resolve().parents[1]
SLICE = ROUND
"""One trial of each kind and share: half a minute on two CPUs."""


@pytest.mark.slow
def test_nothing_is_lost_doubled_bent_or_left_behind_whoever_dies_wherever(tmp_path: Path) -> None:
    outcomes = run(range(SLICE), seed=2026, keep=tmp_path)
    assert outcomes.ok, failures(outcomes)
    assert len(outcomes.trials) == SLICE
    assert sum(one.was_reached for one in outcomes.trials) > 0.8 * SLICE


# --- it goes where it says --------------------------------------------------------------------------------------------


class Noting(Trial):
    """A trial in which nobody dies and every point that is passed is written down."""

    def _clauses(self, at: str) -> str:
        return f"*=note; log={self._directory / at}"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="at-") as path:
        yield Path(path)


@pytest.mark.slow
def test_an_undisturbed_trial_passes_each_point_at_which_somebody_is_to_die(short_path: Path) -> None:
    undisturbed = Plan(0, ("supervisor",), durability="event")
    with World(short_path) as world:
        place = (str(world.socket), world.addresses)
        evidence = Noting(undisturbed, "undisturbed", short_path / "t", place, None).run()
    assert judge(evidence).faults == {}
    for at, points in (("child", CHILD_POINTS), ("supervisor", SUPERVISOR_POINTS)):
        passed = {f"{one.point}@{one.count}" for one in failpoints.read_log(str(short_path / "t" / at))}
        # How many deltas are relayed is the hub's affair: a reader that is behind gets several as one.
        assert {point for point in points if "relayed" not in point} <= passed
        assert "frame_out:relayed@1" in passed or at == "child"


@given(seed=st.integers(0, 1000), number=st.integers(0, 10_000))
def test_a_plan_is_the_same_whenever_it_is_made(seed: int, number: int) -> None:
    made = plan(seed, number)
    assert made == plan(seed, number)
    assert made.number == number
    assert all(made.row)


def test_each_round_has_every_kind_of_trial_and_all_points_come_before_one_comes_again() -> None:
    rounds = -(-len(CHILD_POINTS) // SHARES[0].slots)
    plans = [plan(7, number) for number in range(rounds * ROUND)]
    victims = Counter(one.victims for one in plans)
    assert victims == Counter({v: rounds * n for v, n in _slots().items()})
    points = Counter(one.point for one in plans if one.kills_itself and one.at == "child" and one.second is None)
    assert set(points) == set(CHILD_POINTS)
    assert max(points.values()) <= 2


def _slots() -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    for share in SHARES:
        counts[share.victims] += share.slots
    return counts


@pytest.mark.slow
def test_its_command_line_prints_its_outcomes_as_json(tmp_path: Path) -> None:
    argv = [sys.executable, str(ROOT / "scripts" / "chaos.py"), "--only", "1", "--lanes", "1", "--json"]
    argv += ["--keep", str(tmp_path / "kept")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60 * TIME_UNIT, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["plan"]["number"] for one in found["trials"]] == [1]
    assert found["left_over"] == []


def test_processes_are_known_by_a_directory_that_they_name_or_sit_in(tmp_path: Path) -> None:
    assert marked([tmp_path]) == []
    sleeper = subprocess.Popen(["sleep", "1000"], cwd=tmp_path)
    try:
        wait_until(lambda: [one.pid for one in marked([tmp_path])] == [sleeper.pid])
        assert marked([tmp_path.with_name(tmp_path.name + "2"), tmp_path / "below"]) == []
    finally:
        sleeper.kill()
        sleeper.wait()
    assert marked([tmp_path]) == []


# --- it sees what it looks for ----------------------------------------------------------------------------------------


class Told:
    """The evidence of a trial of one call, in which all went well, to be bent."""

    def __init__(self, tool: str = "charge") -> None:
        self.kinds: list[tuple[str, dict[str, Any]]] = [("session_start", {})]
        for number, said in enumerate(CONVERSATION):
            one = {"message_id": message_id("t", number)}
            self.kinds += [("message_accepted", one), ("turn_start", one)]
            if number == 0:
                self.kinds += _call(tool)
            self.kinds += [("turn_end", {**one, "finish_reason": "stop", "text": said.answer})]
        request = {"session": "t", "tool": tool, "call": "c", "key": _key(tool), "amount": 1, "performed": True}
        self.evidence = Evidence("t", requests=[request], answers=[said.answer for said in CONVERSATION])
        self.evidence.acknowledged = [message_id("t", number) for number in range(len(CONVERSATION))]
        self.write()

    def write(self) -> None:
        """Make the log of :attr:`kinds`, and a stream of it."""
        self.evidence.log = [encode(seq, kind, data) for seq, (kind, data) in enumerate(self.kinds, 1)]
        self.evidence.stream = [(event.seq, event.uuid) for event in self.evidence.log]

    def without(self, kind: str) -> None:
        """The log lacks every event of this kind."""
        self.kinds = [one for one in self.kinds if one[0] != kind]
        self.write()

    def twice(self, kind: str) -> None:
        """The log has the first event of this kind once more, behind it."""
        at = next(i for i, one in enumerate(self.kinds) if one[0] == kind)
        self.kinds.insert(at, self.kinds[at])
        self.write()


def _key(tool: str) -> str | None:
    return "k" if "keyed" in KINDS[tool] else None


def _call(tool: str, status: str = "ok") -> list[tuple[str, dict[str, Any]]]:
    call = {"id": "c", "name": tool, "arguments": {"amount": 1}}
    result = {"tool_call_id": "c", "content": "done"}
    return [
        ("assistant_message", {"message": {"role": "assistant", "content": "", "tool_calls": [call]}}),
        ("tool_call", {"id": "c", "name": tool, "key": _key(tool)}),
        ("tool_result", {"message": {"role": "tool", "tool_results": [result]}, "status": status}),
    ]


@pytest.mark.parametrize("tool", KINDS)
def test_a_trial_in_which_all_went_well_has_no_fault(tool: str) -> None:
    assert judge(Told(tool).evidence).faults == {}


def _again(told: Told, **changed: Any) -> None:
    told.evidence.requests.append({**told.evidence.requests[0], **changed})


def _status(told: Told, status: str) -> None:
    at = next(i for i, one in enumerate(told.kinds) if one[0] == "tool_result")
    told.kinds[at] = ("tool_result", {**told.kinds[at][1], "status": status})
    told.write()


BENT: dict[str, tuple[str, str, Callable[[Told], object]]] = {
    "an acknowledged message is in no log": ("charge", "lost", lambda t: t.without("message_accepted")),
    "a turn has no end": ("charge", "lost", lambda t: t.without("turn_end")),
    "a call has no result": ("charge", "lost", lambda t: t.without("tool_result")),
    "an effect that was reported was never had": ("post", "lost", lambda t: t.evidence.requests.clear()),
    "a stream has lost its end": ("charge", "lost", lambda t: t.evidence.stream.pop(-1)),
    "a plain effect was had twice": ("charge", "duplicated", _again),
    "a plain effect was asked for twice": ("charge", "duplicated", lambda t: _again(t, performed=False)),
    "a keyed effect was had twice": ("post", "duplicated", lambda t: _again(t, key="other")),
    "a keyed effect had two keys": ("post", "duplicated", lambda t: _again(t, key="other", performed=False)),
    "a drawn effect was had with other numbers": (
        "draw", "duplicated", lambda t: t.evidence.requests[0].update(amount=2),
    ),
    "a drawn effect is of an answer that was thrown away": (
        "draw", "duplicated", lambda t: t.evidence.requests[0].update(call="other"),
    ),
    "a call has two results": ("charge", "duplicated", lambda t: t.twice("tool_result")),
    "a turn began twice": ("charge", "duplicated", lambda t: t.twice("turn_start")),
    "a keyed effect is in doubt": ("post", "diverged", lambda t: _status(t, "in_doubt")),
    "a turn did not end well": ("charge", "diverged", lambda t: t.kinds[-1][1].update(finish_reason="error")),
    "an answer is another one": ("charge", "diverged", lambda t: t.evidence.answers.reverse()),
    "a stream has a hole": ("charge", "diverged", lambda t: t.evidence.stream.pop(2)),
    "a stream has an event twice": (
        "charge", "diverged", lambda t: t.evidence.stream.insert(2, t.evidence.stream[2]),
    ),
    "a stream has more than the log": ("charge", "diverged", lambda t: t.evidence.log.pop()),
    "a log has a hole": ("charge", "diverged", lambda t: t.evidence.log.pop(3)),
    "a log is damaged": ("charge", "diverged", lambda t: setattr(t.evidence, "damage", "a bad line")),
    "a model refused a request": ("charge", "diverged", lambda t: t.evidence.refused.append("no")),
    "the session would not go on": ("charge", "bricked", lambda t: t.evidence.errors.append("NoProcess")),
    "a process was left": ("charge", "orphans", lambda t: t.evidence.orphans.append("7: sleep")),
}  # fmt: skip


@pytest.mark.parametrize("what", BENT)
def test_it_sees_that(what: str) -> None:
    tool, fault, bend = BENT[what]
    told = Told(tool)
    bend(told)
    assert fault in judge(told.evidence).faults


def test_a_plain_effect_that_is_in_doubt_may_have_been_had_or_not() -> None:
    for requests in (0, 1):
        told = Told("charge")
        _status(told, "in_doubt")
        del told.evidence.requests[requests:]
        assert judge(told.evidence).ok


@pytest.mark.parametrize(
    ("point", "column"),
    [
        ("effect:charge", "before the effect"),
        ("inside:charge", "after the effect, before its record"),
        ("effected:charge", "after the effect, before its record"),
        ("appended:tool_result", "after the record"),
    ],
)
def test_the_effect_around_which_the_process_died_is_known_by_the_point(point: str, column: str) -> None:
    told = Told("charge")
    told.evidence.fired = [Fired(point, 1, f"{point}@1=kill", 7)]
    assert judge(told.evidence).effect == Effect("plain", column, 1, 1, "ok")
    told.evidence.fired = [Fired("sync", 1, "sync@1=kill", 7)]
    assert judge(told.evidence).effect is None


def test_a_trial_counts_as_reached_only_if_everybody_died_who_was_to() -> None:
    fired = Fired("sync", 1, "sync@1=kill", 7)
    at_point = Plan(0, ("child",), point="sync@1")
    assert not was_reached_in(at_point, Evidence("t"))
    assert was_reached_in(at_point, Evidence("t", fired=[fired]))
    assert not was_reached_in(replace(at_point, second="synced@1"), Evidence("t", fired=[fired]))
    both = Plan(0, ("client", "child"), point="sync@1")
    assert not was_reached_in(both, Evidence("t", fired=[fired]))
    assert not was_reached_in(replace(both, point=None), Evidence("t", killed=["client"]))
    assert was_reached_in(both, Evidence("t", fired=[fired], killed=["client", "child"]))


# --- it shows what it saw ---------------------------------------------------------------------------------------------


def test_the_tables_count_by_who_died_and_where_and_failures_say_how_to_see_them_again() -> None:
    effect = Effect("plain", "before the effect", 0, 0, "in_doubt")
    good = Outcome(Plan(1, ("child",), point="effect:charge@1"), {}, effect, True, 0.2)
    bad = replace(good, plan=Plan(4, ("guard",)), faults={"lost": ["a message"]}, effect=None, kept="/kept")
    outcomes = Outcomes(3, [bad, good, replace(good, was_reached=False)])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(outcomes).split("\n")]
    assert rows[0][:3] == ["who is killed", "where", "trials"]
    assert rows[2] == ["child", "effect:charge", "2", "1", "0", "0", "0", "0", "0"]
    assert rows[3] == ["guard", "a random time", "1", "0", "1", "0", "0", "0", "0"]
    assert rows[-1][2:5] == ["3", "1", "1"]
    assert "0x, in_doubt: 2" in effects_table(outcomes)
    assert not outcomes.ok
    assert "lost: a message" in failures(outcomes)
    assert "--seed 3 --only 4" in failures(outcomes)
