"""One session under supervision: its child's pipe, the calls that wait for it, its subscribers and its monitors.

For an in_memory log it also holds the recorded lines. How a process is started, ended and restarted is
:class:`supervisor.leaf.Leaf`'s.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from athena import events, failpoints, proctree
from athena.channel import Channel, open_pipes
from athena.errors import AthenaError, Reason, SessionStopped
from athena.proctree import send_signal
from athena.wire import MAX_ANSWER_BYTES, Frame, Header, dumps
from supervisor import vocabulary as words
from supervisor.approvers import Approvers
from supervisor.calls import Calls, reply_error
from supervisor.grants import Grants
from supervisor.hub import Topic
from supervisor.launcher import Launcher, LaunchRequest
from supervisor.leaf import Leaf
from supervisor.limits import LimitName, Limits, is_own_doing
from supervisor.logfile import LogFile, Mark
from supervisor.past import Past
from supervisor.process import ExitStatus, OsProcess
from supervisor.processes import Processes
from supervisor.registries import Registries
from supervisor.registry import Registry
from supervisor.restart import bounded, is_clean
from supervisor.sampling import Sample
from supervisor.session_errors import failed_error, start_error
from supervisor.session_request import SessionRequest
from supervisor.vocabulary import State
from supervisor.without_child import ANSWERED_FROM_LOG, SILENT_S, WithoutChild

logger = logging.getLogger(__name__)

INTERRUPT_S = 2.0
"""How long a child has to end an interrupted turn before it is killed (design 4)."""

DRAIN_S = 1.0
"""How long a dead child's pipe is read for its last words."""


class Supervision(Protocol):
    """What a keeper needs of the supervisor around it."""

    launcher: Launcher
    registry: Registry
    logs: Path
    supervisor_id: str
    processes: Processes
    registries: Registries
    limits: Limits
    socket: Path

    @property
    def sessions(self) -> Path: ...

    def next_serial(self) -> int: ...

    def new_cookie(self) -> str: ...

    def service(self, keeper: Keeper, frame: Frame) -> None: ...

    def entered(self, keeper: Keeper, state: State) -> None: ...

    def removed(self, keeper: Keeper) -> None: ...


@dataclass(slots=True)
class Facts:
    """What the child said of itself last, from frame headers alone."""

    turn: str | None = None
    turn_since: float = 0.0
    """Monotonic time at which it was first heard of."""
    queue: int = 0
    asks: Sequence[dict[str, Any]] = ()
    """The permission requests that are open."""
    damage: dict[str, Any] | None = None
    degraded: str | None = None
    heard_at: float = 0.0
    """Monotonic time of its last frame."""


