"""What a benchmark found, and how it reads: samples, rows, goals and the table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ATHENA, FLOOR, PEER = "Athena", "floor", "peer"

UNITS = {"ms": 1e3, "us": 1e6, "MB": 1e-6}
"""By what a value in seconds or bytes is multiplied to be shown."""


@dataclass(slots=True)
class Series:
    """One contender's samples, in seconds or bytes."""

    name: str
    role: str
    sample: Callable[[], list[float]] = field(repr=False)
    values: list[float] = field(default_factory=list, repr=False)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        """The nearest rank at 99 %: of fewer than 100 samples, the greatest."""
        ordered = sorted(self.values)
        return ordered[max(0, math.ceil(len(ordered) * 0.99) - 1)]


@dataclass(slots=True)
class Row:
    """One thing that is measured, on Athena and on what it is compared with."""

    key: str
    what: str
    unit: str
    series: list[Series]
    goal: str = ""
    is_met: Callable[[Row], bool] | None = field(default=None, repr=False)
    rounds: int = 10

    def run(self, tell: Callable[[str], None]) -> None:
        """Take the samples, one contender after the other in each round: noise of the machine meets all of them."""
        for number in range(self.rounds):
            tell(f"{self.what}: {number + 1}/{self.rounds}")
            for series in self.series:
                series.values += series.sample()

    def median(self, name: str) -> float:
        """The median of one contender."""
        return next(s.median for s in self.series if s.name == name)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; ``None`` without one."""
        return None if self.is_met is None else self.is_met(self)

    def as_map(self) -> dict[str, Any]:
        """As JSON: seconds and bytes."""
        return {
            "key": self.key,
            "what": self.what,
            "unit": "bytes" if self.unit == "MB" else "s",
            "goal": self.goal,
            "met": self.met,
            "series": [
                {"name": s.name, "role": s.role, "median": s.median, "p99": s.p99, "samples": len(s.values)}
                for s in self.series
            ],
        }

    def table_lines(self) -> list[str]:
        """As rows of a Markdown table, Athena first."""
        scale = UNITS[self.unit]
        first = self.series[0]
        verdict = {None: "", True: "met", False: "**missed**"}[self.met]
        lines = []
        for series in self.series:
            own = series is first
            ratio = "" if own else _ratio(first.median / series.median)
            cells = [
                self.what if own else "", series.name, _short(series.median * scale), _short(series.p99 * scale),
                self.unit, ratio, self.goal if own else "", verdict if own else "",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        return lines


def table(rows: list[Row]) -> str:
    """The whole table. ``ratio`` is Athena's median over this line's."""
    head = ["what", "", "median", "p99", "unit", "Athena is", "goal", ""]
    lines = ["| " + " | ".join(head) + " |", "|---|---|--:|--:|---|--:|---|---|"]
    for row in rows:
        lines += row.table_lines()
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"
