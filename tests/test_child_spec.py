"""Child specifications and supervisor flags: every field's default, error and order (otp.md 2, 3, 13)."""

from __future__ import annotations

import itertools
import math
import reprlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena.child_spec_rules import as_json, check_childspecs, error_term
from athena.errors import InvalidSpec
from athena.spec_checks import MAX_WIRE_INT
from supervisor.child_spec import ChildSpec, parse_child_spec, parse_child_specs, parse_dynamic_spec
from supervisor.flags import DynamicFlags, Strategy, SupervisorFlags, parse_dynamic_flags, parse_flags
from supervisor.restart import Intensity, Restart

START = "agents.echo:run"


def spec(**fields: Any) -> dict[str, Any]:
    return {"id": "c1", "start": START, **fields}


def refusal(parse: Any, *args: Any) -> tuple[str, Any]:
    with pytest.raises(InvalidSpec) as caught:
        parse(*args)
    return caught.value.tag, caught.value.value


# --- what is legal ----------------------------------------------------------------------------------------------------


def test_a07_a_bare_spec_has_every_default() -> None:
    parsed = parse_child_spec(spec())
    assert parsed == ChildSpec(id="c1", start=START, modules=("agents.echo",))
    assert parsed.to_map() == {
        **spec(args=[], kwargs={}, restart="permanent", shutdown=5.0, type="worker", significant=False),
        "modules": ["agents.echo"],
        "start_timeout": 30.0,
        "options": {},
    }


@pytest.mark.parametrize("parse", [parse_child_spec, parse_dynamic_spec])
def test_a07_shutdown_defaults_by_type_and_can_be_given(parse: Any) -> None:
    assert parse(spec(type="supervisor")).shutdown == "infinity"
    assert parse(spec(shutdown="brutal_kill")).shutdown == "brutal_kill"
    assert parse(spec(type="supervisor", shutdown=0)).shutdown == 0


@pytest.mark.parametrize(
    ("start", "modules"),
    [
        ("a:b", ["a"]),
        ("pkg.mod:Class.method", ["pkg.mod"]),
        (["/bin/sleep", "", "9"], ["/bin/sleep"]),
        (("prog",), ["prog"]),
        ({"session": {"model": "m"}}, "dynamic"),
    ],
)
def test_start_has_three_forms(start: Any, modules: Any) -> None:
    shown = parse_child_spec({"id": 1, "start": start}).to_map()
    assert shown["start"] == (list(start) if isinstance(start, tuple) else start)
    assert shown["modules"] == modules


def test_what_is_given_is_kept_and_an_unknown_key_ignored() -> None:
    given = spec(args=[1, "a"], kwargs={"k": 2}, restart="transient", type="worker", significant=True, colour="red")
    parsed = parse_child_spec({**given, "modules": ["m"], "start_timeout": "infinity", "options": {"cwd": "x"}})
    assert (parsed.args, parsed.kwargs, parsed.restart) == ((1, "a"), {"k": 2}, Restart.TRANSIENT)
    assert (parsed.significant, parsed.modules, parsed.options) == (True, ("m",), {"cwd": "x"})
    assert parsed.start_timeout == "infinity"


def test_the_old_tuple_of_six_is_accepted() -> None:
    parsed = parse_child_spec(("c1", START, "transient", 2, "worker", "dynamic"))
    assert (parsed.restart, parsed.shutdown, parsed.modules, parsed.significant) == ("transient", 2, "dynamic", False)


@pytest.mark.parametrize("parse", [parse_child_spec, parse_dynamic_spec])
def test_a_parsed_spec_and_its_mapping_parse_to_itself(parse: Any) -> None:
    once = parse(spec(args=[1], kwargs={"a": 1}, restart="temporary", modules=["x"], options={"cwd": "x"}))
    assert parse(once) == parse(once.to_map()) == once


def test_arguments_of_a_temporary_child_are_not_kept() -> None:
    kept = parse_child_spec(spec(args=[1], kwargs={"a": 1}, restart="temporary")).to_keep()
    assert (kept.args, kept.kwargs, kept.to_map()["args"]) == (None, {}, None)
    assert parse_child_spec(kept) == kept
    transient = parse_child_spec(spec(args=[1], restart="transient"))
    assert transient.to_keep() is transient


