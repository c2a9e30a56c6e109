"""Looks at a process tree: who is in it, what it uses, whether the kernel has killed for memory. Of any thread.

A look is cheap and counts pages that processes share once for each of them, so it is never too low. The exact count
divides them, and makes the kernel walk every page of a process: 5 ms for each GB.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from athena import proctree

OOM_WINDOW_S = 3.0
"""How long before a death the kernel may have counted its kill: a large process takes its time to end."""

VFORK_S = 1.0
"""A process that has only been forked may still use its parent's very pages (vfork) and show them as its own. It is
counted once it is older than this."""

PF_FORKNOEXEC = 0x40
"""In the flags of ``/proc/<pid>/stat`` (include/linux/sched.h)."""

_SHOWN = re.compile(rb"^(?:RssAnon|RssShmem|VmSwap|HugetlbPages):\s+(\d+) kB", re.MULTILINE)
_EXACT = re.compile(rb"^(?:Pss_Anon|Pss_Shmem|SwapPss|Private_Hugetlb|Shared_Hugetlb):\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a tree. ``memory_bytes``: anonymous and shared-memory pages, swapped ones included; what processes
    share is in it once for each, or shared out between them if it ``is_exact``."""

    pids: tuple[int, ...]
    memory_bytes: int
    is_exact: bool = False


def look(root: int, *, stop_above: int | None = None) -> Sample:
    """Who runs at and below ``root``, and what it uses at most. A tree of more than ``stop_above`` is not walked to
    its end."""
    seen, queue, alive, used = {root}, [root], [], 0
    for pid in queue:
        counts = _SHOWN.findall(_read(f"/proc/{pid}/status"))
        if not counts:
            continue  # gone, or a zombie
        alive.append(pid)
        used += sum(map(int, counts)) * 1024
        if stop_above is not None and len(alive) > stop_above:
            break
        below = [child for child in proctree.children_of(pid) if child not in seen]
        seen.update(below)
        queue += below
    return Sample(tuple(alive), used)


def count_exactly(pids: Iterable[int]) -> Sample:
    """What these processes use, with each shared page divided by all that share it: a forked child's pages that are
    still the zygote's weigh next to nothing. ``pids`` begins with the tree's root."""
    found = tuple(pids)
    used = sum(_exact_bytes(pid) for pid in found if pid == found[0] or not _may_be_vforked(pid))
    return Sample(found, used, is_exact=True)


class OomCounter:
    """Whether the kernel has killed for want of memory of late. Of any thread."""

    def __init__(self) -> None:
        self._count = self._kills()
        self._rose_at = float("-inf")

    def has_risen(self, now: float) -> bool:
        """Whether it killed anything in the last seconds. To be asked more often than that."""
        count = self._kills()
        if count > self._count:
            self._count, self._rose_at = count, now
        return now - self._rose_at <= OOM_WINDOW_S

    def _kills(self) -> int:
        found = re.search(rb"^oom_kill (\d+)$", _read("/proc/vmstat"), re.MULTILINE)
        return int(found[1]) if found else 0


def _exact_bytes(pid: int) -> int:
    counts = _EXACT.findall(_read(f"/proc/{pid}/smaps_rollup"))
    if not counts:  # closed to us (a set-uid program), or gone: then this is empty too
        counts = _SHOWN.findall(_read(f"/proc/{pid}/status"))
    return sum(map(int, counts)) * 1024


def _may_be_vforked(pid: int) -> bool:
    row = proctree.stat(pid)
    if row is None or not row.flags & PF_FORKNOEXEC:
        return False
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - row.starttime / os.sysconf("SC_CLK_TCK")
    return age_s < VFORK_S


def _read(path: str) -> bytes:
    """A file under ``/proc``; empty if the process is gone or closed to us."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""
