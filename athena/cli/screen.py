"""A session's stream for people: the answer's text on stdout as it comes, the rest as short lines on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from athena.cli.output import emit, encode, note, one_line, styled, write
from athena.events import Event
from athena.loop.result import Result
from athena.messages import Message, ToolCall
from athena.subscriber import Item, StreamDelta

ARGUMENTS_CHARS, RESULT_CHARS = 100, 80
"""How much of a tool's arguments and of the first words of its failure is shown."""

Step = tuple[str, int, int]

_ANSWERED = {"allow": "allowed", "deny": "denied"}


class Screen:
    """Shows items in their order. ``with_user`` shows users' messages too, for those who did not type them."""

    approves = False
    """Whether its person is asked for permission."""

    def __init__(self, *, with_user: bool = False) -> None:
        self._with_user = with_user
        self._step: Step | None = None
        self._shown = ""
        """Text of the running step that was written already."""
        self._is_line_open = False
        self._calls: dict[str, ToolCall] = {}
        self._handlers = {
            "user_message": self._user,
            "assistant_message": self._assistant,
            "tool_call": self._tool_call,
            "tool_result": self._tool_result,
            "turn_resumed": self._turn_resumed,
            "interrupted": self._interrupted,
            "permission_request": self._permission,
            "permission_resolved": self._permission_resolved,
            "turn_end": self._turn_end,
            "session_end": self._session_end,
        }

    def show(self, item: Item) -> None:
        """Show one item; kinds that say nothing to people are skipped."""
        if isinstance(item, StreamDelta):
            if item.type == "text":
                self._delta(item)
            return
        handler = self._handlers.get(item.event)
        if handler is not None:
            handler(item)

    def ask_open(self) -> None:
        """Ask its person for what waits for permission already."""

    def end_line(self) -> None:
        """Begin the next line, if one is open."""
        if self._is_line_open:
            write("\n")
            self._is_line_open = False

    def _delta(self, delta: StreamDelta) -> None:
        step = (delta.turn, delta.step, delta.attempt)
        if step != self._step:
            if self._step is not None and step[:2] == self._step[:2]:
                self._void("the provider failed; another attempt")
            self._step, self._shown = step, ""
        if delta.offset == len(self._shown):  # a gap is filled by the recorded message
            self._text(delta.text)

    def _text(self, text: str) -> None:
        if text:
            write(text)
            self._shown += text
            self._is_line_open = not text.endswith("\n")

    def _void(self, why: str) -> None:
        """What was written of this step does not count: say so, because a terminal cannot take it back."""
        if self._shown:
            self._line(f"{why}: the text above is void", style="yellow")
        self._step, self._shown = None, ""

    def _user(self, event: Event) -> None:
        if self._with_user:
            self.end_line()
            styled(f"> {_message(event).text}", "bold cyan")

    def _assistant(self, event: Event) -> None:
        message = _message(event)
        if not message.text.startswith(self._shown):
            self._void("the recorded answer differs")
        self._text(message.text[len(self._shown) :])
        self.end_line()
        self._step, self._shown = None, ""
        self._calls.update({call.id: call for call in message.tool_calls})

    def _tool_call(self, event: Event) -> None:
        call = self._calls.get(str(event.data.get("id")))
        self._line(f"→ {_call_text(call) if call else event.data.get('name', '?')}")

    def _tool_result(self, event: Event) -> None:
        status = str(event.data.get("status") or "ok")
        for result in _message(event).tool_results:
            call = self._calls.get(result.tool_call_id)
            # What never began has no line of its own yet, so its arguments belong here.
            name = _call_text(call) if call and status in ("denied", "in_doubt") else call.name if call else "?"
            detail = "" if status == "ok" else f": {one_line(result.content, RESULT_CHARS)}"
            self._line(f"← {name} {status}{detail}")

    def _turn_resumed(self, event: Event) -> None:
        self._void("the session's process ended")
        self._line(
            f"the turn goes on in a new process (the last one ended with {reason_text(event.data.get('reason'))})"
        )

    def _interrupted(self, event: Event) -> None:
        self._line("interrupted", style="yellow")

    def _permission(self, event: Event) -> None:
        call = ToolCall("", str(event.data.get("tool")), event.data.get("arguments") or {})
        self._line(f"? {_call_text(call)}", style="yellow")

    def _permission_resolved(self, event: Event) -> None:
        by = event.data.get("by")
        who = f" by process {by.get('pid')}" if isinstance(by, dict) else f": {event.data.get('code')}"
        self._line(f"{_ANSWERED.get(str(event.data.get('decision')), 'closed')}{who}")

    def _turn_end(self, event: Event) -> None:
        self._step, self._shown = None, ""
        self.end_line()
        self._calls.clear()
        if self._with_user:
            note(f"turn {event.turn} ended: {event.data.get('finish_reason')}")

    def _session_end(self, event: Event) -> None:
        self._line(f"the session ended: {reason_text(event.data.get('reason'))}")

    def _line(self, text: str, *, style: str = "dim") -> None:
        self.end_line()
        note(text, style=style)


class JsonLines:
    """The same stream for programs: each event is its log line; a delta has the same shape, without ``seq``."""

    def show(self, item: Item) -> None:
        """Write one line."""
        if isinstance(item, StreamDelta):
            emit(delta_map(item))
        else:
            write(item.line.decode(errors="replace") + "\n")

    def end_line(self) -> None:
        """Every line is whole already."""


def delta_map(delta: StreamDelta) -> dict[str, Any]:
    """A delta in the shape of an event."""
    data = {
        "type": delta.type,
        "text": delta.text,
        "step": delta.step,
        "attempt": delta.attempt,
        "offset": delta.offset,
    }
    return {"event": "delta", "turn": delta.turn, "data": data}


def summary(result: Result) -> None:
    """How a turn ended, in one line on stderr."""
    says_all = result.ok or result.finish_reason == result.category
    parts = [result.finish_reason if says_all else f"{result.finish_reason} ({result.category})"]
    if result.error is not None:
        parts[0] += f": {result.error.get('message')}"
    elif not result.ok and result.halted_reason:
        parts[0] += f": {result.halted_reason}"
    parts.append(f"{result.usage.input_tokens} in, {result.usage.output_tokens} out tokens")
    if result.cost_usd is not None:
        parts.append(f"${result.cost_usd:.4f}")
    parts += [f"{result.duration_ms / 1000:.1f} s", f"session {result.session_id}"]
    note(" · ".join(parts), style="dim" if result.ok else "red")


def reason_text(reason: Any) -> str:
    """Why a process ended, in a few words."""
    if isinstance(reason, str):
        return reason
    if isinstance(reason, dict) and isinstance(reason.get("error"), dict):
        return f"{reason['error'].get('type')}: {one_line(str(reason['error'].get('message')), RESULT_CHARS)}"
    if isinstance(reason, dict) and len(reason) == 1:
        kind, value = next(iter(reason.items()))
        return f"{kind} {value}"
    return "nothing known" if reason is None else json.dumps(reason)


def _message(event: Event) -> Message:
    return Message.from_map(event.data.get("message") or {"role": "system"})


def _call_text(call: ToolCall) -> str:
    arguments = " ".join(
        f"{key}={value if isinstance(value, str) else encode(value)}" for key, value in call.arguments.items()
    )
    return one_line(f"{call.name} {arguments}", ARGUMENTS_CHARS)


def is_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout.isatty()