@pytest.mark.parametrize("name", ["x", "", 7, 2.5, True, None])
def test_an_id_is_any_json_scalar(name: Any) -> None:
    assert parse_child_spec(spec(id=name)).id is name


def test_ids_are_told_apart_by_type() -> None:
    names: list[Any] = [1, 1.0, True, "1", None]
    parsed = parse_child_specs([spec(id=name) for name in names])
    assert len({one.key for one in parsed}) == 5


# --- what is refused --------------------------------------------------------------------------------------------------

NO_FLOAT: list[Any] = [True, math.nan, math.inf, 10**400]

FIELDS: list[tuple[str, str, list[Any]]] = [
    ("id", "invalid_id", [[1], {"a": 1}, math.nan]),
    (
        "start",
        "invalid_mfa",
        ["", "noattr", "a:", ":b", "a b:c", "a:b-c", "a..b:c", [], ["", "x"], [1], ["a\0"], {}, None],
    ),
    ("start", "invalid_mfa", [{1: 2}, 7]),
    ("args", "invalid_mfa", ["ab", 1, {"a": 1}]),
    ("kwargs", "invalid_mfa", [[], {1: 2}, None]),
    ("restart", "invalid_restart_type", ["always", None, True, []]),
    ("significant", "invalid_significant", [1, "true", None]),
    ("type", "invalid_child_type", ["agent", None, []]),
    ("shutdown", "invalid_shutdown", [-10, -0.5, "never", None, [], *NO_FLOAT]),
    ("modules", "invalid_modules", ["m", 1, None, {}]),
    ("start_timeout", "invalid_start_timeout", [0, -1, "brutal_kill", None, *NO_FLOAT]),
    ("options", "invalid_options", [[], {1: 2}, None]),
]


@pytest.mark.parametrize("parse", [parse_child_spec, parse_dynamic_spec])
@pytest.mark.parametrize(("field", "tag", "values"), FIELDS, ids=lambda value: str(value)[:24])
def test_a09_each_field_is_refused_by_its_tag(parse: Any, field: str, tag: str, values: list[Any]) -> None:
    for value in values:
        assert refusal(parse, spec(**{field: value})) in [(tag, as_json(value)), (tag, reprlib.repr(value))]


@pytest.mark.parametrize("parse", [parse_child_spec, parse_dynamic_spec])
def test_a09_one_bad_module_is_named(parse: Any) -> None:
    assert refusal(parse, spec(modules=["m", 5, 6])) == ("invalid_module", 5)


def test_a09_missing_fields_and_wrong_kinds() -> None:
    assert refusal(parse_child_spec, {"start": START}) == ("missing_id", None)
    assert refusal(parse_child_spec, {"id": 1}) == ("missing_start", None)
    assert refusal(parse_child_spec, {}) == ("missing_id", None)
    assert refusal(parse_child_spec, "atom") == ("invalid_child_spec", "atom")
    assert refusal(parse_child_spec, [1, 2]) == ("invalid_child_spec", [1, 2])


def test_a09_a_repeated_id_is_found_before_later_offences() -> None:
    assert refusal(parse_child_specs, [spec(), spec(), {}]) == ("duplicate_child_name", "c1")
    assert refusal(parse_child_specs, [spec(), {}, spec()]) == ("missing_id", None)


def test_a09_check_childspecs() -> None:
    check_childspecs([spec(), spec(id="c2")])
    check_childspecs([])
    assert refusal(check_childspecs, "nonsense") == ("badarg", "nonsense")
    assert refusal(check_childspecs, [], "sometimes") == ("badarg", "sometimes")
    assert refusal(check_childspecs, ["atom"]) == ("invalid_child_spec", "atom")


def test_significant_children_need_a_supervisor_that_looks_and_an_end_that_is_final() -> None:
    """otp.md 2: ``never`` first, then ``permanent``; without a second argument only the latter."""
    never = ("bad_combination", [["auto_shutdown", "never"], ["significant", True]])
    permanent = ("bad_combination", [["restart", "permanent"], ["significant", True]])
    transient = spec(significant=True, restart="transient")
    assert refusal(check_childspecs, [spec(significant=True)], "never") == never
    assert refusal(check_childspecs, [transient], "never") == never
    assert refusal(check_childspecs, [spec(significant=True)]) == permanent
    assert refusal(check_childspecs, [spec(significant=True)], "any_significant") == permanent
    check_childspecs([transient], "all_significant")
    check_childspecs([transient])


