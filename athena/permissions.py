"""May this tool call run? One pure decision: deny list, then allow list, then phase, then approver.

A deny list is never bypassed. An allow list that is set denies everything else; to be in it approves nothing by itself.
Unattended means no: in phase ``default`` a call that may change something needs an approver, and without one it is
denied at once, with a text that says what would allow it. What an approver said for the rest of the session is held in
memory, and takes the place of a question, nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from athena.bash_rules import find_violation

Phase = Literal["plan", "default", "accept_edits", "trusted", "bypass_permissions"]
PHASES: tuple[Phase, ...] = ("plan", "default", "accept_edits", "trusted", "bypass_permissions")

DenialCode = Literal[
    "phase_gated",
    "user_denied",
    "not_allowed",
    "denied_by_list",
    "no_approver",
    "permission_timeout",
    "sandbox_violation",
    "unknown",
]

CONVERSATION_TOOLS = frozenset({"ask_user", "finish", "todo_write"})
"""These change nothing outside the conversation, so they run in every phase without a question."""

_NOTHING: Mapping[str, str] = MappingProxyType({})

EDIT_TOOLS = frozenset({"apply_patch", "edit", "write"})
"""What phase ``accept_edits`` approves beyond ``default``."""


@dataclass(frozen=True, slots=True)
class Allow:
    """The call may run."""


@dataclass(frozen=True, slots=True)
class Deny:
    """The call must not run; ``reason`` is for the model and the caller."""

    code: DenialCode
    reason: str


@dataclass(frozen=True, slots=True)
class Ask:
    """An approver decides; ``reason`` says why it is asked."""

    reason: str


Decision = Allow | Deny | Ask


def decide(
    tool_name: str,
    read_only: bool,
    phase: str,
    *,
    allowed: Collection[str] | None = None,
    disallowed: Collection[str] = (),
    readonly_tools: Collection[str] = (),
    has_approver: bool = False,
    arguments: Mapping[str, Any] | None = None,
    remembered: Mapping[str, str] = _NOTHING,
) -> Decision:
    """Decide about one call.

    ``allowed`` is ``None`` where no allow list is set (an empty one denies everything). ``readonly_tools`` are names
    that the caller vouches for as if the tools had declared themselves read-only. ``remembered`` are answers by
    :func:`rule_of`, ``"allow"`` or ``"deny"``.
    """
    if tool_name in disallowed:
        return Deny("denied_by_list", f"{tool_name} is denied: it is in disallowed_tools, which no phase overrides")
    if allowed is not None and tool_name not in allowed:
        names = ", ".join(sorted(allowed)) or "none"
        return Deny("not_allowed", f"{tool_name} is denied: it is not in allowed_tools ({names})")
    if phase in ("trusted", "bypass_permissions"):
        return Allow()
    if phase not in PHASES:
        return Deny("unknown", f"{tool_name} is denied: the phase {phase!r} is not one of {', '.join(PHASES)}")
    if read_only or tool_name in readonly_tools or tool_name in CONVERSATION_TOOLS:
        return Allow()
    if phase == "plan":
        return _in_plan(tool_name, arguments or {})
    if phase == "accept_edits" and tool_name in EDIT_TOOLS:
        return Allow()
    answer = remembered.get(rule_of(tool_name, arguments or {}))
    if answer is not None:
        return Allow() if answer == "allow" else denied_by_user(tool_name, f"{tool_name} {_DENIED_FOR_GOOD}")
    if has_approver:
        # The text is recorded, and no grant is: it does not say which phase.
        return Ask(f"{tool_name} is not read-only, and the session's phase asks before it runs")
    return Deny("no_approver", _no_approver_text(tool_name, phase))


def denied_by_user(tool_name: str, reason: str | None = None) -> Deny:
    """The denial when an approver said no."""
    return Deny("user_denied", reason or f"{tool_name} was denied by the user; ask what to do instead of repeating it")


def denied_in_time(tool_name: str, timeout_s: float) -> Deny:
    """The denial when no approver has answered in ``permission_timeout``."""
    return Deny(
        "permission_timeout",
        f"{tool_name} is denied: nobody answered within {timeout_s:g} s (permission_timeout). Do not repeat the call; "
        "go on without it or say what is needed.",
    )


def rule_of(tool_name: str, arguments: Mapping[str, Any]) -> str:
    """What an answer that is remembered holds for: the tool, or for ``bash`` this very command."""
    if tool_name != "bash":
        return tool_name
    return f"bash {hashlib.blake2b(str(arguments.get('command')).encode(), digest_size=16).hexdigest()}"


_DENIED_FOR_GOOD = "was denied by the user for the rest of the session; go on without it or say what is needed"


def _in_plan(tool_name: str, arguments: Mapping[str, Any]) -> Decision:
    if tool_name != "bash":
        return Deny("phase_gated", f"{tool_name} is denied: phase 'plan' runs read-only tools only")
    command = arguments.get("command")
    violation = find_violation(command if isinstance(command, str) else "")
    if violation is None:
        return Allow()
    return Deny(
        "phase_gated",
        f"bash is denied: phase 'plan' runs read-only commands only, and {violation.segment!r} {violation.reason}",
    )


def _no_approver_text(tool_name: str, phase: str) -> str:
    phases = "'accept_edits', 'trusted'" if phase == "default" and tool_name in EDIT_TOOLS else "'trusted'"
    return (
        f"{tool_name} is denied: it is not read-only, phase {phase!r} asks before it runs, and nobody is there to "
        f"answer. The caller can allow it with phase= {phases} or 'bypass_permissions', with can_use_tool=, or by an "
        "attached approver (events(approver=True), athena attach); allowed_tools alone approves nothing. "
        "Do not repeat the call; go on without it or say what is needed."
    )
