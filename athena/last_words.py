"""What the process of a function or of a server says to its supervisor, and the last of it: why it ends."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from typing import Any, NoReturn

from athena import proctree
from athena.errors import Reason
from athena.wire import Header, Outbox

TRACEBACK_CHARS = 8000
"""Of the end of a traceback, where the error is; the whole one is in the log."""

MESSAGE_CHARS = 2000

EXIT_CODES = range(-(2**31), 2**31)


def reason_of(error: BaseException) -> Reason:
    """Why a process ends that this error ended: ``{"exit": n}`` for an exit, else ``{"error": {...}}``."""
    if isinstance(error, SystemExit):
        if error.code is None or error.code == 0:
            return "normal"
        return {"exit": int(error.code) if isinstance(error.code, int) and error.code in EXIT_CODES else 1}
    told = traceback.TracebackException.from_exception(error)  # which also stands an error without a text
    text = "".join(told.format())
    shown = {"type": type(error).__name__, "message": str(told)[:MESSAGE_CHARS], "traceback": text[-TRACEBACK_CHARS:]}
    return {"error": {name: value.encode(errors="replace").decode() for name, value in shown.items()}}


def is_clean(reason: Reason) -> bool:
    """Whether a supervisor takes this for an end in order: ``normal``, ``shutdown`` or ``{"shutdown": ...}``."""
    return reason in ("normal", "shutdown") or (isinstance(reason, dict) and set(reason) == {"shutdown"})


class Words:
    """The pipe to the supervisor. Usable from every thread; a write waits while the pipe is full.

    Blocking writes, and not a transport of an event loop: a thread that crashes while the main one is busy must still
    get its reason out, behind a frame that another thread has begun.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pid = os.getpid()
        self._writing = threading.Lock()
        self._ending = threading.Lock()
        self._last_kind = "init_error"

    def frame(self, header: Header, body: bytes = b"") -> None:
        """Write a frame. A fork of the user's own says nothing: it is not the child.

        Raises TypeError if the header is no JSON, :class:`~athena.errors.ProtocolError` if it all is too long.
        """
        self._write(header, body)

    def _write(self, header: Header, body: bytes = b"") -> None:
        if os.getpid() != self._pid:
            return
        outbox = Outbox()
        outbox.put(header, body)
        with self._writing:
            try:
                while raw := outbox.take():
                    while raw:
                        raw = raw[os.write(self._fd, raw) :]
            except BrokenPipeError:
                pass  # the supervisor is gone, and how that ends this process is decided where it is noticed

    def ready(self, **facts: Any) -> None:
        """The start has succeeded. What ends the process from now on is no start error."""
        self.frame({"kind": "ready", **facts})
        self._last_kind = "exiting"

    def thread_ended(self, failure: threading.ExceptHookArgs) -> None:
        """A thread ended with an error, and the process with it: half of a program is no program."""
        error = failure.exc_value or failure.exc_type()
        if not isinstance(error, SystemExit):
            self.end(reason_of(error), error)

    def end(self, reason: Reason, error: BaseException | None = None, *, kind: str | None = None) -> NoReturn:
        """Say why, and exit. No ``atexit`` of the zygote's, no waiting for threads.

        The frame is ``init_error`` before :meth:`ready` and ``exiting`` after it, or of ``kind``.
        """
        with self._ending:  # another thread that crashes at the same time is too late
            status = 0 if is_clean(reason) else 1
            if isinstance(error, SystemExit):
                status = reason["exit"] & 0xFF if reason != "normal" else 0
            try:
                os.set_blocking(self._fd, True)  # an event loop may have taken it over
                self._write({"kind": kind or self._last_kind, "reason": reason})  # first: the log may be full
                _print(error)
                proctree.kill_descendants()
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)


def _print(error: BaseException | None) -> None:
    try:
        if isinstance(error, SystemExit):
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
        elif error is not None:
            traceback.print_exception(error)
    except (OSError, ValueError):
        pass  # there is no log to print to
