"""Classes that say what they supervise, programs that say when they are ready, and what a caller's own side checks.

The cases in the names are those of otp-cases.md.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from athena import (
    AsyncDynamicSupervisor,
    AsyncSupervisor,
    ChildCounts,
    ChildSpec,
    DynamicSupervisor,
    Pid,
    Supervisor,
    check_childspecs,
)
from athena.errors import (
    AlreadyStarted,
    AthenaError,
    InvalidSpec,
    MaxChildren,
    NoProcess,
    ProcessExited,
    StartError,
)
from athena.supervisors import EmbeddedSupervisor
from athena.tree_calls import Ignored, Started
from athena.trees import TreeHandle, list_trees
from supervisor.notify import NotifySocket
from tests import module_supervisors as classes
from tests.helpers import TIME_UNIT, wait_until, wait_until_async
from tests.session_fixtures import Program, background, daemon, is_gone, program
from tests.tree_fixtures import CHILD_S, Yard, counts, pid, pids, shared, start_child, wait_gone, wait_new, yard

__all__ = ["background", "daemon", "program", "shared", "yard"]

ROOT = Path(__file__).resolve().parents[1]

HERE = "tests.module_supervisors"


def begin(yard: Yard, cls: Any, *args: Any, **options: Any) -> Any:
    """Start a supervisor of a class; it ends with the test."""
    tree = cls.start_link(*args, supervisor=yard.at, **options)
    if isinstance(tree, TreeHandle):
        yard.trees.append(tree)
    return tree


def inits(yard: Yard) -> int:
    """How many times an init has run."""
    return sum(line.startswith("init") for line in yard.log())


def odd(yard: Yard, how: str, **fields: Any) -> ChildSpec:
    """A child whose init ends in an odd way."""
    return ChildSpec("odd", f"{HERE}:Odd", args=[str(yard.directory), how], type="supervisor", **fields)


class Attempt(threading.Thread):
    """A call that is made while the test goes on."""

    def __init__(self, what: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._what = what
        self.answer: object = None
        self.error: AthenaError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._what()
        except AthenaError as error:
            self.error = error

    def wait(self) -> AthenaError | None:
        """Why it failed."""
        self.join(CHILD_S * TIME_UNIT)
        assert not self.is_alive()
        return self.error


def nobody_runs(yard: Yard) -> bool:
    """Whether every process that noted its number is gone."""
    numbers = [line.split()[2] for line in yard.log() if line.startswith(("init odd", "start "))]
    return all(is_gone(int(number)) for number in numbers)


# --- a class as a root ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_class_says_what_is_supervised(yard: Yard) -> None:
    tree = begin(yard, classes.Crew, str(yard.directory), mark="first", name="crew")
    assert isinstance(tree, classes.Crew)
    assert (tree.name, yard.log()[0], list(pids(tree))) == ("crew", "init crew first", ["a", "b"])
    (row,) = [row for row in list_trees(supervisor=yard.at) if row["name"] == "crew"]
    assert row["strategy"] == "rest_for_one"
    old = pids(tree)
    yard.order("a", "die")
    wait_new(tree, "a", old["a"])
    wait_new(tree, "b", old["b"])
    assert inits(yard) == 1
    assert Supervisor.attach("crew", supervisor=yard.at).pid == tree.pid


def test_a_class_can_be_awaited(yard: Yard) -> None:
    async def run() -> list[Any]:
        tree = await classes.AsyncCrew.start_link(str(yard.directory), supervisor=yard.at)
        assert isinstance(tree, classes.AsyncCrew)
        async with tree:
            return [row.id for row in await tree.which_children()]

    assert asyncio.run(run()) == ["a"]
    assert nobody_runs(yard)


def test_a_class_of_a_dynamic_supervisor(yard: Yard) -> None:
    pool = begin(yard, classes.Pool, str(yard.directory))
    for name in ("x", "y"):
        start_child(pool, ChildSpec(name, classes.SERVE, args=[name], restart="temporary", shutdown=1))
        yard.wait_starts(name, 1)
    with pytest.raises(MaxChildren):
        pool.start_child(ChildSpec("z", classes.SERVE, args=["z"]))


def test_a_class_of_one_template(yard: Yard) -> None:
    tree = begin(yard, classes.Templates, str(yard.directory))
    start_child(tree, ["x"])
    yard.wait_starts("x", 1)
    assert counts(tree) == [1, 1, 0, 1]


def test_a_class_inside_another_is_found(yard: Yard) -> None:
    assert counts(begin(yard, classes.Outer.Inner)) == [0, 0, 0, 0]


def test_the_process_of_init_is_gone_when_the_supervisor_is_there(yard: Yard) -> None:
    assert begin(yard, classes.Odd, str(yard.directory), "ignore") == Ignored()
    assert nobody_runs(yard)
    assert all(row["label"] != "Odd" for row in list_trees(supervisor=yard.at))


def test_ignore_leaves_nothing(yard: Yard) -> None:
    for cls in (classes.Says, classes.SaysDynamic):
        assert begin(yard, cls, "ignore", name="choosy") == Ignored()
    assert list_trees(supervisor=yard.at) == []
    with pytest.raises(NoProcess):
        Supervisor.attach("choosy", supervisor=yard.at)


@pytest.mark.parametrize("value", [42, None, "yes", [], [{}], [{}, [], []], {"strategy": "one_for_one"}])
def test_a05_a_bad_return_is_named_with_class_and_value(yard: Yard, value: Any) -> None:
    with pytest.raises(StartError) as raised:
        begin(yard, classes.Says, value, name="bad")
    assert raised.value.reason == {"bad_return": [f"{HERE}:Says", "init", value]}
    assert list_trees(supervisor=yard.at) == []
    begin(yard, classes.Says, [{}, []], name="bad")  # the name is free at once


def test_a05_a_return_that_cannot_travel_is_shown(yard: Yard) -> None:
    for how, shown in (("object", "<object obj"), ("objects", "'x': '<object obj")):
        with pytest.raises(StartError) as raised:
            begin(yard, classes.Odd, str(yard.directory), how)
        module, function, value = raised.value.reason["bad_return"]
        assert (module, function) == (f"{HERE}:Odd", "init")
        assert shown in str(value)


def test_g01_bad_returns_of_a_dynamic_class(yard: Yard) -> None:
    values: list[Any] = [42, [{}, []], None]
    for value in values:
        with pytest.raises(StartError) as raised:
            begin(yard, classes.SaysDynamic, value)
        assert raised.value.reason == {"bad_return": [f"{HERE}:SaysDynamic", "init", value]}


@pytest.mark.parametrize(
    ("flags", "tag"),
    [
        ({"strategy": "one_for_all"}, "invalid_strategy"),
        ({"intensity": "infinity"}, "invalid_intensity"),
        ({"period": 0}, "invalid_period"),
        ({"max_children": -1}, "invalid_max_children"),
        ({"extra_arguments": "x"}, "invalid_extra_arguments"),
        ({"auto_shutdown": "any_significant"}, "invalid_auto_shutdown"),
    ],
)
def test_g01_bad_flags_of_a_dynamic_class(yard: Yard, flags: dict[str, Any], tag: str) -> None:
    with pytest.raises(StartError) as raised:
        begin(yard, classes.SaysDynamic, flags)
    assert raised.value.reason == {"supervisor_data": {tag: next(iter(flags.values()))}}


@pytest.mark.parametrize(
    ("flags", "tag"),
    [
        ({"strategy": "none"}, "invalid_strategy"),
        ({"intensity": "infinity"}, "invalid_intensity"),
        ({"period": 0}, "invalid_period"),
        ({"period": "infinity"}, "invalid_period"),
        ({"auto_shutdown": "sometimes"}, "invalid_auto_shutdown"),
        (["one_for_one", 1], "invalid_type"),
    ],
)
def test_a11_bad_flags_of_a_class(yard: Yard, flags: Any, tag: str) -> None:
    with pytest.raises(StartError) as raised:
        begin(yard, classes.Says, [flags, []])
    assert set(raised.value.reason["supervisor_data"]) == {tag}


def test_a11_an_unknown_flag_is_ignored_and_a09_specs_are_checked_before_any_starts(yard: Yard) -> None:
    begin(yard, classes.Says, [{"colour": "red"}, []])
    good = classes.child(str(yard.directory), "a").to_map()
    for bad, term in (
        ({"id": "b"}, "missing_start"),
        ("atom", {"invalid_child_spec": "atom"}),
        (good, {"duplicate_child_name": "a"}),
    ):
        with pytest.raises(StartError) as raised:
            begin(yard, classes.Says, [{}, [good, bad]])
        assert raised.value.reason == {"start_spec": term}
    for several in ([], [good, good]):
        with pytest.raises(StartError) as raised:
            begin(yard, classes.Says, [{"strategy": "simple_one_for_one"}, several])
        assert set(raised.value.reason) == {"bad_start_spec"}
    assert yard.starts() == []


def test_bare_flags_allow_one_restart_and_those_of_spec_three(yard: Yard) -> None:
    """Elixir's 3 in 5 s come from its function and not from the engine (otp.md 3)."""
    bare = begin(yard, classes.SaysDynamic, {})
    for tree, allowed in ((bare, 1), (begin(yard, classes.SaysDynamic, DynamicSupervisor.spec()), 3)):
        name = f"c{allowed}"
        tree.start_child(yard.spec(name))
        for n in range(allowed + 1):
            yard.wait_starts(name, n + 1)
            assert counts(tree)[0] == 1
            yard.order(name, "die")
        wait_gone(tree)
        assert yard.starts().count(name) == allowed + 1


