"""Looking after blobs: which of them a log names, which are gone, which nobody needs."""

from __future__ import annotations

import os
from pathlib import Path

from athena.errors import NotFound
from athena.events import Event
from athena.stores.blobs import Blobs, refs_in, split_ref
from athena.stores.files import open_log_to_write, store_error
from athena.stores.lines import Tally, read_events


class Named:
    """What blobs the events of a log name, and which of those are not there."""

    def __init__(self, log: Path, session_id: str) -> None:
        self.names: set[str] = set()
        """Of this session's own."""
        self.missing: list[str] = []
        self._log = log
        self._session_id = session_id
        self._seen: set[str] = set()

    def take(self, event: Event) -> None:
        """One more event. What a repair has noted is no damage any more."""
        if event.event == "repaired":
            self.missing.clear()
        for ref in refs_in(event):
            if ref in self._seen:
                continue
            self._seen.add(ref)
            try:
                owner, name = split_ref(ref)
                if owner == self._session_id:
                    self.names.add(name)
                Blobs(self._log.with_name(f"{owner}.jsonl")).read(name)
            except NotFound:
                self.missing.append(ref)


def remove_orphans(path: Path, session_id: str, *, written_before: float) -> int:
    """Remove the blobs that no event names and that are older than this (seconds since the epoch). Bytes that it freed.

    Needs the lock, as a writer may be about to name one. Raises :class:`LogLocked`,
    :class:`athena.errors.StoreError`.
    """
    blobs = Blobs(path)
    if not blobs.path.is_dir():
        return 0
    try:
        fd = open_log_to_write(path, session_id, make=False)
    except OSError as error:
        raise store_error(error, "open the log", path, session_id) from error
    try:
        sizes, named, tally = blobs.sizes(), Named(path, session_id), Tally()
        for event in read_events(fd, os.fstat(fd).st_size, 0, tally):
            named.take(event)
        if tally.bad_lines:
            return 0  # one of them may be the line that names it
        old = [n for n in sizes.keys() - named.names if (blobs.path / n).stat().st_mtime < written_before]
        blobs.remove(old)
        return sum(sizes[name] for name in old)
    except OSError as error:
        raise store_error(error, "remove blobs of the log", path, session_id) from error
    finally:
        os.close(fd)
