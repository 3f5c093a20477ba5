"""Memory that a request needed, given back once the process has time."""

from __future__ import annotations

import ctypes
from pathlib import Path

KEPT_MIB = 256
"""How much more than at its start a process may keep for the next request: asking the kernel for memory takes time."""


class Memory:
    """What this process holds, from its start on."""

    def __init__(self) -> None:
        self._at_start = private_mib()

    def give_back(self) -> None:
        """Return to the kernel what is not used, where that may be much. Takes milliseconds."""
        if private_mib() > self._at_start + KEPT_MIB:
            ctypes.CDLL(None).malloc_trim(0)


def private_mib(pid: int | str = "self") -> int:
    """The memory of a process that it shares with no other."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) // 1024
