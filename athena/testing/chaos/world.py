"""The world outside: a ledger of effects and two strict models, in a process that no trial kills.

:class:`World` starts and ends it. It says its addresses on standard output and lives until its standard input ends. The
ledger performs an effect with a key once, whoever asks how often, as a payment service does; what it has performed is
asked for with ``read``. The models draw the numbers that their script leaves to them anew for each request, and note
each request that breaks their provider's rules.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from athena.environment import ROOT, scrubbed_environment
from athena.testing import fake_script, ollama_rules, openai_rules
from athena.testing.chaos.scenario import DRAWN, SCRIPT
from athena.testing.fake_http import FakeServer, Recorded, Responder
from athena.testing.fake_ollama import FakeOllama
from athena.testing.fake_openai import FakeOpenAI
from athena.testing.fake_script import FakeStep, Script

MODEL_PREFIX = "trial-"
"""A session's model is called by this and its id, so that a refused request is known as the trial's."""

END_S = 10.0

PROGRAM = f"import sys; from {__name__} import main; main(sys.argv[1])"


@dataclass(slots=True)
class Account:
    """What one session has done to the world."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    """In the order of arrival, each with ``performed``."""
    refused: list[str] = field(default_factory=list)
    """Why a model would not take a request."""
    asked: int = 0
    """Requests to a model."""


class Ledger:
    """All accounts, by session id."""

    def __init__(self) -> None:
        self.accounts: defaultdict[str, Account] = defaultdict(Account)
        self._keys: set[str] = set()
        self._numbers = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: JSON lines both ways. A request counts when it is here, whether or not its sender lives."""
        try:
            while line := await reader.readline():
                writer.write(json.dumps(self._answer(json.loads(line))).encode() + b"\n")
        except ConnectionError:
            pass  # the one who asked is dead
        finally:
            writer.close()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.pop("op"):
            case "effect":
                return self._effect(request)
            case "read":
                account = self.accounts.pop(request["session"], Account())
                return {"requests": account.requests, "refused": account.refused, "asked": account.asked}
        return {}

    def _effect(self, entry: dict[str, Any]) -> dict[str, Any]:
        self._numbers += 1
        is_known = entry["key"] is not None and entry["key"] in self._keys
        if entry["key"] is not None:
            self._keys.add(entry["key"])
        self.accounts[entry["session"]].requests.append({**entry, "performed": not is_known})
        return {"number": self._numbers}


class _DrawingScript(Script):
    """A script in which the model makes up numbers."""

    def next_step(self, messages: list[dict[str, Any]]) -> FakeStep:
        step = super().next_step(messages)
        calls = tuple(
            call.model_copy(update={"arguments": {"amount": random.randrange(10**12)}})
            if call.arguments == {"amount": DRAWN} else call
            for call in step.tool_calls
        )  # fmt: skip
        return step.model_copy(update={"tool_calls": calls})


class _Noting(FakeServer):
    """Notes what is asked of a fake, and what it has to refuse."""

    ledger: Ledger
    check: Any

    async def respond(self, request: Recorded, responder: Responder) -> None:
        self.requests.clear()
        model = str(request.json.get("model")) if isinstance(request.json, dict) else ""
        if model.startswith(MODEL_PREFIX) and request.method == "POST":
            account = self.ledger.accounts[model.removeprefix(MODEL_PREFIX)]
            account.asked += 1
            try:
                self.check(request.json)
            except fake_script.Refused as error:
                account.refused.append(error.message)
        await super().respond(request, responder)


class _OpenAI(_Noting, FakeOpenAI):
    check = staticmethod(openai_rules.check_request)

    def __init__(self, ledger: Ledger) -> None:
        FakeOpenAI.__init__(self)
        self.ledger = ledger
        self._script = _DrawingScript(SCRIPT, loop=False)


class _Ollama(_Noting, FakeOllama):
    check = staticmethod(ollama_rules.check_request)

    def __init__(self, ledger: Ledger) -> None:
        FakeOllama.__init__(self)
        self.ledger = ledger
        self._script = _DrawingScript(SCRIPT, loop=False)


async def _serve(socket: str) -> None:
    ledger = Ledger()
    async with AsyncExitStack() as stack:
        openai = await stack.enter_async_context(_OpenAI(ledger))
        ollama = await stack.enter_async_context(_Ollama(ledger))
        server = await asyncio.start_unix_server(ledger.serve, socket)
        await stack.enter_async_context(server)
        print(json.dumps({"openai": openai.api_url, "ollama": ollama.base_url}), flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()


class World:
    """The process, while the block runs."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "world.sock"
        self.addresses: dict[str, str] = {}
        """The base URLs of the models, by ``openai`` and ``ollama``."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, str(self.socket)],
            env=scrubbed_environment({}, PYTHONPATH=str(ROOT)),
            cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.addresses = json.loads(self._process.stdout.readline())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(END_S)
        self._process.stdout.close()
        self.socket.unlink(missing_ok=True)


def read_account(socket: Path | str, session_id: str) -> Account:
    """What a session has done so far; it is forgotten then."""

    async def ask() -> dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(str(socket))
        writer.write(json.dumps({"op": "read", "session": session_id}).encode() + b"\n")
        try:
            answer: dict[str, Any] = json.loads(await reader.readline())
        finally:
            writer.close()
        return answer

    return Account(**asyncio.run(ask()))


def main(socket: str) -> None:
    """The program."""
    asyncio.run(_serve(socket))
