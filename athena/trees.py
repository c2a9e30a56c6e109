"""Supervision trees: children that a supervisor starts in order, restarts, and ends in reverse order, as in OTP.

Its asyncio twin is :mod:`athena.async_trees`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeAlias, TypeVar, Unpack, overload

from athena import tree_calls as calls
from athena.child_specs import ChildId, DynamicFlags, Flags, Kind, Spec, dynamic_flags
from athena.errors import NoProcess, ProcessExited, Reason, Unavailable
from athena.pid import Pid
from athena.recovery import ANSWER_S, perform
from athena.session_calls import Call, check_timeout
from athena.supervisors import Target, resolve
from athena.tree_calls import ChildCounts, ChildInfo, Ignored, Started, TreeIdentity

At: TypeAlias = str | Path | Target | None
"""Which daemon."""

T = TypeVar("T")
Self = TypeVar("Self", bound="TreeHandle")


class TreeHandle:
    """A handle on one supervisor. ``pid`` is a logical one: it names this supervisor, and no OS process.

    After the supervisor's end every call raises :class:`~athena.errors.NoProcess`; one that waits when it ends raises
    :class:`~athena.errors.ProcessExited`. Calls wait while the supervisor is busy: it does one thing at a time.
    """

    def __init__(self, target: Target, identity: TreeIdentity) -> None:
        self._target = target
        self.pid: Pid = identity.pid
        self.name: str | None = identity.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or repr(self.pid)}>"

    @classmethod
    def attach(cls: type[Self], target: str | Pid, *, supervisor: At = None) -> Self:
        """A handle on a running supervisor by name or pid.

        Raises :class:`~athena.errors.NoProcess`, and :class:`~athena.errors.Unavailable` if there is no daemon.
        """
        at = resolve(supervisor, create=False)
        return cls(at, perform(at, calls.attach(target), ANSWER_S))

    @classmethod
    def _begin(
        cls: type[Self], given: Sequence[Any], options: dict[str, Any], *, name: str | None, link: bool, supervisor: At
    ) -> Self | Ignored:
        call = calls.begin(cls, given, options, name=name, link=link)
        target = resolve(supervisor)
        identity = perform(target, call, None)
        return identity if isinstance(identity, Ignored) else cls(target, identity)

    def start_child(self, spec: Spec | Sequence[Any]) -> Started | Ignored:
        """Start one more child, and return when it is ready.

        Under the strategy ``simple_one_for_one`` a list of further arguments is given instead of a specification.
        Raises :class:`~athena.errors.InvalidSpec`, :class:`~athena.errors.AlreadyStarted` (with the ``pid``),
        :class:`~athena.errors.AlreadyPresent`, :class:`~athena.errors.MaxChildren`,
        :class:`~athena.errors.StartError` (with the ``reason``).
        """
        return self._do(calls.start_child(self.pid, spec))

    def terminate_child(self, child: ChildId | Pid) -> None:
        """End a child, by id, or by pid where ids have no meaning. Not restarted. Raises
        :class:`~athena.errors.NotFound`."""
        self._do(calls.terminate_child(self.pid, child))

    def get_childspec(self, child: ChildId | Pid) -> dict[str, Any]:
        """A child's specification with every default. Raises :class:`~athena.errors.NotFound`."""
        return self._do(calls.get_childspec(self.pid, child))

    def which_child(self, child: ChildId | Pid) -> ChildInfo:
        """One child. Raises :class:`~athena.errors.NotFound`."""
        return self._do(calls.which_child(self.pid, child))

    def which_children(self) -> list[ChildInfo]:
        """All children, the newest first."""
        return self._do(calls.which_children(self.pid))

    def count_children(self) -> ChildCounts:
        """How many children there are."""
        return self._do(calls.count_children(self.pid))

    def stop(self, reason: Reason = "normal", timeout: float | None = None) -> None:
        """End the children, the last started first, then the supervisor; return when nothing of it is left.

        ``timeout`` (seconds) ends the wait, not the stop. Raises :class:`~athena.errors.NoProcess`,
        :class:`~athena.errors.ProcessExited` if it ended for another reason, :class:`~athena.errors.CallTimeout`.
        """
        check_timeout(timeout)
        self._do(calls.stop(self.pid, reason), timeout)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.stop()
        except (NoProcess, ProcessExited, Unavailable):
            pass  # it is gone, which was to be reached

    def _do(self, call: Call[T], timeout: float | None = None) -> T:
        return perform(self._target, call, timeout)


