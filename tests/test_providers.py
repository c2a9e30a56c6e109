"""The contract of providers: over all that speak to a server, and over the mock where no server is needed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, cast

import pytest

from athena.errors import InvalidOption, ProviderError
from athena.messages import Message, ToolCall, ToolResult, Usage
from athena.providers import create, http_errors, names, ollama, openai_wire
from athena.providers.base import (
    Delta,
    ModelRequest,
    ModelResponse,
    Provider,
    ProviderSettings,
    Timeouts,
    ToolSpec,
)
from athena.providers.calls import RawCall, read_arguments, read_calls
from athena.providers.framing import LineFramer, SseFramer
from athena.providers.http import checked_base_url, decode, encode, proxy_for, tls_context
from athena.providers.retry import stream_with_retries
from athena.providers.watchdog import Watchdog
from athena.testing import FakeOllama, FakeOpenAI, FakeServer

UNIT = float(os.environ.get("ATHENA_TEST_TIME_UNIT", "1.0"))
"""All time limits scale with it; a slow machine sets it above 1."""

READ = ToolSpec("read", "Read a file.", {"type": "object", "properties": {"path": {"type": "string"}}})
HISTORY = (
    Message("system", "be brief"),
    Message("user", "read a and b"),
    Message(
        "assistant",
        None,
        tool_calls=(ToolCall("c1", "read", {"path": "a"}), ToolCall("c2", "read", {"path": "b"}, "bad JSON")),
        reasoning="two files",
    ),
    Message("tool", tool_results=(ToolResult("c1", "AAA"), ToolResult("c2", "no such file", is_error=True))),
    Message("assistant", "done"),
    Message("user", [{"type": "text", "text": "look"}, {"type": "image", "data": "aGk=", "media_type": "image/png"}]),
)


def request(*messages: Message, **options: Any) -> ModelRequest:
    return ModelRequest(model="fake", messages=messages or (Message("user", "hi"),), **options)


async def collect(provider: Provider, asked: ModelRequest | None = None) -> tuple[list[Delta], ModelResponse]:
    """All deltas and the response; fails if the response is not the last piece."""
    pieces = [p async for p in provider.stream(asked or request())]
    *deltas, response = pieces
    assert isinstance(response, ModelResponse), pieces
    assert all(isinstance(d, Delta) for d in deltas)
    return cast(list[Delta], deltas), response


async def failure(provider: Provider, asked: ModelRequest | None = None) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await collect(provider, asked)
    assert "\n" not in caught.value.message
    return caught.value


Opened = Callable[..., Any]


@pytest.fixture(params=["openai_compatible", "ollama"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Opened]:
    """A function that starts the provider's strict fake with a script, and returns (provider, server)."""
    async with AsyncExitStack() as stack:

        async def start(script: Any, *, key: str | None = None, server_key: str | None = None, **limits: float) -> Any:
            fake: FakeServer
            if request.param == "ollama":
                fake = FakeOllama(script, api_key=server_key)
            else:
                fake = FakeOpenAI(script, api_key=server_key)
            server = await stack.enter_async_context(fake)
            base_url = server.api_url if isinstance(server, FakeOpenAI) else server.base_url
            timeouts = Timeouts(
                **{"connect_s": 5.0 * UNIT, "first_byte_s": 10.0 * UNIT, "gap_s": 10.0 * UNIT, **limits}
            )
            settings = ProviderSettings(base_url=base_url, api_key=key, model="fake", timeouts=timeouts)
            provider = create(request.param, settings)
            stack.push_async_callback(provider.aclose)
            return provider, server

        yield start


@asynccontextmanager
async def scripted_mock(script: Any) -> AsyncGenerator[Provider, None]:
    provider = create("mock", ProviderSettings(options={"mock": script}))
    yield provider
    await provider.aclose()


