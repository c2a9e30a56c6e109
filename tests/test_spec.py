"""The session spec: defaults, OTP's tags and order, and texts that help (otp.md 2, 3; cases A09, A11)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import orjson
import pytest

from athena.errors import InvalidSpec, to_wire
from supervisor.restart import Backoff, Restart
from supervisor.spec import CHECKS, SPEC_OPTIONS, SessionSpec
from supervisor.vocabulary import StopRequested

NUMBERS_NOBODY_MEANS: list[Any] = [True, False, math.nan, math.inf, -math.inf, -1, -0.5, 10**400]

BAD: dict[str, list[Any]] = {
    "max_restarts": [*NUMBERS_NOBODY_MEANS, 1.0, "3", "infinity", None, 2**63],
    "max_seconds": [*NUMBERS_NOBODY_MEANS, 0, 0.0, "5", "infinity", None],
    "restart": ["always", "", "Permanent", None, True, 3, ["transient"], {}],
    "shutdown": [*NUMBERS_NOBODY_MEANS, "5", "brutal", None, [5]],
    "start_timeout": [*NUMBERS_NOBODY_MEANS, 0, "brutal_kill", None],
    "hang_timeout": [*NUMBERS_NOBODY_MEANS, 0, "never", None],
    "hibernate_after": [*NUMBERS_NOBODY_MEANS, 0, "never", None],
    "grants_timeout": [*NUMBERS_NOBODY_MEANS, 0, "never", None],
    "max_memory": [*NUMBERS_NOBODY_MEANS, 0, 512, 1e9, "2GB", None],
    "max_processes": [*NUMBERS_NOBODY_MEANS, 0, 1.0, "half", None],
    "max_files": [*NUMBERS_NOBODY_MEANS, 0, 63, 100.0, "many", None],
    "turn_timeout": [*NUMBERS_NOBODY_MEANS, 0, "never", None],
    "boot_failures": [*NUMBERS_NOBODY_MEANS, 0, 1.0, None],
    "backoff": [True, 1, "none", {"bases": 1}, {1: 2}, [0.1], {"base_s": -1}, {"jitter": math.nan}],
}
TAGS = {
    "max_restarts": "invalid_intensity",
    "max_seconds": "invalid_period",
    "restart": "invalid_restart_type",
    "shutdown": "invalid_shutdown",
    "start_timeout": "invalid_start_timeout",
    "hang_timeout": "invalid_hang_timeout",
    "hibernate_after": "invalid_hibernate_after",
    "grants_timeout": "invalid_grants_timeout",
    "max_memory": "invalid_max_memory",
    "max_processes": "invalid_max_processes",
    "max_files": "invalid_max_files",
    "turn_timeout": "invalid_turn_timeout",
    "boot_failures": "invalid_boot_failures",
    "backoff": "invalid_backoff",
}
"""In the order in which offences are reported."""

GOOD: dict[str, list[Any]] = {
    "max_restarts": [0, 1, 2**63 - 1],
    "max_seconds": [1, 0.5, 3600],
    "restart": ["permanent", "transient", "temporary", Restart.PERMANENT],
    "shutdown": [0, 0.0, 5, 1e9, "brutal_kill", "infinity"],
    "start_timeout": [0.001, 30, "infinity"],
    "hang_timeout": [1, 30.0, "infinity"],
    "hibernate_after": [0.001, 600, "infinity"],
    "grants_timeout": [0.001, 600, "infinity"],
    "max_memory": [16 * 1024 * 1024, 2**63 - 1, "half", "infinity"],
    "max_processes": [1, 1024, "infinity"],
    "max_files": [64, "infinity"],
    "turn_timeout": [0.5, 600, "infinity"],
    "boot_failures": [1, 100],
    "backoff": [None, Backoff(cap_s=1)],
}


def pairs(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={value!r:.30}") for name in table for value in table[name]]


def test_the_defaults_are_those_of_the_design() -> None:
    spec = SessionSpec.from_options({})
    assert spec == SessionSpec()
    assert (spec.restart, spec.max_restarts, spec.max_seconds, spec.shutdown) == ("transient", 3, 5, 5.0)
    assert (spec.start_timeout, spec.hang_timeout, spec.hibernate_after) == (30.0, 30.0, 600.0)
    assert spec.boot_failures == 3
    assert spec.backoff == Backoff(0.1, 2, 30, 0.5)


@pytest.mark.parametrize(("name", "value"), pairs(GOOD))
def test_a_legal_value_is_taken(name: str, value: Any) -> None:
    assert getattr(SessionSpec.from_options({name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), pairs(BAD))
def test_an_illegal_value_is_refused_with_its_tag_and_crosses_the_wire(name: str, value: Any) -> None:
    with pytest.raises(InvalidSpec) as caught:
        SessionSpec.from_options({name: value})
    assert caught.value.tag == TAGS[name]
    assert name in caught.value.message
    assert "expected" in caught.value.message
    orjson.dumps(to_wire(caught.value))


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(TAGS, 2)))
def test_of_two_offences_the_one_earlier_in_the_order_is_reported(first: str, second: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        SessionSpec.from_options({second: BAD[second][-1], first: BAD[first][-1]})
    assert caught.value.tag == TAGS[first]


def test_the_table_holds_every_field_once() -> None:
    assert [check.field for check in CHECKS] == list(TAGS)
    assert {field.name for field in dataclasses.fields(SessionSpec)} == SPEC_OPTIONS == set(TAGS)


def test_a_text_names_the_value_what_is_expected_and_a_way_out() -> None:
    with pytest.raises(InvalidSpec) as caught:
        SessionSpec.from_options({"shutdown": -10})
    assert caught.value.value == -10
    assert caught.value.message == (
        "shutdown=-10 is refused: expected seconds >= 0 as int or float, 'brutal_kill' or 'infinity';"
        " for example shutdown=5.0"
    )


@pytest.mark.parametrize(
    ("value", "carried"),
    [
        *(("always", "always"), (None, None), (True, True), (2, 2), (0.5, 0.5)),
        *((2**64, "18446744073709551616"), (math.nan, "nan"), ("\ud800", "'\\ud800'"), ([1], "[1]")),
    ],
)
def test_the_offending_value_is_kept_where_json_can_carry_it(value: Any, carried: Any) -> None:
    with pytest.raises(InvalidSpec) as caught:
        SessionSpec.from_options({"restart": value})
    assert caught.value.value == carried


def test_unknown_keys_are_ignored_as_otp_does() -> None:
    assert SessionSpec.from_options({"provider": "ollama", "modul": 1}) == SessionSpec()


@pytest.mark.parametrize("options", [None, "transient", [("restart", "transient")], 3])
def test_options_of_the_wrong_kind_are_no_child_spec(options: Any) -> None:
    with pytest.raises(InvalidSpec, match="expected a mapping") as caught:
        SessionSpec.from_options(options)
    assert caught.value.tag == "invalid_child_spec"


def test_the_restart_type_becomes_its_enum() -> None:
    assert SessionSpec.from_options({"restart": "permanent"}).restart is Restart.PERMANENT


def test_a_backoff_may_be_a_mapping() -> None:
    assert SessionSpec.from_options({"backoff": {"cap_s": 2}}).backoff == Backoff(cap_s=2)
    assert SessionSpec.from_options({"backoff": {}}).backoff == Backoff()


def test_a_spec_survives_json() -> None:
    spec = SessionSpec.from_options({"restart": "permanent", "shutdown": "infinity", "backoff": {"cap_s": 2}})
    assert SessionSpec.from_options(orjson.loads(orjson.dumps(dataclasses.asdict(spec)))) == spec


def test_a_spec_made_directly_is_checked_too() -> None:
    with pytest.raises(InvalidSpec):
        SessionSpec(shutdown=-1)


@pytest.mark.parametrize("value", [value for value in BAD["shutdown"] if value is not None], ids=lambda v: f"{v!r:.20}")
def test_a_stop_with_an_illegal_shutdown_is_refused_when_it_is_made(value: Any) -> None:
    with pytest.raises(InvalidSpec) as caught:
        StopRequested("normal", value)
    assert caught.value.tag == "invalid_shutdown"


@pytest.mark.parametrize("value", [None, *GOOD["shutdown"]])
def test_a_stop_takes_every_legal_shutdown(value: Any) -> None:
    assert StopRequested(shutdown=value) == StopRequested("normal", value)
