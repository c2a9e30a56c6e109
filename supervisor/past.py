"""A session's recorded events as its supervisor reads them: for subscribers, and for whoever asks while there is no
child."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from athena import events
from athena.errors import StoreError, UnsupportedStore
from athena.events import Event
from athena.stores.jsonl import JsonlStore
from supervisor.session_request import SessionRequest

MEMORY_LOG_BYTES = 64 * 1024 * 1024
"""The bound of an in_memory log; the child's own store refuses at the same one."""


class Past:
    """The log of one session. That of an in_memory one is kept here: it outlives the child, and ends with us."""

    def __init__(self, request: SessionRequest) -> None:
        self.lines: list[bytes] = []
        """Of an in_memory log."""
        self._request = request
        self._size_bytes = 0

    @property
    def is_readable(self) -> bool:
        """Whether it can be read without the child."""
        return self._request.store in ("jsonl", "in_memory")

    def keep(self, line: bytes) -> None:
        """The child has recorded this."""
        if self._request.store == "in_memory" and self._size_bytes + len(line) <= MEMORY_LOG_BYTES:
            self.lines.append(line)
            self._size_bytes += len(line)

    def read(self, after: int) -> Iterable[Event]:
        """The events after this seq. Raises :class:`StoreError`; :class:`UnsupportedStore` for a custom store."""
        session_id, root = self._request.session_id, self._request.root
        match self._request.store:
            case "jsonl":
                if root is None:
                    raise StoreError("the session has no log directory", session_id=session_id)
                return JsonlStore(Path(root), allow_network=True).read(session_id, after)
            case "in_memory":
                return self._from_memory(after)
            case other:
                raise UnsupportedStore(f"its log is in the custom store {other!r}, which only its process can read")

    def _from_memory(self, after: int) -> Iterator[Event]:
        for index, line in enumerate(self.lines, 1):
            event = events.decode(line, index)
            if event.seq > after:
                yield event
