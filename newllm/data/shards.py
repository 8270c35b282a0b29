"""Encoded documents on disk: memory-mapped shards and a manifest that accounts for every row.

A folder holds one data set encoded once::

    manifest.json                 counts, malformed rows, size and SHA-256 of every file
    tokenizer.json
    train-00000.tokens.npy        uint16 [N]     ids of all documents, one after the other
    train-00000.assistant.npy     bool   [N]     tokens an assistant has to produce
    train-00000.documents.npy     int64  [D, 3]  tokens, content bytes, assistant bytes of each

It is written under another name and renamed when complete, so a folder that exists is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from newllm.data.render import Document

SHARD_TOKENS = 16 * 1024 * 1024
"""Tokens after which a new shard begins: bounds the memory that preparing needs."""

_PARTS = {"tokens": np.dtype(np.uint16), "assistant": np.dtype(bool), "documents": np.dtype("<i8")}


class Documents(Protocol):
    """What batches are made of: a split, or a mixture of several."""

    lengths: np.ndarray
    """Tokens of each document, [D] int64."""

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray: ...

    def assistant(self, document: int, start: int, stop: int) -> np.ndarray: ...


class EncodedSplit:
    """The documents of one split, read through memory maps."""

    def __init__(self, folder: Path, split: str, shards: int) -> None:
        self._tokens, self._assistant, tables = [], [], []
        for shard in range(shards):
            stem = f"{split}-{shard:05d}"
            self._tokens.append(np.load(folder / f"{stem}.tokens.npy", mmap_mode="r"))
            self._assistant.append(np.load(folder / f"{stem}.assistant.npy", mmap_mode="r"))
            tables.append(np.load(folder / f"{stem}.documents.npy"))
        self._first_document = np.cumsum([0] + [len(table) for table in tables])
        documents = np.concatenate(tables) if tables else np.zeros((0, 3), np.int64)
        self.lengths: np.ndarray = documents[:, 0]
        """Tokens of each document, [D] int64."""
        self.content_bytes: np.ndarray = documents[:, 1]
        self.assistant_bytes: np.ndarray = documents[:, 2]
        offsets = np.cumsum(self.lengths) - self.lengths
        for shard in range(shards):  # offsets count from the start of the shard
            begin, end = self._first_document[shard : shard + 2]
            if end > begin:
                offsets[begin:end] -= offsets[begin]
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Ids of tokens start..stop of a document, uint16."""
        return self._slice(self._tokens, document, start, stop)

    def assistant(self, document: int, start: int, stop: int) -> np.ndarray:
        """Which of those tokens an assistant has to produce, bool."""
        return self._slice(self._assistant, document, start, stop)

    def all_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids [N], offsets [D + 1]) of the whole split, in memory."""
        tokens = np.concatenate(self._tokens) if self._tokens else np.zeros(0, np.uint16)
        return tokens, np.concatenate([[0], np.cumsum(self.lengths)])

    def _slice(self, shards: list[np.ndarray], document: int, start: int, stop: int) -> np.ndarray:
        shard = int(np.searchsorted(self._first_document, document, side="right")) - 1
        offset = self._offsets[document]
        return shards[shard][offset + start : offset + stop]


class SplitWriter:
    """Appends documents of one split to shards in `folder`."""

    def __init__(self, folder: Path, split: str, shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self.shards = 0
        self.files: dict[str, dict[str, Any]] = {}
        self._start_shard()

    def add(self, documents: Iterable[Document]) -> None:
        for document in documents:
            self._tokens.append(np.asarray(document.ids, dtype=np.uint16))
            self._assistant.append(np.asarray(document.assistant, dtype=bool))
            self._documents.append(
                (len(document.ids), document.content_bytes, document.assistant_bytes)
            )
            self._pending += len(document.ids)
            if self._pending >= self._shard_tokens:
                self._finish_shard()

    def close(self) -> None:
        """Write the last shard."""
        if self._documents:
            self._finish_shard()

    def _start_shard(self) -> None:
        self._tokens: list[np.ndarray] = []
        self._assistant: list[np.ndarray] = []
        self._documents: list[tuple[int, int, int]] = []
        self._pending = 0

    def _finish_shard(self) -> None:
        arrays = {
            "tokens": np.concatenate(self._tokens),
            "assistant": np.concatenate(self._assistant),
            "documents": np.asarray(self._documents),
        }
        for part, dtype in _PARTS.items():
            path = self._folder / f"{self._split}-{self.shards:05d}.{part}.npy"
            np.save(path, arrays[part].astype(dtype, copy=False))
            self.files[path.name] = describe_file(path)
        self.shards += 1
        self._start_shard()


def describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256, as the manifest records them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a whole, undamaged folder; None where anything is missing or changed."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = manifest["files"]
        whole = all(describe_file(folder / name) == facts for name, facts in files.items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if whole else None
