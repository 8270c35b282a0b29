"""Rows to encoded shards, once: tokenizer, blocks of rows, and the cache on disk.

Memory is bounded by a shard and the blocks under way, whatever the number of rows. What is written
is the same whatever the number of processes, and wherever a preparation was interrupted: it goes on
after the last shard that was finished (`Partial`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from newllm.config import Settings
from newllm.data.encode import Accounting, Encoder, encode_blocks, usable_rows
from newllm.data.located import Item, Located, Repeated, Rows
from newllm.data.shards import (
    SHARD_TOKENS,
    EncodedSplit,
    SplitWriter,
    describe_file,
    intact,
    read_manifest,
    write_manifest,
)
from newllm.data.sources import Source
from newllm.data.tokenizers import (
    BPE,
    Tokenizer,
    Word1000,
    fingerprint,
    load_tokenizer,
    save_tokenizer,
)
from newllm.datasets import find_dataset
from newllm.errors import UserError
from newllm.files import DISK_ERRORS, cache_folder, make_cache_folder, write_text

ENCODING_VERSION = 1
"""Part of the cache key: raise it when rendering or the shard format changes."""

_FIRST_SECONDS = 5.0
"""Preparations shorter than this print nothing."""
_TERMINAL_SECONDS, _PLAIN_SECONDS = 1.0, 30.0
"""Between two lines on a terminal, and elsewhere."""

_LEAST_VALIDATION_ROWS = 1000
"""Validation rows are limited with the training rows (a tenth of them), but not below this."""
TOKENIZER_BYTES = 256 * 1024 * 1024
"""Text a BPE vocabulary is trained on at most (that of one data set alone: in characters)."""


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
    notes: tuple[str, ...] = ()
    """What a person should know of where the rows are from."""
    rows: str = ""
    """Identifies the rows alone, whatever the tokenizer; unknown ("") for data found by its
    fingerprint."""


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
    decontaminate: bool = False
    """Leave validation rows out that stand in training too."""

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
            settings.decontaminate,
        )

    @property
    def head(self) -> bool:
        """Whether only the first rows of each split are read: with word1000, as published."""
        return self.max_samples is not None and self.tokenizer == "word1000"


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
        UserError: no usable row is left, the disk is full, or the rows vanished.
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
    source: Source,
    encoding: Encoding,
    tokenizer: Tokenizer | None,
    splits: dict[str, Rows],
) -> Encoded:
    identity = asdict(encoding) | {
        "version": ENCODING_VERSION,
        "rows": source.fingerprint,
        "given_tokenizer": fingerprint(tokenizer) if tokenizer else None,
        "splits": sorted(splits),
    }
    if encoding.max_samples is None:
        del identity["seed"]  # it decides nothing but which rows are sampled
    if not encoding.decontaminate:
        del identity["decontaminate"]
    if (reading := find_dataset(encoding.dataset).reading) > 1:
        identity["reading"] = reading
    # Nor does a cut that is not made, or the size of a vocabulary that is fixed.
    del identity["length" if encoding.tokenizer == "bpe" else "vocab_size"]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    folder = make_cache_folder("encoded") / key
    rows = source.fingerprint
    if encoding.max_samples is not None:
        rows += f":{encoding.max_samples}:{encoding.seed}"
    encoded = _open(folder)
    if encoded is None:
        with exclusive(folder):
            encoded = _open(folder)  # another process may have been quicker
            if encoded is None:
                with Partial.taken_up(folder) as partial:
                    _encode(partial, source, encoding, tokenizer, splits)
                encoded = _open(folder, check=False)
    if encoded is None:
        raise OSError(f"{folder}: written, but cannot be read back")
    # Equal rows may have been encoded from another place.
    return replace(
        encoded,
        source=source.description,
        revision=source.revision,
        notes=source.notes,
        rows=rows,
    )


def _open(folder: Path, check: bool = True) -> Encoded | None:
    manifest = read_manifest(folder, check)
    if manifest is None:
        return None
    accounting = {name: Accounting(**facts) for name, facts in manifest["accounting"].items()}
    return Encoded(
        tokenizer=load_tokenizer(folder / "tokenizer.json"),
        splits={
            name: EncodedSplit(folder, name, count, accounting[name].masked_tokens > 0)
            for name, count in manifest["shards"].items()
        },
        accounting=accounting,
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
) -> None:
    vocabulary = partial.tokenizer(lambda: tokenizer or _train_tokenizer(splits["train"], encoding))
    protocol_length = find_dataset(encoding.dataset).protocol_length
    trained: frozenset[bytes] = frozenset()
    for name, rows in splits.items():
        length = encoding.length if name == "train" else protocol_length
        encoder = Encoder(vocabulary, encoding.dataset, length)
        if encoding.decontaminate and name != "train":
            rows = _without(rows, encoder, trained)
        accounting = _encode_split(rows, encoder, partial, name)
        documents = EncodedSplit(partial.folder, name, partial.splits[name].shards)
        if name == "train":
            trained = frozenset(_digests(documents))
        elif not encoding.decontaminate and trained:
            accounting.repeated = sum(digest in trained for digest in _digests(documents))
        if not accounting.documents:
            partial.discard()
            raise UserError(_nothing_left(source, name, accounting))
    manifest: dict[str, Any] = {
        "source": source.description,
        "revision": source.revision,
        "accounting": {name: asdict(partial.splits[name].accounting) for name in splits},
        "shards": {name: partial.splits[name].shards for name in splits},
        "files": partial.files,
    }
    partial.finish(manifest)


def _nothing_left(source: Source, split: str, accounting: Accounting) -> str:
    if not accounting.rows:
        return f"{source.description}: no {split} rows (empty)"
    examples = accounting.malformed_examples
    if accounting.repeated == accounting.rows:
        return f"{source.description}: all {split} rows stand in training too; give others"
    return f"{source.description}: none of {accounting.rows} {split} rows can be used; " + (
        f"first: {examples[0]}" if examples else "the data set's form leaves all of them out"
    )


def _digests(documents: EncodedSplit) -> Iterator[bytes]:
    """A digest of each document of a split: equal tokens, equal digest."""
    for number, length in enumerate(documents.lengths.tolist()):
        yield _digest(documents.tokens(number, 0, length))


def _digest(tokens: np.ndarray) -> bytes:
    return hashlib.blake2b(tokens.tobytes(), digest_size=8).digest()


def _without(rows: Rows, encoder: Encoder, trained: frozenset[bytes]) -> Rows:
    """Rows, those whose documents all stand in training marked as such."""

    def known(item: Item) -> bool:
        block = encoder([item])
        parts = np.split(block.tokens, np.cumsum(block.documents[:, 0])[:-1])
        return len(block.documents) > 0 and all(_digest(part) in trained for part in parts)

    return lambda: (Repeated(item.where) if known(item) else item for item in rows())


def _encode_split(rows: Rows, encoder: Encoder, partial: Partial, name: str) -> Accounting:
    """Encode what is not in a shard yet; the accounting is that of the whole split."""
    state = partial.splits[name]
    if state.finished:
        return state.accounting
    writer = SplitWriter(partial.folder, name, state.shards)
    accounting = state.accounting
    progress = PreparationProgress(name, accounting.rows)
    items = islice(rows(), accounting.rows, None)
    with closing(progress), closing(encode_blocks(items, encoder)) as blocks:
        for block in blocks:
            writer.add(block)
            accounting += block.accounting
            if writer.pending >= SHARD_TOKENS:
                partial.save_shard(writer)
            progress.update(accounting.rows)
    state.finished = True
    partial.save_shard(writer)
    return accounting


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

    def sampled() -> Iterator[Item]:
        wanted, index = chosen(), -1
        for item in rows():
            if isinstance(item, Located):
                index += 1
                if index not in wanted:
                    continue
            yield item  # what is malformed, too: it is counted

    return sampled


# -- vocabularies --------------------------------------------------------------------------------


def _train_tokenizer(rows: Rows, encoding: Encoding) -> Tokenizer:
    dataset = find_dataset(encoding.dataset)
    if encoding.tokenizer == "word1000":
        usable = usable_rows(rows(), dataset.vocabulary_text, Accounting())
        usable = islice(usable, dataset.vocabulary_rows)
        return Word1000.train(dataset.vocabulary_text(row) for row in usable)

    def contents() -> Iterator[str]:
        size = 0
        for row in usable_rows(rows(), dataset.conversation, Accounting()):
            for message in dataset.conversation(row):
                yield message["content"]
                size += len(message["content"])
            if size > TOKENIZER_BYTES:
                return

    return BPE.train(contents(), encoding.vocab_size)


def train_joint_tokenizer(sources: Mapping[str, Source], vocab_size: int) -> tuple[BPE, int]:
    """One BPE vocabulary for several data sets, of equally many bytes of each.

    It is trained on the contents of the training rows of each data set, from the first on;
    `vocab_size` includes the special tokens.

    Returns:
        the vocabulary; UTF-8 bytes that were read of every data set: all that the smallest one has.

    Raises:
        UserError: a data set has no usable row.
    """
    most = TOKENIZER_BYTES // max(1, len(sources))
    per_set = most
    for dataset, source in sources.items():
        size = sum(len(text.encode(errors="replace")) for text in _texts(dataset, source, most))
        if size == 0:
            raise UserError(f"{source.description}: no usable training row of {dataset}")
        per_set = min(per_set, size)

    def contents() -> Iterator[str]:
        for dataset, source in sources.items():
            yield from _texts(dataset, source, per_set)

    return BPE.train(contents(), vocab_size), per_set


def _texts(dataset: str, source: Source, size: int) -> Iterator[str]:
    """Messages of the first training rows, up to so many bytes (the last one cut)."""
    read = find_dataset(dataset).conversation
    rows, _ = source.training_splits()
    for row in usable_rows(rows(), read, Accounting()):
        for message in read(row):
            text = message["content"].encode(errors="replace")[:size]
            size -= len(text)
            yield text.decode(errors="ignore")
            if size <= 0:
                return


# -- a preparation under way ---------------------------------------------------------------------


@dataclass
class SplitState:
    """How far a split is: what is in its finished shards."""

    shards: int = 0
    finished: bool = False
    accounting: Accounting = field(default_factory=Accounting)


class Partial:
    """A folder in the making; use it through `taken_up`."""

    def __init__(self, folder: Path, becomes: Path) -> None:
        self.folder, self._becomes = folder, becomes
        self.files: dict[str, dict[str, Any]] = {}
        """Size and SHA-256 of every finished file."""
        self.splits: defaultdict[str, SplitState] = defaultdict(SplitState)
        """To be changed, then kept by `save_shard`."""
        self._progress = folder / "progress.json"
        self._read()

    @classmethod
    @contextlib.contextmanager
    def taken_up(cls, becomes: Path) -> Iterator[Partial]:
        """What an interrupted preparation left of the folder `becomes`, or nothing yet.

        Raises:
            UserError: the disk is full; what is finished is kept.
        """
        partial = cls(becomes.with_name(f"{becomes.name}.partial"), becomes)
        try:
            yield partial
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            count = sum(state.shards for state in partial.splits.values())
            raise UserError(
                f"{error.filename or partial.folder}: {error.strerror} while rows were encoded; "
                f"{count} finished shard{' is' if count == 1 else 's are'} kept: mend that, "
                "or set NEWLLM_CACHE to another folder, and give the same command again"
            ) from None

    def save_shard(self, writer: SplitWriter) -> None:
        """Write what is pending, and from here on go on after it."""
        writer.finish_shard()
        self.splits[writer.split].shards = writer.shards
        self.files |= writer.files
        self._save()

    def tokenizer(self, make: Callable[[], Tokenizer]) -> Tokenizer:
        """The vocabulary of the finished shards; made and kept where there is none yet."""
        path = self.folder / "tokenizer.json"
        if path.name in self.files:
            return load_tokenizer(path)
        tokenizer = make()
        save_tokenizer(tokenizer, path)
        self.files[path.name] = describe_file(path)
        self._save()
        return tokenizer

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """The folder is complete: give it its name, in place of a damaged one."""
        write_manifest(self.folder, manifest)
        self._progress.unlink()
        shutil.rmtree(self._becomes, ignore_errors=True)
        self.folder.rename(self._becomes)

    def discard(self) -> None:
        """Remove the folder: nothing in it is of use."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self) -> None:
        splits = {name: asdict(state) for name, state in self.splits.items()}
        write_text(self._progress, json.dumps({"files": self.files, "splits": splits}))

    def _read(self) -> None:
        try:
            stored = json.loads(self._progress.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.discard()
            return
        if not intact(self.folder, stored["files"]):
            print("An interrupted preparation is damaged; starting afresh.", file=sys.stderr)
            self.discard()
            return
        self.files = stored["files"]
        for name, state in stored["splits"].items():
            accounting = Accounting(**state.pop("accounting"))
            self.splits[name] = SplitState(accounting=accounting, **state)
        if any(state.shards for state in self.splits.values()):
            rows = sum(state.accounting.rows for state in self.splits.values())
            print(f"Going on with an interrupted preparation: {rows:,} rows are encoded.",
                  file=sys.stderr)  # fmt: skip


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let no two processes make the same folder; a second one waits and then finds it made.

    Some network folders cannot lock files: there it is for the user to start only one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print("Waiting for another process that encodes the same rows.", file=sys.stderr)
        lock.acquire()
    except NotImplementedError:
        print(f"{folder.parent} cannot lock files: let no second process encode these rows.",
              file=sys.stderr)  # fmt: skip
    try:
        yield
    finally:
        lock.release()


class PreparationProgress:
    """Rows of a split so far, those `done` before included, and rows a second on the error channel:
    one line that is written over on a terminal, now and then a new one elsewhere."""

    def __init__(self, split: str, done: int = 0) -> None:
        self._split, self._before = split, done
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._next = self._started + _FIRST_SECONDS
        self._shown = False

    def update(self, rows: int) -> None:
        """So many rows are done."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS)
        self._shown = True
        speed = (rows - self._before) / (now - self._started)
        line = f"Preparing {self._split}: {rows:,} rows, {speed:,.0f} rows/s"
        end = "" if self._terminal else "\n"
        print(f"\r{line}\x1b[K" if self._terminal else line, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the line that was written over."""
        if self._shown and self._terminal:
            print(file=sys.stderr, flush=True)
