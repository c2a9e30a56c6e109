"""The loop in the caller's own process: ``run``, ``query``, ``stream`` and their async twins."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import athena
from athena import Message, aquery, arun, astream, query, run, stream
from athena.config import default_paths
from athena.errors import InvalidOption, ProviderError, UnsupportedOption
from athena.providers.base import Delta, ModelResponse
from athena.testing import FakeOpenAI
from tests.engine import calls
from tests.helpers import TIME_UNIT, wait_until, wait_until_async
from tests.process_fixtures import is_gone
from tests.process_fixtures import table as table


def test_run_is_one_turn_with_tools(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("content of f")
    result = run("go", provider="mock", mock=[calls(("read", {"path": "f"})), "done"], cwd=tmp_path)
    assert (result.text, result.finish_reason, result.tool_calls_made, result.iterations) == ("done", "stop", 1, 1)
    assert "content of f" in result.messages[2].tool_results[0].content


def test_run_starts_no_process_and_writes_no_log(home: Path) -> None:
    assert run("hi", provider="mock").text == "hi"
    assert not default_paths().state.exists()


def test_run_takes_history_as_messages_or_maps() -> None:
    for history in ([Message("user", "a"), Message("assistant", "b")], [{"role": "user", "content": "a"}]):
        result = run("now", provider="mock", messages=history)
        assert [m.text for m in result.messages] == [*(["a", "b"] if len(history) == 2 else ["a"]), "now", "now"]


def test_a_result_can_be_the_history_of_the_next_run() -> None:
    first = run("one", provider="mock", mock=["1", "2"])
    second = run("two", provider="mock", mock=["1", "2"], messages=list(first.messages))
    assert [m.text for m in second.messages] == ["one", "1", "two", "2"]


def test_failures_of_the_model_and_caps_are_results() -> None:
    failed = run("x", provider="mock", mock=[{"error": {"kind": "unauthorized"}}])
    assert (failed.finish_reason, failed.ok) == ("error_provider_auth", False)
    capped = run("x", provider="mock", mock=[calls("glob")] * 9, max_iterations=2)
    assert capped.finish_reason == "error_max_turns"


def test_a_run_is_as_unattended_as_a_session(tmp_path: Path) -> None:
    write = [calls(("write", {"path": "f", "content": "x"})), "done"]
    result = run("x", provider="mock", mock=write, cwd=tmp_path)
    assert result.messages[2].tool_results[0].is_error
    assert not (tmp_path / "f").exists()
    run("x", provider="mock", mock=write, cwd=tmp_path, phase="accept_edits")
    assert (tmp_path / "f").read_text() == "x"


def test_query_is_one_model_call_without_tools() -> None:
    with FakeOpenAI(["42"]).in_thread() as fake:
        answer = query(
            "what?", provider="openai_compatible", base_url=fake.api_url, model="fake", system_prompt="short",
            temperature=0.1, max_tokens=5,
        )  # fmt: skip
        assert (answer.text, answer.tool_calls, answer.stop_reason) == ("42", (), "stop")
        body = fake.requests[-1].json
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert "tools" not in body
    assert (body["temperature"], body.get("max_tokens") or body.get("max_completion_tokens")) == (0.1, 5)


def test_query_has_no_memory() -> None:
    assert [query(text, provider="mock").text for text in ("a", "b")] == ["a", "b"]


def test_query_raises_what_run_reports() -> None:
    with pytest.raises(ProviderError) as caught:
        query("x", provider="mock", mock=[{"error": {"kind": "bad_request", "message": "no"}}])
    assert caught.value.kind == "bad_request"


def test_stream_gives_the_pieces_and_then_the_whole() -> None:
    *pieces, last = list(stream("x", provider="mock", mock=[{"chunks": ["a", "b", "c"], "thinking": "hm"}]))
    assert pieces == [Delta("thinking", "hm"), Delta("text", "a"), Delta("text", "b"), Delta("text", "c")]
    assert isinstance(last, ModelResponse)
    assert (last.text, last.thinking) == ("abc", "hm")


def test_a_stream_that_is_left_early_hangs_up() -> None:
    with FakeOpenAI([{"chunks": 50, "text": "x" * 500, "chunk_delay_s": 0.02}]).in_thread() as fake:
        for item in stream("x", provider="openai_compatible", base_url=fake.api_url, model="fake"):
            assert isinstance(item, Delta)
            break
        fake_done = threading.Event()
        while not fake.hangups and not fake_done.wait(0.005):
            pass
    assert fake.hangups == 1


async def test_async_twins_do_the_same() -> None:
    assert (await arun("hi", provider="mock")).text == "hi"
    assert (await aquery("hi", provider="mock")).text == "hi"
    items = [item async for item in astream("hi", provider="mock")]
    assert [type(i).__name__ for i in items] == ["Delta", "ModelResponse"]


async def test_runs_beside_each_other_do_not_mix() -> None:
    results = await asyncio.gather(*[arun(f"q{n}", provider="mock") for n in range(20)])
    assert [r.text for r in results] == [f"q{n}" for n in range(20)]
    assert len({r.session_id for r in results}) == 20


@pytest.mark.usefixtures("table")
async def test_a_cancelled_run_ends_its_tools(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    command = f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; sleep 1000"
    script = [calls(("bash", {"command": command})), "done"]
    task = asyncio.create_task(arun("x", provider="mock", mock=script, cwd=tmp_path, phase="trusted"))
    await wait_until_async(pid_file.exists)
    task.cancel()
    async with asyncio.timeout(5 * TIME_UNIT):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert is_gone(int(pid_file.read_text()))


async def test_a_cancelled_query_hangs_up(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    async with FakeOpenAI([{"touch": str(begun), "wait_for": str(tmp_path / "never")}]) as fake:
        options: dict[str, Any] = {"provider": "openai_compatible", "base_url": fake.api_url, "model": "fake"}
        task = asyncio.create_task(aquery("x", **options))
        await wait_until_async(begun.exists)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5 * TIME_UNIT):
            await fake.wait_until(lambda: fake.hangups == 1)


@pytest.mark.parametrize(
    "function", [run, query, lambda *a, **o: list(stream(*a, **o))], ids=["run", "query", "stream"]
)
class TestErrors:
    """What all three refuse, in the same words."""

    def test_a_prompt_that_is_no_text(self, function: Callable[..., Any]) -> None:
        for prompt in (None, 5, ["hi"]):
            with pytest.raises(InvalidOption, match="prompt") as caught:
                function(prompt, provider="mock")
            assert caught.value.option == "prompt"

    @pytest.mark.parametrize(
        ("options", "option"),
        [({}, "provider"), ({"provider": "nope"}, "provider"), ({"provider": "mock", "temperature": 9}, "temperature"),
         ({"provider": "mock", "hooks": {}}, "hooks"), ({"provider": "mock", "messages": 5}, "messages"),
         ({"provider": "mock", "name": "x"}, "name"), ({"provider": "mock", "mock": [lambda: 1]}, "mock")],
    )  # fmt: skip
    def test_a_wrong_option(self, function: Callable[..., Any], options: dict[str, Any], option: str) -> None:
        with pytest.raises(InvalidOption) as caught:
            function("x", **options)
        assert caught.value.option == option
        assert isinstance(caught.value, UnsupportedOption) == (option == "hooks")

    async def test_a_call_inside_an_event_loop_names_the_twin(self, function: Callable[..., Any]) -> None:
        with pytest.raises(InvalidOption, match="arun, aquery, astream"):
            function("x", provider="mock")


def test_the_caller_keeps_the_options_it_gave() -> None:
    options = {"provider": "mock", "messages": [Message("user", "a")]}
    before = dict(options)
    run("x", **options)
    assert options == before


def test_all_six_are_public() -> None:
    assert {"run", "query", "stream", "arun", "aquery", "astream"} <= set(athena.__all__)


@pytest.mark.parametrize("option", [{"tools": ["read"]}, {"max_iterations": 3}, {"phase": "trusted"}, {"cwd": "/"}])
def test_an_option_of_the_loop_is_refused_where_there_is_no_loop(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="means nothing for one model call") as caught:
        query("x", provider="mock", **option)
    assert caught.value.data["option"] in option


ESCAPING_RUN = """
import asyncio, pathlib, sys
from athena import arun

async def main():
    bash = {"command": f"setsid sh -c 'echo $$ > {sys.argv[1]}; exec sleep 1000' & sleep 1000"}
    script = [{"tool_calls": [{"name": "bash", "arguments": bash}]}]
    run = asyncio.ensure_future(arun("x", provider="mock", mock=script, phase="trusted"))
    while not (pathlib.Path(sys.argv[1]).exists() and pathlib.Path(sys.argv[1]).read_text().endswith("\\n")):
        await asyncio.sleep(0.005)
    run.cancel()
    await asyncio.wait([run])

asyncio.run(main())
"""


def test_a_cancelled_run_leaves_nothing_that_left_its_group(tmp_path: Path) -> None:
    # In a process of its own, which is no subreaper: what has left the group becomes init's when its shell dies.
    pid_file = tmp_path / "pid"
    done = subprocess.run([sys.executable, "-c", ESCAPING_RUN, str(pid_file)], timeout=30 * TIME_UNIT, check=False)
    assert done.returncode == 0
    wait_until(lambda: is_gone(int(pid_file.read_text())))
