"""A pid that cannot reach the wrong process."""

from __future__ import annotations

from typing import Any


class Pid(int):
    """The OS pid of one incarnation of a session's child, as an ``int`` that also carries its supervisor and serial.

    Athena's calls compare the serial, so a number that the kernel has used again never reaches another process.
    """

    supervisor: str | None
    serial: int | None

    def __new__(cls, pid: int, serial: int | None = None, supervisor: str | None = None) -> Pid:
        self = super().__new__(cls, pid)
        self.serial = serial
        self.supervisor = supervisor
        return self

    def __repr__(self) -> str:
        return f"Pid({int(self)}, serial={self.serial})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Pid, (int(self), self.serial, self.supervisor))

    @staticmethod
    def from_map(value: dict[str, Any] | None) -> Pid | None:
        """The pid in its wire form, or ``None``."""
        return None if value is None else Pid(value["pid"], value.get("serial"), value.get("supervisor"))
