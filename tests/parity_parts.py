"""What the parity tests' sessions import in their child: a provider and tools that behave badly."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from athena.messages import ToolCall
from athena.providers.base import Delta, ModelRequest, ModelResponse, ProviderSettings
from athena.tools.base import Parameters, Tool, ToolContext, ToolOutput


class _Moody:
    """Raises whatever the message says that it should; else calls the tool that the message names, or echoes."""

    name = "moody"
    default_model = "moody-1"

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta | ModelResponse, None]:
        last = request.messages[-1]
        if last.text.startswith("raise "):
            raise {"KeyError": KeyError, "RuntimeError": RuntimeError}[last.text.removeprefix("raise ")]("on purpose")
        yield Delta("text", "...")
        if last.text.startswith("call "):
            number = len(request.messages)
            yield ModelResponse("", (ToolCall(f"c{number}", last.text.removeprefix("call ")),))
        else:
            yield ModelResponse(f"heard {last.text}".strip())

    async def aclose(self) -> None:
        """Nothing is open."""


def moody(settings: ProviderSettings) -> Any:
    """For ``provider=``."""
    return _Moody()


class _Nothing(Parameters):
    """No arguments."""


async def _raise(args: _Nothing, ctx: ToolContext) -> ToolOutput:
    raise RuntimeError("the tool broke")


async def _odd(args: _Nothing, ctx: ToolContext) -> ToolOutput:
    return ToolOutput("odd \udcff", ui_kind="odd", ui_payload={"range": (1, 2), "raw": b"\xff", "big": 2**70})


RAISE = Tool("raise", "Raises.", _Nothing, _raise, read_only=True)
ODD = Tool("odd", "Returns what no JSON holds.", _Nothing, _odd, read_only=True)
