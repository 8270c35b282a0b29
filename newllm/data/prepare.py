"""Rows to encoded shards, once: tokenizer, blocks of rows, and the cache on disk.

Memory is bounded by a shard and the blocks under way, whatever the number of rows. What is written
is the same whatever the number of processes, and wherever a preparation was interrupted: it goes on
after the last shard that was finished (`data/partial.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from newllm.config import Settings
from newllm.data.encode import Accounting, Encoder, usable_rows
from newllm.data.partial import Partial, exclusive
from newllm.data.progress import PreparationProgress
from newllm.data.rows import Located, Rows
from newllm.data.shards import SHARD_TOKENS, EncodedSplit, SplitWriter, read_manifest
from newllm.data.sources import Source
from newllm.data.tokenizers import BPE, Tokenizer, Word1000, fingerprint, from_dict
from newllm.data.workers import encode_blocks
from newllm.datasets import find_dataset
from newllm.datasets.base import Dataset
from newllm.errors import UserError

ENCODING_VERSION = 1
"""Part of the cache key: raise it when rendering or the shard format changes."""

_LEAST_VALIDATION_ROWS = 1000
"""Validation rows are limited with the training rows (a tenth of them), but not below this."""
TOKENIZER_BYTES = 256 * 1024 * 1024
"""Text a BPE vocabulary is trained on at most."""


@dataclass(frozen=True)
class Encoded:
    """A data set ready for training: tokenizer, splits, accounting, identity."""

    tokenizer: Tokenizer
    splits: dict[str, EncodedSplit]
    accounting: dict[str, Accounting]
    fingerprint: str
    """Identifies rows, tokenizer and encoding together."""
    source: str
    revision: str | None
    folder: Path
    rows: str = ""
    """Identifies the rows alone, whatever the tokenizer; unknown ("") for data found by its
    fingerprint."""


def cache_folder() -> Path:
    """Where encoded data lives: `NEWLLM_CACHE`, else `~/.cache/newllm` (or its XDG equivalent)."""
    if "NEWLLM_CACHE" in os.environ:
        return Path(os.environ["NEWLLM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "newllm"


@dataclass(frozen=True)
class Encoding:
    """How rows become tokens.

    Raises:
        UserError: the tokenizer cannot hold the rows of that data set.
    """

    dataset: str
    tokenizer: str
    vocab_size: int
    length: int
    """Tokens a word-1000 row is cut at (BPE rows are never cut)."""
    max_samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        find_dataset(self.dataset).refuse_unfit(self.tokenizer)

    @classmethod
    def of(cls, settings: Settings) -> Encoding:
        """What the settings of a run ask for."""
        return cls(
            settings.dataset,
            settings.tokenizer,
            settings.vocab_size,
            settings.max_seq_length,
            settings.max_samples,
            settings.seed,
        )

    @property
    def head(self) -> bool:
        """Whether only the first rows of each split are read: with word1000, as published."""
        return self.max_samples is not None and self.tokenizer == "word1000"

    @property
    def row_format(self) -> Dataset:
        return find_dataset(self.dataset)


def prepare_training(
    source: Source,
    encoding: Encoding,
    tokenizer: Tokenizer | None = None,
    workers: int | None = None,
) -> Encoded:
    """Encode train and validation rows, or find them in the cache.

    Args:
        source: where the rows are.
        encoding: how they become tokens. Validation rows are cut at the protocol's length,
            whatever `encoding.length` says.
        tokenizer: the one to use; None trains one on the training rows.
        workers: processes that encode (default: one a core, for more than a few rows).

    Raises:
        UserError: no usable row is left, the disk is full, or the rows vanished.
    """
    train, validation = source.training_splits()
    if encoding.max_samples is not None:
        train = _limited(train, encoding, encoding.max_samples)
        most = max(_LEAST_VALIDATION_ROWS, encoding.max_samples // 10)
        validation = _first(validation, most)
    splits = {"train": train, "validation": validation}
    return _prepare(source, encoding, tokenizer, splits, workers)


def prepare_evaluation(source: Source, encoding: Encoding, tokenizer: Tokenizer) -> Encoded:
    """Encode the rows an evaluation reads, as the split "validation"."""
    return _prepare(source, encoding, tokenizer, {"validation": source.evaluation_split()})


def find_encoded(data_fingerprint: str) -> Encoded | None:
    """Encoded data of that fingerprint, if it is (still) in the cache."""
    return _open(cache_folder() / "encoded" / data_fingerprint)


def _prepare(
    source: Source,
    encoding: Encoding,
    tokenizer: Tokenizer | None,
    splits: dict[str, Rows],
    workers: int | None = None,
) -> Encoded:
    identity = asdict(encoding) | {
        "version": ENCODING_VERSION,
        "rows": source.fingerprint,
        "given_tokenizer": fingerprint(tokenizer) if tokenizer else None,
        "splits": sorted(splits),
    }
    if encoding.max_samples is None:
        del identity["seed"]  # it decides nothing but which rows are sampled
    # Nor does a cut that is not made, or the size of a vocabulary that is fixed.
    del identity["length" if encoding.tokenizer == "bpe" else "vocab_size"]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / "encoded" / key
    rows = source.fingerprint
    if encoding.max_samples is not None:
        rows += f":{encoding.max_samples}:{encoding.seed}"
    encoded = _open(folder)
    if encoded is None:
        with exclusive(folder):
            encoded = _open(folder)  # another process may have been quicker
            if encoded is None:
                with Partial.taken_up(folder) as partial:
                    _encode(partial, source, encoding, tokenizer, splits, workers)
                encoded = _open(folder, check=False)
    if encoded is None:
        raise OSError(f"{folder}: written, but cannot be read back")
    # Equal rows may have been encoded from another place.
    return replace(encoded, source=source.description, revision=source.revision, rows=rows)


def _open(folder: Path, check: bool = True) -> Encoded | None:
    manifest = read_manifest(folder, check)
    if manifest is None:
        return None
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return Encoded(
        tokenizer=from_dict(stored),
        splits={
            name: EncodedSplit(folder, name, count) for name, count in manifest["shards"].items()
        },
        accounting={name: Accounting(**facts) for name, facts in manifest["accounting"].items()},
        fingerprint=folder.name,
        source=manifest["source"],
        revision=manifest["revision"],
        folder=folder,
    )


def _encode(
    partial: Partial,
    source: Source,
    encoding: Encoding,
    tokenizer: Tokenizer | None,
    splits: dict[str, Rows],
    workers: int | None,
) -> None:
    stored = partial.tokenizer()
    if stored is not None:
        tokenizer = from_dict(stored)
    else:
        tokenizer = tokenizer or _train_tokenizer(splits["train"], encoding)
        partial.save_tokenizer(tokenizer.to_dict())
    for name, rows in splits.items():
        length = encoding.length if name == "train" else encoding.row_format.protocol_length
        encoder = Encoder(tokenizer, encoding.dataset, length)
        accounting = _encode_split(rows, encoder, partial, name, workers)
        if not accounting.documents:
            partial.discard()
            raise UserError(_nothing_left(source, name, accounting))
    manifest: dict[str, Any] = {
        "source": source.description,
        "revision": source.revision,
        "accounting": {name: asdict(partial.split(name).accounting) for name in splits},
        "shards": {name: partial.split(name).shards for name in splits},
        "files": partial.files,
    }
    partial.finish(json.dumps(manifest, ensure_ascii=False, indent=1))


def _nothing_left(source: Source, split: str, accounting: Accounting) -> str:
    if not accounting.rows:
        return f"{source.description}: no {split} rows (empty)"
    examples = accounting.malformed_examples
    return f"{source.description}: none of {accounting.rows} {split} rows can be used; " + (
        f"first: {examples[0]}" if examples else "the data set's form leaves all of them out"
    )


def _encode_split(
    rows: Rows, encoder: Encoder, partial: Partial, name: str, workers: int | None
) -> Accounting:
    """Encode what is not in a shard yet; the accounting is that of the whole split."""
    state = partial.split(name)
    if state.finished:
        return state.accounting
    writer = SplitWriter(partial.folder, name, state.shards)
    accounting = state.accounting
    progress = PreparationProgress(name, accounting.rows)
    items = islice(rows(), accounting.rows, None)
    with closing(progress), closing(encode_blocks(items, encoder, workers)) as blocks:
        for block in blocks:
            writer.add(block)
            accounting += block.accounting
            if writer.pending >= SHARD_TOKENS:
                partial.save_shard(writer)
            progress.update(accounting.rows)
    state.finished = True
    partial.save_shard(writer)
    return accounting


def _train_tokenizer(rows: Rows, encoding: Encoding) -> Tokenizer:
    row_format = encoding.row_format
    if encoding.tokenizer == "word1000":
        usable = usable_rows(rows(), row_format.vocabulary_text, Accounting())
        usable = islice(usable, row_format.vocabulary_rows)
        return Word1000.train(row_format.vocabulary_text(row) for row in usable)

    def contents() -> Iterator[str]:
        size = 0
        for row in usable_rows(rows(), row_format.conversation, Accounting()):
            for message in row_format.conversation(row):
                yield message["content"]
                size += len(message["content"])
            if size > TOKENIZER_BYTES:
                return

    return BPE.train(contents(), encoding.vocab_size)


def _first(rows: Rows, count: int) -> Rows:
    return lambda: islice(rows(), count)


def _limited(rows: Rows, encoding: Encoding, count: int) -> Rows:
    """The first rows (word1000, as published), or a sample by the seed (BPE)."""
    if encoding.head:
        return _first(rows, count)

    @cache  # counted when rows are wanted, once
    def chosen() -> frozenset[int]:
        total = sum(isinstance(item, Located) for item in rows())
        return frozenset(random.Random(encoding.seed).sample(range(total), min(count, total)))

    def sampled() -> Iterator[Located]:
        wanted = chosen()
        located = (item for item in rows() if isinstance(item, Located))
        return (item for index, item in enumerate(located) if index in wanted)

    return sampled
