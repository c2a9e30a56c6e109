"""The values at the border of the core: a session's spec, the inputs that the driver gives, the effects it carries out.

Binding rules: `reference/otp.md` sections 2 and 3 (fields, tags, order of checks), design 7.3, 7.5 and 7.8 (Athena's
own fields; durations are seconds). A value made here is legal: it is checked when it is made. Numbers in the docstrings
are sections of `reference/otp.md`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from athena.errors import InvalidSpec
from supervisor.restart import Backoff, Restart, is_number

Timeout = float | Literal["infinity"]
"""Seconds, or no limit."""

Shutdown = float | Literal["brutal_kill", "infinity"]
"""Seconds between the polite signal and the kill; no polite signal; or no kill."""


MAX_WIRE_INT = 2**63 - 1
"""The largest integer that every reader of our JSON can hold."""

_DEFAULT_BACKOFF = Backoff()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """How one session is supervised.

    Args:
        restart: when a child that ended by itself is started again. Transient: a session that says it is done, is.
        max_restarts: restarts allowed inside ``max_seconds``; Elixir's default. 0: the first needed restart is fatal.
        max_seconds: length of that window.
        shutdown: what a stop does before it kills; OTP's default for a worker. 0 signals and kills with no wait.
        start_timeout: seconds from spawn to readiness. OTP has none; an OS process can hang before it can speak.
        hang_timeout: seconds a child that has work may be silent before it is killed as ``hung``.
        boot_failures: equal failures in a row before readiness that end in ``failed``: what fails the same way three
            times is broken, not unlucky.
        backoff: pause between failed restarts; ``None`` for OTP's behaviour (none).

    Raises :class:`~athena.errors.InvalidSpec` with ``tag`` and ``value``; the first offence in the order of
    :data:`CHECKS` is reported.
    """

    restart: Restart = Restart.TRANSIENT
    max_restarts: int = 3
    max_seconds: float = 5
    shutdown: Shutdown = 5.0
    start_timeout: Timeout = 30.0
    hang_timeout: Timeout = 30.0
    boot_failures: int = 3
    backoff: Backoff | None = _DEFAULT_BACKOFF

    def __post_init__(self) -> None:
        for check in CHECKS:
            check.require(getattr(self, check.field))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> SessionSpec:
        """The spec in a session's start options; absent fields take their defaults, ``backoff`` may be a mapping.

        Other keys are ignored, as OTP ignores unknown keys of a spec (otp.md 2): who owns the other options refuses the
        unknown ones, with :data:`SPEC_OPTIONS` at hand. Raises :class:`~athena.errors.InvalidSpec`.
        """
        if not isinstance(options, Mapping):
            raise InvalidSpec(
                f"a session's options are {reprlib.repr(options)}: expected a mapping of option names to values",
                tag="invalid_child_spec",
                value=_carried(options),
            )
        given = {name: options[name] for name in SPEC_OPTIONS if name in options}
        if CHECKS_BY_FIELD["restart"].is_legal(given.get("restart")):
            given["restart"] = Restart(given["restart"])
        pause = given.pop("backoff", _DEFAULT_BACKOFF)
        # In two steps, because a mapping becomes a Backoff last: it is the last field in the order of checks.
        return replace(cls(**given), backoff=_backoff(pause))


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
                value=_carried(value),
            )


def check_shutdown(value: object) -> None:
    """Raises :class:`~athena.errors.InvalidSpec` (``invalid_shutdown``) unless ``value`` is a :data:`Shutdown`."""
    CHECKS_BY_FIELD["shutdown"].require(value)


def _is_restart(value: object) -> bool:
    return isinstance(value, str) and value in list(Restart)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_WIRE_INT


def _is_seconds(value: Any, *words: str) -> bool:
    return value in words if isinstance(value, str) else is_number(value) and value >= 0


def _is_timeout(value: object) -> bool:
    return _is_seconds(value, "infinity") and value != 0


_TIMEOUT = "seconds > 0 as int or float, or 'infinity'"

CHECKS: tuple[Check, ...] = (
    # OTP reads a supervisor's flags before its children's specs: intensity, period (otp.md 3) ...
    Check("max_restarts", "invalid_intensity", lambda value: _is_count(value, 0), "an integer >= 0", "3"),
    Check(
        "max_seconds",
        "invalid_period",
        lambda value: _is_seconds(value) and value != 0,
        "finite seconds > 0 as int or float",
        "5",
    ),
    # ... then restart before shutdown (otp.md 2) ...
    Check("restart", "invalid_restart_type", _is_restart, "'permanent', 'transient' or 'temporary'", repr("transient")),
    Check(
        "shutdown",
        "invalid_shutdown",
        lambda value: _is_seconds(value, "brutal_kill", "infinity"),
        "seconds >= 0 as int or float, 'brutal_kill' or 'infinity'",
        "5.0",
    ),
    # ... and Athena's additions last, named alike.
    Check("start_timeout", "invalid_start_timeout", _is_timeout, _TIMEOUT, "30.0"),
    Check("hang_timeout", "invalid_hang_timeout", _is_timeout, _TIMEOUT, "30.0"),
    Check("boot_failures", "invalid_boot_failures", lambda value: _is_count(value, 1), "an integer >= 1", "3"),
    Check(
        "backoff",
        "invalid_backoff",
        lambda value: value is None or isinstance(value, Backoff),
        f"None, a Backoff, or a mapping with some of {', '.join(field.name for field in fields(Backoff))}",
        repr({"base_s": 0.1, "cap_s": 30}),
    ),
)
"""Every check, in the order in which offences are reported."""

CHECKS_BY_FIELD = {check.field: check for check in CHECKS}

SPEC_OPTIONS = frozenset(CHECKS_BY_FIELD)
"""The names of the start options that belong to the spec."""


def _backoff(value: Any) -> Backoff | None:
    if isinstance(value, Mapping) and set(value) <= {field.name for field in fields(Backoff)}:
        return Backoff(**value)
    CHECKS_BY_FIELD["backoff"].require(value)
    backoff: Backoff | None = value
    return backoff


def _carried(value: object) -> object:
    """``value`` if JSON carries it as it is, else its shortened repr: the error crosses the wire."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value if value.isprintable() else reprlib.repr(value)  # a lone surrogate has no UTF-8 form
    if isinstance(value, int):
        return value if abs(value) <= MAX_WIRE_INT else reprlib.repr(value)
    if isinstance(value, float) and is_number(value):
        return value
    return reprlib.repr(value)