class Supervisor(TreeHandle):
    """A supervisor with a list of children.

    The list is given to :meth:`start_link`; or a class of your own makes it, in a short-lived process before each start
    and restart of the supervisor:

    ```python
    class Crew(Supervisor):
        def init(self, topic):
            return self.spec([ChildSpec("feed", "feed:watch", args=[topic])], strategy="rest_for_one")


    crew = Crew.start_link("owls", name="crew")
    ```

    ``init``, plain or ``async def``, returns what :meth:`spec` makes, or :class:`~athena.Ignore`. A supervisor that is
    started again begins with what ``init`` returns then: children that were added meanwhile are gone.
    """

    supervisor_kind: ClassVar[Kind] = "static"

    @overload
    @classmethod
    def start_link(
        cls: type[Self],
        children: Sequence[Spec],
        *,
        name: str | None = None,
        supervisor: At = None,
        **flags: Unpack[Flags],
    ) -> Self: ...

    @overload
    @classmethod
    def start_link(
        cls: type[Self], *args: Any, name: str | None = None, supervisor: At = None, **kwargs: Any
    ) -> Self | Ignored: ...

    @classmethod
    def start_link(cls, *given: Any, name: str | None = None, supervisor: At = None, **options: Any) -> Any:
        """Start a supervisor and its children, one after another, linked to this program: it ends with it.

        Args:
            given: the children: :class:`~athena.ChildSpec`, mappings, and what ``child_spec`` makes. For a class with
                ``init`` the arguments of that, and then ``options`` are its keyword arguments.
            name: to attach by.
            supervisor: which daemon; see :meth:`athena.Session.start_link`.
            options: ``strategy``: who is restarted with a child that died: ``"one_for_one"`` nobody else,
                ``"one_for_all"`` all, ``"rest_for_one"`` those after it. ``"simple_one_for_one"``: one specification,
                any number of instances. ``max_restarts=3``, ``max_seconds=5``: more restarts inside that many seconds
                end the supervisor with ``shutdown``. ``auto_shutdown="never"``: ``"any_significant"`` or
                ``"all_significant"`` children's end ends the supervisor.

        Returns the handle, or :class:`~athena.Ignored` if ``init`` wants no supervisor.

        Raises :class:`~athena.errors.StartError` (its ``reason`` says which specification is wrong, or which child
        failed to start) and :class:`~athena.errors.AlreadyStarted`; nothing is left behind then.
        """
        return cls._begin(given, options, name=name, link=True, supervisor=supervisor)

    @overload
    @classmethod
    def start(
        cls: type[Self],
        children: Sequence[Spec],
        *,
        name: str | None = None,
        supervisor: At = None,
        **flags: Unpack[Flags],
    ) -> Self: ...

    @overload
    @classmethod
    def start(
        cls: type[Self], *args: Any, name: str | None = None, supervisor: At = None, **kwargs: Any
    ) -> Self | Ignored: ...

    @classmethod
    def start(cls, *given: Any, name: str | None = None, supervisor: At = None, **options: Any) -> Any:
        """As :meth:`start_link`, but it lives on in the daemon when this program ends."""
        return cls._begin(given, options, name=name, link=False, supervisor=supervisor)

    @classmethod
    def child_spec(cls, *given: Any, id: ChildId = None, name: str | None = None, **fields: Any) -> dict[str, Any]:
        """The specification of a supervisor as a child of another.

        ``given`` is as for :meth:`start_link`. ``fields``: ``restart``, ``shutdown``, ``significant``; with a list of
        children also its options, with ``init`` all fields of :class:`~athena.ChildSpec`.
        """
        return calls.supervisor_child(cls, given, id=id, name=name, fields=fields)

    @staticmethod
    def spec(children: Sequence[Spec], **flags: Unpack[Flags]) -> Any:
        """What ``init`` returns; the options of :meth:`start_link`."""
        return calls.static_spec(children, **flags)

    def restart_child(self, child: ChildId) -> Started | Ignored:
        """Start a child that does not run. Raises :class:`~athena.errors.NotFound`, :class:`~athena.errors.Running`,
        :class:`~athena.errors.Restarting`, :class:`~athena.errors.StartError`."""
        return self._do(calls.restart_child(self.pid, child))

    def delete_child(self, child: ChildId) -> None:
        """Forget a child that does not run. Raises :class:`~athena.errors.NotFound`,
        :class:`~athena.errors.Running`, :class:`~athena.errors.Restarting`."""
        self._do(calls.delete_child(self.pid, child))