@pytest.mark.parametrize(
    ("how", "reason"),
    [("raise", "error"), ("exit", {"exit": 3}), ("kill", "killed")],
)
def test_a_crash_in_init_is_why_it_did_not_start(yard: Yard, how: str, reason: Any) -> None:
    with pytest.raises(StartError) as raised:
        begin(yard, classes.Odd, str(yard.directory), how, name="odd")
    found = raised.value.reason
    if how == "raise":
        assert (found["error"]["type"], found["error"]["message"]) == ("RuntimeError", "no plan")
        assert "module_supervisors.py" in found["error"]["traceback"]
    else:
        assert found == reason
    assert nobody_runs(yard)
    assert list_trees(supervisor=yard.at) == []
    assert begin(yard, classes.Odd, str(yard.directory), "ignore", name="odd") == Ignored()


def test_a_class_that_cannot_be_found_or_has_no_init(yard: Yard) -> None:
    tree = yard.start()
    for start, kind in (("tests.nowhere:Crew", "ModuleNotFoundError"), (f"{HERE}:Nobody", "AttributeError")):
        with pytest.raises(StartError) as raised:
            tree.start_child(ChildSpec("x", start, type="supervisor"))
        assert raised.value.reason["error"]["type"] == kind
    with pytest.raises(StartError, match="has no init"):
        tree.start_child(ChildSpec("x", f"{HERE}:Bare", type="supervisor"))


