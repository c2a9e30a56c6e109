"""A disk that can lose its power: what was written and synced below a directory is recorded, and every state in which
the kernel may leave it can be rebuilt.

The kernel writes back what it likes when it likes, by pages, and keeps what a sync covered. So of a page that was
written since its last sync, any version may be on the disk; of a file, any length that it has had; of a directory, any
number of the first changes. After a sync that failed the kernel calls the pages clean and never writes them: only what
is written again is covered by the next. Pages are small here, so that records are torn in many ways.
"""

from __future__ import annotations

import copy
import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

PAGE_BYTES = 512

TEARS = 4
"""Pages of a file at which its states are torn; one with more unsynced pages is torn at some of them."""


@dataclass
class _File:
    """What may be of one file on the disk: the versions of each page and of the length, oldest first."""

    pages: list[list[bytes]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=lambda: [0])
    dirty: set[int] = field(default_factory=set)
    is_long: bool = False
    """Its length has changed since the last sync."""
    content: bytes = b""
    """As a reader sees it while the power is there."""

    def become(self, content: bytes) -> None:
        if len(content) != len(self.content):
            self.lengths.append(len(content))
            self.is_long = True
        for number in range(-(-max(len(content), len(self.content)) // PAGE_BYTES)):
            part = slice(number * PAGE_BYTES, (number + 1) * PAGE_BYTES)
            if number == len(self.pages):
                self.pages.append([b""])
            if content[part] != self.content[part]:
                self.pages[number].append(content[part])
                self.dirty.add(number)
        self.content = content

    def rewrite(self, start: int, end: int) -> None:
        """The same bytes were written again."""
        self.dirty |= set(range(start // PAGE_BYTES, -(-end // PAGE_BYTES)))

    def sync(self) -> None:
        for number in self.dirty:
            del self.pages[number][:-1]
        if self.is_long:
            del self.lengths[:-1]
        self.fail()

    def fail(self) -> None:
        self.dirty, self.is_long = set(), False

    def states(self, rng: random.Random, count: int) -> Iterator[bytes]:
        """The extremes, a tear at each page, and some of the rest."""
        newest = [page[-1] for page in self.pages]
        oldest = [page[0] for page in self.pages]
        choices = [(newest, self.lengths[-1]), (oldest, self.lengths[0]), (oldest, self.lengths[-1])]
        torn = [n for n, page in enumerate(self.pages) if len(page) > 1]
        for n in torn if len(torn) <= TEARS else rng.sample(torn, TEARS):
            choices.append((newest[:n] + oldest[n:], self.lengths[-1]))
            choices.append((newest, min(max(n * PAGE_BYTES, min(self.lengths)), self.lengths[-1])))
            choices.append((oldest[: n + 1] + newest[n + 1 :], self.lengths[-1]))
        if torn or len(self.lengths) > 1:
            choices += [([rng.choice(p) for p in self.pages], rng.choice(self.lengths)) for _ in range(count)]
        seen: set[bytes] = set()
        for pages, length in choices:
            data = b"".join(page.ljust(PAGE_BYTES, b"\0") for page in pages)[:length].ljust(length, b"\0")
            if data not in seen:
                seen.add(data)
                yield data


@dataclass
class _Directory:
    """Changes of entries since the last sync, on what it has for sure."""

    entries: dict[str, int] = field(default_factory=dict)
    changes: list[tuple[str, int | None]] = field(default_factory=list)

    def sync(self) -> None:
        self.entries = self.after(len(self.changes))
        self.changes.clear()

    def after(self, count: int) -> dict[str, int]:
        found = dict(self.entries)
        for name, inode in self.changes[:count]:
            if inode is None:
                found.pop(name, None)
            else:
                found[name] = inode
        return found


class PowerCut:
    """Records what happens below ``root``; :meth:`states` builds what may be there if the power went now."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps = 0
        self.fail_syncs = 0
        """How many of the next syncs of files fail."""
        self.on_step: Callable[[], None] = lambda: None
        """Called before each write, sync or change of a directory: the moment in which the power may go."""
        self._files: dict[int, _File] = {}
        self._directories: dict[int, _Directory] = {}
        self._lock = threading.RLock()
        self._top = _key(root.stat())
        self._take_in(root)
        self._real: dict[str, Any] = {}
        self._in_step = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Everything that this process does through :mod:`os` meanwhile is recorded."""
        names = ("open", "write", "pwrite", "ftruncate", "fsync", "mkdir", "replace", "unlink")
        self._real = {name: getattr(os, name) for name in names}
        fakes: dict[str, Any] = {name: self._alone(name) for name in names}
        with patch.multiple(os, **fakes, fdatasync=fakes["fsync"]):
            yield

    def snapshot(self) -> PowerCut:
        """This moment, for :meth:`states` later."""
        twin = PowerCut.__new__(PowerCut)
        twin.root, twin._top = self.root, self._top
        twin._files, twin._directories = copy.deepcopy(self._files), copy.deepcopy(self._directories)
        return twin

    def states(self, target: Path, rng: random.Random, count: int = 4) -> Iterator[Path]:
        """A directory with each state, as ``root`` would be; it is another one each time."""
        number = 0
        for top in self._trees(self._top):
            choices = {inode: list(self._files[inode].states(rng, count)) for inode in _inodes(top)}
            contents = [{inode: rng.choice(found) for inode, found in choices.items()}]
            for inode, found in choices.items():
                contents += [{**contents[0], inode: data} for data in found if len(found) > 1]
            for one in contents:
                place = target / str(number)
                number += 1
                self._build(place, top, one)
                yield place

    def _trees(self, inode: int) -> list[dict[str, Any]]:
        """What a directory may hold, deeply: names with an inode, or with what is in the directory of this name."""
        directory = self._directories[inode]
        found: list[dict[str, Any]] = []
        for count in range(len(directory.changes) + 1):
            tree: list[dict[str, Any]] = [{}]
            for name, entry in directory.after(count).items():
                below: list[Any] = list(self._trees(entry)) if entry in self._directories else [entry]
                tree = [{**one, name: inside} for one in tree for inside in below]
            found += [one for one in tree if one not in found]
        return found

    def _build(self, place: Path, tree: dict[str, Any], contents: dict[int, bytes]) -> None:
        place.mkdir(parents=True)
        for name, inside in tree.items():
            if isinstance(inside, dict):
                self._build(place / name, inside, contents)
            else:
                (place / name).write_bytes(contents[inside])

    # --- what the program calls

    def _on_open(self, path: Any, flags: int, mode: int = 0o777, **kwargs: Any) -> int:
        at = Path(os.fsdecode(path)) if not isinstance(path, int) else Path()
        is_new = bool(flags & os.O_CREAT) and self._is_ours(at) and not at.exists()
        if is_new:
            self._step()
        fd: int = self._real["open"](path, flags, mode, **kwargs)
        if self._is_ours(at):
            inode = _key(os.fstat(fd))
            if is_new:
                self._files[inode] = _File()
                self._changes(at).append((at.name, inode))
            elif flags & os.O_TRUNC:
                self._files[inode].become(b"")
        return fd

    def _on_write(self, fd: int, data: Any) -> int:
        if self._inode(fd) in self._files:
            self._step()
        written: int = self._real["write"](fd, data)
        self._look(fd)
        return written

    def _on_pwrite(self, fd: int, data: Any, offset: int) -> int:
        if self._inode(fd) in self._files:
            self._step()
        written: int = self._real["pwrite"](fd, data, offset)
        self._look(fd)
        if self._inode(fd) in self._files:
            self._files[self._inode(fd)].rewrite(offset, offset + written)
        return written

    def _on_ftruncate(self, fd: int, length: int) -> None:
        if self._inode(fd) in self._files:
            self._step()
        self._real["ftruncate"](fd, length)
        self._look(fd)

    def _on_fsync(self, fd: int) -> None:
        inode = self._inode(fd)
        if inode in self._directories:
            self._step()
            self._directories[inode].sync()
        elif inode in self._files:
            self._look(fd)
            self._step()
            if self.fail_syncs:
                self.fail_syncs -= 1
                self._files[inode].fail()
                raise OSError(errno.EIO, "injected")
            self._files[inode].sync()

    def _on_mkdir(self, path: Any, mode: int = 0o777, **kwargs: Any) -> None:
        at = Path(path)
        if self._is_ours(at):
            self._step()
        self._real["mkdir"](path, mode, **kwargs)
        if self._is_ours(at):
            inode = _key(at.stat())
            self._directories[inode] = _Directory()
            self._changes(at).append((at.name, inode))

    def _on_replace(self, source: Any, target: Any, **kwargs: Any) -> None:
        old, new = Path(source), Path(target)
        inode = _key(old.stat())
        self._step()
        self._real["replace"](source, target, **kwargs)
        self._changes(new).append((new.name, inode))
        self._changes(old).append((old.name, None))

    def _on_unlink(self, path: Any, **kwargs: Any) -> None:
        at = Path(path)
        if self._is_ours(at) and at.exists():
            self._step()
            self._changes(at).append((at.name, None))
        self._real["unlink"](path, **kwargs)

    # ---

    def _take_in(self, path: Path) -> None:
        """What is there before anything is recorded is on the disk."""
        self._directories[_key(path.stat())] = directory = _Directory()
        for entry in path.iterdir():
            directory.entries[entry.name] = inode = _key(entry.stat())
            if entry.is_dir():
                self._take_in(entry)
            else:
                self._files[inode] = file = _File()
                file.become(entry.read_bytes())
                file.sync()

    def _alone(self, name: str) -> Callable[..., Any]:
        recorded, real = getattr(self, f"_on_{name}"), self._real[name]

        def alone(*args: Any, **kwargs: Any) -> Any:
            with self._lock:  # what ``on_step`` does itself is not recorded
                return real(*args, **kwargs) if self._in_step else recorded(*args, **kwargs)

        return alone

    def _inode(self, fd: int) -> int:
        return _key(os.fstat(fd))

    def _is_ours(self, path: Path) -> bool:
        return self.root in path.parents

    def _changes(self, path: Path) -> list[tuple[str, int | None]]:
        return self._directories[_key(path.parent.stat())].changes

    def _look(self, fd: int) -> None:
        """Take over what the file has now, however it came in."""
        inode = self._inode(fd)
        if inode in self._files:
            size = os.fstat(fd).st_size
            again: int = self._real["open"](f"/proc/self/fd/{fd}", os.O_RDONLY)
            try:
                self._files[inode].become(os.pread(again, size, 0))
            finally:
                os.close(again)

    def _step(self) -> None:
        self.steps += 1
        self._in_step = True
        try:
            self.on_step()
        finally:
            self._in_step = False


def _key(info: os.stat_result) -> int:
    return info.st_dev << 64 | info.st_ino


def _inodes(tree: dict[str, Any]) -> list[int]:
    found: list[int] = []
    for inside in tree.values():
        found += _inodes(inside) if isinstance(inside, dict) else [inside]
    return found
