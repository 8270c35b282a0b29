"""What keeps the files of a run safe: a lock against a second writer, and stops between steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import filelock

from newllm.errors import UserError
from newllm.files import writable_folder


@contextlib.contextmanager
def run_lock(folder: Path, name: str, note: Callable[[str], None] = print) -> Iterator[None]:
    """Hold the run's lock file; the lock dies with the process, however it ends.

    Some network folders cannot lock files: there the run goes on, and `note` prints a line.

    Raises:
        UserError: another process trains under this name.
    """
    writable_folder(folder, "give another --out")
    lock = filelock.FileLock(folder / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"{folder / name}: another process is writing this run; wait for it, stop it, "
            "or choose another --name or --out"
        ) from None
    except NotImplementedError:
        note(f"{folder} cannot lock files: let no second process write this run.")
    try:
        yield
    finally:
        lock.release()


class StopRequest:
    """Turns Ctrl-C, SIGTERM and a lost terminal into a request honoured after the current step.

    A second signal of the same kind acts as usual (and the last save stands), unless this process
    was `launched`: a launcher may repeat what it got already, and ends the others when the first
    one has left.
    """

    def __init__(self, launched: bool = False) -> None:
        self.signal: int | None = None
        self._launched = launched

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Catch the signals inside the block."""
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is not on Windows
        kinds = [getattr(signal, name) for name in names if hasattr(signal, name)]
        # `nohup` ignores SIGHUP, and so do we then.
        kinds = [kind for kind in kinds if signal.getsignal(kind) is not signal.SIG_IGN]
        self._before = {kind: signal.signal(kind, self._handle) for kind in kinds}
        try:
            yield self
        finally:
            # A launcher terminates the other processes when the first one has exited. They are
            # exiting too, and ignore its signal, also while Python shuts down.
            leaving = self._launched and self.signal is not None
            for kind, handler in self._before.items():
                signal.signal(kind, signal.SIG_IGN if leaving else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if not self._launched:
            signal.signal(number, self._before[signal.Signals(number)])

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.signal or 0)