def test_g04_a_dynamic_supervisor_refuses_a_spec_whole_and_significant_children_always() -> None:
    assert refusal(parse_dynamic_spec, {}) == ("invalid_child_spec", {})
    assert refusal(parse_dynamic_spec, {"id": 1}) == ("invalid_child_spec", {"id": 1})
    assert refusal(parse_dynamic_spec, {"start": START}) == ("invalid_child_spec", {"start": START})
    assert refusal(parse_dynamic_spec, (1, 2, 3, 4, 5, 6)) == ("invalid_mfa", 2)
    assert refusal(parse_dynamic_spec, spec(shutdown=-1)) == ("invalid_shutdown", -1)
    assert refusal(parse_dynamic_spec, spec(significant=True)) == ("invalid_significant", True)
    assert refusal(parse_dynamic_spec, spec(significant=True, restart="transient")) == ("invalid_significant", True)


ORDER = ["id", "start", "restart", "significant", "type", "shutdown", "modules", "start_timeout", "options"]
DYNAMIC_ORDER = ["id", "start", "restart", "shutdown", "type", "modules", "significant", "start_timeout", "options"]
BAD: dict[str, tuple[Any, str]] = {
    "id": ([], "invalid_id"),
    "start": (1, "invalid_mfa"),
    "restart": (1, "invalid_restart_type"),
    "significant": (1, "invalid_significant"),
    "type": (1, "invalid_child_type"),
    "shutdown": (-1, "invalid_shutdown"),
    "modules": (1, "invalid_modules"),
    "start_timeout": (-1, "invalid_start_timeout"),
    "options": (1, "invalid_options"),
}


@pytest.mark.parametrize(("parse", "order"), [(parse_child_spec, ORDER), (parse_dynamic_spec, DYNAMIC_ORDER)])
def test_the_first_offence_in_order_is_reported(parse: Any, order: list[str]) -> None:
    order = [field for field in order if not (parse is parse_dynamic_spec and field == "significant")]
    for first, second in itertools.combinations(order, 2):
        given = spec(**{second: BAD[second][0], first: BAD[first][0]})
        assert refusal(parse, given)[0] == BAD[first][1], (first, second)


def test_significant_is_the_last_otp_check_of_a_dynamic_supervisor() -> None:
    assert refusal(parse_dynamic_spec, spec(significant=True, modules=1))[0] == "invalid_modules"
    assert refusal(parse_dynamic_spec, spec(significant=True, start_timeout=-1))[0] == "invalid_significant"


def test_errors_as_terms() -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_child_spec({})
    assert error_term(caught.value) == "missing_id"
    with pytest.raises(InvalidSpec, match="invalid_mfa: 1 is refused: start is") as caught:
        parse_child_spec({"id": 1, "start": 1})
    assert error_term(caught.value) == {"invalid_mfa": 1}


def test_values_in_errors_are_json() -> None:
    loop: list[Any] = []
    loop.append(loop)
    odd = {1: (2, "\ud800", MAX_WIRE_INT + 1, math.inf, b"x"), "spec": parse_child_spec(spec()), "none": None, "f": 1.5}
    shown = as_json(odd)
    assert shown["1"] == [2, "'\\ud800'", repr(MAX_WIRE_INT + 1), "inf", "b'x'"]
    assert (shown["spec"]["id"], shown["none"], shown["f"]) == ("c1", None, 1.5)
    assert repr(as_json(loop)).count("[") < 40


@given(
    st.dictionaries(st.sampled_from([*ORDER, "args", "kwargs", "x"]), st.from_type(type) | st.integers() | st.text())
)
def test_whatever_a_spec_holds_it_is_parsed_or_refused(given: dict[str, Any]) -> None:
    for parse in (parse_child_spec, parse_dynamic_spec):
        tag = ""
        try:
            parsed = parse(given)
            assert parse(parsed.to_map()) == parsed
        except InvalidSpec as error:
            tag = error.tag
        assert tag in {"", "missing_id", "missing_start", "invalid_child_spec", *(tag for _, tag in BAD.values())}


# --- flags ------------------------------------------------------------------------------------------------------------


