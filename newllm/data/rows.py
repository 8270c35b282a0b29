"""Rows of local files, each with the place where it stands.

A broken line is a `Malformed` item that is counted and shown later, never an exception.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from newllm.errors import UserError

READABLE = re.compile(r"\.(jsonl?|ndjson)(\.gz)?$|\.parquet$", re.IGNORECASE)
"""Names of files that rows can be read from."""

_WHOLE = re.compile(r"\.json(\.gz)?$", re.IGNORECASE)


LARGEST_LINE, LARGEST_WHOLE = 2**26, 2**30
"""Bytes of one line, and of one JSON array, at most: a small .gz can hold more than any memory."""


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


_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "eval": "validation", "test": "test",
}  # fmt: skip


def split_name(file_name: str) -> str | None:
    """The split that a name tells: `train-00000-of-00001.parquet` -> train."""
    words = re.split(r"[^a-z]+", file_name.lower(), maxsplit=1)
    return _SPLIT_NAMES.get(words[0])


def read_file(path: Path) -> Iterator[Item]:
    """All rows of one file: JSON lines, a JSON array, either gzipped, or Parquet.

    Raises:
        UserError: the file has gone, or its disk cannot be read.
    """
    try:
        if path.name.lower().endswith(".parquet"):
            yield from _read_parquet(path)
        else:
            open_file = gzip.open if path.name.lower().endswith(".gz") else open
            with cast(IO[bytes], open_file(path, "rb")) as stream:
                yield from _read_json(stream, path)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # not what the file holds
            raise UserError(
                f"{path}: cannot be read any more ({error.strerror}); bring it back and give the "
                "same command again: what was encoded is kept"
            ) from None
        yield Malformed(str(path), f"unreadable from here on ({error})")


def _read_json(stream: IO[bytes], path: Path) -> Iterator[Item]:
    """JSON lines; or, in a `.json` file, one JSON array of rows or one row over several lines."""
    lines = enumerate(_lines(stream), start=1)
    for number, (line, whole) in lines:
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if whole and not line.strip():
            continue
        if line.lstrip()[:1] == b"[" or (_WHOLE.search(path.name) and not _is_json(line)):
            text = line + stream.read(LARGEST_WHOLE)
            if len(text) > LARGEST_WHOLE:
                reason = f"JSON of more than {LARGEST_WHOLE:,} bytes in one: write one row a line"
                yield Malformed(f"{path}:{number}", reason)
            else:
                yield from _read_whole(text, path, number)
            return
        yield _parse(line, whole, f"{path}:{number}")
        break
    for number, (line, whole) in lines:
        if line.strip():
            yield _parse(line, whole, f"{path}:{number}")


def _lines(stream: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The lines, and whether each is whole; the rest of one that is too long is thrown away."""
    while line := stream.readline(LARGEST_LINE):
        whole = len(line) < LARGEST_LINE or line.endswith(b"\n")
        yield line, whole
        while not whole:
            line = stream.readline(LARGEST_LINE)
            whole = not line or line.endswith(b"\n")


def _read_whole(text: bytes, path: Path, first_line: int) -> Iterator[Item]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = enumerate(text.split(b"\n"), start=first_line)
        items = [_parse(line, True, f"{path}:{number}") for number, line in lines if line.strip()]
        if any(isinstance(item, Located) for item in items):  # lines after all, the first broken
            yield from items
            return
        place = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        yield Malformed(f"{path}{place}", "not valid JSON")
        return
    if not isinstance(rows, list):
        yield _located(rows, str(path))
        return
    for number, row in enumerate(rows, start=1):
        yield _located(row, f"{path} row {number}")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(line: bytes, whole: bool, where: str) -> Item:
    if not whole:
        return Malformed(where, f"a line of more than {LARGEST_LINE:,} bytes")
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
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Located(f"{path} row {number}", row)
    except Exception as error:  # of a damaged file, pyarrow raises far more than its own
        reason = str(error).split("\n")[0]
        yield Malformed(f"{path} row {number + 1}", f"unreadable from here on ({reason})")