@pytest.mark.slow
def test_init_that_takes_too_long_is_a_timeout(yard: Yard) -> None:
    with pytest.raises(StartError) as raised:
        begin(yard, classes.Odd, str(yard.directory), "hang", start_timeout=0.5)
    assert raised.value.reason == "timeout"
    assert nobody_runs(yard)


def test_a_class_that_no_process_can_import_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(Supervisor):
        def init(self) -> Any:
            return self.spec([])

    with pytest.raises(InvalidSpec, match="top level of a module") as raised:
        Local.start_link()
    assert raised.value.tag == "invalid_mfa"
    monkeypatch.setattr(classes.Crew, "__module__", "__main__")
    with pytest.raises(InvalidSpec, match="the program that is run"):
        classes.Crew.child_spec("x")


def test_what_is_no_option_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        Supervisor.start_link([], colour="red")
    with pytest.raises(TypeError, match="one list of children, not 2"):
        Supervisor.start_link([], [])
    with pytest.raises(TypeError, match="start_child adds them"):
        DynamicSupervisor.start_link([])


def test_a_taken_name_is_told_before_init_runs(yard: Yard) -> None:
    tree = begin(yard, classes.Crew, str(yard.directory), name="crew")
    with pytest.raises(AlreadyStarted) as raised:
        begin(yard, classes.Crew, str(yard.directory), name="crew")
    assert raised.value.pid == tree.pid
    with pytest.raises(StartError) as failed:
        yard.start(classes.Crew.child_spec(str(yard.directory), id="x", name="crew"))
    name, reason = failed.value.reason["shutdown"]["failed_to_start_child"]
    assert (name, reason) == ("x", {"already_started": tree.pid.serial})
    assert inits(yard) == 1


