"""Rows to encoded shards, once: tokenizer, rendering, accounting, and the cache on disk.

Nothing is dropped silently: the accounting of each split says how many rows came in, how many were
malformed and where, and how many tokens were kept and cut.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from newllm.config import Settings
from newllm.data.conversations import ROW_FORMATS, LeftOut, RowFormat
from newllm.data.render import ChatRenderer, Renderer, make_renderer, render_rows
from newllm.data.rows import Located, Malformed, Rows
from newllm.data.shards import EncodedSplit, SplitWriter, describe_file, read_manifest
from newllm.data.sources import Source
from newllm.data.tokenizers import BPE, Tokenizer, Word1000, fingerprint, from_dict
from newllm.errors import UserError

ENCODING_VERSION = 1
"""Part of the cache key: raise it when rendering or the shard format changes."""

_BATCH_ROWS = 512
_MALFORMED_SHOWN = 20
_LEAST_VALIDATION_ROWS = 1000
"""Validation rows are limited with the training rows (a tenth of them), but not below this."""
TOKENIZER_BYTES = 256 * 1024 * 1024
"""Text a BPE vocabulary is trained on at most."""


@dataclass
class Accounting:
    """What became of the rows of one split."""

    rows: int = 0
    malformed: int = 0
    left_out: int = 0
    """Rows that the data set's protocol does not use."""
    documents: int = 0
    tokens: int = 0
    scored_tokens: int = 0
    """Tokens that are predicted: all but the first of each document."""
    cut_rows: int = 0
    cut_tokens: int = 0
    unk_tokens: int = 0
    content_bytes: int = 0
    assistant_bytes: int = 0
    replaced_surrogates: int = 0
    malformed_examples: list[str] = field(default_factory=list)

    def complain(self, item: Malformed) -> None:
        """Count a malformed row and keep the first few for showing."""
        self.malformed += 1
        if len(self.malformed_examples) < _MALFORMED_SHOWN:
            self.malformed_examples.append(f"{item.where}: {item.reason}")


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
    """How rows become tokens."""

    dataset: str
    tokenizer: str
    vocab_size: int
    length: int
    """Tokens a word-1000 row is cut at (BPE rows are never cut)."""
    max_samples: int | None = None
    seed: int = 0

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
    def row_format(self) -> RowFormat:
        return ROW_FORMATS[self.dataset]


