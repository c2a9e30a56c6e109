"""The asyncio clients of supervision trees: the methods of :mod:`athena.trees`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from athena import tree_calls as calls
from athena.async_session import perform
from athena.child_specs import ChildId, Spec, dynamic_flags, flags
from athena.errors import AlreadyStarted, NoProcess, ProcessExited, Reason, Unavailable
from athena.pid import Pid
from athena.recovery import ANSWER_S
from athena.session_calls import Call
from athena.supervisors import Target, resolve
from athena.tree_calls import ChildCounts, ChildInfo, Ignored, Started, TreeIdentity
from athena.trees import DynamicSupervisor, Supervisor

T = TypeVar("T")
Self = TypeVar("Self", bound="AsyncTreeHandle")


class AsyncTreeHandle:
    """A handle on one supervisor. See :class:`athena.trees.TreeHandle` for what each method promises."""

    def __init__(self, target: Target, identity: TreeIdentity) -> None:
        self._target = target
        self.pid: Pid = identity.pid
        self.name: str | None = identity.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or repr(self.pid)}>"

    @classmethod
    async def attach(cls: type[Self], target: str | Pid, *, supervisor: str | Path | Target | None = None) -> Self:
        """A handle on a running supervisor by name or pid."""
        at = await asyncio.to_thread(lambda: resolve(supervisor, create=False))
        return cls(at, await perform(at, calls.attach(target), ANSWER_S))

    @classmethod
    async def _start(cls: type[Self], supervisor: str | Path | Target | None, call: Call[TreeIdentity]) -> Self:
        target = await asyncio.to_thread(resolve, supervisor)
        return cls(target, await _perform(target, call, None))

    async def start_child(self, spec: Spec | Sequence[Any]) -> Started | Ignored:
        """Start one more child, and return when it is ready."""
        return await self._do(calls.start_child(self.pid, spec))

    async def terminate_child(self, child: ChildId | Pid) -> None:
        """End a child; it is not restarted."""
        await self._do(calls.terminate_child(self.pid, child))

    async def get_childspec(self, child: ChildId | Pid) -> dict[str, Any]:
        """A child's specification with every default."""
        return await self._do(calls.get_childspec(self.pid, child))

    async def which_child(self, child: ChildId | Pid) -> ChildInfo:
        """One child."""
        return await self._do(calls.which_child(self.pid, child))

    async def which_children(self) -> list[ChildInfo]:
        """All children, the newest first."""
        return await self._do(calls.which_children(self.pid))

    async def count_children(self) -> ChildCounts:
        """How many children there are."""
        return await self._do(calls.count_children(self.pid))

    async def stop(self, reason: Reason = "normal", timeout: float | None = None) -> None:
        """End the children, the last started first, then the supervisor."""
        await self._do(calls.stop(self.pid, reason), timeout)

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        except (NoProcess, ProcessExited, Unavailable):
            pass  # it is gone, which was to be reached

    async def _do(self, call: Call[T], timeout: float | None = None) -> T:
        return await _perform(self._target, call, timeout)


async def _perform(target: Target, call: Call[T], timeout: float | None) -> T:
    try:
        return await perform(target, call, timeout)
    except AlreadyStarted as error:
        raise calls.with_pid(error) from None


class AsyncSupervisor(AsyncTreeHandle):
    """A supervisor with a list of children. See :class:`athena.trees.Supervisor`."""

    child_spec = staticmethod(Supervisor.child_spec)

    @classmethod
    async def start_link(
        cls,
        children: Sequence[Spec],
        *,
        strategy: str = "one_for_one",
        max_restarts: int = 3,
        max_seconds: float = 5,
        auto_shutdown: str = "never",
        name: str | None = None,
        supervisor: str | Path | Target | None = None,
    ) -> AsyncSupervisor:
        """Start a supervisor and its children, linked to this program."""
        given = flags(strategy, max_restarts, max_seconds, auto_shutdown)
        return await cls._start(supervisor, calls.start(given, children, name, link=True))

    @classmethod
    async def start(
        cls,
        children: Sequence[Spec],
        *,
        strategy: str = "one_for_one",
        max_restarts: int = 3,
        max_seconds: float = 5,
        auto_shutdown: str = "never",
        name: str | None = None,
        supervisor: str | Path | Target | None = None,
    ) -> AsyncSupervisor:
        """As :meth:`start_link`, but it lives on in the daemon when this program ends."""
        given = flags(strategy, max_restarts, max_seconds, auto_shutdown)
        return await cls._start(supervisor, calls.start(given, children, name, link=False))

    async def restart_child(self, child: ChildId) -> Started | Ignored:
        """Start a child that does not run."""
        return await self._do(calls.restart_child(self.pid, child))

    async def delete_child(self, child: ChildId) -> None:
        """Forget a child that does not run."""
        await self._do(calls.delete_child(self.pid, child))


class AsyncDynamicSupervisor(AsyncTreeHandle):
    """A supervisor whose children come and go. See :class:`athena.trees.DynamicSupervisor`."""

    child_spec = staticmethod(DynamicSupervisor.child_spec)

    @classmethod
    async def start_link(
        cls,
        *,
        max_children: int | None = None,
        extra_arguments: Sequence[Any] = (),
        max_restarts: int = 3,
        max_seconds: float = 5,
        name: str | None = None,
        supervisor: str | Path | Target | None = None,
    ) -> AsyncDynamicSupervisor:
        """Start one without children, linked to this program."""
        given = dynamic_flags(max_children, extra_arguments, max_restarts, max_seconds)
        return await cls._start(supervisor, calls.start(given, None, name, link=True))

    @classmethod
    async def start(
        cls,
        *,
        max_children: int | None = None,
        extra_arguments: Sequence[Any] = (),
        max_restarts: int = 3,
        max_seconds: float = 5,
        name: str | None = None,
        supervisor: str | Path | Target | None = None,
    ) -> AsyncDynamicSupervisor:
        """As :meth:`start_link`, but it lives on in the daemon when this program ends."""
        given = dynamic_flags(max_children, extra_arguments, max_restarts, max_seconds)
        return await cls._start(supervisor, calls.start(given, None, name, link=False))
