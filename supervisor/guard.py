"""The guard: starts the supervisor, waits for its end, and leaves nothing behind (design, section 3).

    python -I -S supervisor/guard.py [--detach] [--rmdir DIR] [--socket PATH] [--fds 5,6] -- ARGV...

It is a subreaper above everything that the supervisor starts, so whatever survives the supervisor becomes its child. It
kills all of that through pidfds until nothing is left, removes the socket, and exits as the supervisor did (128+n for
signal n). It holds no state, opens nothing and parses nothing while it waits, so that it has no reason to fail. It can
be PID 1 of a container.

Run by file path and without site-packages: standard library and :mod:`athena.proctree` only. The other half, for the
supervisor, is :func:`watch_guard`.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    import asyncio

GUARD_VARIABLE = "ATHENA_GUARD_PID"
"""Set for the supervisor, which so can tell a guard that died before it looked from a parent that never was one."""

CLEANUP_LIMIT_S = 10.0
"""How long the guard goes on killing. Only a process in uninterruptible sleep, or one of another user, lasts longer."""

ORPHAN_POLL_MS = 1000
"""As PID 1 the guard adopts what is not below the supervisor (``docker exec``); without SIGCHLD it has to look."""

USAGE = "usage: guard.py [--detach] [--rmdir DIR] [--socket PATH] [--fds N,N...] -- ARGV..."


class Options(NamedTuple):
    """The command line: ``fds`` are the descriptors, besides 0-2, that the supervisor inherits."""

    argv: list[str]
    socket_path: str | None
    fds: list[int]
    detach: bool
    directory: str | None


def main(arguments: Sequence[str]) -> NoReturn:
    """Guard one supervisor from its start to its end; exits with its status."""
    # By path, not by name: with -I and -S nothing but the standard library is on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from athena import proctree

    options = parse(arguments)
    if options.detach and os.fork():
        os._exit(0)  # the starter reaps this half at once; the guard is nobody's child but init's
    proctree.become_subreaper()
    try:
        os.setsid()
    except PermissionError:
        pass  # already a leader: started so, or PID 1
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Held back until there is somebody to pass it on to: by its default it would end the guard alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pid, pidfd = start_supervisor(options)
    signal.signal(signal.SIGTERM, lambda *_: proctree.send_signal(pidfd, signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    status = wait_for_end(pid, pidfd)
    proctree.kill_descendants(limit_s=CLEANUP_LIMIT_S)
    if options.socket_path is not None:
        remove_socket(options.socket_path)
    if options.directory is not None:
        try:
            os.rmdir(options.directory)
        except OSError:
            pass  # something else is in it, or it went with its program
    os._exit(status)


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line. Raises SystemExit with the usage."""
    socket_path: str | None = None
    fds: list[int] = []
    detach = False
    directory: str | None = None
    left = list(arguments)
    while left:
        match left.pop(0):
            case "--" if left:
                return Options(left, socket_path, fds, detach, directory)
            case "--socket" if left:
                socket_path = left.pop(0)
            case "--rmdir" if left:
                directory = left.pop(0)
            case "--detach":
                detach = True
            case "--fds" if left:
                fds = [int(number) for number in left.pop(0).split(",")]
            case _:
                break
    raise SystemExit(USAGE)


def start_supervisor(options: Options) -> tuple[int, int]:
    """Start it with default signals and the descriptors it was promised; its pid and pidfd.

    The guard then closes its own copies: a ready pipe or a lock must end with the supervisor. Raises OSError.
    """
    low = 3
    for fd in [*sorted(options.fds), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(low, fd)
        low = fd + 1
    for fd in options.fds:
        os.set_inheritable(fd, True)
    pid = os.posix_spawnp(
        options.argv[0],
        options.argv,
        os.environ | {GUARD_VARIABLE: str(os.getpid())},
        setsigmask=(),
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )
    pidfd = os.pidfd_open(pid)
    for fd in options.fds:
        os.close(fd)
    return pid, pidfd


def wait_for_end(pid: int, pidfd: int) -> int:
    """Wait for the supervisor and reap it; the exit status to pass on.

    While it lives it adopts all orphans below it, so the guard has nothing to do; as PID 1 it adopts strangers.
    """
    timeout_ms = ORPHAN_POLL_MS if os.getpid() == 1 else None
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll(timeout_ms):
        reap_orphans(pid)
    ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert ended is not None, "waitid returns nothing only with WNOHANG"
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status


def reap_orphans(supervisor_pid: int) -> None:
    """Reap children that have ended, one known pid at a time, and never the supervisor."""
    from athena import proctree

    for child in proctree.children_of(os.getpid()):
        if child != supervisor_pid:
            try:
                os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                pass  # listed, and reaped since


def remove_socket(path: str) -> None:
    """Remove the dead supervisor's socket; one that somebody answers at belongs to another supervisor and stays."""
    import socket  # only here: it would double what the guard has to load before it can start the supervisor

    try:
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            refused = probe.connect_ex(path) == errno.ECONNREFUSED
        if refused and os.path.samestat(os.lstat(path), found):  # not replaced by a supervisor that has just started
            os.unlink(path)
    except OSError:
        pass  # not there, or a listener too busy to accept


def watch_guard(
    loop: asyncio.AbstractEventLoop, on_death: Callable[[], None], *, environ: dict[str, str] | os._Environ[str]
) -> Callable[[], None] | None:
    """Call `on_death` once when the guard that started this process has died: the supervisor then stops in order.

    Returns what ends the watch, or ``None`` if this process has no guard. The variable that names the guard is taken
    out of `environ`, so that nothing below mistakes itself for guarded.
    """
    named = environ.pop(GUARD_VARIABLE, None)
    if named is None:
        return None
    guard_pid = int(named)
    try:
        pidfd = os.pidfd_open(guard_pid)
    except ProcessLookupError:
        pidfd = -1
    # Asked after the open: if the guard is still our parent now, its number was its own when the pidfd was made.
    if os.getppid() != guard_pid or pidfd < 0:
        if pidfd >= 0:
            os.close(pidfd)
        loop.call_soon(on_death)
        return lambda: None
    is_open = True

    def stop() -> None:
        nonlocal is_open
        if is_open:
            is_open = False
            loop.remove_reader(pidfd)
            os.close(pidfd)

    def died() -> None:
        stop()
        on_death()

    loop.add_reader(pidfd, died)
    return stop


if __name__ == "__main__":
    main(sys.argv[1:])
