"""The published rules of Ollama's chat requests, as one check. See https://docs.ollama.com/api.

Two are stricter than the server: unknown fields, which it skips in silence, and the pairing of calls and results,
which it leaves to the model's template.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from athena.testing.fake_script import demand, demand_fields

_REQUEST_FIELDS = frozenset(
    [
        "model",
        "messages",
        "stream",
        "tools",
        "format",
        "options",
        "keep_alive",
        "think",
        "truncate",
        "shift",
        "logprobs",
        "top_logprobs",
    ]
)
_MESSAGE_FIELDS = frozenset(["role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"])
_ROLES = ("system", "user", "assistant", "tool")
_INT_OPTIONS = frozenset(
    [
        "num_keep",
        "seed",
        "num_predict",
        "top_k",
        "repeat_last_n",
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
    ]
)
_FLOAT_OPTIONS = frozenset(
    [
        "temperature",
        "top_p",
        "min_p",
        "typical_p",
        "repeat_penalty",
        "presence_penalty",
        "frequency_penalty",
        "mirostat_tau",
    ]
)


def check_request(body: Any) -> None:
    """Raise :class:`~athena.testing.fake_script.Refused` if ``body`` is no legal request."""
    demand(isinstance(body, dict), "missing request body")
    demand_fields(body, _REQUEST_FIELDS, "request")
    demand(isinstance(body.get("model"), str) and body["model"], "model is required")
    messages = body.get("messages")
    demand(isinstance(messages, list), "json: cannot unmarshal messages into a list of type api.Message")
    for index, message in enumerate(body["messages"]):
        _check_message(message, f"messages[{index}]")
    _check_pairing(body["messages"])
    _check_tools(body.get("tools"))
    _check_options(body.get("options"))
    demand(isinstance(body.get("stream", True), bool), "json: cannot unmarshal stream into type bool")
    _check_format(body.get("format"))
    think = body.get("think", False)
    demand(isinstance(think, bool) or think in ("low", "medium", "high"), f"invalid think value: {think!r}")


def _check_message(message: Any, where: str) -> None:
    demand_fields(message, _MESSAGE_FIELDS, where)
    role = message.get("role")
    demand(role in _ROLES, f"invalid role: {role!r}, role must be one of {list(_ROLES)}")
    demand(isinstance(message.get("content"), str), f"json: cannot unmarshal {where}.content into type string")
    demand(role == "assistant" or "tool_calls" not in message, f"{where}: only an assistant has tool_calls")
    if "images" in message:
        demand(isinstance(message["images"], list), f"json: cannot unmarshal {where}.images into a list")
        for image in message["images"]:
            demand(_is_base64(image), f"illegal base64 data in {where}.images")
    if "tool_calls" in message:
        calls = message["tool_calls"]
        demand(isinstance(calls, list), f"json: cannot unmarshal {where}.tool_calls into a list")
        for call in calls:
            _check_call(call, where)
    if role == "tool":
        name = message.get("tool_name")
        demand(isinstance(name, str) and name, f"{where}: a tool's result needs tool_name")


def _is_base64(value: Any) -> bool:
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        return False
    return isinstance(value, str)


def _check_call(call: Any, where: str) -> None:
    demand_fields(call, frozenset({"id", "type", "function"}), f"{where}.tool_calls")
    fields = frozenset({"index", "name", "arguments", "description"})
    function = demand_fields(call.get("function"), fields, f"{where}.tool_calls.function")
    demand(isinstance(function.get("name"), str) and function["name"], f"{where}: a tool call needs a name")
    arguments = function.get("arguments")
    demand(
        isinstance(arguments, dict),
        f"json: cannot unmarshal {type(arguments).__name__} into Go struct field ToolCallFunction.{where}.tool_calls"
        ".function.arguments of type api.ToolCallFunctionArguments",
    )


def _check_pairing(messages: list[dict[str, Any]]) -> None:
    """Every call is answered by one message that names its tool, at once after the message with the calls."""
    waiting: list[str] = []
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            name = message["tool_name"]
            demand(name in waiting, f"messages[{index}]: a result of {name!r} without a call before it")
            waiting.remove(name)
            continue
        demand(not waiting, f"messages[{index}]: no results for the calls of {', '.join(waiting)}")
        waiting = [c["function"]["name"] for c in message.get("tool_calls") or ()]
    demand(not waiting, f"no results for the calls of {', '.join(waiting)}")


def _check_tools(tools: Any) -> None:
    if tools is None:
        return
    demand(isinstance(tools, list), "json: cannot unmarshal tools into a list")
    for tool in tools:
        demand_fields(tool, frozenset({"type", "items", "function"}), "tools")
        demand(tool.get("type") == "function", "tools: type must be 'function'")
        function = demand_fields(tool.get("function"), frozenset({"name", "description", "parameters"}), "tools")
        demand(isinstance(function.get("name"), str) and function["name"], "tools: a function needs a name")
        parameters = function.get("parameters")
        demand(isinstance(parameters, dict) and parameters.get("type") == "object", "tools: parameters of type object")


def _check_options(options: Any) -> None:
    if options is None:
        return
    demand(isinstance(options, dict), "json: cannot unmarshal options into a map")
    for key, value in options.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in _INT_OPTIONS:
            demand(is_number and value == int(value), f'option "{key}" must be of type integer')
        elif key in _FLOAT_OPTIONS:
            demand(is_number, f'option "{key}" must be of type float32')
        elif key == "stop":
            legal = isinstance(value, list) and all(isinstance(v, str) for v in value)
            demand(legal, 'option "stop" must be of type array of strings')
        else:
            demand(key in ("use_mmap", "numa", "penalize_newline"), f"invalid option provided: {key}")


def _check_format(value: Any) -> None:
    legal = value is None or value in ("", "json") or isinstance(value, dict)
    demand(legal, f'invalid format: {value!r}; expected "json" or a valid JSON Schema object')
