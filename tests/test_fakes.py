"""The fakes are strict: what the real servers refuse, they refuse, in the real servers' words and shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from athena.testing import FakeOllama, FakeOpenAI

TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}
OPENAI: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "read", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "r"},
    ],
    "tools": [TOOL],
    "tool_choice": "auto",
    "temperature": 1,
    "max_tokens": 5,
    "stop": ["x"],
}
OLLAMA: dict[str, Any] = {
    "model": "m",
    "stream": False,
    "messages": [
        {"role": "user", "content": "hi", "images": ["aGk="]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "read", "arguments": {"path": "a"}}}],
        },
        {"role": "tool", "tool_name": "read", "content": "r"},
    ],
    "tools": [TOOL],
    "options": {"temperature": 0.1, "num_predict": 5, "stop": ["x"]},
    "format": "json",
    "think": "low",
    "keep_alive": "5m",
}

Change = Callable[[dict[str, Any]], Any]


def changed(body: dict[str, Any], change: Change) -> dict[str, Any]:
    out = copy.deepcopy(body)
    change(out)
    return out


OPENAI_FAULTS: list[Change] = [
    lambda b: b.pop("model"),
    lambda b: b.update(messages=[]),
    lambda b: b.update(surprise=1),
    lambda b: b["messages"].pop(3),
    lambda b: b["messages"].pop(2),
    lambda b: b["messages"].append({"role": "tool", "tool_call_id": "c1", "content": "twice"}),
    lambda b: b["messages"].insert(3, {"role": "user", "content": "between"}),
    lambda b: b["messages"][3].pop("tool_call_id"),
    lambda b: b["messages"][3].update(name="read"),
    lambda b: b["messages"][2]["tool_calls"][0]["function"].update(arguments={}),
    lambda b: b["messages"][2]["tool_calls"][0]["function"].update(arguments="{"),
    lambda b: b["messages"][2]["tool_calls"][0]["function"].update(name="not legal"),
    lambda b: b["messages"][2]["tool_calls"].append(b["messages"][2]["tool_calls"][0]),
    lambda b: b["messages"][2].update(tool_calls=[]),
    lambda b: b["messages"][1].update(content=None),
    lambda b: b["messages"][1].update(content=[{"type": "video"}]),
    lambda b: b["messages"][0].update(role="narrator"),
    lambda b: b["messages"][0].update(reasoning="x"),
    lambda b: b.update(tools=[]),
    lambda b: b.pop("tools"),
    lambda b: b.update(tools=[TOOL, TOOL]),
    lambda b: b["tools"][0]["function"].update(parameters={"type": "string"}),
    lambda b: b.update(tool_choice={"type": "function", "function": {"name": "other"}}),
    lambda b: b.update(temperature=3),
    lambda b: b.update(max_tokens=0),
    lambda b: b.update(stop=[]),
    lambda b: b.update(stream_options={"include_usage": True}),
    lambda b: b.update(response_format={"type": "json_schema"}),
]

OLLAMA_FAULTS: list[Change] = [
    lambda b: b.pop("model"),
    lambda b: b.pop("messages"),
    lambda b: b.update(temperature=1),
    lambda b: b["messages"].pop(2),
    lambda b: b["messages"].pop(1),
    lambda b: b["messages"][2].pop("tool_name"),
    lambda b: b["messages"][2].update(tool_name="other"),
    lambda b: b["messages"][1]["tool_calls"][0]["function"].update(arguments="{}"),
    lambda b: b["messages"][1].update(content=None),
    lambda b: b["messages"][0].update(content=[{"type": "text", "text": "x"}]),
    lambda b: b["messages"][0].update(images=["not base64!"]),
    lambda b: b["messages"][0].update(role="narrator"),
    lambda b: b["messages"][0].update(tool_calls=[]),
    lambda b: b["options"].update(num_predict=1.5),
    lambda b: b["options"].update(stop="x"),
    lambda b: b["options"].update(surprise=1),
    lambda b: b.update(format="xml"),
    lambda b: b.update(think="much"),
    lambda b: b.update(stream="yes"),
    lambda b: b["tools"][0].update(type="plugin"),
]


@pytest.fixture
def http() -> Any:
    with httpx.Client(trust_env=False, timeout=10) as client:
        yield client


def test_openai_answers_whole_too(http: httpx.Client) -> None:
    with FakeOpenAI(["a", {"text": "t", "tool_calls": [{"name": "read"}]}]).in_thread() as server:
        answer = http.post(server.api_url + "/chat/completions", json=OPENAI).json()
        assert answer["choices"][0]["finish_reason"] == "tool_calls"
        assert answer["usage"]["total_tokens"] > 0
        assert http.get(server.api_url + "/models").json()["data"][0]["id"] == "fake"
        assert http.get(server.api_url + "/other").status_code == 404
        assert server.requests[0].path == "/v1/chat/completions"
        assert server.requests[0].json == OPENAI


def test_openai_refuses_every_broken_request(http: httpx.Client) -> None:
    with FakeOpenAI().in_thread() as server:
        url = server.api_url + "/chat/completions"
        assert http.post(url, json=OPENAI).status_code == 200
        for number, fault in enumerate(OPENAI_FAULTS):
            answer = http.post(url, json=changed(OPENAI, fault))
            assert answer.status_code == 400, (number, answer.text)
            assert answer.json()["error"]["type"] == "invalid_request_error"
        assert http.post(url, content=b"{").status_code == 400


def test_openai_checks_the_key_and_echoes_its_ends(http: httpx.Client) -> None:
    with FakeOpenAI(api_key="right").in_thread() as server:
        url = server.api_url + "/chat/completions"
        missing = http.post(url, json=OPENAI)
        wrong = http.post(url, json=OPENAI, headers={"authorization": "Bearer sk-0123456789"})
        assert (missing.status_code, wrong.status_code) == (401, 401)
        assert "sk-01234************6789" in wrong.json()["error"]["message"]
        assert http.post(url, json=OPENAI, headers={"authorization": "Bearer right"}).status_code == 200


def test_ollama_refuses_every_broken_request(http: httpx.Client) -> None:
    with FakeOllama().in_thread() as server:
        url = server.base_url + "/api/chat"
        good = http.post(url, json=OLLAMA)
        assert good.status_code == 200, good.text
        for number, fault in enumerate(OLLAMA_FAULTS):
            answer = http.post(url, json=changed(OLLAMA, fault))
            assert answer.status_code == 400, (number, answer.text)
            assert isinstance(answer.json()["error"], str)


def test_ollama_knows_its_models(http: httpx.Client) -> None:
    with FakeOllama(models=("llama3.1:latest",), tools=False).in_thread() as server:
        tags = http.get(server.base_url + "/api/tags").json()
        assert [m["name"] for m in tags["models"]] == ["llama3.1:latest"]
        assert "version" in http.get(server.base_url + "/api/version").json()
        shown = http.post(server.base_url + "/api/show", json={"model": "llama3.1"}).json()
        assert "tools" not in shown["capabilities"]
        assert http.post(server.base_url + "/api/show", json={"model": "other"}).status_code == 404
        url = server.base_url + "/api/chat"
        assert http.post(url, json={**OLLAMA, "model": "other"}).status_code == 404
        refused = http.post(url, json={**OLLAMA, "model": "llama3.1"})
        assert "does not support tools" in refused.json()["error"]
        loaded = http.post(url, json={"model": "llama3.1", "messages": []}).json()
        assert loaded["done_reason"] == "load"


def test_a_fault_can_pass(http: httpx.Client) -> None:
    with FakeOllama([{"status": 503, "retry_after": "1", "times": 2, "text": "ok"}]).in_thread() as server:
        body = {"model": "m", "stream": False, "messages": [{"role": "user", "content": "x"}]}
        answers = [http.post(server.base_url + "/api/chat", json=body) for _ in range(3)]
        assert [a.status_code for a in answers] == [503, 503, 200]
        assert answers[0].headers["retry-after"] == "1"
        assert answers[2].json()["message"]["content"] == "ok"
