"""The zygote: a preloaded, single-threaded process that forks session children (design, section 3).

It is exec'd by the supervisor as ``python -P -m athena.zygote --fd N`` with a scrubbed environment. It has imported
what a child needs and nothing of the user's, has rehearsed a turn, and then serves its
control socket (``SOCK_SEQPACKET``), one request a packet:

    request  {"id", "cookie", "cwd", "entry"}    + descriptors: child's read end, child's write end, log
    reply    {"id", "pid", "start_time"}         + descriptor: pidfd
          or {"id", "error"}

The rule that binds this file: **a reply is sent only after the intermediate process is reaped.** From then on the child
is the supervisor's own (the supervisor is a subreaper), so its exit status cannot be lost however early it dies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import pkgutil
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import NoReturn

from athena import proctree
from athena.environment import COOKIE_VARIABLE

PRELOAD = (
    "asyncio.subprocess",
    "concurrent.futures.thread",
    "uvloop",
    "orjson",
    "pydantic",
    "psutil",
    "httpx",
    "httpx_sse",
    "athena.child",
    "athena.function_child",
    "athena.init_child",
    "athena.server_child",
    "athena.runner",
    "athena.channel",
    "athena.permissions",
    "athena.hooks",
    "athena.memory",
    "athena.skills",
    "athena.agents",
    "athena.checkpoints",
    "athena.structured",
    "athena.loop.*",
    "athena.providers.*",
    "athena.tools.*",
    "athena.stores.*",
    "athena.compaction.*",
)
"""What a child finds imported; ``package.*`` is a package and each of its modules. A name that is not installed is
skipped (uvloop is optional); one that is there and fails to import ends the zygote."""

COOKIE_MAX_CHARS = 64
"""Room kept for the cookie in the zygote's environment: each child writes its own over it, in place."""

MAX_REQUEST_BYTES = 64 * 1024


def main() -> NoReturn:
    """The entry of ``python -m athena.zygote``. Serves until the control socket ends, then exits with 0."""
    parser = argparse.ArgumentParser(prog="athena.zygote")
    parser.add_argument("--fd", type=int, required=True, help="the control socket")
    parser.add_argument("--entry", default="athena.child:main", help="module:function(read_fd, write_fd) of a child")
    parser.add_argument("--preload", default=None, help="comma separated names instead of the built-in list")
    options = parser.parse_args()
    control = socket.socket(fileno=options.fd)
    control.set_inheritable(False)
    preload(PRELOAD if options.preload is None else [name for name in options.preload.split(",") if name])
    entry = load_entry(options.entry)
    settle()
    control.send(json.dumps({"ready": os.getpid(), "athena": os.path.dirname(os.path.abspath(__file__))}).encode())
    Server(control, entry).serve()
    os._exit(0)


def preload(names: Iterable[str]) -> None:
    """Import `names` and, if the child's own module is among them, rehearse what a child does."""
    for name in names:
        package = name.removesuffix(".*")
        if not _is_installed(package):
            continue
        module = importlib.import_module(package)
        if name.endswith(".*"):
            for found in pkgutil.iter_modules(module.__path__, package + "."):
                importlib.import_module(found.name)
    if "athena.child" in sys.modules:
        warm_up()


def warm_up() -> None:
    """Make what all children share, and rehearse a turn in a throw-away event loop of the kind a child uses.

    A TLS context made here is shared by all children (``athena.providers.http`` keeps it): making one costs 28 ms.
    """
    http = importlib.import_module("athena.providers.http")
    http.tls_context()
    factory = importlib.import_module("uvloop").new_event_loop if _is_installed("uvloop") else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(importlib.import_module("athena.rehearsal").rehearse())


def settle() -> None:
    """Bring the process into the state that children inherit: one thread, line-buffered output, frozen heap.

    Signals need nothing: the launcher's spawn put mask and dispositions to their defaults, and no import changes them.
    Raises RuntimeError if an import has started a thread.
    """
    check_threads()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # they are TextIOWrapper here
    gc.collect()
    gc.freeze()  # a collection in a child would otherwise write to, and so copy, every page that holds objects


def load_entry(name: str) -> Entry:
    """What ``module:function`` names."""
    module, _, function = name.partition(":")
    entry: Entry = getattr(importlib.import_module(module), function)
    return entry


def check_threads() -> None:
    """Raise RuntimeError if there is more than one thread: a lock that another one holds stays locked in a child."""
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise RuntimeError(f"the zygote has {threads} threads and forks only with one")


Reply = dict[str, object]
Entry = Callable[[int, int], object]


