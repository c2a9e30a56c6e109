"""``athena attach``: one of any number of terminals on a session. It shows what everybody sees, and may speak.

One event loop has it all: the stream, the lines that are typed, and Ctrl-C. A connection that is lost, by the daemon's
restart too, is waited for; the stream then goes on after the last event that was shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Any

from athena.async_session import AsyncEventStream, AsyncSession
from athena.cli.border import EXIT_OK
from athena.cli.lookup import attach as find
from athena.cli.lookup import daemon
from athena.cli.output import note
from athena.cli.prompts import Questions
from athena.cli.screen import JsonLines, Screen
from athena.errors import AlreadyResolved, AthenaError, NotFound, Unavailable, UnsupportedStore
from athena.events import Event, new_uuid
from athena.loop.permission import Answer
from athena.subscriber import Item, Subscriber

TAIL_EVENTS = 500
"""How far back the latest turn is looked for."""

TWICE_S = 0.6
"""Within this time a second Ctrl-C is one with the first."""

AGAIN_S = 0.25
"""Between two tries to reach a daemon that is away."""

BACK_S = 10.0
"""How long a daemon that is back may take to have the session back."""

INTERRUPT = "/interrupt"
"""What to type to end the running turn."""

READ_BYTES = 64 * 1024


def attach(target: str, begin: int | None, *, read_only: bool, as_json: bool) -> int:
    """Follow the session ``target`` until it ends, or its person leaves.

    ``begin``: what came after this event is shown first; negative: so many events; ``None``: the latest turn.
    """
    session = find(target)
    is_person = sys.stdin.isatty()
    screen: Screen | JsonLines = JsonLines() if as_json else Screen(with_user=True)
    may_type = not read_only and not (as_json and is_person)  # what is typed would stand between the documents
    terminal = _Terminal(session.session_id, session.name, screen, may_type=may_type, is_person=is_person)
    asyncio.run(terminal.run(begin))
    return EXIT_OK


class _Terminal:
    """One terminal on one session."""

    def __init__(
        self, session_id: str, name: str | None, screen: Screen | JsonLines, *, may_type: bool, is_person: bool
    ) -> None:
        self._session_id = session_id
        self._who = name or session_id
        self._screen = screen
        self._may_type = may_type
        self._is_person = is_person
        self._session: AsyncSession
        self._turn: str | None = None
        """The turn that runs."""
        self._open: set[str] = set()
        """The messages that were typed here and have no end yet."""
        self._shown_turns: set[str | None] = set()
        """Turns of messages that the terminal itself has shown as they were typed."""
        self._asks = may_type and is_person
        """Whether its person answers permission requests."""
        self._questions = Questions()
        self._asking: asyncio.Task[None] | None = None
        self._is_input_over = False
        self._leave_soon: asyncio.TimerHandle | None = None
        self._left = asyncio.Event()

    async def run(self, begin: int | None) -> None:
        """Until the end, of whichever kind. Raises what ended it before its time."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._on_ctrl_c)
        self._session = await AsyncSession.attach(self._session_id, supervisor=daemon())
        subscriber = Subscriber(await self._place(begin), approver=self._asks)
        parts = [asyncio.create_task(self._follow(subscriber)), asyncio.create_task(self._left.wait())]
        speaking = asyncio.create_task(self._speak()) if self._may_type else None
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            self._screen.end_line()
            for one in done:
                one.result()
            if self._left.is_set():
                note("detached; the session goes on")
        finally:
            for task in (*parts, speaking):
                if task is not None:
                    task.cancel()

    async def _place(self, begin: int | None) -> int | None:
        """After which event to begin."""
        status = await self._session.status()
        self._turn = status["turn"]
        last = int(status["events"])
        if begin is not None:
            return begin if begin >= 0 else max(0, last + begin)
        try:
            return await self._latest_turn(last) if last else None
        except UnsupportedStore:
            return None  # only its own process can read its log

    async def _latest_turn(self, last: int) -> int:
        first = max(0, last - TAIL_EVENTS)
        found = first if first else last
        async with self._session.events(first, deltas=False) as stream:
            async for item in stream:
                if isinstance(item, Event) and item.event == "turn_start":
                    found = item.seq - 1
                if isinstance(item, Event) and item.seq >= last:
                    break
        return found

    # --- what is shown

    async def _follow(self, subscriber: Subscriber) -> None:
        """Show the stream to the session's end, over every loss of the daemon."""
        is_first = True
        while True:
            try:
                async with AsyncEventStream(self._session, subscriber) as stream:
                    note(self._greeting() if is_first else "the daemon is back")
                    is_first = False
                    await self._tell(self._ask_open())
                    async for item in stream:
                        self._show(item)
                return
            except Unavailable as error:
                if is_first:
                    raise
                self._screen.end_line()
                note(f"the daemon is away: {error.message}; Ctrl-C leaves, or wait for it", style="yellow")
            await self._come_back()

    async def _come_back(self) -> None:
        """Wait for the daemon, as long as it takes. Raises :class:`NotFound` when it is back without the session."""
        back_at: float | None = None
        while True:
            try:
                self._session = await AsyncSession.attach(self._session_id, supervisor=daemon())
                return
            except NotFound:
                back_at = back_at or time.monotonic()
                if time.monotonic() - back_at > BACK_S:
                    raise NotFound(
                        f"the daemon is back without session {self._session_id!r}; continue its log with: "
                        f"athena resume {self._session_id}",
                        target=self._session_id,
                    ) from None
            except Unavailable:
                back_at = None
            await asyncio.sleep(AGAIN_S)

    def _greeting(self) -> str:
        if not self._may_type:
            return f"attached to {self._who}; Ctrl-C detaches"
        return f"attached to {self._who}; a line is a message, {INTERRUPT} or Ctrl-C twice ends a turn, Ctrl-C detaches"

    def _show(self, item: Item) -> None:
        is_mine = False
        if isinstance(item, Event):
            self._note_turn(item)
            is_mine = item.event == "user_message" and item.turn in self._shown_turns
        if not is_mine:
            self._screen.show(item)
        if isinstance(item, Event) and item.event == "permission_request":
            self._asking = asyncio.create_task(self._tell(self._ask_open()))  # one of long ago is open no more
        elif isinstance(item, Event) and item.event == "permission_resolved":
            self._questions.remove(str(item.data.get("request_id")))
        if self._is_input_over and not self._is_person and not self._open:
            self._left.set()

    def _note_turn(self, event: Event) -> None:
        message_id = event.data.get("message_id")
        match event.event:
            case "turn_start":
                self._turn = event.turn
                if message_id in self._open and self._is_person:
                    self._shown_turns.add(event.turn)
            case "turn_end":
                self._turn = None
                self._open.discard(str(message_id))
            case "message_cancelled":
                self._open.difference_update(event.data.get("message_ids", ()))

    # --- what is said

    async def _speak(self) -> None:
        """Send each line as a message. At the end of the input a person leaves; a program first gets its answers."""
        lines: asyncio.Queue[str | None] = asyncio.Queue()
        _read_lines(asyncio.get_running_loop(), lines)
        has_said = False
        while (line := await lines.get()) is not None:
            text = line.strip()
            reply = self._questions.reply(text)
            if text == INTERRUPT:
                await self._tell(self._interrupt())
            elif reply is not None:
                await self._tell(self._answer(*reply))
            elif text:
                has_said = True
                await self._tell(self._say(line))
        self._is_input_over = self._is_person or has_said  # a program that says nothing only listens
        if self._is_input_over and not self._open:
            self._left.set()

    async def _say(self, text: str) -> None:
        message_id = new_uuid()
        self._open.add(message_id)
        waits = self._turn is not None
        try:
            await self._session.submit(text, message_id=message_id)
        except AthenaError:
            self._open.discard(message_id)
            raise
        if waits:
            note("the message waits for the turn that runs")

    async def _ask_open(self) -> None:
        for row in await self._session.requests() if self._asks else ():
            self._questions.add(row)

    async def _answer(self, request_id: str, answer: Answer, remember: bool) -> None:
        try:
            await self._session.answer(request_id, answer, remember=remember)
        except (AlreadyResolved, NotFound):
            self._questions.remove(request_id)
            raise
        self._questions.remove(request_id)

    async def _interrupt(self) -> None:
        if not await self._session.interrupt():
            note("no turn runs")

    async def _tell(self, act: Coroutine[Any, Any, None]) -> None:
        """What cannot be done is told, and ends nothing."""
        try:
            await act
        except AthenaError as error:
            note(error.message, style="red")

    def _on_ctrl_c(self) -> None:
        if self._leave_soon is not None:
            self._leave_soon.cancel()
            self._leave_soon = None
            self._interrupting = asyncio.create_task(self._tell(self._interrupt()))
        elif self._turn is None or not self._may_type:
            self._left.set()
        else:
            self._screen.end_line()
            note("detaching; another Ctrl-C at once ends the turn instead")
            self._leave_soon = asyncio.get_running_loop().call_later(TWICE_S, self._left.set)


def _read_lines(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[str | None]) -> None:
    """Put each line of standard input into ``lines``, then ``None``.

    In a thread that nothing waits for, and not with ``sys.stdin``: the interpreter cannot end while a thread holds its
    lock, and a file can neither be waited for by an event loop nor left in the middle of a read.
    """

    def read() -> None:
        rest = b""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            while data := _read():
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    loop.call_soon_threadsafe(lines.put_nowait, line.decode(errors="replace"))
            if rest:
                loop.call_soon_threadsafe(lines.put_nowait, rest.decode(errors="replace"))
            loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, name="input", daemon=True).start()


def _read() -> bytes:
    try:
        return os.read(0, READ_BYTES)
    except OSError:
        return b""  # there is no input
