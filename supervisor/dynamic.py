"""Supervisors whose children come and go: OTP's simple_one_for_one and Elixir's DynamicSupervisor.

Binding rules: `reference/otp.md` section 13 (the differences), 9 (an entry that is restarting keeps its old pid), 10
(all children end at once), 11 (requests). Numbers in comments are sections of otp.md.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, assert_never

from athena.child_spec_rules import ChildId, as_json
from athena.errors import InvalidSpec, Reason
from supervisor.child_spec import ChildSpec, parse_dynamic_spec
from supervisor.flags import DynamicFlags, SupervisorFlags
from supervisor.node import Child, Node, Work
from supervisor.restart import Intensity, is_clean, should_restart
from supervisor.tree_vocabulary import (
    Answer,
    ByPid,
    ChildCounts,
    CountChildrenCall,
    DeleteChildCall,
    GetChildSpecCall,
    Ignored,
    Pid,
    Refused,
    ReportKind,
    Request,
    RestartChildCall,
    Retry,
    StartChildCall,
    Started,
    StartFailed,
    Target,
    TerminateChildCall,
    WhichChildCall,
    WhichChildrenCall,
)

_NOT_FOUND = Refused("not_found")


class _PoolNode(Node):
    """What both kinds share: children are known by pid, restarted alone and terminated together."""

    def __init__(self, intensity: Intensity) -> None:
        super().__init__(intensity)
        self._children: dict[ChildId, Child] = {}  # by the pid, or by the last one while it is restarting (9)

    def _all(self) -> Iterable[Child]:
        return self._children.values()

    def _by_pid(self, pid: Pid) -> Child | None:
        child = self._children.get(pid)
        return None if child is None or child.pid is None else child

    def _start_all(self) -> Work[Reason]:
        """It begins with no children."""
        yield from ()  # a generator all the same: what may wait is one, whether or not it does
        return None

    def _terminate_all(self) -> Work[None]:
        yield from self._terminate(self._all())
        self._children.clear()

    def _is_expected(self, spec: ChildSpec, reason: Reason) -> bool:
        """``{"shutdown": T}`` is silent here for permanent children too (13)."""
        is_explained = isinstance(reason, dict) and is_clean(reason)
        return is_explained or super()._is_expected(spec, reason)

    def _on_exit(self, pid: Pid, reason: Reason) -> Work[None]:
        child = self._by_pid(pid)
        if child is None:
            return
        self._report_exit(child.spec, pid, reason)
        child.pid = None
        if should_restart(child.spec.restart, reason):
            yield from self._restart(child, pid, pid)
        else:
            del self._children[pid]

    def _on_retry(self, retry: Retry) -> Work[None]:
        child = self._children.get(retry.child)
        if child is not None and child.retry == retry.number:  # else terminate_child of the old pid cancelled it
            yield from self._restart(child, retry.child, None)

    def _restart(self, child: Child, key: ChildId, pid: Pid | None) -> Work[None]:
        """Start the same again; until that is done it keeps the ``key`` of the process that died."""
        child.retry = None
        if not self._count_restart(child, pid):
            yield from self._end("shutdown")
            return
        outcome = yield from self._start(child.spec)
        if isinstance(outcome, StartFailed):
            self._report(ReportKind.START_ERROR, child.spec, pid, outcome.reason)
            self._post_retry(child, key)
            return
        del self._children[key]  # one that now ignores is dropped: it has nothing to be known by (5)
        if isinstance(outcome, Started):
            self._add(child.spec, outcome.pid)

    def _add(self, spec: ChildSpec, pid: Pid) -> None:
        self._children[pid] = Child(spec.to_keep(), pid)

    # --- requests

    def _answer(self, call: Request) -> Work[Answer]:
        match call:
            case StartChildCall(_, given):
                return (yield from self._start_child(given))
            case TerminateChildCall(_, target):
                return (yield from self._terminate_child(target))
            case RestartChildCall() | DeleteChildCall():
                return self._no_such_request()
            case GetChildSpecCall(_, target):
                return self._get_childspec(target)
            case WhichChildCall(_, target):
                return self._which_child(target)
            case WhichChildrenCall():
                return tuple(child.info(None) for child in reversed(list(self._all())))
            case CountChildrenCall():
                return self._count()
            case _:
                assert_never(call)

    @abstractmethod
    def _start_child(self, given: object) -> Work[Answer]:
        """Check, and start one more."""

    @abstractmethod
    def _no_such_request(self) -> Refused:
        """The answer to what needs an id."""

    @abstractmethod
    def _get_childspec(self, target: Target) -> Answer:
        """The spec of one child."""

    @abstractmethod
    def _count(self) -> ChildCounts:
        """The answer to ``count_children``."""

    def _start_one(self, spec: ChildSpec) -> Work[Answer]:
        outcome = yield from self._start(spec)
        match outcome:
            case Started(pid):
                self._add(spec, pid)
                return outcome
            case Ignored():
                return outcome
            case StartFailed({"already_started": pid}):
                return Refused("already_started", pid)
            case StartFailed(reason):
                return Refused("start_failed", reason)
            case _:
                assert_never(outcome)

    def _terminate_child(self, target: Target) -> Work[Answer]:
        if not isinstance(target, ByPid):
            return self._no_such_request()
        child = self._children.get(target.pid)
        if child is None:
            return self._terminate_stranger(target)
        yield from self._terminate([child])
        del self._children[target.pid]
        return None

    def _terminate_stranger(self, _target: ByPid) -> Answer:
        return _NOT_FOUND

    def _which_child(self, target: Target) -> Answer:
        if not isinstance(target, ByPid):
            return self._no_such_request()
        child = self._children.get(target.pid)
        return _NOT_FOUND if child is None else child.info(None)

    def _active(self) -> int:
        return sum(child.pid is not None for child in self._all())


class SimpleNode(_PoolNode):
    """OTP's simple_one_for_one: one template, and instances of it with further arguments each."""

    def __init__(self, flags: SupervisorFlags, template: ChildSpec) -> None:
        super().__init__(flags.intensity)
        self.flags = flags
        self.template = template

    def _start_child(self, given: object) -> Work[Answer]:
        if not isinstance(given, list | tuple):
            return Refused("badarg", as_json(given))
        spec = self.template
        return (yield from self._start_one(replace(spec, args=_joined(spec.args or (), given))))

    def _no_such_request(self) -> Refused:
        return Refused("simple_one_for_one")

    def _terminate_stranger(self, target: ByPid) -> Answer:
        """Of any dead process it is ok: it may have been a child (11)."""
        return _NOT_FOUND if self._is_alive(target) else None

    def _get_childspec(self, target: Target) -> Answer:
        """The template, by a child's pid, by any dead pid, and by its own id."""
        if isinstance(target, ByPid):
            is_ours = target.pid in self._children or not self._is_alive(target)
        else:
            is_ours = (type(target), target) == (type(self.template.id), self.template.id)
        return self.template.to_map() if is_ours else _NOT_FOUND

    def _count(self) -> ChildCounts:
        """One spec; its type counts the instances, those that are restarting included (11)."""
        instances = len(self._children)
        supervisors = instances if self.template.type == "supervisor" else 0
        return ChildCounts(1, self._active(), supervisors, instances - supervisors)


