"""Rows of JSON text: one a line, or wrapped in the ways that programs write.

The form is recognised by the text, not by the file's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from newllm.data.containers import NOT_UTF8, badly_encoded
from newllm.data.located import Item, Located, Malformed
from newllm.datasets.conversations import TURN_FIELDS, is_turns

LARGEST_LINE, LARGEST_WHOLE = 2**26, 2**30
"""Characters of one line, and of one JSON document, at most: a small .gz can hold more than any
memory."""

_WRAPPERS = ("data", "rows", "row", "items", "examples", "records", "samples", "instances",
             "dataset", "results", "entries", "documents", "dialogues", "dialogs",
             *TURN_FIELDS)  # fmt: skip
"""Fields that hold all rows of a document which other fields describe."""

_EXAMPLE = '{"question": "..", "answer": ".."}, say'

Line = tuple[int, str, bool]
"""Number, text, and whether it is whole: the rest of a line that is too long is thrown away."""


def read_json(text: TextIO, name: str, part: str = "") -> Iterator[Item]:
    """The rows of a text; `name` is what they are located in, `part` the field that holds them."""
    lines = _lines(text)
    head = _until_two(lines)
    said = [line for line in head if line[1].strip()]
    if not said:
        return
    first, second = said[0], said[1] if len(said) > 1 else None
    alone = _loaded(first[1]) if first[2] and not badly_encoded(first[1]) else None
    if second is None and alone is not None:
        yield from _document(alone[0], name, part, f"{name}:{first[0]}")
        return
    line_by_line = second is not None and (
        alone is not None or (first[1].strip() != "[" and _loaded(second[1]) is not None)
    )
    if line_by_line or (not first[2] and first[1].lstrip()[:1] not in "[{"):
        yield from (_row_of_line(line, name) for line in said)
        yield from (_row_of_line(line, name) for line in lines if line[1].strip())
        return
    whole = "".join(line for _, line, _ in head) + text.read(LARGEST_WHOLE)
    if len(whole) > LARGEST_WHOLE:
        reason = f"JSON of more than {LARGEST_WHOLE:,} characters in one: write one row a line"
        yield Malformed(f"{name}:{first[0]}", reason)
        return
    yield from _read_whole(whole, name, part)


def splits_inside(text: TextIO, is_split: Any) -> list[str]:
    """The fields of a JSON object that hold a split each: `{"train": [...], "test": [...]}`."""
    head = text.read(4096)
    if not (found := re.match(r'\s*\{\s*"([^"]+)"\s*:\s*[\[{]', head)) or not is_split(found[1]):
        return []
    loaded = _loaded(head + text.read(LARGEST_WHOLE))
    if loaded is None or not isinstance(loaded[0], dict):
        return []
    holders = [k for k, v in loaded[0].items() if isinstance(v, (list, dict)) and is_split(k)]
    return holders if len(holders) > 1 or len(loaded[0]) == 1 else []


def _until_two(lines: Iterator[Line]) -> list[Line]:
    """The lines up to the second that is not blank, or the first that is not whole."""
    head: list[Line] = []
    said = 0
    for line in lines:
        head.append(line)
        said += bool(line[1].strip())
        if said == 2 or not line[2]:
            break
    return head


def _lines(text: TextIO) -> Iterator[Line]:
    number = 0
    while line := text.readline(LARGEST_LINE):
        number += 1
        whole = len(line) < LARGEST_LINE or line.endswith("\n")
        yield number, line, whole
        while not whole:
            line = text.readline(LARGEST_LINE)
            whole = not line or line.endswith("\n")


def _loaded(text: str) -> tuple[Any] | None:
    """What a JSON text says, in a tuple (it may be None itself); None where it is no JSON."""
    try:
        return (json.loads(text),)
    except (ValueError, RecursionError):
        return None


def _row_of_line(line: Line, name: str) -> Item:
    number, text, whole = line
    where = f"{name}:{number}"
    if not whole:
        return Malformed(where, f"a line of more than {LARGEST_LINE:,} characters")
    loaded = None if badly_encoded(text) else _loaded(text)
    if loaded is None and text.rstrip().endswith(","):
        loaded = _loaded(text.rstrip()[:-1])
    return Malformed(where, _why_not_json(text)) if loaded is None else located(loaded[0], where)


def _why_not_json(text: str, error: Exception | None = None) -> str:
    """What is wrong in a text; `error` is what the decoder says, where it was asked already."""
    if badly_encoded(text):
        return NOT_UTF8
    if re.match(r"\s*[\[{]\s*'", text):
        return "not valid JSON but written by Python; write rows with json.dumps"
    if text.lstrip().startswith("<"):
        return "not valid JSON but markup (HTML or XML), a page that was saved in its place, say"
    try:
        if error is None:
            json.loads(text.rstrip())
    except (ValueError, RecursionError) as why:
        error = why
    if not isinstance(error, json.JSONDecodeError):  # numbers of thousands of digits, too deep
        return "not valid JSON"
    return f"not valid JSON (column {error.colno}: {error.msg[:1].lower()}{error.msg[1:]})"


def located(row: Any, where: str) -> Item:
    """A value as a row: an object, or the list of a conversation's messages."""
    if isinstance(row, dict) and "row_idx" in row and isinstance(row.get("row"), dict):
        row = row["row"]  # of the Hub's viewer, which numbers them
    if isinstance(row, dict):
        return Located(where, row)
    if is_turns(row):
        return Located(where, {"messages": row})
    name = type(row).__name__
    kinds = {"str": "text", "NoneType": "null", "int": "number", "float": "number"}
    kind = {**kinds, "bool": "yes/no"}.get(name, name)
    return Malformed(where, f"a {kind}, expected an object with fields ({_EXAMPLE})")