# --- a class below another supervisor ---------------------------------------------------------------------------------


def test_init_runs_again_at_each_restart_and_added_children_are_gone(yard: Yard) -> None:
    crew = ChildSpec("crew", f"{HERE}:Crew", args=[str(yard.directory)], type="supervisor", name="crew")
    tree = yard.start(crew)
    assert counts(tree) == [1, 1, 1, 0]
    inner = Supervisor.attach("crew", supervisor=yard.at)
    assert inner.pid == pid(tree, "crew")
    inner.start_child(yard.spec("c"))
    assert list(pids(inner)) == ["a", "b", "c"]
    inner.stop("failure")
    again = wait_new_supervisor(tree, "crew", inner.pid)
    inner = Supervisor.attach("crew", supervisor=yard.at)
    assert (inner.pid, list(pids(inner)), inits(yard)) == (again, ["a", "b"], 2)


def wait_new_supervisor(tree: Supervisor, name: str, old: Pid) -> Pid:
    """Wait until a nested supervisor runs under another pid."""

    def is_new() -> bool:
        now = tree.which_child(name).pid
        return isinstance(now, Pid) and now.serial != old.serial

    wait_until(is_new, CHILD_S)
    return pid(tree, name)


def test_a_child_has_the_name_that_its_specification_gives(yard: Yard) -> None:
    def named(name: str, **fields: Any) -> ChildSpec:
        return replace(yard.spec(name, **fields), name="owner")

    tree = yard.start(ChildSpec("p", ["sleep", "1000"], name="owner"))
    with pytest.raises(AlreadyStarted) as raised:
        tree.start_child(named("a"))
    assert raised.value.pid == pid(tree, "p")
    with pytest.raises(StartError) as failed:
        yard.start(named("a", type="supervisor"))
    assert failed.value.reason["shutdown"]["failed_to_start_child"][0] == "a"
    tree.terminate_child("p")
    other = yard.start(named("a", type="supervisor"))  # a function that only counts as a supervisor
    with pytest.raises(AlreadyStarted) as raised:
        tree.restart_child("p")
    assert raised.value.pid == pid(other, "a")


def test_child_spec_of_a_class(yard: Yard) -> None:
    spec = classes.Crew.child_spec("x", name="crew", restart="transient", kwargs={"mark": "m"})
    assert (spec["id"], spec["start"], spec["type"], spec["args"]) == ("crew", f"{HERE}:Crew", "supervisor", ("x",))
    assert (spec["restart"], spec["kwargs"], spec["options"]) == ("transient", {"mark": "m"}, {"name": "crew"})
    assert classes.Pool.child_spec("x")["id"] == "Pool"
    assert classes.Pool.child_spec("x", id=3)["id"] == 3
    tree = yard.start(classes.Pool.child_spec(str(yard.directory)), classes.AsyncCrew.child_spec(str(yard.directory)))
    assert counts(tree) == [2, 2, 2, 0]


def test_type_supervisor_makes_no_supervisor_of_a_function(yard: Yard) -> None:
    """It decides the default of shutdown and how a child is counted, nothing else (otp.md 2)."""
    tree = yard.start(yard.spec("a", type="supervisor"))
    assert counts(tree) == [1, 1, 1, 0]
    assert int(pid(tree, "a")) < 2**32
    yard.order("a", "die")
    yard.wait_starts("a", 2)


