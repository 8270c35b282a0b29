"""Rows of one file, each with where it stands: the formats, and the reader of each."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, TextIO

from newllm.data.containers import (
    COMPRESSIONS,
    DAMAGED,
    NOT_FETCHED,
    NOT_UTF8,
    RowFile,
    badly_encoded,
    is_pointer,
    open_bytes,
    open_text,
)
from newllm.data.json_rows import LARGEST_WHOLE, read_json
from newllm.data.located import Item, Located, Malformed
from newllm.data.tables import read_arrow, read_csv, read_parquet
from newllm.errors import UserError

Kind = Literal["json", "csv", "text", "parquet", "arrow"]

Division = Literal["file", "block"]
"""What is one document of plain text: a whole file, or what blank lines part."""

KINDS: dict[str, Kind] = {
    ".jsonl": "json", ".json": "json", ".ndjson": "json", ".jl": "json",
    ".csv": "csv", ".tsv": "csv",
    ".txt": "text",
    ".parquet": "parquet", ".pq": "parquet",
    ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
"""How names end -> what is in the file; each may be compressed (`COMPRESSIONS`), or in a `.zip`."""

EXPECTED = "rows as .jsonl, .json, .csv, .tsv, .txt, .parquet or .arrow, each also as .gz, .bz2, .xz, .zst or in a .zip"  # noqa: E501

_NOT_READ = {
    "a spreadsheet; save it as CSV UTF-8": ".xlsx .xls .ods",
    "a text processor's document; save it as plain text": ".docx .doc .odt .rtf .epub",
    "PDF; convert it to text (pdftotext)": ".pdf",
    "a pickle, which may run code; write rows as JSON lines": ".pkl .pickle .pt .pth .joblib",
    "numbers; write rows as JSON lines": ".npy .npz .bin .h5 .hdf5 .tfrecord",
    "a database; write rows as CSV": ".db .sqlite .sqlite3 .duckdb",
    "another kind of table; write rows as Parquet": ".orc .avro",
    "a markup language; write rows as JSON lines": ".xml .html .htm .yaml .yml .toml",
    "an archive; unpack it and give the folder": ".tar .tgz .tbz2 .txz .7z .rar",
}
CONVERSIONS = {ending: what for what, endings in _NOT_READ.items() for ending in endings.split()}
"""How names of files that may hold rows, but are not read, end -> what they are, what to do."""


def suffixes(name: str) -> tuple[str, str, str]:
    """(stem, ending, compression) of a name: `train.jsonl.gz` -> train, .jsonl, .gz."""
    stem, compression = name, ""
    ending = Path(stem).suffix
    if ending.lower() in COMPRESSIONS:
        stem, compression = stem[: -len(ending)], ending.lower()
        ending = Path(stem).suffix
    return stem[: len(stem) - len(ending)], ending.lower(), compression


def kind_of(name: str) -> Kind | None:
    """What a file of that name holds; None where that is no rows."""
    return KINDS.get(suffixes(name)[1])


def refusal_of(name: str) -> str | None:
    """Why a file whose name says that it holds rows is not read; None for all others."""
    return CONVERSIONS.get(suffixes(name)[1])


def is_text(file: RowFile) -> bool:
    """Whether a file begins as text does: no zero bytes, and an encoding that can be read."""
    try:
        with open_text(file) as text:
            begins = text.read(4096)
    except DAMAGED:
        return False
    return "\0" not in begins and not badly_encoded(begins)


def read_file(
    file: RowFile | Path, division: Division | None = None, documents: bool = False
) -> Iterator[Item]:
    """All rows of one file, whatever its format.

    Args:
        file: where they are.
        division: what is one row of plain text; None: a block of a .txt, a file of all others.
        documents: whether a file that is of none of the formats is plain text.

    Raises:
        UserError: the file has gone, or its disk cannot be read; it is encrypted.
    """
    file = RowFile(file) if isinstance(file, Path) else file
    name = str(file)
    named = kind_of(file.name)
    kind = named or ("text" if documents else sniffed(file))
    try:
        if kind in ("parquet", "arrow"):
            with open_bytes(file) as stream:
                if is_pointer(stream):
                    yield Malformed(name, NOT_FETCHED)
                    return
                read = read_parquet if kind == "parquet" else read_arrow
                yield from read(_seekable(stream), name)
            return
        with open_text(file) as text:
            if is_pointer(text.buffer):
                yield Malformed(name, NOT_FETCHED)
            elif kind == "csv":
                yield from read_csv(text, name)
            elif kind == "text":
                yield from _read_text(text, name, division or ("block" if named else "file"))
            else:
                yield from read_json(text, name, file.part)
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:  # not what the file holds
            raise UserError(
                f"{name}: cannot be read any more ({error.strerror}); bring it back and give the "
                "same command again: what was encoded is kept"
            ) from None
        yield Malformed(name, f"unreadable from here on ({error})")


def _seekable(stream: io.BufferedReader) -> IO[bytes]:
    """A stream that can seek: of what is compressed or in an archive, a copy in memory."""
    return stream if isinstance(stream.raw, io.FileIO) else io.BytesIO(stream.read(LARGEST_WHOLE))


def sniffed(file: RowFile) -> Kind | None:
    """What a file holds by its first bytes, where its name gives no format."""
    try:
        with open_bytes(file) as stream:
            begins = stream.peek(8)
        if begins.startswith(b"PAR1"):
            return "parquet"
        if begins.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            return "arrow"
        with open_text(file) as text:
            return "json" if text.read(4096).lstrip()[:1] in ("{", "[") else None
    except DAMAGED:
        return None


def _read_text(text: TextIO, name: str, division: Division) -> Iterator[Item]:
    """Plain text: whole, or by blocks between blank lines."""
    block: list[str] = []
    size = start = 0

    def finished() -> Item:
        content = "".join(block).strip("\n")
        where = name if division == "file" else f"{name}:{start}"
        if badly_encoded(content):
            return Malformed(where, NOT_UTF8)
        if "\0" in content:
            return Malformed(where, "not text but bytes")
        if size > LARGEST_WHOLE:
            return Malformed(where, f"a document of more than {LARGEST_WHOLE:,} characters")
        return Located(where, {"text": content})

    number = 0
    while line := text.readline(LARGEST_WHOLE):
        number += 1
        blank = not line.strip()
        if block and blank and division == "block":
            yield finished()
            block, size = [], 0
        if blank and not (block and division == "file"):
            continue
        start = start if block else number
        size += len(line)
        if size <= LARGEST_WHOLE:
            block.append(line)
    if block:
        yield finished()
