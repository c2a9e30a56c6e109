"""The registry of providers: one line per provider, imported when it is first asked for."""

from __future__ import annotations

import importlib
from typing import cast

from athena.errors import InvalidOption
from athena.providers.base import Provider, ProviderSettings

_REGISTRY: dict[str, str] = {
    "openai": "athena.providers.openai:create_openai",
    "openai_compatible": "athena.providers.openai:create",
    "ollama": "athena.providers.ollama:create",
    "mock": "athena.providers.mock:create",
    "local": "athena.providers.local:create",
}


def names() -> tuple[str, ...]:
    """The names of all built-in providers."""
    return tuple(_REGISTRY)


def create(name: str, settings: ProviderSettings) -> Provider:
    """The provider called ``name``, or the one that ``"package.module:function"`` makes from ``settings``.

    Raises :class:`InvalidOption` for an unknown name, and what the provider's own ``create`` raises for bad settings.
    """
    path = _REGISTRY.get(name, name)
    module, _, function = path.partition(":")
    if not (module and function):
        raise _unknown(name, "no provider has this name")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as exc:
        raise _unknown(name, f"cannot be imported: {exc}") from exc
    return cast(Provider, make(settings))


def _unknown(name: str, why: str) -> InvalidOption:
    expected = f'{", ".join(names())}, or "package.module:create_function"'
    return InvalidOption(
        f"provider={name!r}: {why}; expected {expected}", option="provider", value=repr(name), expected=expected
    )