class Server:
    """Answers requests, one at a time: a fork is the whole of the work."""

    def __init__(self, control: socket.socket, entry: Entry) -> None:
        self._control = control
        self._entry = entry
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._cookie_at = find_cookie()

    def serve(self) -> None:
        """Until the supervisor closes its end."""
        with self._near, self._far:
            while True:
                data, fds, _, _ = socket.recv_fds(self._control, MAX_REQUEST_BYTES, 3, socket.MSG_CMSG_CLOEXEC)
                if not data:
                    return
                request = json.loads(data)
                passed: list[int] = []
                try:
                    reply, passed = self._fork(request, fds)
                except (OSError, RuntimeError) as error:
                    reply = {"error": str(error)}
                try:
                    socket.send_fds(self._control, [json.dumps({"id": request["id"], **reply}).encode()], passed)
                except (BrokenPipeError, ConnectionResetError):
                    return  # the supervisor is gone; the child sees the end of its pipe by itself
                for fd in (*fds, *passed):
                    os.close(fd)

    def _fork(self, request: dict[str, object], fds: list[int]) -> tuple[Reply, list[int]]:
        """Fork twice and reap the one in the middle. Raises OSError or RuntimeError with nothing left behind."""
        if len(fds) != 3:
            raise RuntimeError(f"a request carries three descriptors, not {len(fds)}")
        check_threads()
        middle = os.fork()
        if middle == 0:
            self._run_middle(request, fds)
        os.waitpid(middle, 0)
        flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        try:
            data, passed, _, _ = socket.recv_fds(self._near, MAX_REQUEST_BYTES, 1, flags)
        except BlockingIOError:
            raise RuntimeError("the intermediate process died before it could fork") from None
        return json.loads(data), passed

    def _run_middle(self, request: dict[str, object], fds: list[int]) -> NoReturn:
        """Fork the child and describe it. Its pidfd is opened here, where no one else can have reaped it yet.

        The order makes a lost launch findable at every moment: when the zygote is killed, its group dies with it; what
        has left the group has its cookie already, also the child that has yet to run. And a child that was answered
        for is never in the zygote's group, so it outlives the zygote.
        """
        try:
            _write_cookie(self._cookie_at, str(request["cookie"]))
            os.setsid()
            pid = os.fork()
            if pid == 0:
                self._run_child(request, fds)
            pidfd = os.pidfd_open(pid)
            row = proctree.stat(pid)
            assert row is not None, "a child that nobody has reaped has a row"
            reply: Reply = {"pid": pid, "start_time": row.starttime}
            socket.send_fds(self._far, [json.dumps(reply).encode()], [pidfd])
        except OSError as error:
            self._far.send(json.dumps({"error": f"fork: {error}"}).encode())
        finally:
            os._exit(0)  # whatever happened: two processes must never serve one socket

    def _run_child(self, request: dict[str, object], fds: list[int]) -> NoReturn:
        """Become a session child and never come back, whatever the entry does."""
        code = 1
        try:
            os.setsid()
            proctree.become_subreaper()
            read_fd, write_fd = _arrange_descriptors(*fds)
            os.chdir(str(request.get("cwd") or "/"))
            entry = load_entry(str(request["entry"])) if request.get("entry") else self._entry
            entry(read_fd, write_fd)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code & 0xFF)


def _arrange_descriptors(read_fd: int, write_fd: int, log_fd: int) -> tuple[int, int]:
    """Stdin is empty, stdout and stderr are the log, the pipe ends stay, all else (the control socket!) is closed."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    low, high = sorted((read_fd, write_fd))
    os.closerange(3, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, os.sysconf("SC_OPEN_MAX"))
    return read_fd, write_fd


def find_cookie() -> int | None:
    """The address of the cookie's value in the memory that ``/proc/self/environ`` shows, or ``None`` without one.

    A forked process shows its parent's environment there for ever; a helper that a tool library forks would carry no
    mark of its session. So each child writes its cookie over the placeholder it inherited.
    """
    with open("/proc/self/environ", "rb") as file:
        environment = file.read()
    with open("/proc/self/stat", "rb") as file:
        environment_start = int(file.read().rpartition(b")")[2].split()[47])  # field 50, env_start: see proc(5)
    key = f"{COOKIE_VARIABLE}=".encode()
    offset = 0
    for item in environment.split(b"\0"):
        if item.startswith(key) and len(item) == len(key) + COOKIE_MAX_CHARS:
            return environment_start + offset + len(key)
        offset += len(item) + 1
    return None


def _write_cookie(address: int | None, cookie: str) -> None:
    os.environ[COOKIE_VARIABLE] = cookie  # for what the child execs with the environment it has
    if address is not None:
        ctypes.memmove(address, cookie.encode().ljust(COOKIE_MAX_CHARS, b"\0"), COOKIE_MAX_CHARS)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its package is not there either
        return False


if __name__ == "__main__":
    main()
