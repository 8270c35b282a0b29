"""Which files of a folder are rows, and of which split: nothing leaks, nothing is guessed."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from pathlib import Path

import pytest

from newllm.data.layout import split_name
from newllm.data.located import Located
from newllm.data.sources import Source, open_source
from newllm.datasets import DATASETS
from newllm.errors import UserError


def fill(folder: Path, files: dict[str, int]) -> Path:
    """Files with so many rows each, every row of the folder another."""
    number = 0
    for name, count in files.items():
        rows = [{"text": f"row {number + i}"} for i in range(count)]
        number += count
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def opened(folder: Path, dataset: str = "chat") -> Source:
    return open_source(DATASETS[dataset], str(folder))


def counts(source: Source) -> dict[str, int]:
    return {
        name: sum(isinstance(item, Located) for item in rows())
        for name, rows in source.splits.items()
    }


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("my_train", "train"), ("train_sft", "train"), ("trainSet", "train"),
        ("train-00000-of-00002", "train"), ("TRAIN_01", "train"), ("dolly.training", "train"),
        ("my_val", "validation"), ("test_sft", "test"), ("held-out", "validation"),
        ("holdout", "validation"), ("evaluation", "validation"), ("devset", "validation"),
        ("rows", None), ("latest", None), ("contest", None), ("values", None), ("trails", None),
        ("development_notes", "validation"), ("brain", None), ("texts", None),
    ],
)  # fmt: skip
def test_splits_are_told_by_words(name: str, split: str | None) -> None:
    assert split_name(name) == split


@pytest.mark.parametrize("name", ["trainval", "train_val", "traning", "tests", "vaildation"])
def test_what_looks_like_a_split_but_is_none(tmp_path: Path, name: str) -> None:
    fill(tmp_path, {"train.jsonl": 2, f"{name}.jsonl": 2})
    with pytest.raises(UserError, match=rf"{name}.*rename it"):
        opened(tmp_path)


def test_hidden_and_editors_folders_are_no_rows(tmp_path: Path) -> None:
    fill(tmp_path, {
        "train.jsonl": 5, "validation.jsonl": 2, ".ipynb_checkpoints/train-checkpoint.jsonl": 7,
        "__MACOSX/train.jsonl": 7, ".cache/train.jsonl": 7, "._train.jsonl": 7,
        "sub/.hidden/train.jsonl": 7,
    })  # fmt: skip
    assert counts(opened(tmp_path)) == {"train": 5, "validation": 2}


@pytest.mark.parametrize("where", [".", "data", "a/b"])
def test_splits_stand_in_names_of_files_and_folders(tmp_path: Path, where: str) -> None:
    fill(tmp_path, {f"{where}/train/part-1.jsonl": 3, f"{where}/train/part-2.jsonl": 3,
                    f"{where}/my_val.jsonl": 2})  # fmt: skip
    assert counts(opened(tmp_path)) == {"train": 6, "validation": 2}


def test_a_levels_own_splits_hold_for_copies(tmp_path: Path) -> None:
    files = ("train_sft-00000-of-00001", "test_sft-00000-of-00001", "train_gen", "test_gen")
    fill(tmp_path, {f"data/{name}.jsonl": 2 for name in files})
    source = opened(tmp_path, "ultrachat")
    assert counts(source) == {"train": 2, "test": 2}
    assert "_gen.jsonl" in source.notes[0]


def test_splits_with_any_characters_in_their_names(tmp_path: Path) -> None:
    fill(tmp_path, {"my(set+1.jsonl": 3, "held.out.jsonl": 2, "heldXout.jsonl": 1})
    splits = ["train=my(set+1", "validation=held.out"]
    source = open_source(DATASETS["chat"], str(tmp_path), splits=splits)
    assert counts(source) == {"train": 3, "validation": 2}


def test_files_of_no_split_beside_others_are_told_or_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"train.jsonl": 2, "validation.jsonl": 2, "more.jsonl": 2})
    source = opened(tmp_path)
    assert counts(source) == {"train": 2, "validation": 2}
    assert "more.jsonl" in source.notes[0]
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"more.jsonl.*rename it"):
        opened(tmp_path)


def test_two_splits_on_the_way_to_a_file(tmp_path: Path) -> None:
    fill(tmp_path, {"train/test.jsonl": 2})
    with pytest.raises(UserError, match=r"two splits \(test and train\)"):
        opened(tmp_path)


@pytest.mark.parametrize("other", ["train.jsonl.gz", "train.csv", "train (1).jsonl", "rows.zip",
                                   "train - Copy.jsonl", "train.json"])  # fmt: skip
def test_the_same_rows_twice_are_refused(tmp_path: Path, other: str) -> None:
    fill(tmp_path, {"train.jsonl": 2})
    content = (tmp_path / "train.jsonl").read_bytes()
    if other.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / other, "w") as archive:
            archive.writestr("train.jsonl", content)
    else:
        packed = gzip.compress(content) if other.endswith(".gz") else content
        (tmp_path / other).write_bytes(packed)
    with pytest.raises(UserError, match="it seems; remove one of them"):
        opened(tmp_path)


def test_links(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", {"part.jsonl": 3})
    rows = fill(tmp_path / "rows", {"validation.jsonl": 2})
    (rows / "train").symlink_to(tmp_path / "elsewhere")
    (rows / "train" / "round").symlink_to(rows)
    assert counts(opened(rows)) == {"train": 3, "validation": 2}
    (rows / "train2.jsonl").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"train2.jsonl: a link to nowhere, which is not there"):
        opened(rows)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UserError, match="a link to nowhere"):
        opened(tmp_path / "dangling")


def test_the_kind_of_a_file_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for name in ("a.txt", "b.csv", "c.tsv", "d.jsonl"):
        (tmp_path / name).write_text("text\nhello\nworld\n")
        prints.add(opened(tmp_path / name).fingerprint)
    assert len(prints) == 3  # CSV and TSV are told apart by their content


def test_what_is_not_read_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"a spreadsheet; save it as CSV"):
        opened(tmp_path / "rows.xlsx")
    with pytest.raises(UserError, match=r"saw .xlsx; \(a spreadsheet; save it as CSV"):
        opened(tmp_path)
    fill(tmp_path, {"train.jsonl": 2})
    assert "rows.xlsx is a spreadsheet" in opened(tmp_path).notes[0]
    (tmp_path / "rows.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="unpack it"):
        opened(tmp_path / "rows.tar.gz")


def test_saved_to_disk(tmp_path: Path) -> None:
    """What `datasets` saves, of one split and of several, without the caches beside it."""
    import datasets

    one = datasets.Dataset.from_dict({"text": [f"a{i}" for i in range(5)]})
    one.save_to_disk(str(tmp_path / "one"))
    (tmp_path / "one" / "cache-1.arrow").write_bytes(b"no rows")
    assert counts(opened(tmp_path / "one")) == {"train": 5}
    both = datasets.DatasetDict({"train": one, "test": one.select([0])})
    both.save_to_disk(str(tmp_path / "both"))
    assert counts(opened(tmp_path / "both")) == {"train": 5, "test": 1}


def test_splits_inside_one_file(tmp_path: Path) -> None:
    content = {"train": [{"text": "a"}] * 4, "val": [{"text": "b"}]}
    (tmp_path / "rows.json").write_text(json.dumps(content))
    for place in (tmp_path, tmp_path / "rows.json"):
        assert counts(opened(place)) == {"train": 4, "validation": 1}
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("deep/train.jsonl", '{"text": "a"}\n' * 3)
        archive.writestr("deep/my_val.jsonl.xz", lzma.compress(b'{"text": "b"}\n'))
        archive.writestr("__MACOSX/deep/._train.jsonl", "x")
    assert counts(opened(tmp_path / "rows.zip")) == {"train": 3, "validation": 1}


def test_names_of_compressed_files_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(bz2.compress(b'{"text": "a"}\n' * 3))
    assert counts(opened(tmp_path / "rows.jsonl")) == {"all": 3}
    (tmp_path / "rows.jsonl.gz").write_bytes(b'{"text": "a"}\n' * 3)
    assert counts(opened(tmp_path / "rows.jsonl.gz")) == {"all": 3}


def test_plain_text_is_told_its_own_data_set(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "README.md").write_text("about")
    (notes / "Thumbs.db").write_bytes(b"\0")
    with pytest.raises(UserError) as nothing:
        open_source(DATASETS["chat"], str(notes))
    assert "newllm train text" not in str(nothing.value)
    assert "database" not in str(nothing.value)
    (notes / "a.md").write_text("# A title\n\nand its text")
    for place in (notes, notes / "a.md"):
        with pytest.raises(UserError, match="newllm train text reads plain text"):
            open_source(DATASETS["chat"], str(place))
