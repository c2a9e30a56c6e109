"""Athena runs LLM agent sessions as supervised OS processes that resume from an append-only log.

Everything public is here and loaded on first use: the guard imports this package without site-packages, and a command
line that only lists sessions need not load a provider.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from athena.async_session import AsyncSession as AsyncSession
    from athena.async_session import AsyncTurn as AsyncTurn
    from athena.async_trees import AsyncDynamicSupervisor as AsyncDynamicSupervisor
    from athena.async_trees import AsyncSupervisor as AsyncSupervisor
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
    from athena.monitor import Down as Down
    from athena.pid import Pid as Pid
    from athena.session import Session as Session
    from athena.session import Turn as Turn
    from athena.subscriber import StreamDelta as StreamDelta
    from athena.supervisors import EmbeddedSupervisor as EmbeddedSupervisor
    from athena.tree_calls import ChildCounts as ChildCounts
    from athena.tree_calls import ChildInfo as ChildInfo
    from athena.tree_calls import Ignored as Ignored
    from athena.tree_calls import Started as Started
    from athena.trees import DynamicSupervisor as DynamicSupervisor
    from athena.trees import Supervisor as Supervisor

_PUBLIC = {
    "AsyncDynamicSupervisor": "athena.async_trees",
    "AsyncSession": "athena.async_session",
    "AsyncSupervisor": "athena.async_trees",
    "AsyncTurn": "athena.async_session",
    "AthenaError": "athena.errors",
    "ChildCounts": "athena.tree_calls",
    "ChildInfo": "athena.tree_calls",
    "ChildSpec": "athena.child_specs",
    "Cursor": "athena.events",
    "Down": "athena.monitor",
    "DynamicSupervisor": "athena.trees",
    "EmbeddedSupervisor": "athena.supervisors",
    "Event": "athena.events",
    "Ignored": "athena.tree_calls",
    "Message": "athena.messages",
    "Pid": "athena.pid",
    "Result": "athena.loop.result",
    "Session": "athena.session",
    "Started": "athena.tree_calls",
    "StreamDelta": "athena.subscriber",
    "Supervisor": "athena.trees",
    "ToolCall": "athena.messages",
    "ToolResult": "athena.messages",
    "Turn": "athena.session",
    "Usage": "athena.messages",
    "aquery": "athena.inprocess",
    "arun": "athena.inprocess",
    "astream": "athena.inprocess",
    "query": "athena.inprocess",
    "run": "athena.inprocess",
    "stream": "athena.inprocess",
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
