"""Waiting for what this process is told, blocking: :mod:`athena.async_processes` has the twin to await."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from athena.client import ConnectionLost
from athena.errors import AthenaError, NotRunning
from athena.mailboxes import Arrival, No
from athena.process_calls import Armed, Waiting
from athena.recovery import RETRY_S
from athena.session_calls import check_timeout
from athena.supervisors import Target


def take(
    target: Target,
    awaited: Armed | None,
    timeout: float | None,
    what: str,
    meaning: Callable[[Any], Any] = lambda message: message,
    *,
    keep: Callable[[Any], None],
) -> Any:
    """Ask for a message until it is there; what it means. :data:`No.SUPERVISOR`, or what that means, if what is awaited
    went with its supervisor, or there is none to ask; :data:`No.MORE` if it will not come. Raises :class:`CallTimeout`.

    A message that has come when the wait is interrupted is given to ``keep``.
    """
    check_timeout(timeout)
    waiting = Waiting(awaited, timeout, what)
    while True:
        found = No.NEWS
        try:
            found = _ask(target, waiting, Arrival(meaning), keep)
        except (ConnectionLost, NotRunning) as error:
            if waiting.is_lost(error):
                return meaning(No.SUPERVISOR)
            time.sleep(RETRY_S)
        except TimeoutError as error:
            if isinstance(error, AthenaError) or not waiting.is_over():
                raise
            found = No.TIME
        if found is No.TIME:
            raise waiting.error()
        if found is not No.NEWS:
            return found


def _ask(target: Target, waiting: Waiting, arrival: Arrival, keep: Callable[[Any], None]) -> Any:
    try:
        return target.pool.take(waiting.header(), waiting.limit_s(), arrival.read)
    except BaseException:
        if not isinstance(rest := arrival.rest(), No):
            keep(rest)
        raise
