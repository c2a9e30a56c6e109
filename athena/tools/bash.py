"""The ``bash`` tool: one shell command, with an end to everything it started."""

from __future__ import annotations

import codecs
from typing import Any

from pydantic import Field

from athena.messages import clean_text
from athena.tools.base import Parameters, Tool, ToolContext, ToolFailure, ToolOutput, ToolTimeout
from athena.tools.process import Ended, run_process

OUTPUT_CAP_BYTES = 16_000
HEAD_BYTES = OUTPUT_CAP_BYTES * 3 // 4
DEFAULT_TIMEOUT_MS = 120_000
MAX_TIMEOUT_MS = 600_000

DESCRIPTION = f"""Run a shell command with `sh -c` in the working directory.
Returns `exit N` and the output, stderr merged into it; a non-zero exit is a result, not a failure. There is no
standard input. Output above {OUTPUT_CAP_BYTES} bytes keeps its first three quarters and its end. When the command ends,
times out or is interrupted, every process it started is killed, also ones put into the background with `&` or `nohup`.
"""


class BashParameters(Parameters):
    """Arguments of ``bash``."""

    command: str = Field(description="The command line to run.")
    timeout_ms: int = Field(
        default=DEFAULT_TIMEOUT_MS, description=f"Time limit in milliseconds, at most {MAX_TIMEOUT_MS}.", ge=1
    )


class HeadTail:
    """The first and last bytes of a stream of any length, in bounded memory."""

    def __init__(self, head_bytes: int = HEAD_BYTES, cap_bytes: int = OUTPUT_CAP_BYTES) -> None:
        self.total_bytes = 0
        self._head_bytes = head_bytes
        self._tail_bytes = cap_bytes - head_bytes
        self._head = bytearray()
        self._tail = bytearray()

    def add(self, chunk: bytes) -> bool:
        """Take the next piece; always ``True``, as a sink that wants more."""
        self.total_bytes += len(chunk)
        room = self._head_bytes - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        del self._tail[: -self._tail_bytes]
        return True

    def text(self) -> str:
        """All of it as text, or head, a line that says how much is missing, and tail."""
        omitted = self.total_bytes - len(self._head) - len(self._tail)
        if omitted <= 0:
            return (self._head + self._tail).decode("utf-8", "replace")
        head, tail = _whole_characters(bytes(self._head), bytes(self._tail))
        return f"{head}\n... [{omitted} bytes omitted] ...\n{tail}"


def _whole_characters(head: bytes, tail: bytes) -> tuple[str, str]:
    """Both parts as text without the halves of the characters that the cuts went through."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    cut = 0
    while cut < min(3, len(tail)) and tail[cut] & 0xC0 == 0x80:
        cut += 1
    return decoder.decode(head), tail[cut:].decode("utf-8", "replace")


def limit_s(args: BashParameters) -> float:
    """The time limit that a call with these parameters has, in seconds."""
    return min(args.timeout_ms, MAX_TIMEOUT_MS) / 1000


async def run(args: BashParameters, ctx: ToolContext) -> ToolOutput:
    """Run the command. Raises :class:`ToolFailure` if it can't start and :class:`ToolTimeout` at its time limit."""
    if not args.command.strip():
        raise ToolFailure("command is empty; give a command line to run")
    output = HeadTail()
    argv = ["/bin/sh", "-c", clean_text(args.command)]
    ended = await run_process(argv, cwd=ctx.cwd, env=ctx.env, limit_s=limit_s(args), sink=output.add)
    text = output.text()
    ui = _ui(args, ended, output, text)
    if ended.survivors:
        pids = ", ".join(str(pid) for pid in ended.survivors)
        text += f"\n[still alive after a kill, in uninterruptible sleep: {pids}]"
    if ended.cause == "timeout":
        raise ToolTimeout(
            f"timeout: the command ran longer than {limit_s(args):g} s and was killed with all it had started. "
            f"A larger timeout_ms (up to {MAX_TIMEOUT_MS}) allows more. Output so far:\n{text}",
            ui={"kind": "process", "payload": ui},
        )
    return ToolOutput(f"exit {_exit_code(ended.status)}\n{text}", ui_kind="process", ui_payload=ui)


def _exit_code(status: int | None) -> int | None:
    """As a shell reports it: 128 and the signal's number for a command that a signal ended."""
    return 128 - status if status is not None and status < 0 else status


def _ui(args: BashParameters, ended: Ended, output: HeadTail, text: str) -> dict[str, Any]:
    return {
        "command": args.command,
        "exit_code": None if ended.cause == "timeout" else _exit_code(ended.status),
        "stdout": text,
        "output_bytes": output.total_bytes,
        "timed_out": ended.cause == "timeout",
        "duration_ms": round(ended.duration_s * 1000),
    }


TOOL = Tool("bash", DESCRIPTION.strip(), BashParameters, run, time_limit_s=limit_s)
