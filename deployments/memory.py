"""Returns the memory of a finished request to the system when the process has time."""

from __future__ import annotations

import ctypes
from pathlib import Path

KEPT_MIB = 256
"""A process may keep this much more memory than at its start. The next request can use it, which is faster than asking
the kernel for memory."""


class Memory:
    """The memory of this process, compared with its start."""

    def __init__(self) -> None:
        self._at_start = private_mib()

    def give_back(self) -> None:
        """Return unused memory to the kernel if there may be much of it. This takes milliseconds."""
        if private_mib() > self._at_start + KEPT_MIB:
            ctypes.CDLL(None).malloc_trim(0)


def private_mib(pid: int | str = "self") -> int:
    """The memory of a process that it does not share with others."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) // 1024
