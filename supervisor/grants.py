"""What a session lacks that came back after its supervisor's death, and how it gets it again (design 6, 9).

The roster holds no grant, no key and no environment. So a session that it brought back *lacks* them until a client
presents its start options again. Work that was open waits for that, in the child, which alone knows what is open; it
waits ``grants_timeout`` at most, and then goes on without. A life that began without is replaced as a sleep replaces
one: the session wakes with everything, and nobody sees a death.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from athena.errors import AthenaError
from athena.wire import Header
from supervisor import vocabulary as words
from supervisor.core import SessionCore
from supervisor.leaf import Waiters
from supervisor.session_request import SessionRequest
from supervisor.vocabulary import State


class Lacking(Protocol):
    """What is needed of the session."""

    core: SessionCore
    request: SessionRequest

    def feed(self, given: words.Input) -> None: ...

    def hibernate(self) -> bool: ...

    def tell(self, message: Any) -> None: ...


class Grants:
    """The grants of one session, as far as it lacks them."""

    def __init__(self, session: Lacking) -> None:
        self._session = session
        self.are_missing = False
        """Whether nobody has presented its start options since its supervisor died."""
        self.are_awaited = False
        """Whether the child holds work back for them."""
        self._turn: str | None = None
        self._holds = False
        self._is_stale = False
        self._before: SessionRequest | None = None
        self._outcome: Waiters[None] = Waiters()
        self._timer: asyncio.TimerHandle | None = None

    def lack(self) -> None:
        """It came back without them."""
        self.are_missing = self._holds = True

    async def wake(self) -> None:
        """Have it live, with what is there; returns when it is ready. Raises why it does not start."""
        waiter = self._outcome.add()
        self._session.feed(words.WakeRequested())
        await waiter

    async def present(self, request: SessionRequest) -> None:
        """Have it live with these options, from its next life on; returns when that is ready.

        If a turn runs without them, that is not waited for: the next life begins behind it. Raises why it does not
        start; then it goes on as it was.
        """
        session = self._session
        self._before, session.request, session.core.spec = session.request, request, request.spec
        self.are_missing = False
        if session.core.state in (State.STARTING, State.RUNNING):
            self._is_stale = True
        if session.core.state is State.RUNNING and not self._renew():
            return
        await self.wake()

    # --- what the session tells

    def begins(self) -> Header:
        """A life gets the options now. Returns what to say of it."""
        self._is_stale = False
        if not self.are_missing:
            self._hold_no_more()
        said: Header = {} if self._before is None else {"presented": True}
        # What waits brings no process down.
        return {**said, "needs_grants": True, "counted": False} if self._holds else said

    def heard(self, header: Header) -> None:
        """Where the child stands."""
        self._turn = header.get("turn")
        if self.are_awaited and not header.get("held"):
            self._hold_no_more()
        self.are_awaited = bool(header.get("held"))
        timeout = self._session.request.spec.grants_timeout
        if self.are_awaited and self._timer is None and not isinstance(timeout, str):
            self._timer = asyncio.get_running_loop().call_later(timeout, self._go_on)

    def ready(self) -> None:
        """A life has begun."""
        if not self.are_awaited:
            self._hold_no_more()
        if self._is_stale:
            self._renew()
        else:
            self._before = None
            self._outcome.resolve(None)

    def turn_ended(self) -> None:
        """Between two turns a life can be replaced."""
        self._renew()

    def died(self, error: AthenaError) -> None:
        """A life has ended, or did not begin, with ``error`` for whoever waits for it."""
        self.are_awaited = False
        if self._is_stale:
            return
        if self._before is not None:
            self._session.request, self._session.core.spec = self._before, self._before.spec
            self._before = None
            self.lack()
        self._outcome.resolve(error)

    def close(self) -> None:
        """The session is over."""
        self._hold_no_more()

    def _renew(self) -> bool:
        session = self._session
        is_free = self._turn is None or self.are_awaited
        if not self._is_stale or session.core.state is not State.RUNNING or not is_free or not session.hibernate():
            return False
        session.feed(words.WakeRequested())
        return True

    def _go_on(self) -> None:
        self._hold_no_more()
        self._session.tell("go_on")

    def _hold_no_more(self) -> None:
        self._holds = self.are_awaited = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
