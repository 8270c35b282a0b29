"""Encodings x formats x line ends x containers x layouts: the same rows, or one line that says why
not; and thousands of folders of anything, without a traceback."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import string
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from newllm.data.encode import Accounting, usable_rows
from newllm.data.located import Located, Malformed
from newllm.data.sources import Source, open_source
from newllm.datasets import DATASETS
from newllm.errors import UserError

CHAT = DATASETS["chat"]
ROWS = [{"question": f"Was ist Ä{i}, bitte?", "answer": f'りんご{i};\t"rot"'} for i in range(6)]
SAID = [[{"role": "user", "content": row["question"]},
         {"role": "assistant", "content": row["answer"]}] for row in ROWS]  # fmt: skip

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le",
             "cp932", "gb18030")  # fmt: skip
LEGACY = ("cp932", "gb18030")
"""Not told from each other by their bytes: refused, with what to do."""


def table(rows: list[dict[str, Any]], delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def dumped(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


FORMATS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "lines.jsonl": lambda rows: "".join(dumped(row) + "\n" for row in rows),
    "blank.jsonl": lambda rows: "\n" + "\n\n".join(map(dumped, rows)),
    "list.json": dumped,
    "pretty.json": lambda rows: dumped(rows, 2),
    "one_after_another.json": lambda rows: "\n".join(dumped(row, 1) for row in rows),
    "comma.jsonl": lambda rows: "[\n" + "".join(dumped(row) + ",\n" for row in rows) + "]",
    "wrapped.json": lambda rows: dumped({"version": "1", "data": rows}, 1),
    "by_id.json": lambda rows: dumped({f"row-{n}": row for n, row in enumerate(rows)}),
    "by_number.json": lambda rows: dumped(dict(enumerate(rows)), 1),
    "columns.json": lambda rows: dumped({k: [row[k] for row in rows] for k in rows[0]}),
    "pandas.json": lambda rows: dumped(
        {k: {str(n): row[k] for n, row in enumerate(rows)} for k in rows[0]}
    ),
    "split.json": lambda rows: dumped({"columns": list(rows[0]), "index": [*range(len(rows))],
                                       "data": [list(row.values()) for row in rows]}),
    "turns.jsonl": lambda rows: "".join(
        dumped([{"role": "user", "content": r["question"]},
                {"role": "assistant", "content": r["answer"]}]) + "\n" for r in rows),
    "sharegpt.jsonl": lambda rows: "".join(
        dumped({"conversations": [{"from": "human", "value": r["question"]},
                                  {"from": "gpt", "value": r["answer"]}]}) + "\n" for r in rows),
    "comma.csv": lambda rows: table(rows, ","),
    "semicolon.csv": lambda rows: table(rows, ";"),
    "tab.tsv": lambda rows: table(rows, "\t"),
}  # fmt: skip

CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
}


def read(source: Source) -> list[list[dict[str, str]]]:
    """The conversations of a source's training and validation rows; all are well-formed."""
    counts = Accounting()
    rows = [row for part in source.splits.values() for row in usable_rows(
        part(), CHAT.conversation, counts)]  # fmt: skip
    assert not counts.malformed_examples, counts.malformed_examples
    return [CHAT.conversation(row) for row in rows]  # type: ignore[misc]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_same_rows_whatever_encodes_writes_and_packs_them(tmp_path: Path, encoding: str) -> None:
    """9 encodings x 17 formats x 3 line ends x 6 containers, 2,754 in all."""
    legacy = 0
    for (name, write), end in product(FORMATS.items(), ("\n", "\r\n", "\r")):
        text = write(ROWS).replace("\n", end)
        content = text.replace("Ä", "A").encode(encoding)
        said = [[{**m, "content": m["content"].replace("Ä", "A")} for m in row] for row in SAID]
        for container in (*CONTAINERS, ".zip"):
            file = tmp_path / f"{name}{container}"
            if container == ".zip":
                with zipfile.ZipFile(file, "w") as archive:
                    archive.writestr(f"folder/{name}", content)
            else:
                file.write_bytes(CONTAINERS[container](content))
            source = open_source(CHAT, str(file))
            if encoding in LEGACY:
                reasons = [item.reason for item in source.splits["all"]()
                           if isinstance(item, Malformed)]  # fmt: skip
                assert reasons, (name, container)
                assert all("save it as UTF-8" in reason for reason in reasons)
                legacy += 1
            else:
                assert read(source) == said, (name, container, end)
            file.unlink()
    assert legacy == (len(FORMATS) * 18 if encoding in LEGACY else 0)


