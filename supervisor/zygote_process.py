"""The supervisor's end of one zygote: its process, its control socket, and the launches it has not answered yet."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence

from athena.environment import ROOT
from athena.errors import StartError
from supervisor.launcher import FUNCTION_MODULE, Disposals, LaunchRequest
from supervisor.process import OsProcess, ProcessTable, wait_readable
from supervisor.process_table import hunt_down

READY_TIMEOUT_S = 60.0
"""Importing everything takes under a second; this much only under heavy overload."""

CLOSE_TIMEOUT_S = 2.0
MAX_REPLY_BYTES = 64 * 1024


class ZygoteDied(Exception):
    """The zygote ended with this request unanswered; nothing of the launch is left."""


class ZygoteProcess:
    """One zygote process and the requests it has not answered yet."""

    def __init__(self, process: OsProcess, control: socket.socket, table: ProcessTable, unwanted: Disposals) -> None:
        self.process = process
        self._control = control
        self._table = table
        self._unwanted = unwanted
        self._pending: dict[int, tuple[asyncio.Future[OsProcess], str]] = {}
        self._serial = 0
        self._is_ending = False
        self._life = asyncio.create_task(self._live(), name=f"zygote {process.pid}")

    @property
    def is_usable(self) -> bool:
        """Whether it takes requests."""
        return not self._is_ending

    async def wait_ready(self) -> None:
        """Wait for its announcement. Raises :class:`StartError` with the reason to look into its log."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await wait_readable(self._control.fileno())
            hello = self._control.recv(MAX_REPLY_BYTES)
            if not hello:
                raise StartError("the zygote ended while it started; see its log", reason="zygote")
            if (found := json.loads(hello)["athena"]) != str(ROOT / "athena"):
                raise StartError(f"the zygote imported another Athena, from {found!r}", reason="zygote")
        except TimeoutError:
            raise StartError(f"the zygote was not ready in {READY_TIMEOUT_S} s", reason="zygote") from None
        asyncio.get_running_loop().add_reader(self._control.fileno(), self._on_readable)

    def request(self, request: LaunchRequest, fds: Sequence[int]) -> asyncio.Future[OsProcess]:
        """Send a request. The future gets the child, a :class:`StartError`, or :class:`ZygoteDied`.

        A launch counts as under way until it is answered, even if nobody waits any more.
        """
        self._serial += 1
        entry = f"{FUNCTION_MODULE}:main" if request.kind == "function" else None
        header = {"id": self._serial, "cookie": request.cookie, "cwd": request.cwd, "entry": entry}
        try:
            socket.send_fds(self._control, [json.dumps(header).encode()], fds)
        except OSError as error:
            self.end()
            raise ZygoteDied from error
        future: asyncio.Future[OsProcess] = asyncio.get_running_loop().create_future()
        self._pending[self._serial] = (future, request.cookie)
        self._table.begin()
        return future

    def end(self) -> None:
        """Kill it. What it has not answered fails when its death is over."""
        self._is_ending = True
        self.process.kill()

    async def close(self) -> None:
        """Let it end by itself, at the end of its control socket; kill it if it does not."""
        if self.is_usable:
            self._is_ending = True
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.wait_over()
        except TimeoutError:
            self.end()
            await self.wait_over()

    async def wait_over(self) -> None:
        """Wait until it is gone, with everything that it left unanswered."""
        await asyncio.shield(self._life)

    def _on_readable(self) -> None:
        flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        try:
            data, fds, _, _ = socket.recv_fds(self._control, MAX_REPLY_BYTES, 1, flags)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self.end()  # it cannot serve any more; if it is dead already this does nothing
            return
        reply = json.loads(data)
        future, cookie = self._pending.pop(reply["id"])
        if "error" in reply:
            if not future.done():
                future.set_exception(
                    StartError(f"the zygote refused: {reply['error']}", reason={"fork": reply["error"]})
                )
        else:
            process = OsProcess(reply["pid"], fds[0], reply["start_time"], cookie=cookie, table=self._table)
            if future.done():
                self._unwanted.add(process)
            else:
                future.set_result(process)
        self._table.end()

    async def _live(self) -> None:
        """To the end of the process and of what it had begun; then fail what it left unanswered."""
        await self.process.wait()
        self._is_ending = True
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        while self._drain():
            pass
        self._control.close()
        for future, cookie in self._pending.values():
            await hunt_down(self._table, cookie)
            if not future.done():
                future.set_exception(ZygoteDied())
            self._table.end()
        self._pending.clear()

    def _drain(self) -> bool:
        """Take an answer that was sent before the end: its child is whole, and belongs to its launch."""
        before = len(self._pending)
        if before:
            self._on_readable()
        return len(self._pending) < before
