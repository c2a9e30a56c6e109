"""The tools: one file in this folder each, and one line in :data:`BUILTINS`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence

from athena.errors import InvalidOption, UnsupportedOption
from athena.tools.base import Tool

BUILTINS: dict[str, str] = {
    "read": "athena.tools.read:TOOL",
    "glob": "athena.tools.glob:TOOL",
    "grep": "athena.tools.grep:TOOL",
    "write": "athena.tools.write:TOOL",
    "edit": "athena.tools.edit:TOOL",
    "bash": "athena.tools.bash:TOOL",
}
"""Name to import string; a tool's module is imported when the tool is chosen."""

NOT_BUILT = (
    "apply_patch",
    "ask_user",
    "finish",
    "lsp",
    "plan_mode",
    "read_summary",
    "spawn_agent",
    "todo_write",
    "usage_rules",
    "web_fetch",
    "web_search",
)
"""Builtin tools of the reference that this release does not have."""


def resolve(selection: str | Sequence[str] | None, extra: Iterable[Tool] = ()) -> dict[str, Tool]:
    """The tools that the option ``tools`` selects, by name, with ``extra`` ones added (they win over equal names).

    ``selection`` is ``"all"`` or ``None`` for all builtins, or a list of builtin names and ``"package.module:name"``
    strings of :class:`Tool` objects. Raises :class:`InvalidOption` for anything else, naming what is legal, and
    :class:`UnsupportedOption` for a tool of the reference that is not built.
    """
    if selection is None or selection == "all":
        names: Sequence[str] = tuple(BUILTINS)
    elif isinstance(selection, str) or not isinstance(selection, Sequence):
        raise _invalid(f"tools {selection!r} is not 'all' or a list", selection)
    else:
        names = selection
    tools = [_find(name) for name in names]
    return {tool.name: tool for tool in (*tools, *extra)}


def _find(name: object) -> Tool:
    if not isinstance(name, str):
        raise _invalid(f"tools has {name!r} in it, which is not a name", name)
    if name in NOT_BUILT:
        raise UnsupportedOption(
            f"the tool {name!r} is not in this release; there are {', '.join(BUILTINS)}",
            option="tools",
            value=repr(name),
            expected=_expected(),
        )
    if name in BUILTINS:
        return _load(BUILTINS[name])
    if ":" in name:
        return _load(name)
    raise _invalid(f"tools has the unknown tool {name!r} in it; there are {', '.join(BUILTINS)}", name)


def _load(reference: str) -> Tool:
    module_name, _, attribute = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise _invalid(f"the tool {reference!r} cannot be imported: {error}", reference) from error
    if not isinstance(found, Tool):
        raise _invalid(f"{reference!r} is a {type(found).__name__}, not an athena.tools.base.Tool", reference)
    return found


def _invalid(message: str, value: object) -> InvalidOption:
    return InvalidOption(message, option="tools", value=repr(value), expected=_expected())


def _expected() -> str:
    return f"'all', or a list of {', '.join(BUILTINS)} and 'package.module:name'"
