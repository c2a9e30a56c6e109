"""What a session's process tree may use, and what follows when it uses more (design 7.4).

While something of a session runs, its tree is looked at every 250 ms, in a thread; one that is beyond its limit by a
cheap look is counted exactly. Where cgroup v2 is delegated the kernel brakes as well, and what is seen here decides.

A session that does nothing and has nothing below it is only looked at now and then, so that a thousand cost nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from athena.errors import Reason
from supervisor import cgroup
from supervisor.process import ExitStatus, OsProcess
from supervisor.registry import Registry
from supervisor.sampling import OomCounter, Sample, count_exactly, look
from supervisor.spec import Ceiling, MemoryCeiling
from supervisor.vocabulary import State

if TYPE_CHECKING:
    from supervisor.keeper import Keeper

logger = logging.getLogger(__name__)

LimitName = Literal["memory", "processes", "turn_time"]
"""What a session can die of: the value in its reason ``{"limit": ...}``."""

SAMPLE_S = 0.25
SHARE = 0.1
"""Of one processor, at most, for all looks together: with very many trees the pause between looks grows."""

ROUND_EVERY_TICKS = 4
IDLE_PER_ROUND = 4
"""Every second so many idle sessions are looked at, in turn: by themselves they do nothing."""

CLAIM_TRIES, CLAIM_PAUSE_S = 10, 0.1
"""A process that only announces the daemon's start may be in its cgroup for a moment."""


@dataclass(frozen=True, slots=True)
class Target:
    """A tree to look at, with what it may use (``None``: anything)."""

    keeper: Keeper
    process: OsProcess
    max_memory: int | None
    max_processes: int | None
    at_work: bool


def judge(target: Target) -> tuple[Sample, LimitName | None]:
    """Look at a tree. Returns what was seen, and which limit is exceeded."""
    sample = look(target.process.pid, stop_above=target.max_processes)
    if target.max_processes is not None and len(sample.pids) > target.max_processes:
        return sample, "processes"
    if target.max_memory is not None and sample.memory_bytes > target.max_memory:
        sample = count_exactly(sample.pids)
        if sample.memory_bytes > target.max_memory:
            return sample, "memory"
    return sample, None


