"""One session under supervision: its child's pipe, the calls that wait for it, its subscribers and its monitors.

For an in_memory log it also holds the recorded lines. How a process is started, ended and restarted is
:class:`supervisor.leaf.Leaf`'s.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from athena import events
from athena.channel import Channel, open_pipes
from athena.errors import (
    AthenaError,
    InvalidOption,
    Reason,
    SessionFailed,
    SessionStopped,
    StartError,
    StoreError,
    Unresponsive,
    UnsupportedStore,
    from_wire,
)
from athena.events import Event, check_session_id, new_session_id
from athena.proctree import send_signal
from athena.stores.jsonl import JsonlStore
from athena.wire import MAX_ANSWER_BYTES, Frame, Header
from supervisor import vocabulary as words
from supervisor.calls import Calls, reply, reply_error
from supervisor.hub import Topic
from supervisor.launcher import Launcher, LaunchRequest
from supervisor.leaf import Leaf
from supervisor.logfile import LogFile
from supervisor.process import OsProcess
from supervisor.registry import Registry
from supervisor.spec import SessionSpec
from supervisor.vocabulary import State

logger = logging.getLogger(__name__)

SILENT_S = 0.150
"""How long a call waits for the child before it is answered without it (design 7.5)."""

INTERRUPT_S = 2.0
"""How long a child has to end an interrupted turn before it is killed (design 4)."""

DRAIN_S = 1.0
"""How long a dead child's pipe is read for its last words."""

MEMORY_LOG_BYTES = 64 * 1024 * 1024
"""The bound of an in_memory log; the child's own store refuses at the same one."""


class Supervision(Protocol):
    """What a keeper needs of the supervisor around it."""

    launcher: Launcher
    registry: Registry
    logs: Path
    supervisor_id: str

    @property
    def sessions(self) -> Path: ...

    def next_serial(self) -> int: ...

    def new_cookie(self) -> str: ...

    def service(self, keeper: Keeper, frame: Frame) -> None: ...

    def removed(self, keeper: Keeper) -> None: ...


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What a client asked to start. ``init`` is opaque: the child reads it."""

    session_id: str
    name: str | None
    spec: SessionSpec
    store: str
    root: str | None
    init: bytes = field(repr=False)
    link: bool = False

    @staticmethod
    def from_map(given: Mapping[str, Any], init: bytes, sessions: Path) -> SessionRequest:
        """The request that a client's ``spec`` makes; ``sessions`` is the default root. Raises what is wrong."""
        session_id = check_session_id(given.get("session_id") or new_session_id())
        name = given.get("name")
        if name is not None and (not isinstance(name, str) or not name or len(name) > 255 or "\n" in name):
            raise InvalidOption(
                f"name {name!r} is not legal: 1 to 255 characters on one line",
                option="name",
                value=repr(name),
                expected="a string",
            )
        store = given.get("store") or "jsonl"
        root = given.get("root") or str(sessions)
        if store == "jsonl" and not Path(root).is_absolute():
            raise InvalidOption(
                f"root {root!r} must be absolute", option="root", value=repr(root), expected="an absolute path"
            )
        return SessionRequest(
            session_id=session_id,
            name=name,
            spec=SessionSpec.from_options(given),
            store=store,
            root=root if store == "jsonl" else None,
            init=init,
            link=bool(given.get("link")),
        )


