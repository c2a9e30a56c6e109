"""Checkpoints, rewinds and forks of one session, as the process that writes its log carries them out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from athena.errors import AthenaError, Busy, NotFound, UnsupportedStore
from athena.events import Cursor, check_session_id
from athena.file_history import FileHistory
from athena.loop.history import Rewind
from athena.loop.state import SessionState
from athena.points import Checkpoint, FileOutcome, Rewound, check_label
from athena.recorder import Recorder
from athena.redact import Redactor
from athena.stores import STORES
from athena.stores.base import ForkingStore, Store
from athena.stores.blobs import BlobStore
from athena.wire import dumps

if TYPE_CHECKING:
    from athena.runner import Runner

T = TypeVar("T")

LABELS_SHOWN = 20
"""Of those that an error names."""


class Branches:
    """What there is to go back to in a session, and going there. ``store`` is where its log is; ``None``: nowhere.
    ``wake`` has the engine call :meth:`do_between`."""

    def __init__(
        self,
        session_id: str,
        recorder: Recorder,
        store: Store | None,
        redactor: Redactor,
        *,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._session_id = session_id
        self._recorder = recorder
        self._store = store
        self._files = FileHistory(recorder, redactor)
        self._wake = wake
        self._asked: deque[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = deque()

    @property
    def state(self) -> SessionState:
        return self._recorder.state

    @property
    def place(self) -> dict[str, Any]:
        """The start options ``store`` and ``root`` of the session; who attached to it does not know them."""
        cls, root = type(self._store), getattr(self._store, "root", None)
        target = f"{cls.__module__}:{cls.__qualname__}"
        name = next((name for name, known in STORES.items() if known == target), target)
        return {"store": name, "root": None if root is None else str(root)}

    async def between_turns(self, work: Callable[[], Awaitable[T]]) -> T:
        """Have the engine carry ``work`` out where no turn is open and none begins. Raises :class:`Busy` while one is
        open, and what ``work`` raises."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._asked.append((work, answer))
        if self.state.turn is not None:
            await self.do_between()
        self._wake()
        return await answer

    async def do_between(self) -> None:
        """Carry out what was asked for. Only in the engine, or while a turn is open: then it is refused."""
        while self._asked:
            work, answer = self._asked.popleft()
            turn = self.state.turn
            try:
                if turn is not None:
                    raise Busy(f"turn {turn.id} runs; interrupt it, or wait for its end", turn=turn.id, limit=None)
                done = await work()
            except AthenaError as error:
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(done)

    async def checkpoint(self, label: str | None) -> Checkpoint:
        """Name the point that the session is at now. A label that is there already moves. It is as durable as a
        message when this returns. Raises :class:`athena.errors.InvalidOption`, :class:`athena.errors.DiskError`."""
        state, label = self.state, check_label(label)
        cursor = state.labels.get(label) if label is not None else None
        if cursor is None or cursor != state.cursor:  # again at the same point is the same one
            event = await self._recorder.record("checkpoint", {"label": label}, waits=False)
            cursor = event.cursor
        await self._recorder.barrier()
        return Checkpoint(cursor.seq, cursor.uuid, label)

    async def rewind(self, point: dict[str, Any], number: str, *, files: bool) -> Rewound:
        """Go back to a point, with the files. Only while no turn is open. The same ``number`` twice is one rewind.

        Raises :class:`NotFound` for an unknown point, :class:`UnsupportedStore` if files were changed since then and
        the store keeps none, :class:`athena.errors.DiskError`; then nothing has changed.
        """
        state = self.state
        await self.restore_files()  # what an earlier one has left
        if number not in state.rewinds:
            at = self.find(point)
            wants_files = files and any(edit.seq > at.seq for edit in state.edits)
            if wants_files and not isinstance(self._store, BlobStore):
                raise UnsupportedStore(
                    "the store of this session keeps no files, and tools have changed some since then; rewind with"
                    " files=False, or use store='jsonl'",
                    session_id=self._session_id,
                )
            data = {"id": number, "to": at.seq, "uuid": at.uuid, "point": point.get("name"), "files": wants_files}
            await self._recorder.record("rewind", data, waits=False)
            await self.restore_files()
            await self._recorder.barrier()
        return _report(state.rewinds[number])

    async def restore_files(self) -> None:
        """Do what a recorded rewind has still to do with files, if there is one."""
        restoring = self.state.restoring
        if restoring is None:
            return
        assert isinstance(self._store, BlobStore)
        outcomes = await self._files.restore(restoring, self._store.read_blob)
        await self._recorder.record(
            "files_restored", {"rewind": restoring.seq, "files": [outcome.to_map() for outcome in outcomes]}
        )
        await self._recorder.barrier()

    async def fork(self, point: dict[str, Any] | None, new_id: str) -> Cursor:
        """Make the log of a session that goes on from a point, by default from here. Returns the point.

        Raises :class:`NotFound`, :class:`UnsupportedStore`, :class:`athena.errors.StoreError` if ``new_id`` has a log.
        """
        if not isinstance(self._store, ForkingStore):
            raise UnsupportedStore(
                "the store of this session cannot fork: nothing of it is on disk, or its class has no method 'fork';"
                " use store='jsonl'",
                session_id=self._session_id,
            )
        if point is None and (made := self._made_before(new_id)) is not None:
            return made
        at = self.state.cursor if point is None else self.find(point)
        self._store.fork(self._session_id, check_session_id(new_id), at, is_writer=True)
        return at

    def _made_before(self, new_id: str) -> Cursor | None:
        """Where a fork was made that nobody has begun yet: its answer was lost with a life of this process."""
        assert self._store is not None
        last = self._store.tail(check_session_id(new_id), 1)
        if not last or last[0].event != "fork" or last[0].data.get("parent") != self._session_id:
            return None
        return Cursor(int(last[0].data["seq"]), str(last[0].data["uuid"]))

    def find(self, point: dict[str, Any]) -> Cursor:
        """The event that a point names, see :func:`athena.points.point_map`. Raises :class:`NotFound`."""
        if "name" in point:
            return self._named(str(point["name"]))
        seq, uuid = int(point["seq"]), point.get("uuid")
        event = next(iter(self._recorder.log.read(seq - 1)), None)
        if event is None or event.seq != seq:
            last = self.state.cursor.seq
            raise self._not_found(f"has no event {seq}; its last one is {last}", seq)
        if uuid is not None and event.uuid != uuid:
            raise self._not_found(f"has another event {seq} than the one that was given, which is of another log", seq)
        return event.cursor

    def _named(self, name: str) -> Cursor:
        state = self.state
        if name in state.labels:
            return state.labels[name]
        if name in state.ended:
            return self.find({"seq": state.ended[name].seq})
        if name in state.receipts:
            raise self._not_found(f"has the message {name!r}, but its turn has not ended", name)
        labels = list(state.labels)
        shown = ", ".join(labels[-LABELS_SHOWN:]) + (", ..." if len(labels) > LABELS_SHOWN else "")
        raise self._not_found(f"has neither a checkpoint nor a message {name!r}; checkpoints: {shown or 'none'}", name)

    def _not_found(self, what: str, target: object) -> NotFound:
        return NotFound(f"session {self._session_id!r} {what}", target=target, session_id=self._session_id)


