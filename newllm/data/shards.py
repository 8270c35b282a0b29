"""Encoded documents on disk: shards, and a manifest that accounts for every row.

A folder holds one data set encoded once::

    manifest.json                 counts, malformed rows, size and SHA-256 of every file
    tokenizer.json
    train-00000.tokens.npy        uint16 [N]     ids of all documents, one after the other
    train-00000.assistant.npy     bytes  [N]     1: an assistant has to produce it; 2: not scored
    train-00000.documents.npy     int64  [D, 3]  tokens, content bytes, assistant bytes of each

It is written under another name and renamed when complete, so a folder that exists is whole. What a
batch needs is read from the files when it is needed: memory holds the table of documents alone.
(Mapped into memory instead, every page that an epoch touches would count as this process's memory.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from newllm.data.encode import MASKED, Block
from newllm.errors import UserError
from newllm.files import sha256, write_text

MANIFEST = "manifest.json"

SHARD_TOKENS = 16 * 1024 * 1024
"""Tokens after which a new shard begins: bounds the memory that preparing needs."""

_PARTS = {
    "tokens": np.dtype(np.uint16),
    "assistant": np.dtype(np.uint8),
    "documents": np.dtype("<i8"),
}

_OPEN_FILES = 64
"""Files of one kind that are held open; systems allow a process 256 or more."""


class Documents(Protocol):
    """What batches are made of: a split, or a mixture of several."""

    lengths: np.ndarray
    """Tokens of each document, [D] int64."""
    masked: bool
    """Whether there are tokens that are not scored."""

    def parts(
        self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray, marks: bool = False
    ) -> np.ndarray:
        """Tokens starts..stops of documents, [S] each, one part after the other: uint16 [N].

        With `marks`: their marks instead, `ANSWERED`, `MASKED` or 0, uint8 [N].
        """
        ...


class EncodedSplit:
    """The documents of one split."""

    def __init__(self, folder: Path, split: str, shards: int, masked: bool = False) -> None:
        self.masked = masked
        """Whether there are tokens that are not scored."""
        paths = {part: [_path(folder, split, n, part) for n in range(shards)] for part in _PARTS}
        self._tokens = _Arrays(paths["tokens"], _PARTS["tokens"])
        self._assistant = _Arrays(paths["assistant"], _PARTS["assistant"])
        tables = [np.load(path) for path in paths["documents"]] or [np.zeros((0, 3), np.int64)]
        self._first_document = np.cumsum([0, *map(len, tables)])
        documents = np.concatenate(tables)
        self.lengths: np.ndarray = documents[:, 0]
        """Tokens of each document, [D] int64."""
        self.content_bytes: np.ndarray = documents[:, 1]
        self.assistant_bytes: np.ndarray = documents[:, 2]
        # Where each document begins in its shard.
        self._offsets = np.concatenate([np.cumsum(t[:, 0]) - t[:, 0] for t in tables])

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Ids of tokens start..stop of a document, uint16."""
        return self._slice(self._tokens, document, start, stop)

    def assistant(self, document: int, start: int, stop: int) -> np.ndarray:
        """Their marks, `ANSWERED`, `MASKED` or 0, uint8."""
        return self._slice(self._assistant, document, start, stop)

    def parts(
        self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray, marks: bool = False
    ) -> np.ndarray:
        """See :class:`Documents`."""
        shards = self._first_document.searchsorted(documents, side="right") - 1
        first = self._offsets[documents] + starts
        files = self._assistant if marks else self._tokens
        return files.read_all(shards.tolist(), first.tolist(), (stops - starts).tolist())

    def all_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids [N], offsets [D + 1]) of the whole split, in memory: for small ones."""
        return next(self.iter_chunks(int(self.lengths.sum())))

    def scored_runs(self, document: int) -> list[np.ndarray]:
        """A document's tokens without those that are not scored: runs, of each of which the first
        token is what the next is predicted from, and never predicted itself; uint16."""
        length = int(self.lengths[document])
        tokens = self.tokens(document, 0, length)
        if not self.masked:
            return [tokens]
        masked = self.assistant(document, 0, length) == MASKED
        edges = np.flatnonzero(np.diff(masked, prepend=True, append=True))  # of what is scored
        return [tokens[max(0, a - 1) : b] for a, b in edges.reshape(-1, 2).tolist()]

    def iter_chunks(
        self, most: int, scored: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The whole split, as (ids [N], offsets [D + 1]) of documents that follow each other.

        A chunk has `most` tokens at most; a longer document is one by itself. With `scored`, a
        document is cut into its `scored_runs`.
        """
        ends = np.cumsum(self.lengths)
        begin = before = 0
        while begin < len(self):
            end = max(begin + 1, int(np.searchsorted(ends, before + most, side="right")))
            parts = [
                part
                for number in range(begin, end)
                for part in (
                    self.scored_runs(number)
                    if scored
                    else [self.tokens(number, 0, int(self.lengths[number]))]
                )
            ]
            yield np.concatenate(parts), np.cumsum([0, *map(len, parts)])
            begin, before = end, int(ends[end - 1])

    def _slice(self, files: _Arrays, document: int, start: int, stop: int) -> np.ndarray:
        shard = int(self._first_document.searchsorted(document, side="right")) - 1
        offset = int(self._offsets[document])
        length = int(self.lengths[document])
        return files.read(shard, offset + start, offset + min(stop, length))


