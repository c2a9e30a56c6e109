#!/usr/bin/env python
"""Kill everything, everywhere, and see what is left: ``python scripts/chaos.py [--trials N] [--seed S] [--only N]``.

Prints one table of faults by who is killed and where, one of what becomes of effects, and each faulty trial with the
command that repeats it. Exits with 1 if there is any. The harness is :mod:`athena.testing.chaos`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `scripts`, and for Athena where it is not installed

from athena.testing.chaos import Outcome, Outcomes, effects_table, failures, run, table  # noqa: E402

PAGE = ROOT / "docs" / "durability.md"
BEGIN, END = "<!-- scripts/chaos.py --write: begin -->", "<!-- scripts/chaos.py --write: end -->"
TRIALS = 2000
SHOWN_EVERY = 50


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=TRIALS, help=f"how many (default {TRIALS})")
    parser.add_argument("--seed", type=int, default=0, help="other plans (default 0)")
    parser.add_argument("--only", type=int, action="append", metavar="N", help="only the trial with this number")
    parser.add_argument("--lanes", type=int, default=2, help="trials at a time (default 2)")
    parser.add_argument("--keep", type=Path, default=Path("chaos-failures"), help="where faulty trials are kept")
    parser.add_argument("--json", action="store_true", help="all outcomes, as JSON on standard output")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/durability.md")
    given = parser.parse_args(argv)
    numbers = given.only or range(given.trials)
    began = time.monotonic()
    done = 0

    def show(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if outcome.faults:
            print(f"trial {outcome.plan.number}: {outcome.faults}", file=sys.stderr, flush=True)
        elif done % SHOWN_EVERY == 0:
            print(f"{done} of {len(numbers)}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    outcomes = run(numbers, seed=given.seed, lanes=given.lanes, keep=given.keep.absolute(), on_done=show)
    if given.json:
        print(json.dumps(outcomes.to_map()))
    else:
        print(_shown(outcomes, time.monotonic() - began))
    if given.write:
        write(PAGE, outcomes, time.monotonic() - began)
    return 0 if outcomes.ok else 1


def write(page: Path, outcomes: Outcomes, seconds: float) -> None:
    """Put the tables between the page's markers."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise SystemExit(f"{page.name} lacks its markers {BEGIN!r} and {END!r}")
    content = f"{_shown(outcomes, seconds)} ({os.cpu_count()} CPUs, {time.strftime('%Y-%m-%d')})."
    page.write_text(f"{before}{BEGIN}\n\n{content}\n\n{END}{after}", encoding="utf-8")


def _shown(outcomes: Outcomes, seconds: float) -> str:
    parts = [table(outcomes), effects_table(outcomes), failures(outcomes)]
    parts.append(f"{len(outcomes.trials)} trials with seed {outcomes.seed} in {seconds:.0f} s")
    return "\n\n".join(part for part in parts if part)


if __name__ == "__main__":
    sys.exit(main())
