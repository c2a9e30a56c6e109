"""Logs of every format so far, as frozen in ``data/logs`` by the release that wrote it: they read, fold and go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from athena.events import FORMAT
from athena.loop.state import fold
from athena.stored import resume
from athena.stores.blobs import ref_of, refs_in
from athena.stores.jsonl import JsonlStore
from tests.cli_fixtures import athena
from tests.engine import engine
from tests.log_corpus import DATA, SESSION, TOOLS, folded, make

FORMATS = sorted(path.name for path in DATA.iterdir() if path.is_dir())


@pytest.fixture(params=FORMATS)
def frozen(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[JsonlStore, dict[str, Any]]:
    """A copy of a frozen log, and what it folds to."""
    root = tmp_path / "logs"
    shutil.copytree(DATA / request.param, root)
    expected = json.loads((root / "folds_to.json").read_text(encoding="utf-8"))
    (root / "folds_to.json").unlink()
    return JsonlStore(root), expected


def test_there_is_a_log_of_every_format() -> None:
    assert [f"format{number}" for number in range(1, FORMAT + 1)] == FORMATS


def test_a_frozen_log_folds_to_what_it_folded_to(frozen: tuple[JsonlStore, dict[str, Any]]) -> None:
    store, expected = frozen
    report = store.inspect(SESSION)
    assert (report.is_damaged, report.orphan_blobs) == (False, ())
    assert folded(fold(store.read(SESSION))) == expected


def test_a_frozen_log_is_read_with_what_is_beside_it_and_exported(frozen: tuple[JsonlStore, dict[str, Any]]) -> None:
    store, _ = frozen
    assert any(refs_in(event) for event in store.read(SESSION))
    messages = resume(SESSION, root=store.root)
    assert isinstance(messages, list)
    payloads = [r.ui_payload for m in messages for r in m.tool_results if r.ui_payload]
    assert payloads
    assert not any(ref_of(payload) for payload in payloads)
    for form in ("jsonl", "markdown", "exathena"):
        assert athena("store", "export", SESSION, "--format", form, "--root", str(store.root)).out


async def test_a_frozen_log_goes_on_and_its_bytes_stay(frozen: tuple[JsonlStore, dict[str, Any]]) -> None:
    store, expected = frozen
    before = store.path(SESSION).read_bytes()
    script = ["the first answer of this release"] * 50
    async with engine(script, log=store.open(SESSION), extra_tools=TOOLS) as e:
        for message_id in expected["queue"]:
            assert (await e.result(message_id)).finish_reason == "stop"
        assert (await e.send("new")).finish_reason == "stop"
        for message_id, reason in expected["ended"].items():
            found = await e.runner.result_of(message_id)
            assert found is not None
            assert found.finish_reason == reason
    assert store.path(SESSION).read_bytes().startswith(before)
    assert not store.inspect(SESSION).is_damaged


async def test_what_this_release_writes_now_is_of_the_kinds_that_were_frozen(tmp_path: Path) -> None:
    """If this fails, a kind or a key has changed: raise the format, and freeze a log of the new one."""
    now, then = JsonlStore(tmp_path), JsonlStore(DATA / FORMATS[-1])
    await make(now)

    def shape(store: JsonlStore) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for event in store.read(SESSION):
            found.setdefault(event.event, set()).update(event.data)
        return found

    shapes = shape(now)
    for kind, keys in shape(then).items():
        assert keys <= shapes[kind], f"{kind} has lost {keys - shapes[kind]}"
