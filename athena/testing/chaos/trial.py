"""One trial: a conversation, the deaths that its plan wants, and what is left of it all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from athena import failpoints, proctree
from athena.config import default_paths, default_socket
from athena.environment import ROOT, scrubbed_environment
from athena.errors import AthenaError
from athena.failpoints import CHILD_VARIABLE, SUPERVISOR_VARIABLE, Fired
from athena.stores.jsonl import JsonlStore
from athena.supervisors import DaemonTarget, EmbeddedSupervisor, Target, stop_supervisor
from athena.testing.chaos import processes
from athena.testing.chaos.client import Client, Spoken, read_stream, write_order
from athena.testing.chaos.evidence import Evidence
from athena.testing.chaos.plans import Plan, Victim
from athena.testing.chaos.scenario import TOOLS
from athena.testing.chaos.tools import WORLD_VARIABLE
from athena.testing.chaos.world import MODEL_PREFIX, read_account

EVENTS = 36
"""In the log of an undisturbed conversation: a random moment is somewhere between the first and the last but one."""

EVENT_S = 0.003
"""About how long one takes."""

CLIENT_PROGRAM = "import sys; from athena.testing.chaos.client import main; main(sys.argv[1])"

MANAGER_S = 0.05

SETTLE_S = 30.0
STOP_S = 20.0
ORPHAN_S = 8.0
"""How long what belongs to a session may take to be gone after it was stopped."""


class Trial:
    """Carries one plan out. ``shared`` is a supervisor for those trials that leave theirs alone."""

    def __init__(
        self,
        plan: Plan,
        trial: str,
        directory: Path,
        world: tuple[str, dict[str, str]],
        shared: EmbeddedSupervisor | None,
    ) -> None:
        self.plan = plan
        self.evidence = Evidence(trial)
        self._directory = directory
        self._socket, self._addresses = world
        self._log = str(directory / "fired")
        self._shared = shared
        self._is_over = threading.Event()
        self._program: subprocess.Popen[str] | None = None
        self._supervisor: int | None = None
        self._zygote: int | None = None

    def run(self) -> Evidence:
        """The whole of it. Nothing of it runs any more then."""
        began = time.monotonic()
        self._directory.mkdir(parents=True)
        environment = dict(os.environ)
        try:
            if self._shared is None:
                os.environ["ATHENA_HOME"] = str(self._directory / "home")
                os.environ[SUPERVISOR_VARIABLE] = self._clauses("supervisor")
            target = self._shared or self._own()
            try:
                self._carry_out(target)
            finally:
                if self._shared is None:
                    target.pool.close()
                    stop_supervisor(target.path, STOP_S)
            self.evidence.orphans = processes.wait_unmarked([self._directory], ORPHAN_S)
            self._gather()
        finally:
            os.environ.clear()
            os.environ.update(environment)
        self.evidence.seconds = time.monotonic() - began
        return self.evidence

    def _own(self) -> Target:
        return (
            DaemonTarget(default_socket(), autostart=True) if self.plan.supervisor == "daemon" else EmbeddedSupervisor()
        )

    # --- the conversation

    def _carry_out(self, target: Target) -> None:
        target.ensure()
        self._supervisor = processes.supervisor_of(target)
        self._zygote = None if self._supervisor is None else processes.zygote_of(self._supervisor)
        killer = threading.Thread(target=self._kill, args=[target], daemon=True)
        if self.plan.supervisor == "daemon":
            threading.Thread(target=self._manage, args=[target], daemon=True).start()
        spoken = self._spoken()
        if "client" in self.plan.victims:
            spoken.linked = self.plan.supervisor != "harness"
            spoken.supervisor = "embedded" if self.plan.supervisor == "client" else str(target.path)
            self._start_program(spoken)
            killer.start()
            self._await_program()
            self._talk(Client(spoken, target, again=True))
        else:
            killer.start()
            self._talk(Client(spoken, target))
        self._is_over.set()
        killer.join()

    def _spoken(self) -> Spoken:
        environment = scrubbed_environment(os.environ)
        environment.pop(SUPERVISOR_VARIABLE, None)
        environment |= {WORLD_VARIABLE: self._socket, CHILD_VARIABLE: self._clauses("child")}
        options = {
            "provider": "openai_compatible" if self.plan.provider == "openai" else "ollama",
            "base_url": self._addresses[self.plan.provider],
            "model": MODEL_PREFIX + self.evidence.trial,
            "tools": TOOLS,
            "phase": "trusted",
            "cwd": str(self._directory),
            "env": environment,
            "python_path": [str(ROOT)],
            "durability": self.plan.durability,
            "max_restarts": 5,
            "shutdown": 2.0,
        }
        return Spoken(self.evidence.trial, options, str(self._directory))

    def _clauses(self, at: str) -> str:
        plan, clauses = self.plan, []
        if plan.point is not None and plan.at == at:
            clauses.append(f"{plan.point}={'kill' if plan.kills_itself else 'freeze'}")
        if plan.second is not None and at == "child" and plan.second != plan.point:
            clauses.append(f"{plan.second}=kill")
        return "; ".join([*clauses, f"log={self._log}"])

    def _talk(self, client: Client) -> None:
        def converse() -> None:
            try:
                self.evidence.answers = client.converse()
            except AthenaError as error:
                self.evidence.errors.append(f"{type(error).__name__}: {error}")
            try:
                client.stop()
            except AthenaError as error:
                self.evidence.errors.append(f"stop: {type(error).__name__}: {error}")
            self.evidence.stream_end = client.stream_end

        thread = threading.Thread(target=converse, daemon=True)
        thread.start()
        thread.join(SETTLE_S)
        if thread.is_alive():
            self.evidence.errors.append(f"the client was not answered within {SETTLE_S} s")

    def _start_program(self, spoken: Spoken) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-P", "-c", CLIENT_PROGRAM, str(write_order(spoken))],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=self._directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def _await_program(self) -> None:
        """Its end: it was killed, or, if the point was never passed, it has had its answers."""
        assert self._program is not None
        try:
            self._program.communicate(timeout=SETTLE_S)
        except subprocess.TimeoutExpired:
            self.evidence.errors.append(f"the client's program was neither killed nor answered within {SETTLE_S} s")
            self._program.kill()
            self._program.communicate()

    # --- the deaths

    def _manage(self, target: Target) -> None:
        """Start the daemon again when it has ended, as a service manager does."""
        pid = self._supervisor
        while not self._is_over.wait(MANAGER_S):
            if pid is None or not os.path.exists(f"/proc/{pid}"):
                try:
                    target.ensure()
                    pid = processes.supervisor_of(target)
                except AthenaError:
                    pass  # the next try may well work

    def _kill(self, target: Target) -> None:
        plan = self.plan
        if plan.kills_itself:
            return
        frozen = None if plan.point is None else self._await_frozen()
        is_there = self._await_events(1) if plan.point is None else frozen is not None
        if not is_there:
            return
        pids: dict[Victim, int | None] = {victim: self._pid(victim, target) for victim in plan.victims}
        if frozen is not None and plan.at in pids:
            pids[plan.at] = frozen.pid
        if frozen is None and not self._await_moment():
            return
        self.evidence.killed = [victim for victim, pid in pids.items() if pid is not None and processes.kill(pid)]
        if frozen is not None and plan.at not in plan.victims:
            processes.kill(frozen.pid, signal.SIGCONT)

    def _await_moment(self) -> bool:
        """Wait for the plan's: so many events, and a part of what one takes. Time alone would often come too late."""
        events, part = divmod(1 + self.plan.moment * (EVENTS - 2), 1)
        return self._await_events(int(events)) and not self._is_over.wait(part * EVENT_S)

    def _await_events(self, count: int) -> bool:
        """Wait until the log has so many. ``False`` if the conversation is over first."""
        path = default_paths().sessions / f"{self.evidence.trial}.jsonl"
        while not self._is_over.is_set():
            if path.exists() and path.read_bytes().count(b"\n") >= count:
                return True
            time.sleep(processes.POLL_S / 2)
        return False

    def _await_frozen(self) -> Fired | None:
        while not self._is_over.is_set():
            for fired in failpoints.read_log(self._log):
                if fired.clause.endswith("=freeze") and _is_stopped(fired.pid):
                    return fired
            time.sleep(processes.POLL_S)
        return None

    def _pid(self, victim: Victim, target: Target) -> int | None:
        match victim:
            case "client":
                return None if self._program is None else self._program.pid
            case "supervisor":
                return self._supervisor
            case "guard":
                return None if self._supervisor is None else processes.guard_of(self._supervisor)
            case "zygote":
                return self._zygote
            case "child":
                return self._child()

    def _child(self) -> int | None:
        """The session's process: a fork of the zygote that has gone to the trial's directory."""
        for one in processes.marked([self._directory]):
            if processes.is_fork(one.pid) and processes.directory_of(one.pid) == str(self._directory):
                return one.pid
        return None

    # --- what is left

    def _gather(self) -> None:
        evidence, trial = self.evidence, self.evidence.trial
        store = JsonlStore(default_paths().sessions, allow_network=True)
        try:
            evidence.log = list(store.read(trial))
            damage = store.inspect(trial).damage
            evidence.damage = json.dumps(asdict(damage)) if damage else ""
        except AthenaError as error:
            evidence.errors.append(f"the log cannot be read: {error}")
        account = read_account(self._socket, trial)
        evidence.requests, evidence.refused, evidence.asked = account.requests, account.refused, account.asked
        evidence.stream = read_stream(self._directory / "stream")
        accepted = self._directory / "accepted"
        evidence.acknowledged = accepted.read_text(encoding="utf-8").split() if accepted.exists() else []
        evidence.fired = failpoints.read_log(self._log)
        if default_paths().sessions.is_relative_to(self._directory):
            return
        for path in store.path(trial).parent.glob(f"{trial}*"):
            shutil.copy(path, self._directory)
            path.unlink()


def _is_stopped(pid: int) -> bool:
    row = proctree.stat(pid)
    return row is not None and row.state == "T"
