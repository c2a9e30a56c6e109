"""Athena runs LLM agent sessions as supervised OS processes that resume from an append-only log.

Everything public is here and loaded on first use: the guard imports this package without site-packages, and a command
line that only lists sessions need not load a provider.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from athena.async_processes import AsyncLink as AsyncLink
    from athena.async_processes import AsyncMonitor as AsyncMonitor
    from athena.async_processes import acall as acall
    from athena.async_processes import acast as acast
    from athena.async_processes import aexit as aexit
    from athena.async_processes import ais_alive as ais_alive
    from athena.async_processes import alink as alink
    from athena.async_processes import amonitor as amonitor
    from athena.async_processes import areceive as areceive
    from athena.async_processes import asend as asend
    from athena.async_processes import astop as astop
    from athena.async_processes import aunlink as aunlink
    from athena.async_processes import awhereis as awhereis
    from athena.async_registries import AsyncRegistry as AsyncRegistry
    from athena.async_session import AsyncSession as AsyncSession
    from athena.async_session import AsyncTurn as AsyncTurn
    from athena.async_trees import AsyncDynamicSupervisor as AsyncDynamicSupervisor
    from athena.async_trees import AsyncSupervisor as AsyncSupervisor
    from athena.child_spec_rules import check_childspecs as check_childspecs
    from athena.child_specs import ChildSpec as ChildSpec
    from athena.errors import AthenaError as AthenaError
    from athena.events import Cursor as Cursor
    from athena.events import Event as Event
    from athena.inprocess import aquery as aquery
    from athena.inprocess import arun as arun
    from athena.inprocess import astream as astream
    from athena.inprocess import query as query
    from athena.inprocess import run as run
    from athena.inprocess import stream as stream
    from athena.loop.result import Result as Result
    from athena.messages import Message as Message
    from athena.messages import ToolCall as ToolCall
    from athena.messages import ToolResult as ToolResult
    from athena.messages import Usage as Usage
    from athena.names import Via as Via
    from athena.pid import Pid as Pid
    from athena.points import Checkpoint as Checkpoint
    from athena.points import FileOutcome as FileOutcome
    from athena.points import Rewound as Rewound
    from athena.processes import Link as Link
    from athena.processes import Monitor as Monitor
    from athena.processes import call as call
    from athena.processes import cast as cast
    from athena.processes import exit as exit
    from athena.processes import is_alive as is_alive
    from athena.processes import link as link
    from athena.processes import monitor as monitor
    from athena.processes import receive as receive
    from athena.processes import self_pid as self_pid
    from athena.processes import send as send
    from athena.processes import stop as stop
    from athena.processes import trap_exit as trap_exit
    from athena.processes import unlink as unlink
    from athena.processes import whereis as whereis
    from athena.registries import Registry as Registry
    from athena.server import Caller as Caller
    from athena.server import Continue as Continue
    from athena.server import Hibernate as Hibernate
    from athena.server import Ignore as Ignore
    from athena.server import NoReply as NoReply
    from athena.server import Ready as Ready
    from athena.server import Reply as Reply
    from athena.server import Server as Server
    from athena.server import Stop as Stop
    from athena.server import Timeout as Timeout
    from athena.session import Session as Session
    from athena.session import Turn as Turn
    from athena.signals import Down as Down
    from athena.signals import Exit as Exit
    from athena.subscriber import StreamDelta as StreamDelta
    from athena.supervisors import EmbeddedSupervisor as EmbeddedSupervisor
    from athena.tree_calls import ChildCounts as ChildCounts
    from athena.tree_calls import ChildInfo as ChildInfo
    from athena.tree_calls import Ignored as Ignored
    from athena.tree_calls import Started as Started
    from athena.trees import DynamicSupervisor as DynamicSupervisor
    from athena.trees import Supervisor as Supervisor

_PUBLIC = {
    "AsyncRegistry": "athena.async_registries",
    "Registry": "athena.registries",
    "AsyncDynamicSupervisor": "athena.async_trees",
    "AsyncLink": "athena.async_processes",
    "AsyncMonitor": "athena.async_processes",
    "AsyncSession": "athena.async_session",
    "AsyncSupervisor": "athena.async_trees",
    "AsyncTurn": "athena.async_session",
    "AthenaError": "athena.errors",
    "Caller": "athena.server",
    "Checkpoint": "athena.points",
    "ChildCounts": "athena.tree_calls",
    "ChildInfo": "athena.tree_calls",
    "ChildSpec": "athena.child_specs",
    "Continue": "athena.server",
    "Cursor": "athena.events",
    "Down": "athena.signals",
    "DynamicSupervisor": "athena.trees",
    "EmbeddedSupervisor": "athena.supervisors",
    "Event": "athena.events",
    "Exit": "athena.signals",
    "FileOutcome": "athena.points",
    "Hibernate": "athena.server",
    "Ignore": "athena.server",
    "Ignored": "athena.tree_calls",
    "Link": "athena.processes",
    "Message": "athena.messages",
    "Monitor": "athena.processes",
    "NoReply": "athena.server",
    "Pid": "athena.pid",
    "Ready": "athena.server",
    "Reply": "athena.server",
    "Result": "athena.loop.result",
    "Rewound": "athena.points",
    "Server": "athena.server",
    "Session": "athena.session",
    "Started": "athena.tree_calls",
    "Stop": "athena.server",
    "StreamDelta": "athena.subscriber",
    "Supervisor": "athena.trees",
    "Timeout": "athena.server",
    "ToolCall": "athena.messages",
    "ToolResult": "athena.messages",
    "Turn": "athena.session",
    "Usage": "athena.messages",
    "Via": "athena.names",
    "acall": "athena.async_processes",
    "acast": "athena.async_processes",
    "aexit": "athena.async_processes",
    "ais_alive": "athena.async_processes",
    "alink": "athena.async_processes",
    "amonitor": "athena.async_processes",
    "aquery": "athena.inprocess",
    "areceive": "athena.async_processes",
    "arun": "athena.inprocess",
    "asend": "athena.async_processes",
    "astop": "athena.async_processes",
    "astream": "athena.inprocess",
    "aunlink": "athena.async_processes",
    "awhereis": "athena.async_processes",
    "call": "athena.processes",
    "cast": "athena.processes",
    "check_childspecs": "athena.child_spec_rules",
    "exit": "athena.processes",
    "is_alive": "athena.processes",
    "link": "athena.processes",
    "monitor": "athena.processes",
    "query": "athena.inprocess",
    "receive": "athena.processes",
    "run": "athena.inprocess",
    "self_pid": "athena.processes",
    "send": "athena.processes",
    "stop": "athena.processes",
    "stream": "athena.inprocess",
    "trap_exit": "athena.processes",
    "unlink": "athena.processes",
    "whereis": "athena.processes",
}

__all__ = ["__version__", *sorted(_PUBLIC)]  # the table above is the one list
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'athena' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
