"""What a supervisor finds of dead ones at its start: it ends what is left of them, and sends nobody else a signal."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from athena import Session, proctree
from athena.config import default_paths
from athena.environment import COOKIE_VARIABLE
from athena.supervisors import EmbeddedSupervisor, resolve, start_daemon, stop_supervisor
from athena.trees import Supervisor
from supervisor import left_behind, process_roster
from supervisor.process_roster import SHARED_COOKIE, ProcessRoster, boot_id, dumps, parse
from tests.helpers import TIME_UNIT, wait_until
from tests.roster_parts import COOKIE, GARBAGE, Noted, directory, only_file
from tests.session_fixtures import (
    Files,
    Program,
    Sessions,
    background,
    files,
    freeze,
    guard_pid,
    is_gone,
    is_stopped,
    own_sessions,
    own_supervisor,
    program,
    stubborn,
    supervisor_pid,
    unix_sockets,
    wait_nothing_below,
    zygote_pid,
)

__all__ = ["background", "directory", "files", "own_sessions", "own_supervisor", "program"]

StartProgram = Callable[[str], Program]

NOBODY = 65534
NOBODYS = (2**22 - 1, 7)
"""A process that is not there."""


# --- forged files -----------------------------------------------------------------------------------------------------


@dataclass
class Forge:
    """Files as a dead supervisor would have left them, and processes that they name."""

    directory: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def process(self, cookie: str = COOKIE, argv: tuple[str, ...] = ("sleep", "1000"), **more: Any) -> tuple[int, int]:
        """A live process with this cookie; number and start time."""
        env = {**os.environ, COOKIE_VARIABLE: cookie}
        one = subprocess.Popen(argv, env=env, start_new_session=True, **more)
        self.started.append(one)
        wait_until(lambda: proctree.read_environ(one.pid).get(COOKIE_VARIABLE) == cookie)
        known = proctree.identity(one.pid)
        assert known is not None
        return known

    def header(self, boot: str | None = None, supervisor: tuple[int, int] | None = None) -> bytes:
        """The first line; by default of a supervisor that is dead, of this boot."""
        pid, start = supervisor or (os.getpid(), 0)
        return dumps({"boot": boot_id() if boot is None else boot, "supervisor": pid, "start": start})

    def entry(self, identity: tuple[int, int], cookie: str = COOKIE) -> bytes:
        """The line of a launch."""
        return dumps({"pid": identity[0], "start": identity[1], "cookie": cookie})

    def write(self, name: str, *lines: bytes) -> Path:
        """A file."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / f"{name}.jsonl"
        path.write_bytes(b"".join(lines))
        return path

    def lives(self, identity: tuple[int, int]) -> bool:
        """Whether a process that was started here still runs."""
        row = proctree.stat(identity[0])
        return row is not None and row.starttime == identity[1] and row.state not in "ZX"


@pytest.fixture
def forge(home: Path) -> Iterator[Forge]:
    made = Forge(home / process_roster.DIRECTORY)
    yield made
    for one in made.started:
        one.kill()
        one.wait()


@pytest.fixture
def starts_daemon() -> Iterator[Callable[[], str]]:
    """Starts the daemon; what it has logged so far. It is stopped at the end of the test."""

    def start() -> str:
        start_daemon()
        return (default_paths().logs / "supervisor.log").read_text()

    yield start
    stop_supervisor(default_paths().socket, 20 * TIME_UNIT)


