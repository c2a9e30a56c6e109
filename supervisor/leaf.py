"""One supervised OS process, whatever it runs: the driver of a :class:`~supervisor.core.SessionCore`.

It carries out the core's effects and feeds it what happens. What a life of the process is, how it is asked to end and
who is told of what, its two kinds say: :class:`~supervisor.keeper.Keeper` and :class:`~supervisor.services.Service`.
No state is compared here to choose an action: that is the core's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, assert_never

from athena.errors import AthenaError, Reason, StartError
from athena.spec_checks import Shutdown
from supervisor import vocabulary as words
from supervisor.core import SessionCore
from supervisor.process import ExitStatus, OsProcess, exit_reason
from supervisor.spec import SessionSpec
from supervisor.vocabulary import State

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Waiters(Generic[T]):
    """Futures that one outcome answers."""

    def __init__(self) -> None:
        self._futures: list[asyncio.Future[T]] = []

    def add(self) -> asyncio.Future[T]:
        """A future for the next outcome."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._futures.append(future)
        return future

    def resolve(self, outcome: T | AthenaError) -> None:
        """Answer all that wait now."""
        futures, self._futures = self._futures, []
        for future in futures:
            if future.done():
                continue
            if isinstance(outcome, AthenaError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


class Leaf(ABC):
    """A process under supervision. ``label`` names it in logs and errors."""

    def __init__(self, spec: SessionSpec, label: str) -> None:
        self.core = SessionCore(spec)
        self.label = label
        self._process: OsProcess | None = None
        self._announced_reason: Reason = None
        """The reason the process itself gave before it ended."""
        self._intended: Reason = None
        """The reason for which we killed it, in this life."""
        self._started: Waiters[None] = Waiters()
        self._removed: Waiters[None] = Waiters()
        self._timers: dict[object, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what others ask

    async def start(self) -> None:
        """Start, and return when the process is ready. Raises what it refused with, or :class:`StartError`."""
        waiter = self._started.add()
        self.feed(words.Start())
        await waiter

    async def stop(self, reason: Reason = "normal", shutdown: Shutdown | None = None) -> None:
        """End it for good and return when nothing of it is left. Raises :class:`~athena.errors.InvalidSpec`."""
        request = words.StopRequested(reason, shutdown)
        if self.core.state in (State.NEW, State.ENDED):
            return
        waiter = self._removed.add()
        self.feed(request)
        await waiter

    def kill(self, reason: Reason) -> None:
        """End this life of it for ``reason``; the restart table says what follows."""
        self.feed(words.KillRequested(self.core.incarnation, reason))

    # --- what a kind of leaf says

    @abstractmethod
    async def _live(self, incarnation: int) -> Reason:
        """One life: launch, feed ``Spawned`` and ``Ready``, wait for the whole tree's end. Returns why it ended."""

    @abstractmethod
    def _ask_to_end(self, reason: Reason) -> None:
        """The polite half of a stop."""

    @abstractmethod
    def _start_error(self, reason: Reason) -> AthenaError:
        """What a caller of :meth:`start` gets."""

    def _on_state(self, state: State, reason: Reason) -> None:
        """It entered a state."""

    def _on_died(self, reason: Reason) -> None:
        """A life is over: once for each."""

    def _on_calls_failed(self, kind: words.CallError, reason: Reason) -> None:
        """Nobody will answer what waits."""

    def _on_removed(self, reason: Reason) -> None:
        """It is gone from the supervisor."""

    # --- the core's effects

    def feed(self, given: words.Input) -> None:
        """Give the core an input and carry out what it says."""
        for effect in self.core.handle(given, time.monotonic()):
            self._carry_out(effect)

    def _carry_out(self, effect: words.Effect) -> None:
        match effect:
            case words.Spawn(incarnation):
                self._spawn_task(self._run_life(incarnation))
            case words.SendShutdown(reason):
                self._ask_to_end(reason)
            case words.Kill(reason):
                self._intended = reason
                if self._process is not None:
                    self._process.kill()
            case words.SetTimer(kind, delay_s, then):
                self._after(delay_s, kind, self.feed, then)
            case words.CancelTimer(kind):
                self._cancel(kind)
            case _:
                self._tell(effect)

    def _tell(self, effect: words.Notice) -> None:
        match effect:
            case words.Announce(state, reason):
                number = self.core.incarnation
                logger.info("%s state=%s incarnation=%d reason=%r", self.label, state.value, number, reason)
                self._on_state(state, reason)
            case words.StartSucceeded():
                self._started.resolve(None)
            case words.StartFailed(reason):
                self._started.resolve(self._start_error(reason))
            case words.Died(_, reason, _):
                self._on_died(reason)
            case words.FailCalls(kind, reason):
                self._on_calls_failed(kind, reason)
            case words.RestartRefused(error):
                self._started.resolve(StartError(f"{self.label} is not failed: {error}", reason=error))
            case words.Removed(reason):
                for handle in self._timers.values():
                    handle.cancel()
                self._timers.clear()
                self._on_removed(reason)
                self._removed.resolve(None)
            case _:
                assert_never(effect)

    async def _run_life(self, incarnation: int) -> None:
        self._announced_reason = None
        try:
            reason = await self._live(incarnation)
        except AthenaError as error:  # it could not be launched
            reason = error.data.get("reason", error.message)
        except Exception as error:  # a fault of ours: without an exit the core would wait for ever, and so would a stop
            logger.exception("%s: its life could not be driven", self.label)
            if self._process is not None and not self._process.is_over:
                self._process.kill()
                await self._process.wait()
            reason = {"error": {"type": type(error).__name__, "message": str(error)}}
        self.feed(words.Exited(incarnation, reason, random.random()))

    def _reason(self, status: ExitStatus) -> Reason:
        """Why the process ended, from its status and what was known before."""
        was_killed = status.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        intended = self._intended if was_killed else None
        return exit_reason(status.si_code, status.si_status, self._announced_reason, intended)

    # --- plumbing

    def _after(self, delay_s: float, key: object, call: Callable[..., None], *args: Any) -> None:
        """Call later, unless :meth:`_cancel` comes first. One timer for each key."""
        self._cancel(key)

        def fire() -> None:
            self._timers.pop(key, None)
            call(*args)

        self._timers[key] = asyncio.get_running_loop().call_later(delay_s, fire)

    def _cancel(self, key: object) -> None:
        handle = self._timers.pop(key, None)
        if handle is not None:
            handle.cancel()

    def _spawn_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("%s: a task failed", self.label, exc_info=task.exception())
