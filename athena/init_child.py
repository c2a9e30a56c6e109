"""The short-lived process in which a supervisor's class says what it supervises.

It is a server that has only an ``init``: that of the class is called in it, its return value travels as what the server
says with being ready, and the supervisor ends the process then.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from athena.child_spec_rules import as_json
from athena.errors import InvalidSpec
from athena.server import Ignore, Ready, Server


class Init(Server):
    """One call of a class's ``init``. ``info`` is ``{"kind": ..., "returned": ..., "is_json": ...}``.

    ``kind`` is ``"static"``, ``"dynamic"``, or ``None`` for what is no class of supervisors: that is not called, and is
    to be started as what it is. ``is_json`` tells whether ``returned`` is what was returned, or only shows it.
    """

    async def init(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Ready:
        """Load the class and call its ``init``, which is plain or ``async``. What it raises is the reason."""
        cls = pkgutil.resolve_name(name)
        kind = getattr(cls, "supervisor_kind", None) if isinstance(cls, type) else None
        if kind is None:
            return Ready({"kind": None})
        if not hasattr(cls, "init"):
            raise TypeError(f"{name} has no init, which says what is supervised; or give it as its child_spec(...)")
        returned = object.__new__(cls).init(*args, **kwargs)  # there is no handle yet: the supervisor begins after this
        if inspect.isawaitable(returned):
            returned = await returned
        value, is_json = _carried("ignore" if isinstance(returned, Ignore) else returned)
        return Ready({"kind": kind, "returned": value, "is_json": is_json})


def _carried(returned: Any) -> tuple[Any, bool]:
    """The value as it travels, and whether it is the one that was returned."""
    from athena.spec_json import json_form  # the class has imported it already, and servers need it not

    try:
        return json_form(returned), True
    except InvalidSpec:
        return as_json(returned), False
