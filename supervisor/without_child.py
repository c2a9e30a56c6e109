"""Answers for a session whose child is silent or asleep (design 7.5): from the log, or that there is nothing to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from athena.channel import Channel
from athena.errors import AthenaError, Unresponsive
from athena.wire import Frame, dumps
from supervisor.calls import Calls, reply, reply_error
from supervisor.past import Past

SILENT_S = 0.150
"""How long a call waits for the child before it is answered without it."""

ANSWERED_FROM_LOG = frozenset({"messages", "usage", "queue", "requests"})

_NOTHING_TO_DO = {"interrupt": dumps({"interrupted": False}), "cancel": dumps({"cancelled": False})}
"""What these answer when no turn runs and no message waits."""


class WithoutChild:
    """The answers of one session that need no child. ``spawn_task`` runs a coroutine for as long as the session is."""

    def __init__(
        self, label: str, calls: Calls, past: Past, spawn_task: Callable[[Coroutine[Any, Any, None]], object]
    ) -> None:
        self._label = label
        self._calls = calls
        self._past = past
        self._spawn_task = spawn_task

    def answer_asleep(self, channel: Channel, frame: Frame) -> bool:
        """Answer what needs no child, while there is none: nothing runs or waits, and the log has the rest. ``False``
        for what needs one."""
        op, request_id = str(frame.header.get("op")), frame.header.get("id")
        if op in _NOTHING_TO_DO:
            reply(channel, request_id, _NOTHING_TO_DO[op])
        elif op in ANSWERED_FROM_LOG and self._past.is_readable:
            self._spawn_task(self._reply_from_log(channel, request_id))
        else:
            return False
        return True

    def answer_from_log(self, request_id: int) -> None:
        """The child has been silent for too long for this call."""
        pending = self._calls.pending.pop(request_id, None)
        if pending is not None:
            self._spawn_task(self._reply_from_log(pending.channel, pending.client_id))

    def give_up(self, request_id: int) -> None:
        """Nothing runs that could be killed for it, and the child is silent."""
        pending = self._calls.pending.pop(request_id, None)
        if pending is not None:
            error = Unresponsive(f"{self._label} does not answer now; no turn of it runs")
            reply_error(pending.channel, pending.client_id, error)

    async def _reply_from_log(self, channel: Channel, client_id: object) -> None:
        try:
            body = await asyncio.to_thread(lambda: b"\n".join(event.line for event in self._past.read(0)))
            reply(channel, client_id, body, source="log")
        except AthenaError as error:
            reply_error(channel, client_id, Unresponsive(f"{self._label} does not answer now, and {error.message}"))