# -- one document ----------------------------------------------------------------------------------


def _read_whole(text: str, name: str, part: str) -> Iterator[Item]:
    """A document over several lines; or several, one after the other; or lines, some broken."""
    if badly_encoded(text):
        number = next(n for n, line in enumerate(text.split("\n"), start=1) if badly_encoded(line))
        yield Malformed(f"{name}:{number}", _why_not_json(text))
        return
    if (loaded := _loaded(text)) is not None:
        yield from _document(loaded[0], name, part, name)
        return
    numbered = enumerate(text.split("\n"), start=1)
    by_line = [(number, line, True) for number, line in numbered if line.strip()]
    brackets = [line.strip() for _, line, _ in by_line if line.strip() in ("[", "]", "],")]
    if len(brackets) == 2:  # of an array whose end has one comma too many
        by_line = [line for line in by_line if line[1].strip() not in ("[", "]", "],")]
    if any(line[:1] in "{[" and _loaded(line.rstrip().rstrip(",")) for _, line, _ in by_line[:2]):
        yield from (_row_of_line(line, name) for line in by_line)
        return
    values, fault = _one_after_another(text)
    if not values:
        rows = [_row_of_line(line, name) for line in by_line]
        if any(isinstance(row, Located) for row in rows):
            yield from rows
            return
    for value, line in values:
        yield located(value, f"{name}:{line}")
    if fault is not None:
        yield Malformed(f"{name}:{fault[0]}", fault[1])


def _one_after_another(text: str) -> tuple[list[tuple[Any, int]], tuple[int, str] | None]:
    """JSON values with nothing, or commas, between them, each with its first line; and where and
    why the text stops being JSON, or None."""
    decoder, values = json.JSONDecoder(), []
    place, line = 0, 1
    while True:
        begin = re.compile(r"[\s,\x1e]*").match(text, place)
        assert begin is not None
        line += text.count("\n", place, begin.end())
        place = begin.end()
        if place == len(text):
            return values, None
        try:
            value, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            return values, (error.lineno, _why_not_json(text[place:], error))
        except (ValueError, RecursionError) as error:
            return values, (line, _why_not_json(text[place:], error))
        values.append((value, line))
        line += text.count("\n", place, end)
        place = end


def _document(value: Any, name: str, part: str, where: str) -> Iterator[Item]:
    """The rows of one JSON value that is all there is."""
    if part and isinstance(value, dict):
        value = value.get(part)
    rows = unwrapped(value)
    if rows is None:
        yield located(value, where)
        return
    for number, row in enumerate(rows, start=1):
        yield located(row, f"{name} row {number}")


def unwrapped(value: Any) -> list[Any] | None:
    """The rows in a JSON document; None where it is a row by itself.

    They may stand in a list; in a field (`{"data": [...]}`); by id (`{"0": {...}}`); or by column,
    as pandas writes them: `{"text": [...]}`, `{"text": {"0": ...}}`, `{"columns": .., "data": ..}`.
    """
    if isinstance(value, list):
        return None if is_turns(value) else value
    if not isinstance(value, dict) or not value:
        return None
    columns, rows = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(rows, list) and not any(
        isinstance(name, (list, dict)) for name in columns
    ):  # fmt: skip
        return [dict(zip(columns, row)) if isinstance(row, list) else row for row in rows]  # noqa: B905
    if len(value) == 1 or any(field in value for field in _WRAPPERS):
        for field, inside in value.items():
            if (len(value) == 1 or field in _WRAPPERS) and _holds_rows(inside):
                return unwrapped(inside)
    parts = list(value.values())
    if all(isinstance(part, dict) for part in parts):
        return _by_id(value)
    if all(is_turns(part) for part in parts) and not value.keys() & set(TURN_FIELDS):
        return parts
    if all(isinstance(part, list) for part in parts) and not value.keys() & {*TURN_FIELDS, "data"}:
        lengths = {len(part) for part in parts}
        if lengths != {1} and len(lengths) == 1:
            return [dict(zip(value, row)) for row in zip(*parts)]  # noqa: B905
    return None


def _holds_rows(value: Any) -> bool:
    """Whether a field's value is several rows rather than a part of one."""
    if isinstance(value, list):
        rows = all(isinstance(v, dict) or is_turns(v) for v in value)
        return bool(value) and rows and not is_turns(value)
    return isinstance(value, dict) and unwrapped(value) is not None


def _by_id(value: dict[str, dict[str, Any]]) -> list[Any] | None:
    """Objects by id -> rows; columns of values by number -> rows."""
    parts = list(value.values())
    fields = parts[0].keys()
    numbered = bool(fields) and all(field.isdigit() for field in fields)
    if numbered and not all(name.isdigit() for name in value):
        return [{name: column.get(row) for name, column in value.items()} for row in fields]
    return parts if fields & parts[-1].keys() or all(name.isdigit() for name in value) else None