@pytest.mark.slow
def test_a_forged_roster_sends_no_signal_to_a_live_stranger(forge: Forge, starts_daemon: Callable[[], str]) -> None:
    other_cookie, other_start, other_boot, copied, no_header, shared = (forge.process() for _ in range(6))
    left, zygote = forge.process("cookie-of-what-is-left"), forge.process(SHARED_COOKIE)
    forge.write("a", forge.header(), forge.entry(other_cookie, "another-cookie-than-its"))
    forge.write("b", forge.header(), forge.entry((other_start[0], other_start[1] + 1)))
    forge.write("c", forge.header("another-boot"), forge.entry(other_boot))
    forge.write("d", forge.header(supervisor=copied), forge.entry(copied))
    forge.write("e", forge.entry(no_header))
    forge.write("f", forge.header(), forge.entry(shared, SHARED_COOKIE), forge.entry(NOBODYS, SHARED_COOKIE))
    forge.write("g", *[text.encode("latin-1") + b"\n" for text in GARBAGE], forge.header(), *[
        text.encode("latin-1") + b"\n" for text in GARBAGE
    ], forge.entry(left, "cookie-of-what-is-left"))  # fmt: skip
    said = starts_daemon()
    assert not forge.lives(left), "the honest entry shows that the files were read"
    for stranger in (other_cookie, other_start, other_boot, copied, no_header, shared, zygote):
        assert forge.lives(stranger)
    for stranger in (other_cookie, other_start, shared):
        assert said.count(f"names pid {stranger[0]}, which is another process now") == 1
    assert "roster d.jsonl is a copy" in said
    assert "is no record" in said
    mine = [path.name for path in forge.directory.iterdir() if not path.name.startswith(f"{daemon_pid()}-")]
    assert mine == ["d.jsonl"]


def daemon_pid() -> int:
    return supervisor_pid(resolve(default_paths().socket))


BUSY = """
for n in 1 2 3 4 5 6 7 8; do
    env -i setsid sh -c 'while :; do sleep 1000; done' &
    env -i setsid sh -c 'while :; do sleep 0.001; done' &
done
echo up
wait
"""


def those_in(directory: Path) -> list[int]:
    """Processes whose directory this is."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{name}/cwd") == str(directory):
                found.append(int(name))
    return found


@pytest.mark.slow
def test_what_starts_others_all_the_time_cannot_get_away_even_without_a_mark(
    forge: Forge, starts_daemon: Callable[[], str], tmp_path: Path
) -> None:
    busy = forge.process(argv=("sh", "-c", BUSY), cwd=tmp_path, stdout=subprocess.PIPE)
    up = forge.started[-1].stdout
    assert up is not None
    assert up.readline() == b"up\n"
    up.close()
    wait_until(lambda: len(those_in(tmp_path)) >= 25)
    forge.write("a", forge.header(), forge.entry(busy))
    starts_daemon()
    assert those_in(tmp_path) == []


@pytest.mark.slow
def test_what_is_no_roster_is_left_alone_and_said(forge: Forge, starts_daemon: Callable[[], str]) -> None:
    stranger = forge.process()
    aim = forge.directory.parent / "aim"
    forge.directory.mkdir(parents=True, mode=0o700)
    aim.write_bytes(forge.header() + forge.entry(stranger))
    (forge.directory / "link.jsonl").symlink_to(aim)
    (forge.directory / "directory.jsonl").mkdir()
    os.mkfifo(forge.directory / "fifo.jsonl")
    said = starts_daemon()
    assert forge.lives(stranger)
    for name in ("link", "directory", "fifo"):
        assert said.count(f"{name}.jsonl is no roster of ours") == 1
        assert os.path.lexists(forge.directory / f"{name}.jsonl")
    assert aim.exists()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user, too")
def test_another_users_process_and_another_users_file_are_left_alone(
    forge: Forge, starts_daemon: Callable[[], str]
) -> None:
    theirs, mine = forge.process(user=NOBODY), forge.process()
    forge.write("a", forge.header(), forge.entry(theirs))
    os.chown(forge.write("b", forge.header(), forge.entry(mine)), NOBODY, NOBODY)
    said = starts_daemon()
    assert forge.lives(theirs)
    assert forge.lives(mine)
    assert said.count("b.jsonl is no roster of ours") == 1


SWEEP_ITS_OWN = """
import os, subprocess, sys
from pathlib import Path
from athena import proctree
from supervisor.left_behind import sweep
from supervisor.process_roster import boot_id, dumps
child = subprocess.Popen(["sleep", "1000"])
me, parent = os.getpid(), os.getppid()
lines = [dumps({"boot": boot_id(), "supervisor": me, "start": 0})]
for pid in (me, parent, child.pid):
    known = proctree.identity(pid)
    lines.append(dumps({"pid": pid, "start": known.starttime, "cookie": os.environ["ATHENA_COOKIE"]}))
