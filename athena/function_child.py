"""The process of a supervised function: one ``init`` frame, a call, a reason.

Entered by the zygote's fork or by ``python -m athena.function_child READ_FD WRITE_FD``. The function runs in the main
thread with nothing of Athena's around it: no event loop, no thread, no signal handler. So SIGTERM ends it at once, as
an exit signal ends an Erlang process that does not trap exits; one that wants to clean up installs a handler.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import importlib
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from athena import proctree
from athena.session_setup import enter_environment
from athena.wire import Frame, Framer, Header, encode

READ_BYTES = 64 * 1024
TRACEBACK_CHARS = 8000
"""Of the end of a traceback, where the error is; the whole one is in the log."""


def main(read_fd: int, write_fd: int) -> None:
    """Run the function that the first frame names. Never returns."""
    for fd in (read_fd, write_fd):
        os.set_inheritable(fd, False)
        os.set_blocking(fd, True)
    gc.enable()
    init = _first_frame(read_fd)
    if init is None:
        os._exit(0)
    _end_with_supervisor(read_fd)
    say = _Words(write_fd)
    threading.excepthook = say.thread_ended
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # they are TextIOWrapper here
    given = init.json()
    try:
        enter_environment(given)
        os.chdir(given["cwd"])
        function = _load(str(init.header["function"]))
    except BaseException as error:  # whatever user code raises while it is imported is why there is no start
        say.end("init_error", reason_of(error), error)
    say.frame({"kind": "ready"})
    try:
        result = function(*given["args"], **given["kwargs"])
        if inspect.isawaitable(result):
            asyncio.run(_awaited(result))
    except BaseException as error:  # why it ended, and nothing of ours to protect from it
        say.end("exiting", reason_of(error), error)
    say.end("exiting", "normal")


def reason_of(error: BaseException) -> Any:
    """Why a process ends that this error ended: ``{"exit": n}`` for an exit, else ``{"error": {...}}``."""
    if isinstance(error, SystemExit):
        if error.code is None or error.code == 0:
            return "normal"
        return {"exit": error.code if isinstance(error.code, int) else 1}
    text = "".join(traceback.format_exception(error))
    shown = {"type": type(error).__name__, "message": str(error), "traceback": text[-TRACEBACK_CHARS:]}
    return {"error": {name: value.encode(errors="replace").decode() for name, value in shown.items()}}


async def _awaited(result: Any) -> Any:
    return await result


def _load(start: str) -> Callable[..., Any]:
    module, _, attribute = start.partition(":")
    found: Any = importlib.import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{start} is no function: {found!r}")
    function: Callable[..., Any] = found
    return function


def _first_frame(fd: int) -> Frame | None:
    framer = Framer()
    while data := os.read(fd, READ_BYTES):
        for frame in framer.feed(data):
            return frame
    return None


def _end_with_supervisor(read_fd: int) -> None:
    """Have the kernel signal this process when the supervisor's end of the pipe closes, which it does in its death.

    The guard kills what a dead supervisor leaves; this is for the case that both are gone.
    """
    fcntl.fcntl(read_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(read_fd, fcntl.F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(read_fd, fcntl.F_SETFL, fcntl.fcntl(read_fd, fcntl.F_GETFL) | os.O_ASYNC)


class _Words:
    """What is said to the supervisor, and the last of it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def frame(self, header: Header) -> None:
        """Write a frame. A fork of the function's own says nothing: it is not the child."""
        raw = encode(header) if os.getpid() == self._pid else b""
        try:
            while raw:
                raw = raw[os.write(self._fd, raw) :]
        except BrokenPipeError:
            pass  # the supervisor is gone, and the signal of that is on its way

    def thread_ended(self, failure: threading.ExceptHookArgs) -> None:
        """A thread ended with an error, and the process with it: half of a program is no program."""
        error = failure.exc_value or failure.exc_type()
        if not isinstance(error, SystemExit):
            self.end("exiting", reason_of(error), error)

    def end(self, kind: str, reason: Any, error: BaseException | None = None) -> NoReturn:
        """Say why, and exit. No ``atexit`` of the zygote's, no waiting for threads."""
        with self._lock:  # another thread that crashes at the same time is too late
            status = 0 if reason == "normal" else 1
            if isinstance(error, SystemExit):
                if isinstance(error.code, str):
                    print(error.code, file=sys.stderr)
                status = reason["exit"] & 0xFF if reason != "normal" else 0
            elif error is not None:
                traceback.print_exception(error)
            try:
                self.frame({"kind": kind, "reason": reason})
                proctree.kill_descendants()
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
