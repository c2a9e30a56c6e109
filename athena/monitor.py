"""Watching one process, as OTP's monitors do."""

from __future__ import annotations

import time
from dataclasses import dataclass

from athena import session_calls as calls
from athena.client import ConnectionLost, call_timeout
from athena.errors import Reason
from athena.pid import Pid
from athena.recovery import ANSWER_S
from athena.supervisors import Target


@dataclass(frozen=True, slots=True)
class Down:
    """A monitored process has ended. ``reason`` is why; ``noproc`` if it was gone before, ``noconnection`` if the
    supervisor was lost."""

    ref: int
    target: str | int
    pid: Pid | None
    reason: Reason


class Monitor:
    """A one-way watch on one process. Delivers exactly one :class:`Down`."""

    def __init__(self, target: Target, watched: str | int) -> None:
        call = calls.monitor(watched)
        self._target = watched
        self._connection = target.pool.open()
        try:
            value = self._connection.call(call.op, call.header, call.body, ANSWER_S).json()
        except BaseException:
            self._connection.close()
            raise
        self.ref = int(value["ref"])
        self.pid = Pid.from_map(value["pid"])
        self._down: Down | None = None
        if value["reason"] is not None:
            self._down = Down(self.ref, watched, None, value["reason"])
        self._is_over = False

    def wait(self, timeout: float | None = None) -> Down | None:
        """Wait for the :class:`Down`; ``None`` once it was delivered or after :meth:`demonitor`.

        Raises :class:`~athena.errors.CallTimeout`.
        """
        if self._is_over:
            return None
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._down is None:
            try:
                frame = self._connection.next_frame(deadline)
            except TimeoutError:
                raise call_timeout("monitor", timeout) from None
            except ConnectionLost:
                self._down = Down(self.ref, self._target, self.pid, "noconnection")
                break
            if frame.kind == "down" and frame.header["ref"] == self.ref:
                self._down = Down(self.ref, self._target, self.pid, frame.header["reason"])
        down = self._down
        self.demonitor()
        return down

    def demonitor(self) -> None:
        """Stop watching; no :class:`Down` is delivered after this. Twice is a no-op."""
        self._is_over = True
        self._connection.close()
