"""What a run has shown, as two tables. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from athena.testing.chaos.evidence import COLUMNS, FAULTS, Effect
from athena.testing.chaos.run import Outcome, Outcomes

_HEAD = ("who is killed", "where", "trials", "not reached", *FAULTS)


def table(outcomes: Outcomes) -> str:
    """One row for each victim and place, and their sum: how many trials, and how many with each fault, as Markdown.

    "Not reached": somebody who was to die in that trial did not, or not in the middle of the conversation.
    """
    groups: defaultdict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for one in outcomes.trials:
        groups[one.plan.row].append(one)
    rows = [[*names, *_counts(groups[names])] for names in sorted(groups)]
    return _markdown([list(_HEAD), *rows, ["**all**", "", *_counts(outcomes.trials)]])


def effects_table(outcomes: Outcomes) -> str:
    """What becomes of an effect around which its session's process is killed, by kind and place, as Markdown.

    A cell: how often the effect was had, what the log says of it, and in how many trials.
    """
    cells: defaultdict[tuple[str, str], list[Effect]] = defaultdict(list)
    for one in outcomes.trials:
        if one.effect is not None and one.plan.victims == ("child",):
            cells[one.effect.kind, one.effect.column].append(one.effect)
    kinds = dict.fromkeys(kind for kind, _ in sorted(cells))
    rows = [[kind.replace("_", " and "), *(_cell(cells[kind, column]) for column in COLUMNS)] for kind in kinds]
    return _markdown([["effect", *COLUMNS], *rows])


def failures(outcomes: Outcomes) -> str:
    """Each faulty trial in words, with what reproduces it."""
    lines = []
    for one in outcomes.faulty:
        victims, where = one.plan.row
        lines.append(f"trial {one.plan.number}: {victims} at {one.plan.point or where}, {one.plan.durability}")
        lines += [f"  {name}: {text}" for name, texts in one.faults.items() for text in texts]
        lines.append(f"  again: python scripts/chaos.py --seed {outcomes.seed} --only {one.plan.number}")
        lines += [f"  kept: {one.kept}"] if one.kept else []
    lines += [f"left over at the end: {text}" for text in outcomes.left_over]
    return "\n".join(lines)


def _counts(trials: list[Outcome]) -> list[str]:
    faults = [sum(1 for one in trials if name in one.faults) for name in FAULTS]
    return [str(n) for n in (len(trials), sum(1 for one in trials if not one.was_reached), *faults)]


def _cell(effects: Iterable[Effect]) -> str:
    found = Counter((effect.performed, effect.status) for effect in effects)
    return "; ".join(f"{had}x, {status}: {count}" for (had, status), count in sorted(found.items())) or "-"


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
