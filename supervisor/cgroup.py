"""The kernel's own brake where cgroup v2 is delegated: a leaf for each session, and what a container may use in all.

A cgroup is taken only if nobody but the guard and the supervisor is in it (a unit with ``Delegate=yes``, a container of
their own): enabling controllers for leaves means moving every process out of it, and a stranger's we don't move.
Everything here reads or writes small files, which may take milliseconds: not for an event loop, but for
:meth:`Cgroup.kill`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from athena import proctree

logger = logging.getLogger(__name__)

CONTROLLERS = ("memory", "pids")

OWN_LEAF = "supervisor"
"""Where guard, supervisor and zygote go, since a cgroup with controllers for leaves must be empty itself."""

THREADS_PER_PROCESS = 16
"""The kernel's ``pids.max`` counts threads: it is set to so many for each process that a session may have, as a brake
between two samples. The sampled count of processes is what decides."""


EMPTY_LIMIT_S = 1.0
"""How long the end of a leaf waits for what was killed in it."""

_PAUSE_S = 0.002


class Cgroup:
    """One session's leaf."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.oom_kills = 0
        """How many of its processes the kernel killed for memory; known after :meth:`end`."""

    def add(self, pid: int) -> None:
        """Move a process in. Raises OSError."""
        _write(self.path / "cgroup.procs", str(pid))

    def kill(self) -> None:
        """Kill everything in it, at once and whatever it forks meanwhile. Nothing where the kernel is too old."""
        try:
            _write(self.path / "cgroup.kill", "1")
        except OSError:
            pass  # before 5.14, or removed already: the hunt reaches the tree all the same

    def end(self) -> None:
        """Kill what is left in it, wait for that, and remove it."""
        self.kill()
        deadline = time.monotonic() + EMPTY_LIMIT_S
        while _pids(self.path) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        self.oom_kills = _counted(self.path / "memory.events", "oom_kill")
        try:
            self.path.rmdir()
        except OSError as error:
            logger.warning("cannot remove cgroup %s: %s", self.path, error)


class Cgroups:
    """A cgroup that is ours to divide."""

    def __init__(self, base: Path) -> None:
        self._base = base

    @classmethod
    def claim(cls, top: int, *, controllers: Collection[str] = CONTROLLERS, own: Path | None = None) -> Cgroups | None:
        """Take charge of the cgroup this process is in, if it is delegated and holds only ``top`` and what is below it.

        ``None`` if not: limits are sampled then. ``own`` is the cgroup's directory (default: looked up).
        """
        own = own or own_path()
        if own is None:
            return None
        base = own.parent if own.name == OWN_LEAF else own
        try:
            if not _is_delegated(base, controllers) or not set(_pids(base)) <= {top, *proctree.descendants(top)}:
                return None
            (base / OWN_LEAF).mkdir(exist_ok=True)
            for pid in _pids(base):
                _write(base / OWN_LEAF / "cgroup.procs", str(pid))
            if controllers:
                _write(base / "cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))
        except OSError as error:
            logger.info("cgroup %s is not usable (%s): limits are sampled", base, error)
            return None
        for stale in base.glob("session-*"):  # of a supervisor that was killed
            with suppress(OSError):
                stale.rmdir()
        return cls(base)

    def leaf(self, name: str, pid: int, *, memory_bytes: int | None, processes: int | None) -> Cgroup | None:
        """A new leaf with these limits (``None``: none), and ``pid`` in it. ``None``, logged, if the kernel refuses."""
        cgroup = Cgroup(self._base / f"session-{name}")
        try:
            cgroup.path.mkdir()
            if memory_bytes is not None:
                _write(cgroup.path / "memory.max", str(memory_bytes))
                _write(cgroup.path / "memory.oom.group", "1")  # the session as a whole, not one process of it
            if processes is not None:
                _write(cgroup.path / "pids.max", str(processes * THREADS_PER_PROCESS))
            cgroup.add(pid)
        except OSError as error:
            logger.warning("no cgroup for pid %d (%s): its limits are sampled only", pid, error)
            if cgroup.path.exists():
                cgroup.end()
            return None
        return cgroup


def own_path() -> Path | None:
    """The directory of this process's cgroup v2; ``None`` without one, or where it is not to be seen."""
    relative = _own_relative("")
    for kind, _, mount in _mounts():
        if kind == "cgroup2" and relative is not None:
            path = mount / relative
            if os.getpid() in _pids(path):
                return path
    return None


def memory_bytes() -> int:
    """How much memory this process and all below it may use: the machine's, or its container's where that is less."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for kind, options, mount in _mounts():
        if kind == "cgroup2" and (own := _own_relative("")) is not None:
            for path in (mount / own, *(mount / own).parents):
                found = min(found, _number(path / "memory.max") or found)
                if path == mount:
                    break
        if kind == "cgroup" and "memory" in options and (own := _own_relative("memory")) is not None:
            for path in (mount / own, mount):
                found = min(found, _counted(path / "memory.stat", "hierarchical_memory_limit") or found)
    return found


def _is_delegated(base: Path, controllers: Collection[str]) -> bool:
    offered = (base / "cgroup.controllers").read_text().split()
    files = (base, base / "cgroup.procs", base / "cgroup.subtree_control")
    return set(controllers) <= set(offered) and all(os.access(path, os.W_OK) for path in files)


def _own_relative(controller: str) -> str | None:
    """This process's cgroup in the hierarchy of a v1 controller, or with an empty name in that of v2."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    return None


def _mounts() -> Iterator[tuple[str, list[str], Path]]:
    """Kind, options and place of every mounted cgroup hierarchy."""
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        where, _, what = line.partition(" - ")
        kind, _, options = what.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            yield kind, options.split(","), Path(where.split()[4])


def _pids(path: Path) -> list[int]:
    return [int(line) for line in _text(path / "cgroup.procs").split()]


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _counted(path: Path, name: str) -> int:
    """The number behind ``name`` in a file of names and numbers; 0 if it is not there."""
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, value: str) -> None:
    # Not opened to create: a file that the kernel does not offer is an error, on whatever the directory is.
    with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "w") as file:
        file.write(value)