def _report(rewind: Rewind) -> Rewound:
    files = (FileOutcome(f["path"], f["outcome"], f.get("detail")) for f in rewind.files or ())
    return Rewound(rewind.seq, rewind.to, tuple(files))


# --- operations -------------------------------------------------------------------------------------------------------


class HasRunner(Protocol):
    """The process of a session."""

    @property
    def runner(self) -> Runner: ...


async def _checkpoint(session: HasRunner, args: dict[str, Any]) -> bytes:
    made = await session.runner.branches.checkpoint(args.get("label"))
    return dumps({"seq": made.seq, "uuid": made.uuid, "label": made.label})


async def _rewind(session: HasRunner, args: dict[str, Any]) -> bytes:
    def work() -> Awaitable[Rewound]:
        return session.runner.branches.rewind(args["to"], str(args["id"]), files=bool(args.get("files", True)))

    return dumps((await session.runner.branches.between_turns(work)).to_map())


async def _fork(session: HasRunner, args: dict[str, Any]) -> bytes:
    at = await session.runner.branches.fork(args.get("at"), args["session_id"])
    place = session.runner.branches.place
    return dumps({"session_id": args["session_id"], "seq": at.seq, "uuid": at.uuid, **place})


OPERATIONS: dict[str, Callable[[HasRunner, dict[str, Any]], Awaitable[bytes]]] = {
    "checkpoint": _checkpoint,
    "rewind": _rewind,
    "fork": _fork,
}
"""What a client asks the process of a session."""
