"""Keys under which processes are found, and locks by key: Elixir's ``Registry`` without its processes. Pure.

A process registers itself under keys of its own choice, each with a value. Whatever is known of a dead process goes in
one call, :meth:`KeyRegistry.forget`, which the driver makes before anybody is told of the death (otp.md 19.3).

Binding rules: `reference/otp.md` section 15. Keys and values are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from athena.errors import InvalidOption, NotFound

Keys = Literal["unique", "duplicate"]
KINDS: tuple[Keys, ...] = get_args(Keys)

IsAlive = Callable[[int], bool]

Pattern = Sequence[Any]
"""What a value is compared with: ``["any"]``, ``["is", value]``, ``["list", [pattern, ...]]``, or
``["map", {name: pattern, ...}]``, which other names may stand beside."""

NAME_CHARS = 255


def canonical(value: Any) -> str:
    """A text that two JSON values have in common only if they are equal and of one type.

    ``1``, ``1.0`` and ``True`` are three values, which Python's own keys conflate. Raises :class:`InvalidOption`.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _invalid("key", value, "JSON", f"a key is JSON: {error}") from None


def matches(pattern: Pattern, value: Any) -> bool:
    """Whether the value has the shape of the pattern. Raises :class:`InvalidOption` for what is no pattern."""
    match pattern:
        case ["any"]:
            return True
        case ["is", wanted]:
            return canonical(wanted) == canonical(value)
        case ["list", list(parts)]:
            return isinstance(value, list) and len(value) == len(parts) and all(map(matches, parts, value))
        case ["map", dict(parts)]:
            if not isinstance(value, dict):
                return False
            return all(name in value and matches(part, value[name]) for name, part in parts.items())
        case _:
            raise _invalid("pattern", pattern, "a pattern", "a pattern is any, is, list or map")


class Entry(NamedTuple):
    """One registration."""

    key: Any
    serial: int
    value: Any


class Sizes(NamedTuple):
    """How much a registry holds. All zero when every process that was in it has ended."""

    entries: int
    keys: int
    processes: int


class KeyRegistry:
    """One registry. Processes are serials; ``listeners`` are names of processes that hear of what comes and goes."""

    def __init__(
        self, name: str, keys: Keys, *, listeners: Sequence[str] = (), meta: Mapping[str, Any] | None = None
    ) -> None:
        self.name = name
        self.kind = keys
        self.listeners = tuple(listeners)
        self._meta: dict[str, Any] = {canonical(key): value for key, value in (meta or {}).items()}
        # By key, then by process: a death costs what the dead process has, however many others share its keys.
        self._values: dict[str, dict[int, list[Any]]] = {}
        self._keys: dict[int, dict[str, Any]] = {}

    @property
    def is_unique(self) -> bool:
        """Whether a key has one holder at most."""
        return self.kind == "unique"

    # --- what a process does with its own entries

    def register(self, serial: int, key: Any, value: Any, is_alive: IsAlive) -> int | None:
        """Add an entry. The holder's serial if the key is unique and taken, by the process itself too; then nothing
        has changed. A holder that is dead and not forgotten yet is displaced."""
        text = canonical(key)
        holder = self.holder(key) if self.is_unique else None
        if holder is not None:
            if is_alive(holder):
                return holder
            self._drop(holder, text)
        self._values.setdefault(text, {}).setdefault(serial, []).append(value)
        self._keys.setdefault(serial, {})[text] = key
        return None

    def unregister(self, serial: int, key: Any) -> bool:
        """Remove all entries that the process has under the key. Whether there were any."""
        return self._drop(serial, canonical(key))

    def unregister_match(self, serial: int, key: Any, pattern: Pattern) -> bool:
        """Remove those whose value matches. Whether there were any."""
        text = canonical(key)
        values = self._values.get(text, {}).get(serial, [])
        left = [value for value in values if not matches(pattern, value)]
        if len(left) == len(values):
            return False
        if not left:
            return self._drop(serial, text)
        self._values[text][serial] = left
        return True

    def update(self, serial: int, key: Any, old: Any, new: Any) -> bool:
        """Put ``new`` in the place of ``old``. ``False`` if the value is another one by now.

        Raises :class:`InvalidOption` if the keys are not unique, :class:`NotFound` if the process does not hold it.
        """
        if not self.is_unique:
            raise _invalid(
                "keys", self.kind, "unique", f"a value is updated where keys are unique, not in {self.name!r}"
            )
        values = self._values.get(canonical(key), {}).get(serial)
        if values is None:
            raise NotFound(f"the calling process is not registered under {key!r} in {self.name!r}", target=key)
        if canonical(values[0]) != canonical(old):
            return False
        values[0] = new
        return True

    def forget(self, serial: int) -> bool:
        """The process is gone. Whether it had entries."""
        texts = self._keys.get(serial, {})
        return any([self._drop(serial, text) for text in [*texts]])

    def _drop(self, serial: int, text: str) -> bool:
        holders = self._values.get(text, {})
        if holders.pop(serial, None) is None:
            return False
        if not holders:
            del self._values[text]
        keys = self._keys[serial]
        del keys[text]
        if not keys:
            del self._keys[serial]
        return True

    # --- what anybody asks

    def holder(self, key: Any) -> int | None:
        """The process that was registered first under the key; of a unique one the only one."""
        return next(iter(self._values.get(canonical(key), {})), None)

    def holds(self, serial: int) -> bool:
        """Whether the process has entries."""
        return serial in self._keys

    def lookup(self, key: Any) -> list[tuple[int, Any]]:
        """Processes and values under the key; one that has just died may be among them."""
        return [(serial, value) for serial, values in self._values.get(canonical(key), {}).items() for value in values]

    def keys(self, serial: int) -> list[Any]:
        """The keys of a process, as often as it is registered under each."""
        found = self._keys.get(serial, {})
        return [key for text, key in found.items() for _ in self._values[text][serial]]

    def values(self, serial: int, key: Any) -> list[Any]:
        """What a process has registered under the key."""
        return list(self._values.get(canonical(key), {}).get(serial, []))

    def count(self) -> int:
        """How many entries there are. Takes time with their number."""
        return sum(len(values) for holders in self._values.values() for values in holders.values())

    def match(self, key: Any, pattern: Pattern) -> list[tuple[int, Any]]:
        """Those under the key whose value matches."""
        return [(serial, value) for serial, value in self.lookup(key) if matches(pattern, value)]

    def select(self, key: Pattern, value: Pattern, serial: int | None = None) -> list[Entry]:
        """All entries, under whatever key, that match; of one process only, if a serial is given."""
        return [
            entry
            for entry in self._entries(serial)
            if matches(key, entry.key) and matches(value, entry.value)
        ]  # fmt: skip

    def _entries(self, serial: int | None) -> Iterator[Entry]:
        of = self._keys if serial is None else {serial: self._keys.get(serial, {})}
        for holder, keys in of.items():
            for text, key in keys.items():
                for value in self._values[text][holder]:
                    yield Entry(key, holder, value)

    def sizes(self) -> Sizes:
        """How much there is."""
        return Sizes(self.count(), len(self._values), len(self._keys))

    # --- what belongs to the registry itself

    def put_meta(self, key: Any, value: Any) -> None:
        """Store what belongs to no process."""
        self._meta[canonical(key)] = value

    def meta(self, key: Any) -> tuple[Any] | None:
        """What was stored, in a tuple: ``None`` may be stored too."""
        text = canonical(key)
        return (self._meta[text],) if text in self._meta else None

    def delete_meta(self, key: Any) -> None:
        """Remove it; nothing if it is not there."""
        self._meta.pop(canonical(key), None)


