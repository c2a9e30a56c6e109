"""What a process can be called: a text, or a key in a registry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from athena.errors import InvalidOption

DEPTH_MAX = 100
"""Levels of nesting in a key or a value: far more than one has, and less than the encoder takes."""

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1


@dataclass(frozen=True, slots=True)
class Via:
    """A process as whoever is registered under a key: a name to start it by, and to address it.

    Args:
        registry: the name of a registry with unique keys.
        key: JSON.
        value: what is registered with the key when a process is started by this name. Of no meaning elsewhere.
    """

    registry: str
    key: Any
    value: Any = None

    def to_map(self) -> dict[str, Any]:
        """The wire form. Raises :class:`~athena.errors.InvalidOption`."""
        registry: object = self.registry
        if not isinstance(registry, str) or not registry:
            raise _invalid("registry", self.registry, "the registry of a Via is given by its name")
        return {"via": [self.registry, json_value("key", self.key), json_value("value", self.value)]}


Name: TypeAlias = str | Via


def name_form(name: object) -> str | dict[str, Any] | None:
    """A name as it travels; ``None`` for none. Raises :class:`~athena.errors.InvalidOption` for what is no name."""
    if name is None:
        return None
    if isinstance(name, Via):
        return name.to_map()
    if isinstance(name, str) and 1 <= len(name) <= 255 and "\n" not in name:
        return str(name)
    raise _invalid("name", name, "a name is a text of 1 to 255 characters on one line, or Via(registry, key)")


def json_value(option: str, value: object) -> Any:
    """``value`` as JSON, unchanged but for tuples, which become lists.

    What the encoder would alter silently (an infinity, a mapping's numeric keys, a pid's serial) is refused: keys are
    compared strictly, and a value comes back as it was given. Raises :class:`~athena.errors.InvalidOption`.
    """
    return _json(option, value, DEPTH_MAX)


def _json(option: str, value: object, levels: int) -> Any:
    if levels == 0:
        raise _invalid(option, "...", f"it is nested deeper than {DEPTH_MAX} levels, or holds itself")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and _is_text(value):
        return str.__str__(value)
    if type(value) is int and _INT_MIN <= value <= _INT_MAX:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_json(option, one, levels - 1) for one in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) and _is_text(name) for name in value):
        return {str.__str__(name): _json(option, one, levels - 1) for name, one in value.items()}
    hint = "; of a Pid, give its to_map()" if hasattr(value, "serial") else ""
    raise _invalid(option, value, f"it must be JSON: texts, numbers of 64 bits, lists, mappings by text{hint}")


def _is_text(value: str) -> bool:
    return value.isascii() or value.encode(errors="replace").decode() == value


def _invalid(option: str, value: object, text: str) -> InvalidOption:
    shown = repr(value)[:80]
    return InvalidOption(f"{option} got {shown}: {text}", option=option, value=shown, expected="JSON or a name")
