"""What tests of several modules share."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

TIME_UNIT = float(os.environ.get("ATHENA_TEST_TIME_UNIT", "1"))
"""By how much a slow machine stretches every timeout of the suite."""

POLL_S = 0.005


def wait_until(predicate: Callable[[], object], timeout_s: float = 5) -> None:
    """Return as soon as `predicate` holds; fail after `timeout_s` times :data:`TIME_UNIT`."""
    deadline = time.monotonic() + timeout_s * TIME_UNIT
    while not predicate():
        assert time.monotonic() < deadline, f"not true within {timeout_s * TIME_UNIT} s: {predicate}"
        time.sleep(POLL_S)


async def wait_until_async(predicate: Callable[[], object], timeout_s: float = 5) -> None:
    """:func:`wait_until` for a test whose event loop has to make the predicate true."""
    deadline = time.monotonic() + timeout_s * TIME_UNIT
    while not predicate():
        assert time.monotonic() < deadline, f"not true within {timeout_s * TIME_UNIT} s: {predicate}"
        await asyncio.sleep(POLL_S)
