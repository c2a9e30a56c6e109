"""The sessions that the roster names, brought back by a daemon that starts (design 6).

All of them are there before the daemon listens, asleep or failed as they were, so their names can be called at once.
Then their logs are looked at: a session that has something to do is started, a few at a time; the others cost no
process until somebody needs them. None has its grants: see :mod:`supervisor.grants`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from athena.errors import AthenaError
from athena.events import Event
from athena.stores.jsonl import JsonlStore
from supervisor.core import SessionCore
from supervisor.keeper import Keeper
from supervisor.process_roster import boot_id
from supervisor.roster import Entry, Roster
from supervisor.session_request import SessionRequest
from supervisor.vocabulary import State

if TYPE_CHECKING:
    from supervisor.daemon import Daemon

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Sessions that are looked at, or started, at the same time."""

SIGN_OF_LIFE = 1000
"""Sessions after which a start that takes long says that it goes on."""

LOOK_BACK = (64, 1024, 16384)
"""How many of a log's last events are read to see whether something is open; then its child has to tell."""


class Respawn:
    """What came back, and what did not."""

    def __init__(self, daemon: Daemon, roster: Roster) -> None:
        self._daemon = daemon
        self._roster = roster
        self._asleep: list[Keeper] = []
        self._boot = boot_id()
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self.respawned = 0
        self.lost = 0
        """They stay in the roster, for a daemon that can take them."""

    def restore(self, still_busy: Callable[[], None]) -> None:
        """Have all sessions again. Before the daemon listens, so that no call is told that one is not there.

        ``still_busy`` is called now and then: each takes some 0.5 ms, and whoever waits should go on waiting.
        """
        entries, self._roster.entries = self._roster.entries, {}
        for number, entry in enumerate(entries.values()):
            if number % SIGN_OF_LIFE == 0:
                still_busy()
            why = self._is_over(entry)
            if why is not None:
                logger.info("session %r does not come back: %s", entry.session_id, why)
                self._roster.stopped(entry.session_id)
                continue
            try:
                self._restore(entry)
            except (AthenaError, ValueError) as error:
                self.lost += 1
                logger.error("session %r is lost: %s", entry.session_id, error)
            else:
                self.respawned += 1
        if entries:
            logger.info("roster: respawned=%d lost=%d", self.respawned, self.lost)

    async def wake(self) -> None:
        """Start those in which something is open. One after another where there are many."""
        asleep, self._asleep = self._asleep, []
        await asyncio.gather(*(self._look(keeper) for keeper in asleep))
        awaiting = sum(keeper.grants.are_awaited for keeper in asleep)
        if awaiting:
            logger.info("roster: in %d sessions something is open and waits for their clients' grants", awaiting)

    def _is_over(self, entry: Entry) -> str | None:
        """Why a session is not to come back; ``None`` if it is."""
        if entry.owner is not None and not entry.owner.is_alive:
            return f"the program {entry.owner.identity.pid} that it was linked to has ended"
        # After a power cut the log of one that was only just started may never have reached the disk.
        if entry.spec.get("store", "jsonl") == "jsonl" and self._roster.boot == self._boot:
            root = str(entry.spec.get("root") or self._daemon.sessions)
            if not os.path.exists(f"{root}/{entry.session_id}.jsonl"):
                return "its log was removed"
        return None

    def _restore(self, entry: Entry) -> None:
        daemon = self._daemon
        request = SessionRequest.from_map(entry.spec, entry.init.encode(), daemon.sessions)
        keeper = Keeper(request, daemon)
        if entry.has_failed:
            keeper.core = SessionCore.restored(request.spec, State.FAILED, entry.reason)
        elif request.needs_client:
            reason = {"needs": "store_options"}
            keeper.core = SessionCore.restored(request.spec, State.FAILED, reason)
        else:
            keeper.core = SessionCore.restored(request.spec, State.HIBERNATED, "noconnection")
        daemon.registry.add(keeper)
        keeper.grants.lack()
        if entry.owner is not None:
            daemon.link(keeper, entry.owner.identity.pid)
        if keeper.core.state is State.HIBERNATED:
            keeper.serial = daemon.next_serial()
            daemon.processes.add(keeper)
            daemon.registry.awake.discard(keeper)
            self._asleep.append(keeper)

    async def _look(self, keeper: Keeper) -> None:
        async with self._at_once:
            is_open, last_seq = await asyncio.to_thread(look, keeper.request)
            keeper.topic.reached(last_seq)
            if not is_open or keeper.core.state is not State.HIBERNATED:
                return
            try:
                await keeper.grants.wake()
            except AthenaError as error:
                logger.warning("%s: %s", keeper.label, error)


def look(request: SessionRequest) -> tuple[bool, int]:
    """Whether the log has something to do for its session, or cannot tell; and its last seq, 0 if that is not known.
    Reads the log's end."""
    last_seq = 0
    if request.store != "jsonl" or request.root is None:
        return True, last_seq  # only its own process can read it
    store = JsonlStore(Path(request.root), allow_network=True)
    for count in LOOK_BACK:
        try:
            recent = store.tail(request.session_id, count)
        except AthenaError:
            break
        last_seq = recent[-1].seq if recent else 0
        found = has_work(recent, is_whole=len(recent) < count)
        if found is not None:
            return found, last_seq
    return True, last_seq


def has_work(recent: Sequence[Event], *, is_whole: bool) -> bool | None:
    """Whether a turn is open, a message waits or a rewind is not done, by a log's last events; ``None`` if these do not
    tell. Pure.

    Messages get their turns in the order in which they were accepted. So behind the acceptance of the message whose
    turn was begun last, everything has ended or is seen.
    """
    done: set[str] = set()
    last: str | None = None
    restored: set[int] = set()
    for event in reversed(recent):
        match event.event, event.data:
            case "fork", _:
                return False  # what is before it is its parent's
            case "files_restored", {"rewind": int(seq)}:
                restored.add(seq)
            case "rewind", {"files": True} if event.seq not in restored:
                return True
            case "turn_end", {"message_id": str(message_id)}:
                done.add(message_id)
            case "message_cancelled", {"message_ids": list(message_ids)}:
                done.update(map(str, message_ids))
            case "turn_start" | "message_accepted", {"message_id": str(message_id)} if message_id not in done:
                return True
            case "turn_start", {"message_id": str(message_id)}:
                last = last or message_id
            case "message_accepted", {"message_id": str(message_id)} if message_id == last:
                return False
    return False if is_whole else None
