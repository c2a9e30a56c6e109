"""The benchmark still runs, and has the rows that the documentation shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import BEGIN, END, PAGE, ROOT, write
from scripts.bench_table import ATHENA, FLOOR, Row, Series, table
from tests.helpers import TIME_UNIT

ROWS = {
    "start", "restart", "memory_idle", "memory_used", "call", "turn_os", "turn_synced", "append", "sync", "delta",
    "delta_crowd",
}  # fmt: skip


@pytest.mark.slow
def test_it_measures_every_row(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, str(ROOT / "scripts" / "bench.py"), "--quick", "--rounds", "1", "--json"]
    environment = {**os.environ, "ATHENA_HOME": str(home)}
    limit_s = 100 * TIME_UNIT
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=limit_s, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert {row["key"] for row in found["rows"]} == ROWS
    for row in found["rows"]:
        assert all(0 < series["median"] <= series["p99"] for series in row["series"]), row
    assert "start to ready" in done.stderr  # it shows what it is at


def test_a_table_shows_each_contender_and_whether_the_goal_is_met() -> None:
    ours = Series(ATHENA, ATHENA, lambda: [0.004])
    row = Row("k", "a start", "ms", [ours, Series("bare", FLOOR, lambda: [0.002])], "under 2 ms", lambda r: False, 3)
    row.run(lambda _: None)
    assert table([row]).splitlines()[2:] == [
        "| a start | Athena | 4.00 | 4.00 | ms |  | under 2 ms | **missed** |",
        "|  | bare | 2.00 | 2.00 | ms | 2.00x |  |  |",
    ]
    assert row.as_map()["series"][0]["samples"] == 3


def test_writing_replaces_only_what_is_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert BEGIN in PAGE.read_text(encoding="utf-8")
    assert END in PAGE.read_text(encoding="utf-8")
