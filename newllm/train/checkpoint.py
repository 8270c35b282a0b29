"""Checkpoint files: one torch archive, sealed with a SHA-256, replaced atomically.

The archive is what `torch.save` writes, readable with `torch.load(weights_only=True)`: tensors and
plain values, never code. The digest of all its bytes stands in the archive's zip comment, because
torch alone accepts a file with flipped bits.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import torch

from newllm.errors import UserError
from newllm.files import (
    previous_path,
    remove_abandoned,
    scratch_path,
    sync_folder,
    write_bytes,
)

FORMAT = "new-llm"
FORMAT_VERSION = 2

_SEAL = b"NEWLLM-SHA256:"
_SEAL_SIZE = len(_SEAL) + 64
_ZIP_END = b"PK\x05\x06"


def save(path: Path, content: dict[str, Any], keep_previous: bool = False) -> None:
    """Write a sealed checkpoint in place of `path`.

    Args:
        path: the file.
        content: tensors and plain values.
        keep_previous: keep the file that was there as `NAME.previous.pt`.

    Raises:
        OSError: the old file is untouched.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, buffer)
    sealed = _seal(buffer.getvalue())
    if keep_previous and path.exists():
        _link_previous(path)
    write_bytes(path, sealed)


def load(path: Path) -> dict[str, Any]:
    """Read and verify a checkpoint.

    Raises:
        UserError: missing, damaged, of another format version, or not a checkpoint of ours.
    """
    try:
        archive = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    sealed = archive[-_SEAL_SIZE:].startswith(_SEAL)
    if sealed:
        digest = archive[-64:]
        if hashlib.sha256(archive[:-64]).hexdigest().encode() != digest:
            raise UserError(f"{path}: damaged (its SHA-256 does not match); use another copy of it")
    try:
        content = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{path}: damaged, or not a New-LLM checkpoint (files pickled by other software are "
            "refused, since loading them could run code)"
        )
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: checkpoint format {version}, but this version reads {FORMAT_VERSION}; "
            "use the New-LLM version that wrote it"
        )
    if not sealed:
        raise UserError(
            f"{path}: cut off, or saved again by other software (no SHA-256 at its end)"
        )
    return content


def load_model(path: Path) -> dict[str, Any]:
    """`load` for a file that holds a model, not just the means to go on training.

    Raises:
        UserError: it is another file of ours, besides what `load` refuses.
    """
    content = load(path)
    if content["kind"] != "model":
        raise UserError(
            f"{path}: this file only resumes a training; give the run's best_*.pt or *_final.pt"
        )
    return content


def load_newest(path: Path) -> tuple[dict[str, Any], str | None] | None:
    """The newest valid of a file and its previous one, and a line to print if it is not the first.

    None where there is neither. Raises UserError where files exist but none is valid.
    """
    problem: UserError | None = None
    for candidate in (path, previous_path(path)):
        if not candidate.exists():
            continue
        try:
            content = load(candidate)
        except UserError as error:
            problem = problem or error
            continue
        return content, f"{problem}; going on from {candidate.name}" if problem else None
    if problem is not None:
        raise problem
    return None


def _seal(archive: bytes) -> bytes:
    """Put the digest into the zip's comment; every byte before it is covered."""
    end = archive.rindex(_ZIP_END)
    if end + 22 != len(archive):
        raise ValueError("torch.save wrote an archive with a comment of its own")
    body = archive[:-2] + struct.pack("<H", _SEAL_SIZE) + _SEAL
    return body + hashlib.sha256(body).hexdigest().encode()


def _link_previous(path: Path) -> None:
    """Keep `path` under its previous name too, so that no instant is without a valid file."""
    previous = previous_path(path)
    scratch = scratch_path(previous)
    scratch.unlink(missing_ok=True)
    try:
        os.link(path, scratch)
    except OSError:  # file systems without hard links
        shutil.copyfile(path, scratch)
    os.replace(scratch, previous)
    scratch.unlink(missing_ok=True)  # a rename of a file onto itself leaves both names
    sync_folder(path.parent)
    remove_abandoned(previous)
