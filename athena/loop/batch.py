"""Running the calls of one answer: permission, intent, effect, result, in the model's order.

Neighbouring calls that are safe beside each other run at once; any other call runs alone, after all before it and
before all behind it, so a read that the model asked for before a write sees the old file.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from athena.approvals import NOT_NEEDED, Approvals
from athena.errors import RecordTooLarge
from athena.file_history import FileHistory
from athena.loop.options import Options
from athena.loop.permission import ALLOW, CLOSED, DENY
from athena.loop.state import Call
from athena.messages import Message, ToolResult
from athena.permissions import Allow, Ask, Decision, DenialCode, Deny, decide, denied_by_user
from athena.recorder import Recorder
from athena.redact import Redactor
from athena.tools.base import Tool, ToolContext
from athena.tools.execute import run_tool

IN_DOUBT = (
    "The process died while this call was running, so its outcome is unknown: it may have had its full effect, part of "
    "it or none. It was not run again. Check the current state before you repeat it."
)
TOO_LARGE = "The call ended, but its result is too large to be kept:"
INTERRUPTED_STARTED = "Interrupted while running; it may have had part of its effect. Check before you repeat it."
UNANSWERED = "The call waited for permission, and the request was closed without an answer; it had no effect."
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
        message_id: str,
        session_id: str,
        cwd: Path,
        env: dict[str, str],
        redactor: Redactor,
        approvals: Approvals,
    ) -> None:
        self._recorder = recorder
        self._tools = tools
        self._options = options
        self._turn = turn
        self._message_id = message_id
        self._session_id = session_id
        self._cwd = cwd
        self._env = env
        self._redactor = redactor
        self._history = FileHistory(recorder, redactor, turn)
        self._approvals = approvals

    async def run(self, calls: list[Call]) -> None:
        """Run or settle every call; each has its result in the log when this returns, up to the first that waits for an
        approver. Cancelling it kills what runs."""
        for group in self._groups(calls):
            await self._together(group)
            if any(call.is_asked for call in group):
                return

    async def _together(self, group: list[Call]) -> None:
        if len(group) == 1:
            await self._one(group[0])
            return
        slots = asyncio.Semaphore(self._options.max_concurrency)

        async def bounded(call: Call) -> None:
            async with slots:
                await self._one(call)

        async with asyncio.TaskGroup() as tasks:
            for call in group:
                tasks.create_task(bounded(call))

    async def wait(self, calls: list[Call]) -> None:
        """Wait for an answer to one of the requests of these calls. One that the options that hold now would not make
        is resolved without."""
        for call in calls:
            tool = self._tools.get(call.call.name)
            match None if tool is None else self._decide(tool, call, has_approver=True):
                case None:
                    await self._approvals.resolve(call, CLOSED, "unknown_tool")
                case Allow():
                    await self._approvals.resolve(call, ALLOW, NOT_NEEDED)
                case Deny(code, reason):
                    await self._approvals.resolve(call, DENY, code, reason)
        timeout = self._options.permission_timeout
        await self._approvals.wait(calls, None if isinstance(timeout, str) else timeout)

    async def close(self, calls: list[Call]) -> None:
        """Give calls of an interrupted turn their result without running them."""
        for call in calls:
            await self._approvals.resolve(call, CLOSED, "interrupted")
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
        context = ToolContext(
            self._cwd, self._session_id, call.call.id, self._options.phase, self._env, call.key, self._history
        )
        if tool is not None and call.call.error is None:
            match self._verdict(tool, call):
                case Deny() if call.started:  # with a grant that is gone now: it may have had its effect
                    await self._result(call, ToolResult(call.call.id, IN_DOUBT, is_error=True), "in_doubt")
                    return
                case Deny(code, reason):
                    await self._result(call, ToolResult(call.call.id, reason, is_error=True), "denied", code=code)
                    return
                case Ask(reason):
                    await self._ask(call, reason)
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
        if tool.on_crash != "safe" or self._recorder.is_degraded:  # no tool runs while the log cannot be written
            await self._recorder.barrier()

    async def _ask(self, call: Call, reason: str) -> None:
        arguments = self._redactor.json(call.call.arguments)
        await self._approvals.ask(
            call, turn=self._turn, message_id=self._message_id, arguments=arguments, reason=reason
        )

    def _verdict(self, tool: Tool, call: Call) -> Decision:
        """What holds for the call now, its request's answer included."""
        found = call.request.resolution if call.request is not None else None
        has_approver = call.request is not None or self._approvals.is_attended(self._message_id)
        decision = self._decide(tool, call, has_approver=has_approver)
        if found is None or isinstance(decision, Deny):
            return decision
        if found.decision == ALLOW:
            return Allow()
        if found.by is not None:
            return denied_by_user(tool.name, found.reason)
        return Deny(cast(DenialCode, found.code or "unknown"), found.reason or UNANSWERED)

    def _decide(self, tool: Tool, call: Call, *, has_approver: bool) -> Decision:
        options = self._options
        return decide(
            tool.name,
            tool.read_only,
            options.phase,
            allowed=options.allowed_tools,
            disallowed=options.disallowed_tools,
            readonly_tools=options.readonly_tools,
            has_approver=has_approver,
            arguments=call.call.arguments,
            remembered=self._approvals.remembered,
        )

    def _visible(self, result: ToolResult) -> ToolResult:
        """The result as it may be recorded and sent: without any secret that the session holds."""
        return replace(
            result, content=self._redactor.text(result.content), ui_payload=self._redactor.json(result.ui_payload)
        )

    async def _result(self, call: Call, result: ToolResult, status: str, **extra: Any) -> None:
        message = Message("tool", tool_results=(result,))
        data = {"message": message.to_map(), "status": status, **extra}
        try:
            await self._recorder.record("tool_result", data, self._turn)
        except RecordTooLarge as error:  # the tool has run: what it did must be said, if not all of what it told
            cut = ToolResult(call.call.id, f"{TOO_LARGE} {error.message}", is_error=True)
            data["message"] = Message("tool", tool_results=(cut,)).to_map()
            await self._recorder.record("tool_result", data, self._turn)
