"""The loop in the calling process, without a session: ``run``, ``query``, ``stream`` and their async twins.

Same loop, tools and providers as a session; no supervisor, no log on disk, so none of a session's promises about
crashes. A provider that needs a server of its own (``local``) has an embedded supervisor keep that one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson

from athena import session_calls as calls
from athena.approver import CanUseTool, ask, checked
from athena.errors import AlreadyResolved, InvalidOption, ProviderError, StartError
from athena.events import Event, new_session_id, new_uuid
from athena.loop.options import Options, parse_options
from athena.loop.permission import open_requests
from athena.loop.result import Result
from athena.loop.state import SessionState
from athena.messages import Message, clean_text
from athena.providers.base import Delta, ModelRequest, ModelResponse
from athena.providers.retry import stream_with_retries
from athena.recorder import Recorder
from athena.runner import Runner
from athena.session_setup import make_provider
from athena.stores.memory import MemoryStore
from athena.supervisors import Target, resolve
from athena.tools import resolve as resolve_tools

T = TypeVar("T")

_ONE_CALL = frozenset(
    {
        "provider", "model", "base_url", "api_key", "extra_headers", "provider_opts", "mock", "mock_loop", "env",
        "system_prompt", "messages", "temperature", "top_p", "max_tokens", "stop", "timeout_ms", "response_format",
    }
)  # fmt: skip
"""The options of ``query`` and ``stream``."""


class _Quiet:
    """The audience of an in-process run: nobody."""

    def delta(self, turn: str, step: int, attempt: int, offset: int, piece: Delta) -> None: ...


async def arun(
    prompt: str,
    *,
    supervisor: str | Target | None = None,
    can_use_tool: CanUseTool | None = None,
    **options: Any,
) -> Result:
    """Run one turn of the loop in this process and return its :class:`Result`.

    ``options``: those of :mod:`athena.loop.options`. ``messages`` is earlier history. ``can_use_tool`` answers
    permission requests (:data:`athena.approver.CanUseTool`); it is called in a thread, and may be async. Raises
    :class:`~athena.errors.InvalidOption`; provider failures and caps are finish reasons.
    """
    _text(prompt)
    function = checked(can_use_tool, may_await=True)
    parsed, env = _parse(options)
    provider = await make_provider(parsed, env, _caller(supervisor))
    log = MemoryStore().open(new_session_id())
    announced: asyncio.Queue[Event] = asyncio.Queue()
    recorder = Recorder(
        log, SessionState(), durability="os", publish=_nobody if function is None else announced.put_nowait
    )
    runner = Runner(new_session_id(), parsed, recorder, provider, resolve_tools(parsed.tools), _Quiet(), env=env)
    runner.approvals.approvers = [] if function is None else [True]
    approving = None if function is None else asyncio.create_task(_approve(runner, announced, function))
    try:
        await runner.begin()
        message_id = new_uuid()
        await runner.accept(message_id, prompt)
        ended = runner.waiters.wait_for(message_id)
        engine = asyncio.create_task(runner.run())
        try:
            both: list[asyncio.Future[Any]] = [ended, engine]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if engine.done():
                engine.result()  # raises what broke the loop
            return ended.result()
        finally:
            engine.cancel()
            await asyncio.wait([engine])
    finally:
        if approving is not None:
            approving.cancel()
        await provider.aclose()
        recorder.close()


async def _approve(runner: Runner, announced: asyncio.Queue[Event], function: CanUseTool) -> None:
    while True:
        await announced.get()
        for row in open_requests(runner.state):
            decision, reason = await ask(function, row)
            with suppress(AlreadyResolved):
                await runner.approvals.answer(
                    row["request_id"], decision, answer_id=new_uuid(), by=os.getpid(), reason=reason
                )


async def aquery(prompt: str, *, supervisor: str | Target | None = None, **options: Any) -> ModelResponse:
    """One stateless model call, no tools. Raises :class:`~athena.errors.ProviderError`, and what :func:`arun`
    raises."""
    async with aclosing(astream(prompt, supervisor=supervisor, **options)) as items:
        async for item in items:
            if isinstance(item, ModelResponse):
                return item
    raise ProviderError("the model's stream ended without an answer", kind="transport", status=None, provider="")


async def astream(
    prompt: str, *, supervisor: str | Target | None = None, **options: Any
) -> AsyncGenerator[Delta | ModelResponse, None]:
    """One stateless model call: its deltas as they come, then the whole :class:`ModelResponse`.

    A delta of a second attempt repeats text of a first one that failed; the response holds the truth. Options of the
    loop and its tools are refused: there is no loop.
    """
    _text(prompt)
    for name in options.keys() - _ONE_CALL & Options.model_fields.keys():
        raise InvalidOption(
            f"option {name!r} means nothing for one model call; leave it out, or use run()",
            option=name,
            value="given",
            expected=", ".join(sorted(_ONE_CALL)),
        )
    parsed, env = _parse(options)
    provider = await make_provider(parsed, env, _caller(supervisor))
    history = tuple(Message.from_map(m) for m in parsed.messages)
    request = ModelRequest(
        model=parsed.model or provider.default_model or "",
        messages=(*history, Message("user", clean_text(prompt))),
        system_prompt=parsed.system_prompt,
        temperature=parsed.temperature,
        top_p=parsed.top_p,
        max_tokens=parsed.max_tokens,
        stop=tuple(parsed.stop),
        response_format=parsed.response_format,
        provider_opts=parsed.provider_opts,
    )
    try:
        async with aclosing(stream_with_retries(provider, request)) as items:
            async for _, item in items:
                yield item
    finally:
        await provider.aclose()


def run(prompt: str, **options: Any) -> Result:
    """:func:`arun` for code without an event loop."""
    return _blocking(lambda: arun(prompt, **options))


def query(prompt: str, **options: Any) -> ModelResponse:
    """:func:`aquery` for code without an event loop."""
    return _blocking(lambda: aquery(prompt, **options))


def stream(prompt: str, **options: Any) -> Iterator[Delta | ModelResponse]:
    """:func:`astream` for code without an event loop."""
    _no_loop()
    with asyncio.Runner() as runner:
        items = astream(prompt, **options)
        try:
            while True:
                try:
                    item = runner.run(_step(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            runner.run(items.aclose())


async def _step(items: AsyncGenerator[T, None]) -> T:
    return await anext(items)


def _blocking(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    _no_loop()
    return asyncio.run(work())


def _no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InvalidOption(
        "an event loop is running here: use the async twin (arun, aquery, astream)",
        option="prompt",
        value="a call inside an event loop",
        expected="the async twin",
    )


def _text(prompt: object) -> None:
    if not isinstance(prompt, str):
        raise InvalidOption(
            f"the prompt got {prompt!r}: expected a string",
            option="prompt",
            value=repr(prompt)[:80],
            expected="a string",
        )


def _parse(options: dict[str, Any]) -> tuple[Options, dict[str, str]]:
    options = {"cwd": os.getcwd(), **options, **calls.message_maps(options)}
    parsed = parse_options({k: str(v) if isinstance(v, Path) else v for k, v in options.items()})
    env = parsed.env if parsed.env is not None else dict(os.environ)
    return parsed, env


def _caller(supervisor: str | Target | None) -> Callable[[str, bytes], Coroutine[Any, Any, Any]]:
    """Asks a supervisor for a shared program; only then is there one."""

    async def call(op: str, body: bytes) -> Any:
        if op != "service":
            raise StartError(f"an in-process run has no supervisor for {op!r}", reason="noproc")

        def ask() -> Any:
            request = calls.service(orjson.loads(body))
            return request.read(resolve(supervisor).pool.call(request.op, request.header, request.body, None))

        return await asyncio.to_thread(ask)

    return call


def _nobody(event: Event) -> None:
    """Nobody subscribes to an in-process run."""
