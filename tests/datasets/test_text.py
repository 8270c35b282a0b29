"""Plain text before the levels: trees of files, documents and blocks, splits, what is no text."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from newllm.cli import main
from newllm.config import Settings
from newllm.data.located import Located
from newllm.data.rows import Division
from newllm.data.sources import Source, open_chosen, open_source
from newllm.datasets import DATASETS
from newllm.errors import UserError
from newllm.settings import resolve

TEXT = DATASETS["text"]


def fill(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def texts(source: Source) -> dict[str, list[str]]:
    """What the rows of each split hold."""
    return {
        name: [item.row["text"] for item in rows() if isinstance(item, Located)]
        for name, rows in source.splits.items()
    }


def test_a_tree_of_code_is_a_document_a_file(tmp_path: Path) -> None:
    """Names in it that look like splits are none, tables and what is no text are not read."""
    fill(tmp_path, {
        "train.py": "x = 1\n\ny = 2\n", "lib/test_x.py": "[1]\n", "lib/dev.c": "int main;\n",
        "trian.md": "# hello\n", "picture.png": b"\x89PNG\0\0\0", "setup.json": '{"a": 1}',
        ".git/config": "hidden", "__pycache__/x.pyc": b"\0", "notes.txt": "one\n\ntwo\n",
    })  # fmt: skip
    source = open_source(TEXT, str(tmp_path))
    assert texts(source) == {
        "train": ["int main;", "[1]", "one", "two", "x = 1\n\ny = 2", "# hello"]
    }
    assert source.notes == ("not read: 2 file(s) that are no text, or rows in a table",)


@pytest.mark.parametrize(
    ("division", "rows"),
    [(None, ["a\n\nb", "c", "d"]), ("file", ["a\n\nb", "c\n\nd"]), ("block", ["a", "b", "c", "d"])],
)
def test_what_one_document_is(tmp_path: Path, division: Division | None, rows: list[str]) -> None:
    fill(tmp_path, {"one.md": "a\n\nb\n", "two.txt": "\nc\n\nd\n"})
    source = open_source(TEXT, str(tmp_path), documents=division)
    assert texts(source) == {"train": rows}
    others = [open_source(TEXT, str(tmp_path), documents=d) for d in (None, "file", "block")]
    assert len({other.fingerprint for other in others}) == 3


def test_splits_where_all_on_the_first_level_tells_one(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a.rst": "a", "valid.md": "b", "test/train.rst": "c", "README.md": "d"})
    assert texts(open_source(TEXT, str(tmp_path))) == {
        "train": ["d", "a"], "test": ["c"], "validation": ["b"],
    }  # fmt: skip
    fill(tmp_path, {"more.md": "e"})
    assert set(texts(open_source(TEXT, str(tmp_path)))) == {"train"}


@pytest.mark.parametrize("name", ["train.jsonl", "train.txt"])
def test_rows_in_formats_are_read_as_ever(tmp_path: Path, name: str) -> None:
    """With a text about them beside them; under any of the names that published sets use."""
    content = json.dumps({"content": "x"}) + "\n" if name.endswith("jsonl") else "x\n\ny\n"
    fill(tmp_path, {name: content, "validation.jsonl": '{"text": "z"}\n', "README.md": "about"})
    splits = open_source(TEXT, str(tmp_path)).splits
    assert set(splits) == {"train", "validation"}
    rows = [item.row for item in splits["train"]() if isinstance(item, Located)]
    assert [TEXT.conversation(row)[0]["content"] for row in rows][:1] == ["x"]


def test_one_file_and_an_archive(tmp_path: Path) -> None:
    book = fill(tmp_path, {"README.md": "a\n\nb\n"}) / "README.md"
    with pytest.raises(UserError, match=r"1 row\(s\), too few .* --documents block"):
        list(open_source(TEXT, str(book)).training_splits()[0]())
    assert texts(open_source(TEXT, str(book), documents="block")) == {"all": ["a", "b"]}
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        for name in ("src/a.py", "src/b.py", "src/.hidden"):
            archive.writestr(name, f"# {name}\n")
    found = texts(open_source(TEXT, str(tmp_path / "code.zip")))
    assert found == {"train": ["# src/a.py", "# src/b.py"]}


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"a.bin": b"\0\1", "b.pdf": b"%PDF-1.7\0"})
    with pytest.raises(UserError, match="no rows in this folder"):
        open_source(TEXT, str(tmp_path))
    with pytest.raises(UserError, match="numbers; write rows as JSON lines"):
        open_source(TEXT, str(tmp_path / "a.bin"))


def test_trained_then_a_level_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(
        fill(tmp_path, {f"book/{n}.md": f"Chapter {n} is short.\n" for n in range(40)})
    )
    shape = "--context-dim 64 --embed-dim 16 --hidden-dim 24 --num-layers 1".split()
    common = [*shape, *"--epochs 1 --max-seq-length 32 --counts 0 --device cpu".split()]
    train = ["train", "text", "--data", "book", "--documents", "file", "--vocab-size", "330"]
    assert main([*train, *common]) == 0
    best = "checkpoints/best_new_llm_text_layers1_bpe.pt"
    assert main(["eval", best]) == 0
    more = ["--data", "sample", "--max-samples", "50", "--vocab-size", "330", "--from", best]
    assert main(["train", "dolly", *more, *common]) == 0
    capsys.readouterr()
    assert main(["progress"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:4]] == [
        ["0", "text"], ["1", "dolly"],
    ]  # fmt: skip


def test_the_setting_reaches_the_rows(tmp_path: Path) -> None:
    fill(tmp_path, {"one.md": "a\n\nb\n"})
    settings: Settings = resolve("text", {"data": str(tmp_path), "documents": "block"})
    assert texts(open_chosen(settings)) == {"train": ["a", "b"]}
