"""Where rows come from: the Hub, local files, or the built-in sample.

A source yields located rows, or located complaints: a broken line is a `Malformed` item that is
counted and shown later, never an exception.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from newllm.data.sample import SAMPLE_VERSION, SAMPLES, sample_rows
from newllm.errors import UserError

SPLIT_SEED = 42
"""Seed of the 90/10 split where a data set has none; part of the protocol, so no setting."""


@dataclass(frozen=True)
class Located:
    """A row and where it stands (`file:line`)."""

    where: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Malformed:
    """Something that should have been a row."""

    where: str
    reason: str


Item = Located | Malformed
Rows = Callable[[], Iterator[Item]]
"""Starts a new pass over the rows; passes are equal."""


@dataclass(frozen=True)
class Source:
    """Rows by split, and what identifies them."""

    description: str
    """For people: what was read."""
    fingerprint: str
    """Changes whenever the rows do."""
    splits: dict[str, Rows] = field(repr=False)
    """By name: train, validation, test; or `all` where the source knows no splits."""
    revision: str | None = None
    """Commit of the Hub repository, if it came from there."""

    def training_splits(self) -> tuple[Rows, Rows]:
        """(train, validation); lacking the latter, test rows; lacking those, 90/10 by seed 42."""
        train = self.splits.get("train") or self.splits.get("all")
        if train is None:
            raise UserError(f"{self.description}: no training rows (a file named train.*)")
        validation = self.splits.get("validation") or self.splits.get("test")
        return (train, validation) if validation else _split(train, self.description)

    def evaluation_split(self) -> Rows:
        """Validation rows; of a single file, all rows."""
        return self.splits.get("all") or self.training_splits()[1]


def open_source(dataset: str, data: str, hub_ids: tuple[str, ...]) -> Source:
    """Open `data`: "hub", "sample", or a path to a file or folder.

    Raises:
        UserError: nothing can be read there, with what to do instead.
    """
    if data == "hub":
        return _hub(hub_ids)
    if data == "sample":
        return _sample(dataset)
    return _local(Path(data))


def _split(rows: Rows, description: str) -> tuple[Rows, Rows]:
    total = sum(1 for _ in rows())
    if total < 2:
        raise UserError(f"{description}: {total} row(s), too few to set validation rows aside")
    held_out = bytearray(total)
    for index in random.Random(SPLIT_SEED).sample(range(total), max(1, total // 10)):
        held_out[index] = 1

    def part(wanted: int) -> Rows:
        return lambda: (row for row, held in zip(rows(), held_out, strict=True) if held == wanted)

    return part(0), part(1)


def _sample(dataset: str) -> Source:
    if dataset not in SAMPLES:
        raise UserError(f"{dataset}: there is no built-in sample; give rows with --data PATH")

    def rows(split: str) -> Rows:
        return lambda: (
            Located(f"sample {split}:{number}", dict(row))
            for number, row in enumerate(sample_rows(dataset, split), start=1)
        )

    return Source(
        description=f"built-in sample of {dataset}",
        fingerprint=f"sample-{SAMPLE_VERSION}",
        splits={"train": rows("train"), "validation": rows("validation")},
    )


def _hub(hub_ids: tuple[str, ...]) -> Source:
    failure = ""
    for hub_id in hub_ids:
        try:
            return _hub_dataset(hub_id)
        except Exception as error:  # the libraries raise dozens of kinds for "not to be had"
            failure = failure or str(error).strip().split("\n")[0]
    raise UserError(
        f"{hub_ids[0]} cannot be had from the Hub ({failure}); give your copy with --data PATH, "
        "or use the built-in rows with --data sample"
    )


def _hub_dataset(hub_id: str) -> Source:
    import datasets
    import huggingface_hub

    revision = None
    if not Path(hub_id).is_dir():  # a folder laid out like a Hub repository has no revision
        try:
            revision = huggingface_hub.HfApi().dataset_info(hub_id).sha
        except (OSError, huggingface_hub.errors.OfflineModeIsEnabled):
            revision = None  # offline: `datasets` may still have it in its cache
    loaded = cast(datasets.DatasetDict, datasets.load_dataset(hub_id, revision=revision))
    splits = {_split_name(str(name)) or str(name): part for name, part in loaded.items()}

    def rows(part: datasets.Dataset, name: str) -> Rows:
        return lambda: (
            Located(f"{hub_id} {name}:{number}", cast(dict[str, Any], row))
            for number, row in enumerate(part, start=1)
        )

    identity = revision or "-".join(part._fingerprint for part in splits.values())
    return Source(
        description=f"{hub_id}@{(revision or 'cached')[:12]}",
        fingerprint=hashlib.sha256(f"{hub_id}@{identity}".encode()).hexdigest(),
        splits={name: rows(part, name) for name, part in splits.items()},
        revision=revision,
    )


# -- local files ---------------------------------------------------------------------------------

_READABLE = re.compile(r"\.(jsonl?|ndjson)(\.gz)?$|\.parquet$", re.IGNORECASE)
_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "eval": "validation", "test": "test",
}  # fmt: skip


def _split_name(file_name: str) -> str | None:
    """`train-00000-of-00001.parquet` -> train."""
    words = re.split(r"[^a-z]+", file_name.lower(), maxsplit=1)
    return _SPLIT_NAMES.get(words[0])


def _local(path: Path) -> Source:
    if not path.exists():
        raise UserError(
            f"{path}: no such file or folder; --data takes a path, hub, or sample (built-in rows)"
        )
    if path.is_file():
        files = {"all": [path]}
        if not _READABLE.search(path.name):
            raise UserError(
                f"{path}: unknown kind of file; expected .jsonl, .json, .gz or .parquet"
            )
    else:
        found = sorted(p for p in path.rglob("*") if p.is_file() and _READABLE.search(p.name))
        if not found:
            raise UserError(f"{path}: no .jsonl, .json, .gz or .parquet file in this folder")
        files: dict[str, list[Path]] = {}
        for file in found:
            name = _split_name(file.name)
            if name is not None:
                files.setdefault(name, []).append(file)
        if "train" not in files and "validation" not in files:
            files = {"all": found}
    digest = hashlib.sha256()
    for name, paths in sorted(files.items()):
        for file in paths:
            digest.update(f"{name}:{_sha256(file)}\n".encode())

    def rows(paths: list[Path]) -> Rows:
        return lambda: (item for file in paths for item in read_file(file))

    return Source(
        description=str(path),
        fingerprint=digest.hexdigest(),
        splits={name: rows(paths) for name, paths in files.items()},
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_file(path: Path) -> Iterator[Item]:
    """All rows of one file: JSON lines, a JSON array, either gzipped, or Parquet."""
    try:
        if path.name.lower().endswith(".parquet"):
            yield from _read_parquet(path)
        else:
            open_file = gzip.open if path.name.lower().endswith(".gz") else open
            with cast(IO[bytes], open_file(path, "rb")) as stream:
                yield from _read_json(stream, str(path))
    except (OSError, EOFError, zlib.error) as error:
        yield Malformed(str(path), f"unreadable from here on ({error})")


def _read_json(stream: IO[bytes], name: str) -> Iterator[Item]:
    first = b""
    for number, line in enumerate(stream, start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not line.strip():
            continue
        if not first:
            first = line.lstrip()[:1]
            if first == b"[":
                yield from _read_array(line + stream.read(), name)
                return
        yield _parse(line, f"{name}:{number}")


def _read_array(text: bytes, name: str) -> Iterator[Item]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        yield Malformed(f"{name}{line}", "not a valid JSON array")
        return
    for number, row in enumerate(rows, start=1):
        yield _located(row, f"{name} row {number}")


def _parse(line: bytes, where: str) -> Item:
    try:
        return _located(json.loads(line.decode("utf-8")), where)
    except UnicodeDecodeError:
        return Malformed(where, "not UTF-8 text")
    except (ValueError, RecursionError):
        return Malformed(where, "not valid JSON")


def _located(row: Any, where: str) -> Item:
    if isinstance(row, dict):
        return Located(where, row)
    return Malformed(where, f"a {type(row).__name__}, expected an object with fields")


def _read_parquet(path: Path) -> Iterator[Item]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Located(f"{path} row {number}", row)
    except pyarrow.ArrowException as error:
        reason = str(error).split("\n")[0]
        yield Malformed(f"{path} row {number + 1}", f"unreadable from here on ({reason})")
