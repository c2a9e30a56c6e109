"""The asyncio clients of supervision trees: the methods of :mod:`athena.trees`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar, TypeVar, Unpack, overload

from athena import tree_calls as calls
from athena.async_connections import or_undone, perform
from athena.child_specs import ChildId, DynamicFlags, Flags, Kind, Spec
from athena.errors import NoProcess, ProcessExited, Reason, Unavailable
from athena.pid import Pid
from athena.recovery import ANSWER_S
from athena.session_calls import Call, check_timeout
from athena.supervisors import Target, resolve
from athena.tree_calls import ChildCounts, ChildInfo, Ignored, Started, TreeIdentity
from athena.trees import At, DynamicSupervisor, Supervisor

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
    async def attach(cls: type[Self], target: str | Pid, *, supervisor: At = None) -> Self:
        """A handle on a running supervisor by name or pid."""
        at = await asyncio.to_thread(lambda: resolve(supervisor, create=False))
        return cls(at, await perform(at, calls.attach(target), ANSWER_S))

    @classmethod
    async def _begin(
        cls: type[Self], given: Sequence[Any], options: dict[str, Any], *, name: str | None, link: bool, supervisor: At
    ) -> Self | Ignored:
        call = calls.begin(cls, given, options, name=name, link=link)
        target = await asyncio.to_thread(resolve, supervisor)
        starting = asyncio.create_task(perform(target, call, None))
        identity = await or_undone(starting, lambda made: _undo(target, made))
        return identity if isinstance(identity, Ignored) else cls(target, identity)

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
        check_timeout(timeout)
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
        return await perform(self._target, call, timeout)


async def _undo(target: Target, made: TreeIdentity | Ignored) -> None:
    if not isinstance(made, Ignored):
        await perform(target, calls.stop(made.pid, "shutdown"), None)


class AsyncSupervisor(AsyncTreeHandle):
    """A supervisor with a list of children. See :class:`athena.trees.Supervisor`."""

    supervisor_kind: ClassVar[Kind] = "static"
    spec = staticmethod(Supervisor.spec)

    @overload
    @classmethod
    async def start_link(
        cls: type[Self],
        children: Sequence[Spec],
        *,
        name: str | None = None,
        supervisor: At = None,
        **flags: Unpack[Flags],
    ) -> Self: ...

    @overload
    @classmethod
    async def start_link(
        cls: type[Self], *args: Any, name: str | None = None, supervisor: At = None, **kwargs: Any
    ) -> Self | Ignored: ...

    @classmethod
    async def start_link(cls, *given: Any, name: str | None = None, supervisor: At = None, **options: Any) -> Any:
        """Start a supervisor and its children, linked to this program."""
        return await cls._begin(given, options, name=name, link=True, supervisor=supervisor)

    @overload
    @classmethod
    async def start(
        cls: type[Self],
        children: Sequence[Spec],
        *,
        name: str | None = None,
        supervisor: At = None,
        **flags: Unpack[Flags],
    ) -> Self: ...

    @overload
    @classmethod
    async def start(
        cls: type[Self], *args: Any, name: str | None = None, supervisor: At = None, **kwargs: Any
    ) -> Self | Ignored: ...

    @classmethod
    async def start(cls, *given: Any, name: str | None = None, supervisor: At = None, **options: Any) -> Any:
        """As :meth:`start_link`, but it lives on in the daemon when this program ends."""
        return await cls._begin(given, options, name=name, link=False, supervisor=supervisor)

    @classmethod
    def child_spec(cls, *given: Any, id: ChildId = None, name: str | None = None, **fields: Any) -> dict[str, Any]:
        """The specification of a supervisor as a child of another."""
        return calls.supervisor_child(cls, given, id=id, name=name, fields=fields)

    async def restart_child(self, child: ChildId) -> Started | Ignored:
        """Start a child that does not run."""
        return await self._do(calls.restart_child(self.pid, child))

    async def delete_child(self, child: ChildId) -> None:
        """Forget a child that does not run."""
        await self._do(calls.delete_child(self.pid, child))


class AsyncDynamicSupervisor(AsyncTreeHandle):
    """A supervisor whose children come and go. See :class:`athena.trees.DynamicSupervisor`."""

    supervisor_kind: ClassVar[Kind] = "dynamic"
    spec = staticmethod(DynamicSupervisor.spec)

    @overload
    @classmethod
    async def start_link(
        cls: type[Self], *, name: str | None = None, supervisor: At = None, **flags: Unpack[DynamicFlags]
    ) -> Self: ...

    @overload
    @classmethod
    async def start_link(
        cls: type[Self], *args: Any, name: str | None = None, supervisor: At = None, **kwargs: Any
    ) -> Self | Ignored: ...

    @classmethod
    async def start_link(cls, *given: Any, name: str | None = None, supervisor: At = None, **options: Any) -> Any:
        """Start one without children, linked to this program."""
        return await cls._begin(given, options, name=name, link=True, supervisor=supervisor)

    @overload
    @classmethod
    async def start(
        cls: type[Self], *, name: str | None = None, supervisor: At = None, **flags: Unpack[DynamicFlags]
    ) -> Self: ...

    @overload
    @classmethod
    async def start(
        cls: type[Self], *args: Any, name: str | None = None, supervisor: At = None, **kwargs: Any
    ) -> Self | Ignored: ...

    @classmethod
    async def start(cls, *given: Any, name: str | None = None, supervisor: At = None, **options: Any) -> Any:
        """As :meth:`start_link`, but it lives on in the daemon when this program ends."""
        return await cls._begin(given, options, name=name, link=False, supervisor=supervisor)

    @classmethod
    def child_spec(cls, *given: Any, id: ChildId = None, name: str | None = None, **fields: Any) -> dict[str, Any]:
        """The specification of a dynamic supervisor as a child of another."""
        return calls.supervisor_child(cls, given, id=id, name=name, fields=fields)

    async def start_child(self, spec: Spec | Sequence[Any]) -> Started | Ignored:
        """Start one more child. A wrong specification is refused here, without asking the supervisor."""
        return await self._do(calls.start_dynamic_child(self.pid, spec))
