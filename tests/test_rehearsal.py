"""The zygote's rehearsal: it runs whole turns, and leaves the process as it was."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from athena import rehearsal
from athena.runner import Runner


def _process() -> tuple[Path, dict[str, str], int]:
    """What a child inherits: a fork needs a single thread."""
    return Path.cwd(), dict(os.environ), len(os.listdir("/proc/self/task"))


async def test_it_runs_whole_turns_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    results = []
    turn = rehearsal._turn

    async def watched(runner: Runner, message_id: str, engine: asyncio.Task[None]) -> None:
        await turn(runner, message_id, engine)
        results.append(await runner.result_of(message_id))

    monkeypatch.setattr(rehearsal, "_turn", watched)
    before = _process()
    await rehearsal.rehearse()
    ended = [(r.finish_reason, r.text, r.tool_calls_made) for r in results if r is not None]
    assert ended == [("stop", "done", 1)] * rehearsal.TURNS
    assert _process() == before
    assert list(tmp_path.iterdir()) == []


async def test_what_fails_in_it_costs_only_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(url: str, folder: str) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(rehearsal, "_turns", broken)
    await rehearsal.rehearse()
    assert "broken on purpose" in capsys.readouterr().err


async def test_a_machine_without_loopback_only_starts_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(address: object) -> socket.socket:
        raise OSError("no loopback")

    monkeypatch.setattr(socket, "create_server", refused)
    await rehearsal.rehearse()


def test_what_killed_zygotes_have_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = tmp_path / f"{rehearsal.PREFIX}{dead.pid}-x"
    link = tmp_path / f"{rehearsal.PREFIX}{dead.pid}-link"
    kept = [tmp_path / name for name in (f"{rehearsal.PREFIX}{os.getpid()}-x", f"{rehearsal.PREFIX}no-pid", "another")]
    for folder in (gone, *kept):
        folder.mkdir()
        (folder / "notes.txt").touch()
    link.symlink_to(kept[-1])
    rehearsal.sweep(tmp_path)
    assert not gone.exists()
    assert all((folder / "notes.txt").exists() for folder in kept)
    assert link.is_symlink()
