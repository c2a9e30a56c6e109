"""The parity table (docs/parity.md) is whole and true: every row is there, and every test that it names exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "parity.md"

ROWS = [f"S{n}" for n in range(1, 22)] + [f"J{n}" for n in range(1, 13)]
LATER = {"S4", "S5", "S9", "S10", "S12", "S15", "S16", "S21", "J11"}
"""Rows that are not, or not wholly, of this release. All others need a proof."""

REFERENCE = re.compile(r"`(tests/\w+\.py)::(\w+)`")


@functools.cache
def table() -> dict[str, list[str]]:
    """The cells of each row."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and re.fullmatch(r"[SJ]\d+", cells[0]):
            assert cells[0] not in found, f"{cells[0]} is there twice"
            found[cells[0]] = cells
    return found


@functools.cache
def functions_in(path: str) -> set[str]:
    """The names of the test functions in a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_page_opens_with_the_question_it_answers() -> None:
    title = PAGE.read_text(encoding="utf-8").splitlines()[0]
    assert title.startswith("# ")
    assert title.endswith("?")


def test_every_row_of_the_reference_is_there_once_and_in_order() -> None:
    assert list(table()) == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_a_proof_or_says_that_it_is_for_later(row: str) -> None:
    _, theirs, ours, *proof = table()[row]
    assert theirs
    assert ours
    assert ("*later*" in ours.lower()) == (row in LATER)
    assert row in LATER or REFERENCE.search(" ".join(proof))


@pytest.mark.parametrize(("path", "name"), REFERENCE.findall(PAGE.read_text(encoding="utf-8")))
def test_a_named_proof_exists(path: str, name: str) -> None:
    assert name in functions_in(path)


def test_every_parity_test_is_named_on_the_page() -> None:
    named = {name for _, name in REFERENCE.findall(PAGE.read_text(encoding="utf-8"))}
    ours = functions_in("tests/test_parity_session.py") | functions_in("tests/test_parity_store.py")
    assert {n for n in ours if n.startswith("test_")} - named <= {"test_j12_writers_in_one_process_are_one_too"}
