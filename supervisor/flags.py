"""Supervisor flags: how a supervisor treats its children as a group, with OTP's errors in OTP's order.

Binding rules: `reference/otp.md` sections 3 (fields, defaults, order) and 13 (dynamic supervisors), design 7 (names
and defaults of the Python API). Numbers in comments are sections of otp.md.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from athena.child_spec_rules import AUTO_SHUTDOWNS, AutoShutdown, spec_error
from athena.spec_checks import MAX_WIRE_INT
from supervisor.restart import Intensity
from supervisor.spec import CHECKS_BY_FIELD

_OLD_FORM = ("strategy", "max_restarts", "max_seconds")
_OTP_RESTARTS, _OTP_SECONDS = 1, 5  # of a bare flags mapping; the 3 in 5 s are start_link's, as in Elixir (3)


class Strategy(enum.StrEnum):
    """Who else is restarted with a child."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"
    SIMPLE_ONE_FOR_ONE = "simple_one_for_one"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorFlags:
    """The flags of a supervisor with a list of children. Read a user's with :func:`parse_flags`.

    Args:
        strategy: who else is restarted with a child.
        max_restarts: restarts allowed inside ``max_seconds``, all children together.
        max_seconds: length of that window.
        auto_shutdown: ``never``, ``any_significant`` or ``all_significant``.
    """

    strategy: Strategy = Strategy.ONE_FOR_ONE
    max_restarts: int = 3
    max_seconds: float = 5
    auto_shutdown: AutoShutdown = "never"

    @property
    def intensity(self) -> Intensity:
        """An empty history under these limits."""
        return Intensity(self.max_restarts, self.max_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicFlags:
    """The flags of a dynamic supervisor. Read a user's with :func:`parse_dynamic_flags`.

    Args:
        max_restarts, max_seconds: as for :class:`SupervisorFlags`.
        max_children: how many it takes, those that are being restarted included; ``None`` for no limit.
        extra_arguments: come before the arguments of every child's own spec, on restarts too (13).
    """

    max_restarts: int = 3
    max_seconds: float = 5
    max_children: int | None = None
    extra_arguments: tuple[Any, ...] = ()

    @property
    def intensity(self) -> Intensity:
        """An empty history under these limits."""
        return Intensity(self.max_restarts, self.max_seconds)


def parse_flags(value: object) -> SupervisorFlags:
    """The flags in ``value``: a mapping, or OTP's old triple of strategy, intensity and period.

    ``intensity`` and ``period`` are other names of ``max_restarts`` and ``max_seconds``. Unknown keys are ignored.
    Raises :class:`~athena.errors.InvalidSpec` with OTP's tag and the offending value.
    """
    given = _as_mapping(value)
    strategy = _strategy(given, tuple(Strategy))
    max_restarts, max_seconds = _limits(given)
    auto_shutdown = given.get("auto_shutdown", "never")
    if auto_shutdown not in AUTO_SHUTDOWNS:
        raise spec_error("invalid_auto_shutdown", auto_shutdown, f"expected one of {', '.join(AUTO_SHUTDOWNS)}")
    if strategy is Strategy.SIMPLE_ONE_FOR_ONE and auto_shutdown != "never":
        pair = [["strategy", strategy.value], ["auto_shutdown", auto_shutdown]]
        raise spec_error("bad_combination", pair, "a simple_one_for_one supervisor has no significant children")
    return SupervisorFlags(
        strategy=strategy, max_restarts=max_restarts, max_seconds=max_seconds, auto_shutdown=auto_shutdown
    )


def parse_dynamic_flags(value: object) -> DynamicFlags:
    """The flags of a dynamic supervisor in a mapping. Unknown keys are ignored.

    Raises :class:`~athena.errors.InvalidSpec` with Elixir's tag and the offending value.
    """
    given = _as_mapping(value)
    _strategy(given, (Strategy.ONE_FOR_ONE,))
    max_restarts, max_seconds = _limits(given)
    max_children = given.get("max_children")
    if max_children == "infinity":
        max_children = None
    if max_children is not None and not _is_count(max_children):
        raise spec_error("invalid_max_children", max_children, "expected an integer >= 0, or None for no limit")
    extra = given.get("extra_arguments", ())
    if not isinstance(extra, list | tuple):
        raise spec_error("invalid_extra_arguments", extra, "expected a list")
    if given.get("auto_shutdown", "never") != "never":
        raise spec_error("invalid_auto_shutdown", given["auto_shutdown"], "a dynamic supervisor knows only 'never'")
    return DynamicFlags(
        max_restarts=max_restarts, max_seconds=max_seconds, max_children=max_children, extra_arguments=tuple(extra)
    )


def _as_mapping(value: object) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple) and len(value) == len(_OLD_FORM):
        return dict(zip(_OLD_FORM, value, strict=True))
    raise spec_error("invalid_type", value, "flags are a mapping")


def _strategy(given: Mapping[str, Any], legal: tuple[Strategy, ...]) -> Strategy:
    strategy = given.get("strategy", Strategy.ONE_FOR_ONE)
    if not isinstance(strategy, str) or strategy not in legal:
        raise spec_error("invalid_strategy", strategy, f"expected one of {', '.join(legal)}")
    return Strategy(strategy)


def _limits(given: Mapping[str, Any]) -> tuple[int, float]:
    max_restarts = given.get("max_restarts", given.get("intensity", _OTP_RESTARTS))
    CHECKS_BY_FIELD["max_restarts"].require(max_restarts)
    max_seconds = given.get("max_seconds", given.get("period", _OTP_SECONDS))
    CHECKS_BY_FIELD["max_seconds"].require(max_seconds)
    return max_restarts, max_seconds


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_WIRE_INT
