"""The values at the border of the core: a session's spec, the inputs that the driver gives, the effects it carries out.

Binding rules: `reference/otp.md` sections 2 and 3 (fields, tags, order of checks), design 7.3, 7.5 and 7.8 (Athena's
own fields; durations are seconds). A value made here is legal: it is checked when it is made. Numbers in the docstrings
are sections of `reference/otp.md`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from athena.errors import InvalidSpec
from athena.spec_checks import (
    RESTART,
    SHUTDOWN,
    START_TIMEOUT,
    TIMEOUT,
    Check,
    Shutdown,
    Timeout,
    carried,
    is_count,
    is_seconds,
    is_timeout,
)
from supervisor.restart import Backoff, Restart

Ceiling = int | Literal["infinity"]
"""The most there may be of something, or no limit."""

MemoryCeiling = int | Literal["half", "infinity"]
"""Bytes, half of what the machine (or the supervisor's container) has, or no limit."""

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
        hibernate_after: seconds without anything to do after which the session goes on without a process.
        max_memory: bytes of anonymous and shared memory, swapped or not, that the whole process tree may use; more ends
            its life as ``{"limit": "memory"}``. A share of the machine as default: no constant suits a laptop and a
            build server, and a tree above half of either is about to take the others along.
        max_processes: processes in the tree, the session's own included; more end it as ``{"limit": "processes"}``.
        max_files: open files of each process of the tree, by the kernel: an open beyond it fails with EMFILE there.
        grants_timeout: seconds for which what was open when its supervisor died waits for a client to present the start
            options again; then it goes on without grants and keys.
        turn_timeout: seconds of wall time a turn may take, waiting for permissions and restarts included; then its
            life ends as ``{"limit": "turn_time"}`` and the turn as interrupted.
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
    hibernate_after: Timeout = 600.0
    grants_timeout: Timeout = 600.0
    max_memory: MemoryCeiling = "half"
    max_processes: Ceiling = 1024
    max_files: Ceiling = "infinity"
    turn_timeout: Timeout = "infinity"
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
                value=carried(options),
            )
        given = {name: options[name] for name in SPEC_OPTIONS if name in options}
        if CHECKS_BY_FIELD["restart"].is_legal(given.get("restart")):
            given["restart"] = Restart(given["restart"])
        pause = given.pop("backoff", _DEFAULT_BACKOFF)
        # In two steps, because a mapping becomes a Backoff last: it is the last field in the order of checks.
        return replace(cls(**given), backoff=_backoff(pause))


def check_shutdown(value: object) -> None:
    """Raises :class:`~athena.errors.InvalidSpec` (``invalid_shutdown``) unless ``value`` is a :data:`Shutdown`."""
    CHECKS_BY_FIELD["shutdown"].require(value)


def _is_ceiling(value: object, least: int, *words: str) -> bool:
    return value in words if isinstance(value, str) else is_count(value, least)


LEAST_MEMORY_BYTES = 16 * 1024 * 1024
"""An idle session needs about half of it; less is meant in another unit."""

LEAST_FILES = 64
"""A session's own process has about twenty open."""

CHECKS: tuple[Check, ...] = (
    # OTP reads a supervisor's flags before its children's specs: intensity, period (otp.md 3) ...
    Check("max_restarts", "invalid_intensity", lambda value: is_count(value, 0), "an integer >= 0", "3"),
    Check(
        "max_seconds",
        "invalid_period",
        lambda value: is_seconds(value) and value != 0,
        "finite seconds > 0 as int or float",
        "5",
    ),
    # ... then restart before shutdown (otp.md 2) ...
    RESTART,
    SHUTDOWN,
    # ... and Athena's additions last, named alike.
    START_TIMEOUT,
    Check("hang_timeout", "invalid_hang_timeout", is_timeout, TIMEOUT, "30.0"),
    Check("hibernate_after", "invalid_hibernate_after", is_timeout, TIMEOUT, "600.0"),
    Check("grants_timeout", "invalid_grants_timeout", is_timeout, TIMEOUT, "600.0"),
    Check(
        "max_memory",
        "invalid_max_memory",
        lambda value: _is_ceiling(value, LEAST_MEMORY_BYTES, "half", "infinity"),
        f"bytes as an integer >= {LEAST_MEMORY_BYTES}, 'half' (of the machine's memory) or 'infinity'",
        str(2 * 1024**3),
    ),
    Check(
        "max_processes",
        "invalid_max_processes",
        lambda value: _is_ceiling(value, 1, "infinity"),
        "an integer >= 1 or 'infinity'",
        "1024",
    ),
    Check(
        "max_files",
        "invalid_max_files",
        lambda value: _is_ceiling(value, LEAST_FILES, "infinity"),
        f"an integer >= {LEAST_FILES} or 'infinity'",
        "4096",
    ),
    Check("turn_timeout", "invalid_turn_timeout", is_timeout, TIMEOUT, "600.0"),
    Check("boot_failures", "invalid_boot_failures", lambda value: is_count(value, 1), "an integer >= 1", "3"),
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
