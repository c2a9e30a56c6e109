"""Where the JSONL store's files are, which it refuses, and what holds between processes: kills, locks, full disks."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from athena.errors import LogLocked, StoreError
from athena.stores.base import Damage
from athena.stores.files import lock_holder, network_file_system
from athena.stores.jsonl import JsonlLog, JsonlStore
from athena.testing.store_contract import append_events

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def store(tmp_path: Path) -> JsonlStore:
    return JsonlStore(tmp_path)


@pytest.fixture
def log(store: JsonlStore) -> Iterator[JsonlLog]:
    log = store.open("a")
    yield log
    log.close()


def make_link(path: Path) -> None:
    path.with_name("target").write_bytes(b"")
    path.symlink_to("target")


@pytest.mark.parametrize("make", [make_link, os.mkfifo, Path.mkdir], ids=["link", "fifo", "directory"])
def test_what_is_no_regular_file_is_refused(store: JsonlStore, make: Callable[[Path], None]) -> None:
    make(store.path("a"))
    with pytest.raises(StoreError, match=r"a\.jsonl"):
        store.open("a")
    with pytest.raises(StoreError, match=r"a\.jsonl"):
        list(store.read("a"))
    with pytest.raises(StoreError, match=r"a\.jsonl"):
        store.tail("a", 1)
    assert store.list() == []


def test_a_root_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        JsonlStore(tmp_path / "file").open("a")
    with pytest.raises(StoreError, match="file"):
        JsonlStore(tmp_path / "file" / "sub").open("a")


def test_files_that_are_no_logs_are_not_listed(store: JsonlStore) -> None:
    for name in ("b.jsonl", "a.torn-1", "a b.jsonl", ".jsonl", "c.json", "d.jsonl.bak", "é.jsonl"):
        (store.root / name).touch()
    assert store.list() == ["b"]


def test_a_removed_log_is_made_anew_and_not_confused_with_the_old(store: JsonlStore, log: JsonlLog) -> None:
    append_events(log, 2)
    store.path("a").unlink()
    fresh = store.open("a")
    assert fresh.last_seq == 0
    fresh.close()


def test_a_log_removed_while_we_lock_it_is_made_anew(store: JsonlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock
    calls: list[int] = []

    def remove_first(fd: int, operation: int) -> None:
        if not calls:
            store.path("a").unlink()
        calls.append(fd)
        flock(fd, operation)

    monkeypatch.setattr("athena.stores.files.fcntl.flock", remove_first)
    log = store.open("a")
    events = append_events(log, 1)
    assert list(store.read("a")) == events
    assert len(calls) == 2
    log.close()


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "fuse.s3fs", "smb3", "ceph"])
def test_a_network_file_system_is_refused_unless_allowed(tmp_path: Path, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:9 / {tmp_path} rw shared:1 - {kind} server:/x rw\n")
    with pytest.raises(StoreError, match=kind):
        JsonlStore(tmp_path / "logs", mounts=mounts).open("a")
    JsonlStore(tmp_path / "logs", mounts=mounts, allow_network=True).open("a").close()


def test_the_deepest_and_latest_mount_decides(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    rows = [
        "1 0 8:1 / / rw - nfs x rw",
        "2 1 8:1 / /srv rw - ext4 x rw",
        "3 2 8:1 / /srv/my\\040logs rw - ext4 x rw",
        "4 2 8:1 / /srv/my\\040logs rw - cifs x rw",
        "5 1 8:1 / /enc rw - fuse.gocryptfs x rw",
    ]
    mounts.write_text("\n".join(rows))
    paths = ("/home", "/srvx", "/srv/a", "/srv/my logs", "/srv/my logs/b", "/enc/c")
    assert [network_file_system(Path(p), mounts) for p in paths] == ["nfs", "nfs", None, "cifs", "cifs", None]
    assert network_file_system(Path("/srv"), tmp_path / "none") is None


def test_the_holder_of_a_lock_is_read_from_the_kernels_table(tmp_path: Path) -> None:
    file, table = tmp_path / "file", tmp_path / "locks"
    file.touch()
    fd = os.open(file, os.O_RDONLY)
    info = os.fstat(fd)
    place = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    table.write_text(
        f"1: POSIX  ADVISORY  WRITE 11 {place} 0 EOF\n2: FLOCK  ADVISORY  WRITE 4242 {place} 0 EOF\n3: bad\n"
    )
    assert lock_holder(fd, table) == 4242
    table.write_text("")
    assert lock_holder(fd, table) is None
    assert lock_holder(fd, tmp_path / "none") is None
    os.close(fd)


# --- other processes ------------------------------------------------------------------------------------------------

WRITER = """
import os, sys
from athena.events import encode
from athena.stores.jsonl import JsonlStore
log = JsonlStore(sys.argv[1]).open("a")
while True:
    seq = log.last_seq + 1
    log.append(encode(seq, "tool_result", {"text": "x" * (300_000 if seq % 3 == 0 else 100)}))
    os.write(1, b"%d\\n" % seq)