def test_ignore_below_each_kind_of_supervisor(yard: Yard) -> None:
    """Kept without a process by a static one, not kept by the others (otp.md 5)."""
    args = [str(yard.directory), "wanted"]
    choosy = ChildSpec("choosy", f"{HERE}:Choosy", args=args, type="supervisor")
    tree = yard.start(choosy)
    assert (tree.which_child("choosy").pid, counts(tree)) == (None, [1, 0, 1, 0])
    assert tree.restart_child("choosy") == Ignored()
    assert tree.start_child(ChildSpec("t", f"{HERE}:Choosy", args=args, restart="temporary", type="supervisor")) == (
        Ignored()
    )
    assert [row.id for row in tree.which_children()] == ["choosy"]
    dynamic = yard.start_dynamic()
    assert dynamic.start_child(choosy) == Ignored()
    simple = yard.start(ChildSpec("s", f"{HERE}:Choosy", type="supervisor"), strategy="simple_one_for_one")
    assert simple.start_child(args) == Ignored()
    assert (counts(dynamic), counts(simple)) == ([0, 0, 0, 0], [1, 0, 0, 0])
    (yard.directory / "wanted").touch()
    assert isinstance(tree.restart_child("choosy"), Started)
    assert inits(yard) == 6


def test_init_that_fails_below_a_supervisor_is_a_start_that_failed(yard: Yard) -> None:
    with pytest.raises(StartError) as raised:
        yard.start(yard.spec("a"), odd(yard, "exit"), yard.spec("b"))
    assert raised.value.reason == {"shutdown": {"failed_to_start_child": ["odd", {"exit": 3}]}}
    assert nobody_runs(yard)
    tree = yard.start()
    with pytest.raises(StartError) as raised:
        tree.start_child(odd(yard, "object"))
    assert set(raised.value.reason) == {"bad_return"}
    assert tree.which_children() == []


def test_init_that_fails_at_restarts_counts_until_the_limit(yard: Yard) -> None:
    (yard.directory / "plan").touch()
    args = [str(yard.directory), "plan", "raise"]
    tree = yard.start(ChildSpec("c", f"{HERE}:Choosy", args=args, type="supervisor", name="picky"), max_restarts=3)
    (yard.directory / "plan").unlink()
    Supervisor.attach("picky", supervisor=yard.at).stop("failure")
    wait_gone(tree)
    assert inits(yard) == 1 + 3  # the fourth restart is the one that is not made


def test_init_that_ignores_at_a_restart_is_no_failure(yard: Yard) -> None:
    (yard.directory / "plan").touch()
    args = [str(yard.directory), "plan"]
    tree = yard.start(ChildSpec("c", f"{HERE}:Choosy", args=args, type="supervisor", name="choosy"))
    (yard.directory / "plan").unlink()
    Supervisor.attach("choosy", supervisor=yard.at).stop("failure")
    wait_until(lambda: tree.which_child("c").pid is None, CHILD_S)  # it ignores: no failure, and no retry
    assert inits(yard) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_supervisor_whose_init_hangs_can_be_ended(yard: Yard, how: str) -> None:
    """The one around it is blocked in that start (otp.md 5): it is killed, or its root is by the end of the daemon."""
    outer = yard.start(Supervisor.child_spec([], id="inner", name="inner", shutdown=0.3))
    inner = Supervisor.attach("inner", supervisor=yard.at)
    starting = Attempt(lambda: inner.start_child(odd(yard, "hang")))
    wait_until(lambda: inits(yard) == 1, CHILD_S)
    if how == "stop":
        outer.stop()
    else:
        outer.terminate_child("inner")
    error = starting.wait()
    assert isinstance(error, ProcessExited)
    assert error.reason == "killed"
    assert nobody_runs(yard)


@pytest.mark.slow
def test_calls_wait_for_init_and_are_answered_when_it_is_ended(yard: Yard) -> None:
    starting = Attempt(lambda: begin(yard, classes.Odd, str(yard.directory), "hang", name="odd", start_timeout=2))
    wait_until(lambda: inits(yard) == 1, CHILD_S)
    asking = Attempt(Supervisor.attach("odd", supervisor=yard.at).which_children)
    for attempt, kind in ((starting, StartError), (asking, ProcessExited)):
        error = attempt.wait()
        assert isinstance(error, kind)
        assert error.reason == "timeout"
    assert nobody_runs(yard)


