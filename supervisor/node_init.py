"""From what a user gave to a supervisor node: flags first, then all specs, before any child starts.

Binding rule: `reference/otp.md` section 4. The reasons are OTP's terms in JSON. Numbers in comments are its sections.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from athena.child_spec_rules import as_json, error_term
from athena.errors import InvalidSpec, Reason, StartError
from supervisor.child_spec import parse_child_spec, parse_child_specs
from supervisor.dynamic import DynamicNode, SimpleNode
from supervisor.flags import Strategy, SupervisorFlags, parse_dynamic_flags, parse_flags
from supervisor.node import Node
from supervisor.tree import StaticNode


def supervisor_node(flags: object, children: object) -> StaticNode | SimpleNode:
    """The node for ``flags`` and a list of child specifications.

    Raises :class:`~athena.errors.StartError` with a ``reason`` of ``{"supervisor_data": E}`` (flags),
    ``{"start_spec": E}`` (a child) or ``{"bad_start_spec": children}`` (a simple_one_for_one supervisor without exactly
    one), where ``E`` is ``{tag: offending value}``.
    """
    try:
        parsed = parse_flags(flags)
    except InvalidSpec as error:
        raise _failed({"supervisor_data": error_term(error)}, error.message) from error
    if parsed.strategy is Strategy.SIMPLE_ONE_FOR_ONE:
        return _simple_node(parsed, children)
    try:
        return StaticNode(parsed, parse_child_specs(children, parsed.auto_shutdown))
    except InvalidSpec as error:
        raise _failed({"start_spec": error_term(error)}, error.message) from error


def dynamic_node(flags: object) -> DynamicNode:
    """The node of a dynamic supervisor. Raises :class:`~athena.errors.StartError` (``supervisor_data``)."""
    try:
        return DynamicNode(parse_dynamic_flags(flags))
    except InvalidSpec as error:
        raise _failed({"supervisor_data": error_term(error)}, error.message) from error


def node_from_init(returned: object, module: str) -> Node | None:
    """The node that a supervisor module's ``init`` asks for; ``None`` if it wants none (``"ignore"``).

    ``returned`` is ``[flags, children]``. Raises as :func:`supervisor_node`, and
    ``{"bad_return": [module, "init", returned]}`` for anything else.
    """
    if returned == "ignore":
        return None
    return supervisor_node(*_pair(returned, module))


def dynamic_node_from_init(returned: object, module: str) -> DynamicNode | None:
    """As :func:`node_from_init` for a dynamic supervisor's module, whose ``init`` returns a flags mapping."""
    if returned == "ignore":
        return None
    if not isinstance(returned, dict):
        raise _bad_return(returned, module)
    return dynamic_node(returned)


def class_node(answer: Mapping[str, Any], module: str) -> Node | None:
    """The node that a class of supervisors asks for, by what its process answered; ``None`` if it wants none.

    ``answer`` is what :class:`athena.init_child.Init` says. Raises as :func:`node_from_init`.
    """
    returned = answer["returned"]
    if not answer["is_json"]:
        raise _bad_return(returned, module)
    return dynamic_node_from_init(returned, module) if answer["kind"] == "dynamic" else node_from_init(returned, module)


def _simple_node(flags: SupervisorFlags, children: object) -> SimpleNode:
    if not isinstance(children, list | tuple) or len(children) != 1:
        reason = {"bad_start_spec": as_json(children)}
        raise _failed(reason, f"a simple_one_for_one supervisor has one child specification: {reprlib.repr(children)}")
    try:
        return SimpleNode(flags, parse_child_spec(children[0], flags.auto_shutdown))
    except InvalidSpec as error:
        raise _failed({"start_spec": error_term(error)}, error.message) from error


def _pair(returned: object, module: str) -> tuple[Any, Any]:
    if isinstance(returned, list | tuple) and len(returned) == 2:
        return returned[0], returned[1]
    raise _bad_return(returned, module)


def _bad_return(returned: object, module: str) -> StartError:
    reason = {"bad_return": [module, "init", as_json(returned)]}
    return _failed(reason, f"{module}.init returned {reprlib.repr(returned)}: expected flags and children, or 'ignore'")


def _failed(reason: Reason, message: str) -> StartError:
    return StartError(message, reason=reason)
