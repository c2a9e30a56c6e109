"""The process of a supervised function or server: one ``init`` frame, a call, a reason.

Entered by the zygote's fork or by ``python -m athena.function_child READ_FD WRITE_FD``. A function runs in the main
thread with nothing of Athena's around it: no event loop, no thread, no signal handler. So SIGTERM ends it at once, as
an exit signal ends an Erlang process that does not trap exits; one that wants to clean up installs a handler. A
subclass of :class:`athena.Server` is left to :mod:`athena.server_child`.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import importlib
import inspect
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from athena import current, server_child
from athena.last_words import Words, reason_of
from athena.server import Server
from athena.server_inbox import Inbox, first_frames
from athena.session_setup import enter_environment
from athena.wire import Framer


def main(read_fd: int, write_fd: int) -> None:
    """Run the function or server that the first frame names. Never returns."""
    for fd in (read_fd, write_fd):
        os.set_inheritable(fd, False)
        os.set_blocking(fd, True)
    gc.enable()
    framer = Framer()
    frames = first_frames(read_fd, framer)
    if not frames:
        os._exit(0)
    words = Words(write_fd)
    threading.excepthook = words.thread_ended
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # they are TextIOWrapper here
    given = frames[0].json()
    try:
        enter_environment(given)
        os.chdir(given["cwd"])
        current.enter(given)
        found = _load(str(frames[0].header["function"]))
        if isinstance(found, type) and issubclass(found, Server):
            current.become_server()
            inbox = Inbox(read_fd, framer, frames[1:])
            server_child.serve(found(), given["args"], given["kwargs"], inbox, words)
        _check_arguments(found, given)
        _end_with_supervisor(read_fd)
        words.ready()
        result = found(*given["args"], **given["kwargs"])
        if inspect.isawaitable(result):
            asyncio.run(_awaited(result))
    except BaseException as error:  # why it ended, or could not start, and nothing of ours to protect from it
        words.end(reason_of(error), error)
    words.end("normal")


async def _awaited(result: Any) -> Any:
    return await result


def _load(start: str) -> Callable[..., Any]:
    module, _, attribute = start.partition(":")
    found: Any = importlib.import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    if hasattr(found, "supervisor_kind"):
        raise TypeError(f"{start} is a class of supervisors: its specification needs type='supervisor'")
    if not callable(found):
        raise TypeError(f"{start} is no function: {found!r}")
    function: Callable[..., Any] = found
    return function


def _check_arguments(found: Callable[..., Any], given: dict[str, Any]) -> None:
    """Raise TypeError for arguments that do not fit: that is no start, and no crash either."""
    try:
        signature = inspect.signature(found)
    except ValueError:  # some that are written in C have none
        return
    signature.bind(*given["args"], **given["kwargs"])


def _end_with_supervisor(read_fd: int) -> None:
    """Have the kernel signal this process when the supervisor's end of the pipe closes, which it does in its death.

    The guard kills what a dead supervisor leaves; this is for the case that both are gone. Only once it is known that
    nothing more will come through the pipe: every frame would be such a signal.
    """
    fcntl.fcntl(read_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(read_fd, fcntl.F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(read_fd, fcntl.F_SETFL, fcntl.fcntl(read_fd, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(read_fd, 0)
    if poll.poll(0):  # it closed before, and the kernel tells only what is to come
        signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
