"""Targets of all that rows are read from: texts, tables, what packs them, folders of them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

import pyarrow
import pyarrow.feather
import pyarrow.parquet

from newllm.data.located import Item, Located
from newllm.data.rows import read_file
from newllm.data.sources import open_source
from newllm.datasets import DATASETS
from newllm.datasets.conversations import LeftOut
from tests.fuzz.common import FOLDER, Target, one_line, refusing

_MOST_ROWS = 10_000
_MOST_FILES = 8
_TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
_DOLLY = {"instruction": "q", "context": "", "response": "a"}
ROWS = [_DOLLY, {"messages": _TURNS}, {"text": "t"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
_TABLE = pyarrow.Table.from_pylist([{**_DOLLY, "number": n, "turns": _TURNS} for n in range(3)])
_CSV = b'instruction,context,response\nq,,"a, ""b""\nc"\n\nq;x,y,z\n'
_TSV = b"sep=\t\nprompt\tresponse\nq\ta\n"


def _use(items: Iterator[Item]) -> None:
    """What any data set does with rows."""
    for item in islice(items, _MOST_ROWS):
        if isinstance(item, Located):
            for dataset in DATASETS.values():
                try:
                    dataset.conversation(item.row)
                except (ValueError, LeftOut):
                    continue


def _rows(path: Path) -> None:
    _use(read_file(path))


def _arrow_seeds() -> list[bytes]:
    """The file format, the stream format, and a compressed Feather file."""
    seeds = []
    for make in (pyarrow.ipc.new_file, pyarrow.ipc.new_stream):
        buffer = io.BytesIO()
        with make(buffer, _TABLE.schema) as writer:
            writer.write_table(_TABLE)
        seeds.append(buffer.getvalue())
    buffer = io.BytesIO()
    pyarrow.feather.write_feather(_TABLE, buffer, compression="lz4")
    return [*seeds, buffer.getvalue()]


def _parquet_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(_TABLE, buffer)
    return [buffer.getvalue()]


def _zip_seeds() -> list[bytes]:
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("rows/train.jsonl", LINES)
            archive.writestr("rows/val.csv", _CSV)
            archive.writestr("rows/test.jsonl.gz", gzip.compress(LINES))
        seeds.append(buffer.getvalue())
    return seeds


def _open(path: Path, level: str) -> None:
    """As `newllm data` opens it: which files hold which split, then all rows of both."""
    for rows in open_source(DATASETS[level], str(path)).training_splits():
        _use(rows())


_LEVELS = ["dolly", "hh_rlhf", "ultrachat", "text", "chat"]


def _write_folder(folder: Path, content: bytes) -> None:
    """Files of NAME, zero byte, CONTENT, zero byte; names stay below the folder."""
    parts = content.split(b"\0")[: 2 * _MOST_FILES]
    for name, text in zip(parts[::2], parts[1::2], strict=False):
        inside = [p for p in PurePosixPath(name.decode(errors="replace")).parts if p.strip("./")]
        if not inside:
            continue
        place = folder.joinpath(*inside)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(text)
        except OSError:  # too long, or a file where a folder would be: no such folder can be made
            continue


def _layout() -> tuple[Target, list[bytes]]:
    """A folder as people lay them out, and as repositories of the Hub are."""
    folder = FOLDER / "layout"

    def target(content: bytes) -> None:
        level = _LEVELS[content[0] % len(_LEVELS)] if content else _LEVELS[0]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _write_folder(folder, content[1:])
        with one_line():
            _open(folder, level)

    def seed(level: str, **files: bytes) -> bytes:
        joined = b"\0".join(part for n, text in files.items() for part in (n.encode(), text))
        return bytes([_LEVELS.index(level)]) + joined

    card = b"---\nconfigs:\n- config_name: default\n  data_files: data/train-*\n---\n"
    pair = b'{"chosen": "\\n\\nHuman: q\\n\\nAssistant: a", "rejected": ""}\n'
    dolly = {"README.md": card, "data/train-00000-of-00002.jsonl": LINES,
             "data/train-00001-of-00002.jsonl": LINES, "data/validation-00000-of-00001.csv": _CSV,
             "dataset_infos.json": b"{}", ".gitattributes": b"*"}  # fmt: skip
    return target, [
        seed("dolly", **dolly),
        seed("hh_rlhf", **{"helpful-base/train.jsonl": pair, "harmless-base/test.jsonl": pair}),
        seed("ultrachat", **{"data/train_sft-0.jsonl": LINES, "data/test_sft-0.jsonl": LINES}),
        seed("text", **{"src/a.py": b"x = 1\n", "train/b.txt": b"one\n\ntwo", "b.md": b"#"}),
        seed("chat", **{"a.json": b'{"train": [{"text": "a"}], "val": []}', "a(1).json": b""}),
    ]


def _saved() -> tuple[Target, list[bytes]]:
    """A folder as `datasets`' save_to_disk leaves it; the first byte says which file is hostile."""
    folder, (_, stream, _) = FOLDER / "saved", _arrow_seeds()
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None}
    good = {
        "data-00000-of-00001.arrow": stream,
        "state.json": json.dumps(state).encode(),
        "dataset_info.json": b'{"features": {}}',
    }
    folder.mkdir()
    for name, content in good.items():
        (folder / name).write_bytes(content)
    names = list(good)

    def target(content: bytes) -> None:
        name = names[content[0] % 2] if content else names[0]
        (folder / name).write_bytes(content[1:])
        with one_line():
            _open(folder, "dolly")
        (folder / name).write_bytes(good[name])

    return target, [bytes([number]) + good[name] for number, name in enumerate(names[:2])]


def _zip_target(content: bytes) -> None:
    path = FOLDER / "a.zip"
    path.write_bytes(content)
    with one_line():
        _open(path, "dolly")


def _zstandard(content: bytes) -> bytes:
    return pyarrow.compress(content, "zstd", asbytes=True)


def _as(name: str, *seeds: bytes) -> Callable[[], tuple[Target, list[bytes]]]:
    return lambda: (refusing(_rows, name), list(seeds))


TARGETS: dict[str, Callable[[], tuple[Target, list[bytes]]]] = {
    "rows": _as("a.jsonl", LINES),
    "array": _as("a.json", json.dumps(ROWS, indent=1).encode(), b'{"train": [{"text": "a"}]}'),
    "csv": _as("a.csv", _CSV, _TSV, _CSV.decode().encode("utf-16")),
    "gz": _as("a.jsonl.gz", gzip.compress(LINES)),
    "bz2": _as("a.jsonl.bz2", bz2.compress(LINES)),
    "xz": _as("a.jsonl.xz", lzma.compress(LINES)),
    "zst": _as("a.jsonl.zst", _zstandard(LINES)),
    "zip": lambda: (_zip_target, _zip_seeds()),
    "parquet": lambda: (refusing(_rows, "a.parquet"), _parquet_seeds()),
    "arrow": lambda: (refusing(_rows, "a.arrow"), _arrow_seeds()),
    "saved": _saved,
    "layout": _layout,
}