(Path(sys.argv[1]) / "forged.jsonl").write_bytes(b"".join(lines))
sweep(Path(sys.argv[1]))
print(child.poll() is None and not list(Path(sys.argv[1]).iterdir()), flush=True)
child.kill()
child.wait()
"""


@pytest.mark.slow
def test_a_forged_roster_sends_no_signal_to_the_reader_its_parent_or_its_child(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    run = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {SWEEP_ITS_OWN!r}, *sys.argv[1:]]))"
    done = subprocess.run(
        [sys.executable, "-c", run, str(directory)],
        env={**os.environ, COOKIE_VARIABLE: COOKIE, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60 * TIME_UNIT,
        check=True,
    )
    assert done.stdout == "True\n"
    assert done.stderr.count("which is this process or of its family") == 3


def test_a_forged_roster_makes_nobody_even_try_a_signal(
    forge: Forge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[int] = []
    ask = signal.pidfd_send_signal

    def note(process: int, number: int) -> None:
        if number:
            tried.append(number)
        else:  # a question
            ask(process, number)

    stranger = forge.process()
    one, me, parent = (proctree.identity(pid) for pid in (1, os.getpid(), os.getppid()))
    assert one
    assert me
    assert parent
    names = [one, me, parent, stranger, (-1, 7), (0, 7), (-stranger[0], stranger[1]), (2**40, 7), NOBODYS]
    lines = [forge.entry(name, cookie) for name in names for cookie in ("another-cookie", SHARED_COOKIE)]
    lines += [forge.entry((name[0], name[1] + 1)) for name in (one, me, parent, stranger)]
    forge.write("forged", forge.header(), *lines)
    with monkeypatch.context() as patched:
        for module, name in ((signal, "pidfd_send_signal"), (os, "kill"), (os, "killpg")):
            patched.setattr(module, name, note)
        left_behind.sweep(forge.directory)
    assert tried == []
    assert forge.lives(stranger)
    assert "is no record" in caplog.text


def test_the_file_of_a_living_supervisor_is_not_touched(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    roster = ProcessRoster(directory)
    roster.add(Noted(os.getpid()))
    caplog.set_level(logging.INFO)
    left_behind.sweep(directory)
    assert parse(only_file(directory).read_bytes()).entries
    assert caplog.text == ""
    roster.end(Noted(os.getpid()))
    roster.close()


# --- what is really left ----------------------------------------------------------------------------------------------


def bash(command: str) -> dict[str, Any]:
    return {"tool_calls": [{"name": "bash", "arguments": {"command": command}}]}


def kill_together(*pids: int) -> None:
    """SIGKILL all before any can act: stopped first, so that a guard does not see its supervisor's end."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    for pid in pids:
        wait_until(partial(is_gone, pid))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["nobody else", "the child"])
def test_the_next_daemon_ends_what_outlived_guard_and_supervisor(
    victim: str, files: Files, starts_daemon: Callable[[], str]
) -> None:
    starts_daemon()
    target = resolve(default_paths().socket)
    unmarked = f"env -i setsid sh -c 'echo $$ >> {files.path('pids')}; while :; do sleep 1000; done' &\n"
    options: dict[str, Any] = {"provider": "mock", "cwd": str(files.root), "phase": "trusted"}
    session = Session.start(supervisor=target, mock=[bash(unmarked + stubborn(files)), "done"], **options)
    session.submit("go")
    tools = [int(pid) for pid in files.wait_lines("pids", 4)]
    child, zygote = freeze(session), zygote_pid(target)
    os.kill(zygote, signal.SIGSTOP)
    wait_until(lambda: is_stopped(zygote))
    dead = [guard_pid(target), supervisor_pid(target), *([child] if victim == "the child" else [])]
    kill_together(*dead)
    left = [pid for pid in (child, zygote, *tools) if pid not in dead]
    assert not any(is_gone(pid) for pid in left)
    said = starts_daemon()
    assert all(is_gone(pid) for pid in left)
    assert "killed what a dead supervisor left behind" in said
    again = Session.start(supervisor=target, session_id=session.session_id, mock=[{}, "found out"])
    wait_until(lambda: again.status()["turn"] is None)
    assert [r.content for m in again.messages() for r in m.tool_results]
    again.stop()


