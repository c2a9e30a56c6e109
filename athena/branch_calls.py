"""What checkpoints, rewinds and forks ask of a session's process, and how a fork is started, without I/O."""

from __future__ import annotations

from typing import Any

import orjson

from athena.errors import InvalidOption
from athena.events import check_session_id, new_session_id, new_uuid
from athena.points import Checkpoint, Point, Rewound, check_label, point_map
from athena.session_calls import Call, StartOptions, start_options
from athena.wire import Frame, dumps

_PARENTS = ("store", "root", "messages")
"""What a fork has from its parent."""


def checkpoint(session_id: str, label: object) -> Call[Checkpoint]:
    """Name the point that the session is at."""
    body = dumps({"label": check_label(label)})
    return Call("checkpoint", {"session": session_id}, body, lambda f: Checkpoint(**f.json()))


def rewind(session_id: str, to: Point, *, files: object) -> Call[Rewound]:
    """Go back to a point. It has an id of its own, so that one whose answer was lost is not done twice."""
    if not isinstance(files, bool):
        raise InvalidOption(
            f"option 'files' got {files!r}: expected True or False", option="files", value=repr(files), expected="bool"
        )
    body = dumps({"id": new_uuid(), "to": point_map(to), "files": files})
    return Call("rewind", {"session": session_id}, body, lambda f: Rewound.from_map(f.json()))


def fork(session_id: str, at: Point | None, new_id: str) -> Call[dict[str, Any]]:
    """Make the log of a fork; the answer is where it is, as start options. Again with the same ids it is the same
    one."""
    body = dumps({"at": None if at is None else point_map(at, "at"), "session_id": new_id})
    return Call("fork", {"session": session_id}, body, _place)


def _place(frame: Frame) -> dict[str, Any]:
    answer = frame.json()
    return {"store": answer["store"], "root": answer["root"]}


def fork_options(parent: StartOptions | None, given: dict[str, Any], *, link: bool) -> dict[str, Any]:
    """The start options of a fork: what ``parent`` was started with by this handle, grants among them, and ``given``
    over it. Raises what is wrong with them."""
    for name in _PARENTS:
        if name in given:
            raise InvalidOption(
                f"option {name!r} means nothing for a fork, which has its history and its log where its parent has",
                option=name,
                value="given",
                expected="absent",
            )
    merged = {**(_given_to(parent) if parent is not None else {}), **given}
    merged["session_id"] = check_session_id(given["session_id"]) if "session_id" in given else new_session_id()
    start_options({k: v for k, v in merged.items() if k != "can_use_tool"}, link=link)  # before there is a log
    return merged


def _given_to(parent: StartOptions) -> dict[str, Any]:
    public, private = (orjson.loads(line) for line in parent.body.split(b"\n"))
    spec = {k: v for k, v in parent.spec.items() if k not in ("session_id", "name", "link", "private_store", "root")}
    options = {**public["options"], **private["options"], "env": private["env"], "python_path": public["python_path"]}
    store_options = public.get("store_options") or private.get("store_options")
    return {**spec, **{k: v for k, v in options.items() if k != "messages"}, "store_options": store_options}