class Limits:
    """Applies the limits of all sessions of one supervisor. ``guard_pid`` is given by a daemon, which may have a cgroup
    to itself."""

    def __init__(self, registry: Registry, guard_pid: int | None = None) -> None:
        self._registry = registry
        self._guard_pid = guard_pid
        self._half_bytes = cgroup.memory_bytes() // 2
        self._cgroups: cgroup.Cgroups | None = None
        self._oom = OomCounter()
        self._awake: set[Keeper] = set()
        self._idle: deque[Keeper] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limits")
        self._sweep: asyncio.Future[Any] | None = None
        self._next_sweep = 0.0
        self._ticks = 0
        self._handle: asyncio.TimerHandle | None = None
        self._claim: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look. Take the cgroup if there is one for us."""
        self._tick()
        if self._guard_pid is not None:
            self._claim = asyncio.create_task(self._claim_cgroup(self._guard_pid))

    def close(self) -> None:
        """Look no more."""
        for one in (self._handle, self._claim):
            if one is not None:
                one.cancel()
        self._thread.shutdown(wait=False)

    def watch(self, keeper: Keeper) -> None:
        """It has got something to do: look at it from now on, until it and all below it are done."""
        self._awake.add(keeper)

    async def admit(self, keeper: Keeper, process: OsProcess) -> None:
        """Give a child that was just launched, and runs nothing of the user's yet, its limits in the kernel."""
        self.watch(keeper)
        spec = keeper.request.spec
        if spec.max_files != "infinity":
            _limit_files(process.pid, spec.max_files)
        if self._cgroups is not None:
            process.cgroup = await asyncio.to_thread(
                self._cgroups.leaf,
                f"{process.pid}-{process.start_time}",
                process.pid,
                memory_bytes=self._bytes(spec.max_memory),
                processes=_count(spec.max_processes),
            )

    def was_oom(self, process: OsProcess, status: ExitStatus) -> bool:
        """Whether a death that we did not cause was the kernel's doing, for want of memory."""
        if status.si_code != os.CLD_KILLED or status.si_status != signal.SIGKILL:
            return False
        if process.cgroup is not None:
            return process.cgroup.oom_kills > 0
        return self._oom.has_risen(time.monotonic())

    def rows(self, keeper: Keeper) -> dict[str, dict[str, Any]]:
        """For a session's status: each limit with what is used of it and who applies it."""
        spec, sample = keeper.request.spec, keeper.sample
        by = "cgroup" if keeper.process is not None and keeper.process.cgroup is not None else "sampled"
        turn_s = time.monotonic() - keeper.facts.turn_since if keeper.facts.turn is not None else None
        return {
            "memory": {
                "max": self._bytes(spec.max_memory) or "infinity",
                "used": sample.memory_bytes if sample else None,
                "by": by,
            },
            "processes": {"max": spec.max_processes, "used": len(sample.pids) if sample else None, "by": by},
            "files": {"max": spec.max_files, "by": "rlimit"},
            "turn_time": {"max": spec.turn_timeout, "used": turn_s and round(turn_s, 3), "by": "supervisor"},
        }

    def describe(self) -> dict[str, str]:
        """How new sessions' limits are applied: ``cgroup`` (the kernel brakes too) or ``sampled``."""
        return dict.fromkeys(("memory", "processes"), "sampled" if self._cgroups is None else "cgroup")

    # --- looking

    def _tick(self) -> None:
        loop, now = asyncio.get_running_loop(), time.monotonic()
        self._handle = loop.call_later(SAMPLE_S, self._tick)
        self._ticks += 1
        self._awake = {k for k in self._awake if k.process is not None and not k.process.is_over}
        for keeper in list(self._awake):
            self._watch_turn(keeper, now)
        if self._sweep is not None or now < self._next_sweep:
            return
        is_round = self._ticks % ROUND_EVERY_TICKS == 0
        targets = self._targets(self._awake.union(self._next_idle()) if is_round else self._awake)
        if targets or is_round:
            self._sweep = loop.run_in_executor(self._thread, self._look_at, targets, is_round)
            self._sweep.add_done_callback(self._swept)

    def _next_idle(self) -> list[Keeper]:
        if not self._idle:
            self._idle.extend(self._registry.by_pid.values())
        return [self._idle.popleft() for _ in range(min(IDLE_PER_ROUND, len(self._idle)))]

    def _targets(self, keepers: Iterable[Keeper]) -> list[Target]:
        return [
            Target(k, k.process, self._bytes(spec.max_memory), _count(spec.max_processes), _is_at_work(k))
            for k, spec in ((keeper, keeper.request.spec) for keeper in keepers)
            if k.process is not None and not k.process.is_over
        ]

    def _look_at(self, targets: list[Target], is_round: bool) -> list[tuple[Target, Sample, LimitName | None]]:
        """In the thread."""
        began = time.monotonic()
        self._oom.has_risen(began)
        found = [(target, *judge(target)) for target in targets]
        if is_round:
            for target, sample, _ in found:
                if len(sample.pids) > 1:
                    target.process.observe()  # what is below the child now is known as the child's when it dies
        now = time.monotonic()
        self._next_sweep = now + (now - began) / SHARE - SAMPLE_S
        return found

    def _swept(self, sweep: asyncio.Future[list[tuple[Target, Sample, LimitName | None]]]) -> None:
        self._sweep = None
        if sweep.cancelled():
            return
        for target, sample, exceeded in sweep.result():
            keeper = target.keeper
            if keeper.process is not target.process or target.process.is_over:
                continue
            keeper.sample = sample
            if exceeded is not None:
                self._end(keeper, exceeded, _told(target, sample, exceeded))
            elif len(sample.pids) > 1:
                self._awake.add(keeper)
            elif not target.at_work and not _is_at_work(keeper):
                self._awake.discard(keeper)

    def _watch_turn(self, keeper: Keeper, now: float) -> None:
        limit_s, turn_s = keeper.request.spec.turn_timeout, now - keeper.facts.turn_since
        if keeper.facts.turn is not None and limit_s != "infinity" and turn_s > limit_s:
            self._end(keeper, "turn_time", f"its turn has taken {turn_s:.1f} s, turn_timeout is {limit_s}")

    def _end(self, keeper: Keeper, limit: LimitName, told: str) -> None:
        logger.error("session=%s pid=%s: %s; killing it", keeper.session_id, keeper.os_pid, told)
        keeper.exceeded(limit)

    def _bytes(self, ceiling: MemoryCeiling) -> int | None:
        return self._half_bytes if ceiling == "half" else _count(ceiling)

    async def _claim_cgroup(self, guard_pid: int) -> None:
        for _ in range(CLAIM_TRIES):
            self._cgroups = await asyncio.to_thread(cgroup.Cgroups.claim, guard_pid)
            if self._cgroups is not None:
                logger.info("sessions get cgroups of their own")
                return
            await asyncio.sleep(CLAIM_PAUSE_S)


def is_own_doing(reason: Reason) -> bool:
    """Whether a kill of ours for this reason is to be blamed on the turn it ended: one that always hangs, or always
    takes too much, has to end too. ``None``: it died by itself."""
    return reason is None or reason == "hung" or (isinstance(reason, dict) and "limit" in reason)


def _is_at_work(keeper: Keeper) -> bool:
    return keeper.core.state is not State.RUNNING or keeper.is_busy


def _told(target: Target, sample: Sample, exceeded: LimitName) -> str:
    if exceeded == "processes":
        return f"more than max_processes={target.max_processes} processes run"
    return f"its processes use {sample.memory_bytes} bytes, max_memory is {target.max_memory}"


def _count(ceiling: Ceiling) -> int | None:
    return None if ceiling == "infinity" else int(ceiling)


def _limit_files(pid: int, most: int) -> None:
    """Soft and hard alike, so that nothing below raises it; never above what was the hard limit."""
    try:
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        found = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (found, found))
    except ProcessLookupError:
        pass  # it has ended already