@pytest.fixture(params=["openai_compatible", "ollama", "mock"])
async def answering(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[Any], Any]]:
    """A function that returns a provider which answers from a script."""
    async with AsyncExitStack() as stack:

        async def start(script: Any) -> Provider:
            if request.param == "mock":
                return await stack.enter_async_context(scripted_mock(script))
            fake = FakeOllama(script) if request.param == "ollama" else FakeOpenAI(script)
            await stack.enter_async_context(fake)
            base_url = fake.api_url if isinstance(fake, FakeOpenAI) else fake.base_url
            provider = create(request.param, ProviderSettings(base_url=base_url, model="fake"))
            stack.push_async_callback(provider.aclose)
            return provider

        yield start


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_text_is_streamed_and_then_given_whole(answering: Callable[[Any], Any]) -> None:
    provider = await answering([{"text": "héllo wörld \u2028\U0001f600", "chunks": 3}])
    deltas, response = await collect(provider)
    assert "".join(d.text for d in deltas) == response.text == "héllo wörld \u2028\U0001f600"
    assert len(deltas) == 3
    assert response.stop_reason == "stop"
    assert response.tool_calls == ()
    assert response.model == "fake"


async def test_thinking_is_apart_from_text(answering: Callable[[Any], Any]) -> None:
    deltas, response = await collect(await answering([{"thinking": "hm", "text": "yes"}]))
    assert deltas == [Delta("thinking", "hm"), Delta("text", "yes")]
    assert (response.thinking, response.text) == ("hm", "yes")


async def test_parallel_tool_calls_keep_their_arguments_apart(answering: Callable[[Any], Any]) -> None:
    calls = [{"name": "read", "arguments": {"path": f"file-{n}", "deep": {"n": [n, None, "ü"]}}} for n in range(3)]
    _, response = await collect(await answering([{"tool_calls": calls}]), request(tools=(READ,)))
    assert [c.arguments for c in response.tool_calls] == [c["arguments"] for c in calls]
    assert len({c.id for c in response.tool_calls}) == 3
    assert response.stop_reason == "tool_calls"


async def test_an_id_used_before_in_the_conversation_is_replaced(answering: Callable[[Any], Any]) -> None:
    script = ["", {"tool_calls": [{"id": "c1", "name": "read"}, {"id": "c9", "name": "read"}]}]
    history = HISTORY[1:4]
    _, response = await collect(await answering(script), request(*history, tools=(READ,)))
    first, second = response.tool_calls
    assert first.id not in ("c1", "c2")
    assert second.id == "c9"


async def test_usage_and_length_are_reported(answering: Callable[[Any], Any]) -> None:
    usage = {"input_tokens": 11, "output_tokens": 7}
    _, response = await collect(await answering([{"text": "cut o", "stop_reason": "length", "usage": usage}]))
    assert response.stop_reason == "length"
    assert response.usage == Usage(11, 7, 18)


async def test_a_history_with_tools_is_a_valid_request(answering: Callable[[Any], Any]) -> None:
    asked = request(
        *HISTORY,
        system_prompt="you are a test",
        tools=(READ,),
        temperature=0.5,
        top_p=0.9,
        max_tokens=10,
        stop=("END",),
        tool_choice="auto",
        response_format={"type": "object"},
    )
    _, response = await collect(await answering(["a", "b", {"echo": True}]), asked)
    assert response.text == "look"


async def test_lone_surrogates_do_not_break_a_request(answering: Callable[[Any], Any]) -> None:
    _, response = await collect(await answering(None), request(Message("user", "bad \ud83d byte")))
    assert response.text.startswith("bad ")
    response.text.encode("utf-8" if "\ud83d" not in response.text else "utf-16", "surrogatepass")


async def test_closing_a_provider_twice_is_fine(answering: Callable[[Any], Any]) -> None:
    provider = await answering(None)
    await provider.aclose()
    await provider.aclose()


# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_wrong_key_is_unauthorized_and_never_shown(served: Opened) -> None:
    key = "sk-live-0123456789abcdef-zzzz"
    provider, _ = await served(["x"], key=key, server_key="another")
    error = await failure(provider)
    assert (error.kind, error.status) == ("unauthorized", 401)
    for part in (key, key[:8], key[-6:], "zzzz"):
        assert part not in error.message
    assert "127.0.0.1" in error.message
    assert "key" in error.message


