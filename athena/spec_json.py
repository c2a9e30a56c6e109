"""Specifications as JSON, in which they travel. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from athena.child_specs import ChildSpec
from athena.errors import InvalidSpec


def json_form(value: Any) -> Any:
    """What specifications and flags are on the other side. Raises :class:`~athena.errors.InvalidSpec`."""
    return orjson.loads(encoded(value))


def encoded(value: Any) -> bytes:
    """JSON. Raises :class:`~athena.errors.InvalidSpec` for what is none: a number that is no number, a function."""
    try:
        _check_numbers(value)
        return orjson.dumps(value, default=_plain)
    except (orjson.JSONEncodeError, RecursionError) as error:
        raise InvalidSpec(
            f"a specification must be JSON: {error}", tag="invalid_child_spec", value=repr(value)[:200]
        ) from None


def _check_numbers(value: Any) -> None:
    """Raise for what the encoder would turn into ``null`` without a word."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidSpec(f"{value} is no number that JSON has", tag="invalid_child_spec", value=repr(value))
    if isinstance(value, ChildSpec):
        value = value.to_map()
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            _check_numbers(one)


def _plain(value: Any) -> Any:
    if isinstance(value, ChildSpec):
        return value.to_map()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
