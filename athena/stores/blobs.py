"""Large values out of line: content-addressed files beside a log (design: the event log).

What only people look at, and what is larger than :data:`OUT_OF_LINE_BYTES`, is not in the line but in a file
``<root>/<session_id>.blobs/<sha256>``; the line has a reference with the session's id in it, so that it means the same
wherever the line is read. A blob is whole before a line names it: what a crash leaves in between is a file that no
line names.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import orjson

from athena.errors import NotFound
from athena.events import Event, check_session_id
from athena.stores.base import Log, Store
from athena.stores.files import make_private_dirs, store_error, sync_dir

OUT_OF_LINE_BYTES = 64 * 1024
"""A payload for people that has more than this as JSON goes out of line."""

_NAME = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = ".part"


@runtime_checkable
class BlobLog(Log, Protocol):
    """A log that takes large values out of line. This is optional: in another they stay in their lines."""

    def put_blob(self, data: bytes, *, durable: bool) -> str:
        """Keep ``data`` and return its reference. When this returns no crash of this process loses it, and with
        ``durable`` no power cut. May block, and be called from another thread than ``append``.

        Raises :class:`athena.errors.DiskError`; then nothing of it counts.
        """
        ...


@runtime_checkable
class BlobStore(Store, Protocol):
    """A store whose logs are :class:`BlobLog`."""

    def read_blob(self, ref: str) -> bytes:
        """What was kept under ``ref``.

        Raises :class:`athena.errors.NotFound` if it is gone or not what it was, :class:`athena.errors.StoreError`.
        """
        ...


class Blobs:
    """The blobs of one session: the files in ``<id>.blobs`` beside its log, which is made for the first of them."""

    def __init__(self, log: Path) -> None:
        self.path = log.with_name(f"{log.stem}.blobs")
        self._session_id = log.stem
        self._synced_dirs = False
        self._suspect: set[str] = set()  # files whose sync has failed: the kernel calls them clean, whatever they are

    def put(self, data: bytes, *, durable: bool) -> str:
        """See :meth:`BlobLog.put_blob`. The same bytes are kept once. Raises ``OSError``."""
        name = hashlib.sha256(data).hexdigest()
        target = self.path / name
        is_whole = name not in self._suspect and _holds(target, data)
        self._suspect.add(name)  # until all of this has been done
        if not is_whole:
            make_private_dirs(self.path)
            _write(target, data, durable=durable)
        elif durable:
            _sync_file(target)
        if durable:
            sync_dir(self.path)
            if not self._synced_dirs:
                sync_dir(self.path.parent)
                self._synced_dirs = True
        self._suspect.discard(name)
        return f"{self._session_id}/{name}"

    def read(self, name: str) -> bytes:
        """The blob of this name. Raises :class:`NotFound` also if its bytes are not those that it was named after."""
        path = self.path / name
        ref = f"{self._session_id}/{name}"
        try:
            data = _read(path)
        except FileNotFoundError:
            raise NotFound(f"there is no blob {ref!r} ({str(path)!r})", target=ref) from None
        except OSError as error:
            raise store_error(error, "read the blob", path, self._session_id) from error
        if hashlib.sha256(data).hexdigest() != name:
            raise NotFound(f"the blob {ref!r} is damaged: {str(path)!r} has other bytes", target=ref)
        return data

    def sizes(self) -> dict[str, int]:
        """Bytes of each file there, by its name; unfinished ones too. Raises ``OSError``."""
        try:
            with os.scandir(self.path) as entries:
                return {e.name: e.stat(follow_symlinks=False).st_size for e in entries}
        except FileNotFoundError:
            return {}

    def remove(self, names: Iterable[str]) -> None:
        """Remove these files, and the directory if it is empty then. Raises ``OSError``."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)
        try:
            self.path.rmdir()
        except OSError:
            pass  # there are others, or there is none


def split_ref(ref: object) -> tuple[str, str]:
    """Session id and name of a reference. Raises :class:`NotFound` for what is none."""
    session_id, _, name = ref.partition("/") if isinstance(ref, str) else ("", "", "")
    try:
        check_session_id(session_id)
    except ValueError:
        name = ""
    if not _NAME.fullmatch(name):
        raise NotFound(f"{ref!r} is no reference to a blob: expected '<session id>/<sha256>'", target=repr(ref)[:200])
    return session_id, name


# --- in events: pure -------------------------------------------------------------------------------------------------


def large_payloads(kind: str, data: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The results in an event's data whose payload is to go out of line, with that payload as JSON."""
    if kind != "tool_result":
        return
    for result in data["message"].get("tool_results", ()):
        payload = (result.get("ui_payload") or {}).get("payload")
        if payload is None:
            continue
        try:
            encoded = orjson.dumps(payload)
        except TypeError:
            continue  # what the log shows of it is not what it is; it stays in line
        if len(encoded) > OUT_OF_LINE_BYTES:
            yield result, encoded


def referred(result: dict[str, Any], ref: str, size_bytes: int) -> dict[str, Any]:
    """``result`` with a reference in place of its payload."""
    ui = {**result["ui_payload"], "payload": None, "blob": {"ref": ref, "size_bytes": size_bytes}}
    return {**result, "ui_payload": ui}


def ref_of(ui_payload: object) -> str | None:
    """The reference that a payload for people is behind, if it is out of line."""
    blob = ui_payload.get("blob") if isinstance(ui_payload, dict) else None
    ref = blob.get("ref") if isinstance(blob, dict) else None
    return ref if isinstance(ref, str) else None


def refs_in(event: Event) -> list[str]:
    """The references in an event."""
    if event.event == "file_edit":
        before = event.data.get("before")
        ref = before.get("ref") if isinstance(before, dict) else None
        return [ref] if isinstance(ref, str) else []
    return [ref for ui in _payloads(event) if (ref := ref_of(ui)) is not None]


def resolved(ui_payload: dict[str, Any], read: Callable[[str], bytes]) -> dict[str, Any]:
    """``ui_payload`` with what its reference stands for. As it is if that is gone: it still says what it was."""
    ref = ref_of(ui_payload)
    if ref is None:
        return ui_payload
    try:
        payload = orjson.loads(read(ref))
    except (NotFound, orjson.JSONDecodeError):
        return ui_payload
    return {**{k: v for k, v in ui_payload.items() if k != "blob"}, "payload": payload}


def in_line(event: Event, read: Callable[[str], bytes]) -> Event:
    """``event`` as it would be without blobs, for who has the line alone."""
    if event.event != "tool_result" or not refs_in(event):
        return event
    record = orjson.loads(event.line)
    for result in record["data"]["message"]["tool_results"]:
        result["ui_payload"] = resolved(result["ui_payload"], read)
    return Event(event.seq, event.ts, event.event, event.uuid, record["data"], event.turn, line=orjson.dumps(record))


def _payloads(event: Event) -> Iterator[object]:
    message = event.data.get("message") if event.event == "tool_result" else None
    results = message.get("tool_results") if isinstance(message, dict) else None
    for result in results if isinstance(results, list) else ():
        if isinstance(result, dict):
            yield result.get("ui_payload")


def _holds(target: Path, data: bytes) -> bool:
    """Whether it is there already. One that a power cut has spoiled is not."""
    try:
        return _read(target) == data
    except OSError:
        return False


def _write(target: Path, data: bytes, *, durable: bool) -> None:
    """It is whole before it has its name; what fails leaves nothing."""
    part = target.with_suffix(_UNFINISHED)
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            written = 0
            while written < len(data):
                written += os.write(fd, memoryview(data)[written:])
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sync_file(target: Path) -> None:
    fd = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read()