LAYOUTS: dict[str, tuple[str, str]] = {
    "files": ("train{}", "validation{}"),
    "suffixes": ("my_train{}", "my_val{}"),
    "shards": ("data/train-00000-of-00001{}", "data/test-00000-of-00001{}"),
    "folders": ("train/a{}", "dev/a{}"),
    "deep": ("x/Train_Set/y/a{}", "x/HeldOut/y/a{}"),
    "sft": ("train_sft{}", "test_sft{}"),
    "beside hidden ones": ("train{}", "eval{}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_splits_however_a_folder_is_laid_out(tmp_path: Path, layout: str) -> None:
    """7 layouts x 17 formats x 5 containers x 2 (folder or .zip of it), 1,190 in all."""
    for number, ((name, write), container) in enumerate(product(FORMATS.items(), CONTAINERS)):
        ending = f".{name.rpartition('.')[2]}{container}"
        folder = tmp_path / f"{number}"
        for pattern, rows in zip(LAYOUTS[layout], (ROWS[:4], ROWS[4:]), strict=True):
            file = folder / pattern.format(ending)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(CONTAINERS[container](write(rows).encode()))
        hidden = folder / ".ipynb_checkpoints" / f"train-checkpoint{ending}"
        hidden.parent.mkdir()
        hidden.write_bytes(b"no rows")
        archive = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for file in sorted(folder.rglob("*")):
                packed.write(file, file.relative_to(folder))
        for place in (folder, archive):
            train, validation = open_source(CHAT, str(place)).training_splits()
            for part, said in ((train, SAID[:4]), (validation, SAID[4:])):
                rows = [i.row for i in part() if isinstance(i, Located)]
                assert [CHAT.conversation(row) for row in rows] == said, (name, place)


def test_a_table_whose_columns_have_several_names_each_is_a_row(tmp_path: Path) -> None:
    """As pandas writes a table with a hierarchy of columns: nothing says what they are called."""
    file = tmp_path / "split.json"
    file.write_text(
        dumped({"columns": [["question", "de"], ["answer", "de"]], "data": [["q", "a"]]})
    )
    (row,) = open_source(CHAT, str(file)).splits["all"]()
    assert isinstance(row, Located)


def test_tables_of_columns(tmp_path: Path) -> None:
    rows = pyarrow.Table.from_pylist([{**row, "unused": None} for row in ROWS])
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    with pyarrow.ipc.new_file(str(tmp_path / "b.feather"), rows.schema) as file:
        file.write_table(rows)
    with pyarrow.ipc.new_stream(str(tmp_path / "c.arrow"), rows.schema) as stream:
        stream.write_table(rows)
    for file in sorted(tmp_path.iterdir()):
        assert read(open_source(CHAT, str(file))) == SAID, file
        packed = tmp_path / f"{file.name}.gz"
        packed.write_bytes(gzip.compress(file.read_bytes()))
        assert read(open_source(CHAT, str(packed))) == SAID, packed


_NAMES = ("train", "my_val", "validation", "test", "rows", "a b", "trainval", ".hidden", "data",
          "README", "notes (1)", "日本", "dataset_info", "state", "train - Copy")  # fmt: skip
_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".zip", ".jsonl.gz",
            ".json.zst", ".csv.xz", ".txt.bz2", ".xlsx", ".md", "", ".feather")  # fmt: skip


def _anything(rng: random.Random) -> tuple[str, bytes]:
    """An ending of a name, and rows, damaged rows, or no rows."""
    name, write = rng.choice(list(FORMATS.items()))
    ending = rng.choice([f".{name.rpartition('.')[2]}"] * 2 * len(_ENDINGS) + [*_ENDINGS])
    content = write(ROWS[: rng.randint(1, 6)] * 3).encode(
        rng.choice([*ENCODINGS, *["utf-8"] * 9]), errors="replace"
    )
    kind = rng.randrange(16)
    if kind == 0:
        content = rng.randbytes(rng.randrange(1, 200))
    if kind == 1:
        content = "".join(rng.choices(string.printable + '{}[]",:\\é', k=300)).encode()
    if kind == 2:
        place = rng.randrange(len(content))
        content = content[:place] + rng.randbytes(rng.randrange(4)) + content[place + 1 :]
    if kind == 3:
        content = content[: rng.randrange(len(content))]
    if kind == 4:
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer)
        content = buffer.getvalue()[: rng.choice([None, 40, 200])]
    if kind == 5:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(rng.choice(_NAMES) + rng.choice(_ENDINGS), content)
        content = buffer.getvalue()[: rng.choice([None, None, 60])]
    packed = rng.choice(list(CONTAINERS.values()))(content)
    return ending, packed[: rng.choice([None] * 7 + [len(packed) // 2])]


@pytest.mark.parametrize("seed", range(8))
def test_folders_of_anything_are_read_or_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    """250 folders a seed, 2,000 in all."""
    rng = random.Random(seed)
    read_some = 0
    for number in range(250):
        folder = tmp_path / str(number)
        folder.mkdir()
        names = rng.choice([_NAMES, _NAMES, ("rows", "data", "日本"), ("train", "my_val")])
        for _ in range(rng.randint(0, 4)):
            below = folder / rng.choice(["", "", "", *names])
            ending, content = _anything(rng)
            file = below / (rng.choice(names) + ending)
            if not below.is_file() and not file.exists():
                below.mkdir(exist_ok=True)
                file.write_bytes(content)
        if rng.random() < 0.1:
            (folder / "link.jsonl").symlink_to("nowhere")
        dataset = DATASETS[rng.choice(["chat", "chat", "chat", "dolly", "ultrachat"])]
        counts = Accounting()
        try:
            source = open_source(dataset, str(folder))
            for rows in (source.evaluation_split(), *source.training_splits()):
                read_some += sum(1 for _ in usable_rows(rows(), dataset.conversation, counts))
        except UserError as error:
            told = [str(error)]
        else:
            told = counts.malformed_examples
        for line in told:
            assert "\n" not in line
            assert str(folder) in line
    assert read_some > 200
