"""Checkpoint files: one torch archive, sealed with a SHA-256, replaced atomically.

The archive is what `torch.save` writes, readable with `torch.load(weights_only=True)`: tensors and
plain values, never code. The digest of all its bytes stands in the archive's zip comment, because
torch alone accepts a file with flipped bits.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickletools
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from newllm.config import is_own_block, parse
from newllm.data.tokenizers import from_dict
from newllm.errors import UserError
from newllm.files import previous_path, remove_abandoned, scratch_path, sync_folder, write_bytes
from newllm.model import meta_model
from newllm.model.counts.table import StoredTable
from newllm.model.own_block import check_facts

FORMAT = "new-llm"
FORMAT_VERSION = 3
"""Raise it when the content changes, and add to `MIGRATIONS` how the old one becomes the new."""

Content = dict[str, Any]

COUNTS = "counts.packed"
"""The table of counts among the weights, the one of them whose size no setting says."""

_SEAL = b"NEWLLM-SHA256:"
_SEAL_SIZE = len(_SEAL) + 64
_ZIP_END = b"PK\x05\x06"


def save(path: Path, content: Content, keep_previous: bool = False) -> None:
    """Write a sealed checkpoint of tensors and plain values in place of `path`.

    With `keep_previous` the file that was there is kept as `NAME.previous.pt`.

    Raises:
        OSError: the old file is untouched.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, buffer)
    sealed = _seal(buffer.getvalue())
    if keep_previous and path.exists():
        _link_previous(path)
    write_bytes(path, sealed)


def digest(path: Path) -> str:
    """The SHA-256 that a sealed file ends with: what another file can know it by."""
    with path.open("rb") as file:
        file.seek(-64, os.SEEK_END)
        return file.read().decode("ascii", errors="replace")


def _what_folder(path: Path) -> str:
    """What to do with a folder in place of a checkpoint."""
    if any(path.glob("*.safetensors")):
        return f"a folder of transformers; newllm import {path} -o FILE.pt makes a checkpoint of it"
    inside = sorted(path.glob("best_*.pt")) or sorted(path.glob("*.pt"))
    return f"a folder; give a checkpoint in it{f', {inside[0]}, say' if inside else ''}"


def load(path: Path) -> Content:
    """Read and verify a checkpoint.

    Raises:
        UserError: missing, damaged, of another format version, or not a checkpoint of ours.
    """
    try:
        archive = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except IsADirectoryError:
        raise UserError(f"{path}: {_what_folder(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    sealed = archive[-_SEAL_SIZE:].startswith(_SEAL)
    if sealed:
        digest = archive[-64:]
        if hashlib.sha256(archive[:-64]).hexdigest().encode() != digest:
            raise UserError(f"{path}: damaged (its SHA-256 does not match); use another copy of it")
    try:
        _check_archive(archive)
        content = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except Exception:  # torch raises whatever its pickles make it stumble over
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{path}: damaged, or not a New-LLM checkpoint (files pickled by other software are "
            "refused, since loading them could run code)"
        )
    version = content.get("format_version")
    older = content.get("kind") == "model" and version in list(MIGRATIONS)
    if version != FORMAT_VERSION and not older:
        raise UserError(
            f"{path}: checkpoint format {version}, but this version reads {FORMAT_VERSION}; "
            "use the New-LLM version that wrote it"
        )
    if not sealed:
        raise UserError(
            f"{path}: cut off, or saved again by other software (no SHA-256 at its end)"
        )
    try:
        return migrate(content, FORMAT_VERSION)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged or edited; use another copy of it") from None


def load_model(path: Path) -> Content:
    """`load` for a file that holds a model, not one that only resumes a training.

    Raises:
        UserError: it is a resume file or a reward head, besides what `load` refuses.
    """
    content = load(path)
    if content.get("kind") == "reward":
        raise UserError(f"{path}: a reward head; give the checkpoint that it lies beside")
    if content.get("kind") != "model":
        raise UserError(
            f"{path}: this file only resumes a training; give the run's best_*.pt or *_final.pt"
        )
    try:
        _check_model(content)
    except (ValueError, RuntimeError, UserError) as error:
        problem = str(error).split("\n")[0]
        raise UserError(f"{path}: damaged or edited ({problem}); use another copy of it") from None
    return content


RECORD = {"metrics": dict, "data": dict, "newllm_version": str, "torch_version": str,
          "created": str}  # fmt: skip
"""What a model file says of its training besides the settings, and the type of each."""

_PARTS = {"settings": dict, "tokenizer": dict, "model": dict, **RECORD}


def _check_model(content: Content) -> None:
    """Refuse a model whose parts do not fit each other, before anything is allocated for it.

    The seal finds damage; anyone can write a sealed file.

    Raises:
        ValueError, UserError: with what does not fit.
    """
    for name, kind in _PARTS.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"no {name}")
    settings = parse(content["settings"])
    size = from_dict(content["tokenizer"]).vocab_size
    found = content["model"]
    if is_own_block(settings.architecture):
        check_facts(content.get("block"))
        expected = found  # what its shapes should be, only its file could say: that is not run here
    else:
        expected = meta_model(settings.model_settings(), size).state_dict()
    for name in sorted(expected.keys() | found.keys(), key=str):
        tensor = found.get(name)
        if name not in expected or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name} is no weight of this shape of model")
        if name == COUNTS:
            check_counts(tensor, size)
        elif tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ValueError(f"{name} is not of the shape that the settings say")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{name} is no plain tensor")