async def test_the_right_key_is_sent(served: Opened) -> None:
    provider, server = await served(["x"], key="k-123456", server_key="k-123456")
    await collect(provider)
    assert server.requests[0].headers["authorization"] == "Bearer k-123456"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "bad_request"),
        (403, "unauthorized"),
        (404, "not_found"),
        (408, "timeout"),
        (413, "context_length_exceeded"),
        (429, "rate_limited"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
async def test_a_status_is_one_kind(served: Opened, status: int, kind: str) -> None:
    provider, _ = await served([{"status": status}])
    error = await failure(provider)
    assert (error.kind, error.status) == (kind, status)


async def test_overflow_is_known_by_its_words(served: Opened) -> None:
    words = "request (6031 tokens) exceeds the available context size (4096 tokens), try increasing it"
    provider, _ = await served([{"status": 400, "error": {"message": words}}])
    assert (await failure(provider)).kind == "context_length_exceeded"


async def test_retry_after_is_passed_on(served: Opened) -> None:
    provider, _ = await served([{"status": 429, "retry_after": "7"}])
    assert (await failure(provider)).retry_after_s == 7.0


async def test_a_server_error_is_retried_and_voids_the_text_before(served: Opened) -> None:
    provider, server = await served([{"text": "abcdef", "chunks": 4, "cut": True, "times": 1}])
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    pieces = [p async for p in stream_with_retries(provider, request(), sleep=sleep, random=lambda: 0.5)]
    assert {attempt for attempt, _ in pieces} == {1, 2}
    assert "".join(p.text for attempt, p in pieces if attempt == 2 and isinstance(p, Delta)) == "abcdef"
    assert isinstance(pieces[-1][1], ModelResponse)
    assert waits == [0.25]
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", ["half_close", "cut", "garbage"])
async def test_a_broken_stream_is_a_transport_error(served: Opened, fault: str) -> None:
    provider, _ = await served([{"text": "some text", "chunks": 3, fault: True}])
    assert (await failure(provider)).kind == "transport"


async def test_an_error_inside_the_stream_is_raised(served: Opened) -> None:
    provider, _ = await served([{"text": "some text", "error": {"message": "the model crashed"}}])
    error = await failure(provider)
    assert error.kind == "server_error"
    assert "the model crashed" in error.message


async def test_no_server_is_a_transport_error(served: Opened) -> None:
    provider, server = await served(["x"])
    await server.__aexit__()
    error = await failure(provider)
    assert error.kind == "transport"
    assert "cannot connect" in error.message
    await server.__aenter__()


@pytest.mark.parametrize(
    ("step", "limit"),
    [
        ({"text": "late", "slow_first_byte_s": 60}, {"first_byte_s": 0.2}),
        ({"text": "stalls", "chunks": 3, "stall_s": 60}, {"gap_s": 0.05}),
    ],
)
async def test_silence_is_a_timeout_and_closes_the_connection(
    served: Opened, step: dict[str, Any], limit: dict[str, float]
) -> None:
    provider, server = await served([step], **{k: v * UNIT for k, v in limit.items()})
    assert (await failure(provider)).kind == "timeout"
    async with asyncio.timeout(5 * UNIT):
        await server.wait_until(lambda: server.hangups == 1)


async def test_cancelling_closes_the_connection(served: Opened) -> None:
    provider, server = await served([{"text": "abc", "chunks": 3, "stall_s": 60}])
    task = asyncio.ensure_future(collect(provider))
    async with asyncio.timeout(5 * UNIT):
        await server.wait_until(lambda: server.requests)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.wait_until(lambda: server.hangups == 1)


async def test_closing_the_iterator_closes_the_connection(served: Opened) -> None:
    provider, server = await served([{"text": "abc", "chunks": 3, "stall_s": 60}])
    async with asyncio.timeout(5 * UNIT):
        async with aclosing(provider.stream(request())) as pieces:
            assert isinstance(await anext(pieces), Delta)
        await server.wait_until(lambda: server.hangups == 1)


async def test_a_finished_answer_leaves_its_connection_for_the_next(served: Opened) -> None:
    provider, server = await served(["a", "b"])
    for _ in range(3):
        await collect(provider)
    assert server.connections == 1


async def test_a_kept_connection_that_the_server_closed_is_no_failure(served: Opened) -> None:
    provider, server = await served(["a"])
    server.closes_silently = True
    for _ in range(3):
        await collect(provider)
    assert server.connections == 3
    assert len(server.requests) == 3


# --- retries ---------------------------------------------------------------------------------------------------------


class Failing:
    """A provider that fails with ``errors`` in turn and then answers."""

    name = "failing"
    default_model: str | None = None

    def __init__(self, *errors: ProviderError) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta | ModelResponse, None]:
        self.calls += 1
        yield Delta("text", "x")
        if self.errors:
            raise self.errors.pop(0)
        yield ModelResponse("x")

    async def aclose(self) -> None: ...


