"""The rules of child specifications: what a user wrote, checked with OTP's errors in OTP's order, defaults filled in.

Pure, and shared by both sides of the socket: a caller's own side checks what it is about to ask, and the supervisor
checks whatever comes. Binding rules: `reference/otp.md` sections 2 (fields, defaults, tags, order), 12 and 13 (what
dynamic supervisors refuse), design 7 (the forms of ``start``) and 7.8 (durations are seconds). Numbers in comments are
sections of otp.md.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

from athena.errors import InvalidSpec
from athena.spec_checks import RESTART, SHUTDOWN, START_TIMEOUT, Shutdown, carried, is_number

ChildId: TypeAlias = str | int | float | bool | None
"""A child's id: any JSON scalar."""

ChildType: TypeAlias = Literal["worker", "supervisor"]
AutoShutdown: TypeAlias = Literal["never", "any_significant", "all_significant"]
"""A supervisor's ``auto_shutdown`` (3, 12)."""
Modules: TypeAlias = tuple[str, ...] | Literal["dynamic"]
Start: TypeAlias = str | tuple[str, ...] | Mapping[str, Any]
Readiness: TypeAlias = Literal["exec", "notify"]
"""When a program is ready: when its exec has succeeded, or when it says so."""

AUTO_SHUTDOWNS: tuple[AutoShutdown, ...] = get_args(AutoShutdown)

_OLD_FORM = ("id", "start", "restart", "shutdown", "type", "modules")
_DEPTH_MAX = 8  # of a value carried in an error: it may hold itself


def checked_spec(value: object, auto_shutdown: AutoShutdown | None = None) -> dict[str, Any]:
    """Every field of the specification in ``value``: a mapping, OTP's old 6-tuple, or what has a ``to_map``.

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


def checked_dynamic_spec(value: object) -> dict[str, Any]:
    """The same for a child of a dynamic supervisor, in Elixir's order: shutdown before type, significant last.

    It needs no supervisor: the caller's side checks before it asks (11). A spec without id or start is refused
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
        SHUTDOWN.require(given["shutdown"])
    kind = _type(given)
    shutdown = _shutdown(given, kind)
    modules = _modules(given, start)
    if given.get("significant", False) is not False:
        raise spec_error(
            "invalid_significant", given["significant"], "a dynamic supervisor has no significant children"
        )
    return _assemble(given, start, restart=restart, significant=False, type=kind, shutdown=shutdown, modules=modules)


def checked_specs(value: object, auto_shutdown: AutoShutdown | None = None) -> list[dict[str, Any]]:
    """All specifications of a list, in order. Raises as :func:`checked_spec`, ``badarg``, ``duplicate_child_name``."""
    if not isinstance(value, list | tuple):
        raise spec_error("badarg", value, "child specifications come as a list")
    specs: dict[tuple[str, ChildId], dict[str, Any]] = {}
    for one in value:
        spec = checked_spec(one, auto_shutdown)
        if id_key(spec["id"]) in specs:
            raise spec_error("duplicate_child_name", spec["id"], f"two children have the id {spec['id']!r}")
        specs[id_key(spec["id"])] = spec
    return list(specs.values())


def check_childspecs(value: object, auto_shutdown: object = None) -> None:
    """Check a list of child specifications, as OTP's function of that name; nothing is started or asked.

    ``auto_shutdown`` is that of the supervisor they are for; without it the rule that a supervisor with ``"never"``
    has no significant children is not applied, the one for permanent children is. Raises
    :class:`~athena.errors.InvalidSpec` with OTP's ``tag`` and the offending ``value``.
    """
    if auto_shutdown is not None and auto_shutdown not in AUTO_SHUTDOWNS:
        raise spec_error("badarg", auto_shutdown, f"auto_shutdown is one of {', '.join(AUTO_SHUTDOWNS)}")
    checked_specs(value, auto_shutdown)


def id_key(name: ChildId) -> tuple[str, ChildId]:
    """An id as a dictionary key: ``1``, ``1.0`` and ``True`` are three ids, and Python's keys conflate them."""
    return type(name).__name__, name