def prepare_training(
    source: Source, encoding: Encoding, tokenizer: Tokenizer | None = None
) -> Encoded:
    """Encode train and validation rows, or find them in the cache.

    Args:
        source: where the rows are.
        encoding: how they become tokens. Validation rows are cut at the protocol's length,
            whatever `encoding.length` says.
        tokenizer: the one to use; None trains one on the training rows.

    Raises:
        UserError: no usable row is left.
    """
    train, validation = source.training_splits()
    if encoding.max_samples is not None:
        train = _limited(train, encoding, encoding.max_samples)
        most = max(_LEAST_VALIDATION_ROWS, encoding.max_samples // 10)
        validation = _first(validation, most)
    return _prepare(source, encoding, tokenizer, {"train": train, "validation": validation})


def prepare_evaluation(source: Source, encoding: Encoding, tokenizer: Tokenizer) -> Encoded:
    """Encode the rows an evaluation reads, as the split "validation"."""
    return _prepare(source, encoding, tokenizer, {"validation": source.evaluation_split()})


def find_encoded(data_fingerprint: str) -> Encoded | None:
    """Encoded data of that fingerprint, if it is (still) in the cache."""
    return _open(cache_folder() / "encoded" / data_fingerprint)


def _prepare(
    source: Source, encoding: Encoding, tokenizer: Tokenizer | None, splits: dict[str, Rows]
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
    if encoded is not None:  # equal rows may have been encoded from another place
        place = {"source": source.description, "revision": source.revision}
        return replace(encoded, **place, rows=rows)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{key}.tmp-", dir=folder.parent))
    try:
        _encode(scratch, source, encoding, tokenizer, splits)
        if _open(folder) is None:  # else another process was quicker
            shutil.rmtree(folder, ignore_errors=True)  # damaged, or not there
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    encoded = _open(folder)
    if encoded is None:
        raise OSError(f"{folder}: written, but cannot be read back")
    return replace(encoded, rows=rows)


def _open(folder: Path) -> Encoded | None:
    manifest = read_manifest(folder)
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
    folder: Path,
    source: Source,
    encoding: Encoding,
    tokenizer: Tokenizer | None,
    splits: dict[str, Rows],
) -> None:
    row_format = encoding.row_format
    if tokenizer is None:
        tokenizer = _train_tokenizer(splits["train"], encoding)
    files, shards, accounting = {}, {}, {}
    for name, rows in splits.items():
        length = encoding.length if name == "train" else row_format.protocol_length
        renderer = make_renderer(tokenizer, row_format, length)
        writer = SplitWriter(folder, name)
        accounting[name] = _encode_split(rows, renderer, row_format, writer)
        writer.close()
        if not accounting[name].documents:
            raise UserError(_nothing_left(source, name, accounting[name]))
        files |= writer.files
        shards[name] = writer.shards
    stored = json.dumps(tokenizer.to_dict(), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(stored, encoding="utf-8")
    files["tokenizer.json"] = describe_file(folder / "tokenizer.json")
    manifest: dict[str, Any] = {
        "source": source.description,
        "revision": source.revision,
        "accounting": {name: asdict(facts) for name, facts in accounting.items()},
        "shards": shards,
        "files": files,
    }
    text = json.dumps(manifest, ensure_ascii=False, indent=1)
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def _nothing_left(source: Source, split: str, accounting: Accounting) -> str:
    if not accounting.rows:
        return f"{source.description}: no {split} rows (empty)"
    return (
        f"{source.description}: none of {accounting.rows} {split} rows can be used; "
        f"first: {accounting.malformed_examples[0]}"
    )


def _encode_split(
    rows: Rows, renderer: Renderer, row_format: RowFormat, writer: SplitWriter
) -> Accounting:
    accounting = Accounting()
    unk = renderer.tokenizer.unk if isinstance(renderer.tokenizer, Word1000) else None
    read = (
        row_format.conversation if isinstance(renderer, ChatRenderer) else row_format.protocol_text
    )
    for batch in _batches(usable_rows(rows, read, accounting)):
        documents = render_rows(renderer, row_format, batch)
        writer.add(documents)
        for document in documents:
            accounting.documents += 1
            accounting.tokens += len(document.ids)
            accounting.scored_tokens += len(document.ids) - 1
            accounting.cut_rows += document.cut_tokens > 0
            accounting.cut_tokens += document.cut_tokens
            accounting.unk_tokens += document.ids.count(unk) if unk is not None else 0
            accounting.content_bytes += document.content_bytes
            accounting.assistant_bytes += document.assistant_bytes
            accounting.replaced_surrogates += document.replaced_surrogates
    return accounting


def usable_rows(
    rows: Rows, read: Callable[[dict[str, Any]], object], accounting: Accounting
) -> Iterator[dict[str, Any]]:
    """The well-formed rows; the others are counted and remembered with their place."""
    for item in rows():
        accounting.rows += 1
        if isinstance(item, Malformed):
            accounting.complain(item)
            continue
        try:
            read(item.row)
        except LeftOut:
            accounting.left_out += 1
            continue
        except ValueError as error:
            accounting.complain(Malformed(item.where, str(error)))
            continue
        yield item.row


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, _BATCH_ROWS)):
        yield batch


def _train_tokenizer(rows: Rows, encoding: Encoding) -> Tokenizer:
    row_format = encoding.row_format
    if encoding.tokenizer == "word1000":
        usable = usable_rows(rows, row_format.vocabulary_text, Accounting())
        usable = islice(usable, row_format.vocabulary_rows)
        return Word1000.train(row_format.vocabulary_text(row) for row in usable)

    def contents() -> Iterator[str]:
        size = 0
        for row in usable_rows(rows, row_format.conversation, Accounting()):
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
    if encoding.tokenizer == "word1000":
        return _first(rows, count)
    total = sum(isinstance(item, Located) for item in rows())
    chosen = set(random.Random(encoding.seed).sample(range(total), min(count, total)))

    def sampled() -> Iterator[Located]:
        located = (item for item in rows() if isinstance(item, Located))
        return (item for index, item in enumerate(located) if index in chosen)

    return sampled
