"""Faults at every change of a file, made from outside: the package knows nothing of them.

Python's audit events tell of every file that is opened for writing, renamed, linked or removed, and
of every folder made or removed; `os.fsync` is wrapped. Each of them below the watched folders is a
point, numbered from 1, at which a process can be killed or told that it may not go on.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS}
"""Faults that are an answer of the system; `kill` is the other one."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}


class Injector:
    """Counts the points of this process, for good, and strikes at one of them.

    Args:
        watched: folders whose files count.
        at: number of the point; 0 for none.
        fault: `kill`, or one of `ERRORS`; an error stays from that point on, as a full disk does.
        record: told the name of every point.
    """

    def __init__(
        self, watched: Sequence[str], at: int, fault: str, record: Callable[[str], None]
    ) -> None:
        self._watched = tuple(os.path.join(folder, "") for folder in watched)
        self._at, self._fault, self._record = at, fault, record
        self._count, self._process = 0, 0
        self._fsync = os.fsync

    def install(self) -> None:
        """Begin to count. Audit hooks cannot be taken back: only in a process made for it."""
        self._process = os.getpid()
        os.fsync = self._on_fsync
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            # What is only freed or removed works on a full disk; on a read-only one, nothing does.
            if isinstance(path, (str, bytes)) and flags & _WRITES:
                self._point("open", os.fsdecode(path))
        elif event in _EVENTS:
            frees = event in ("os.remove", "os.rmdir") and self._fault == "full"
            place = arguments[1] if event in ("os.rename", "os.link") else arguments[0]
            if isinstance(place, (str, bytes, os.PathLike)) and not frees:
                self._point(event, os.fsdecode(place))

    def _on_fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not os.path.isdir(path):
            self._point("half written", path, descriptor)
        self._point("fsync", path)
        self._fsync(descriptor)

    def _point(self, name: str, path: str, half: int | None = None) -> None:
        path = os.path.abspath(path)
        if not path.startswith(self._watched) or os.getpid() != self._process:
            return  # another process that this one began has points of its own, uncounted
        self._count += 1
        self._record(f"{name} {os.path.basename(path)}")
        if self._at == 0 or self._count < self._at:
            return
        if half is not None:
            os.ftruncate(half, os.fstat(half).st_size // 2)
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = ERRORS[self._fault]
        raise OSError(number, os.strerror(number), path)
