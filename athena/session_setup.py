"""From an ``init`` frame to a session that can begin: log, options, provider, tools, engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import orjson

from athena import failpoints, providers, tools
from athena.environment import COOKIE_VARIABLE
from athena.errors import InvalidOption
from athena.events import Event
from athena.loop.options import Options, parse_options
from athena.loop.state import SessionState
from athena.providers.base import Delta, Provider, ProviderSettings
from athena.recorder import Recorder
from athena.runner import Runner
from athena.stores import open_store
from athena.stores.base import Log, Store
from athena.stores.memory import MemoryStore
from athena.tools.base import Tool
from athena.wire import Header, dumps

E = TypeVar("E", bound=MutableMapping[str, str])


class Host(Protocol):
    """What surrounds an engine: a child with its pipes, or nothing much for an in-process run."""

    def publish(self, event: Event) -> None: ...

    def delta(self, turn: str, step: int, attempt: int, offset: int, piece: Delta) -> None: ...

    def degraded(self, what: str | None) -> None: ...

    async def flushed(self) -> None: ...

    async def call(self, op: str, body: bytes) -> Any: ...


@dataclass(slots=True)
class SessionParts:
    """A built session. ``damage`` is what opening the log found, as JSON, or ``None``."""

    runner: Runner
    provider: Provider
    damage: dict[str, Any] | None


def read_init(body: bytes) -> dict[str, Any]:
    """A start request: the line that its supervisor may write down and, unless that is all that is left of it after a
    supervisor's death, the line with what it may not."""
    public, _, private = body.partition(b"\n")
    init: dict[str, Any] = orjson.loads(public)
    if private:
        rest = orjson.loads(private)
        init |= {**rest, "options": {**init["options"], **rest["options"]}}
    return init


async def build_session(header: Header, init: dict[str, Any], host: Host, lines: Sequence[bytes] = ()) -> SessionParts:
    """Everything for one life of a session, its log locked and folded.

    ``init``: ``options``, ``env``, ``cwd``, ``python_path``, ``store``, ``store_options``, ``root``. ``lines`` are
    what the supervisor kept of an in_memory log. Raises any error of :mod:`athena.errors` that says which option is
    wrong, or that the log is held by another process.
    """
    enter_environment(init)
    session_id = str(header["session"])
    store = _store(session_id, init, lines)
    # For a new session, what its options get wrong is said before there is a log, so that nothing is left of it.
    ready = None if store.tail(session_id, 1) else await _equip({}, init, host)
    log = store.open(session_id)
    try:
        state = SessionState()
        for event in log.read():
            state.apply(event)
        if state.events:
            if header.get("incarnation", 1) == 1 or header.get("presented"):  # a later life finds its own seed there
                _refuse_seed(session_id, state, init["options"])
            ready = await _equip(state.options, init, host)
        assert ready is not None, "a log without an event is a new session's"
        return _assemble(session_id, state, log, init, host, ready, store)
    except BaseException:
        log.close()
        raise


@dataclass(frozen=True, slots=True)
class _Equipment:
    """A session's options and what they name."""

    options: Options
    tools: dict[str, Tool]
    provider: Provider
    env: dict[str, str]


async def _equip(recorded: dict[str, Any], init: dict[str, Any], host: Host) -> _Equipment:
    options = merge_options(recorded, init)
    _enter_directory(options.cwd, is_new=not recorded)
    given = init.get("env")  # without one, it is this process's: its supervisor's, in which nothing is secret
    env = mark_environment(dict(os.environ if given is None else given), os.environ.get(COOKIE_VARIABLE))
    return _Equipment(options, tools.resolve(options.tools), await make_provider(options, env, host.call), env)