class DynamicSupervisor(TreeHandle):
    """A supervisor whose children come and go, named by their pids. A class of your own may have an ``init``, as that
    of a :class:`Supervisor`; what it returns is :meth:`spec` without children."""

    supervisor_kind: ClassVar[Kind] = "dynamic"

    @overload
    @classmethod
    def start_link(
        cls: type[Self], *, name: str | None = None, supervisor: At = None, **flags: Unpack[DynamicFlags]
    ) -> Self: ...

    @overload
    @classmethod
    def start_link(
        cls: type[Self], *args: Any, name: str | None = None, supervisor: At = None, **kwargs: Any
    ) -> Self | Ignored: ...

    @classmethod
    def start_link(cls, *given: Any, name: str | None = None, supervisor: At = None, **options: Any) -> Any:
        """Start one without children, linked to this program.

        Args:
            given: for a class with ``init`` the arguments of that, and then ``options`` are its keyword arguments.
            name, supervisor: as for :meth:`Supervisor.start_link`, whose errors it raises.
            options: ``max_children``: how many it takes, those that are being restarted included.
                ``extra_arguments``: come before the arguments of every child. ``max_restarts``, ``max_seconds``.
        """
        return cls._begin(given, options, name=name, link=True, supervisor=supervisor)

    @overload
    @classmethod
    def start(
        cls: type[Self], *, name: str | None = None, supervisor: At = None, **flags: Unpack[DynamicFlags]
    ) -> Self: ...

    @overload
    @classmethod
    def start(
        cls: type[Self], *args: Any, name: str | None = None, supervisor: At = None, **kwargs: Any
    ) -> Self | Ignored: ...

    @classmethod
    def start(cls, *given: Any, name: str | None = None, supervisor: At = None, **options: Any) -> Any:
        """As :meth:`start_link`, but it lives on in the daemon when this program ends."""
        return cls._begin(given, options, name=name, link=False, supervisor=supervisor)

    @classmethod
    def child_spec(cls, *given: Any, id: ChildId = None, name: str | None = None, **fields: Any) -> dict[str, Any]:
        """The specification of a dynamic supervisor as a child of another; as :meth:`Supervisor.child_spec`."""
        return calls.supervisor_child(cls, given, id=id, name=name, fields=fields)

    @staticmethod
    def spec(**flags: Unpack[DynamicFlags]) -> Any:
        """What ``init`` returns; the options of :meth:`start_link`."""
        return dynamic_flags(**flags)

    def start_child(self, spec: Spec | Sequence[Any]) -> Started | Ignored:
        """As :meth:`TreeHandle.start_child`. A wrong specification is refused here, without asking the supervisor."""
        return self._do(calls.start_dynamic_child(self.pid, spec))


def list_trees(*, supervisor: At = None) -> list[dict[str, Any]]:
    """Every tree of a daemon as it is now, with states, pids, restarts and reasons; answered while it is busy."""
    return perform(resolve(supervisor, create=False), calls.list_trees(), ANSWER_S)