@pytest.mark.slow
def test_calls_that_waited_for_init_are_answered_by_what_it_made(yard: Yard) -> None:
    go = yard.directory / "go"
    starting = Attempt(lambda: begin(yard, classes.Patient, str(yard.directory), name="patient"))
    wait_until(lambda: inits(yard) == 1, CHILD_S)
    handle = Supervisor.attach("patient", supervisor=yard.at)
    asking = [Attempt(handle.count_children) for _ in range(3)]
    assert all(one.is_alive() for one in asking)
    go.touch()
    assert starting.wait() is None
    assert [(one.wait(), one.answer) for one in asking] == [(None, ChildCounts(1, 1, 0, 1))] * 3
    assert handle.pid == starting.answer.pid  # type: ignore[attr-defined]  # it is a handle


@pytest.mark.slow
def test_the_end_of_the_daemon_ends_an_init_that_hangs(yard: Yard, tmp_path: Path) -> None:
    own = EmbeddedSupervisor()
    options: dict[str, Any] = {"supervisor": own, "start_timeout": "infinity"}
    starting = Attempt(lambda: classes.Odd.start_link(str(tmp_path), "hang", **options))
    wait_until(lambda: inits(yard) == 1, CHILD_S)
    own.stop()
    assert isinstance(starting.wait(), AthenaError)
    assert nobody_runs(yard)


LINKED = """
import sys
sys.path.insert(0, {root!r})
from tests.module_supervisors import Odd
print("begins", flush=True)
Odd.start_link({directory!r}, "hang", start_timeout="infinity", supervisor="daemon")
"""


@pytest.mark.slow
def test_the_end_of_a_linked_program_ends_an_init_that_hangs(
    daemon: Path, program: Callable[[str], Program], tmp_path: Path, yard: Yard
) -> None:
    client = program(LINKED.format(root=str(ROOT), directory=str(tmp_path)))
    client.line()
    wait_until(lambda: inits(yard) == 1, CHILD_S)
    client.kill()
    wait_until(lambda: nobody_runs(yard), CHILD_S)
    wait_until(lambda: list_trees(supervisor="daemon") == [], CHILD_S)


# --- programs that say when they are ready ----------------------------------------------------------------------------

NOTIFIER = """
import os, socket, sys, time
from pathlib import Path
flag, words = Path(sys.argv[1]), sys.argv[2]
while not flag.exists():
    time.sleep(0.005)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(words.encode(), "\\0" + os.environ["NOTIFY_SOCKET"].removeprefix("@"))
if len(sys.argv) == 3:
    time.sleep(1000)
"""


def runs(marker: str) -> bool:
    """Whether a process has this among its arguments."""
    return subprocess.run(["pgrep", "-f", marker], capture_output=True, check=False).returncode == 0


def notifier(yard: Yard, words: str = "READY=1", *more: str, **fields: Any) -> ChildSpec:
    """A program that notifies once there is a file."""
    argv = [sys.executable, "-c", NOTIFIER, str(yard.directory / "go"), words, *more]
    return ChildSpec("p", argv, **{"ready": "notify", "shutdown": 1, **fields})


def test_a_program_that_notifies_is_ready_when_it_has(yard: Yard) -> None:
    tree = yard.start()
    starting = Attempt(lambda: tree.start_child(notifier(yard, "STATUS=up\nREADY=1")))
    marker = str(yard.directory / "go")
    wait_until(lambda: runs(marker), CHILD_S)
    assert starting.is_alive()
    (yard.directory / "go").touch()
    assert starting.wait() is None
    assert isinstance(starting.answer, Started)
    assert tree.get_childspec("p")["ready"] == "notify"


@pytest.mark.slow
def test_a_program_that_never_notifies_has_not_started(yard: Yard) -> None:
    tree = yard.start()
    (yard.directory / "go").touch()
    with pytest.raises(StartError) as raised:
        tree.start_child(notifier(yard, "READY=0\nSTATUS=READY=1", start_timeout=0.5))
    assert raised.value.reason == "timeout"
    with pytest.raises(StartError) as raised:
        tree.start_child(ChildSpec("p", ["sh", "-c", "exit 3"], ready="notify"))
    assert raised.value.reason == {"exit": 3}
    assert tree.which_children() == []


