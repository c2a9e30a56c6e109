#!/usr/bin/env python
"""Measure Athena beside what it is compared with, in one run: ``python scripts/bench.py [--quick] [--json] [--write]``.

Absolute times differ from machine to machine; a ratio of medians in one run does not, so that is what goals are about.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `scripts`, and for Athena where it is not installed

from scripts import bench_rows  # noqa: E402
from scripts.bench_rigs import Rig, rig  # noqa: E402
from scripts.bench_table import Row, table  # noqa: E402

Measure = Callable[[Rig, int, ExitStack], Row | list[Row]]

MEASURES: dict[str, Measure] = {
    "start": bench_rows.start,
    "restart": bench_rows.restart,
    "memory": bench_rows.memory,
    "call": bench_rows.call,
    "turns": bench_rows.turns,
    "store": bench_rows.store,
    "deltas": bench_rows.deltas,
}

ROUNDS, QUICK_ROUNDS = 40, 8
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table: written by scripts/bench.py --write -->", "<!-- end of table -->"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure Athena beside its floor and multiprocessing.")
    parser.add_argument("--quick", action="store_true", help="fewer samples, under a minute")
    parser.add_argument("--rounds", type=int, help=f"samples of each start (default {ROUNDS}, quick {QUICK_ROUNDS})")
    parser.add_argument("--only", action="append", choices=sorted(MEASURES), help="one group; may be repeated")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    given = parser.parse_args()
    rounds = max(1, given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS))
    with tempfile.TemporaryDirectory(prefix="athena-bench-", dir=os.environ.get("ATHENA_HOME")) as home:
        before = os.getloadavg()[0]
        rows = measure(Path(home), rounds, given.only or list(MEASURES), _progress())
    machine = about(before)
    if given.json:
        print(json.dumps({"machine": machine, "rows": [row.as_map() for row in rows]}, indent=1))
    else:
        print(f"{_sentence(machine)}\n\n{table(rows)}")
    if given.write:
        write(PAGE, f"{_sentence(machine)}\n\n{table(rows)}")


def measure(home: Path, rounds: int, chosen: list[str], tell: Callable[[str], None]) -> list[Row]:
    """The rows of these groups, measured."""
    rows: list[Row] = []
    tell("starting the supervisor and the helpers")
    with rig(home) as running:
        for name in chosen:
            with ExitStack() as stack:
                made = MEASURES[name](running, rounds, stack)
                group = made if isinstance(made, list) else [made]
                for row in group:
                    row.run(tell)
                rows += group
    tell("")
    return rows


def about(load_before: float) -> dict[str, Any]:
    """The machine, in words that name nobody's."""
    return {
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "date": time.strftime("%Y-%m-%d"),
    }


def _sentence(machine: dict[str, Any]) -> str:
    before, after = machine["load"]
    return (
        f"{machine['cpus']} CPUs, {machine['system']}, Python {machine['python']}; "
        f"load {before} before and {after} after the run; {machine['date']}."
    )


def write(page: Path, content: str) -> None:
    """Put ``content`` between the page's markers."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise SystemExit(f"{page.name} lacks its markers {BEGIN!r} and {END!r}")
    page.write_text(f"{before}{BEGIN}\n\n{content}\n\n{END}{after}", encoding="utf-8")


def _progress() -> Callable[[str], None]:
    is_terminal = sys.stderr.isatty()
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        if is_terminal:
            sys.stderr.write(f"\r\x1b[K{text}")
        elif text.partition(":")[0] != last:  # in a log one line for each row is enough
            last = text.partition(":")[0]
            sys.stderr.write(f"{last}\n" if last else "")
        sys.stderr.flush()

    return tell


if __name__ == "__main__":
    main()
