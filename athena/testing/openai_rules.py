"""The published rules of chat completion requests, as one check. See
https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

import re
from typing import Any

import orjson

from athena.testing.fake_script import demand, demand_fields

_REQUEST_FIELDS = frozenset(
    [
        "model",
        "messages",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "tools",
        "tool_choice",
        "response_format",
        "parallel_tool_calls",
        "n",
        "seed",
        "user",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "presence_penalty",
        "frequency_penalty",
        "reasoning_effort",
        "metadata",
        "store",
        "service_tier",
        "modalities",
        "prediction",
        "audio",
        "verbosity",
        "safety_identifier",
        "prompt_cache_key",
        "web_search_options",
    ]
)
_MESSAGE_FIELDS = {
    "system": frozenset({"role", "content", "name"}),
    "developer": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "assistant": frozenset({"role", "content", "name", "refusal", "audio", "tool_calls"}),
    "tool": frozenset({"role", "content", "tool_call_id"}),
}
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MESSAGE_NAME = re.compile(r"[^\s<|\\/>]{1,64}")
_PART_FIELDS = {
    "text": "text",
    "image_url": "image_url",
    "input_audio": "input_audio",
    "file": "file",
    "refusal": "refusal",
}


def check_request(body: Any) -> None:
    """Raise :class:`~athena.testing.fake_script.Refused` if ``body`` is no legal request."""
    demand(isinstance(body, dict), "We could not parse the JSON body of your request.")
    demand_fields(body, _REQUEST_FIELDS, "request")
    demand(isinstance(body.get("model"), str) and body["model"], "you must provide a model parameter", "model")
    messages = body.get("messages")
    demand(isinstance(messages, list) and messages, "Invalid 'messages': expected a non-empty array.", "messages")
    for index, message in enumerate(body["messages"]):
        _check_message(message, f"messages[{index}]")
    _check_pairing(body["messages"])
    _check_tools(body)
    _check_numbers(body)
    _check_format(body.get("response_format"))


def _check_message(message: Any, where: str) -> None:
    demand(isinstance(message, dict), f"Invalid type for '{where}': expected an object.", where)
    role = message.get("role")
    demand(role in _MESSAGE_FIELDS, f"Invalid value: {role!r} for '{where}.role'.", f"{where}.role")
    demand_fields(message, _MESSAGE_FIELDS[role], where)
    content = message.get("content")
    if not (role == "assistant" and message.get("tool_calls")):
        demand(content is not None, f"Invalid value for 'content': expected a string, got null in {where}.", where)
    if isinstance(content, list):
        demand(content, f"Invalid '{where}.content': empty array.", where)
        for part in content:
            _check_part(part, role, f"{where}.content")
    else:
        demand(content is None or isinstance(content, str), f"Invalid type for '{where}.content'.", where)
    if "name" in message:
        legal = isinstance(message["name"], str) and _MESSAGE_NAME.fullmatch(message["name"])
        demand(legal, f"Invalid '{where}.name': string does not match pattern.", f"{where}.name")
    if role == "tool":
        demand(isinstance(message.get("tool_call_id"), str), f"Missing parameter '{where}.tool_call_id'.", where)
    if "tool_calls" in message:
        _check_calls(message["tool_calls"], f"{where}.tool_calls")


def _check_part(part: Any, role: str, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    demand(kind in _PART_FIELDS, f"Invalid value {kind!r} for the type of a part in '{where}'.", where)
    demand(role == "user" or kind in ("text", "refusal"), f"Parts of type {kind!r} are for users only.", where)
    demand_fields(part, frozenset({"type", _PART_FIELDS[str(kind)]}), where)
    value = part.get(_PART_FIELDS[str(kind)])
    if kind == "image_url":
        demand(isinstance(value, dict) and isinstance(value.get("url"), str), f"Missing url in '{where}'.", where)
    elif kind == "text":
        demand(isinstance(value, str), f"Missing text in '{where}'.", where)


def _check_calls(calls: Any, where: str) -> None:
    demand(isinstance(calls, list) and calls, f"Invalid '{where}': empty array.", where)
    ids = []
    for call in calls:
        demand_fields(call, frozenset({"id", "type", "function"}), where)
        demand(isinstance(call.get("id"), str) and call["id"], f"Missing id in '{where}'.", where)
        demand(call.get("type") == "function", f"Invalid type in '{where}'.", where)
        function = demand_fields(call.get("function"), frozenset({"name", "arguments"}), f"{where}.function")
        _check_function_name(function.get("name"), where)
        _check_arguments(function.get("arguments"), where)
        ids.append(call["id"])
    demand(len(set(ids)) == len(ids), f"Duplicate tool call ids in '{where}'.", where)


def _check_arguments(arguments: Any, where: str) -> None:
    demand(isinstance(arguments, str), f"Invalid type for arguments in '{where}': expected a string.", where)
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        value = None
    demand(isinstance(value, dict), f"The arguments in '{where}' are not a JSON object.", where)


def _check_function_name(name: Any, where: str) -> None:
    legal = isinstance(name, str) and _FUNCTION_NAME.fullmatch(name)
    demand(legal, f"Invalid function name {name!r} in '{where}': it must match ^[a-zA-Z0-9_-]{{1,64}}$.", where)


def _check_pairing(messages: list[dict[str, Any]]) -> None:
    """Every call is answered by exactly one tool message, at once after the message with the calls."""
    waiting: list[str] = []
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            demand(
                message["tool_call_id"] in waiting,
                "Messages with role 'tool' must be a response to a preceding message with 'tool_calls'.",
                f"messages[{index}].role",
            )
            waiting.remove(message["tool_call_id"])
            continue
        _check_answered(waiting, index)
        waiting = [c["id"] for c in message.get("tool_calls") or ()]
    _check_answered(waiting, len(messages))


def _check_answered(waiting: list[str], index: int) -> None:
    demand(
        not waiting,
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'."
        f" The following tool_call_ids did not have response messages: {', '.join(waiting)}",
        f"messages[{index}].role",
    )


def _check_tools(body: dict[str, Any]) -> None:
    if "tools" not in body:
        demand("tool_choice" not in body, "'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
        return
    tools = body["tools"]
    demand(isinstance(tools, list) and tools, "Invalid 'tools': empty array.", "tools")
    names = []
    for tool in tools:
        demand_fields(tool, frozenset({"type", "function"}), "tools")
        demand(tool.get("type") == "function", "Invalid type in 'tools'.", "tools")
        fields = frozenset({"name", "description", "parameters", "strict"})
        function = demand_fields(tool.get("function"), fields, "tools.function")
        _check_function_name(function.get("name"), "tools")
        parameters = function.get("parameters", {"type": "object"})
        legal = isinstance(parameters, dict) and parameters.get("type") == "object"
        demand(legal, f"Invalid schema for function {function['name']!r}: it must be of type 'object'.", "tools")
        names.append(function["name"])
    demand(len(set(names)) == len(names), "Tool names must be unique.", "tools")
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, dict):
        chosen = (choice.get("function") or {}).get("name")
        demand(chosen in names, f"Tool choice {chosen!r} not found in 'tools' parameter.", "tool_choice")
    else:
        demand(choice in ("auto", "none", "required"), f"Invalid value: {choice!r}.", "tool_choice")


def _check_numbers(body: dict[str, Any]) -> None:
    for name, low, high in (("temperature", 0, 2), ("top_p", 0, 1)):
        value = body.get(name)
        legal = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        demand(name not in body or legal, f"Invalid '{name}': expected a number from {low} to {high}.", name)
    for name in ("max_tokens", "max_completion_tokens"):
        value = body.get(name)
        legal = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        demand(name not in body or legal, f"Invalid '{name}': integer below minimum value.", name)
    demand(isinstance(body.get("stream", False), bool), "Invalid type for 'stream'.", "stream")
    if "stream_options" in body:
        demand(body.get("stream") is True, "'stream_options' is only allowed when 'stream' is true.", "stream_options")
        demand_fields(body["stream_options"], frozenset({"include_usage", "include_obfuscation"}), "stream_options")
    if "stop" in body:
        stop = body["stop"]
        legal = isinstance(stop, str) or (isinstance(stop, list) and 1 <= len(stop) <= 4)
        demand(legal, "Invalid 'stop': a string or 1 to 4 strings.", "stop")


def _check_format(value: Any) -> None:
    if value is None:
        return
    demand(isinstance(value, dict), "Invalid type for 'response_format'.", "response_format")
    kind = value.get("type")
    demand(kind in ("text", "json_object", "json_schema"), f"Invalid value: {kind!r}.", "response_format.type")
    if kind == "json_schema":
        inner = value.get("json_schema")
        legal = isinstance(inner, dict) and isinstance(inner.get("name"), str) and isinstance(inner.get("schema"), dict)
        demand(legal, "Missing required parameter: 'response_format.json_schema'.", "response_format.json_schema")
