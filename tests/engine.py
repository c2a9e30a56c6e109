"""An engine in the test's own process: a real :class:`Runner` with the mock provider, without child and supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from athena import providers, tools
from athena.events import Event, new_uuid
from athena.loop.options import parse_options
from athena.loop.result import Result
from athena.loop.state import SessionState
from athena.providers.base import Delta, ModelResponse, Provider, ProviderSettings
from athena.recorder import Recorder
from athena.runner import Runner
from athena.stores.base import Log
from athena.stores.memory import MemoryStore
from athena.tools.base import Parameters, Tool, ToolContext, ToolOutput
from tests.helpers import TIME_UNIT

Behaviour = Callable[[Any, ToolContext], Any]


class AnyArguments(Parameters):
    """Parameters of test tools: whatever the script says."""

    model_config = ConfigDict(extra="allow")

    def get(self, name: str, default: Any = None) -> Any:
        """One argument."""
        return getattr(self, name, default)


def make_tool(name: str, run: Behaviour, **traits: Any) -> Tool:
    """A tool that does what ``run`` does; ``traits`` are those of :class:`Tool`."""
    return Tool(name, f"The tool {name}.", AnyArguments, run, **traits)


async def succeed(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
    """A tool that works."""
    return ToolOutput(f"done {args.get('n', '')}".strip())


async def fail(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
    """A tool that does not."""
    return ToolOutput("it did not work", is_error=True)


OK = make_tool("ok", succeed, read_only=True, parallel_safe=True, on_crash="safe")
BAD = make_tool("bad", fail, read_only=True, on_crash="safe")


def calls(*wanted: str | tuple[str, dict[str, Any]], text: str = "") -> dict[str, Any]:
    """A step of the mock provider that calls these tools, with ids ``c0``, ``c1``, ..."""
    rows = [(w, {}) if isinstance(w, str) else w for w in wanted]
    steps = [{"id": f"c{i}", "name": name, "arguments": arguments} for i, (name, arguments) in enumerate(rows)]
    return {"text": text, "tool_calls": steps}


class Spy:
    """A provider that keeps its requests."""

    name = "spy"
    default_model: str | None = "default"

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def stream(self, request: Any) -> Any:
        self.requests.append(request)
        yield ModelResponse("ok")

    async def aclose(self) -> None: ...


@dataclass
class Engine:
    """A runner and what it told the world."""

    runner: Runner
    running: asyncio.Task[None] | None = None
    events: list[Event] = field(default_factory=list)
    deltas: list[tuple[int, int, Delta]] = field(default_factory=list)
    """Attempt, offset, piece."""
    on_delta: Callable[[], None] = lambda: None

    def publish(self, event: Event) -> None:
        self.events.append(event)

    def delta(self, turn: str, step: int, attempt: int, offset: int, piece: Delta) -> None:
        self.deltas.append((attempt, offset, piece))
        self.on_delta()

    @property
    def state(self) -> SessionState:
        return self.runner.state

    async def submit(self, text: str = "go", message_id: str | None = None, **options: Any) -> str:
        """Have a message accepted; its id."""
        message_id = message_id or new_uuid()
        await self.runner.accept(message_id, text, options)
        return message_id

    async def result(self, message_id: str) -> Result:
        """Wait for a turn to end."""
        found = await self.runner.result_of(message_id)
        if found is not None:
            return found
        waiting = self.runner.waiters.wait_for(message_id)
        both: list[asyncio.Future[Any]] = [waiting, *([self.running] if self.running else [])]
        async with asyncio.timeout(20 * TIME_UNIT):
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if self.running is not None and self.running.done():
            self.running.result()  # raises what broke the engine
        return waiting.result()

    async def send(self, text: str = "go", message_id: str | None = None, **options: Any) -> Result:
        """Have a message accepted and wait for its turn."""
        return await self.result(await self.submit(text, message_id, **options))

    def kinds(self, *wanted: str) -> list[str]:
        """The recorded kinds in order; only ``wanted`` if given."""
        return [e.event for e in self.events if not wanted or e.event in wanted]

    def data(self, kind: str) -> list[dict[str, Any]]:
        """The data of all events of a kind."""
        return [e.data for e in self.events if e.event == kind]

    def results(self) -> list[tuple[str, str]]:
        """Call id and text of every tool result, as the model sees them."""
        found = [r for m in self.state.messages for r in m.tool_results]
        return [(r.tool_call_id, r.content) for r in found]


@asynccontextmanager
async def engine(
    mock: list[Any] | None = None,
    *,
    log: Log | None = None,
    provider: Provider | None = None,
    extra_tools: Iterable[Tool] = (),
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    counted: bool = False,
    **options: Any,
) -> AsyncIterator[Engine]:
    """A running engine in phase ``trusted``; cancelled at the end, as a child's is."""
    settings = {"provider": "mock", "phase": "trusted", "mock": mock, "tools": [], "durability": "os", **options}
    if cwd is not None:
        settings["cwd"] = str(cwd)
    parsed = parse_options({k: v for k, v in settings.items() if v is not None})
    made = provider or providers.create("mock", ProviderSettings(options={"mock": mock}))
    log = log or MemoryStore().open("s1")
    state = SessionState()
    for event in log.read():
        state.apply(event)
    box: list[Engine] = []
    recorder = Recorder(log, state, durability=parsed.durability, publish=lambda e: box[0].publish(e))
    available = tools.resolve(parsed.tools, extra_tools)
    runner = Runner("s1", parsed, recorder, made, available, _Late(box), env=env or {}, random_unit=lambda: 0.0)
    box.append(Engine(runner))
    await runner.begin("killed", counted=counted)
    box[0].running = running = asyncio.create_task(runner.run())
    try:
        yield box[0]
    finally:
        running.cancel()
        await asyncio.wait([running])
        recorder.close()
    if not running.cancelled():
        running.result()


class _Late:
    """The audience of a runner that is made before its :class:`Engine`."""

    def __init__(self, box: list[Engine]) -> None:
        self._box = box

    def delta(self, turn: str, step: int, attempt: int, offset: int, piece: Delta) -> None:
        self._box[0].delta(turn, step, attempt, offset, piece)
