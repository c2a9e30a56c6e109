"""The shape of the code: who imports whom, what is pure, how large things get. Read from the source, nothing is run.

A row in a table below is an exception with its reason; a row that is not needed any more fails, so that none outlives
its reason.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("athena", "supervisor")

# --- the rules -------------------------------------------------------------------------------------------------------

SUPERVISOR_MAY_IMPORT = (
    "athena.channel", "athena.child_spec_rules", "athena.config", "athena.environment", "athena.errors",
    "athena.events", "athena.failpoints", "athena.messages", "athena.pid", "athena.proctree", "athena.spec_checks",
    "athena.stores", "athena.wire",
)  # fmt: skip
"""Values, wire, channel and stores (design 10), how process trees are ended, and the rules of specifications, which
both sides check. Never a loop, a provider or a tool."""

IMPURE_MODULES = frozenset(
    {
        "asyncio", "concurrent", "ctypes", "fcntl", "httpx", "logging", "multiprocessing", "os", "pathlib", "random",
        "secrets", "select", "shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "time",
        "uvloop",
    }
)  # fmt: skip
"""What can wait, look at the world, or tell the time."""

PURE: dict[str, dict[str, str]] = {
    "athena/bash_commands.py": {},
    "athena/bash_rules.py": {},
    "athena/child_spec_rules.py": {},
    "athena/errors.py": {},
    "athena/events.py": {"os": "random uuids for new events", "datetime": "their wall clock"},
    "athena/loop/history.py": {},
    "athena/loop/permission.py": {},
    "athena/loop/request.py": {},
    "athena/loop/result.py": {},
    "athena/loop/state.py": {},
    "athena/loop/step.py": {},
    "athena/names.py": {},
    "athena/messages.py": {"secrets": "ids for calls whose provider gave none"},
    "athena/permissions.py": {},
    "athena/pid.py": {},
    "athena/points.py": {},
    "athena/spec_checks.py": {},
    "athena/subscriber.py": {},
    "athena/wire.py": {},
    "supervisor/child_spec.py": {},
    "supervisor/core.py": {},
    "supervisor/dynamic.py": {},
    "supervisor/flags.py": {},
    "supervisor/key_registry.py": {},
    "supervisor/node.py": {},
    "supervisor/node_init.py": {},
    "supervisor/partial.py": {},
    "supervisor/registry.py": {},
    "supervisor/restart.py": {},
    "supervisor/signals.py": {},
    "supervisor/spec.py": {},
    "supervisor/tree.py": {},
    "supervisor/tree_vocabulary.py": {},
    "supervisor/vocabulary.py": {},
}
"""The pure set, with what each may import of :data:`IMPURE_MODULES` all the same, and why."""

THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "httpx": ("athena/providers/", "athena/zygote.py"),  # the zygote warms a client up before it forks
    "orjson": ("athena/",),
    "psutil": ("supervisor/", "athena/cli/"),
    "pydantic": ("athena/loop/options.py", "athena/tools/", "athena/providers/mock_script.py", "athena/testing/"),
    "pytest": ("athena/testing/store_contract.py",),
    "rich": ("athena/cli/",),
    "typer": ("athena/cli/",),
    "click": ("athena/cli/",),
    "uvloop": ("athena/server_child.py", "supervisor/daemon.py"),
    "xllamacpp": ("athena/providers/local_server.py",),
}
"""Where each package from outside may be imported. A new one needs a row."""

STANDARD_LIBRARY_ONLY = {
    "athena/proctree.py": "the guard imports it without site-packages",
    "supervisor/guard.py": "run with -I -S: it must start when nothing else does",
    "supervisor/trampoline.py": "likewise",
}

UNWANTED_NAMES = frozenset({"common", "core_utils", "helper", "helpers", "manager", "misc", "util", "utils"})

FUNCTION_LINES, FUNCTION_LINES_MAX = 40, 60
FILE_LINES, FILE_LINES_MAX = 300, 500
POSITIONAL_MAX = 5

LONG_FILES: dict[str, str] = {
    "athena/async_session.py": "one method for each call of the public interface, a few lines each",
    "athena/child.py": "a server's callbacks, and one small function for each operation",
    "athena/cli/store.py": "one command after the other, each a few lines",
    "athena/client.py": "both shells over one protocol, to be read side by side",
    "athena/loop/state.py": "one fold: one small function for each kind of event",
    "athena/proctree.py": "all rules of killing a tree in one place, and the guard can import one file only",
    "athena/runner.py": "one engine: what clients ask and what steps do share its state",
    "athena/session.py": "one method for each call of the public interface, with its contract",
    "athena/session_calls.py": "one function for each call, and the border where what users give is checked",
    "athena/stores/jsonl.py": "writer and reader of one format",
    "athena/supervisors.py": "which supervisor, and how one is started and stopped, from one side",
    "supervisor/core.py": "one state machine with its one table",
    "supervisor/processes.py": "who there is, and every way in which processes learn of each other",
    "supervisor/daemon.py": "the parts put together, and the program's own beginning and end",
    "supervisor/keeper.py": "what a session is to the supervisor: pipe, calls, subscribers, monitors",
    "supervisor/node.py": "one state machine: what all kinds of supervisor share",
    "supervisor/roster.py": "writer and reader of one format",
    "supervisor/tree_vocabulary.py": "each input and effect of a tree with its meaning",
}
LONG_FUNCTIONS: dict[str, str] = {}
BROAD_HANDLERS: dict[str, str] = {
    "athena/approver.py:Approver._decide": "a function of the user's that fails denies, and is asked again next time",
    "athena/approver.py:ask": "likewise",
    "athena/channel.py:Channel.data_received": "what one peer's frame breaks ends that peer's connection",
    "athena/child.py:main": "whatever ended a child becomes an entry in its log and an exit status",
    "athena/function_child.py:main": "whatever ended a function is the reason its process ends for",
    "athena/rehearsal.py:rehearse": "a zygote that could not warm up forks all the same, only slower children",
    "athena/tools/execute.py:_run": "a tool's failure is a result that the model reads",
    "athena/server.py:shortened": "a repr that fails must not hide the error that shows it",
    "athena/server_child.py:Runtime._call": "whatever a callback raised is the reason its process ends for",
    "athena/server_child.py:Runtime._terminate": "what terminate raised is the reason then",
    "athena/zygote.py:Server._run_child": "between fork and exit nothing may unwind into the zygote's own code",
    "supervisor/branch.py:Branch._start_child": "without a result the node would wait for ever",
    "supervisor/hub.py:Subscription._run_replay": "a log that cannot be read ends this one stream, and tells it",
    "supervisor/leaf.py:Leaf._run_life": "without an exit the core would wait for ever",
    "supervisor/processes.py:Processes._carry_out_one": "one that cannot be told must not keep the others from it",
    "supervisor/server.py:Connection._guarded": "one operation's bug is one client's error, and the daemon goes on",
}
MANY_POSITIONAL: dict[str, str] = {
    "athena/runner.py:Runner.__init__": "the collaborators of the engine, each given once, in two places",
    "athena/session_setup.py:_assemble": "one call, of the function that it is the second half of",
}

# --- reading the source -----------------------------------------------------------------------------------------------

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """One source file."""

    path: str
    text: str
    tree: ast.Module

    @property
    def imports(self) -> set[str]:
        """Full names of what it imports at run time, wherever in the file; for type checking only is no dependency."""
        return {name for node in self._run_time() for name in _imported(node)}

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Every function with its dotted name."""
        yield from _functions(self.tree, "")

    def _run_time(self) -> Iterator[ast.AST]:
        stack: list[ast.AST] = [self.tree]
        while stack:
            node = stack.pop()
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                stack += node.orelse
                continue
            yield node
            stack += ast.iter_child_nodes(node)