def error(kind: str, retry_after_s: float | None = None) -> ProviderError:
    return ProviderError("e", kind=kind, status=None, retry_after_s=retry_after_s, provider="failing")


async def retried(provider: Failing, **options: Any) -> list[float]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async for _ in stream_with_retries(provider, request(), sleep=sleep, random=lambda: 1.0, **options):
        pass
    return waits


async def test_waits_double_up_to_a_cap() -> None:
    provider = Failing(*[error(k) for k in ("transport", "timeout", "server_error", "rate_limited")])
    assert await retried(provider, max_attempts=5, base_s=1, cap_s=3) == [1, 2, 3, 3]


async def test_the_last_attempts_error_is_raised() -> None:
    provider = Failing(*[error("transport")] * 4)
    with pytest.raises(ProviderError):
        await retried(provider)
    assert provider.calls == 4


@pytest.mark.parametrize("kind", ["unauthorized", "not_found", "bad_request", "context_length_exceeded", "capability"])
async def test_what_would_fail_again_is_not_repeated(kind: str) -> None:
    provider = Failing(error(kind))
    with pytest.raises(ProviderError):
        await retried(provider)
    assert provider.calls == 1


async def test_the_server_decides_the_wait_unless_it_is_too_long() -> None:
    assert await retried(Failing(error("rate_limited", 42.0))) == [42.0]
    with pytest.raises(ProviderError):
        await retried(Failing(error("rate_limited", 61.0)))


async def test_each_further_attempt_is_announced() -> None:
    told: list[tuple[int, str, float]] = []
    await retried(Failing(error("timeout")), on_attempt=lambda n, e, s: told.append((n, e.kind, s)))
    assert told == [(2, "timeout", 0.5)]


# --- the registry and its options ------------------------------------------------------------------------------------


def test_an_unknown_provider_names_the_known_ones() -> None:
    with pytest.raises(InvalidOption) as caught:
        create("olama", ProviderSettings())
    assert caught.value.option == "provider"
    assert all(name in caught.value.expected for name in names())


def test_a_provider_of_the_users_own_is_imported() -> None:
    provider = create("athena.providers.mock:create", ProviderSettings())
    assert provider.name == "mock"
    with pytest.raises(InvalidOption):
        create("athena.providers.mock:missing", ProviderSettings())
    with pytest.raises(InvalidOption):
        create("no.such.module:create", ProviderSettings())