def _assemble(
    session_id: str,
    state: SessionState,
    log: Log,
    init: dict[str, Any],
    host: Host,
    equipment: _Equipment,
    store: Store,
) -> SessionParts:
    in_memory = init.get("store") == "in_memory"
    recorder = Recorder(
        log,
        state,
        durability="os" if in_memory else equipment.options.durability,
        publish=host.publish,
        flush=host.flushed if in_memory else None,
        on_degraded=host.degraded,
    )
    runner = Runner(
        session_id,
        equipment.options,
        recorder,
        equipment.provider,
        equipment.tools,
        host,
        env=equipment.env,
        store=store,
    )
    found = replace(log.damage, bad_lines=log.damage.bad_lines + state.misfits)
    damage = asdict(found) if found else None
    return SessionParts(runner, equipment.provider, damage)


def _refuse_seed(session_id: str, state: SessionState, given: dict[str, Any]) -> None:
    if given.get("messages"):
        raise InvalidOption(
            f"option 'messages' cannot seed session {session_id!r}: its log has {len(state.messages)} messages; "
            "leave it out to continue the log",
            option="messages",
            value=f"{len(given['messages'])} messages",
            expected="absent for an existing session_id",
        )


def merge_options(recorded: dict[str, Any], init: dict[str, Any]) -> Options:
    """The options of this life: what the log remembers, overridden by what the caller says. Restrictions only add
    up."""
    given = init["options"]
    merged = {"cwd": init.get("cwd"), **recorded, **given}
    denied = [*recorded.get("disallowed_tools", ()), *given.get("disallowed_tools", ())]
    if denied:
        merged["disallowed_tools"] = list(dict.fromkeys(denied))
    return parse_options(merged)


async def make_provider(options: Options, env: dict[str, str], call: Callable[[str, bytes], Any]) -> Provider:
    """The session's provider. ``call`` asks the supervisor, for a provider whose server it keeps."""

    async def ask_service(spec: dict[str, Any]) -> dict[str, Any]:
        endpoint: dict[str, Any] = await call("service", dumps(spec))
        return endpoint

    extra: dict[str, Any] = {}
    if options.mock is not None:
        extra["mock"] = options.mock
    if options.mock_loop:
        extra["mock_loop"] = True
    settings = ProviderSettings(
        base_url=options.base_url,
        api_key=options.api_key,
        model=options.model,
        timeouts=options.timeouts(),
        extra_headers=options.extra_headers,
        env=env,
        options={**extra, "ask_service": ask_service},
    )
    return providers.create(options.provider, settings)


def _store(session_id: str, init: dict[str, Any], lines: Sequence[bytes]) -> Store:
    name = init.get("store") or "jsonl"
    root = Path(init["root"]) if init.get("root") else None
    store = open_store(name, root=root, options=init.get("store_options"))
    if isinstance(store, MemoryStore):
        store.preload(session_id, lines)
    return store


def enter_environment(init: dict[str, Any]) -> None:
    """Make this process the caller's in environment and import path."""
    env = init.get("env")
    if env is not None:
        failpoints.arm(env, failpoints.CHILD_VARIABLE)
        cookie = os.environ.get(COOKIE_VARIABLE)
        os.environ.clear()
        os.environ.update(env)
        mark_environment(os.environ, cookie)
    for entry in reversed(init.get("python_path") or ()):
        if entry not in sys.path:
            sys.path.insert(0, entry)


def _enter_directory(cwd: str | None, *, is_new: bool) -> None:
    """Go to the session's directory. One that is gone at a restart is an error for the tools that use it, not for the
    session, which has more to do than that."""
    try:
        os.chdir(cwd or ".")
    except OSError as error:
        if is_new:
            raise InvalidOption(
                f"option 'cwd' got {cwd!r}: {error.strerror}; give an existing directory",
                option="cwd",
                value=repr(cwd),
                expected="an existing directory",
            ) from None


def mark_environment(env: E, cookie: str | None) -> E:
    """``env`` with this process's own cookie, or without one.

    By it the supervisor finds what a tool has left when this process is killed. The caller's would be another
    session's, if the caller is a tool itself.
    """
    env.pop(COOKIE_VARIABLE, None)
    if cookie:
        env[COOKIE_VARIABLE] = cookie
    return env