def _imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        package = str(node.module)
        # `from athena import wire` names a module; `from athena.wire import Frame` names something in one.
        return {f"{package}.{alias.name}" for alias in node.names if _is_module(f"{package}.{alias.name}")} or {package}
    return set()


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            name = f"{prefix}{child.name}"
            if isinstance(child, Function):
                yield name, child
            yield from _functions(child, f"{name}.")
        else:
            yield from _functions(child, prefix)


@functools.cache
def modules() -> dict[str, Module]:
    """All source files of both packages, by path from the root."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            path, text = str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")
            found[path] = Module(path, text, ast.parse(text))
    return found


def _under(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)


def _check(violations: list[str]) -> None:
    assert not violations, "\n".join(["", *violations])


# --- who imports whom -------------------------------------------------------------------------------------------------


def test_athena_never_imports_the_supervisor() -> None:
    ours = [m for m in modules().values() if m.path.startswith("athena/")]
    _check([m.path for m in ours if any(_under(name, ("supervisor",)) for name in m.imports)])


def test_the_supervisor_imports_only_values_wire_channel_and_stores() -> None:
    violations = []
    for module in modules().values():
        if module.path.startswith("supervisor/"):
            foreign = {i for i in module.imports if _under(i, ("athena",)) and not _under(i, SUPERVISOR_MAY_IMPORT)}
            violations += [f"{module.path} imports {name}" for name in sorted(foreign)]
    _check(violations)


def test_what_the_supervisor_imports_brings_in_no_loop_provider_or_tool() -> None:
    reached, queue = set(), list(SUPERVISOR_MAY_IMPORT)
    while queue:
        name = queue.pop()
        if name in reached:
            continue
        reached.add(name)
        path = name.replace(".", "/")
        module = modules().get(f"{path}.py") or modules().get(f"{path}/__init__.py")
        queue += [i for i in (module.imports if module else ()) if _under(i, ("athena",))]
    heavy = ("athena.loop", "athena.providers", "athena.tools", "athena.runner", "athena.session", "athena.cli")
    _check([name for name in sorted(reached) if _under(name, heavy)])


@pytest.mark.parametrize("path", PURE)
def test_the_pure_set_neither_waits_nor_looks_at_the_world(path: str) -> None:
    module = modules()[path]
    impure = {name.partition(".")[0] for name in module.imports} & IMPURE_MODULES
    _check([f"{path} imports {name}" for name in sorted(impure - set(PURE[path]))])
    waiting = [name for name, node in module.functions() if isinstance(node, ast.AsyncFunctionDef)]
    _check([f"{path} is pure and may wait in {name}" for name in waiting])


@pytest.mark.parametrize("path", PURE)
def test_the_pure_set_imports_only_values_of_ours(path: str) -> None:
    """A pure file may use pure files, and value classes that live beside a plug-in's interface."""
    values = {"athena.loop.options", "athena.providers.base", "athena.tools.base"}
    pure = {p.removesuffix(".py").replace("/", ".") for p in PURE}
    ours = {name for name in modules()[path].imports if _under(name, PACKAGES)}
    _check([f"{path} imports {name}" for name in sorted(ours - pure - values)])


