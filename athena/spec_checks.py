"""The rules of single fields that the specifications of sessions and of children share: OTP's tag, the test, the words.

Pure, and imported by both sides of the socket: what a caller can see is wrong needs no supervisor to say so.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from athena.errors import InvalidSpec

Timeout = float | Literal["infinity"]
"""Seconds, or no limit."""

Shutdown = float | Literal["brutal_kill", "infinity"]
"""Seconds between the polite signal and the kill; no polite signal; or no kill."""

MAX_WIRE_INT = 2**63 - 1
"""The largest integer that every reader of our JSON can hold."""


@dataclass(frozen=True, slots=True)
class Check:
    """One field's rule: OTP's tag, the test, what is expected in words, and a value that helps."""

    field: str
    tag: str
    is_legal: Callable[[Any], bool]
    expected: str
    example: str

    def require(self, value: object) -> None:
        """Raises :class:`~athena.errors.InvalidSpec` unless ``value`` is legal."""
        if not self.is_legal(value):
            raise InvalidSpec(
                f"{self.field}={reprlib.repr(value)} is refused: expected {self.expected}; for example"
                f" {self.field}={self.example}",
                tag=self.tag,
                value=carried(value),
            )


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite int or float. Bools are none, and neither is an int too large for a timer."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_count(value: object, least: int) -> bool:
    """Whether ``value`` is an integer from ``least`` on that every reader can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_WIRE_INT


def is_seconds(value: Any, *words: str) -> bool:
    """Whether ``value`` is seconds, 0 included, or one of ``words``."""
    return value in words if isinstance(value, str) else is_number(value) and value >= 0


def is_timeout(value: object) -> bool:
    """Whether ``value`` is a :data:`Timeout`, which is never 0."""
    return is_seconds(value, "infinity") and value != 0


def carried(value: object) -> object:
    """``value`` if JSON carries it as it is, else its shortened repr: the error crosses the wire."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value) if value.isprintable() else reprlib.repr(value)  # a lone surrogate has no UTF-8 form
    if isinstance(value, int):
        return value if abs(value) <= MAX_WIRE_INT else reprlib.repr(value)
    if isinstance(value, float) and is_number(value):
        return value
    return reprlib.repr(value)


TIMEOUT = "seconds > 0 as int or float, or 'infinity'"
"""What a check of a :data:`Timeout` expects, in words."""

RESTART = Check(
    "restart",
    "invalid_restart_type",
    lambda value: isinstance(value, str) and value in ("permanent", "transient", "temporary"),
    "'permanent', 'transient' or 'temporary'",
    repr("transient"),
)
SHUTDOWN = Check(
    "shutdown",
    "invalid_shutdown",
    lambda value: is_seconds(value, "brutal_kill", "infinity"),
    "seconds >= 0 as int or float, 'brutal_kill' or 'infinity'",
    "5.0",
)
START_TIMEOUT = Check("start_timeout", "invalid_start_timeout", is_timeout, TIMEOUT, "30.0")
