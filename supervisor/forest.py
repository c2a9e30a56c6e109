"""All supervision trees of one daemon: their roots in the order they were started, and their names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from athena.child_spec_rules import as_json
from athena.errors import AlreadyStarted, NoProcess, StartError
from supervisor.branch import Branch
from supervisor.child_spec import ChildSpec
from supervisor.class_branch import ClassBranch
from supervisor.keeper import Supervision
from supervisor.member import Caller, Member, label_of
from supervisor.node import Node
from supervisor.node_init import dynamic_node, supervisor_node
from supervisor.solo import Solo
from supervisor.tree_answers import start_error
from supervisor.tree_function import Function
from supervisor.tree_process import Program
from supervisor.tree_session import SessionMember, TreeKeeper, session_request
from supervisor.tree_vocabulary import Ignored, Started, StartFailed, StartOutcome

logger = logging.getLogger(__name__)


class Forest:
    """The trees of one daemon. ``on_gone`` is told of each root that has ended."""

    def __init__(self, around: Supervision, on_gone: Callable[[Branch], None]) -> None:
        self.around = around
        self.roots: dict[int, Branch] = {}
        self.solos: dict[int, Solo] = {}
        self._on_gone = on_gone
        self._ends: set[asyncio.Task[None]] = set()

    # --- what the daemon and its clients ask

    async def start(self, node: Node, name: str | None, caller: Caller, link: Callable[[Branch], None]) -> Branch:
        """Start a tree; returns when all of it is started. ``link`` is called with the root before that.

        Raises :class:`AlreadyStarted` and :class:`StartError`; nothing of it is left then.
        """
        root = self._branch(node, name, None if name is None else label_of(None, name), caller)
        await self._start_root(root, link)
        return root

    async def start_class(
        self, spec: ChildSpec, name: str | None, caller: Caller, link: Callable[[Branch], None]
    ) -> Branch | None:
        """Start a tree whose class says what it is; ``None`` if it wants none. Otherwise as :meth:`start`."""
        caller = caller.for_child(spec.options)
        label = None if name is None else label_of(None, name)
        root = ClassBranch(spec, label, name, caller, self)
        return None if isinstance(await self._start_root(root, link), Ignored) else root

    async def _start_root(self, root: Branch, link: Callable[[Branch], None]) -> StartOutcome:
        name = root.name
        taken = None if name is None else self.around.processes.names.get(name)
        if taken is not None:
            pid = self.around.processes.pid_value(taken)
            raise AlreadyStarted(f"a process of the name {name!r} is already running", pid=pid)
        self.roots[root.serial] = root
        link(root)
        outcome = await root.start()
        if isinstance(outcome, StartFailed):
            self._forget(root)
            raise start_error(root.label, outcome.reason)
        if isinstance(outcome, Ignored):
            self._forget(root)
        else:
            self._watch(self._see_end(root), f"the end of {root.label}")
        return outcome

    async def start_server(self, spec: ChildSpec, caller: Caller, parent: int | None) -> tuple[Function, StartOutcome]:
        """Start a server that no supervisor has, linked to a process if there is a ``parent``."""
        leaf = Function(spec, label_of("server", spec.id), caller.for_child(spec.options), self.around)
        if leaf.name is None:
            leaf.label = label_of("server", f"{spec.id}-{leaf.serial}")  # two of a class have a log file each
        solo = self.solos[leaf.serial] = Solo(leaf, spec.shutdown)
        leaf.parent = parent
        leaf.on_parent_exit = lambda reason: self._watch(solo.stop(reason), f"the stop of {leaf.label}")
        outcome: StartOutcome | None = None
        try:
            outcome = await leaf.start()
        finally:
            if not isinstance(outcome, Started):
                self._forget_solo(solo)
            solo.has_begun.set()
        if isinstance(outcome, Started):
            self._watch(self._see_solo_end(solo), f"the end of {leaf.label}")
        return leaf, outcome

    async def stop(self) -> None:
        """End all trees, the last started first, and the servers that are in none."""
        await settled(*(solo.stop() for solo in list(self.solos.values())))
        while self.roots:
            root = self.roots[max(self.roots)]
            await settled(root.stop())
            self.roots.pop(root.serial, None)

    def find(self, target: object, serial: object = None) -> Branch:
        """The supervisor of this name, or of this serial. Raises :class:`NoProcess`."""
        if isinstance(target, str):
            serial = self.around.processes.names.get(target)
        found = self.around.processes.get(serial) if isinstance(serial, int) else None
        if not isinstance(found, Branch):
            raise NoProcess(
                f"no supervisor {target!r} is running" if target else "the supervisor has ended", target=target
            )
        return found

    def branches(self) -> list[Branch]:
        """Every supervisor, each after its parent."""
        found = list(self.roots.values())
        for branch in found:
            found += [member for member in branch.members.values() if isinstance(member, Branch)]
        return found

    # --- what branches need

    def member(self, spec: ChildSpec, parent: Branch) -> Member:
        """The child that a specification describes, not started yet. Raises :class:`StartError`."""
        label, caller = label_of(parent.label, spec.id), parent.caller.for_child(spec.options)
        match spec.start:
            case str() if spec.type == "supervisor":
                return ClassBranch(spec, label, _name(spec.options), caller, self, parent=parent)
            case str():
                return Function(spec, label, caller, self.around)
            case tuple():
                return Program(spec, label, caller, self.around)
            case {"supervisor": {"flags": flags, "children": children, **rest}}:
                return self._branch(supervisor_node(flags, children), _name(rest), label, caller)
            case {"dynamic_supervisor": {"flags": flags, **rest}}:
                return self._branch(dynamic_node(flags), _name(rest), label, caller)
            case {"session": {"spec": {"session_id": str()}, "init": str()} as given}:
                return SessionMember(self._keeper(given, spec, parent), label, self.around.supervisor_id)
            case {"registry": dict(given)}:
                return self.around.registries.make(given, label)
            case _:
                keys = sorted(map(str, spec.start))  # what is in it may be secret, an environment for example
                reason = {"invalid_mfa": as_json(keys)}
                raise StartError(f"{label} cannot be started: unknown start with {', '.join(keys)}", reason=reason)

    def _branch(self, node: Node, name: str | None, label: str | None, caller: Caller) -> Branch:
        branch = Branch(node, label or "", name, caller, self)
        if label is None:
            branch.label = f"{self.around.supervisor_id}-{branch.serial}"
        return branch

    def _keeper(self, given: Mapping[Any, Any], spec: ChildSpec, parent: Branch) -> TreeKeeper:
        """The session of that child: the one that waits for its next life, or a new one."""
        request = session_request(given, spec, self.around)
        keeper = parent.sessions.get(request.session_id)
        if keeper is not None and keeper.is_down:
            return keeper
        check_name_is_free(self.around, request.name, request.session_id)
        keeper = TreeKeeper(request, self.around)
        self.around.registry.add(keeper)
        parent.sessions[request.session_id] = keeper
        return keeper

    def _watch(self, end: Coroutine[Any, Any, None], label: str) -> None:
        task = asyncio.create_task(end, name=label)
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    async def _see_solo_end(self, solo: Solo) -> None:
        await solo.leaf.wait()
        self._forget_solo(solo)

    def _forget_solo(self, solo: Solo) -> None:
        self.solos.pop(solo.leaf.serial, None)

    async def _see_end(self, root: Branch) -> None:
        await root.wait()
        self._forget(root)

    def _forget(self, root: Branch) -> None:
        self.roots.pop(root.serial, None)
        self._on_gone(root)


def check_name_is_free(around: Supervision, *names: str | None) -> None:
    """Raise :class:`AlreadyStarted` if a process that is no session has one of these names."""
    for name in names:
        holder = None if name is None else around.processes.names.get(name)
        if holder is not None:
            raise AlreadyStarted(f"a process is called {name!r}", pid=around.processes.pid_value(holder))


def _name(start: Mapping[Any, Any]) -> str | None:
    name = start.get("name")
    if name is not None and not isinstance(name, str):
        raise StartError(f"a supervisor's name is a string, not {name!r}", reason={"invalid_name": as_json(name)})
    return name


async def settled(*ends: Awaitable[object]) -> None:
    """Wait for all of these. One that fails is logged, and keeps no other from an end in order."""
    for outcome in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(outcome, Exception):
            logger.error("something did not end in order", exc_info=outcome)