def test_a_package_from_outside_is_imported_only_where_it_belongs() -> None:
    violations = []
    for module in modules().values():
        for name in {i.partition(".")[0] for i in module.imports} - set(sys.stdlib_module_names) - set(PACKAGES):
            places = THIRD_PARTY.get(name)
            if places is None or not module.path.startswith(places):
                violations.append(f"{module.path} imports {name}")
    _check(violations)


@pytest.mark.parametrize("path", STANDARD_LIBRARY_ONLY)
def test_what_runs_without_site_packages_needs_none(path: str) -> None:
    allowed = ("athena.proctree", "supervisor.process", "supervisor")
    foreign = {i for i in modules()[path].imports if i.partition(".")[0] not in sys.stdlib_module_names}
    _check([f"{path} imports {name}" for name in sorted(foreign) if not _under(name, allowed)])


def test_every_dependency_is_used_and_every_use_is_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    declared = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in [*project["dependencies"], *extras]}
    used = {i.partition(".")[0] for m in modules().values() for i in m.imports} & set(THIRD_PARTY)
    come_along = {"click": "typer is made of it", "pytest": "who runs the store contract has it"}
    assert used - set(come_along) <= declared
    assert declared <= used


# --- size and form ----------------------------------------------------------------------------------------------------


def _lines(function: Function) -> int:
    """Lines of a function, its docstring left out."""
    whole = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        whole -= (first.end_lineno or first.lineno) - first.lineno + 1
    return whole


def test_files_stay_small() -> None:
    lengths = {m.path: m.text.count("\n") for m in modules().values()}
    long = {path: n for path, n in lengths.items() if n > FILE_LINES}
    _check([f"{path}: {n} lines, at most {FILE_LINES_MAX}" for path, n in long.items() if n > FILE_LINES_MAX])
    _check([f"{path}: {n} lines, needs a reason" for path, n in long.items() if path not in LONG_FILES])
    _check([f"{path} needs its row no more" for path in LONG_FILES if path not in long])