def is_import_name(start: str) -> bool:
    """Whether ``start`` is of the form ``package.module:name``."""
    module, colon, attribute = start.partition(":")
    return colon == ":" and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def error_term(error: InvalidSpec) -> Any:
    """The error as OTP's term in JSON: ``{tag: value}``, or the tag alone where OTP's has no value."""
    return error.tag if error.tag in ("missing_id", "missing_start") else {error.tag: error.value}


def spec_error(tag: str, value: object, expected: str) -> InvalidSpec:
    """The error for ``value``, with OTP's ``tag`` and in words what was ``expected``."""
    return InvalidSpec(f"{tag}: {reprlib.repr(value)} is refused: {expected}", tag=tag, value=as_json(value))


def as_json(value: object, depth: int = _DEPTH_MAX) -> Any:
    """``value`` as JSON carries it; what it cannot carry becomes its shortened repr. For values inside errors."""
    if _is_spec(value):
        return as_json(value.to_map(), depth)  # type: ignore[attr-defined]  # it was looked for
    if isinstance(value, list | tuple) and depth > 0:
        return [as_json(one, depth - 1) for one in value]
    if isinstance(value, Mapping) and depth > 0:
        return {str(name): as_json(one, depth - 1) for name, one in value.items()}
    return carried(value)


# --- one field each --------------------------------------------------------------------------------------------------


def _is_spec(value: object) -> bool:
    return hasattr(value, "to_map") and not isinstance(value, type | int)  # an int: a Pid has one too


def _as_mapping(value: object) -> Mapping[str, Any]:
    if _is_spec(value):
        value = value.to_map()  # type: ignore[attr-defined]  # it was looked for
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple) and len(value) == len(_OLD_FORM):
        return dict(zip(_OLD_FORM, value, strict=True))
    raise spec_error("invalid_child_spec", value, "a child specification is a mapping")


def _check_id(value: object) -> None:
    """OTP takes any term; ours is also a key and crosses the wire, so it is a scalar."""
    if value is not None and not isinstance(value, str | bool | int) and not is_number(value):
        raise spec_error("invalid_id", value, "an id is a string or another JSON scalar")


def _start(given: Mapping[str, Any]) -> Start:
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
        return is_import_name(start)
    if isinstance(start, list | tuple):
        # A NUL cannot be given to exec; Python would raise at the launch, long after the spec was accepted.
        return bool(start) and all(isinstance(word, str) and "\0" not in word for word in start) and start[0] != ""
    return bool(start) and _has_names(start)


def _has_names(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _restart(given: Mapping[str, Any]) -> str:
    restart = given.get("restart", "permanent")
    RESTART.require(restart)
    return str(restart)


def _check_combinations(significant: object, restart: str, auto_shutdown: AutoShutdown | None) -> None:
    """A significant child needs a supervisor that looks, and an end that is final; in this order (2)."""
    if significant is not True:
        return
    if auto_shutdown == "never":
        pair = [["auto_shutdown", "never"], ["significant", True]]
        raise spec_error("bad_combination", pair, "a significant child needs auto_shutdown any_ or all_significant")
    if restart == "permanent":
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
    SHUTDOWN.require(given["shutdown"])
    shutdown: Shutdown = given["shutdown"]
    return shutdown


def _modules(given: Mapping[str, Any], start: Start) -> Modules:
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


def _ready(given: Mapping[str, Any], start: Start) -> Readiness:
    if "ready" not in given:
        return "exec"
    ready = given["ready"]
    if not isinstance(start, tuple):
        raise spec_error("invalid_ready", ready, "it is for programs; everything else says by itself when it is ready")
    if ready == "exec":
        return "exec"
    if ready == "notify":
        return "notify"
    raise spec_error("invalid_ready", ready, "ready is 'exec', or 'notify' for a program that speaks sd_notify")


def _assemble(given: Mapping[str, Any], start: Start, **checked: Any) -> dict[str, Any]:
    """Athena's own fields last, then all of them."""
    start_timeout, options = given.get("start_timeout", 30.0), given.get("options", {})
    START_TIMEOUT.require(start_timeout)
    if not _has_names(options):
        raise spec_error("invalid_options", options, "options is a mapping with strings as keys")
    args = given.get("args", ())
    return {
        "id": given["id"],
        "start": start,
        "args": None if args is None else tuple(args),
        "kwargs": given.get("kwargs", {}),
        "start_timeout": start_timeout,
        "ready": _ready(given, start),
        "options": options,
        **checked,
    }
