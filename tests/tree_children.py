"""Children of the supervision trees of the tests. Each obeys what is written into its order file."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

POLL_S = 0.005


def serve(directory: str, name: str, *more: Any, deaf: bool = False, linger_s: float | None = None) -> None:
    """Note the start, then obey: ``stop`` (return), ``die`` (raise), ``exit N``, ``kill``, ``segfault``.

    ``deaf`` ignores SIGTERM; ``linger_s`` takes so long to obey it, and notes the end. An order counts once.
    """

    def leave(*_: object) -> None:
        time.sleep(linger_s or 0)
        note(directory, f"end {name}")
        sys.exit(0)

    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif linger_s is not None:
        signal.signal(signal.SIGTERM, leave)
    note(directory, f"start {name} {os.getpid()} {' '.join(map(str, more))}".rstrip())
    order = Path(directory) / f"{name}.order"
    while not order.exists():
        time.sleep(POLL_S)
    words = order.read_text().split()
    order.unlink()
    match words:
        case ["die"]:
            raise RuntimeError("died")
        case ["exit", status]:
            sys.exit(int(status))
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["segfault"]:
            os.kill(os.getpid(), signal.SIGSEGV)


async def serve_async(directory: str, name: str) -> None:
    """The same as a coroutine."""
    await asyncio.sleep(0)
    await asyncio.to_thread(serve, directory, name)


def serve_with_orphans(directory: str, name: str) -> None:
    """Leave the group twice over, with processes that ignore SIGTERM, and serve."""
    tool = f'trap "" TERM HUP; echo tool $$ >> {directory}/log; while :; do sleep 1000; done'
    for _ in range(2):
        subprocess.Popen(["sh", "-c", f"setsid sh -c '{tool}' &"])
    serve(directory, name)


def tell(directory: str, name: str) -> None:
    """Note what the process was given, and return."""
    note(directory, f"{name} env={os.environ.get('MARK')} cwd={os.getcwd()}")
    print("said to stdout", flush=True)


def thread_dies(directory: str, name: str) -> None:
    """Wait for ever while another thread fails."""
    import threading

    threading.Thread(target=lambda: 1 / 0).start()
    time.sleep(1000)


def note(directory: str, text: str) -> None:
    """Append one line to the log of all."""
    with open(Path(directory) / "log", "a") as file:
        file.write(text + "\n")
