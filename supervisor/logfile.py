"""A child's own log file for its stdout and stderr: private, append-only, bounded."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

ROTATE_AT_START_BYTES = 1024 * 1024
"""At a start, a longer file becomes ``.1``: a new incarnation's output is easy to find, the last one's is kept."""

TRIM_BYTES = 4 * 1024 * 1024
"""While it is written, a longer file is cut. A child can overshoot by what it writes between two checks."""

KEEP_BYTES = 1024 * 1024
"""How much of its end a cut file keeps, as ``.1``."""

LAST_LINES, LAST_BYTES = 20, 4096
"""How much of the end of a life's output is kept when it dies."""

LINE_CHARS = 200
"""How much of a line a message says."""


class Mark(NamedTuple):
    """Where a file ended at one moment: what is behind it is newer."""

    device: int = 0
    inode: int = 0
    size_bytes: int = 0


@runtime_checkable
class KeepsOutput(Protocol):
    """What has a ``last_output``: the end of what its last life wrote, ``None`` after a clean end and for silence."""

    @property
    def last_output(self) -> str | None: ...


def last_line(output: str | None) -> str:
    """What a message says of a death's output: the last line, where an exception's name and text are. Whoever prints
    the message must not do what a control character in it says."""
    if not output:
        return ""
    line = output.rsplit("\n", 1)[-1].strip()[:LINE_CHARS]
    return "; the last it said: " + "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in line)


class LogFile:
    """The log of one child. The writer needs no knowledge of rotation: it holds an ``O_APPEND`` descriptor."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.previous = self.path.with_name(self.path.name + ".1")

    def open(self) -> int:
        """A descriptor (close-on-exec) to append to, after rotation where it is due. Makes the directory if needed.

        Raises OSError; a symbolic link in the log's place is refused.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._size_bytes() > ROTATE_AT_START_BYTES:
            self.path.replace(self.previous)
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def trim(self) -> bool:
        """Cut a file that has grown too long while its writer lives on: keep its end as ``.1``, then empty it.

        For a periodic check. Returns whether it was cut. What is written between copy and cut is lost: the writer is
        another process and takes part in no lock, and this is diagnostic output, not the event log.
        """
        size_bytes = self._size_bytes()
        if size_bytes <= TRIM_BYTES:
            return False
        fresh = self.previous.with_name(self.previous.name + ".new")
        with open(self.path, "r+b") as source:
            source.seek(size_bytes - KEEP_BYTES)
            kept = source.read(KEEP_BYTES)
            fresh_fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fresh_fd, "wb") as target:
                target.write(kept)
            fresh.replace(self.previous)
            source.truncate(0)
        return True

    def mark(self) -> Mark:
        """Where it ends now: taken before a launch, it tells that life's output from that of earlier ones."""
        try:
            info = self.path.lstat()
        except OSError:
            return Mark()
        return Mark(info.st_dev, info.st_ino, info.st_size)

    def last_output(self, since: Mark) -> str | None:
        """The last lines that were written after the mark, at most :data:`LAST_LINES`; ``None`` for nothing.

        A file that was replaced or cut since then holds only newer output. Bytes that are no text are shown as U+FFFD.
        Never raises: this is said beside the reason of a death, and must not hide it.
        """
        try:
            with open(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                info = os.fstat(file.fileno())
                if not stat.S_ISREG(info.st_mode):
                    return None
                is_same = (info.st_dev, info.st_ino) == since[:2] and info.st_size >= since.size_bytes
                file.seek(max(since.size_bytes if is_same else 0, info.st_size - LAST_BYTES))
                text = file.read(LAST_BYTES).decode(errors="replace")
        except OSError:
            return None
        return "\n".join(text.rstrip().split("\n")[-LAST_LINES:]).lstrip("\n") or None

    def discard_if_empty(self) -> None:
        """Remove the file of a child that never wrote and never will."""
        if self._size_bytes() == 0:
            self.path.unlink(missing_ok=True)

    def _size_bytes(self) -> int:
        try:
            return self.path.lstat().st_size
        except FileNotFoundError:
            return 0
