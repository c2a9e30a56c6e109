"""The restart decision, the intensity and the backoff (otp.md 1, 6, 8)."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena.errors import InvalidSpec, Reason
from athena.spec_checks import is_number
from supervisor.restart import (
    RESTARTS,
    Backoff,
    FailedStarts,
    Intensity,
    ReasonClass,
    Restart,
    classify,
    is_clean,
    should_restart,
)

CLEAN: list[Reason] = ["normal", "shutdown", {"shutdown": None}, {"shutdown": "x"}, {"shutdown": {"deep": [1]}}]
ABNORMAL: list[Reason] = [
    *("killed", "kill", "noproc", "noconnection", "timeout", "hung", "oom", "Normal", "normal ", "died", ""),
    *({"exit": 3}, {"signal": "SIGSEGV"}, {"error": {"type": "E"}}, {"limit": "memory"}),
    *({"shutdown": 1, "extra": 2}, {"normal": 1}, {}, ["shutdown", 1], ["normal"], None, True, 0),
]


@pytest.mark.parametrize("reason", CLEAN, ids=repr)
def test_exactly_these_reasons_are_clean(reason: Reason) -> None:
    assert is_clean(reason)


@pytest.mark.parametrize("reason", ABNORMAL, ids=repr)
def test_every_other_reason_is_abnormal(reason: Reason) -> None:
    assert not is_clean(reason)


def test_normal_and_shutdown_are_told_apart() -> None:
    assert classify("normal") is ReasonClass.NORMAL
    assert classify("shutdown") is classify({"shutdown": 1}) is ReasonClass.SHUTDOWN


def test_the_table_has_a_row_for_every_restart_type_and_reason_class() -> None:
    assert set(RESTARTS) == set(itertools.product(Restart, ReasonClass))


@pytest.mark.parametrize("reason", [*CLEAN, *ABNORMAL], ids=repr)
def test_permanent_restarts_always_and_temporary_never(reason: Reason) -> None:
    assert should_restart(Restart.PERMANENT, reason)
    assert not should_restart(Restart.TEMPORARY, reason)


@pytest.mark.parametrize("reason", [*CLEAN, *ABNORMAL], ids=repr)
def test_transient_restarts_after_abnormal_exits_only(reason: Reason) -> None:
    assert should_restart(Restart.TRANSIENT, reason) is not is_clean(reason)


def allowed(intensity: Intensity, *times: float) -> list[bool]:
    answers = []
    for now in times:
        intensity, answer = intensity.add(now)
        answers.append(answer)
    return answers


@pytest.mark.parametrize(
    ("times", "answers"),
    [((0.0, 1.9), [True, False]), ((0.9, 2.0), [True, True]), ((0.0, 2.0), [True, True])],
)
def test_the_three_examples_of_intensity_1_in_1_second(times: tuple[float, ...], answers: list[bool]) -> None:
    assert allowed(Intensity(1, 1), *times) == answers


def test_exactly_max_restarts_are_allowed_inside_the_window() -> None:
    assert allowed(Intensity(3, 5), 10.0, 10.1, 10.2, 10.3) == [True, True, True, False]


def test_intensity_0_makes_the_first_restart_fatal() -> None:
    assert allowed(Intensity(0, 5), 0.0) == [False]


def test_the_window_includes_its_bound_in_whole_seconds() -> None:
    assert allowed(Intensity(1, 5), 10.0, 15.99) == [True, False]
    assert allowed(Intensity(1, 5), 10.99, 16.0) == [True, True]


def test_a_clock_below_zero_is_truncated_downwards() -> None:
    assert Intensity(1, 1).add(-0.5)[0].stamps == (-1,)


def test_adding_leaves_the_old_history_alone_and_keeps_the_newest_first() -> None:
    first, _ = Intensity(3, 5).add(1.5)
    second, _ = first.add(3.9)
    assert (first.stamps, second.stamps) == ((1,), (3, 1))


def test_count_forgets_what_left_the_window() -> None:
    intensity, _ = Intensity(3, 5).add(1.0)
    assert (intensity.count(6.9), intensity.count(7.0)) == (1, 0)


@given(
    st.integers(0, 5),
    st.integers(1, 5),
    st.lists(st.floats(0, 4, allow_nan=False), max_size=40),
)
def test_allowed_restarts_never_exceed_the_intensity(limit: int, period: int, gaps: list[float]) -> None:
    intensity, now = Intensity(limit, period), 0.0
    granted: list[float] = []
    for gap in gaps:
        now += gap
        intensity, answer = intensity.add(now)
        if answer:
            assert len(intensity.stamps) <= limit  # otp.md 19.7
            granted.append(now)
    for begin in granted:
        assert sum(begin <= stamp < begin + period for stamp in granted) <= limit


def test_failed_starts_count_all_and_the_last_that_are_alike() -> None:
    failed = FailedStarts()
    seen = []
    for reason in ["a", "a", {"exit": 1}, {"exit": 1}, "a"]:
        failed = failed.add(reason)
        seen.append((failed.count, failed.alike))
    assert seen == [(1, 1), (2, 2), (3, 1), (4, 2), (5, 1)]


def test_a_first_failure_without_reason_counts_once() -> None:
    assert FailedStarts().add(None) == FailedStarts(1, 1, None)


def test_the_first_restart_has_no_pause() -> None:
    assert Backoff().delay(0, 0.9) == 0.0


def test_the_pause_doubles_up_to_its_cap() -> None:
    backoff = Backoff(base_s=0.1, factor=2, cap_s=1)
    assert [backoff.delay(n, 0.0) for n in (1, 2, 3, 4, 5, 6)] == [0.1, 0.2, 0.4, 0.8, 1, 1]


def test_jitter_only_shortens_the_pause() -> None:
    assert Backoff(base_s=1, jitter=0.5).delay(1, 0.5) == 0.75
    assert Backoff(base_s=1, jitter=0).delay(1, 0.99) == 1


def test_so_many_failures_that_a_float_overflows_still_wait_the_cap() -> None:
    assert Backoff(cap_s=30).delay(100_000, 0.0) == 30


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_positive_and_never_above_the_cap(failures: int, random: float) -> None:
    assert 0 < Backoff().delay(failures, random) <= 30


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("base_s", value) for value in (0, -1, True, "1", None, math.nan, math.inf)),
        *(("factor", value) for value in (0.5, True, math.nan)),
        *(("cap_s", value) for value in (0, math.inf)),
        *(("jitter", value) for value in (-0.1, 1.1, math.nan)),
    ],
)
def test_an_illegal_backoff_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(InvalidSpec, match=f"backoff {field}=") as caught:
        Backoff(**{field: value})  # type: ignore[arg-type]  # on purpose
    assert (caught.value.tag, caught.value.value) == ("invalid_backoff", repr(value))


@pytest.mark.parametrize(("value", "answer"), [(1, True), (0.5, True), (-1, True), (True, False), (10**400, False)])
def test_numbers_are_finite_and_no_bools(value: object, answer: bool) -> None:
    assert is_number(value) is answer
