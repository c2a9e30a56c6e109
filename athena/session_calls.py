"""What each method of a session asks and how its answer reads, without I/O: the sync and the async shell share
these."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import orjson

from athena import events
from athena.config import default_paths
from athena.errors import InvalidOption
from athena.events import check_session_id, new_session_id, new_uuid
from athena.loop.options import GRANTS, check_portable, parse_options, parse_turn_options, refuse_unknown, restrictions
from athena.loop.permission import ANSWERS, open_requests
from athena.loop.result import Result
from athena.loop.state import SessionState, fold
from athena.messages import Message, Usage, clean_json, clean_text
from athena.pid import Pid
from athena.stores import STORES
from athena.wire import Frame, Header, dumps

T = TypeVar("T")

LIMIT_FIELDS = frozenset({"max_memory", "max_processes", "max_files", "turn_timeout"})
SPEC_FIELDS = LIMIT_FIELDS | {
    "restart", "max_restarts", "max_seconds", "shutdown", "start_timeout", "hang_timeout", "hibernate_after",
    "grants_timeout",
}  # fmt: skip
_PRIVATE = GRANTS | {"messages"}
"""Options that are not written down."""

SESSION_FIELDS = frozenset({"name", "session_id", "store", "store_options", "root"}) | SPEC_FIELDS


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One operation: what goes out, how the answer reads."""

    op: str
    header: Header
    body: bytes
    read: Callable[[Frame], T]
    message_id: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """What names a session. ``pid`` is that of the moment it was asked."""

    session_id: str
    name: str | None
    pid: Pid | None
    state: str = ""


@dataclass(frozen=True, slots=True)
class StartOptions:
    """A checked start request. Held in memory, with its grants, by the handle that made it."""

    session_id: str
    spec: dict[str, Any]
    body: bytes = field(repr=False)
    store: str = "jsonl"

    def again(self, granted: list[dict[str, Any]]) -> StartOptions:
        """The request for a session that ran already: its first messages are in the log, the grants of ``granted``
        ones are not."""
        public, private = self.body.split(b"\n")
        init = orjson.loads(private)
        init["options"].pop("messages", None)
        init["granted"] = granted
        return replace(self, body=public + b"\n" + dumps(init))


def start_options(given: dict[str, Any], *, link: bool) -> StartOptions:
    """Check everything that can be checked here. Raises the error that names the option."""
    session = {k: v for k, v in given.items() if k in SESSION_FIELDS}
    options = {k: v for k, v in given.items() if k not in SESSION_FIELDS}
    session_id = session.pop("session_id", None)
    session_id = new_session_id() if session_id is None else check_session_id(session_id)
    store_options = session.pop("store_options", None)
    store = session.setdefault("store", "jsonl")
    _expect("store", store, str, "'jsonl', 'in_memory' or 'package.module:Class'")
    _expect("store_options", store_options, dict | None, "a dict of the store's keywords")
    _expect("root", session.get("root"), str | Path | None, "a directory's path")
    for name in ("name", "store_options", *sorted(SPEC_FIELDS & session.keys())):
        check_portable(name, store_options if name == "store_options" else session.get(name))
    root = str(Path(session.get("root") or default_paths().sessions).absolute())
    session["root"] = root
    if isinstance(options.get("cwd"), str | Path):
        options["cwd"] = os.path.abspath(options["cwd"])
    options |= message_maps(options)
    check_given(options)
    options = clean_json(options)
    spec = {**session, "session_id": session_id, "link": link}
    if store_options and store not in STORES:
        spec["private_store"] = True
    return StartOptions(session_id, spec, _init(options, store, clean_json(store_options), root), store)


def _init(options: dict[str, Any], store: str, store_options: Any, root: str) -> bytes:
    """What the child gets, in two lines: what the supervisor may write down for the one after it, and what it must
    not, which is grants, secrets, and what is in the log anyway."""
    private = {k: options.pop(k) for k in _PRIVATE & options.keys()}
    env = private.pop("env", None)
    where = "public" if store in STORES else "private"  # those of a custom store may hold a password
    lines: dict[str, dict[str, Any]] = {
        "public": {
            "options": {k: v for k, v in options.items() if k != "python_path"} | restrictions(private),
            "cwd": _here(),  # where neither these options nor the log of a continued session say so
            "python_path": options.get("python_path") or import_path(),
            "store": store,
            "root": root,
        },
        "private": {"options": private, "env": _encodable(env if env is not None else dict(os.environ))},
    }
    lines[where]["store_options"] = store_options
    return dumps(lines["public"]) + b"\n" + dumps(lines["private"])


