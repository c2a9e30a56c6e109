"""Stores by name. To add one: one file here and one line in :data:`STORES`; the contract suite then finds it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from athena.config import default_paths
from athena.errors import InvalidOption, UnsupportedOption
from athena.stores.base import Damage, Log, Store

__all__ = ["STORES", "Damage", "Log", "Store", "open_store"]

STORES: dict[str, str] = {
    "jsonl": "athena.stores.jsonl:JsonlStore",
    "in_memory": "athena.stores.memory:MemoryStore",
}
"""Name to ``"module:Class"``, imported when it is asked for. A class here with a parameter ``root`` is given the
directory of this user's logs."""

METHODS = ("open", "read", "tail", "list")
"""What a store must have."""


def open_store(name: str, *, root: Path | None = None, options: Mapping[str, Any] | None = None) -> Store:
    """The store ``name``: one of :data:`STORES`, or a custom ``"module:Class"`` made with ``options`` as keywords.

    ``root`` (default: ``sessions/`` in the user's state directory) is for the stores in :data:`STORES` that keep
    files; a custom one has its own place in its options. Raises :class:`InvalidOption` naming what is wrong, and
    :class:`UnsupportedOption` for a store that only the reference has.
    """
    options = dict(options or {})
    cls = _load(name)
    parameters = inspect.signature(cls)
    if name in STORES and "root" in parameters.parameters:
        options.setdefault("root", root if root is not None else default_paths().sessions)
    try:
        parameters.bind(**options)
    except TypeError as error:
        raise InvalidOption(
            f"store {name!r} cannot be made with these store_options: {error}",
            option="store_options",
            value=repr(sorted(options)),  # names only: a value may hold a password
            expected=f"{cls.__name__}{parameters}",
        ) from None
    return cast(Store, cls(**options))


def _load(name: object) -> type[Any]:
    if name == "ets":
        raise UnsupportedOption(
            "store 'ets' is the reference's table in memory; use 'jsonl', which forks and rewinds and keeps all",
            option="store",
            value=repr(name),
            expected=_legal(),
        )
    target = STORES.get(name, name) if isinstance(name, str) else ""
    module_name, _, class_name = target.partition(":")
    if not module_name or not class_name:
        raise _invalid(name, "is unknown")
    try:
        found: object = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise _invalid(name, f"cannot be imported ({error})") from error
    if not isinstance(found, type):
        raise _invalid(name, f"names no class: {module_name!r} has no class {class_name!r}")
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise _invalid(name, f"is no store: {class_name!r} lacks {', '.join(missing)}")
    return found


def _invalid(name: object, what: str) -> InvalidOption:
    return InvalidOption(
        f"store {name!r} {what}; legal: {_legal()}", option="store", value=repr(name), expected=_legal()
    )


def _legal() -> str:
    return f"{', '.join(STORES)} or 'module:Class' with {', '.join(METHODS)}"
