"""What the pages say is true: every example runs, every command exists, every link leads somewhere.

A Python block whose first line is a comment with a file name is that file, and lies beside the other blocks of its
page; a block without one is a program, run as it stands in a directory of its own. Lines that begin with ``#>`` are
what it prints, in order. Nothing is substituted: a program for Ollama finds a fake server by Ollama's own variable, and
one for the embedded model runs where that is installed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from athena.testing import FakeOllama
from tests.helpers import TIME_UNIT

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

PROGRAM_S = 60.0

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.py)\n")
PRINTED = re.compile(r"^ *#> (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
CODE_PATH = re.compile(r"`((?:athena|supervisor|tests|scripts|docs)/[\w/]+\.(?:py|md|sh))`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        """The name of the file that it is, if it is one."""
        found = FILE_NAME.match(self.text)
        return found.group(1) if found else None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def _blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            yield Block(page, text.count("\n", 0, found.start()) + 1, found.group(1), found.group(2))


BLOCKS = list(_blocks())
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language == "sh"]


def _programs() -> list[Any]:
    programs = []
    for block in PYTHON:
        if block.file_name is None:
            needs_model = 'provider="local"' in block.text
            marks = [pytest.mark.slow, pytest.mark.model] if needs_model else []
            programs.append(pytest.param(block, id=str(block), marks=marks))
    return programs


def _run(block: Block, directory: Path, *command: str, **env: str) -> str:
    for other in PYTHON:
        if other.page == block.page and other.file_name is not None:
            (directory / other.file_name).write_text(other.text)
    (directory / "program.py").write_text(block.text)
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROGRAM_S * TIME_UNIT,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == "", f"{block}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("block", _programs())
def test_every_program_in_the_pages_runs_and_prints_what_it_says(block: Block, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "example"\ndependencies = ["httpx"]\n')
    script = [
        {"tool_calls": [{"name": "read", "arguments": {"path": "pyproject.toml"}}]},
        "The project depends on httpx.",
    ]
    uses_ollama = 'provider="ollama"' in block.text
    with FakeOllama(script, models=("llama3.1",)).in_thread() if uses_ollama else nullcontext() as fake:
        printed = _run(block, tmp_path, "program.py", **({"OLLAMA_HOST": fake.base_url} if fake else {}))
    if uses_ollama:
        assert printed == "The project depends on httpx.\n"
    expected = PRINTED.findall(block.text)
    if expected:
        assert printed.splitlines() == expected
    assert printed, "an example that prints nothing shows nothing"


@pytest.mark.parametrize("block", [b for b in PYTHON if (b.file_name or "").startswith("test_")], ids=str)
def test_every_test_in_the_pages_passes(block: Block, tmp_path: Path) -> None:
    quiet = ("-q", "-p", "no:cacheprovider", "-p", "no:asyncio")  # plugins of ours that a page's reader need not have
    printed = _run(block, tmp_path, "-m", "pytest", *quiet, str(block.file_name))
    assert re.search(r"\d+ passed", printed)
    assert "failed" not in printed


def test_every_file_in_the_pages_is_used_by_a_program_of_its_page() -> None:
    for block in PYTHON:
        if block.file_name is not None and not block.file_name.startswith("test_"):
            module = block.file_name.removesuffix(".py")
            others = [b.text for b in PYTHON if b.page == block.page and b is not block]
            assert any(module in text for text in others), f"{block}: nothing uses {block.file_name}"


def test_blocks_have_a_language_that_is_looked_after() -> None:
    assert {block.language for block in BLOCKS} <= {"python", "sh", "text", "ini", "json"}


# --- commands ---------------------------------------------------------------------------------------------------------


def _commands() -> list[Any]:
    found = []
    for block in SHELL:
        for offset, line in enumerate(block.text.splitlines()):
            words = shlex.split(line, comments=True)
            if words:
                found.append(pytest.param(words, id=f"{block.page.name}:{block.line + 1 + offset}"))
    return found


@pytest.mark.parametrize("words", _commands())
def test_every_command_in_the_pages_exists(words: list[str]) -> None:
    program, *rest = words
    match program:
        case "make":
            targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert [w for w in rest if "=" not in w and w not in targets] == []
        case "athena" | "athena-supervisor":
            _check_command(program, rest)
        case _:
            assert program == "pip"


def _check_command(program: str, words: list[str]) -> None:
    from athena.cli import app, supervisor

    group: Any = typer.main.get_command(app.app if program == "athena" else supervisor.app)
    command, words = group.commands[words[0]], words[1:]
    if hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert [word for word in words if word.startswith("-") and word not in known] == []


# --- the pages themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["protocol_page", "states_page"])
def test_the_pages_that_are_written_from_the_code_are_what_it_says(name: str) -> None:
    script: Any = import_module(f"scripts.{name}")
    assert script.PAGE.read_text(encoding="utf-8") == script.render(), "stale: run make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, _ in LINK.findall(text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for path in CODE_PATH.findall(text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_page_opens_with_its_question_and_says_for_whom(page: Path) -> None:
    title, _, rest = page.read_text(encoding="utf-8").partition("\n")
    assert title.startswith("# ")
    assert title.endswith("?")
    assert rest.lstrip().startswith("For ")


def test_every_page_of_the_docs_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "index.md" and p.name not in index] == []


def test_every_make_target_says_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(phony.group(1).split()) == set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))


def test_the_environment_page_names_every_variable_that_the_code_reads() -> None:
    read = set()
    for package in ("athena", "supervisor"):
        for file in (ROOT / package).rglob("*.py"):
            read |= set(re.findall(r"(?:env|environ|environment)(?:\.get\(|\[)\"([A-Z_]+)\"", file.read_text()))
    told = set(re.findall(r"`\$?([A-Z_]{4,})", (ROOT / "docs" / "operations.md").read_text()))
    ordinary = {"HOME", "PATH", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"}
    assert read - ordinary - told == set()
