"""A key that a session was given is nowhere but with its provider: not on disk, not in /proc, not in any text."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from athena import AthenaError, Session, aquery, proctree
from athena.config import default_paths
from athena.errors import InvalidOption
from athena.supervisors import EmbeddedSupervisor
from athena.testing import FakeOpenAI
from tests.house import leftovers
from tests.session_fixtures import own_supervisor as own_supervisor
from tests.session_fixtures import supervisor_pid

CANARY = "sk-canary-7f3c9a51d2e84b60"
OTHER = "ghp-canary-5b1e77aa90cd4f32"

LOOK = (
    "env; cat /proc/self/environ; tr '\\0' '\\n' < /proc/$PPID/environ; "
    "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -a {mark}; "
    "cat key.txt; echo \"again: $(cat key.txt)\"; tr '\\0' ' ' < /proc/$PPID/cmdline"
)


def look_steps(mark: str) -> list[Any]:
    """A model that has a tool look wherever a key could be, and reads the file that has it."""
    command = LOOK.format(mark=mark)
    return [
        {"tool_calls": [{"name": "bash", "arguments": {"command": command}}]},
        {"tool_calls": [{"name": "read", "arguments": {"path": "key.txt"}},
                        {"name": "grep", "arguments": {"pattern": "canary"}}]},
        "done",
        {"error": {"kind": "unauthorized", "status": 401, "message": f"bad key {CANARY}"}, "status": 401},
    ]  # fmt: skip


@pytest.fixture
def endpoint() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(look_steps("canary"), api_key=CANARY).in_thread() as fake:
        yield fake


@pytest.fixture
def careless() -> Iterator[int]:
    """Another process of this user that has the key in its environment, where any tool can read it; its pid."""
    with subprocess.Popen(["sleep", "1000"], env={"PATH": os.environ["PATH"], "LEAKED": CANARY}) as process:
        yield process.pid
        process.kill()


def files_with(root: Path, *needles: str) -> list[str]:
    """The files below ``root`` that hold one of these texts."""
    found = []
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [f"{path.relative_to(root)}: {n}" for n in needles if n.encode() in data]
    return found


def processes_with(roots: tuple[Path, ...], *needles: str, but: int = 0) -> list[str]:
    """Our processes, ``but`` left out, in whose command line or environment one of these texts is."""
    found = []
    for left in leftovers(roots):
        if left.pid == but:
            continue
        for name in ("cmdline", "environ"):
            try:
                data = Path(f"/proc/{left.pid}/{name}").read_bytes()
            except OSError:
                continue  # it has just ended
            found += [f"{left.command} has {n} in its {name}" for n in needles if n.encode() in data]
    return found


@pytest.mark.parametrize("given_by", ["environment", "option", "header"])
def test_the_key_is_nowhere(
    given_by: str, endpoint: FakeOpenAI, own_supervisor: EmbeddedSupervisor, home: Path, tmp_path: Path,
    roots: tuple[Path, ...], careless: int,
) -> None:  # fmt: skip
    (tmp_path / "key.txt").write_text(f"OPENAI_API_KEY={CANARY}\n")
    env = {"PATH": os.environ["PATH"], "MY_GITHUB_TOKEN": OTHER, "HARMLESS": f"x-{CANARY}", "SHOWN": "yes-shown"}
    given: dict[str, Any] = {"env": env}
    if given_by == "environment":
        given["env"] = {**env, "OPENAI_API_KEY": CANARY}
    elif given_by == "option":
        given["api_key"] = CANARY
    else:
        given["extra_headers"] = {"Authorization": f"Bearer {CANARY}"}
    with Session.start_link(
        supervisor=own_supervisor, provider="openai_compatible", base_url=endpoint.api_url, model="fake",
        phase="trusted", cwd=tmp_path, tools=["bash", "read", "grep"], **given,
    ) as session:  # fmt: skip
        result = session.send_message("look around")
        assert (result.text, result.tool_calls_made) == ("done", 3), result
        texts = [r.content for m in result.messages for r in m.tool_results]
        assert "SHOWN=yes-shown" in texts[0]  # the tool did see its environment
        assert "HARMLESS" not in texts[0]
        assert "MY_GITHUB_TOKEN" not in texts[0]
        assert all("[redacted:" in text for text in texts)
        assert "LEAKED=[redacted:" in texts[0]  # it did find what others leave lying about
        refused = session.send_message("once more")
        assert refused.finish_reason == "error_provider_auth"
        pids = [supervisor_pid(own_supervisor), int(session.pid or 0)]
        row = proctree.stat(pids[0])
        assert row is not None
        pids.append(row.ppid)  # the guard
        seen = {left.pid for left in leftovers(roots)}
        assert set(pids) <= seen
        shown = [repr(result), repr(refused), repr(session), repr(session.status()), repr(Session.list())]
        shown += [repr(session.messages()), orjson.dumps(refused.to_map()).decode(), repr(session.queue())]
        assert not [text for text in shown if CANARY in text or OTHER in text]
        assert processes_with(roots, CANARY, OTHER, but=careless) == []
        assert files_with(home, CANARY, OTHER) == []
    assert files_with(default_paths().state, CANARY, OTHER) == []
    assert any(CANARY in r.headers.get("authorization", "") for r in endpoint.requests)
    sent = orjson.dumps([r.json for r in endpoint.requests]).decode()
    assert CANARY not in sent  # what the model was told holds no key either


def test_a_refused_key_is_in_no_error(own_supervisor: EmbeddedSupervisor, home: Path, tmp_path: Path) -> None:
    with (
        FakeOpenAI(api_key="another-key-than-this").in_thread() as fake,
        Session.start_link(
            supervisor=own_supervisor, provider="openai_compatible", base_url=fake.api_url, model="fake",
            api_key=CANARY, cwd=tmp_path, tools=[],
        ) as session,
    ):  # fmt: skip
        result = session.send_message("hi")
        assert (result.finish_reason, result.category) == ("error_provider_auth", "fatal")
        for text in (repr(result), repr(result.error), str(result.halted_reason)):
            assert CANARY not in text
            assert CANARY[:8] not in text  # the server shows the ends of the key
            assert CANARY[-4:] not in text
    assert files_with(home, CANARY) == []


async def test_a_key_is_in_no_error_of_a_single_query() -> None:
    async with FakeOpenAI(api_key="another-key-than-this") as fake:
        with pytest.raises(AthenaError) as caught:
            await aquery("hi", provider="openai_compatible", base_url=fake.api_url, model="fake", api_key=CANARY)
    assert CANARY not in f"{caught.value} {caught.value.data} {caught.value!r}"
    assert CANARY[-4:] not in str(caught.value)


def test_a_refused_start_shows_no_key(own_supervisor: EmbeddedSupervisor, home: Path, tmp_path: Path) -> None:
    for wrong in ({"store": "no_such"}, {"tools": ["no_such"]}, {"provider": "no_such"}, {"modell": CANARY}):
        options: dict[str, Any] = {"provider": "mock", "api_key": CANARY, "env": {"A_TOKEN": OTHER}, "cwd": tmp_path}
        with pytest.raises(InvalidOption) as caught:
            Session.start_link(supervisor=own_supervisor, **{**options, **wrong})
        if "modell" not in wrong:  # what was given to an option that is none is shown: it may be the mistake
            assert CANARY not in f"{caught.value} {caught.value.data}"
        assert OTHER not in f"{caught.value} {caught.value.data}"
    assert files_with(home, CANARY, OTHER) == []


def test_a_crash_leaves_no_key_in_the_childs_log(
    own_supervisor: EmbeddedSupervisor, home: Path, tmp_path: Path
) -> None:
    with Session.start_link(
        supervisor=own_supervisor, provider="mock", mock=["one", "two"], api_key=CANARY, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "A_TOKEN": OTHER},
    ) as session:  # fmt: skip
        session.send_message("a")
        os.kill(int(session.pid or 0), 11)
        assert session.send_message("b").text == "two"
        assert session.status()["incarnation"] == 2
    assert files_with(home, CANARY, OTHER) == []
