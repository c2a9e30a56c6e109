"""What the process tests launch: a child that obeys one-line commands, and tools that do their best to survive.

Run by the zygote as an entry (``tests.process_children:serve``), by the plain launcher as a module, and by the guard
tests as a supervisor.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from athena import proctree


def exit_seven(read_fd: int, write_fd: int) -> NoReturn:
    """A child that is gone before anybody can look at it."""
    os._exit(7)


def serve(read_fd: int, write_fd: int) -> NoReturn:
    """Say ready, then answer one JSON line for each command line; end with 0 at the end of the pipe."""
    send = _sender(write_fd)
    send("ready")
    with open(read_fd, "rb", buffering=0) as commands:
        for line in commands:
            name, *arguments = line.decode().split()
            send(COMMANDS[name](*arguments))
    os._exit(0)


def describe() -> dict[str, object]:
    """What the launcher promises about a child, as the child sees it."""
    fds = {}
    for fd in sorted(int(name) for name in os.listdir("/proc/self/fd")):
        try:
            fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            pass  # the listing's own descriptor
    return {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "sid": os.getsid(0),
        "pgid": os.getpgid(0),
        "subreaper": proctree.is_subreaper(),
        "cwd": os.getcwd(),
        "fds": fds,
        "cookie": proctree.read_environ(os.getpid()).get("ATHENA_COOKIE"),
        "environ": dict(os.environ),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "time": time.time(),
    }


def spawn_tools() -> list[int]:
    """Tools that left the group and ignore SIGTERM: forked or exec'd, one frozen; one ordinary one. Their pids."""
    return [
        _double_fork(_wait_for_ever),
        _double_fork(_freeze),
        _double_fork(lambda: os.execvp("sleep", ["sleep", "1000"])),
        subprocess.Popen(["sleep", "1000"]).pid,
    ]


def spawn_unmarked() -> list[int]:
    """A tool that has shed every mark: other session, empty environment, parent gone."""
    return [_double_fork(lambda: os.execve("/bin/sleep", ["sleep", "1000"], {}))]


def leave_orphan() -> list[int]:
    """A tool that ends by itself as soon as its parent has gone."""
    return [_double_fork(_wait_for_new_parent)]


def die(signum: str) -> None:
    """Die of a signal."""
    os.kill(os.getpid(), int(signum))


COMMANDS: dict[str, Callable[..., object]] = {
    "describe": describe,
    "tools": spawn_tools,
    "unmarked": spawn_unmarked,
    "orphan": leave_orphan,
    "die": die,
    "exit": lambda code: os._exit(int(code)),
    "print": print,
}


def _sender(fd: int) -> Callable[[object], None]:
    return lambda value: (os.write(fd, json.dumps(value).encode() + b"\n"), None)[1]


def _double_fork(body: Callable[[], object]) -> int:
    read_fd, write_fd = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if (pid := os.fork()) != 0:
            os.write(write_fd, str(pid).encode())
            os._exit(0)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        body()
        os._exit(1)
    os.waitpid(middle, 0)
    os.close(write_fd)
    with open(read_fd) as file:
        return int(os.read(file.fileno(), 20))  # not to the end of the pipe: the tool holds it open


def _wait_for_ever() -> None:
    while True:
        signal.pause()


def _freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    _wait_for_ever()


def _wait_for_new_parent() -> None:
    before = os.getppid()
    while os.getppid() == before:
        time.sleep(0.002)
    os._exit(0)


def supervise(socket_path: str, report_path: str) -> None:
    """Stand in for a supervisor under a guard: listen, spawn tools, report, and stop in order when the guard dies."""
    import socket

    from supervisor.guard import watch_guard

    async def run() -> None:
        proctree.become_subreaper()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, os._exit, 5)
        watch_guard(loop, stop.set, environ=os.environ)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(socket_path)
            listener.listen()
            fds = sorted(int(name) for name in os.listdir("/proc/self/fd"))
            report = {"pid": os.getpid(), "guard": os.getppid(), "tools": spawn_tools(), "fds": fds}
            with open(report_path + ".new", "w") as file:
                json.dump(report, file)
            os.replace(report_path + ".new", report_path)
            await stop.wait()
        os.unlink(socket_path)
        proctree.kill_descendants()

    asyncio.run(run())


if __name__ == "__main__":
    if sys.argv[1] == "supervise":
        supervise(*sys.argv[2:])
    else:
        serve(int(sys.argv[1]), int(sys.argv[2]))
