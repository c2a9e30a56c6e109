"""Running the calls of one answer: permission, intent, effect, result, in the model's order.

Neighbouring calls that are safe beside each other run at once; any other call runs alone, after all before it and
before all behind it, so a read that the model asked for before a write sees the old file.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from athena.loop.options import Options
from athena.loop.state import Call
from athena.messages import Message, ToolResult
from athena.permissions import Allow, Ask, Deny, decide
from athena.recorder import Recorder
from athena.redact import Redactor
from athena.tools.base import Tool, ToolContext
from athena.tools.execute import run_tool

IN_DOUBT = (
    "The process died while this call was running, so its outcome is unknown: it may have had its full effect, part of "
    "it or none. It was not run again. Check the current state before you repeat it."
)
INTERRUPTED_STARTED = "Interrupted while running; it may have had part of its effect. Check before you repeat it."
INTERRUPTED = "Interrupted before it ran; it had no effect."


class Batch:
    """Runs calls for one turn with the options that hold in it."""

    def __init__(
        self,
        recorder: Recorder,
        tools: dict[str, Tool],
        options: Options,
        *,
        turn: str,
        session_id: str,
        cwd: Path,
        env: dict[str, str],
        redactor: Redactor,
        has_approver: Callable[[], bool] = lambda: False,
    ) -> None:
        self._recorder = recorder
        self._tools = tools
        self._options = options
        self._turn = turn
        self._session_id = session_id
        self._cwd = cwd
        self._env = env
        self._redactor = redactor
        self._has_approver = has_approver

    async def run(self, calls: list[Call]) -> None:
        """Run or settle every call; each has its result in the log when this returns. Cancelling it kills what runs."""
        for group in self._groups(calls):
            if len(group) == 1:
                await self._one(group[0])
                continue
            slots = asyncio.Semaphore(self._options.max_concurrency)

            async def bounded(call: Call, slots: asyncio.Semaphore = slots) -> None:
                async with slots:
                    await self._one(call)

            async with asyncio.TaskGroup() as tasks:
                for call in group:
                    tasks.create_task(bounded(call))

    async def close(self, calls: list[Call]) -> None:
        """Give calls of an interrupted turn their result without running them."""
        for call in calls:
            text = INTERRUPTED_STARTED if call.started else INTERRUPTED
            await self._result(call, ToolResult(call.call.id, text, is_error=True), "interrupted")

    def _groups(self, calls: list[Call]) -> Iterator[list[Call]]:
        def parallel(call: Call) -> bool:
            tool = self._tools.get(call.call.name)
            return tool is not None and tool.parallel_safe

        for is_parallel, group in groupby(calls, parallel):
            if is_parallel:
                yield list(group)
            else:
                yield from ([call] for call in group)

    async def _one(self, call: Call) -> None:
        if call.started and call.on_crash == "unsafe":
            await self._result(call, ToolResult(call.call.id, IN_DOUBT, is_error=True), "in_doubt")
            return
        tool = self._tools.get(call.call.name)
        context = ToolContext(self._cwd, self._session_id, call.call.id, self._options.phase, self._env, call.key)
        if tool is not None and call.call.error is None:
            denial = self._denial(tool, call)
            if denial is not None:
                await self._result(call, ToolResult(call.call.id, denial[1], is_error=True), "denied", code=denial[0])
                return
            if not call.started:
                await self._intend(tool, call, context)
        limit_s = self._options.tool_timeout_ms / 1000
        outcome = await run_tool(tool, call.call, context, limit_s, available=self._tools)
        await self._result(call, self._visible(outcome.result), outcome.status)

    async def _intend(self, tool: Tool, call: Call, context: ToolContext) -> None:
        if tool.on_crash == "keyed":
            context.key = secrets.token_urlsafe(16)
        data: dict[str, Any] = {"id": call.call.id, "name": tool.name, "on_crash": tool.on_crash}
        if context.key is not None:
            data["key"] = context.key
        await self._recorder.record("tool_call", data, self._turn)
        if tool.on_crash != "safe":
            await self._recorder.barrier()

    def _denial(self, tool: Tool, call: Call) -> tuple[str, str] | None:
        options = self._options
        decision = decide(
            tool.name,
            tool.read_only,
            options.phase,
            allowed=options.allowed_tools,
            disallowed=options.disallowed_tools,
            readonly_tools=options.readonly_tools,
            has_approver=self._has_approver(),
            arguments=call.call.arguments,
        )
        match decision:
            case Allow():
                return None
            case Deny(code, reason):
                return code, reason
            case Ask(reason):
                return "no_approver", f"{reason}; nobody is attached who can answer"

    def _visible(self, result: ToolResult) -> ToolResult:
        """The result as it may be recorded and sent: without any secret that the session holds."""
        return replace(
            result, content=self._redactor.text(result.content), ui_payload=self._redactor.json(result.ui_payload)
        )

    async def _result(self, call: Call, result: ToolResult, status: str, **extra: Any) -> None:
        message = Message("tool", tool_results=(result,))
        await self._recorder.record("tool_result", {"message": message.to_map(), "status": status, **extra}, self._turn)
