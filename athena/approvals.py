"""Permission requests while they are open, in the process that runs the session.

The log decides: a request is asked, answered and closed by events, so that an answer survives whoever gave it and
whoever waits for it. What is in memory only: who could answer now, and which answers hold for the rest of the session.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

from athena.errors import AlreadyResolved, NotFound
from athena.events import new_uuid
from athena.loop.permission import CLOSED, DENY
from athena.loop.state import Call
from athena.permissions import denied_in_time, rule_of
from athena.recorder import Recorder
from athena.redact import Redactor

REMEMBERED_LIMIT = 256
"""Answers that are kept for the rest of a session; the oldest is asked for again."""

NOT_NEEDED = "not_needed"
"""Why a request is resolved by nobody that the options, which are others now, allow."""


class Approvals:
    """The permission requests of one session."""

    def __init__(self, recorder: Recorder, redactor: Redactor) -> None:
        self.approvers: Collection[bool | str] = ()
        """Who is there to answer: ``True`` is somebody for all turns, a message id somebody for that one's."""
        self.remembered: dict[str, str] = {}
        """Answers by :func:`athena.permissions.rule_of`."""
        self.on_remember: Callable[[str, str], None] = _ignore
        """Gets each rule and its answer: whoever keeps them for the next life."""
        self._recorder = recorder
        self._redactor = redactor
        self._order = asyncio.Lock()
        """Between looking whether a request is open and resolving it, nobody else looks."""
        self._resolved = asyncio.Event()
        self._since: dict[str, float] = {}

    def is_attended(self, message_id: str) -> bool:
        """Whether somebody can answer for the turn of this message."""
        return True in self.approvers or message_id in self.approvers

    async def ask(self, call: Call, *, turn: str, **data: Any) -> None:
        """Record and publish a request for this call."""
        facts = {"request_id": new_uuid(), "call_id": call.call.id, "tool": call.call.name, **data}
        await self._recorder.record("permission_request", facts, turn)

    async def answer(
        self,
        request_id: str,
        decision: str,
        *,
        answer_id: str,
        by: int | None,
        remember: bool = False,
        reason: str | None = None,
    ) -> None:
        """Resolve a request for the client process ``by``; on disk when this returns. The same ``answer_id`` again is
        the same answer.

        Raises :class:`NotFound`, :class:`AlreadyResolved`, and :class:`athena.errors.DiskError` if nothing can be
        written now: the request stays open then.
        """
        who = {"pid": by, "uid": os.geteuid()}
        async with self._order:
            call = self._call_of(request_id)
            turn = self._recorder.state.turn
            if call is not None and call.is_asked and turn is not None and turn.interrupted is not None:
                await self._record(call, CLOSED, code="interrupted", waits=False)
            if call is not None and call.is_asked:
                await self._record(call, decision, by=who, answer_id=answer_id, reason=reason, waits=False)
            self._check_own(request_id, answer_id)
            if remember and call is not None:
                await self._remember(rule_of(call.call.name, call.call.arguments), decision, who)
        await self._recorder.barrier()

    async def resolve(self, call: Call, decision: str, code: str, reason: str | None = None) -> None:
        """Resolve the request of a call in nobody's name, if it is open still."""
        async with self._order:
            if call.is_asked:
                await self._record(call, decision, code=code, reason=reason)

    async def wait(self, calls: Sequence[Call], timeout_s: float | None) -> None:
        """Return when one of these requests is resolved. One that has waited for ``timeout_s`` in this life is denied;
        a new life begins anew, as whoever could answer hears of it anew."""
        loop = asyncio.get_running_loop()
        began = [self._since.setdefault(call.request.id, loop.time()) for call in calls if call.request is not None]
        self._resolved.clear()
        if not all(call.is_asked for call in calls):
            return
        try:
            async with asyncio.timeout_at(None if timeout_s is None else min(began) + timeout_s):
                await self._resolved.wait()
        except TimeoutError:
            assert timeout_s is not None
            for call in calls:
                if call.request is not None and self._since[call.request.id] + timeout_s <= loop.time():
                    denial = denied_in_time(call.call.name, timeout_s)
                    await self.resolve(call, DENY, denial.code, denial.reason)

    # --- under the lock

    def _call_of(self, request_id: str) -> Call | None:
        """The call that was asked for; ``None`` if its step is over, or nothing is known of it."""
        turn = self._recorder.state.turn
        for call in turn.calls.values() if turn is not None else ():
            if call.request is not None and call.request.id == request_id:
                return call
        return None

    def _check_own(self, request_id: str, answer_id: str) -> None:
        found = self._recorder.state.resolutions.get(request_id)
        if found is None:
            raise NotFound(f"the session has no permission request {request_id!r}", target=request_id)
        if found.answer_id == answer_id:
            return
        who = f"by process {found.by['pid']}" if found.by else f"by nobody ({found.code or 'with its call'})"
        raise AlreadyResolved(
            f"permission request {request_id!r} was resolved at {found.at} {who}: {found.decision}",
            request_id=request_id,
            decision=found.decision,
            by=found.by,
            at=found.at,
        )

    async def _remember(self, rule: str, decision: str, who: dict[str, Any]) -> None:
        self.remembered.pop(rule, None)
        self.remembered[rule] = decision
        while len(self.remembered) > REMEMBERED_LIMIT:
            del self.remembered[next(iter(self.remembered))]
        self.on_remember(rule, decision)
        turn = self._recorder.state.turn
        for call in list(turn.calls.values()) if turn is not None else ():
            if call.is_asked and rule_of(call.call.name, call.call.arguments) == rule:
                await self._record(call, decision, by=who, code="remembered")

    async def _record(self, call: Call, decision: str, *, waits: bool = True, **facts: Any) -> None:
        assert call.request is not None
        request, turn = call.request, self._recorder.state.turn
        data = {"request_id": request.id, "call_id": call.call.id, "decision": decision, "by": None}
        data |= {name: value for name, value in facts.items() if value is not None}
        reason = data.get("reason")
        if reason is not None:
            data["reason"] = self._redactor.text(reason)  # the model gets it
        await self._recorder.record("permission_resolved", data, turn.id if turn is not None else None, waits=waits)
        self._since.pop(request.id, None)
        self._resolved.set()


def _ignore(rule: str, decision: str) -> None:
    """Nobody keeps it."""