class KeyLocks:
    """Who holds which lock, and who waits for it. Each wish for a lock has a ticket of its own, chosen by whoever has
    it: one process may have several, as its threads do, and they exclude each other too."""

    def __init__(self) -> None:
        self._queues: dict[str, dict[tuple[int, str], None]] = {}
        self._wishes: dict[int, dict[tuple[str, str], None]] = {}

    def acquire(self, key: Any, serial: int, ticket: str) -> bool:
        """Hold the lock, or wait behind those that came before. Whether it is held now; asking twice is asking once."""
        text = canonical(key)
        queue = self._queues.setdefault(text, {})
        queue.setdefault((serial, ticket))
        self._wishes.setdefault(serial, {})[text, ticket] = None
        return next(iter(queue)) == (serial, ticket)

    def release(self, key: Any, serial: int, ticket: str) -> tuple[int, str] | None:
        """Give it back, or wait no more. Who holds the lock by that and did not before."""
        return self._remove(canonical(key), serial, ticket)

    def forget(self, serial: int) -> list[tuple[int, str]]:
        """The process is gone. Who holds locks by that: others than itself."""
        wishes = [*self._wishes.get(serial, {})]
        found = [self._remove(text, serial, ticket) for text, ticket in wishes]
        return [holder for holder in found if holder is not None and holder[0] != serial]

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def _remove(self, text: str, serial: int, ticket: str) -> tuple[int, str] | None:
        queue, wish = self._queues.get(text, {}), (serial, ticket)
        if wish not in queue:
            return None
        held = next(iter(queue)) == wish
        del queue[wish]
        del self._wishes[serial][text, ticket]
        if not self._wishes[serial]:
            del self._wishes[serial]
        if not queue:
            del self._queues[text]
            return None
        return next(iter(queue)) if held else None


def parse_registry(given: Mapping[str, Any]) -> KeyRegistry:
    """The empty registry that a start request describes. Raises :class:`InvalidOption` naming what is wrong."""
    name, keys = given.get("name"), given.get("keys")
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_CHARS or "\n" in name:
        raise _invalid("name", name, "a string", f"a registry's name has 1 to {NAME_CHARS} characters on one line")
    if keys not in KINDS:
        raise _invalid("keys", keys, "'unique' | 'duplicate'", "keys is 'unique' or 'duplicate'")
    listeners, meta = given.get("listeners") or [], given.get("meta") or {}
    if not isinstance(listeners, list) or not all(isinstance(one, str) for one in listeners):
        raise _invalid("listeners", listeners, "a list of names", "listeners are the names of processes")
    if not isinstance(meta, dict):
        raise _invalid("meta", meta, "a mapping", "meta is a mapping with strings as keys")
    return KeyRegistry(name, keys, listeners=listeners, meta=meta)


def parse_via(given: Any) -> tuple[str, Any, Any]:
    """Registry, key and value of a via name in its wire form. Raises :class:`InvalidOption`."""
    match given:
        case {"via": [str(registry), key, value]}:
            return registry, key, value
        case _:
            raise _invalid("name", given, "a string or Via(registry, key)", "this is no form of a name")


def _invalid(option: str, value: Any, expected: str, text: str) -> InvalidOption:
    shown = repr(value)[:80]
    return InvalidOption(f"{text}; got {shown}", option=option, value=shown, expected=expected)
