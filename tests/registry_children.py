"""Processes that the tests of registries start: each registers itself and then does what it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from athena import NoReply, Reply, Server
from athena.registries import Registry
from tests.tree_children import note, serve


def hold(directory: str, name: str, registry: str, *keys: Any) -> None:
    """Register under the keys, each with the process' name as value, note it, and obey."""
    handle = Registry.attach(registry)
    for key in keys:
        handle.register(key, name)
    serve(directory, name)


def hold_lock(directory: str, name: str, registry: str, key: Any) -> None:
    """Wait for a lock, note that it is held, and obey while it is."""
    note(directory, f"wait {name}")
    with Registry.attach(registry).lock(key):
        serve(directory, name)


def start_linked(directory: str, name: str, *registries: str) -> None:
    """Start registries that are linked to this process, register in each for a moment, and obey."""
    for registry in registries:
        handle = Registry.start_link(keys="unique", name=registry)
        handle.register("here")
        handle.unregister("here")
    serve(directory, name)


def start_both(linked: str, free: str, socket: str) -> None:
    """For a program of its own: one registry that ends with it, and one that does not."""
    Registry.start_link(keys="unique", name=linked, supervisor=Path(socket))
    Registry.start(keys="unique", name=free, supervisor=Path(socket))


class Counter(Server):
    """Counts; tells what it has heard, and registers itself when asked."""

    def init(self, start: int = 0) -> None:
        self.count = start
        self.heard: list[Any] = []

    def handle_call(self, request: Any, caller: Any) -> Any:
        match request:
            case "heard":
                return Reply(self.heard)
            case {"register": [registry, key]}:
                return Reply(Registry.attach(registry).register(key).to_map())
            case "stuck":
                return NoReply()
        self.count += int(request)
        return Reply(self.count)

    def handle_info(self, message: Any) -> None:
        self.heard.append(message)
