"""Child specifications: one child of a supervisor, read from what a user wrote, with OTP's errors in OTP's order.

Binding rules: `reference/otp.md` sections 2 (fields, defaults, tags, order), 12 and 13 (what dynamic supervisors
refuse), design 7 (the forms of ``start``) and 7.8 (durations are seconds). Numbers in comments are sections of otp.md.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from athena.errors import InvalidSpec
from supervisor.restart import Restart, is_number
from supervisor.spec import CHECKS_BY_FIELD, MAX_WIRE_INT, Shutdown, Timeout

ChildId = str | int | float | bool | None
"""A child's id: any JSON scalar."""

ChildType = Literal["worker", "supervisor"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]
"""A supervisor's ``auto_shutdown`` (3, 12)."""
Modules = tuple[str, ...] | Literal["dynamic"]

AUTO_SHUTDOWNS: tuple[AutoShutdown, ...] = get_args(AutoShutdown)

_OLD_FORM = ("id", "start", "restart", "shutdown", "type", "modules")
_DEPTH_MAX = 8  # of a value carried in an error: it may hold itself


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One child, every default filled in. Made by :func:`parse_child_spec`, which checks it.

    Args:
        id: unique in a static supervisor; without meaning in a dynamic one.
        start: ``"package.module:function"`` or a server class, a program with its arguments, or a mapping that the
            launcher understands (a session, a supervisor's own children).
        args, kwargs: what the function or ``init`` is called with. ``args`` is ``None`` once a temporary child was
            started: they are kept for restarts only, and it has none (2).
        restart: when a child that ended by itself is started again.
        shutdown: what a termination does before it kills. 0 signals politely and kills with no wait.
        type: decides the default of ``shutdown`` and how it is counted, nothing else.
        significant: whether its end may end the supervisor (12).
        modules: informational.
        start_timeout: seconds until it must be ready; OTP has none, an OS process can hang before it can speak.
        options: what the launcher needs besides; carried, never read here.
    """

    id: ChildId
    start: str | tuple[str, ...] | Mapping[str, Any]
    args: tuple[Any, ...] | None = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    restart: Restart = Restart.PERMANENT
    shutdown: Shutdown = 5.0
    type: ChildType = "worker"
    significant: bool = False
    modules: Modules = "dynamic"
    start_timeout: Timeout = 30.0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ChildId]:
        """The id as a dictionary key: ``1``, ``1.0`` and ``True`` are three ids, and Python's keys conflate them."""
        return type(self.id).__name__, self.id

    @property
    def is_temporary(self) -> bool:
        """Whether it is never started again, so that its spec lives as long as its process (19.8)."""
        return self.restart is Restart.TEMPORARY

    def to_keep(self) -> ChildSpec:
        """The spec that is kept while the child runs: a temporary one's arguments are not (2)."""
        return replace(self, args=None, kwargs={}) if self.is_temporary else self

    def to_map(self) -> dict[str, Any]:
        """Every field as JSON: what ``get_childspec`` answers."""
        return {
            "id": self.id,
            "start": self._start_as_json(),
            "args": None if self.args is None else list(self.args),
            "kwargs": dict(self.kwargs),
            "restart": self.restart.value,
            "shutdown": self.shutdown,
            "type": self.type,
            "significant": self.significant,
            "modules": self.modules if isinstance(self.modules, str) else list(self.modules),
            "start_timeout": self.start_timeout,
            "options": dict(self.options),
        }

    def _start_as_json(self) -> str | list[str] | dict[str, Any]:
        if isinstance(self.start, str):
            return self.start
        return list(self.start) if isinstance(self.start, tuple) else dict(self.start)


def parse_child_spec(value: object, auto_shutdown: AutoShutdown | None = None) -> ChildSpec:
    """The spec that ``value`` describes: a mapping, OTP's old 6-tuple as list or tuple, or a :class:`ChildSpec`.

    Unknown keys are ignored. ``auto_shutdown`` is the supervisor's: with ``"never"`` a significant child is refused,
    without one that rule is not applied. Raises :class:`~athena.errors.InvalidSpec` with OTP's ``tag`` and the
    offending ``value``; the first offence in OTP's order is reported.
    """
    given = _as_mapping(value)
    if "id" not in given:
        raise spec_error("missing_id", None, "a child specification needs an id")
    if "start" not in given:
        raise spec_error("missing_start", None, f"the child {given['id']!r} needs a start")
    _check_id(given["id"])
    start = _start(given)
    restart = _restart(given)
    significant = given.get("significant", False)
    _check_combinations(significant, restart, auto_shutdown)
    _check_significant(significant)
    kind = _type(given)
    shutdown = _shutdown(given, kind)
    modules = _modules(given, start)
    return _assemble(
        given, start, restart=restart, significant=significant, type=kind, shutdown=shutdown, modules=modules
    )


def parse_dynamic_spec(value: object) -> ChildSpec:
    """The spec of a child for a dynamic supervisor, checked in Elixir's order: shutdown before type, significant last.

    It needs no supervisor: the caller's side may check before it asks (11). A spec without id or start is refused
    whole, and a significant child always: only ``never`` exists there (12). Raises
    :class:`~athena.errors.InvalidSpec`.
    """
    given = _as_mapping(value)
    if "id" not in given or "start" not in given:
        raise spec_error("invalid_child_spec", value, "a child specification needs an id and a start")
    _check_id(given["id"])
    start = _start(given)
    restart = _restart(given)
    if "shutdown" in given:
        CHECKS_BY_FIELD["shutdown"].require(given["shutdown"])
    kind = _type(given)
    shutdown = _shutdown(given, kind)
    modules = _modules(given, start)
    if given.get("significant", False) is not False:
        raise spec_error(
            "invalid_significant", given["significant"], "a dynamic supervisor has no significant children"
        )
    return _assemble(given, start, restart=restart, significant=False, type=kind, shutdown=shutdown, modules=modules)


def parse_child_specs(value: object, auto_shutdown: AutoShutdown | None = None) -> tuple[ChildSpec, ...]:
    """All specs of a list, in order. Raises as :func:`parse_child_spec`, ``badarg`` and ``duplicate_child_name``."""
    if not isinstance(value, list | tuple):
        raise spec_error("badarg", value, "child specifications come as a list")
    specs: dict[tuple[str, ChildId], ChildSpec] = {}
    for one in value:
        spec = parse_child_spec(one, auto_shutdown)
        if spec.key in specs:
            raise spec_error("duplicate_child_name", spec.id, f"two children have the id {spec.id!r}")
        specs[spec.key] = spec
    return tuple(specs.values())


def check_childspecs(value: object, auto_shutdown: object = None) -> None:
    """Check a list of specs, as OTP's function of that name; returns nothing, raises :class:`InvalidSpec`.

    Without ``auto_shutdown`` the rule for ``never`` is not applied; the one for permanent children is.
    """
    if auto_shutdown is not None and auto_shutdown not in AUTO_SHUTDOWNS:
        raise spec_error("badarg", auto_shutdown, f"auto_shutdown is one of {', '.join(AUTO_SHUTDOWNS)}")
    parse_child_specs(value, auto_shutdown)


def error_term(error: InvalidSpec) -> Any:
    """The error as OTP's term in JSON: ``{tag: value}``, or the tag alone where OTP's has no value."""
    return error.tag if error.tag in ("missing_id", "missing_start") else {error.tag: error.value}


def spec_error(tag: str, value: object, expected: str) -> InvalidSpec:
    """The error for ``value``, with OTP's ``tag`` and in words what was ``expected``."""
    return InvalidSpec(f"{tag}: {reprlib.repr(value)} is refused: {expected}", tag=tag, value=as_json(value))


def as_json(value: object, depth: int = _DEPTH_MAX) -> Any:
    """``value`` as JSON carries it; what it cannot carry becomes its shortened repr. For values inside errors."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value) if value.isprintable() else reprlib.repr(value)  # a lone surrogate has no UTF-8 form
    if isinstance(value, int):
        return value if abs(value) <= MAX_WIRE_INT else reprlib.repr(value)
    if isinstance(value, float) and is_number(value):
        return value
    if isinstance(value, ChildSpec):
        return as_json(value.to_map(), depth)
    if isinstance(value, list | tuple) and depth > 0:
        return [as_json(one, depth - 1) for one in value]
    if isinstance(value, Mapping) and depth > 0:
        return {str(name): as_json(one, depth - 1) for name, one in value.items()}
    return reprlib.repr(value)


# --- one field each --------------------------------------------------------------------------------------------------


def _as_mapping(value: object) -> Mapping[str, Any]:
    if isinstance(value, ChildSpec):
        return value.to_map()
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple) and len(value) == len(_OLD_FORM):
        return dict(zip(_OLD_FORM, value, strict=True))
    raise spec_error("invalid_child_spec", value, "a child specification is a mapping")


def _check_id(value: object) -> None:
    """OTP takes any term; ours is also a key and crosses the wire, so it is a scalar."""
    if value is not None and not isinstance(value, str | bool | int) and not is_number(value):
        raise spec_error("invalid_id", value, "an id is a string or another JSON scalar")


def _start(given: Mapping[str, Any]) -> str | tuple[str, ...] | Mapping[str, Any]:
    start, args, kwargs = given["start"], given.get("args", ()), given.get("kwargs", {})
    if not _is_start(start):
        raise spec_error(
            "invalid_mfa", start, "start is 'package.module:function', a list with a program, or a mapping"
        )
    if args is not None and not isinstance(args, list | tuple):
        raise spec_error("invalid_mfa", args, "args is a list")
    if not _has_names(kwargs):
        raise spec_error("invalid_mfa", kwargs, "kwargs is a mapping with strings as keys")
    return tuple(start) if isinstance(start, list) else start


def _is_start(start: object) -> bool:
    if isinstance(start, str):
        module, colon, attribute = start.partition(":")
        return colon == ":" and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))
    if isinstance(start, list | tuple):
        # A NUL cannot be given to exec; Python would raise at the launch, long after the spec was accepted.
        return bool(start) and all(isinstance(word, str) and "\0" not in word for word in start) and start[0] != ""
    return bool(start) and _has_names(start)


def _has_names(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _restart(given: Mapping[str, Any]) -> Restart:
    restart = given.get("restart", Restart.PERMANENT)
    CHECKS_BY_FIELD["restart"].require(restart)
    return Restart(restart)


def _check_combinations(significant: object, restart: Restart, auto_shutdown: AutoShutdown | None) -> None:
    """A significant child needs a supervisor that looks, and an end that is final; in this order (2)."""
    if significant is not True:
        return
    if auto_shutdown == "never":
        pair = [["auto_shutdown", "never"], ["significant", True]]
        raise spec_error("bad_combination", pair, "a significant child needs auto_shutdown any_ or all_significant")
    if restart is Restart.PERMANENT:
        pair = [["restart", "permanent"], ["significant", True]]
        raise spec_error("bad_combination", pair, "a significant child is transient or temporary")


def _check_significant(value: object) -> None:
    if not isinstance(value, bool):
        raise spec_error("invalid_significant", value, "significant is true or false")


def _type(given: Mapping[str, Any]) -> ChildType:
    kind = given.get("type", "worker")
    if kind == "worker":
        return "worker"
    if kind == "supervisor":
        return "supervisor"
    raise spec_error("invalid_child_type", kind, "type is 'worker' or 'supervisor'")


def _shutdown(given: Mapping[str, Any], kind: ChildType) -> Shutdown:
    if "shutdown" not in given:
        # A supervisor must have the time to end what is below it, or it leaves orphans (10).
        return "infinity" if kind == "supervisor" else 5.0
    CHECKS_BY_FIELD["shutdown"].require(given["shutdown"])
    shutdown: Shutdown = given["shutdown"]
    return shutdown


def _modules(given: Mapping[str, Any], start: str | tuple[str, ...] | Mapping[str, Any]) -> Modules:
    if "modules" not in given:
        if isinstance(start, str):
            return (start.partition(":")[0],)
        return (start[0],) if isinstance(start, tuple) else "dynamic"
    modules = given["modules"]
    if modules == "dynamic":
        return "dynamic"
    if not isinstance(modules, list | tuple):
        raise spec_error("invalid_modules", modules, "modules is a list of names, or 'dynamic'")
    for module in modules:
        if not isinstance(module, str):
            raise spec_error("invalid_module", module, "a module is given by its name")
    return tuple(modules)


def _assemble(given: Mapping[str, Any], start: str | tuple[str, ...] | Mapping[str, Any], **checked: Any) -> ChildSpec:
    """Athena's own fields last, then the spec."""
    start_timeout, options = given.get("start_timeout", 30.0), given.get("options", {})
    CHECKS_BY_FIELD["start_timeout"].require(start_timeout)
    if not _has_names(options):
        raise spec_error("invalid_options", options, "options is a mapping with strings as keys")
    args = given.get("args", ())
    return ChildSpec(
        id=given["id"],
        start=start,
        args=None if args is None else tuple(args),
        kwargs=given.get("kwargs", {}),
        start_timeout=start_timeout,
        options=options,
        **checked,
    )
