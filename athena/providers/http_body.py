"""Reading the body of a response under limits of time and size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx

from athena.errors import ProviderError
from athena.providers import http_errors
from athena.providers.watchdog import Watchdog

_ERROR_BODY_BYTES = 64 * 1024
_ERROR_BODY_S = 5.0
_ANSWER_BYTES = 64 * 1024 * 1024  # twice the largest record; a server that never stops must not fill the memory
_DRAIN_S = 0.1  # how long a finished stream may take to end: a connection that ended can be used again


async def head_of(response: httpx.Response) -> bytes:
    """As much of an error's body as helps to explain it; what cannot be read is left out."""
    content = b""
    try:
        async with asyncio.timeout(_ERROR_BODY_S):
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > _ERROR_BODY_BYTES:
                    break
    except (TimeoutError, httpx.HTTPError, httpx.StreamError):
        pass  # the status alone already says what kind of failure this is
    return content[:_ERROR_BODY_BYTES]


class TimedPieces:
    """A response's body under our limits: to the first piece, between pieces, and in total size."""

    def __init__(
        self, response: httpx.Response, gap_s: float, first_deadline: float, errors: http_errors.ErrorContext
    ) -> None:
        # The stream itself and not aiter_bytes: two generators less per delta. We ask for no encoding, but a proxy
        # may add one.
        encoded = "content-encoding" in response.headers
        source: Any = response.aiter_bytes() if encoded else response.stream
        self._pieces: AsyncIterator[bytes] = aiter(source)
        self._gap_s = gap_s
        self._first_deadline = first_deadline
        self._watchdog = Watchdog()
        self._now = asyncio.get_running_loop().time
        self._seen_bytes = 0
        self._errors = errors
        self._draining = False

    def drain(self) -> None:
        """The answer is complete: what still comes is awaited briefly and is nobody's failure."""
        self._draining = True

    async def next_piece(self) -> bytes | None:
        """The next piece, or ``None`` at the end of the body. Only waiting counts, not what the caller does between."""
        deadline = self._first_deadline
        if self._seen_bytes:
            deadline = self._now() + (_DRAIN_S if self._draining else self._gap_s)
        try:
            piece = await self._watchdog.wait(anext(self._pieces), deadline)
        except StopAsyncIteration:
            return None
        except (TimeoutError, httpx.HTTPError) as exc:
            if self._draining:
                return None
            if isinstance(exc, TimeoutError):
                raise self._silence() from exc
            raise
        self._seen_bytes += len(piece)
        if self._seen_bytes > _ANSWER_BYTES:
            raise self._errors.error("transport", f"the answer is above {_ANSWER_BYTES >> 20} MiB; gave up")
        return piece

    def close(self) -> None:
        """Drop what watches the time."""
        self._watchdog.stop()

    def _silence(self) -> ProviderError:
        if self._seen_bytes:
            return self._errors.error("timeout", f"nothing came for {self._gap_s:g} s in the middle of the answer")
        return self._errors.error("timeout", "no first byte in time")
