"""A supervisor with a list of children: one_for_one, one_for_all, rest_for_one.

Binding rules: `reference/otp.md` sections 4 (start), 6 and 7 (who is restarted), 9 (restarts that fail), 11 (requests),
12 (automatic shutdown). How a node waits is :mod:`supervisor.node`. Numbers in comments are sections of otp.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import assert_never

from athena.child_spec_rules import ChildId
from athena.errors import InvalidSpec, Reason
from supervisor.child_spec import ChildSpec, parse_child_spec
from supervisor.flags import Strategy, SupervisorFlags
from supervisor.node import Child, Node, Work
from supervisor.restart import should_restart
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
    StartOutcome,
    Target,
    TerminateChildCall,
    WhichChildCall,
    WhichChildrenCall,
)

_NOT_FOUND = Refused("not_found")


class StaticNode(Node):
    """A node whose children have ids and an order. ``specs`` are checked against ``flags`` (see
    :mod:`supervisor.node_init`); the strategy is none of the dynamic ones."""

    def __init__(self, flags: SupervisorFlags, specs: Sequence[ChildSpec] = ()) -> None:
        super().__init__(flags.intensity)
        self.flags = flags
        self._children = {spec.key: Child(spec) for spec in specs}  # in start order (19.5)

    def _all(self) -> Iterable[Child]:
        return self._children.values()

    def _by_pid(self, pid: Pid) -> Child | None:
        return next((child for child in self._all() if child.pid == pid), None)

    # --- start and end

    def _start_all(self) -> Work[Reason]:
        failed = yield from self._start_each(self._all())
        if failed is None:
            return None
        child, reason = failed
        return {"shutdown": {"failed_to_start_child": [child.spec.id, reason]}}

    def _start_each(self, children: Iterable[Child]) -> Work[tuple[Child, Reason] | None]:
        """Start them in order; returns the first that failed, and why, with those after it not started (4, 7)."""
        for child in list(children):
            outcome = yield from self._start(child.spec)
            if isinstance(outcome, StartFailed):
                self._report(ReportKind.START_ERROR, child.spec, None, outcome.reason)
                return child, outcome.reason
            self._place(child, outcome)
        return None

    def _place(self, child: Child, outcome: Started | Ignored) -> None:
        """Note what a start came to. A child that ignores stays without a pid; a temporary one goes (5)."""
        if isinstance(outcome, Started):
            child.pid = outcome.pid
            child.spec = child.spec.to_keep()
            self._children[child.spec.key] = child
        elif child.spec.is_temporary:
            self._children.pop(child.spec.key, None)
        else:
            self._children[child.spec.key] = child

    def _terminate_all(self) -> Work[None]:
        yield from self._terminate_each(self._all())

    def _terminate_each(self, children: Iterable[Child]) -> Work[None]:
        """The last started first, and none is told before the one after it is gone (10)."""
        for child in reversed(list(children)):
            yield from self._terminate([child])
            self._down(child)

    def _down(self, child: Child) -> None:
        """It has no process and no retry any more; a temporary one is forgotten (11)."""
        child.pid = child.retry = None
        if child.spec.is_temporary:
            self._children.pop(child.spec.key)

    # --- a child ended by itself

    def _on_exit(self, pid: Pid, reason: Reason) -> Work[None]:
        child = self._by_pid(pid)
        if child is None:
            return
        self._report_exit(child.spec, pid, reason)
        self._down(child)
        if should_restart(child.spec.restart, reason):
            yield from self._restart(child, pid)
        elif self._ends_the_node(child):
            yield from self._end("shutdown")

    def _on_retry(self, retry: Retry) -> Work[None]:
        # One that was cancelled, or overtaken by a group restart, has a number that no child carries (9).
        child = self._find(retry.child)
        if child is not None and child.retry == retry.number:
            yield from self._restart(child, None)

    def _ends_the_node(self, child: Child) -> bool:
        """Whether the end of ``child``, which is not restarted, ends the supervisor (12)."""
        if not child.spec.significant:
            return False
        if self.flags.auto_shutdown == "all_significant":
            return not any(one.spec.significant and _is_left(one) for one in self._all())
        return True  # any_significant: under never there are none (2)

    def _restart(self, child: Child, pid: Pid | None) -> Work[None]:
        """Restart ``child`` and whom the strategy names with it: one unit of intensity, however many they are (7)."""
        if not self._count_restart(child, pid):
            yield from self._end("shutdown")
            return
        group = self._group(child)
        yield from self._terminate_each(group)
        # Every spec in the range that is left, those that did not run before included (7).
        failed = yield from self._start_each(one for one in group if one.spec.key in self._children)
        if failed is not None:
            self._post_retry(failed[0], failed[0].spec.id)

    def _group(self, child: Child) -> list[Child]:
        children = list(self._all())
        match self.flags.strategy:
            case Strategy.ONE_FOR_ALL:
                return children
            case Strategy.REST_FOR_ONE:
                return children[children.index(child) :]
            case _:
                return [child]

    # --- requests

    def _answer(self, call: Request) -> Work[Answer]:
        match call:
            case StartChildCall(_, spec):
                return (yield from self._start_child(spec))
            case TerminateChildCall(_, target):
                return (yield from self._terminate_child(target))
            case RestartChildCall(_, target):
                return (yield from self._restart_child(target))
            case DeleteChildCall(_, target):
                return self._delete_child(target)
            case GetChildSpecCall(_, target):
                child = self._find(target)
                return _NOT_FOUND if child is None else child.spec.to_map()
            case WhichChildCall(_, target):
                child = self._find(target)
                return _NOT_FOUND if child is None else child.info(child.spec.id)
            case WhichChildrenCall():
                return tuple(child.info(child.spec.id) for child in reversed(list(self._all())))
            case CountChildrenCall():
                return self._count()
            case _:
                assert_never(call)

    def _find(self, target: Target) -> Child | None:
        """By id only: a pid is no id here (11)."""
        return None if isinstance(target, ByPid) else self._children.get(_key(target))

    def _start_child(self, given: object) -> Work[Answer]:
        try:
            spec = parse_child_spec(given, self.flags.auto_shutdown)
        except InvalidSpec as error:
            return Refused(error.tag, error.value, text=error.message)
        known = self._children.get(spec.key)
        if known is not None:
            return Refused("already_present") if known.pid is None else Refused("already_started", known.pid)
        child = Child(spec)
        outcome = yield from self._start(spec)
        return self._started(child, outcome, wrapped=True)

    def _restart_child(self, target: Target) -> Work[Answer]:
        child = self._find(target)
        if child is None:
            return _NOT_FOUND
        if child.retry is not None:
            return Refused("restarting")
        if child.pid is not None:
            return Refused("running")
        outcome = yield from self._start(child.spec)
        return self._started(child, outcome, wrapped=False)

    def _started(self, child: Child, outcome: StartOutcome, *, wrapped: bool) -> Answer:
        """What a manual start came to; a failed one leaves things as they were (5)."""
        match outcome:
            case StartFailed({"already_started": pid}):
                return Refused("already_started", pid)
            case StartFailed(reason):
                return Refused("start_failed", reason, child.spec.to_map() if wrapped else None)
            case Started() | Ignored():
                self._place(child, outcome)
                return outcome
            case _:
                assert_never(outcome)

    def _terminate_child(self, target: Target) -> Work[Answer]:
        child = self._find(target)
        if child is None:
            return _NOT_FOUND
        yield from self._terminate([child])
        self._down(child)  # it stays down until it is asked for, or a group restart revives it (11)
        return None

    def _delete_child(self, target: Target) -> Answer:
        child = self._find(target)
        if child is None:
            return _NOT_FOUND
        if child.retry is not None:
            return Refused("restarting")
        if child.pid is not None:
            return Refused("running")
        del self._children[child.spec.key]
        return None

    def _count(self) -> ChildCounts:
        """``active`` looks whether a process lives, whatever is noted of it; the types count specs (11)."""
        active = sum(child.pid is not None and child.pid not in self._dead for child in self._all())
        supervisors = sum(child.spec.type == "supervisor" for child in self._all())
        return ChildCounts(len(self._children), active, supervisors, len(self._children) - supervisors)


def _is_left(child: Child) -> bool:
    """Running or restarting: a spec without a process does not count (12)."""
    return child.pid is not None or child.retry is not None


def _key(name: ChildId) -> tuple[str, ChildId]:
    return type(name).__name__, name