def message_maps(options: dict[str, Any]) -> dict[str, Any]:
    """The option ``messages`` with values made maps, if it is there; anything else is left to the check of options."""
    given = options.get("messages")
    if not isinstance(given, list | tuple):
        return {}
    return {"messages": [m.to_map() if isinstance(m, Message) else m for m in given]}


def _expect(name: str, value: object, kind: Any, expected: str) -> None:
    if not isinstance(value, kind):
        shown = type(value).__name__ if name == "store_options" else repr(value)[:80]
        raise InvalidOption(
            f"option {name!r} got {shown}: expected {expected}", option=name, value=shown, expected=expected
        )


def check_given(options: dict[str, Any]) -> None:
    """Check the options that are given. A missing provider may be in the log of the session that is continued."""
    refuse_unknown(options)
    parse_options(options if "provider" in options else {"provider": "mock", **options})


def _encodable(env: dict[str, str]) -> dict[str, str]:
    # Environment variables are bytes: what is no UTF-8 cannot travel as JSON and is of no use to a tool's text either.
    return {clean_text(k): clean_text(v) for k, v in env.items()}


def _here() -> str | None:
    """The caller's directory; ``None`` if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def import_path() -> list[str]:
    """Where the caller imports its own code from: its directory and what is on its path outside the installation."""
    prefixes = tuple({os.path.realpath(p) for p in (sys.prefix, sys.base_prefix)})
    found = [here] if (here := _here()) is not None else []
    for entry in sys.path:
        full = os.path.realpath(entry or here or "/")
        if not any(full == p or full.startswith(p + os.sep) for p in prefixes):
            found.append(full)
    return list(dict.fromkeys(found))


# --- calls ------------------------------------------------------------------------------------------------------------


def start(options: StartOptions, approvers: Sequence[bool | str] = ()) -> Call[Identity]:
    """Start the session; answered when it is ready. ``approvers``: for what the caller is about to subscribe as one
    (``True``: for everything, or a message's id). They are no part of the specification, which is written down."""
    return Call("start", {"spec": options.spec, "approvers": list(approvers)}, options.body, _identity)


def attach(target: str | int) -> Call[Identity]:
    """Who has this name, id or pid."""
    return Call("attach", _target(target), b"", _identity)


def restart(target: str) -> Call[Identity]:
    """Start a failed session again; answered when it is ready."""
    return Call("restart", _target(target), b"", _identity)


def whereis(name: str) -> Call[Pid | None]:
    """The pid under this name or id."""
    return Call("whereis", _target(name), b"", lambda f: Pid.from_map(f.json()))


def list_sessions() -> Call[list[dict[str, Any]]]:
    """Rows of all sessions."""
    return Call("list", {}, b"", lambda f: [_row(r) for r in f.json()["sessions"]])


def send(session_id: str, text: object, message_id: object, options: dict[str, Any], *, wait: bool) -> Call[Any]:
    """Hand a message over; with ``wait`` the answer is the turn's result, else its acceptance."""
    if not isinstance(text, str):
        raise InvalidOption(
            f"the message got {text!r}: expected a string", option="text", value=repr(text)[:80], expected="a string"
        )
    if not isinstance(message_id, str) or not 1 <= len(message_id) <= 256 or clean_text(message_id) != message_id:
        raise InvalidOption(
            f"message_id {message_id!r} is not legal: a string of 1 to 256 characters",
            option="message_id",
            value=repr(message_id)[:80],
            expected="a string of 1 to 256 characters",
        )
    body = {"message_id": message_id, "text": clean_text(text), "wait": wait, "options": parse_turn_options(options)}
    header = {"session": session_id, "message_id": message_id}
    read: Callable[[Frame], Any] = _result if wait else (lambda f: f.json())
    return Call("send", header, dumps(body), read, message_id)


def result(session_id: str, message_id: str) -> Call[Result]:
    """Wait for a turn's result."""
    body = dumps({"message_id": message_id})
    return Call("result", {"session": session_id, "message_id": message_id}, body, _result, message_id)


def cancel(session_id: str, message_id: str) -> Call[bool]:
    """Take a queued message back."""
    body = dumps({"message_id": message_id})
    return Call("cancel", {"session": session_id}, body, lambda f: bool(f.json()["cancelled"]))


def interrupt(session_id: str, *, clear_queue: bool) -> Call[bool]:
    """End the running turn."""
    body = dumps({"clear_queue": clear_queue})
    return Call("interrupt", {"session": session_id}, body, lambda f: bool(f.json()["interrupted"]))


def answer(session_id: str, request_id: object, decision: object, *, remember: bool, reason: object) -> Call[None]:
    """Answer a permission request. Asked again after a loss it is the same answer. Raises :class:`InvalidOption`."""
    _expect("request_id", request_id, str, "the request_id of a permission request")
    if not isinstance(decision, str) or decision not in ANSWERS:
        expected = "'allow' or 'deny'"
        raise InvalidOption(
            f"decision {decision!r} is not legal: expected {expected}",
            option="decision",
            value=repr(decision)[:80],
            expected=expected,
        )
    _expect("remember", remember, bool, "True or False")
    _expect("reason", reason, str | None, "a text for the model")
    body = {"request_id": request_id, "decision": decision, "answer_id": new_uuid(), "remember": remember}
    if reason:
        body["reason"] = clean_text(str(reason))
    return Call("answer", {"session": session_id}, dumps(clean_json(body)), lambda f: None)


def requests(session_id: str) -> Call[list[dict[str, Any]]]:
    """The permission requests that are open."""

    def read(frame: Frame) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = open_requests(_folded(frame)) if _is_log(frame) else frame.json()
        return rows

    return Call("requests", {"session": session_id}, b"", read)


def messages(session_id: str) -> Call[list[Message]]:
    """The history, from the child or, when it is silent, from the log."""

    def read(frame: Frame) -> list[Message]:
        if _is_log(frame):
            return _folded(frame).messages
        return [Message.from_map(m) for m in frame.json()]

    return Call("messages", {"session": session_id}, b"", read)


def usage(session_id: str) -> Call[Usage]:
    """Tokens and cost of the whole session."""
    return Call(
        "usage",
        {"session": session_id},
        b"",
        lambda f: _folded(f).usage if _is_log(f) else Usage.from_map(f.json()),
    )


def queue(session_id: str) -> Call[list[dict[str, Any]]]:
    """Messages that wait behind the running turn."""

    def read(frame: Frame) -> list[dict[str, Any]]:
        if _is_log(frame):
            return [{"message_id": m.message_id, "text": m.text} for m in _folded(frame).queue]
        rows: list[dict[str, Any]] = frame.json()
        return rows

    return Call("queue", {"session": session_id}, b"", read)


def status(session_id: str) -> Call[dict[str, Any]]:
    """What the supervisor knows of the session."""
    return Call("status", {"session": session_id}, b"", lambda f: _row(f.json()))


def stop(session_id: str, reason: Any, timeout: float | str | None) -> Call[bool]:
    """Stop the session."""
    check_portable("reason", reason)
    return Call(
        "stop",
        {"session": session_id},
        dumps({"reason": reason, "timeout": timeout}),
        lambda f: bool(f.json()["stopped"]),
    )


def service(spec: dict[str, Any]) -> Call[dict[str, Any]]:
    """The endpoint of a shared program."""
    return Call("service", {}, dumps(spec), lambda f: dict(f.json()))


# --- reading ----------------------------------------------------------------------------------------------------------


def check_timeout(timeout: object) -> None:
    """Raise :class:`InvalidOption` unless it is ``None`` or seconds from 0 to 30 years (what a timer can hold)."""
    if timeout is None or (isinstance(timeout, int | float) and not isinstance(timeout, bool) and 0 <= timeout <= 1e9):
        return
    expected = "seconds from 0 to 1e9, or None for no limit"
    raise InvalidOption(
        f"option 'timeout' got {timeout!r}: expected {expected}",
        option="timeout",
        value=repr(timeout),
        expected=expected,
    )


def _target(target: str | int) -> Header:
    if isinstance(target, Pid):
        return {"session": int(target), "serial": target.serial, "supervisor": target.supervisor}
    is_number = isinstance(target, int) and not isinstance(target, bool) and 0 < target < 2**31
    if not is_number and not isinstance(target, str):
        raise InvalidOption(
            f"{target!r} names no session: give a name, a session id or a pid",
            option="target",
            value=repr(target),
            expected="str | int",
        )
    return {"session": target}


def _identity(frame: Frame) -> Identity:
    value = frame.json()
    return Identity(value["session_id"], value["name"], Pid.from_map(value["pid"]), value.get("state", ""))


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "pid": Pid.from_map(row.get("pid"))}


def _result(frame: Frame) -> Result:
    return Result.from_map(frame.json())


def _is_log(frame: Frame) -> bool:
    return frame.header.get("source") == "log"


def _folded(frame: Frame) -> SessionState:
    lines = frame.body.split(b"\n") if frame.body else []
    return fold(events.decode(line, index) for index, line in enumerate(lines, 1))
