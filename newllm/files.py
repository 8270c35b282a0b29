"""Writing files so that a kill or a full disk at any instant leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import shutil
import tempfile
from pathlib import Path

from newllm.errors import UserError

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
"""What a full, read-only or forbidden disk says: for the user to mend."""

PATH_ERRORS = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
"""What is said of a path where no file can be: for the user to mend as well."""


def write_bytes(path: Path, content: bytes, tidy: bool = True) -> None:
    """Replace `path` atomically: write beside it, flush, fsync, rename, fsync the folder.

    Args:
        path: of the file.
        content: of the file.
        tidy: remove what earlier writers left beside it when they were killed, which looks through
            the whole folder.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file is untouched.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_path(path)
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
    if tidy:
        remove_abandoned(path)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text; a byte of a path that is no text is written as JSON and YAML
    escape it."""
    write_bytes(path, content.encode("utf-8", errors="backslashreplace"))


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits; read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where encoded data and measured marks live: `NEWLLM_CACHE`, else `~/.cache/newllm` (or its
    XDG equivalent).

    Raises:
        UserError: there is no home, and neither variable is set.
    """
    if given := os.environ.get("NEWLLM_CACHE"):
        return Path(given)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "newllm"
    try:
        return Path.home() / ".cache" / "newllm"
    except RuntimeError:
        raise UserError(f"there is no home folder; {_SET_CACHE}") from None


_SET_CACHE = "set NEWLLM_CACHE to a folder for encoded rows"


def writable_folder(folder: Path, remedy: str) -> None:
    """Make a folder, and see that files can be written there.

    Raises:
        UserError: they cannot; the message ends with the remedy.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: no folder to write in ({error.strerror}); {remedy}") from None


def make_cache_folder(name: str) -> Path:
    """The folder of that name in the cache, there and writable.

    Raises:
        UserError: it is not.
    """
    folder = cache_folder() / name
    writable_folder(folder, _SET_CACHE)
    return folder


def previous_path(path: Path) -> Path:
    """Where the file before the newest is kept, of those that keep one."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def scratch_path(path: Path) -> Path:
    """Where this process writes what will become `path`; another process writes elsewhere."""
    return path.with_name(f"{_scratch_prefix(path)}{os.getpid()}")


def remove_abandoned(path: Path) -> None:
    """Remove what processes of this machine left beside `path` when they were killed."""
    prefix = _scratch_prefix(path)
    left = [entry for entry in os.scandir(path.parent) if entry.name.startswith(prefix)]
    if not left:
        return
    import psutil

    for entry in left:
        number = entry.name.removeprefix(prefix)
        if not number.isdecimal() or psutil.pid_exists(int(number)):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def _scratch_prefix(path: Path) -> str:
    """Names the machine, too: folders are shared, process numbers are not."""
    return f".{path.name}.tmp-{platform.node()}-"


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable (where the system can: not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