@dataclass(slots=True)
class Facts:
    """What the child said of itself last, from frame headers alone."""

    turn: str | None = None
    queue: int = 0
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
        self.calls = Calls()
        self.topic = Topic(self.session_id, self._past)
        self.monitors: dict[int, Callable[[Reason], None]] = {}
        self.serial = 0
        self.started_at = events.now()
        self._sup = supervision
        self._channel: Channel | None = None
        self._interrupting: str | None = None
        self._told: set[object] = set()
        self._lines: list[bytes] = []
        self._lines_bytes = 0

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
        """A pid as it travels: number, serial, supervisor."""
        pid = self.os_pid
        return None if pid is None else {"pid": pid, "serial": self.serial, "supervisor": self._sup.supervisor_id}

    @property
    def is_busy(self) -> bool:
        """Whether its child owes somebody an answer or a turn."""
        return self.core.state is State.RUNNING and (self.facts.turn is not None or bool(self.calls.pending))

    def status(self) -> dict[str, Any]:
        """Everything known without asking the child."""
        return {
            "session_id": self.session_id,
            "name": self.name,
            "state": "degraded(disk)" if self.facts.degraded and self.state == "running" else self.state,
            "pid": self.pid_value(),
            "incarnation": self.core.incarnation,
            "restarts_in_window": self.core.restarts_in_window(time.monotonic()),
            "last_reason": self.core.last_reason,
            "turn": self.facts.turn,
            "queue": self.facts.queue,
            "damage": self.facts.damage,
            "events": self.topic.last_seq,
            "subscribers": len(self.topic.subscriptions),
            "store": self.request.store,
            "started_at": self.started_at,
            "log_file": str(self.log_file),
        }

    @property
    def log_file(self) -> Path:
        """Where the child's standard output and error go."""
        return self._sup.logs / f"{self.session_id}.log"

    # --- what others ask

    def relay(self, channel: Channel, frame: Frame) -> None:
        """Hand a client's request to the child, now or when there is one."""
        if self.core.state is State.FAILED:
            reply_error(channel, frame.header.get("id"), self._failed_error(self.core.reason))
            return
        extra: dict[str, object] = {}
        if frame.header.get("op") == "interrupt" and self.facts.turn is not None:
            extra["turn"] = self._interrupting = self.facts.turn
            self._after(INTERRUPT_S, "interrupt", self._insist_on_interrupt, self.facts.turn)
        request_id = self.calls.add(channel, frame, **extra)
        if frame.header.get("op") in ("interrupt", "cancel") and not extra:
            self._after(INTERRUPT_S, request_id, self._give_up, request_id)
        if self._is_ready():
            pending = self.calls.pending[request_id]
            self._send(pending.header, pending.body)
        if frame.header.get("op") in _ANSWERED_FROM_LOG:
            self._after(SILENT_S, request_id, self._answer_from_log, request_id)

    def probe(self, request_id: int) -> None:
        """Ask the child for a sign of life: any frame is one."""
        self._send({"kind": "request", "op": "ping", "id": -request_id}, b"")

    def dump_stacks(self) -> None:
        """Have the child write where its threads are into its log file."""
        if self._process is not None and not self._process.is_over:
            send_signal(self._process.pidfd, signal.SIGUSR1)

    # --- what the leaf tells

    def _on_state(self, state: State, reason: Reason) -> None:
        notice = {"kind": "state", "session": self.session_id, "state": state.value, "reason": reason}
        for subscription in self.topic.subscriptions:
            subscription.channel.send(notice, control=True)

    def _on_died(self, reason: Reason) -> None:
        monitors, self.monitors = self.monitors, {}
        for tell in monitors.values():
            tell(reason)

    def _on_calls_failed(self, kind: words.CallError, reason: Reason) -> None:
        self.calls.fail(self._call_error(kind, reason))

    def _on_removed(self, reason: Reason) -> None:
        self._sup.registry.remove(self)
        LogFile(self.log_file).discard_if_empty()
        self.topic.end({"kind": "ended", "session": self.session_id, "reason": reason})
        self._sup.removed(self)

    def _ask_to_end(self, reason: Reason) -> None:
        if self._channel is not None and not self._channel.closed:
            self._channel.send({"kind": "shutdown", "reason": reason}, control=True)
            if self._process is not None and not self._process.is_over:
                send_signal(self._process.pidfd, signal.SIGCONT)  # a stopped one must get to read it
        elif self._process is not None:
            self._process.terminate()

    # --- one life of the child

    async def _live(self, incarnation: int) -> Reason:
        # A hang is the turn's own doing although the kill was ours: a turn that always hangs has to end too.
        last_reason, counted = self.core.last_reason, self._intended in (None, "hung")
        self._intended = None
        launched = await self._sup.launcher.launch(
            LaunchRequest(kind="session", cookie=self._sup.new_cookie(), log_path=self.log_file)
        )
        self._process = process = launched.process
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

    def _send_init(self, incarnation: int, last_reason: Reason, counted: bool) -> None:
        told = self.calls.follow_up()
        header: Header = {
            "kind": "init",
            "session": self.session_id,
            "incarnation": incarnation,
            "reason": last_reason,
            "counted": incarnation > 1 and counted,
            "interrupt": self._interrupting,
            "follow": len(told),
            "preload": len(self._lines),
        }
        self._send(header, self.request.init)
        for line in self._lines:
            self._send({"kind": "event"}, line)
        for one, body in told:
            self._send(one, body)
        self._told = {header.get("id") for header, _ in told}

    def _on_ready(self, incarnation: int, frame: Frame) -> None:
        self._take_position(frame.header)
        self.facts.damage = frame.header.get("damage")
        self.facts.degraded = None
        self.topic.last_seq = max(self.topic.last_seq, int(frame.header.get("seq") or 0))
        self.feed(words.Ready(incarnation))
        for request_id, pending in list(self.calls.pending.items()):
            if request_id not in self._told:
                self._send(pending.header, pending.body)

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
            case "init_error":
                self.feed(words.InitFailed(incarnation, frame.json()))
            case "exiting":
                self._announced_reason = frame.header.get("reason")
            case "state":
                self.facts.degraded = frame.header.get("degraded")
            case "hello":
                pass
            case other:
                logger.warning("session=%s sent an unknown frame kind=%r", self.session_id, other)

    def _on_event(self, frame: Frame) -> None:
        if self.request.store == "in_memory" and self._lines_bytes + len(frame.body) <= MEMORY_LOG_BYTES:
            self._lines.append(frame.body)
            self._lines_bytes += len(frame.body)
        self._take_position(frame.header)
        self.calls.settled(*frame.header.get("settled", ()))
        if frame.header.get("event") == "turn_end":
            self._interrupting = None
            self._cancel("interrupt")
        self.topic.publish(frame)

    def _take_position(self, header: Header) -> None:
        if "queue" in header:
            self.facts.turn = header.get("turn")
            self.facts.queue = int(header["queue"])

    def answer_child(self, frame: Frame, body: bytes, *, ok: bool = True) -> None:
        """Answer a request that the child made."""
        self._send({"kind": "reply", "id": frame.header.get("id"), "ok": ok}, body)

    # --- calls

    def _is_ready(self) -> bool:
        return self.core.state is State.RUNNING and self._channel is not None and not self._channel.closed

    def _send(self, header: Header, body: bytes) -> None:
        if self._channel is not None:
            self._channel.send(header, body, control=True)

    def _insist_on_interrupt(self, turn: str) -> None:
        if self.facts.turn == turn and self.core.state is State.RUNNING:
            self.kill("interrupt")

    def _give_up(self, request_id: int) -> None:
        """Nothing runs that could be killed for it, and the child is silent."""
        pending = self.calls.pending.pop(request_id, None)
        if pending is not None:
            error = Unresponsive(f"{self.label} does not answer now; no turn of it runs")
            reply_error(pending.channel, pending.client_id, error)

    def _answer_from_log(self, request_id: int) -> None:
        pending = self.calls.pending.pop(request_id, None)
        if pending is not None:
            self._spawn_task(self._reply_from_log(pending.channel, pending.client_id))

    async def _reply_from_log(self, channel: Channel, client_id: object) -> None:
        try:
            body = await asyncio.to_thread(lambda: b"\n".join(event.line for event in self._past(0)))
            reply(channel, client_id, body, source="log")
        except AthenaError as error:
            reply_error(channel, client_id, Unresponsive(f"{self.label} does not answer now, and {error.message}"))

    def _past(self, after: int) -> Iterable[Event]:
        match self.request.store:
            case "jsonl":
                if self.request.root is None:
                    raise StoreError("the session has no log directory", session_id=self.session_id)
                return JsonlStore(Path(self.request.root), allow_network=True).read(self.session_id, after)
            case "in_memory":
                return self._memory_past(after)
            case other:
                raise UnsupportedStore(f"its log is in the custom store {other!r}, which only its process can read")

    def _memory_past(self, after: int) -> Iterator[Event]:
        for index, line in enumerate(self._lines, 1):
            event = events.decode(line, index)
            if event.seq > after:
                yield event

    # --- errors

    def _start_error(self, reason: Reason) -> AthenaError:
        if isinstance(reason, dict) and isinstance(reason.get("error"), str):
            return from_wire(reason)  # the child's own refusal, which names the option
        if self.facts.degraded:
            return StartError(f"{self.label} could not start: its log cannot be written (disk full?)", reason=reason)
        hint = f"; its output is in {self.log_file}" if self.log_file.exists() and self.log_file.stat().st_size else ""
        return StartError(f"{self.label} could not start: {reason!r}{hint}", reason=reason)

    def _call_error(self, kind: str, reason: Reason) -> AthenaError:
        match kind:
            case "failed":
                return self._failed_error(reason)
            case "stopped":
                return SessionStopped(f"{self.label} was stopped: {reason!r}", reason=reason)
            case _:
                return self._start_error(reason)

    def _failed_error(self, reason: Reason) -> SessionFailed:
        return SessionFailed(
            f"{self.label} has failed: {reason!r}; its log is kept, start it again under its id to go on",
            reason=reason,
        )


_ANSWERED_FROM_LOG = frozenset({"messages", "usage", "queue"})
