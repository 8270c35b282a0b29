"""`--push`: an exported folder goes to a repository on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import HfApi

from newllm.errors import UserError

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
    api: Hub = hub or HfApi()
    try:
        created = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
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
