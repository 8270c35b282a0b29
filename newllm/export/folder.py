"""The folders that exports write: they appear whole or not at all, and go to the Hub (`--push`)."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from newllm.errors import UserError
from newllm.files import remove_abandoned, scratch_path, sync_folder

TEMPLATES = Path(__file__).parent / "templates"
"""What the model card and the chat templates are made of."""


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


_NETWORK = ("huggingface_hub", "httpx", "httpx2", "requests")
"""Whose errors are about the connection: the Hub's client, and those it has been built on."""


class Hub(Protocol):
    """The part of `huggingface_hub.HfApi` that is used."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any: ...

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any: ...


def push(folder: Path, repository: str, private: bool = True, hub: Hub | None = None) -> str:
    """Upload a folder, creating the repository if it is not there.

    Args:
        folder: that an export wrote.
        repository: `user/name`.
        private: whether a repository that is created is.
        hub: where it goes; the Hub that huggingface-hub is logged in to by default.

    Returns:
        address of what was uploaded.

    Raises:
        UserError: no connection, no right, a bad name; the folder stays as it is.
    """
    if hub is None:
        from huggingface_hub import HfApi

        hub = HfApi()
    try:
        created = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=created.repo_id, folder_path=folder, commit_message="Exported by newllm"
        )
    except Exception as error:
        package = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError) and package not in _NETWORK:
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--push {repository}: {reason} (the folder {folder} is complete; log in with "
            "`hf auth login`)"
        ) from None
    return str(created)