def test_one_that_notifies_and_ends_has_started(yard: Yard) -> None:
    tree = yard.start()
    (yard.directory / "go").touch()
    assert isinstance(tree.start_child(notifier(yard, "READY=1", "once", restart="temporary")), Started)
    wait_until(lambda: counts(tree) == [0, 0, 0, 0], CHILD_S)


def test_a_notice_of_a_process_below_the_program_counts(yard: Yard) -> None:
    (yard.directory / "go").touch()
    inner = notifier(yard).start
    shell = ChildSpec("p", ["sh", "-c", '"$@"', "sh", *inner], ready="notify", shutdown=1)
    assert isinstance(yard.start().start_child(shell), Started)


@pytest.mark.skipif(not os.path.exists("/usr/bin/systemd-notify"), reason="systemd-notify is not installed")
def test_systemd_notify_works(yard: Yard) -> None:
    script = "systemd-notify --ready --status=fine; sleep 1000"
    assert isinstance(yard.start().start_child(ChildSpec("p", ["sh", "-c", script], ready="notify")), Started)


async def test_what_a_program_says_of_itself_is_kept() -> None:
    ready: list[bool] = []
    notices = NotifySocket("no-such-cookie", lambda: ready.append(True))
    notices.follow(os.getpid())
    address = "\0" + notices.address.removeprefix("@")
    reader, writer = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for notice in (b"STATUS=half", b"READY=1 ", b"\xff\n=\n", b"READY=1" + b"\n" * 5000):
                sender.sendto(notice, address)
            sender.connect(address)
            socket.send_fds(sender, [b"FDSTORE=1\nREADY=1\nSTATUS=full"], [writer])
        os.close(writer)
        await wait_until_async(lambda: notices.status == "full")
        assert ready == [True]
        assert os.read(reader, 1) == b""  # nobody holds the descriptor that came along
    finally:
        os.close(reader)
        notices.close()
        notices.close()


@pytest.mark.slow
def test_a_notice_of_a_stranger_does_not_count(yard: Yard) -> None:
    tree = yard.start()
    address = yard.directory / "address"
    script = f"echo $NOTIFY_SOCKET > {address}.part; mv {address}.part {address}; exec sleep 1000"
    spec = ChildSpec("p", ["sh", "-c", script], ready="notify", start_timeout=1)
    starting = Attempt(lambda: tree.start_child(spec))
    wait_until(address.exists, CHILD_S)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"READY=1", "\0" + address.read_text().strip().removeprefix("@"))
    error = starting.wait()
    assert isinstance(error, StartError)
    assert error.reason == "timeout"


def test_a_killed_start_of_one_that_has_not_notified(yard: Yard) -> None:
    inner = DynamicSupervisor.child_spec(id="inner", name="inner", shutdown="brutal_kill")
    outer = yard.start(inner)
    handle = DynamicSupervisor.attach("inner", supervisor=yard.at)
    starting = Attempt(lambda: handle.start_child(notifier(yard)))
    marker = str(yard.directory / "go")
    wait_until(lambda: runs(marker), CHILD_S)
    outer.terminate_child("inner")
    assert isinstance(starting.wait(), ProcessExited)
    assert not runs(marker)


@pytest.mark.parametrize("start", [classes.SERVE, {"session": {"spec": {}, "init": ""}}])
def test_only_programs_notify(yard: Yard, start: Any) -> None:
    dynamic = yard.start_dynamic()
    for ready in ("notify", "exec"):
        with pytest.raises(InvalidSpec, match="it is for programs") as raised:
            dynamic.start_child({"id": "a", "start": start, "ready": ready})
        assert raised.value.tag == "invalid_ready"
    with pytest.raises(InvalidSpec, match="sd_notify"):
        dynamic.start_child({"id": "a", "start": ["sleep", "9"], "ready": "soon"})
    with pytest.raises(InvalidSpec) as raised:
        yard.start().start_child({"id": "a", "start": start, "ready": "notify"})
    assert raised.value.tag == "invalid_ready"


