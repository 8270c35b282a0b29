"""Writing files so that a kill or a full disk at any instant leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
"""What a full, read-only or forbidden disk says: for the user to mend."""


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` atomically: write beside it, flush, fsync, rename, fsync the folder.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # say which file
        raise
    sync_folder(path.parent)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode("utf-8"))


def previous_path(path: Path) -> Path:
    """Where the file before the newest is kept, of those that keep one."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable (where the system can: not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