class DynamicNode(_PoolNode):
    """Elixir's DynamicSupervisor: a spec for each child, a limit on their number, arguments before their own."""

    def __init__(self, flags: DynamicFlags) -> None:
        super().__init__(flags.intensity)
        self.flags = flags

    def _start_child(self, given: object) -> Work[Answer]:
        try:
            spec = parse_dynamic_spec(given)
        except InvalidSpec as error:
            return Refused(error.tag, error.value, text=error.message)
        # Children that are restarting have their slot (13); it is asked before anything is started.
        if self.flags.max_children is not None and len(self._children) >= self.flags.max_children:
            return Refused("max_children")
        extra = self.flags.extra_arguments
        return (yield from self._start_one(replace(spec, args=_joined(extra, spec.args or ()))))

    def _no_such_request(self) -> Refused:
        """Ids mean nothing here, so nothing is found by one."""
        return _NOT_FOUND

    def _get_childspec(self, target: Target) -> Answer:
        if not isinstance(target, ByPid):
            return _NOT_FOUND
        child = self._children.get(target.pid)
        return _NOT_FOUND if child is None else child.spec.to_map()

    def _count(self) -> ChildCounts:
        """One spec for each child; all types count, those that are restarting included (11)."""
        supervisors = sum(child.spec.type == "supervisor" for child in self._all())
        return ChildCounts(len(self._children), self._active(), supervisors, len(self._children) - supervisors)


def _joined(first: Iterable[Any], then: Iterable[Any]) -> tuple[Any, ...]:
    return (*first, *then)
