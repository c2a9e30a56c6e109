"""The asyncio client of registries: the methods of :mod:`athena.registries`, awaited."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from athena import registry_calls as calls
from athena.async_connections import perform
from athena.errors import CallTimeout, NoProcess, NotFound, Reason, Unavailable
from athena.pid import Pid
from athena.recovery import ANSWER_S
from athena.registries import Registry, own_value, unresponsive
from athena.registry_calls import Entries, RegistryIdentity
from athena.session_calls import Call, check_timeout
from athena.supervisors import Target, resolve

T = TypeVar("T")


class AsyncRegistry:
    """A handle on one registry. See :class:`athena.registries.Registry` for what each method promises."""

    child_spec = staticmethod(Registry.child_spec)

    def __init__(self, target: Target, identity: RegistryIdentity) -> None:
        self._target = target
        self.pid: Pid = identity.pid
        self.name: str = identity.name
        self.kind: str = identity.keys

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.kind}>"

    @classmethod
    async def start_link(
        cls,
        *,
        keys: str,
        name: str,
        listeners: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        supervisor: str | Path | Target | None = None,
    ) -> AsyncRegistry:
        """Start a registry that ends with this program."""
        return await cls._start(supervisor, calls.start(calls.start_fields(keys, name, listeners, meta), link=True))

    @classmethod
    async def start(
        cls,
        *,
        keys: str,
        name: str,
        listeners: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        supervisor: str | Path | Target | None = None,
    ) -> AsyncRegistry:
        """As :meth:`start_link`, but it lives on in the daemon when this program ends."""
        return await cls._start(supervisor, calls.start(calls.start_fields(keys, name, listeners, meta), link=False))

    @classmethod
    async def attach(cls, name: str, *, supervisor: str | Path | Target | None = None) -> AsyncRegistry:
        """A handle on a running registry."""
        at = await asyncio.to_thread(lambda: resolve(supervisor, create=False))
        return cls(at, await _perform(at, calls.attach(name), ANSWER_S))

    @classmethod
    async def _start(cls, supervisor: str | Path | Target | None, call: Call[RegistryIdentity]) -> AsyncRegistry:
        target = await asyncio.to_thread(resolve, supervisor)
        return cls(target, await _perform(target, call, ANSWER_S))

    async def stop(self, reason: Reason = "normal") -> None:
        """End the registry."""
        await self._do(calls.stop(self.name, reason))

    async def __aenter__(self) -> AsyncRegistry:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        with suppress(NoProcess, Unavailable):  # it is gone, which was to be reached
            await self.stop()

    async def register(self, key: Any, value: Any = None) -> Pid:
        """Register the calling process under a key, with a value. Returns the pid of the registry."""
        return await self._do(calls.register(self.name, key, value))

    async def unregister(self, key: Any) -> None:
        """Remove all entries of the calling process under a key."""
        await self._do(calls.unregister(self.name, key))

    async def unregister_match(self, key: Any, pattern: Any) -> None:
        """Remove those whose value matches."""
        if callable(pattern):
            for value in filter(pattern, await self.values(key)):
                await self._do(calls.unregister_exactly(self.name, key, value))
        else:
            await self._do(calls.unregister_match(self.name, key, pattern))

    async def update_value(self, key: Any, fun: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Replace the value of the calling process by ``fun`` of it. Returns the new one and the old one."""
        while True:
            old = own_value(self.name, key, self.kind, await self.values(key))
            new = fun(old)
            if await self._do(calls.update(self.name, key, old, new)):
                return new, old

    async def lookup(self, key: Any) -> Entries:
        """``(pid, value)`` of each entry under a key."""
        return await self._do(calls.lookup(self.name, key))

    async def dispatch(self, key: Any, fun: Callable[[Entries], object | Awaitable[object]]) -> None:
        """Call ``fun``, here, with all entries under a key; not at all if there are none. It may be a coroutine."""
        entries = await self.lookup(key)
        if entries:
            done = fun(entries)
            if inspect.isawaitable(done):
                await done

    async def keys(self, pid: int | None = None) -> list[Any]:
        """The keys of a process, by default the calling one."""
        return await self._do(calls.keys(self.name, pid))

    async def values(self, key: Any, pid: int | None = None) -> list[Any]:
        """The values that a process, by default the calling one, has under a key."""
        return await self._do(calls.values(self.name, key, pid))

    async def count(self) -> int:
        """How many entries there are in all."""
        return await self._do(calls.count(self.name))

    async def match(self, key: Any, pattern: Any) -> Entries:
        """The entries under a key whose value matches."""
        if callable(pattern):
            return [(pid, value) for pid, value in await self.lookup(key) if pattern(value)]
        return await self._do(calls.match(self.name, key, pattern))

    async def count_match(self, key: Any, pattern: Any) -> int:
        """How many those are."""
        if callable(pattern):
            return len(await self.match(key, pattern))
        return await self._do(calls.count_match(self.name, key, pattern))

    async def select(self, key: Any = ..., value: Any = ..., pid: int | None = None) -> list[tuple[Any, Pid, Any]]:
        """``(key, pid, value)`` of all entries whose key and value match these patterns."""
        return await self._do(calls.select(self.name, key, value, pid))

    async def put_meta(self, key: Any, value: Any) -> None:
        """Store a value that belongs to no process."""
        await self._do(calls.put_meta(self.name, key, value))

    async def meta(self, key: Any, default: Any = None) -> Any:
        """What was stored, or ``default``."""
        try:
            return await self._do(calls.meta(self.name, key))
        except NotFound:
            return default

    async def delete_meta(self, key: Any) -> None:
        """Remove it."""
        await self._do(calls.delete_meta(self.name, key))

    @asynccontextmanager
    async def lock(self, key: Any, timeout: float | None = None) -> AsyncIterator[None]:
        """Hold the lock of this key while the block runs."""
        check_timeout(timeout)
        wish, end = calls.lock_pair(self.name, key)
        try:
            try:
                await perform(self._target, wish, timeout)
            except CallTimeout:
                raise calls.lock_timeout(key, timeout) from None
            yield
        finally:  # of a wait that was cut short too: nobody must be granted a lock that he does not wait for
            with suppress(NoProcess, Unavailable):  # the registry has ended, and with it its locks
                await self._do(end)

    async def _do(self, call: Call[T]) -> T:
        return await _perform(self._target, call, ANSWER_S)


async def _perform(target: Target, call: Call[T], timeout: float) -> T:
    try:
        return await perform(target, call, timeout)
    except CallTimeout:
        raise unresponsive(target) from None