@pytest.mark.slow
def test_a_program_of_a_tree_which_knows_nothing_of_supervisors_is_ended_too(
    files: Files, starts_daemon: Callable[[], str]
) -> None:
    starts_daemon()
    target = resolve(default_paths().socket)
    script = f"echo $$ >> {files.path('pids')}; setsid sh -c 'echo $$ >> {files.path('pids')}; sleep 1000' & sleep 1000"
    Supervisor.start([{"id": "p", "start": ["sh", "-c", script]}], supervisor=target)
    left = [int(pid) for pid in files.wait_lines("pids", 2)]
    kill_together(guard_pid(target), supervisor_pid(target))
    assert not any(is_gone(pid) for pid in left)
    starts_daemon()
    assert all(is_gone(pid) for pid in left)


@pytest.mark.slow
def test_the_next_embedded_supervisor_of_the_same_program_does_it_too(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files
) -> None:
    session = own_sessions.start([bash(stubborn(files)), "done"], phase="trusted")
    turn = session.submit("go")
    tools = [int(pid) for pid in files.wait_lines("pids", 3)]
    child = freeze(session)
    kill_together(guard_pid(own_supervisor), supervisor_pid(own_supervisor))
    assert turn.result(20 * TIME_UNIT).text == "done"
    assert all(is_gone(pid) for pid in (child, *tools))


START_ONE = """
import os, time
from athena import Session
from tests.session_fixtures import guard_pid, supervisor_pid
session = Session.start_link(supervisor="embedded", provider="mock", mock=["x"], cwd={cwd!r})
target = session._target
print(os.getpid(), guard_pid(target), supervisor_pid(target), int(session.pid), flush=True)
time.sleep(1000)
"""


@pytest.mark.slow
def test_what_is_left_of_an_embedded_supervisor_and_its_program_goes_with_the_next_supervisor(
    files: Files, program: StartProgram, starts_daemon: Callable[[], str]
) -> None:
    running = program(START_ONE.format(cwd=str(files.root)))
    owner, guard, supervisor, child = map(int, running.line().split())
    os.kill(child, signal.SIGSTOP)
    wait_until(lambda: is_stopped(child))
    kill_together(guard, supervisor, owner)
    running.process.wait()
    (runtime,) = default_paths().runtime.glob("embedded-*")
    (default_paths().runtime / f"embedded-{os.getpid()}-12345678").mkdir()
    starts_daemon()
    assert is_gone(child)
    assert not runtime.exists()
    assert [path.name for path in default_paths().runtime.glob("embedded-*")] == [f"embedded-{os.getpid()}-12345678"]
    assert unix_sockets(str(runtime)) == []


@pytest.mark.slow
def test_nothing_is_noted_any_more_after_an_ordered_stop(files: Files, starts_daemon: Callable[[], str]) -> None:
    starts_daemon()
    target = resolve(default_paths().socket)
    Session.start(supervisor=target, provider="mock", mock=["x"], cwd=str(files.root))
    path = only_file(default_paths().state / process_roster.DIRECTORY)
    assert len(parse(path.read_bytes()).entries) == 2, "the zygote and the session"
    assert json.loads(path.read_bytes().splitlines()[0])["supervisor"] == supervisor_pid(target)
    stop_supervisor(target.path, 20 * TIME_UNIT)
    wait_nothing_below(default_paths().state)
    assert list((default_paths().state / process_roster.DIRECTORY).iterdir()) == []