class _Arrays:
    """Arrays in .npy files, of which parts are read; the last used files stay open."""

    def __init__(self, paths: list[Path], dtype: np.dtype[Any]) -> None:
        self._paths, self._dtype = paths, dtype
        self._open: dict[int, int] = {}  # file -> descriptor, the last used one last
        self._headers: dict[int, int] = {}  # file -> bytes before the data

    def read(self, file: int, start: int, stop: int) -> np.ndarray:
        """Elements start..stop of one file (read-only)."""
        return self.read_all([file], [start], [max(0, stop - start)])

    def read_all(
        self, files: Sequence[int], starts: Sequence[int], counts: Sequence[int]
    ) -> np.ndarray:
        """So many elements from each of these places, one after the other (read-only)."""
        size = self._dtype.itemsize
        content, file, descriptor, header = [], -1, -1, 0
        for wanted, start, count in zip(files, starts, counts, strict=True):
            if wanted != file:
                file, descriptor = wanted, self._descriptor(wanted)
                header = self._headers[file]
            content.append(_read_at(descriptor, count * size, header + start * size))
        content = b"".join(content)
        if len(content) < sum(counts) * size:
            short = ", ".join(str(self._paths[file]) for file in sorted(set(files)))
            raise UserError(f"{short}: shorter than it was; give the command again")
        return np.frombuffer(content, self._dtype)

    def _descriptor(self, file: int) -> int:
        descriptor = self._open.pop(file, None)
        if descriptor is None:
            descriptor = self._opened(file)
        self._open[file] = descriptor
        return descriptor

    def _opened(self, file: int) -> int:
        path = self._paths[file]
        try:
            if file not in self._headers:
                with path.open("rb") as stream:
                    np.lib.format.read_magic(stream)
                    np.lib.format.read_array_header_1_0(stream)
                    self._headers[file] = stream.tell()
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); give the command again, and the rows "
                "are encoded anew"
            ) from None
        if len(self._open) >= _OPEN_FILES:
            os.close(self._open.pop(next(iter(self._open))))
        return descriptor

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Bound above: when the interpreter ends, `os` may be gone before this object.
        for descriptor in self._open.values():
            close(descriptor)


def _seek_and_read(descriptor: int, count: int, offset: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, count)


_read_at: Callable[[int, int, int], bytes] = getattr(os, "pread", _seek_and_read)
"""So many bytes of an open file from there, or fewer where it ends before. Windows has no pread."""


class SplitWriter:
    """Appends documents of one split to shards in `folder`, where so many are already."""

    def __init__(self, folder: Path, split: str, shards: int = 0) -> None:
        self._folder, self.split, self.shards = folder, split, shards
        self.files: dict[str, dict[str, Any]] = {}
        """Size and SHA-256 of every file written."""
        self._blocks: list[Block] = []
        self.pending = 0
        """Tokens that are in no shard yet."""

    def add(self, block: Block) -> None:
        """Take the documents of a block."""
        self._blocks.append(block)
        self.pending += len(block.tokens)

    def finish_shard(self) -> None:
        """Write what is pending, if there is anything, as a shard."""
        if not any(len(block.documents) for block in self._blocks):
            return
        for part, dtype in _PARTS.items():
            path = _path(self._folder, self.split, self.shards, part)
            array = np.concatenate([getattr(block, part) for block in self._blocks])
            array = array.astype(dtype, copy=False)
            # Stored as bool: earlier versions had no marks but 0 and 1.
            _save(path, array.view(bool) if part == "assistant" else array)
            self.files[path.name] = describe_file(path)
        self.shards += 1
        self._blocks, self.pending = [], 0


def _path(folder: Path, split: str, shard: int, part: str) -> Path:
    return folder / f"{split}-{shard:05d}.{part}.npy"


def _save(path: Path, array: np.ndarray) -> None:
    """`np.save`, with an error that names the file when the disk is full."""
    try:
        with path.open("wb") as file:
            header = np.lib.format.header_data_from_array_1_0(array)
            np.lib.format.write_array_header_1_0(file, header)
            file.write(array.data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256, as the manifest records them."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a complete folder, atomically.

    `manifest` has source, revision, accounting and number of shards of each split, and what
    :func:`describe_file` says of every file.
    """
    write_text(folder / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1))


def read_manifest(folder: Path, check: bool = True) -> dict[str, Any] | None:
    """The manifest of a whole, undamaged folder; None where anything is missing or changed.

    With `check` every file is read to compare its hash (not needed where it was just written).
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return manifest if not check or intact(folder, manifest["files"]) else None
    except (OSError, ValueError, KeyError):
        return None


def intact(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether every file is there with the size and hash that were recorded."""
    try:
        return all(describe_file(folder / name) == facts for name, facts in files.items())
    except OSError:
        return False
