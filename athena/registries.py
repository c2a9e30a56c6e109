"""Registries: processes under keys of their own choice, to be found, counted and told of things by key.

Its asyncio twin is :mod:`athena.async_registries`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from athena import registry_calls as calls
from athena.child_specs import ChildId
from athena.errors import (
    CallTimeout,
    NoProcess,
    NotFound,
    Reason,
    Unavailable,
    Unresponsive,
)
from athena.pid import Pid
from athena.recovery import ANSWER_S, perform
from athena.registry_calls import Entries, RegistryIdentity
from athena.session_calls import Call, check_timeout
from athena.supervisors import Target, resolve

T = TypeVar("T")


class Registry:
    """A handle on one registry, by its name.

    Keys and values are JSON. Keys are compared strictly: ``1``, ``1.0`` and ``True`` are three keys. An entry belongs
    to the *process* that registered it, and a program is one process, however many threads and handles it has; when
    that process dies, its entries and locks are gone before anybody is told. While a process has entries it is linked
    to the registry.

    Every method raises :class:`~athena.errors.NoProcess` if no registry of the name runs,
    :class:`~athena.errors.InvalidOption` for a key or value that is no JSON, and
    :class:`~athena.errors.Unavailable` if the supervisor is lost.
    """

    def __init__(self, target: Target, identity: RegistryIdentity) -> None:
        self._target = target
        self.pid: Pid = identity.pid
        self.name: str = identity.name
        self.kind: str = identity.keys

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.kind}>"

    # --- from start to end

    @classmethod
    def start_link(
        cls,
        *,
        keys: str,
        name: str,
        listeners: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        supervisor: str | Path | Target | None = None,
    ) -> Registry:
        """Start a registry that ends with this program.

        Args:
            keys: ``"unique"``: a key has one holder; ``"duplicate"``: any number of processes, each as often as it
                wants.
            name: to find it by; it is a process' name as others are.
            listeners: names of processes that are sent ``{"register": [registry, key, pid, value]}`` and
                ``{"unregister": [registry, key, pid]}``. Of a death they hear nothing: they monitor.
            meta: what :meth:`meta` answers.
            supervisor: which daemon; see :meth:`athena.Session.start_link`.

        Raises :class:`~athena.errors.AlreadyStarted` with the ``pid`` of who has the name.
        """
        return cls._start(supervisor, calls.start(calls.start_fields(keys, name, listeners, meta), link=True))

    @classmethod
    def start(
        cls,
        *,
        keys: str,
        name: str,
        listeners: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        supervisor: str | Path | Target | None = None,
    ) -> Registry:
        """As :meth:`start_link`, but it lives on in the daemon when this program ends."""
        return cls._start(supervisor, calls.start(calls.start_fields(keys, name, listeners, meta), link=False))

    @staticmethod
    def child_spec(
        *,
        keys: str,
        name: str,
        id: ChildId = None,
        listeners: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """The specification of a registry as a child of a supervisor; put it before those that use it.

        ``id`` is the name if not given; ``fields``: ``restart``, ``significant``. It counts as a supervisor, as in
        Elixir. One that is restarted is empty.
        """
        start = {"registry": calls.start_fields(keys, name, listeners, meta)}
        return {"id": name if id is None else id, **fields, "type": "supervisor", "start": start}

    @classmethod
    def attach(cls, name: str, *, supervisor: str | Path | Target | None = None) -> Registry:
        """A handle on a running registry."""
        at = resolve(supervisor, create=False)
        return cls(at, _perform(at, calls.attach(name), ANSWER_S))

    @classmethod
    def _start(cls, supervisor: str | Path | Target | None, call: Call[RegistryIdentity]) -> Registry:
        target = resolve(supervisor)
        return cls(target, _perform(target, call, ANSWER_S))

    def stop(self, reason: Reason = "normal") -> None:
        """End the registry. Whoever is registered in it is linked to it, and gets an exit signal."""
        self._do(calls.stop(self.name, reason))

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with suppress(NoProcess, Unavailable):  # it is gone, which was to be reached
            self.stop()

    # --- entries of the calling process

    def register(self, key: Any, value: Any = None) -> Pid:
        """Register the calling process under a key, with a value. Returns the pid of the registry.

        Raises :class:`~athena.errors.AlreadyRegistered` with the ``pid`` of the holder if keys are unique and this one
        is taken, by the calling process too.
        """
        return self._do(calls.register(self.name, key, value))

    def unregister(self, key: Any) -> None:
        """Remove all entries of the calling process under a key; nothing if there are none."""
        self._do(calls.unregister(self.name, key))

    def unregister_match(self, key: Any, pattern: Any) -> None:
        """Remove those whose value matches; see :meth:`match`."""
        if callable(pattern):
            for value in filter(pattern, self.values(key)):
                self._do(calls.unregister_exactly(self.name, key, value))
        else:
            self._do(calls.unregister_match(self.name, key, pattern))

    def update_value(self, key: Any, fun: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Replace the value of the calling process by ``fun`` of it. Returns the new one and the old one.

        ``fun`` is called again if another thread was faster. Raises :class:`~athena.errors.NotFound` if this process
        does not hold the key, and :class:`~athena.errors.InvalidOption` if keys are not unique.
        """
        while True:
            old = own_value(self.name, key, self.kind, self.values(key))
            new = fun(old)
            if self._do(calls.update(self.name, key, old, new)):
                return new, old

    # --- what anybody asks

    def lookup(self, key: Any) -> Entries:
        """``(pid, value)`` of each entry under a key; a process that has just died may be among them."""
        return self._do(calls.lookup(self.name, key))

    def dispatch(self, key: Any, fun: Callable[[Entries], object]) -> None:
        """Call ``fun``, here, with all entries under a key; not at all if there are none. Its errors are raised."""
        entries = self.lookup(key)
        if entries:
            fun(entries)

    def keys(self, pid: int | None = None) -> list[Any]:
        """The keys of a process, by default the calling one, as often as it is registered under each."""
        return self._do(calls.keys(self.name, pid))

    def values(self, key: Any, pid: int | None = None) -> list[Any]:
        """The values that a process, by default the calling one, has under a key."""
        return self._do(calls.values(self.name, key, pid))

    def count(self) -> int:
        """How many entries there are in all."""
        return self._do(calls.count(self.name))

    def match(self, key: Any, pattern: Any) -> Entries:
        """The entries under a key whose value matches.

        In a pattern ``...`` stands for anything, a list has as many parts as the value, and a mapping names what the
        value must at least have. All else is equal and of the same type. Or a function, called here, that says of a
        value whether it does.
        """
        if callable(pattern):
            return [(pid, value) for pid, value in self.lookup(key) if pattern(value)]
        return self._do(calls.match(self.name, key, pattern))

    def count_match(self, key: Any, pattern: Any) -> int:
        """How many those are."""
        if callable(pattern):
            return len(self.match(key, pattern))
        return self._do(calls.count_match(self.name, key, pattern))

    def select(self, key: Any = ..., value: Any = ..., pid: int | None = None) -> list[tuple[Any, Pid, Any]]:
        """``(key, pid, value)`` of all entries whose key and value match these patterns, of one process if given."""
        return self._do(calls.select(self.name, key, value, pid))

    # --- what belongs to the registry itself

    def put_meta(self, key: Any, value: Any) -> None:
        """Store a value that belongs to no process."""
        self._do(calls.put_meta(self.name, key, value))

    def meta(self, key: Any, default: Any = None) -> Any:
        """What was stored, or ``default``."""
        try:
            return self._do(calls.meta(self.name, key))
        except NotFound:
            return default

    def delete_meta(self, key: Any) -> None:
        """Remove it; nothing if it is not there."""
        self._do(calls.delete_meta(self.name, key))

    # --- locks

    @contextmanager
    def lock(self, key: Any, timeout: float | None = None) -> Iterator[None]:
        """Hold the lock of this key while the block runs: nobody else does, in no process and no thread.

        Who waits longest is next. A lock is free again when its holder's process dies, however it does. Locks have
        nothing to do with the keys that processes are registered under. A lock that is held already is not held a
        second time: asked for inside its own block, it waits for ever.

        ``timeout`` (seconds) ends the wait. Raises :class:`~athena.errors.CallTimeout`.
        """
        check_timeout(timeout)
        wish, end = calls.lock_pair(self.name, key)
        try:
            try:
                perform(self._target, wish, timeout)
            except CallTimeout:
                raise calls.lock_timeout(key, timeout) from None
            yield
        finally:  # of a wait that was cut short too: nobody must be granted a lock that he does not wait for
            with suppress(NoProcess, Unavailable):  # the registry has ended, and with it its locks
                self._do(end)

    def _do(self, call: Call[T]) -> T:
        return _perform(self._target, call, ANSWER_S)


def own_value(name: str, key: Any, kind: str, values: Sequence[Any]) -> Any:
    """The one value of the calling process under a unique key. Raises as :meth:`Registry.update_value`."""
    if kind != "unique":
        raise calls.not_unique(name)
    if not values:
        raise NotFound(f"the calling process is not registered under {key!r} in {name!r}", target=key)
    return values[0]


def _perform(target: Target, call: Call[T], timeout: float) -> T:
    try:
        return perform(target, call, timeout)
    except CallTimeout:
        raise unresponsive(target) from None


def unresponsive(target: Target) -> Unresponsive:
    """A registry answers at once: silence is the supervisor's."""
    return Unresponsive(f"the supervisor at {str(target.path)!r} does not answer; is it stopped?")
