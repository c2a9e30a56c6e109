"""Retries of one model call: exponential backoff with full jitter, or as long as the server asks.

Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/. Sessions that failed together
must not come back together. Time and chance are arguments, so the policy is tested without waiting.
"""

from __future__ import annotations

import asyncio
import random as _random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any, cast

from athena.errors import ProviderError
from athena.providers.base import Delta, ModelRequest, ModelResponse, Provider

RETRYABLE_KINDS = frozenset({"rate_limited", "server_error", "transport", "timeout"})
"""Failures that may pass by themselves. Everything else would fail the same way again."""

MAX_RETRY_AFTER_S = 60.0
"""A server that asks for more is not waited for: the caller decides what to do with that long a time."""

OnAttempt = Callable[[int, ProviderError, float], None]
"""Told before each further attempt: its number, the failure of the one before, and the seconds until it starts."""


def wait_s(error: ProviderError, failed: int, *, base_s: float, cap_s: float, chance: float) -> float | None:
    """Seconds to wait after ``failed`` failures in a row, the last being ``error``; ``None``: do not repeat it.

    ``chance`` is a number from 0 to 1.
    """
    if error.data.get("kind") not in RETRYABLE_KINDS:
        return None
    asked: float | None = error.data.get("retry_after_s")
    if asked is not None:
        return asked if asked <= MAX_RETRY_AFTER_S else None
    return chance * min(cap_s, base_s * 2.0 ** (failed - 1))


async def stream_with_retries(
    provider: Provider,
    request: ModelRequest,
    *,
    max_attempts: int = 4,
    base_s: float = 0.5,
    cap_s: float = 8.0,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    random: Callable[[], float] = _random.random,
    on_attempt: OnAttempt | None = None,
) -> AsyncGenerator[tuple[int, Delta | ModelResponse], None]:
    """Yield ``(attempt, piece)``, attempts counted from 1; a higher number voids all text of the lower ones.

    Raises the last :class:`ProviderError` when attempts are used up or a repetition makes no sense.
    """
    for attempt in range(1, max_attempts + 1):
        try:
            async with AsyncExitStack() as stack:
                pieces = provider.stream(request)
                if hasattr(pieces, "aclose"):  # an iterator of a custom provider need not be a generator
                    await stack.enter_async_context(aclosing(cast(Any, pieces)))
                async for piece in pieces:
                    yield attempt, piece
            return
        except ProviderError as error:
            delay = wait_s(error, attempt, base_s=base_s, cap_s=cap_s, chance=random())
            if delay is None or attempt == max_attempts:
                raise
            failure = error
        except Exception as error:  # the border to a provider that is not ours and may raise anything
            raise foreign_error(error, provider.name) from error
        if on_attempt is not None:
            on_attempt(attempt + 1, failure, delay)
        await sleep(delay)


def foreign_error(error: Exception, provider: str) -> ProviderError:
    """What a provider raised against its contract, as the failure that it is for its caller."""
    message = f"provider {provider!r} failed: {type(error).__name__}: {error}"
    return ProviderError(message, kind="unknown", status=None, retry_after_s=None, provider=provider)
