"""All supervision trees of one daemon: their roots in the order they were started, and their names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from athena.errors import AlreadyStarted, NoProcess, StartError
from supervisor.branch import Branch, start_error
from supervisor.child_spec import ChildSpec, as_json
from supervisor.keeper import Supervision
from supervisor.member import Caller, Member, label_of
from supervisor.node import Node
from supervisor.node_init import dynamic_node, supervisor_node
from supervisor.tree_process import Function, Program
from supervisor.tree_session import SessionMember, TreeKeeper, session_request
from supervisor.tree_vocabulary import StartFailed


class Forest:
    """The trees of one daemon. ``on_gone`` is told of each root that has ended."""

    def __init__(self, around: Supervision, on_gone: Callable[[Branch], None]) -> None:
        self.around = around
        self.roots: dict[int, Branch] = {}
        self.names: dict[str, Branch] = {}
        self._on_gone = on_gone
        self._ends: set[asyncio.Task[None]] = set()

    # --- what the daemon and its clients ask

    async def start(self, node: Node, name: str | None, caller: Caller, link: Callable[[Branch], None]) -> Branch:
        """Start a tree; returns when all of it is started. ``link`` is called with the root before that.

        Raises :class:`AlreadyStarted` and :class:`StartError`; nothing of it is left then.
        """
        root = self._branch(node, name, None if name is None else label_of(None, name), caller)
        if name is not None and name in self.names:
            taken = self.names[name]
            raise AlreadyStarted(f"a supervisor of the name {name!r} is already running", pid=taken.pid_value())
        self.roots[root.serial] = root
        link(root)
        outcome = await root.start()
        if isinstance(outcome, StartFailed):
            self._forget(root)
            raise start_error(root.label, outcome.reason)
        end = asyncio.create_task(self._see_end(root), name=f"end of {root.label}")
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)
        return root

    async def stop(self) -> None:
        """End all trees, the last started first."""
        while self.roots:
            root = self.roots[max(self.roots)]
            await root.stop()
            self.roots.pop(root.serial, None)

    def find(self, target: object, serial: object = None) -> Branch:
        """The supervisor of this name, or of this serial. Raises :class:`NoProcess`."""
        if isinstance(target, str):
            found = self.names.get(target)
        else:
            found = next((one for one in self.branches() if one.serial == serial), None)
        if found is None:
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

    def members(self) -> dict[int, Member]:
        """Everything that lives, by serial."""
        branches = self.branches()
        return {one.serial: one for one in branches} | {k: v for one in branches for k, v in one.members.items()}

    # --- what branches need

    def member(self, spec: ChildSpec, parent: Branch) -> Member:
        """The child that a specification describes, not started yet. Raises :class:`StartError`."""
        label, caller = label_of(parent.label, spec.id), parent.caller.for_child(spec.options)
        match spec.start:
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
            case _:
                reason = {"invalid_mfa": as_json(spec.start)}
                raise StartError(f"{label} cannot be started: unknown start {spec.start!r}", reason=reason)

    def take_name(self, branch: Branch) -> int | None:
        """Register its name; the serial of who has it already, if it is taken."""
        if branch.name is None:
            return None
        taken = self.names.setdefault(branch.name, branch)
        return None if taken is branch else taken.serial

    def free_name(self, branch: Branch) -> None:
        """It has ended."""
        if branch.name is not None and self.names.get(branch.name) is branch:
            del self.names[branch.name]

    def pid_value(self, serial: int) -> dict[str, Any]:
        """The pid of anybody as it travels."""
        found = self.members().get(serial)
        if found is not None:
            return found.pid_value()
        return {"pid": None, "serial": serial, "supervisor": self.around.supervisor_id}

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
        if request.name in self.names or request.session_id in self.names:
            raise AlreadyStarted(f"a supervisor is called {request.name or request.session_id!r}")
        keeper = TreeKeeper(request, self.around)
        self.around.registry.add(keeper)
        parent.sessions[request.session_id] = keeper
        return keeper

    async def _see_end(self, root: Branch) -> None:
        await root.wait()
        self._forget(root)

    def _forget(self, root: Branch) -> None:
        self.roots.pop(root.serial, None)
        self._on_gone(root)


def _name(start: Mapping[Any, Any]) -> str | None:
    name = start.get("name")
    if name is not None and not isinstance(name, str):
        raise StartError(f"a supervisor's name is a string, not {name!r}", reason={"invalid_name": as_json(name)})
    return name
