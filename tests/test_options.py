"""Every wrong option is one error, here and now, that names the option, what it got and what is legal."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from athena import session_calls, tools
from athena.errors import InvalidOption, InvalidSessionId, UnsupportedOption
from athena.loop.options import (
    GRANTS,
    PER_TURN,
    UNSUPPORTED,
    Options,
    parse_options,
    parse_turn_options,
)
from athena.session_setup import merge_options

REFERENCE = [
    "provider", "model", "base_url", "api_key", "system_prompt", "messages", "images", "temperature", "top_p",
    "max_tokens", "stop", "timeout_ms", "tool_choice", "response_format", "provider_opts", "metadata",
    "resume", "permission_mode", "capabilities", "extra_headers", "queue", "queue_timeout", "mock",
    "mock_events", "tools", "mcp", "cwd", "phase", "assigns", "allowed_tools", "disallowed_tools",
    "readonly_tools", "can_use_tool", "hooks", "confine", "allowed_roots", "allow_local_hosts", "mode",
    "max_iterations", "max_consecutive_mistakes", "max_unproductive_iterations", "max_budget_usd",
    "tool_timeout_ms", "max_concurrency", "memory", "skills", "preload_skills", "compactor", "compact_at",
    "pinned_prefix_count", "live_suffix_count", "reactive_compact", "auto_pin", "compaction_pipeline",
    "max_reflections", "per_tool_result_max_chars", "snip_age_iterations", "respect_denylist", "session_id",
    "parent_session_id", "conversation_id", "agent_id", "on_event", "coordinator", "conclusions",
    "conclusion_summarizer", "subagent_prompt_suffix", "name", "store",
]  # fmt: skip
"""Every option that ExAthena has in any release (reference 4 and 2.2)."""

LATER = ["todo_writer", "ask_user", "python"]
"""What the design adds to them for later releases."""


def check(options: dict[str, Any]) -> InvalidOption:
    """The error of a start with these options."""
    with pytest.raises(InvalidOption) as caught:
        session_calls.start_options({"provider": "mock", **options}, link=True)
    return caught.value


@pytest.mark.parametrize("name", REFERENCE)
def test_every_option_of_the_reference_is_supported_or_refused_by_its_name(name: str) -> None:
    known = set(Options.model_fields) | session_calls.SESSION_FIELDS
    assert (name in known) != (name in UNSUPPORTED)


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_an_option_that_is_not_supported_yet_says_so(name: str) -> None:
    error = check({name: 1})
    assert isinstance(error, UnsupportedOption)
    assert (error.option, error.expected) == (name, "absent")
    assert re.search(f"'{name}'.*not supported.*leave it out", error.message)


def test_nothing_is_both_supported_and_not() -> None:
    assert not set(UNSUPPORTED) & set(Options.model_fields)
    assert set(LATER) <= set(UNSUPPORTED)
    assert set(Options.model_fields) >= PER_TURN
    assert set(Options.model_fields) >= GRANTS


WRONG: list[tuple[str, Any, str]] = [
    ("provider", 5, "string"),
    ("model", 5, "string"),
    ("base_url", ["x"], "string"),
    ("extra_headers", {"A": 1}, "string"),
    ("provider_opts", [], "dictionary"),
    ("mock", "hello", "list"),
    ("mock_loop", "yes", "boolean"),
    ("system_prompt", 7, "string"),
    ("messages", 5, "list"),
    ("messages", None, "list"),
    ("messages", ["hi"], "dictionary"),
    ("messages", [{"role": "robot"}], "system | user | assistant | tool"),
    ("messages", [{"role": "user", "content": 5}], "a text or a list of maps"),
    ("messages", [{"role": "assistant", "tool_calls": "c"}], "a list of maps"),
    ("temperature", -0.1, "greater than or equal to 0"),
    ("temperature", 2.1, "less than or equal to 2"),
    ("temperature", "hot", "number"),
    ("temperature", math.nan, "finite"),
    ("top_p", 0, "greater than 0"),
    ("top_p", 1.5, "less than or equal to 1"),
    ("max_tokens", 0, "greater than or equal to 1"),
    ("max_tokens", "10", "integer"),
    ("max_tokens", True, "integer"),
    ("stop", "END", "list"),
    ("timeout_ms", 0, "greater than or equal to 1"),
    ("timeout_ms", 1.5, "integer"),
    ("tool_choice", 3, "string"),
    ("tools", "none", "'all'"),
    ("tools", {"read": 1}, "'all'"),
    ("cwd", 5, "string"),
    ("phase", "yolo", "'plan', 'default', 'accept_edits', 'trusted' or 'bypass_permissions'"),
    ("phase", "auto", "'plan', 'default', 'accept_edits', 'trusted' or 'bypass_permissions'"),
    ("allowed_tools", "read", "list"),
    ("disallowed_tools", None, "list"),
    ("readonly_tools", [1], "string"),
    ("env", {"A": 1}, "string"),
    ("env_allow", "PATH", "list"),
    ("python_path", "src", "list"),
    ("mode", "plan_and_solve", "'react'"),
    ("max_iterations", 0, "1 or more, or 'infinity'"),
    ("max_iterations", "many", "'infinity'"),
    ("max_iterations", True, "'infinity'"),
    ("max_consecutive_mistakes", 0, "greater than or equal to 1"),
    ("max_budget_usd", 0, "greater than 0"),
    ("max_budget_usd", math.inf, "finite"),
    ("tool_timeout_ms", -1, "greater than or equal to 1"),
    ("max_concurrency", 65, "less than or equal to 64"),
    ("durability", "fsync", "'os', 'turn' or 'event'"),
    ("store", 5, "'jsonl', 'in_memory' or 'package.module:Class'"),
    ("store_options", [1], "a dict of the store's keywords"),
    ("store_options", {"f": object()}, "JSON"),
    ("root", 5, "a directory's path"),
]


@pytest.mark.parametrize(("name", "value", "legal"), WRONG, ids=[f"{n}={v!r}"[:40] for n, v, _ in WRONG])
def test_a_wrong_value_is_named_with_what_is_legal(name: str, value: Any, legal: str) -> None:
    error = check({name: value})
    assert error.option == name
    assert legal in f"{error.message} {error.expected}"
    assert "\n" not in error.message
    if name != "messages":
        assert name in error.message


def test_a_provider_is_needed_for_a_run_and_named_when_it_is_missing() -> None:
    with pytest.raises(InvalidOption, match="'provider' is required"):
        parse_options({})


@pytest.mark.parametrize(
    ("name", "near"),
    [("modell", "model"), ("max_iteration", "max_iterations"), ("Provider", "provider"), ("zzz", None)],
)
def test_an_unknown_option_is_refused_with_the_name_that_was_meant(name: str, near: str | None) -> None:
    error = check({name: 1})
    assert error.option == name
    assert f"unknown option '{name}'" in error.message
    assert (f"did you mean '{near}'" in error.message) == (near is not None)
    assert "max_iterations" in error.expected


@pytest.mark.parametrize(
    "value", ["", ".", "..", "../up", "a/b", "a\\b", "a\0b", "ä", "a b", "x" * 129, "a\n", 5, True]
)
def test_a_session_id_that_could_be_a_path_or_is_none_is_refused(value: Any) -> None:
    error = check({"session_id": value})
    assert isinstance(error, InvalidSessionId)
    assert "A-Z a-z 0-9 _ -" in error.message


# --- functions -------------------------------------------------------------------------------------------------------


def importable() -> None: ...


FUNCTIONS = [lambda: 1, importable, functools.partial(print), Path, print]


@pytest.mark.parametrize("value", FUNCTIONS, ids=["lambda", "function", "partial", "class", "builtin"])
@pytest.mark.parametrize("name", sorted(Options.model_fields))
def test_a_function_in_place_of_a_value_is_refused_with_the_way_to_name_one(name: str, value: Any) -> None:
    error = check({name: value})
    assert error.option == name
    assert "'package.module:name'" in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [("tools", ["read", lambda: 1]), ("provider_opts", {"a": [{"b": print}]}), ("mock", [{"text": len}]),
     ("store_options", {"connect": print}), ("messages", [{"role": "user", "content": str}])],
)  # fmt: skip
def test_a_function_inside_a_value_is_found(name: str, value: Any) -> None:
    error = check({name: value})
    assert error.option == name
    assert "'package.module:name'" in error.message


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, math.inf, 1j], ids=repr)
def test_what_json_cannot_hold_is_refused_before_anything_starts(value: Any) -> None:
    for given in ({"provider_opts": {"x": value}}, {"mock": [{"text": value}]}):
        error = check(given)
        assert error.option in given
        assert "finite numbers" in error.message
    with pytest.raises(InvalidOption):
        parse_turn_options({"provider_opts": {"x": value}})


def test_a_value_without_end_is_no_endless_check() -> None:
    endless: list[Any] = []
    endless.append(endless)
    session_calls.start_options({"provider": "mock", "provider_opts": {"x": endless}}, link=True)


def test_text_that_is_no_unicode_is_made_visible_and_no_error() -> None:
    started = session_calls.start_options({"provider": "mock", "system_prompt": "a\udcffb"}, link=True)
    assert "a\ufffdb" in started.body.decode()


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [{"api_key": ["sk-canary-1"]}, {"api_keys": "sk-canary-1"}, {"apikey": "sk-canary-1"}, {"token": "sk-canary-1"},
     {"env": {"A": ["sk-canary-1"]}}, {"extra_headers": ["sk-canary-1"]}, {"provider_opts": ["sk-canary-1"]},
     {"store_options": "sk-canary-1"}],
    ids=lambda given: next(iter(given)),
)  # fmt: skip
def test_an_error_about_a_secret_option_does_not_show_it(given: dict[str, Any]) -> None:
    error = check(given)
    assert "sk-canary-1" not in f"{error} {error.data}"


def test_a_secret_is_not_in_the_text_of_options() -> None:
    options = parse_options({"provider": "mock", "api_key": "sk-canary-1", "extra_headers": {"X": "sk-canary-2"}})
    started = session_calls.start_options({"provider": "mock", "api_key": "sk-canary-1"}, link=True)
    assert "sk-canary" not in repr(options) + repr(started) + str(started.spec)


def test_grants_and_history_are_not_among_what_is_recorded() -> None:
    grants: dict[str, Any] = {
        "phase": "trusted", "allowed_tools": ["read"], "readonly_tools": ["x"], "api_key": "k", "env": {"A": "b"},
        "env_allow": ["A"], "extra_headers": {"X": "y"},
    }  # fmt: skip
    assert set(grants) == GRANTS
    history = [{"role": "user", "content": "x"}]
    options = parse_options({"provider": "mock", "messages": history, "disallowed_tools": ["bash"], **grants})
    kept = {"provider": "mock", "disallowed_tools": ["bash"]}
    assert options.recorded() == {**kept, "allowed_tools": []}, "that there was a list, and none of what was in it"
    assert parse_options({**kept, "phase": "plan"}).recorded() == {**kept, "phase": "plan"}


def test_what_a_supervisor_writes_down_allows_nothing_and_denies_no_less() -> None:
    given = {"provider": "mock", "allowed_tools": ["grep"], "phase": "trusted", "api_key": "k"}
    public = session_calls.start_options(given, link=False).body.split(b"\n")[0]
    assert orjson.loads(public)["options"] == {"provider": "mock", "allowed_tools": []}


# --- a life after the first ------------------------------------------------------------------------------------------


def test_a_resume_keeps_what_was_recorded_and_restrictions_only_add_up() -> None:
    recorded = {"provider": "mock", "model": "m1", "temperature": 0.5, "disallowed_tools": ["bash"]}
    options = merge_options(recorded, {"options": {"model": "m2", "disallowed_tools": ["write", "bash"]}})
    assert (options.model, options.temperature, options.disallowed_tools) == ("m2", 0.5, ["bash", "write"])
    assert merge_options(recorded, {"options": {}}).disallowed_tools == ["bash"]


@pytest.mark.parametrize("name", sorted(set(Options.model_fields) - PER_TURN))
def test_an_option_of_the_session_is_refused_for_one_message(name: str) -> None:
    with pytest.raises(InvalidOption, match="cannot change for one message") as caught:
        parse_turn_options({name: "x"})
    assert caught.value.option == name


def test_tools_of_the_reference_that_are_not_built_are_refused_by_name() -> None:
    for name in tools.NOT_BUILT:
        with pytest.raises(UnsupportedOption, match=f"'{name}'"):
            tools.resolve([name])