@pytest.mark.parametrize(
    ("name", "settings", "option"),
    [
        ("openai", ProviderSettings(model="m"), "api_key"),
        ("openai", ProviderSettings(api_key="k"), "model"),
        ("openai_compatible", ProviderSettings(model="m"), "base_url"),
        ("openai_compatible", ProviderSettings(model="m", base_url="localhost:8080"), "base_url"),
        ("openai_compatible", ProviderSettings(model="m", base_url="http://"), "base_url"),
        ("ollama", ProviderSettings(), "model"),
        ("ollama", ProviderSettings(model="m", base_url="ftp://x"), "base_url"),
        ("local", ProviderSettings(model="/no/such.gguf"), "model"),
        ("local", ProviderSettings(options={"local_endpoint": "x"}), "local_endpoint"),
    ],
)
def test_what_is_missing_is_named(name: str, settings: ProviderSettings, option: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        create(name, settings)
    assert caught.value.option == option
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", None),
        ("example.org", "http://example.org:11434"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("https://example.org", "https://example.org"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(host: str, url: str | None) -> None:
    assert ollama.host_url({"OLLAMA_HOST": host}) == url


async def test_the_environment_is_the_sessions_and_not_the_process() -> None:
    env = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    provider = create("openai_compatible", ProviderSettings(model="m", env=env))
    error = await failure(provider)
    assert "127.0.0.1:9" in error.message
    await provider.aclose()


# --- pure parts ------------------------------------------------------------------------------------------------------


def test_openai_messages() -> None:
    sent = openai_wire.messages(request(*HISTORY, system_prompt="sys"))
    assert [m["role"] for m in sent] == ["system", "system", "user", "assistant", "tool", "tool", "assistant", "user"]
    assert sent[3]["content"] is None
    assert sent[3]["tool_calls"][0]["function"] == {"name": "read", "arguments": '{"path":"a"}'}
    assert sent[5] == {"role": "tool", "tool_call_id": "c2", "content": "no such file"}
    assert sent[-1]["content"][1]["image_url"]["url"] == "data:image/png;base64,aGk="
    assert openai_wire.messages(request(Message("assistant")))[0] == {"role": "assistant", "content": ""}


def test_ollama_messages() -> None:
    body = ollama.body(request(*HISTORY, provider_opts={"num_ctx": 4096, "think": True, "options": {"seed": 1}}))
    assert body["options"] == {"num_ctx": 4096, "seed": 1}
    assert body["think"] is True
    assert body["messages"][3] == {"role": "tool", "tool_name": "read", "content": "AAA"}
    assert body["messages"][2]["tool_calls"][0] == {"function": {"name": "read", "arguments": {"path": "a"}}}
    assert body["messages"][-1]["images"] == ["aGk="]


def test_openai_options() -> None:
    body = openai_wire.body(request(tools=(READ,), tool_choice="read", max_tokens=5), max_tokens_field="max_x")
    assert body["tool_choice"] == {"type": "function", "function": {"name": "read"}}
    assert body["max_x"] == 5
    assert "temperature" not in body
    assert openai_wire.response_format("json") == {"type": "json_object"}
    assert openai_wire.response_format({"type": "json_object"}) == {"type": "json_object"}


def test_calls_that_servers_send_in_odd_shapes() -> None:
    answer = openai_wire.Answer()
    pieces: list[dict[str, Any]] = [
        {"index": 0, "id": "a", "function": {"name": "read", "arguments": '{"x":'}},
        {"index": 0, "function": {"arguments": "1,}"}},
        {"index": 0, "id": "b", "function": {"name": "read", "arguments": {"y": 2}}},
        {"function": {"name": "", "arguments": "[1]"}},
    ]
    for piece in pieces[:3]:
        answer.feed({"choices": [{"delta": {"tool_calls": [piece]}}]})
    answer.feed({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    response = answer.response()
    assert [(c.id, c.arguments, c.error) for c in response.tool_calls] == [("a", {"x": 1}, None), ("b", {"y": 2}, None)]
    assert response.stop_reason == "tool_calls"


def test_openai_usage_with_reasoning_and_cost() -> None:
    value = {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "completion_tokens_details": {"reasoning_tokens": 2},
        "cost": 0.5,
    }
    assert openai_wire.usage(value) == Usage(3, 4, 7, 2, 0.5)


@pytest.mark.parametrize(
    ("raw", "arguments", "broken"),
    [
        ("", {}, False),
        (None, {}, False),
        ('{"a": 1}', {"a": 1}, False),
        ('{"a": [1, 2,], "s": "x,}",}', {"a": [1, 2], "s": "x,}"}, False),
        ('{"a": ', {}, True),
        ("[1]", {}, True),
        (7, {}, True),
    ],
)
def test_arguments(raw: Any, arguments: dict[str, Any], broken: bool) -> None:
    value, why = read_arguments(raw)
    assert value == arguments
    assert (why is not None) == broken


def test_ids_are_made_unique_and_exact_repeats_dropped() -> None:
    calls = read_calls(
        [RawCall("a", "x", "{}"), RawCall("a", "x", "{}"), RawCall("a", "y", "{}"), RawCall(None, "", "{}")]
    )
    assert len(calls) == 3
    assert len({c.id for c in calls}) == 3
    assert calls[2].error is not None


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_framing_is_the_same_however_the_bytes_are_cut(size: int) -> None:
    sse = 'event: x\r\ndata: {"a":1}\r\n\r\n: note\n\ndata:{"b":\ndata: "ü"}\n\ndata: [DONE]\n\ndata: lost'.encode()
    lines = b'{"a":1}\n\n  \r\n{"b":"\xe2\x80\xa8"}\r\n{"c":3}'
    sse_framer, line_framer = SseFramer(), LineFramer()
    got = [d for i in range(0, len(sse), size) for d in sse_framer.feed(sse[i : i + size])] + sse_framer.end()
    assert [x.decode() for x in got] == ['{"a":1}', '{"b":\n"ü"}', "[DONE]"]
    found = [d for i in range(0, len(lines), size) for d in line_framer.feed(lines[i : i + size])] + line_framer.end()
    assert [decode(x) for x in found] == [{"a": 1}, {"b": "\u2028"}, {"c": 3}]


def test_json_that_orjson_refuses() -> None:
    assert decode(encode({"s": "\ud83d"})) == {"s": "\ufffd"}
    assert str(1 << 80) in encode({"n": 1 << 80}).decode()
    assert decode(b'{"s": "\\ud83d"}') == {"s": "\ufffd"}


def test_retry_after_forms() -> None:
    wait = http_errors.retry_after_s
    assert wait({"retry-after": "2.5"}) == 2.5
    assert wait({"retry-after-ms": "1500"}) == 1.5
    assert wait({"retry-after": "Wed, 21 Oct 2015 07:28:10 GMT"}, now=1445412480.0) == 10.0
    assert wait({"retry-after": "soon"}) is None
    assert wait({}) is None


def test_proxies_come_from_the_given_environment_only() -> None:
    env = {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "example.org, .internal"}
    assert proxy_for("https://api.openai.com/v1", env) == "http://proxy:1"
    assert proxy_for("https://a.example.org", env) is None
    assert proxy_for("https://x.internal", env) is None
    assert proxy_for("http://api.openai.com", env) is None
    assert proxy_for("http://127.0.0.1:1", {"ALL_PROXY": "http://proxy:1"}) is None


def test_base_urls() -> None:
    assert checked_base_url(" http://h:1/v1/ ") == "http://h:1/v1"
    for bad in ("http://user:pw@h", "h", "http://h?x=1", "http://h:port"):
        with pytest.raises(InvalidOption):
            checked_base_url(bad)


@pytest.mark.parametrize("key", ["k\ney", "schlüssel", " "])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        create("openai", ProviderSettings(model="m", api_key=key))
    assert caught.value.option == "api_key"
    assert key.strip() == "" or key not in caught.value.message


async def test_white_space_around_a_key_is_dropped_and_own_headers_win() -> None:
    async with FakeOpenAI(api_key="other") as server:
        settings = ProviderSettings(
            base_url=server.api_url, model="m", api_key="key\n", extra_headers={"Authorization": "Bearer other"}
        )
        provider = create("openai_compatible", settings)
        await collect(provider)
        await provider.aclose()
        assert server.requests[0].headers["authorization"] == "Bearer other"


def test_credentials_in_a_base_url_are_not_shown() -> None:
    with pytest.raises(InvalidOption) as caught:
        checked_base_url("http://user:hunter22@h")
    assert "hunter22" not in str(caught.value.data) + caught.value.message


def test_the_tls_context_is_made_once() -> None:
    assert tls_context() is tls_context()


async def test_a_watchdog_bounds_each_wait_and_not_their_sum() -> None:
    watchdog = Watchdog()
    now = asyncio.get_running_loop().time
    for _ in range(3):
        await watchdog.wait(asyncio.sleep(0), now() + 5)
    with pytest.raises(TimeoutError):
        await watchdog.wait(asyncio.Event().wait(), now() + 0.01)
    assert await watchdog.wait(asyncio.sleep(0, "alive"), now() + 5) == "alive"
    watchdog.stop()