def check_counts(packed: torch.Tensor, vocab_size: int) -> None:
    """Refuse bytes that are no table of counts for that vocabulary; raises ValueError."""
    if packed.dtype != torch.uint8 or packed.ndim != 1:
        raise ValueError(f"{COUNTS} holds no bytes")
    StoredTable.unpack(packed.numpy(), vocab_size)


def counts_bytes(content: Content) -> int:
    """Size of a model's table of counts; 0 for none."""
    packed = content["model"].get(COUNTS)
    return 0 if packed is None else len(packed)


def count_parameters(content: Content) -> int:
    """Parameters of a model; its counts are none."""
    return sum(t.numel() for name, t in content["model"].items() if name != COUNTS)


def load_newest(
    path: Path, also: Callable[[Path, Content], None] = lambda path, content: None
) -> tuple[Content, str | None] | None:
    """The newest valid of a file and its previous one, and a line to print if it is not the first.

    None where there is neither. Raises UserError where files exist but none is valid. What `also`
    refuses with one is not valid either.
    """
    problem: UserError | None = None
    for candidate in filter(Path.exists, (path, previous_path(path))):
        try:
            content = load(candidate)
            also(path, content)
        except UserError as error:
            problem = problem or error
        else:
            return content, f"{problem}; going on from {candidate.name}" if problem else None
    if problem is not None:
        raise problem
    return None


def _check_archive(archive: bytes) -> None:
    """Refuse what torch would unpack or allocate beyond the bytes that are there.

    Raises:
        ValueError, zipfile.BadZipFile: it is nothing that `torch.save` writes.
    """
    with zipfile.ZipFile(io.BytesIO(archive)) as parts:
        entries = parts.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed")
        if sum(entry.file_size for entry in entries) > len(archive):
            raise ValueError("parts that overlap")
        (pickled,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
        for operation, argument, _ in pickletools.genops(parts.read(pickled)):
            if operation.name in ("GLOBAL", "STACK_GLOBAL") and argument not in _GLOBALS:
                raise ValueError(f"{argument} is no part of a checkpoint")


_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in ("Float", "BFloat16", "Half", "Double", "Long", "Int",
                                          "Short", "Char", "Byte", "Bool")),
}  # fmt: skip
"""What our checkpoints are made of besides plain values; torch alone would allow more."""


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


# Models that earlier versions wrote, brought to the present format one version at a time.

_RENAMED_IN_2 = {
    "context_norm": "mixer_norm",
    "hidden_norm": "feed_forward.norm",
    "up_proj.weight": "feed_forward.up_proj.weight",
    "down_proj.weight": "feed_forward.down_proj.weight",
}
"""Parameters of a `context` block; those of the other architectures kept their names."""


def _to_2(content: Content) -> Content:
    if content["settings"]["architecture"] != "context":
        return content
    return {**content, "model": {_name_in_2(k): value for k, value in content["model"].items()}}


def _name_in_2(name: str) -> str:
    if not name.startswith("blocks."):
        return name
    blocks, index, own = name.split(".", 2)
    return f"{blocks}.{index}.{_RENAMED_IN_2.get(own, own)}"


def _to_3(content: Content) -> Content:
    """The read-out gates of `context` got a bias."""
    if content["settings"]["architecture"] != "context":
        return content
    model = dict(content["model"])
    for name, forget_bias in content["model"].items():
        if name.endswith("forget_bias"):
            model[name.replace("forget_bias", "read_bias")] = torch.zeros_like(forget_bias)
    return {**content, "model": model}


MIGRATIONS: dict[int, Callable[[Content], Content]] = {1: _to_2, 2: _to_3}
"""Format version -> what makes the next one of it."""


def migrate(content: Content, version: int) -> Content:
    """The content of a model file of an earlier format, as the format `version` has it.

    Raises:
        KeyError: there is no way from its format to that one.
    """
    while content["format_version"] != version:
        here = content["format_version"]
        content = {**MIGRATIONS[here](content), "format_version": here + 1}
    return content
