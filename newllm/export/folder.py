"""Folders of several files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from newllm.errors import UserError
from newllm.files import remove_abandoned, scratch_path, sync_folder


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to write into, which becomes `path` when all went well.

    Raises:
        UserError: there is something at `path` already.
    """
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise UserError(f"{path}: exists already; name a folder that does not")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    scratch = scratch_path(path)
    scratch.mkdir()
    try:
        yield scratch
        if path.exists():
            path.rmdir()
        os.replace(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    sync_folder(path.parent)