"""

HOLDER = """
import os, subprocess, sys, time
from athena.stores.jsonl import JsonlStore
log = JsonlStore(sys.argv[1]).open("a")
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(60)
else:
    child = subprocess.Popen(["sleep", "60"], close_fds=False).pid
    os.write(1, b"%d\\n" % child)
time.sleep(60)
"""

FULL_DISK = """
import errno, os, resource, sys
from athena.errors import DiskError
from athena.stores.jsonl import JsonlStore
from athena.testing.store_contract import append_events
how, root = sys.argv[1:]
store = JsonlStore(root)
ballast = os.path.join(root, "ballast")
if how == "tmpfs":
    assert os.system(f"mount -t tmpfs -o size=256k none {root}") == 0
    with open(ballast, "wb") as file:
        file.write(bytes(128 * 1024))
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
log = store.open("a")
events = []
for attempt in range(3):
    try:
        while True:
            events += append_events(log, 1, text="x" * 3000)
    except DiskError as error:
        assert error.errno == (errno.ENOSPC if how == "tmpfs" else errno.EFBIG), error.errno
    assert len(events) > 5
    assert store.path("a").read_bytes() == b"".join(e.line + b"\\n" for e in events)
if how == "tmpfs":
    os.unlink(ballast)
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
events += append_events(log, 2, text="space again")
log.sync()
log.close()
log = store.open("a")
assert list(log.read()) == events
assert not log.damage.bad_lines and not log.damage.torn_bytes
print("whole")
"""

NEW_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]
"""Lets an ordinary user mount a small disk that ends with the process, where the system allows it."""


def python(script: str, *args: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    command = [*prefix, sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})


def can_mount() -> bool:
    try:
        probe = [*NEW_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(probe, capture_output=True, timeout=10).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("how", ["rlimit", *(["tmpfs"] if can_mount() else [])])
def test_a_full_disk_is_loud_and_costs_nothing_that_was_recorded(tmp_path: Path, how: str) -> None:
    process = python(FULL_DISK, how, tmp_path, prefix=tuple(NEW_MOUNTS) if how == "tmpfs" else ())
    output, _ = process.communicate(timeout=30)
    assert (output, process.returncode) == (b"whole\n", 0)


@pytest.mark.slow
def test_every_acknowledged_event_outlives_kill_9(store: JsonlStore) -> None:
    acknowledged = 0
    for _ in range(8):
        writer = python(WRITER, store.root)
        assert writer.stdout is not None
        for _ in range(random.randrange(1, 60)):
            acknowledged = int(writer.stdout.readline())
        writer.kill()
        acknowledged = int(([b"%d" % acknowledged, *writer.stdout.read().split()])[-1])
        writer.wait()
        writer.stdout.close()
        log = store.open("a")
        found = [event.seq for event in log.read()]
        assert found == list(range(1, len(found) + 1))
        assert acknowledged <= len(found) <= acknowledged + 1
        assert log.damage.bad_lines == 0
        log.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "exec"])
def test_the_lock_ends_with_its_holder_whatever_the_holder_started(store: JsonlStore, how: str) -> None:
    holder = python(HOLDER, store.root, how)
    assert holder.stdout is not None
    orphan = int(holder.stdout.readline())
    try:
        with pytest.raises(LogLocked) as caught:
            store.open("a")
        assert caught.value.pid in (holder.pid, None)
        assert str(store.path("a")) in str(caught.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(orphan, 0)  # it lives, and does not hold the lock
        store.open("a").close()
    finally:
        holder.kill()
        os.kill(orphan, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()


@pytest.mark.slow
def test_of_many_processes_one_becomes_the_writer(store: JsonlStore) -> None:
    race = """
import sys
from athena.errors import LogLocked
from athena.stores.jsonl import JsonlStore
sys.stdin.read(1)
try:
    log = JsonlStore(sys.argv[1]).open("a")
    print("won", flush=True)
except LogLocked:
    print("lost", flush=True)
sys.stdin.read(1)
"""
    command = [sys.executable, "-c", race, str(store.root)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    racers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) for _ in range(4)]
    outcomes = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(b"g")
        racer.stdin.flush()
    for racer in racers:
        assert racer.stdout is not None
        outcomes.append(racer.stdout.readline().strip())
    for racer in racers:
        racer.communicate(timeout=10)
    assert sorted(outcomes) == [b"lost", b"lost", b"lost", b"won"]
    log = store.open("a")
    assert log.damage == Damage()
    log.close()