# --- what the caller's own side checks --------------------------------------------------------------------------------

WRONG: list[tuple[Any, str]] = [
    ("atom", "invalid_child_spec"),
    ({"id": "a"}, "invalid_child_spec"),
    ({"start": classes.SERVE}, "invalid_child_spec"),
    ({"id": "a", "start": "nothing"}, "invalid_mfa"),
    ({"id": "a", "start": classes.SERVE, "args": "x"}, "invalid_mfa"),
    ({"id": "a", "start": classes.SERVE, "restart": "x"}, "invalid_restart_type"),
    ({"id": "a", "start": classes.SERVE, "shutdown": -1}, "invalid_shutdown"),
    ({"id": "a", "start": classes.SERVE, "type": "x"}, "invalid_child_type"),
    ({"id": "a", "start": classes.SERVE, "modules": "x"}, "invalid_modules"),
    ({"id": "a", "start": classes.SERVE, "significant": True}, "invalid_significant"),
    (ChildSpec("a", classes.SERVE, shutdown=True), "invalid_shutdown"),
    (ChildSpec("a", classes.SERVE, ready="notify"), "invalid_ready"),
]


def test_g04_a_dynamic_supervisor_need_not_exist_for_a_wrong_spec_to_be_named(yard: Yard) -> None:
    gone = yard.start_dynamic()
    gone.stop()
    twin = AsyncDynamicSupervisor(gone._target, gone)  # type: ignore[arg-type]  # it has what an identity has
    for spec, tag in WRONG:
        with pytest.raises(InvalidSpec) as raised:
            gone.start_child(spec)
        assert raised.value.tag == tag
        with pytest.raises(InvalidSpec) as raised:
            asyncio.run(twin.start_child(spec))
        assert raised.value.tag == tag
    with pytest.raises(NoProcess):
        gone.start_child(yard.spec("a"))


@pytest.mark.parametrize(
    ("fields", "tag"),
    [
        ({"start": "x"}, "invalid_mfa"),
        ({"restart": "x"}, "invalid_restart_type"),
        ({"shutdown": -10}, "invalid_shutdown"),
        ({"type": "x"}, "invalid_child_type"),
        ({"modules": "x"}, "invalid_modules"),
        ({"modules": [1]}, "invalid_module"),
        ({"significant": "x"}, "invalid_significant"),
        ({"significant": True}, "bad_combination"),
    ],
)
def test_a09_check_childspecs(fields: dict[str, Any], tag: str) -> None:
    good = {"id": "a", "start": classes.SERVE, "colour": "red"}
    with pytest.raises(InvalidSpec) as raised:
        check_childspecs([good, {**good, "id": "b", **fields}])
    assert raised.value.tag == tag
    check_childspecs([good, ChildSpec("b", ["sleep", "9"]), Supervisor.child_spec([])])


def test_a09_check_childspecs_of_what_is_no_list_and_with_auto_shutdown() -> None:
    significant = ChildSpec("a", classes.SERVE, restart="transient", significant=True)
    for wrong, tag in (
        (7, "badarg"),
        ([significant, significant], "duplicate_child_name"),
        ([{}], "missing_id"),
        ([{"id": 1}], "missing_start"),
    ):
        with pytest.raises(InvalidSpec) as raised:
            check_childspecs(wrong)
        assert raised.value.tag == tag
    check_childspecs([significant])
    check_childspecs([significant], "any_significant")
    with pytest.raises(InvalidSpec) as raised:
        check_childspecs([significant], "never")
    assert raised.value.tag == "bad_combination"
    with pytest.raises(InvalidSpec, match="auto_shutdown is one of"):
        check_childspecs([], "sometimes")


def test_both_clients_take_the_same() -> None:
    assert AsyncSupervisor.spec([], max_restarts=1) == Supervisor.spec([], max_restarts=1)
    assert AsyncDynamicSupervisor.child_spec(max_children=1) == DynamicSupervisor.child_spec(max_children=1)
    assert AsyncSupervisor.child_spec([], id="x", restart="transient")["restart"] == "transient"
