"""The scripted provider: the conversation chooses the step, files steer it, and a bad script is named."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from athena.errors import InvalidOption, ProviderError
from athena.messages import Message, Usage
from athena.providers import create
from athena.providers.base import Delta, ModelRequest, ModelResponse, Provider, ProviderSettings
from athena.providers.mock_script import ENDED

UNIT = float(os.environ.get("ATHENA_TEST_TIME_UNIT", "1.0"))


def mock(script: Any = None, **options: Any) -> Provider:
    return create("mock", ProviderSettings(options={"mock": script, **options}))


def after(answers: int, text: str = "hi") -> ModelRequest:
    """A request whose history holds this many answers."""
    turn = (Message("user", text), Message("assistant", "ok"))
    return ModelRequest(model="m", messages=(*(turn * answers), Message("user", text)))


async def answer(provider: Provider, request: ModelRequest) -> ModelResponse:
    *_, last = [p async for p in provider.stream(request)]
    assert isinstance(last, ModelResponse)
    return last


async def test_the_history_chooses_the_step_however_often_it_is_asked() -> None:
    provider = mock(["one", "two"])
    texts = [(await answer(provider, after(n))).text for n in (1, 0, 1, 1, 2)]
    assert texts == ["two", "one", "two", "two", ENDED]


async def test_a_script_can_loop() -> None:
    provider = mock(["one", "two"], mock_loop=True)
    assert [(await answer(provider, after(n))).text for n in range(4)] == ["one", "two", "one", "two"]


async def test_without_a_script_it_echoes_forever() -> None:
    provider = mock()
    assert (await answer(provider, after(7, "ping"))).text == "ping"


async def test_made_up_call_ids_are_the_same_after_a_restart() -> None:
    script = [{"tool_calls": [{"name": "read", "arguments": {"path": "a"}}, {"name": "read", "id": "mine"}]}]
    first = await answer(mock(script), after(0))
    second = await answer(mock(script), after(0))
    assert first.tool_calls == second.tool_calls
    assert [c.id for c in first.tool_calls] == ["call_0_0", "mine"]
    assert first.stop_reason == "tool_calls"


async def test_broken_arguments_arrive_as_a_call_with_an_error() -> None:
    response = await answer(mock([{"tool_calls": [{"name": "read", "arguments": '{"path": '}]}]), after(0))
    assert response.tool_calls[0].error is not None


async def test_deltas_can_be_given_one_by_one() -> None:
    pieces = [p async for p in mock([{"chunks": ["a", "b", "c"]}]).stream(after(0))]
    assert pieces[:3] == [Delta("text", "a"), Delta("text", "b"), Delta("text", "c")]
    assert isinstance(pieces[3], ModelResponse)
    assert pieces[3].text == "abc"


async def test_usage_is_scripted_or_estimated() -> None:
    scripted = await answer(mock([{"text": "x", "usage": {"input_tokens": 5, "cost_usd": 0.25}}]), after(0))
    assert scripted.usage == Usage(5, 0, 5, 0, 0.25)
    assert (await answer(mock(["x"]), after(0))).usage.total_tokens > 0


async def test_an_error_has_all_its_fields() -> None:
    step = {"error": {"kind": "rate_limited", "status": 429, "message": "slow down", "retry_after_s": 3}}
    with pytest.raises(ProviderError) as caught:
        await answer(mock([step]), after(0))
    assert caught.value.data == {"kind": "rate_limited", "status": 429, "retry_after_s": 3.0, "provider": "mock"}


async def test_an_error_ends_when_its_file_is_there(tmp_path: Path) -> None:
    healed = tmp_path / "healed"
    provider = mock([{"text": "fine", "error": {"kind": "transport"}, "error_until": str(healed)}])
    with pytest.raises(ProviderError):
        await answer(provider, after(0))
    healed.touch()
    assert (await answer(provider, after(0))).text == "fine"


async def test_a_call_says_that_it_began_and_waits_to_be_let_go(tmp_path: Path) -> None:
    began, go, end = tmp_path / "began", tmp_path / "go", tmp_path / "end"
    step = {"text": "x", "touch": str(began), "wait_for": str(go), "wait_before_end": str(end)}
    pieces = mock([step]).stream(after(0))
    first = asyncio.ensure_future(anext(pieces))
    await asyncio.sleep(0)
    assert began.read_text() == f"{os.getpid()}\n"
    assert not first.done()
    go.touch()
    async with asyncio.timeout(5 * UNIT):
        assert await first == Delta("text", "x")
        last = asyncio.ensure_future(anext(pieces))
        await asyncio.sleep(0)
        assert not last.done()
        end.touch()
        assert isinstance(await last, ModelResponse)


async def test_a_waiting_call_can_be_cancelled(tmp_path: Path) -> None:
    task = asyncio.ensure_future(answer(mock([{"wait_for": str(tmp_path / "never")}]), after(0)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("text", "expected a list"),
        ({"text": "x"}, "expected a list"),
        ([{"txt": "x"}], "step 0, txt"),
        (["a", 7], "step 1"),
        ([{"error": {"kind": "bad"}}], "kind 'bad'"),
        ([{"error": {"kind": "timeout", "times": 2}}], "error_until"),
        ([{"error_until": "/x"}], "error_until needs error"),
        ([{"chunks": 0}], "chunks"),
        ([{"delay_s": -1}], "delay_s"),
    ],
)
def test_a_bad_script_is_refused_with_its_place(script: Any, said: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        mock(script)
    assert said in caught.value.message
    assert caught.value.option == "mock"


def test_mock_loop_is_a_bool() -> None:
    with pytest.raises(InvalidOption):
        mock([], mock_loop="yes")
