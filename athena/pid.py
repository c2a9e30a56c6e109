"""A pid that cannot reach the wrong process."""

from __future__ import annotations

from typing import Any

LOGICAL = 2**32
"""Added to the serial of what is no OS process, a supervisor of a tree: no system call takes so large a pid, so that
``os.kill`` with it fails and hits nobody."""


class Pid(int):
    """The OS pid of one incarnation of a supervised process, as an ``int`` that also carries its supervisor and serial.

    Athena's calls compare the serial, so a number that the kernel has used again never reaches another process. The
    pid of a supervisor in a tree is logical: it has a serial, and a number that is no process's.
    """

    supervisor: str | None
    serial: int | None

    def __new__(cls, pid: int, serial: int | None = None, supervisor: str | None = None) -> Pid:
        self = super().__new__(cls, pid)
        self.serial = serial
        self.supervisor = supervisor
        return self

    @property
    def is_logical(self) -> bool:
        """Whether it is no OS process: a supervisor's, a registry's, or that of a session that sleeps."""
        return int(self) > LOGICAL

    def __repr__(self) -> str:
        return f"Pid(serial={self.serial})" if self.is_logical else f"Pid({int(self)}, serial={self.serial})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Pid, (int(self), self.serial, self.supervisor))

    @staticmethod
    def from_map(value: dict[str, Any] | None) -> Pid | None:
        """The pid in its wire form, or ``None``."""
        if value is None:
            return None
        number = LOGICAL + value["serial"] if value["pid"] is None else value["pid"]
        return Pid(number, value.get("serial"), value.get("supervisor"))

    def to_map(self) -> dict[str, Any]:
        """The wire form."""
        return {"pid": None if self.is_logical else int(self), "serial": self.serial, "supervisor": self.supervisor}
