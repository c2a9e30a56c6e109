"""Many trials, a few at a time, each lane a process with a supervisor that its harmless trials share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from athena.environment import ROOT
from athena.supervisors import EmbeddedSupervisor
from athena.testing.chaos import processes
from athena.testing.chaos.evidence import Effect, Evidence, Verdict, judge
from athena.testing.chaos.plans import Plan, plan
from athena.testing.chaos.trial import ORPHAN_S, Trial
from athena.testing.chaos.world import World

LANES = 2
PROGRAM = "from athena.testing.chaos.run import main; main()"
KEPT_VARIABLES = frozenset({"ATHENA_TEST_TIME_UNIT"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trial that is over. ``was_reached``: everybody died who was to, and where."""

    plan: Plan
    faults: dict[str, list[str]]
    effect: Effect | None
    was_reached: bool
    seconds: float
    kept: str | None = None
    """The directory with what a faulty trial has left."""


@dataclass(slots=True)
class Outcomes:
    """All trials of a run, and what they left as a whole."""

    seed: int
    trials: list[Outcome] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    """Processes that were there when all was over."""

    @property
    def faulty(self) -> list[Outcome]:
        """In the order of their numbers."""
        return sorted((one for one in self.trials if one.faults), key=lambda one: one.plan.number)

    @property
    def ok(self) -> bool:
        """Whether the contract was kept in all of them."""
        return not self.faulty and not self.left_over

    def to_map(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def run(
    numbers: Iterable[int],
    *,
    seed: int = 0,
    lanes: int = LANES,
    keep: Path | None = None,
    on_done: Callable[[Outcome], None] = lambda _: None,
) -> Outcomes:
    """Carry out the trials with these numbers, so many at a time. What faulty ones leave is kept in ``keep``, by their
    number. ``on_done`` is called in one thread at a time."""
    found = Outcomes(seed)
    waiting, lock = iter(list(numbers)), Lock()
    root = Path(tempfile.mkdtemp(prefix="athena-chaos-"))
    is_over = False

    def fill(order: dict[str, Any]) -> None:
        with _lane(order) as ask:
            while not is_over:
                with lock:
                    number = next(waiting, None)
                if number is None:
                    return
                outcome = ask(number)
                with lock:
                    found.trials.append(outcome)
                    on_done(outcome)

    try:
        with World(root) as world, ThreadPoolExecutor(lanes) as pool:
            order = {"seed": seed, "root": str(root), "world": [str(world.socket), world.addresses]}
            order["keep"] = str(keep) if keep else None
            futures = [pool.submit(fill, order) for _ in range(lanes)]
            try:
                for future in futures:
                    future.result()
            finally:
                is_over = True  # an interrupt waits for those that run, and for no other
        found.left_over = processes.wait_unmarked([root], ORPHAN_S)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return found


@contextmanager
def _lane(order: dict[str, Any]) -> Iterator[Callable[[int], Outcome]]:
    """A process that carries out one trial after the other, and ends when it is told no more."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ATHENA_") or k in KEPT_VARIABLES}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM],
        env={**kept, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def ask(number: int) -> Outcome:
        stdin.write(f"{number}\n")
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the process that carried out trial {number} ended with {process.wait()}")
        told = json.loads(line)
        effect = None if told["effect"] is None else Effect(**told["effect"])
        chosen = Plan(**{**told["plan"], "victims": tuple(told["plan"]["victims"])})
        return Outcome(**{**told, "plan": chosen, "effect": effect})

    stdin.write(json.dumps(order) + "\n")
    try:
        yield ask
    finally:
        stdin.close()
        process.wait()
        stdout.close()


# --- in a lane --------------------------------------------------------------------------------------------------------


def main() -> None:
    """The program of a lane: an order, then numbers, one a line; an outcome for each."""
    order = json.loads(sys.stdin.readline())
    directory = Path(order["root"]) / f"lane-{os.getpid()}"
    os.environ["ATHENA_HOME"] = str(directory / "home")
    lane = _Lane(order["seed"], directory, tuple(order["world"]), Path(order["keep"]) if order["keep"] else None)
    try:
        for line in sys.stdin:
            print(json.dumps(asdict(lane.carry_out(int(line)))), flush=True)
    finally:
        lane.close()


def was_reached_in(chosen: Plan, evidence: Evidence) -> bool:
    """Whether the deaths of the plan were died. A trial in which they were not has shown nothing of them."""
    if chosen.kills_itself:
        return len(evidence.fired) == (1 if chosen.second is None else 2)
    return evidence.killed == list(chosen.victims)


@dataclass(slots=True)
class _Lane:
    seed: int
    directory: Path
    world: tuple[str, dict[str, str]]
    keep: Path | None
    shared: EmbeddedSupervisor | None = None

    def carry_out(self, number: int) -> Outcome:
        chosen = plan(self.seed, number)
        directory = self.directory / f"t{number}"
        if not chosen.harms_supervisor:
            self.shared = self.shared or EmbeddedSupervisor()
        shared = None if chosen.harms_supervisor else self.shared
        name = (
            f"chaos-{self.seed}-{number}-{os.getpid()}"  # the world knows it by this, and other lanes may have its like
        )
        evidence = Trial(chosen, name, directory, self.world, shared).run()
        verdict = judge(evidence)
        if evidence.errors:
            self.close()  # the next trial must not suffer for this one
        kept = None if verdict.ok else self._keep(chosen, evidence, verdict, directory)
        shutil.rmtree(directory, ignore_errors=True)
        was_reached = was_reached_in(chosen, evidence)
        return Outcome(chosen, verdict.faults, verdict.effect, was_reached, round(evidence.seconds, 3), kept)

    def close(self) -> None:
        if self.shared is not None:
            self.shared.stop()
            self.shared = None

    def _keep(self, chosen: Plan, evidence: Evidence, verdict: Verdict, directory: Path) -> str | None:
        if self.keep is None:
            return None
        target = self.keep / f"trial-{chosen.number}"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(directory, target, ignore=lambda where, names: [n for n in names if n.endswith(".sock")])
        told = {"plan": asdict(chosen), "faults": verdict.faults, "evidence": {**asdict(evidence), "log": None}}
        (target / "verdict.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
        return str(target)