class Keeper(Leaf):
    """One session under supervision."""

    def __init__(self, request: SessionRequest, supervision: Supervision) -> None:
        super().__init__(request.spec, f"session {request.name or request.session_id!r}")
        self.session_id = request.session_id
        self.name = request.name
        self.request = request
        self.facts = Facts()
        self.sample: Sample | None = None
        """What its process tree used when it was last looked at."""
        self.calls = Calls()
        self.past = Past(request)
        self.grants = Grants(self)
        self._without = WithoutChild(self.label, self.calls, self.past, self._spawn_task)
        self.topic = Topic(self.session_id, self.past.read)
        self.approvers = Approvers(self.topic, self.tell)
        self.serial = 0
        self.started_at = events.now()
        self._sup = supervision
        self._channel: Channel | None = None
        self._interrupting: str | None = None
        self._told: set[object] = set()
        self._log = LogFile(self.log_file)
        self._mark = Mark()
        self.last_output: str | None = None
        """The end of what the last life wrote, if it ended abnormally."""

    # --- what it is now

    @property
    def os_pid(self) -> int | None:
        """The OS pid of the live child."""
        return self.core.pid

    @property
    def process(self) -> OsProcess | None:
        return self._process

    @property
    def state(self) -> str:
        return self.core.state.value

    def pid_value(self) -> dict[str, Any] | None:
        """A pid as it travels: number, serial, supervisor. One that sleeps has no number."""
        pid = self.os_pid
        if pid is None and self._sup.processes.get(self.serial) is not self:
            return None
        return {"pid": pid, "serial": self.serial, "supervisor": self._sup.supervisor_id}

    @property
    def is_busy(self) -> bool:
        """Whether its child owes somebody an answer or a turn."""
        return self.core.state is State.RUNNING and (self.facts.turn is not None or bool(self.calls.pending))

    @property
    def may_hibernate(self) -> bool:
        """Whether it may go without a process."""
        return self.request.spec.hibernate_after != "infinity"

    @property
    def idle_s(self) -> float:
        """Seconds for which its child has had nothing to do; 0.0 if it has."""
        facts, calls = self.facts, self.calls
        if self.core.state is not State.RUNNING or facts.turn is not None or facts.queue or facts.degraded:
            return 0.0
        if calls.pending or calls.sends:
            return 0.0
        return time.monotonic() - facts.heard_at

    def status(self) -> dict[str, Any]:
        """Everything known without asking the child."""
        return {
            "session_id": self.session_id,
            "name": self.name,
            "state": self._shown_state,
            "pid": self.pid_value(),
            "incarnation": self.core.incarnation,
            "restarts_in_window": self.core.restarts_in_window(time.monotonic()),
            "last_reason": self.core.last_reason,
            "last_output": self.last_output,
            "turn": self.facts.turn,
            "queue": self.facts.queue,
            "permission_requests": self.facts.asks,
            "damage": self.facts.damage,
            "events": self.topic.last_seq,
            "subscribers": len(self.topic.subscriptions),
            "store": self.request.store,
            "started_at": self.started_at,
            "log_file": str(self.log_file),
            "limits": self._sup.limits.rows(self),
        }

    @property
    def _shown_state(self) -> str:
        if self.core.state is State.FAILED and isinstance(self.core.reason, dict) and "boot" in self.core.reason:
            return "failed(boot)"
        if self.grants.are_awaited and self.state == "running":
            return "needs_grants"
        return f"degraded({self.facts.degraded})" if self.facts.degraded and self.state == "running" else self.state

    @property
    def log_file(self) -> Path:
        """Where the child's standard output and error go."""
        return self._sup.logs / f"{self.session_id}.log"

    # --- what others ask

    def relay(self, channel: Channel, frame: Frame, client: int) -> None:
        """Hand a request of the process ``client`` to the child, now or when there is one."""
        if self.core.state is State.FAILED:
            reply_error(channel, frame.header.get("id"), self._call_error("failed", self.core.reason))
            return
        if self.core.state in _ASLEEP and not self.calls.pending and self._without.answer_asleep(channel, frame):
            return
        extra: dict[str, object] = {}
        if frame.header.get("op") == "interrupt" and self.facts.turn is not None:
            extra["turn"] = self._interrupting = self.facts.turn
            self._after(INTERRUPT_S, "interrupt", self._insist_on_interrupt, self.facts.turn)
        if frame.header.get("op") == "answer":
            extra["client"] = client
        request_id = self.calls.add(channel, frame, **extra)
        self._sup.limits.watch(self)
        if frame.header.get("op") in ("interrupt", "cancel") and not extra:
            self._after(INTERRUPT_S, request_id, self._without.give_up, request_id)
        if self._is_ready():
            pending = self.calls.pending[request_id]
            self._send(pending.header, pending.body)
        else:
            self.feed(words.WakeRequested())
        if frame.header.get("op") in ANSWERED_FROM_LOG and (self.past.is_readable or self._is_ready()):
            self._after(SILENT_S, request_id, self._without.answer_from_log, request_id)

    def hibernate(self) -> bool:
        """End the idle child; the next call that needs one wakes the session. ``False`` if it may not end, because a
        program that one of its tools has started still runs below it."""
        if self._process is None or any(map(_runs, proctree.descendants(self._process.pid))):
            return False
        self.feed(words.HibernateRequested(self.core.incarnation))
        return True

    def end_for(self, reason: Reason) -> None:
        """An exit signal has reached it."""
        self.kill(reason)

    def inform(self, message: dict[str, Any]) -> bool:
        """What the code in a session is told, it reads over a connection of its own."""
        return False

    def exceeded(self, limit: LimitName) -> None:
        """Its tree went beyond a limit: this life of it ends, and with it a turn that has had its time."""
        if limit == "turn_time":
            self._interrupting, self.facts.turn_since = self.facts.turn, time.monotonic()
        self.kill({"limit": limit})

    async def restart(self) -> None:
        """Start it again after it has failed, as it was; returns when it is ready. Raises as a start."""
        waiter = self._started.add()
        self.feed(words.RestartRequested())
        await waiter

    def probe(self, request_id: int) -> None:
        """Ask the child for a sign of life: any frame is one."""
        self._send({"kind": "call", "op": "ping", "id": -request_id}, b"")

    def tell(self, message: Any) -> None:
        """Tell the child; nothing if there is none."""
        self._send({"kind": "cast"}, dumps(message))

    def dump_stacks(self) -> None:
        """Have the child write where its threads are into its log file."""
        if self._process is not None and not self._process.is_over:
            send_signal(self._process.pidfd, signal.SIGUSR1)

    # --- what the leaf tells

    def _on_state(self, state: State, reason: Reason) -> None:
        self.topic.publish_state({"kind": "state", "session": self.session_id, "state": state.value, "reason": reason})
        self._sup.entered(self, state)
        if state is State.RUNNING:
            self._watch_idleness()
        elif state is State.HIBERNATED:
            self._fell_asleep()
        elif state is State.STARTING:
            self._sup.registry.awake.add(self)

    def _watch_idleness(self) -> None:
        """Hibernate when it has been idle for so long; else look again when it can be, at the earliest."""
        limit = self.request.spec.hibernate_after
        if isinstance(limit, str) or self.core.state is not State.RUNNING:
            return
        idle_s = self.idle_s
        if idle_s < limit:
            self._after(limit - idle_s, "idle", self._watch_idleness)
        elif not self.hibernate():
            self._after(limit, "idle", self._watch_idleness)

    def _fell_asleep(self) -> None:
        self._cancel("idle")
        self._process = self.sample = None
        self._told = set()
        self._sup.processes.runs_as(self.serial, None)
        self._sup.registry.awake.discard(self)
        self._log.discard_if_empty()
        if self.facts.turn is not None or self.facts.queue:  # its last words were of work to do
            asyncio.get_running_loop().call_soon(self.feed, words.WakeRequested())

    def _on_died(self, reason: Reason) -> None:
        if failpoints.hit is not None:
            failpoints.hit("keeper:died")
        self.last_output = None if is_clean(reason) else self._log.last_output(self._mark)
        self._sup.processes.exited(self.serial, reason)
        self.grants.died(self._start_error(reason))

    def _on_calls_failed(self, kind: words.CallError, reason: Reason) -> None:
        self.calls.fail(self._call_error(kind, reason))

    def _on_removed(self, reason: Reason) -> None:
        self.grants.close()
        self._sup.registry.remove(self)
        self._log.discard_if_empty()
        self.topic.end({"kind": "ended", "session": self.session_id, "reason": reason})
        self._sup.removed(self)

    def _ask_to_end(self, reason: Reason) -> None:
        if self._channel is not None and not self._channel.closed:
            if self.core.state is State.HIBERNATING:
                self.tell("hibernate")
            else:
                self._send({"kind": "shutdown", "reason": reason})
            if self._process is not None and not self._process.is_over:
                send_signal(self._process.pidfd, signal.SIGCONT)  # a stopped one must get to read it
        elif self._process is not None:
            self._process.terminate()

    # --- one life of the child

    async def _live(self, incarnation: int) -> Reason:
        last_reason, counted = self.core.last_reason, is_own_doing(self._intended)
        self._intended = self.sample = None
        self._mark = self._log.mark()
        self._sup.registry.make_room()
        launched = await self._sup.launcher.launch(
            LaunchRequest(kind="session", cookie=self._sup.new_cookie(), log_path=self.log_file)
        )
        self._process = process = launched.process
        if failpoints.hit is not None:
            failpoints.hit("keeper:launched")
        await self._sup.limits.admit(self, process)
        wakes = self.core.wakes
        if not wakes:
            self.serial = self._sup.next_serial()
        closed = asyncio.Event()
        self._channel = await open_pipes(
            launched.read_fd,
            launched.write_fd,
            lambda f: self._on_frame(incarnation, f),
            lambda _: closed.set(),
            max_body_bytes=MAX_ANSWER_BYTES,
        )
        self._sup.registry.bind_pid(self, process.pid)
        self.feed(words.Spawned(incarnation, process.pid))
        if wakes:
            self._sup.processes.runs_as(self.serial, process.pid)
        else:
            self._sup.processes.add(self)
        self._send_init(incarnation, last_reason, counted)
        status = await process.wait()
        # The whole tree is gone, so the pipe ends: what the child wrote last is still in it and is part of its life.
        try:
            await asyncio.wait_for(closed.wait(), DRAIN_S)
        except TimeoutError:
            self._channel.abort(None)
        self._channel = None
        self._sup.registry.release_pid(self, process.pid)
        self.topic.partial.clear()
        return self._reason(status)

    def _reason(self, status: ExitStatus) -> Reason:
        if self._intended is None and self._process is not None and self._sup.limits.was_oom(self._process, status):
            return "oom"
        return super()._reason(status)

    def _send_init(self, incarnation: int, last_reason: Reason, counted: bool) -> None:
        told = self.calls.follow_up()
        header: Header = {
            "kind": "init",
            "session": self.session_id,
            "incarnation": incarnation,
            "reason": last_reason,
            "counted": incarnation > 1 and counted and not self.core.wakes,
            "wakes": self.core.wakes and incarnation > 1,  # the first life goes on after another supervisor's
            "interrupt": self._interrupting,
            "follow": len(told),
            "preload": len(self.past.lines),
            **self.grants.begins(),
            **self.approvers.begins(self.request),
        }
        self._send(header, self.request.init)
        for line in self.past.lines:
            self._send({"kind": "event"}, line)
        for one, body in told:
            self._send(one, body)
        self._told = {header.get("id") for header, _ in told}

    def _on_ready(self, incarnation: int, frame: Frame) -> None:
        if failpoints.hit is not None:
            failpoints.hit("keeper:ready")
        self._take_position(frame.header["info"])
        self.facts.damage = frame.header["info"]["damage"]
        self.facts.degraded = None
        self.topic.reached(int(frame.header["info"]["seq"]))
        self.feed(words.Ready(incarnation))
        for request_id, pending in list(self.calls.pending.items()):
            if request_id not in self._told:
                self._send(pending.header, pending.body)
            if pending.op in ANSWERED_FROM_LOG and not self.past.is_readable:  # it waited for this child
                self._after(SILENT_S, request_id, self._without.answer_from_log, request_id)
        self.grants.ready()

    def _on_frame(self, incarnation: int, frame: Frame) -> None:
        self.facts.heard_at = time.monotonic()
        match frame.kind:
            case "delta":
                self.topic.publish_delta(frame)
            case "event":
                self._on_event(frame)
            case "reply":
                self._cancel(int(frame.header.get("id") or 0))
                self.calls.answer(frame)
            case "request" if frame.header.get("op") == "service":
                self._sup.service(self, frame)
            case "ready":
                self._on_ready(incarnation, frame)
            case "init_error" | "exiting":
                self._announced_reason = bounded(frame.header.get("reason"))
            case "settled":
                self.calls.settled(*frame.header["messages"])
            case "state":
                self.facts.degraded = frame.header.get("degraded")
            case "remember":
                self.approvers.remember(frame.header)
            case "trap_exit":
                pass  # it always does
            case other:
                logger.warning("session=%s sent an unknown frame kind=%r", self.session_id, other)

    def _on_event(self, frame: Frame) -> None:
        self.past.keep(frame.body)
        self._take_position(frame.header)
        self.calls.settled(*frame.header.get("settled", ()))
        if frame.header.get("event") == "turn_end":
            self._interrupting = None
            self._cancel("interrupt")
            self.grants.turn_ended()
        self.topic.publish(frame)

    def _take_position(self, header: Header) -> None:
        if "queue" in header:
            if header.get("turn") != self.facts.turn:
                self.facts.turn, self.facts.turn_since = header.get("turn"), time.monotonic()
            self.facts.queue, self.facts.asks = int(header["queue"]), header.get("asks", ())
            self.grants.heard(header)

    def answer_child(self, frame: Frame, value: object, *, ok: bool = True) -> None:
        """Answer a request that the child made."""
        answer = {"answer_to": frame.header.get("id"), "ok": ok, "value": value}
        self._send({"kind": "info"}, dumps({"message": answer}))

    # --- calls

    def _is_ready(self) -> bool:
        return self.core.state is State.RUNNING and self._channel is not None and not self._channel.closed

    def _send(self, header: Header, body: bytes = b"") -> None:
        if self._channel is not None:
            self._channel.send(header, body, control=True)

    def _insist_on_interrupt(self, turn: str) -> None:
        if self.facts.turn == turn and self.core.state is State.RUNNING:
            self.kill("interrupt")

    # --- errors

    def _start_error(self, reason: Reason) -> AthenaError:
        return start_error(self.label, reason, self.log_file, self.last_output, is_degraded=bool(self.facts.degraded))

    def _call_error(self, kind: words.CallError, reason: Reason) -> AthenaError:
        match kind:
            case "failed":
                return failed_error(self.label, reason, self.last_output)
            case "stopped":
                return SessionStopped(f"{self.label} was stopped: {reason!r}", reason=reason)
            case "start_failed":
                return self._start_error(reason)


def _runs(pid: int) -> bool:
    row = proctree.stat(pid)
    return row is not None and row.state not in "ZX"


_ASLEEP = frozenset({State.HIBERNATING, State.HIBERNATED})