def test_bare_flags_are_otps_and_the_constructor_has_elixirs() -> None:
    """otp.md 3: a bare mapping allows 1 restart; the 3 come from ``start_link``."""
    assert parse_flags({}) == SupervisorFlags(max_restarts=1, max_seconds=5)
    assert SupervisorFlags().intensity == DynamicFlags().intensity == Intensity(3, 5)
    assert parse_dynamic_flags({}) == DynamicFlags(max_restarts=1)


def test_flags_by_both_names_by_triple_and_with_unknown_keys() -> None:
    parsed = SupervisorFlags(strategy=Strategy.REST_FOR_ONE, max_restarts=2, max_seconds=7)
    assert parse_flags({"strategy": "rest_for_one", "intensity": 2, "period": 7, "hibernate_after": 1}) == parsed
    assert parse_flags({"strategy": "rest_for_one", "max_restarts": 2, "max_seconds": 7}) == parsed
    assert parse_flags(["rest_for_one", 2, 7]) == parsed
    assert parse_flags({"auto_shutdown": "any_significant"}).auto_shutdown == "any_significant"


BAD_FLAGS: list[tuple[str, str, list[Any]]] = [
    ("strategy", "invalid_strategy", ["one_for_two", 1, None, []]),
    ("max_restarts", "invalid_intensity", ["infinity", -1, 1.5, True, None, 10**30]),
    ("max_seconds", "invalid_period", [0, -1, "infinity", True, math.nan, math.inf, None]),
    ("auto_shutdown", "invalid_auto_shutdown", ["sometimes", 1, None, []]),
]


@pytest.mark.parametrize("parse", [parse_flags, parse_dynamic_flags])
@pytest.mark.parametrize(("field", "tag", "values"), BAD_FLAGS)
def test_a11_g01_each_flag_is_refused_by_its_tag(parse: Any, field: str, tag: str, values: list[Any]) -> None:
    for value in values:
        assert refusal(parse, {field: value}) in [(tag, as_json(value)), (tag, reprlib.repr(value))]


@pytest.mark.parametrize("parse", [parse_flags, parse_dynamic_flags])
def test_a11_flags_of_a_wrong_kind(parse: Any) -> None:
    assert refusal(parse, ("one_for_one", 1)) == ("invalid_type", ["one_for_one", 1])
    assert refusal(parse, None) == ("invalid_type", None)


def test_flags_are_checked_in_order() -> None:
    bad = {field: values[0] for field, _, values in BAD_FLAGS}
    for number, (field, tag, _) in enumerate(BAD_FLAGS):
        given = {name: bad[name] for name, _, _ in BAD_FLAGS[number:]}
        assert refusal(parse_flags, dict(reversed(given.items()))) == (tag, bad[field])


@pytest.mark.parametrize("auto_shutdown", ["any_significant", "all_significant"])
def test_f08_simple_one_for_one_has_no_auto_shutdown(auto_shutdown: str) -> None:
    given = {"strategy": "simple_one_for_one", "auto_shutdown": auto_shutdown}
    pair = [["strategy", "simple_one_for_one"], ["auto_shutdown", auto_shutdown]]
    assert refusal(parse_flags, given) == ("bad_combination", pair)
    assert parse_flags({"strategy": "simple_one_for_one"}).strategy is Strategy.SIMPLE_ONE_FOR_ONE


def test_g01_dynamic_flags() -> None:
    given = {"strategy": "one_for_one", "max_children": 5, "extra_arguments": [1], "auto_shutdown": "never"}
    assert parse_dynamic_flags({**given, "max_restarts": 0, "period": 0.5}) == DynamicFlags(
        max_restarts=0, max_seconds=0.5, max_children=5, extra_arguments=(1,)
    )
    assert parse_dynamic_flags({"max_children": "infinity"}).max_children is None
    assert refusal(parse_dynamic_flags, {"strategy": "one_for_all"}) == ("invalid_strategy", "one_for_all")
    for value in (-1, True, 1.0, "x"):
        assert refusal(parse_dynamic_flags, {"max_children": value}) == ("invalid_max_children", value)
    assert refusal(parse_dynamic_flags, {"extra_arguments": "ab"}) == ("invalid_extra_arguments", "ab")
    any_one = {"auto_shutdown": "any_significant"}
    assert refusal(parse_dynamic_flags, any_one) == ("invalid_auto_shutdown", "any_significant")
