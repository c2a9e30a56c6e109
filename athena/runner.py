"""The engine of one session: it takes messages, asks :func:`athena.loop.step.next_step`, and carries out the answer.

It runs in a session's child process, and in the caller's for :func:`athena.run`. Whatever it learns becomes an event
before anything acts on it; when its process dies, the next one makes the same engine from the same log.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from athena import tools
from athena.approvals import Approvals
from athena.branches import Branches
from athena.config import PRODUCT
from athena.errors import (
    AthenaError,
    Busy,
    Cancelled,
    DiskError,
    MessageIdConflict,
    NotFound,
    ProviderError,
    RecordTooLarge,
    to_wire,
)
from athena.events import FORMAT
from athena.loop.batch import Batch
from athena.loop.options import Options, parse_turn_options
from athena.loop.request import build_request, unique_calls
from athena.loop.result import Result, shortened
from athena.loop.state import Ended, SessionState, Turn, digest, duration_ms
from athena.loop.step import Ask, CallModel, CloseCalls, Finish, RestoreFiles, RunTools, Take, Wait, next_step
from athena.messages import Message, Usage, clean_text, cleaned
from athena.providers.base import Delta, ModelRequest, ModelResponse, Provider
from athena.providers.retry import stream_with_retries
from athena.recorder import Recorder
from athena.redact import Redactor, session_secrets, tool_env
from athena.stores.base import Store
from athena.tools.base import Tool

QUEUE_LIMIT = 64
"""Messages that may wait behind a running turn; the next one is refused with :class:`Busy`."""

ACCEPT_LIMIT_S = 5.0
"""How long whoever sends a message that is recorded waits for a disk that cannot sync it."""


class Audience(Protocol):
    """Who hears of deltas. Events reach it through the recorder."""

    def delta(self, turn: str, step: int, attempt: int, offset: int, piece: Delta) -> None:
        """A piece of text that is not recorded. ``offset`` counts characters of its type in this attempt."""
        ...


@dataclass(slots=True)
class Waiters:
    """Who waits for the end of which turn."""

    by_message: dict[str, list[asyncio.Future[Result]]] = field(default_factory=dict)

    def wait_for(self, message_id: str) -> asyncio.Future[Result]:
        """A future for this turn's result."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.by_message.setdefault(message_id, []).append(future)
        return future

    def resolve(self, message_id: str, result: Result | AthenaError) -> None:
        """Answer everybody who waits for it."""
        for future in self.by_message.pop(message_id, ()):
            if future.done():
                continue
            if isinstance(result, Result):
                future.set_result(result)
            else:
                future.set_exception(result)