def test_functions_stay_small() -> None:
    lengths = {f"{m.path}:{name}": _lines(node) for m in modules().values() for name, node in m.functions()}
    long = {key: n for key, n in lengths.items() if n > FUNCTION_LINES}
    _check([f"{key}: {n} lines, at most {FUNCTION_LINES_MAX}" for key, n in long.items() if n > FUNCTION_LINES_MAX])
    _check([f"{key}: {n} lines, needs a reason" for key, n in long.items() if key not in LONG_FUNCTIONS])
    _check([f"{key} needs its row no more" for key in LONG_FUNCTIONS if key not in long])


def test_functions_take_few_positional_arguments() -> None:
    counts = {}
    for module in modules().values():
        for name, node in module.functions():
            given = [a.arg for a in [*node.args.posonlyargs, *node.args.args] if a.arg not in ("self", "cls")]
            counts[f"{module.path}:{name}"] = len(given)
    _check([f"{key}: {n} positional" for key, n in counts.items() if n > POSITIONAL_MAX and key not in MANY_POSITIONAL])
    _check([f"{key} needs its row no more" for key in MANY_POSITIONAL if counts.get(key, 0) <= POSITIONAL_MAX])


def test_every_module_says_what_it_is_for() -> None:
    empty = [m.path for m in modules().values() if not ast.get_docstring(m.tree) and m.text.strip()]
    _check([f"{path} has no docstring" for path in empty])


def test_every_public_function_and_class_says_what_it_does() -> None:
    """Of each file's top level; methods that a base class or a protocol explains are left to it."""
    named = [(m.path, n) for m in modules().values() for n in m.tree.body if isinstance(n, Function | ast.ClassDef)]
    _check([f"{path}: {n.name}" for path, n in named if not n.name.startswith("_") and not ast.get_docstring(n)])


def test_modules_have_names_that_say_something() -> None:
    _check([path for path in modules() if set(Path(path).with_suffix("").parts) & UNWANTED_NAMES])


def test_broad_handlers_are_only_at_borders() -> None:
    """`except Exception` or broader that does not raise again stands where one failure must not become another's."""
    found = set()
    for module in modules().values():
        for name, node in module.functions():
            handlers = (n for n in ast.walk(node) if isinstance(n, ast.ExceptHandler))
            if any(_is_broad(handler) and not _reraises(handler) for handler in handlers):
                found.add(f"{module.path}:{name}")
    _check([f"{key} catches everything" for key in sorted(found - set(BROAD_HANDLERS))])
    _check([f"{key} needs its row no more" for key in sorted(set(BROAD_HANDLERS) - found)])


def _is_broad(handler: ast.ExceptHandler) -> bool:
    names = {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)} if handler.type else {"BaseException"}
    return bool(names & {"Exception", "BaseException"})


def _reraises(handler: ast.ExceptHandler) -> bool:
    return any(isinstance(node, ast.Raise) for node in ast.walk(handler))


DIRTY_PATHS = re.compile(r"(?<![\w.}/-])/(work|root|opt|Users|home/[a-z])(?=[/\s\"'`]|$)")


def test_no_path_of_a_development_machine_is_in_the_repository() -> None:
    violations = []
    for file in _texts():
        path = str(file.relative_to(ROOT))
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if found := DIRTY_PATHS.search(line):
                violations.append(f"{path}:{number}: {found.group()} in {line.strip()[:80]}")
    _check(violations)


def test_nothing_is_left_to_do_in_a_comment() -> None:
    words = re.compile(r"#.*\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
    texts = {file: file.read_text(encoding="utf-8", errors="replace") for file in _texts()}
    _check([str(file.relative_to(ROOT)) for file, text in texts.items() if words.search(text)])


def _texts() -> Iterator[Path]:
    for top in ("athena", "supervisor", "tests", "scripts", "docs", ".ci"):
        for file in sorted((ROOT / top).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts and "data" not in file.parts:
                yield file
    yield from (ROOT / name for name in ("Makefile", "README.md", "CHANGELOG.md", "pyproject.toml"))
