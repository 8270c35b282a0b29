"""Rows of tables: CSV and TSV with a header, Parquet, Arrow."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import IO, Any, TextIO

from newllm.data.containers import NOT_UTF8, badly_encoded
from newllm.data.json_rows import LARGEST_LINE
from newllm.data.located import Item, Located, Malformed

_ROWS_AT_ONCE = 1024

_DELIMITERS = ",;\t|"

_HEADER_LINES = 64
"""Lines of a table's first line, whose fields may have several, at most."""

_QUOTES = 'a field with separators, ends of lines or quotes is written "so, with ""these"" doubled"'


def read_csv(text: TextIO, name: str) -> Iterator[Item]:
    """Rows of a text whose first line names the fields; an empty cell is an absent field.

    What parts the fields (comma, semicolon, tab or bar) is what the header has most of.
    """
    csv.field_size_limit(LARGEST_LINE)
    header, before = text.readline(LARGEST_LINE), 1
    delimiter = ""
    if declared := re.match(r"sep=(.)\s*$", header):  # Excel writes it
        delimiter, header, before = declared[1], text.readline(LARGEST_LINE), 2
    if not header.strip():
        if text.read(1):
            yield Malformed(f"{name}:{before}", "an empty line, expected the names of the fields")
        return
    while _is_open(header, delimiter) and before < _HEADER_LINES and (more := text.readline(2**16)):
        header, before = header + more, before + 1  # a name of several lines, as surveys have them
    if _is_open(header, delimiter):
        yield Malformed(f"{name}:{before}", f"a quote in the header is not closed; {_QUOTES}")
        return
    outside = _outside_quotes(header)
    delimiter = delimiter or max(_DELIMITERS, key=outside.count)
    # A header `question, answer` goes with rows `"Hi?", "Yes, hello."`.
    spaced = delimiter in outside and not re.search(rf"{re.escape(delimiter)}(?! )", outside)
    form: dict[str, Any] = {"delimiter": delimiter, "skipinitialspace": spaced}
    try:
        fields = [" ".join(field.split()) for field in next(csv.reader([header], **form))]
        complaint = _wrong_header(header, fields)
    except csv.Error as error:  # several lines that were one field until a separator was chosen
        fields, complaint = [], f"not valid CSV ({error}); {_QUOTES}"
    if complaint:
        yield Malformed(f"{name}:{before}", complaint)
        return
    reader = csv.reader(text, **form, strict=True)
    while True:
        where = f"{name}:{before + reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Malformed(where, f"not valid CSV ({error}); {_QUOTES}")
            continue
        if cells is None:
            return
        if not any(cells):
            continue
        if any(map(badly_encoded, cells)):
            yield Malformed(where, NOT_UTF8)
        elif any(cells[len(fields) :]):
            names = ", ".join(filter(None, fields))[:80]
            reason = f"{len(cells)} fields, the header has {len(fields)} ({names}); {_QUOTES}"
            yield Malformed(where, reason)
        else:
            # A column without a name is the numbers of rows (pandas), or a separator too many.
            pairs = zip(fields, cells, strict=False)
            yield Located(where, {field: cell or None for field, cell in pairs if field})


def _outside_quotes(header: str) -> str:
    return re.sub(r'"[^"]*("|$)', "", header)


def _is_open(header: str, delimiter: str) -> bool:
    """Whether a header ends within a quoted field; one quote may also be inches."""
    delimiter = delimiter or max(_DELIMITERS, key=_outside_quotes(header).count)
    try:
        next(csv.reader([header], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        return str(error) == "unexpected end of data"
    return False


def _wrong_header(line: str, fields: list[str]) -> str | None:
    if badly_encoded(line):
        return NOT_UTF8
    if line.lstrip()[:1] in "{[":
        return "JSON in a file named as a table; name it .jsonl"
    if not any(fields):
        return "the header names no field"
    double = next((field for field in fields if field and fields.count(field) > 1), None)
    return f"the header names {double!r} twice; rename one of the two" if double else None


def read_parquet(stream: IO[bytes], name: str) -> Iterator[Item]:
    """Rows of a Parquet file; `stream` can seek."""
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(stream) as file:
            yield from file.iter_batches(batch_size=_ROWS_AT_ONCE)

    yield from _rows_of_batches(batches(), name)


def read_arrow(stream: IO[bytes], name: str) -> Iterator[Item]:
    """Rows of Arrow's file format (Feather too) or of its stream format (`datasets` writes it)."""
    import pyarrow

    def batches() -> Iterator[Any]:
        begins = stream.read(6)
        stream.seek(0)
        if begins == b"ARROW1":
            with pyarrow.ipc.open_file(stream) as file:
                yield from map(file.get_batch, range(file.num_record_batches))
        else:
            with pyarrow.ipc.open_stream(stream) as reader:
                yield from reader

    yield from _rows_of_batches(map(_validated, batches()), name)


def _validated(batch: Any) -> Any:
    """The batch, if its offsets lie within its memory: pyarrow follows them without a look.

    Raises:
        pyarrow.ArrowInvalid: they do not.
    """
    batch.validate(full=True)
    return batch


def _rows_of_batches(batches: Iterator[Any], name: str) -> Iterator[Item]:
    number = 0
    try:
        for batch in batches:
            for start in range(0, len(batch), _ROWS_AT_ONCE):
                for row in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                    number += 1
                    yield Located(f"{name} row {number}", row)
    except Exception as error:  # of a damaged file, pyarrow raises far more than its own
        if isinstance(error, OSError) and error.errno is not None:  # not what the file holds
            raise
        reason = str(error).split("\n")[0]
        yield Malformed(f"{name} row {number + 1}", f"unreadable from here on ({reason})")