class Runner:
    """One session's engine. :meth:`begin` once, then :meth:`run` in a task; the other methods at any time."""

    def __init__(
        self,
        session_id: str,
        options: Options,
        recorder: Recorder,
        provider: Provider,
        tools: dict[str, Tool],
        audience: Audience,
        *,
        env: dict[str, str],
        store: Store | None = None,
        random_unit: Callable[[], float] = random.random,
    ) -> None:
        self.session_id = session_id
        self.options = options
        self.recorder = recorder
        self.waiters = Waiters()
        self._provider = provider
        self._tools = tools
        self._audience = audience
        self._random = random_unit
        secrets = session_secrets(env, options.api_key, options.extra_headers)
        self._redactor = Redactor(secrets)
        self.approvals = Approvals(recorder, self._redactor)
        self._tool_env = tool_env(env, options.env_allow, secrets=secrets.values())
        self._wakeup = asyncio.Event()
        self.branches = Branches(session_id, recorder, store, self._redactor, wake=self._wakeup.set)
        self._step: asyncio.Task[None] | None = None
        self._turn_options: dict[str, dict[str, Any]] = {}
        self._effective: tuple[str, Options] | None = None
        self._held: frozenset[str] = frozenset()
        """Ids of messages that wait for the grants of a supervisor that died."""
        self._openings: list[tuple[str, dict[str, Any], str | None]] = []
        """What opens this life and could not be written yet."""
        self._accepting: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> SessionState:
        return self.recorder.state

    # --- start

    async def begin(
        self,
        resumed_because: Any = None,
        *,
        counted: bool = False,
        interrupt: str | None = None,
        is_later_life: bool = False,
    ) -> None:
        """Write what opens this life of the session.

        ``resumed_because`` is the last life's reason, ``counted`` whether its death counts against an open turn;
        ``interrupt`` names a turn that the last life was told to end and did not.

        Raises :class:`DiskError` if the log cannot be written. One that could be before does not end for that: its
        opening is then the first that :meth:`run` writes.
        """
        if self.state.events == 0:
            data: dict[str, Any] = {"format": FORMAT, "session_id": self.session_id, "product": PRODUCT}
            data["options"] = self.options.recorded()
            if self.options.messages:
                data["messages"] = [cleaned(Message.from_map(m)).to_map() for m in self.options.messages]
            await self.recorder.record("session_start", data, waits=False)
            return
        self._openings.append(("session_resume", {"reason": resumed_because, "options": self.options.recorded()}, None))
        turn = self.state.turn
        if turn is not None:
            self._openings.append(("turn_resumed", {"reason": resumed_because, "counted": counted}, turn.id))
            if interrupt == turn.id:
                by = "turn_timeout" if resumed_because == {"limit": "turn_time"} else "client"
                self._openings.append(("interrupted", {"by": by}, turn.id))
            elif turn.interrupted is None:  # open requests are told again: nobody may be there who heard of them
                asked = [call.request for call in turn.open_calls if call.is_asked and call.request is not None]
                self._openings += [("permission_request", request.data, turn.id) for request in asked]
        try:
            await self._open(waits=False)
        except DiskError:
            if not is_later_life:
                raise

    async def _open(self, *, waits: bool) -> None:
        while self._openings:
            kind, data, turn = self._openings[0]
            await self.recorder.record(kind, data, turn, waits=waits)
            del self._openings[0]

    def hold(self) -> None:
        """Do nothing of what is open now before :meth:`release`: its supervisor died, and who granted something for it
        has not said so again."""
        turn = self.state.turn
        open_now = [turn.message_id] if turn is not None else []
        self._held = frozenset([*open_now, *(m.message_id for m in self.state.queue)])

    @property
    def is_held(self) -> bool:
        """Whether something waits for :meth:`release`."""
        if not self._held:
            return False
        turn = self.state.turn
        is_open = turn is not None and turn.message_id in self._held
        return is_open or any(m.message_id in self._held for m in self.state.queue)

    def release(self) -> None:
        """Go on with what was held, with what is there."""
        self._held = frozenset()
        self._wakeup.set()

    # --- what clients ask

    async def accept(self, message_id: str, text: str, options: dict[str, Any] | None = None) -> bool:
        """Queue a message; when this returns it is on disk. ``False`` if this id was accepted before (a resend).

        Raises :class:`MessageIdConflict`, :class:`Busy`, :class:`athena.errors.InvalidOption`,
        :class:`RecordTooLarge`, and :class:`DiskError`: without ``recorded`` nothing of it is in the log; with it the
        message keeps its place, and only its sync fails.
        """
        text = clean_text(text)
        known = self.state.receipts.get(message_id)
        if known is not None:
            if known.digest != digest(text):
                raise MessageIdConflict(
                    f"message id {message_id!r} was used before with another text; use a new id", message_id=message_id
                )
            if options:
                self._turn_options.setdefault(message_id, parse_turn_options(options))
            await self._in_time(message_id, self.recorder.barrier())
            return False
        checked = parse_turn_options(options or {})
        if "tools" in checked:
            tools.resolve(checked["tools"])  # an unknown one is the sender's mistake, not the turn's
        waiting = len(self.state.queue)
        if waiting >= QUEUE_LIMIT:
            raise Busy(f"{waiting} messages are waiting already; try again when a turn has ended", limit=QUEUE_LIMIT)
        self._turn_options[message_id] = checked
        data: dict[str, Any] = {"message_id": message_id, "text": text}
        recorded = {k: v for k, v in self._merged(checked).recorded().items() if k in checked}
        if recorded:
            data["options"] = recorded
        await self._in_time(message_id, self._record_message(data))
        return True

    async def _record_message(self, data: dict[str, Any]) -> None:
        try:
            await self.recorder.record("message_accepted", data, waits=False)
        finally:
            if data["message_id"] not in self.state.receipts:
                self._turn_options.pop(data["message_id"], None)
        self._wakeup.set()
        await self.recorder.barrier()

    async def _in_time(self, message_id: str, work: Coroutine[Any, Any, None]) -> None:
        """Wait for ``work``, which goes on when the time is over: what is recorded is to be synced and published."""
        task = asyncio.ensure_future(work)
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)
        done, _ = await asyncio.wait([task], timeout=ACCEPT_LIMIT_S)
        if not done and message_id not in self.state.receipts:
            task.cancel()
            await asyncio.wait([task])
            raise DiskError(
                f"message {message_id!r} is not accepted: the log of {self.session_id!r} cannot be written now",
                session_id=self.session_id,
                message_id=message_id,
                errno=None,
            )
        if done:
            task.result()
            return
        raise DiskError(
            f"message {message_id!r} is in the log of {self.session_id!r} and keeps its place, but the disk does not"
            " make it safe from a power cut; send it again under its id to be told when it is",
            session_id=self.session_id,
            message_id=message_id,
            recorded=True,
            errno=None,
        )

    async def result_of(self, message_id: str) -> Result | None:
        """The result of an ended turn, once its end is on disk; ``None`` while it waits or runs."""
        ended = self.state.ended.get(message_id)
        if ended is None:
            return None
        await self.recorder.barrier()  # whoever waits for it is told behind one, and who asks is told no sooner
        return self._result(message_id, ended)

    def require(self, message_id: str) -> None:
        """Raise unless this message waits or runs: :class:`Cancelled` if it was taken back, else :class:`NotFound`."""
        if message_id in self.state.cancelled:
            raise Cancelled(f"message {message_id!r} was taken back before its turn", message_id=message_id)
        if message_id not in self.state.receipts:
            raise NotFound(f"session {self.session_id!r} has no message {message_id!r}", target=message_id)

    async def cancel(self, message_id: str) -> bool:
        """Take a queued message back. ``False`` if its turn began already or it isn't known."""
        if not any(m.message_id == message_id for m in self.state.queue):
            return False
        await self._drop([message_id])
        return True

    async def interrupt(self, *, turn: str | None = None, clear_queue: bool = False) -> bool:
        """End the running turn (``turn``: only if it is this one). ``False`` if none runs. Returns when it has
        ended."""
        if clear_queue and self.state.queue:
            await self._drop([m.message_id for m in self.state.queue])
        running = self.state.turn
        if running is None or (turn is not None and running.id != turn):
            return turn is not None and self._was_interrupted(turn)  # by this very request, in the life before
        ended = self.waiters.wait_for(running.message_id)
        if running.interrupted is None:
            await self.recorder.record("interrupted", {"by": "client"}, running.id)
            if self._step is not None:
                self._step.cancel()
            self._wakeup.set()
        await asyncio.wait([ended])
        return True

    # --- the loop

    async def run(self) -> None:
        """Carry out steps for ever. Cancelling it leaves an open turn open in the log, for the next life."""
        await self._open(waits=True)
        try:
            while True:
                await self.branches.do_between()
                step = next_step(self.state, self._options_now().limits())
                # What an interrupt ends, or a recorded answer, acts on nothing: it needs no grants.
                is_held = self.is_held and not isinstance(step, CloseCalls | Finish | RestoreFiles)
                if isinstance(step, Wait) or is_held:
                    self._wakeup.clear()
                    await self._wakeup.wait()
                    continue
                self._step = asyncio.ensure_future(self._perform(step))
                await asyncio.wait([self._step])
                if not self._step.cancelled():  # a cancelled step was interrupted: the fold knows
                    self._step.result()
                self._step = None
        finally:
            if self._step is not None and not self._step.done():
                self._step.cancel()
                await asyncio.wait([self._step])

    async def _perform(self, step: Take | RestoreFiles | CallModel | RunTools | Ask | CloseCalls | Finish) -> None:
        try:
            await self._carry_out(step)
        except RecordTooLarge as error:  # of a message or an answer; a turn ends for it, and no process
            await self._finish("error_during_execution", error.message, error)

    async def _carry_out(self, step: Take | RestoreFiles | CallModel | RunTools | Ask | CloseCalls | Finish) -> None:
        match step:
            case Take():
                await self._take()
            case RestoreFiles():
                await self.branches.restore_files()
            case CallModel():
                await self._call_model()
            case RunTools(calls):
                await self._batch().run(calls)
            case Ask(calls):
                await self._batch().wait(calls)
            case CloseCalls(calls):
                await self._batch().close(calls)
            case Finish(reason, detail):
                await self._finish(reason, detail)

    async def _take(self) -> None:
        if self.state.turn is None:
            data = {"message_id": self.state.queue[0].message_id}
            await self.recorder.record("turn_start", data, f"t{self.state.turns + 1}")
        turn = self._turn()
        await self.recorder.record("user_message", {"message": Message("user", turn.unsaid).to_map()}, turn.id)

    async def _call_model(self) -> None:
        turn = self._turn()
        options = self._options_now()
        model = options.model or self._provider.default_model or ""
        request = build_request(self.state, options, self._tools_now().values(), model)
        try:
            attempt, response = await self._ask(turn, request)
        except ProviderError as error:
            reason = _PROVIDER_REASONS.get(error.data.get("kind", ""), "error_during_execution")
            await self._finish(reason, error.message, error)
            return
        message = Message("assistant", response.text, unique_calls(response), reasoning=response.thinking)
        await self.recorder.record(
            "assistant_message",
            {
                "message": cleaned(message).to_map(),
                "usage": response.usage.to_map(),
                "model": response.model or model,
                "stop_reason": response.stop_reason,
                "step": turn.steps + 1,
                "attempt": attempt,
            },
            turn.id,
        )

    async def _ask(self, turn: Turn, request: ModelRequest) -> tuple[int, ModelResponse]:
        offsets = {"text": 0, "thinking": 0}
        current, step = 1, turn.steps + 1
        async with contextlib.aclosing(stream_with_retries(self._provider, request, random=self._random)) as items:
            async for attempt, item in items:
                if isinstance(item, ModelResponse):
                    return attempt, item
                if attempt != current:
                    current, offsets = attempt, {"text": 0, "thinking": 0}
                piece = Delta(item.type, clean_text(item.text))
                self._audience.delta(turn.id, step, attempt, offsets[item.type], piece)
                offsets[item.type] += len(piece.text)
        raise ProviderError(
            "the model's stream ended without an answer", kind="transport", status=None, provider=self._provider.name
        )

    async def _finish(self, reason: str, detail: str | None = None, error: AthenaError | None = None) -> None:
        turn = self._turn()
        data: dict[str, Any] = {
            "message_id": turn.message_id,
            "finish_reason": reason,
            "halted_reason": self._redactor.text(detail) if detail else None,
            "text": turn.text,
            "usage": turn.usage.to_map(),
            "cost_usd": turn.usage.cost_usd,
            "iterations": max(0, turn.steps - 1),
            "tool_calls_made": turn.tool_calls_made,
            "started_at": turn.started_at,
            "model": turn.model,
            "provider": self._provider.name,
        }
        if error is not None:
            data["error"] = self._redactor.json(to_wire(error))
        try:
            await self.recorder.record("turn_end", data, turn.id)
        except RecordTooLarge:
            await self.recorder.record("turn_end", shortened(data), turn.id)
        await self.recorder.barrier()
        self._turn_options.pop(turn.message_id, None)
        self.waiters.resolve(turn.message_id, self._result(turn.message_id, self.state.ended[turn.message_id]))

    # --- helpers

    def _turn(self) -> Turn:
        assert self.state.turn is not None
        return self.state.turn

    def _merged(self, overrides: dict[str, Any]) -> Options:
        return self.options.model_copy(update=overrides)

    def _options_now(self) -> Options:
        """The options that hold in the open turn: the session's, then what the log has for the message, then what its
        sender still holds in memory (grants)."""
        turn = self.state.turn
        if turn is None:
            return self.options
        if self._effective is None or self._effective[0] != turn.id:
            overrides = {**turn.options, **self._turn_options.get(turn.message_id, {})}
            self._effective = (turn.id, self._merged(overrides))
        return self._effective[1]

    def _tools_now(self) -> dict[str, Tool]:
        """The tools of the open turn: the session's, unless its message came with others."""
        chosen = self._options_now().tools
        return self._tools if chosen == self.options.tools else tools.resolve(chosen)

    def _batch(self) -> Batch:
        options = self._options_now()
        return Batch(
            self.recorder,
            self._tools_now(),
            options,
            turn=self._turn().id,
            message_id=self._turn().message_id,
            session_id=self.session_id,
            cwd=Path(options.cwd or "."),
            env=self._tool_env,
            redactor=self._redactor,
            approvals=self.approvals,
        )

    def _was_interrupted(self, turn: str) -> bool:
        ended = (e for e in self.state.ended.values() if e.turn == turn)
        return any(e.data.get("finish_reason") == "interrupted" for e in ended)

    async def _drop(self, message_ids: list[str]) -> None:
        await self.recorder.record("message_cancelled", {"message_ids": message_ids})
        await self.recorder.barrier()
        for message_id in message_ids:
            self.waiters.resolve(
                message_id, Cancelled(f"message {message_id!r} was taken back before its turn", message_id=message_id)
            )

    def _result(self, message_id: str, ended: Ended) -> Result:
        data = ended.data
        return Result(
            text=data.get("text"),
            finish_reason=data["finish_reason"],
            messages=ended.history,
            session_id=self.session_id,
            message_id=message_id,
            turn=ended.turn,
            usage=Usage.from_map(data.get("usage")),
            cost_usd=data.get("cost_usd"),
            iterations=data.get("iterations", 0),
            tool_calls_made=data.get("tool_calls_made", 0),
            duration_ms=duration_ms(data["started_at"], ended.at) if data.get("started_at") else 0,
            model=data.get("model"),
            provider=data.get("provider"),
            halted_reason=data.get("halted_reason"),
            error=data.get("error"),
        )


_PROVIDER_REASONS = {"unauthorized": "error_provider_auth", "context_length_exceeded": "error_prompt_too_long"}
