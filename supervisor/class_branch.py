"""The driver of a supervisor whose class says what it supervises.

The class is the user's, so its ``init`` runs in a short-lived process (:mod:`athena.init_child`). The supervisor is
there before that: it has its pid and its name, and what it is asked waits. Numbers in comments are sections of
`reference/otp.md`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from athena.errors import Reason, StartError
from supervisor import tree_vocabulary as words
from supervisor.branch import Branch
from supervisor.child_spec import ChildSpec
from supervisor.flags import SupervisorFlags
from supervisor.member import Caller
from supervisor.node import Node
from supervisor.node_init import class_node
from supervisor.tree import StaticNode
from supervisor.tree_function import Function
from supervisor.tree_vocabulary import Ignored, Started, StartFailed, StartOutcome

if TYPE_CHECKING:
    from supervisor.forest import Forest

INIT = "athena.init_child:Init"


class ClassBranch(Branch):
    """One supervisor of a class of the user's. Under a ``parent`` the name may turn out to be no class of supervisors:
    that is started instead, for ``type`` decides nothing but a default and how a child is counted (2)."""

    def __init__(
        self,
        spec: ChildSpec,
        label: str | None,
        name: str | None,
        caller: Caller,
        forest: Forest,
        *,
        parent: Branch | None = None,
    ) -> None:
        # An empty node stands in until the class has said which one it is to be.
        super().__init__(StaticNode(SupervisorFlags()), label or "", name, caller, forest)
        self.label = label or f"{forest.around.supervisor_id}-{self.serial}"
        self._spec = spec
        self._parent = parent
        given = (spec.start, list(spec.args or ()), dict(spec.kwargs))
        init = replace(spec, start=INIT, args=given, kwargs={}, options={})
        self._init = Function(init, self.label, caller, forest.around)
        self._is_made = False
        self._waiting: list[words.Input] = []
        self._ends_for: list[Reason] = []
        """Why it is ended before it has begun: at most one counts, the first."""

    def give(self, given: words.Input) -> None:
        """As :meth:`Branch.give`. Before the class has answered everything waits, and what ends it ends the class's
        process."""
        if self._is_made:
            super().give(given)
            return
        self._waiting.append(given)
        if isinstance(given, words.ParentExited | words.KillNode):
            self._ends_for.append(given.reason)
            self._init.end_for(self._ends_for[0])

    async def _begin(self, *waiting: words.Input) -> StartOutcome:
        outcome = await self._init.start()
        if isinstance(outcome, Started):
            self._init.kill()  # it has said all it has to say
            await self._init.wait()
        if self._ends_for:
            return self._give_up(StartFailed(self._ends_for[0]))
        if isinstance(outcome, Started):
            return await self._become(outcome.info)
        return self._give_up(outcome)

    async def _become(self, answer: dict[str, Any]) -> StartOutcome:
        """Whatever the name names."""
        if answer["kind"] is None:
            self._give_up(Ignored())
            return await self._start_instead()
        made = self._node(answer)
        if not isinstance(made, Node):
            return self._give_up(made)
        self.node, self._is_made = made, True
        return await super()._begin(*self._waiting)

    def _node(self, answer: dict[str, Any]) -> Node | Ignored | StartFailed:
        try:
            node = class_node(answer, str(self._spec.start))
        except StartError as error:
            return StartFailed(error.data["reason"])
        return Ignored() if node is None else node

    def _give_up(self, outcome: Ignored | StartFailed) -> Ignored | StartFailed:
        """There will be no supervisor: its name is free, and whoever waits is told, before the starter hears (4)."""
        reason = outcome.reason if isinstance(outcome, StartFailed) else "normal"
        self._is_made = True
        self.give(words.Start())
        self.give(words.KillNode(reason))
        for given in self._waiting:
            if isinstance(given, words.Call):
                self._carry_out(words.CallFailed(given.ref, reason))
        return outcome

    async def _start_instead(self) -> StartOutcome:
        if self._parent is None:
            message = f"{self._spec.start} is no Supervisor or DynamicSupervisor class"
            return StartFailed({"error": {"type": "TypeError", "message": message}})
        found = Function(self._spec, self.label, self.caller, self._forest.around)
        self._parent._starting = found  # it follows this one from here on
        return await found.start()
