"""Whether a dead child is started again, how often, and after which pause.

Binding rule: `reference/otp.md` sections 1 (reason classes), 6 (the decision), 8 (intensity). The backoff is Athena's
own (design 7.3) and never changes what the intensity counts. All of it is pure: time and randomness are given.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

from athena.errors import REASON_BYTES, InvalidSpec, Reason
from athena.spec_checks import is_number
from athena.wire import dumps

SHOWN_BYTES = 1000


class Restart(enum.StrEnum):
    """The ``restart`` field of a child specification."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class ReasonClass(enum.Enum):
    """The classes of exit reason that a restart decision tells apart."""

    NORMAL = "normal"
    SHUTDOWN = "shutdown"
    ABNORMAL = "abnormal"


RESTARTS: dict[tuple[Restart, ReasonClass], bool] = {
    (Restart.PERMANENT, ReasonClass.NORMAL): True,
    (Restart.PERMANENT, ReasonClass.SHUTDOWN): True,
    (Restart.PERMANENT, ReasonClass.ABNORMAL): True,
    (Restart.TRANSIENT, ReasonClass.NORMAL): False,
    (Restart.TRANSIENT, ReasonClass.SHUTDOWN): False,
    (Restart.TRANSIENT, ReasonClass.ABNORMAL): True,
    (Restart.TEMPORARY, ReasonClass.NORMAL): False,
    (Restart.TEMPORARY, ReasonClass.SHUTDOWN): False,
    (Restart.TEMPORARY, ReasonClass.ABNORMAL): False,
}
"""The restart decision (otp.md 6). A new rule is a row here and a row of its test."""


def classify(reason: Reason) -> ReasonClass:
    """The class of ``reason``. Only the exact forms are clean: ``{"shutdown": 1, "x": 2}`` is abnormal (otp.md 1)."""
    match reason:
        case "normal":
            return ReasonClass.NORMAL
        case "shutdown":
            return ReasonClass.SHUTDOWN
        case {"shutdown": _} if len(reason) == 1:
            return ReasonClass.SHUTDOWN
        case _:
            return ReasonClass.ABNORMAL


def is_clean(reason: Reason) -> bool:
    """Whether ``reason`` is ``"normal"``, ``"shutdown"`` or ``{"shutdown": T}``: the supervisor's cut, not a link's."""
    return classify(reason) is not ReasonClass.ABNORMAL


def bounded(reason: Reason) -> Reason:
    """``reason``, or the beginning of it as text if it is longer than a reason may be. For what others say."""
    text = dumps(reason)
    return reason if len(text) <= REASON_BYTES else {"too_long": text[:SHOWN_BYTES].decode(errors="replace")}


def should_restart(restart: Restart, reason: Reason) -> bool:
    """Whether a child that ended by itself with ``reason`` is started again, before the intensity is asked."""
    return RESTARTS[restart, classify(reason)]


@dataclass(frozen=True, slots=True)
class Intensity:
    """How many restarts happened lately, and whether one more is allowed (otp.md 8, literally).

    ``stamps`` are whole seconds of a monotonic clock, newest first. Whole seconds and the inclusive bound make the real
    window between ``max_seconds`` and ``max_seconds + 1`` long; OTP's own suite depends on it.
    """

    max_restarts: int
    max_seconds: float
    stamps: tuple[int, ...] = ()

    def add(self, now: float) -> tuple[Intensity, bool]:
        """The history with one more restart at ``now`` (seconds, monotonic), and whether that restart may be made."""
        second = math.floor(now)
        stamps = (second, *self._window(second))
        return replace(self, stamps=stamps), len(stamps) <= self.max_restarts

    def count(self, now: float) -> int:
        """Restarts that still count at ``now``."""
        return len(self._window(math.floor(now)))

    def _window(self, second: int) -> tuple[int, ...]:
        return tuple(stamp for stamp in self.stamps if stamp >= second - self.max_seconds)


@dataclass(frozen=True, slots=True)
class FailedStarts:
    """Restarts in a row that failed before readiness: how many, and how many of the last of them ``alike``."""

    count: int = 0
    alike: int = 0
    last: Reason = None

    def add(self, reason: Reason) -> FailedStarts:
        """With one more that failed for ``reason``."""
        alike = self.alike + 1 if self.count and reason == self.last else 1
        return FailedStarts(self.count + 1, alike, reason)


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pause between *failed* restarts: exponential, capped, spread downwards so that the cap holds.

    Args:
        base_s: pause after the first failed restart, before jitter. Short: most such failures pass at once (a lock held
            a moment longer), and the intensity bounds the number of tries anyway.
        factor: growth for each further failure.
        cap_s: the longest pause.
        jitter: share of the pause that is random, 0 to 1: children that died together don't come back together.

    Raises :class:`~athena.errors.InvalidSpec` (``invalid_backoff``).
    """

    base_s: float = 0.1
    factor: float = 2
    cap_s: float = 30
    jitter: float = 0.5

    def __post_init__(self) -> None:
        self._require("base_s", is_number(self.base_s) and self.base_s > 0, "seconds > 0")
        self._require("factor", is_number(self.factor) and self.factor >= 1, "a number >= 1")
        self._require("cap_s", is_number(self.cap_s) and self.cap_s > 0, "seconds > 0")
        self._require("jitter", is_number(self.jitter) and 0 <= self.jitter <= 1, "a number from 0 to 1")

    def delay(self, failures: int, random: float) -> float:
        """Seconds to wait after ``failures`` failed starts in a row; 0.0 after none. ``random`` is in [0, 1)."""
        if failures <= 0:
            return 0.0
        try:
            pause_s = min(self.cap_s, self.base_s * float(self.factor) ** (failures - 1))
        except OverflowError:
            pause_s = self.cap_s
        return pause_s * (1 - self.jitter * random)

    def _require(self, field: str, legal: bool, expected: str) -> None:
        if not legal:
            shown = repr(getattr(self, field))
            raise InvalidSpec(
                f"backoff {field}={shown} is refused: expected {expected}; or pass backoff=None for no pause",
                tag="invalid_backoff",
                value=shown,
            )
