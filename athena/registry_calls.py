"""What each method of a registry asks and how its answer reads, without I/O: the sync and the async shell share
these."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from athena.errors import CallTimeout, InvalidOption, Reason
from athena.names import json_value
from athena.pid import Pid
from athena.session_calls import Call
from athena.wire import Frame, dumps

Entries: TypeAlias = list[tuple[Pid, Any]]


@dataclass(frozen=True, slots=True)
class RegistryIdentity:
    """What names a registry."""

    pid: Pid
    name: str
    keys: str


def start_fields(keys: str, name: str, listeners: Sequence[str], meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """The registry that is wanted; the supervisor checks it."""
    if isinstance(listeners, str):
        raise InvalidOption(
            f"listeners got {listeners!r}: it is a list of names",
            option="listeners",
            value=repr(listeners),
            expected="a list of names",
        )
    given = {"keys": keys, "name": name, "listeners": list(listeners), "meta": dict(meta or {})}
    return {field: json_value(field, value) for field, value in given.items()}


def start(fields: Mapping[str, Any], *, link: bool) -> Call[RegistryIdentity]:
    """Start a registry."""
    return Call("registry_start", {}, dumps({**fields, "link": link}), _identity)


def attach(name: str) -> Call[RegistryIdentity]:
    """A running one."""
    return Call("registry_attach", {"registry": name}, b"", _identity)


def stop(name: str, reason: Reason) -> Call[None]:
    """End it."""
    return _call("registry_stop", name, _none, reason=reason)


def register(name: str, key: object, value: object) -> Call[Pid]:
    """Add an entry of the caller's."""
    return _call("registry_register", name, lambda f: _pid(f.json()["owner"]), key=key, value=value)


def unregister(name: str, key: object) -> Call[None]:
    """Remove the caller's entries under a key."""
    return _call("registry_unregister", name, _none, key=key)


def unregister_match(name: str, key: object, pattern: object) -> Call[None]:
    """Remove those whose value matches."""
    return _call("registry_unregister_match", name, _none, key=key, pattern=pattern_form(pattern))


def unregister_exactly(name: str, key: object, value: object) -> Call[None]:
    """Remove the caller's entries under a key with just this value."""
    return _call("registry_unregister_match", name, _none, key=key, pattern=["is", value])


def update(name: str, key: object, old: object, new: object) -> Call[bool]:
    """Put a value in the place of another. ``False``: it is another by now."""
    return _call("registry_update", name, lambda f: bool(f.json()["done"]), key=key, old=old, new=new)


def lookup(name: str, key: object) -> Call[Entries]:
    """Who is registered under a key."""
    return _call("registry_lookup", name, _entries, key=key)


def keys(name: str, pid: int | None) -> Call[list[Any]]:
    """The keys of a process."""
    return _call("registry_keys", name, lambda f: list(f.json()), **_of(pid))


def values(name: str, key: object, pid: int | None) -> Call[list[Any]]:
    """What a process has registered under a key."""
    return _call("registry_values", name, lambda f: list(f.json()), key=key, **_of(pid))


def count(name: str) -> Call[int]:
    """How many entries."""
    return _call("registry_count", name, lambda f: int(f.json()))


def match(name: str, key: object, pattern: object) -> Call[Entries]:
    """Those under a key whose value matches."""
    return _call("registry_match", name, _entries, key=key, pattern=pattern_form(pattern))


def count_match(name: str, key: object, pattern: object) -> Call[int]:
    """How many those are."""
    return _call("registry_count_match", name, lambda f: int(f.json()), key=key, pattern=pattern_form(pattern))


def select(name: str, key: object, value: object, pid: int | None) -> Call[list[tuple[Any, Pid, Any]]]:
    """Entries under all keys."""

    def read(frame: Frame) -> list[tuple[Any, Pid, Any]]:
        return [(key, _pid(pid), value) for key, pid, value in frame.json()]

    return _call("registry_select", name, read, key=pattern_form(key), value=pattern_form(value), **_of(pid))


def put_meta(name: str, key: object, value: object) -> Call[None]:
    """Store what belongs to the registry."""
    return _call("registry_put_meta", name, _none, key=key, value=value)


def meta(name: str, key: object) -> Call[Any]:
    """What was stored."""
    return _call("registry_meta", name, lambda f: f.json(), key=key)


def delete_meta(name: str, key: object) -> Call[None]:
    """Remove it."""
    return _call("registry_delete_meta", name, _none, key=key)


def lock_pair(name: str, key: object) -> tuple[Call[None], Call[None]]:
    """To wait for a lock, answered when it is held, and to give it back, or up."""
    ticket = secrets.token_hex(8)
    wish = _call("registry_lock", name, _none, key=key, ticket=ticket)
    return wish, _call("registry_unlock", name, _none, key=key, ticket=ticket)


def lock_timeout(key: object, timeout: float | None) -> CallTimeout:
    """The wait for a lock has ended."""
    return CallTimeout(f"the lock of {key!r} was not free within {timeout} s")


# --- reading and writing ----------------------------------------------------------------------------------------------


def pattern_form(pattern: object) -> list[Any]:
    """A pattern as it travels: ``...`` is anything, a list has as many parts, a mapping has at least these names, and
    everything else is equal, of the same type."""
    if pattern is ...:
        return ["any"]
    if isinstance(pattern, list | tuple):
        return ["list", [pattern_form(part) for part in pattern]]
    if isinstance(pattern, Mapping):
        return ["map", {name: pattern_form(part) for name, part in pattern.items()}]
    return ["is", json_value("pattern", pattern)]


def not_unique(name: str) -> InvalidOption:
    """What is asked of a registry with duplicate keys and needs unique ones."""
    text = f"a value is updated where keys are unique; in {name!r} a process may have several under one key"
    return InvalidOption(text, option="keys", value="'duplicate'", expected="a registry with keys='unique'")


def _call(op: str, name: str, read: Callable[[Frame], Any], **fields: Any) -> Call[Any]:
    return Call(
        op, {"registry": name}, dumps({field: json_value(field, value) for field, value in fields.items()}), read
    )


def _of(pid: int | None) -> dict[str, Any]:
    """The process that is asked about; nothing for the caller. A plain number is looked up among live processes."""
    if pid is None:
        return {}
    return {"pid": pid.to_map() if isinstance(pid, Pid) else {"pid": pid, "serial": None, "supervisor": None}}


def _pid(value: dict[str, Any]) -> Pid:
    pid = Pid.from_map(value)
    assert pid is not None, "it has one"
    return pid


def _identity(frame: Frame) -> RegistryIdentity:
    value = frame.json()
    return RegistryIdentity(_pid(value["pid"]), value["name"], value["keys"])


def _entries(frame: Frame) -> Entries:
    return [(_pid(pid), value) for pid, value in frame.json()]


def _none(frame: Frame) -> None:
    return None
