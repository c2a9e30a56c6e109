"""What the tests of supervision trees share: children that obey files, and a supervisor for a whole test file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from athena import ChildSpec, DynamicSupervisor, Pid, Started, Supervisor
from athena.errors import NoProcess, ProcessExited
from athena.supervisors import EmbeddedSupervisor
from athena.trees import TreeHandle, list_trees
from tests.helpers import wait_until
from tests.otp_invariants import Invariants
from tests.session_fixtures import is_gone

CHILD_S = 20.0
"""Within this every child of these tests is where it should be."""


@pytest.fixture(scope="module")
def shared() -> Iterator[EmbeddedSupervisor]:
    """One supervisor process for the trees of a test file."""
    found = EmbeddedSupervisor()
    yield found
    found.stop()


@dataclass(slots=True)
class Yard:
    """One test's children: their files, and the trees that end with the test."""

    at: EmbeddedSupervisor
    directory: Path
    trees: list[TreeHandle]

    def spec(self, name: Any, *, function: str = "tests.tree_children:serve", **fields: Any) -> ChildSpec:
        """A permanent child with a shutdown of 1 s, as otp-cases.md has them."""
        return ChildSpec(name, function, args=[str(self.directory), str(name)], **{"shutdown": 1, **fields})

    def switch(self, name: str, **fields: Any) -> ChildSpec:
        """A child that cannot start while :meth:`set_flag` holds."""
        env = {**os.environ, "SWITCH": str(self.directory / "flag")}
        return self.spec(name, function="tests.tree_switch:serve", env=env, **fields)

    def set_flag(self, delay_s: float = 0.0) -> None:
        """From now on switch children fail to start, each after ``delay_s``."""
        (self.directory / "flag").write_text(str(delay_s))

    def clear_flag(self) -> None:
        """They can start again."""
        (self.directory / "flag").unlink()

    def start(self, *specs: Any, **options: Any) -> Supervisor:
        """A supervisor; it ends with the test. By default it allows many restarts."""
        options = {"max_restarts": 100, "max_seconds": 3600, **options}
        tree: Supervisor = Supervisor.start_link(list(specs), supervisor=self.at, **options)
        self.trees.append(tree)
        return tree

    def start_dynamic(self, **options: Any) -> DynamicSupervisor:
        """A dynamic one."""
        tree: DynamicSupervisor = DynamicSupervisor.start_link(supervisor=self.at, **options)
        self.trees.append(tree)
        return tree

    def order(self, name: str, words: str) -> None:
        """Have a child obey."""
        part = self.directory / f"{name}.part"
        part.write_text(words)
        part.rename(self.directory / f"{name}.order")

    def log(self) -> list[str]:
        """What the children noted."""
        try:
            return (self.directory / "log").read_text().splitlines()
        except FileNotFoundError:
            return []

    def starts(self) -> list[str]:
        """The names of the children in the order of their starts."""
        return [line.split()[1] for line in self.log() if line.startswith("start ")]

    def wait_starts(self, name: str, count: int) -> None:
        """Wait until a child has started so often."""
        wait_until(lambda: self.starts().count(name) >= count, CHILD_S)

    def row(self, tree: TreeHandle, name: str) -> dict[str, Any]:
        """What a look at the tree shows of a child."""
        (root,) = [row for row in list_trees(supervisor=self.at) if row["pid"]["serial"] == tree.pid.serial]
        (found,) = [row for row in root["children"] if row["id"] == name]
        return dict(found)

    def ends(self) -> list[str]:
        """The names of the children that linger, in the order of their ends."""
        return [line.split()[1] for line in self.log() if line.startswith("end ")]

    def end_all(self) -> None:
        """Stop what runs still."""
        for tree in reversed(self.trees):
            with tree:
                pass


@pytest.fixture
def yard(shared: EmbeddedSupervisor, tmp_path: Path) -> Iterator[Yard]:
    """The test's own children."""
    found = Yard(shared, tmp_path, [])
    invariants = Invariants(shared)
    invariants.begin()
    yield found
    try:
        invariants.look_at(found.trees)
    finally:
        found.end_all()
    invariants.at_rest()


def pid(tree: Supervisor, name: str) -> Pid:
    """The pid of a child that runs."""
    found = tree.which_child(name).pid
    assert isinstance(found, Pid)
    return found


def start_child(tree: TreeHandle, spec: Any) -> Pid:
    """Start one more; its pid."""
    started = tree.start_child(spec)
    assert isinstance(started, Started)
    return started.pid


def pids(tree: Supervisor) -> dict[Any, Any]:
    """Every child's, by id, the oldest first."""
    return {row.id: row.pid for row in reversed(tree.which_children())}


def counts(tree: TreeHandle) -> list[int]:
    """``[specs, active, supervisors, workers]``, as otp-cases.md writes them."""
    found = tree.count_children()
    return [found.specs, found.active, found.supervisors, found.workers]


def wait_new(tree: Supervisor, name: str, old: Pid) -> Pid:
    """Wait until a child runs under another pid."""

    def is_new() -> bool:
        now = tree.which_child(name).pid
        return isinstance(now, Pid) and now.serial != old.serial

    wait_until(is_new, CHILD_S)
    assert is_gone(int(old))
    return pid(tree, name)


def wait_gone(tree: TreeHandle) -> None:
    """Wait until a supervisor has ended."""

    def is_over() -> bool:
        try:
            tree.count_children()
        except (NoProcess, ProcessExited):
            return True
        return False

    wait_until(is_over, CHILD_S)
