"""Every kind of file, every kind of damage, and the three places rows come from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from newllm.data.containers import NOT_UTF8
from newllm.data.located import Located, Malformed
from newllm.data.prepare import Encoding, prepare_evaluation, prepare_training
from newllm.data.rows import read_file
from newllm.data.sources import open_source
from newllm.datasets import DATASETS
from newllm.errors import UserError

ROWS = [{"instruction": f"q{i}", "context": "", "response": f"a{i}"} for i in range(20)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(path: Path) -> list[dict[str, object]]:
    return [item.row for item in read_file(path) if isinstance(item, Located)]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.jsonl", LINES),
        write(tmp_path / "b.json", json.dumps(ROWS, indent=1)),
        write(tmp_path / "c.json", "\ufeff" + LINES + "\n\n"),
        write(tmp_path / "d.jsonl.gz", gzip.compress(LINES.encode())),
        write(tmp_path / "e.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "f.parquet")
    for file in [*files, tmp_path / "f.parquet"]:
        assert rows_of(file) == ROWS, file.name


def test_broken_lines_are_located(tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.jsonl",
        LINES.encode() + b'{"half": \n[1, 2]\n\xff\xfe\n' + b"[" * 100_000 + b"\n",
    )
    broken = [item for item in read_file(file) if isinstance(item, Malformed)]
    assert [item.where for item in broken] == [f"{file}:{n}" for n in (21, 22, 23, 24)]
    assert [item.reason for item in broken] == [
        "not valid JSON (column 9: expecting value)",
        'a list, expected an object with fields ({"question": "..", "answer": ".."}, say)',
        NOT_UTF8,
        "not valid JSON",
    ]


@pytest.mark.parametrize("first", ["nonsense", "[1, 2]", '{"half": ', "[", "7"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_broken_first_line_costs_no_other_row(tmp_path: Path, first: str, name: str) -> None:
    file = write(tmp_path / name, f"\n{first}\n{LINES}")
    broken = [item for item in read_file(file) if isinstance(item, Malformed)]
    assert [item.where for item in broken] == [f"{file}:2"]
    assert rows_of(file) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("cut.jsonl.gz", gzip.compress(LINES.encode() * 2000)[:-2000], None),
        ("no.jsonl.gz", b"this is no gzip file", 0),
        ("no.parquet", b"PAR1 nor Parquet", 0),
        ("bad.json", b'[{"instruction": "q"}, {]', 0),
        ("digits.json", b'{\n"instruction": ' + b"1" * 5000 + b"}", 0),
    ],
)
def test_damaged_files_are_reported(tmp_path: Path, name, content, rows) -> None:
    items = list(read_file(write(tmp_path / name, content)))
    assert isinstance(items[-1], Malformed)
    assert str(tmp_path / name) in items[-1].where
    if rows is not None:
        assert len(items) == rows + 1


def test_folder_layouts(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.jsonl", LINES)
    write(tmp_path / "data" / "train-00001-of-00002.jsonl", LINES)
    write(tmp_path / "data" / "test.jsonl", LINES)
    source = open_source(DATASETS["dolly"], str(tmp_path))
    train, validation = source.training_splits()
    assert sum(1 for _ in train()) == 40
    assert sum(1 for _ in validation()) == 20, "without validation rows, test rows serve"
    write(tmp_path / "valid.json", json.dumps(ROWS[:3]))
    validation = open_source(DATASETS["dolly"], str(tmp_path)).training_splits()[1]
    assert sum(1 for _ in validation()) == 3


def test_one_file_is_split_90_to_10_always_alike(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", LINES)
    source = open_source(DATASETS["dolly"], str(file))
    train, validation = source.training_splits()
    parts = [[item.row["instruction"] for item in part()] for part in (train, validation)]  # type: ignore[union-attr]
    assert [len(part) for part in parts] == [18, 2]
    assert not set(parts[0]) & set(parts[1])
    again = open_source(DATASETS["dolly"], str(file)).training_splits()[1]
    assert [item.row["instruction"] for item in again()] == parts[1]  # type: ignore[union-attr]
    assert sum(1 for _ in source.evaluation_split()()) == 20, "evaluation reads a file whole"


@pytest.mark.parametrize("count", [2, 19, 100, 1001])
def test_split_is_the_published_one(tmp_path: Path, count: int) -> None:
    import datasets

    rows = [{"instruction": f"q{i}", "response": "a"} for i in range(count)]
    file = write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    held = datasets.Dataset.from_list(rows).train_test_split(test_size=0.1, seed=42)["test"]
    validation = open_source(DATASETS["dolly"], str(file)).training_splits()[1]
    ours = {item.row["instruction"] for item in validation()}  # type: ignore[union-attr]
    assert ours == set(held["instruction"])


def test_a_folder_without_splits_is_evaluated_on_what_training_held_back(tmp_path: Path) -> None:
    write(tmp_path / "databricks-dolly-15k.jsonl", LINES)
    source = open_source(DATASETS["dolly"], str(tmp_path))
    train, validation = (list(rows()) for rows in source.training_splits())
    assert (len(train), len(validation)) == (18, 2)
    assert list(source.evaluation_split()()) == validation


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", LINES)
    before = open_source(DATASETS["dolly"], str(file)).fingerprint
    assert open_source(DATASETS["dolly"], str(file)).fingerprint == before
    write(file, LINES.replace("q3", "Q3"))
    assert open_source(DATASETS["dolly"], str(file)).fingerprint != before


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", r"there are no rows in it"),
        ('{"x": 1}\n' * 30, r"none of 27 train rows can be used; first: .*rows.jsonl:\d+: field"),
        ("nonsense\n" * 30, r"rows.jsonl:1: not valid JSON"),
        ('{"instruction": "", "context": "", "response": ""}\n' * 30, r"none of 27 train rows"),
    ],
)
def test_nothing_left_is_the_users_mistake(tmp_path: Path, content, complaint) -> None:
    source = open_source(DATASETS["dolly"], str(write(tmp_path / "rows.jsonl", content)))
    with pytest.raises(UserError, match=complaint):
        prepare_training(source, Encoding("dolly", "word1000", 1000, 128))


@pytest.mark.parametrize("tokenizer", ["word1000", "bpe"])
def test_malformed_rows_are_counted_not_fatal(tmp_path: Path, tokenizer: str) -> None:
    bad = '{"instruction": "q"}\nnonsense\n{"instruction": 1, "response": "x"}\n'
    write(tmp_path / "train.jsonl", LINES + bad)
    write(tmp_path / "validation.jsonl", LINES)
    source = open_source(DATASETS["dolly"], str(tmp_path))
    encoded = prepare_training(source, Encoding("dolly", tokenizer, 400, 128))
    train = encoded.accounting["train"]
    assert (train.rows, train.malformed, train.documents) == (23, 3, 20)
    assert [line.split(": ")[0].rsplit(":")[-1] for line in train.malformed_examples] == [
        "21", "22", "23",
    ]  # fmt: skip


def test_damaged_cache_is_made_again(tmp_path: Path) -> None:
    source = open_source(DATASETS["dolly"], str(write(tmp_path / "rows.jsonl", LINES)))
    encoding = Encoding("dolly", "bpe", 400, 128)
    first = prepare_training(source, encoding)
    tokens = first.splits["train"].all_tokens()[0]
    shard = next(first.folder.glob("train-*.tokens.npy"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    assert prepare_training(source, encoding).splits["train"].all_tokens()[0].tolist() == (
        tokens.tolist()
    )


def test_max_samples_head_or_sample(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", LINES)
    write(tmp_path / "validation.jsonl", LINES)
    source = open_source(DATASETS["dolly"], str(tmp_path))
    head = prepare_training(source, Encoding("dolly", "word1000", 1000, 128, max_samples=5))
    assert head.accounting["train"].rows == 5
    assert head.accounting["validation"].rows == 20
    words = head.tokenizer.to_dict()["words"]
    assert {"q0", "q4"} <= set(words)
    assert "q5" not in words
    samples = [
        prepare_training(source, Encoding("dolly", "bpe", 400, 128, max_samples=5, seed=seed))
        for seed in (0, 1)
    ]
    texts = [
        sorted(s.tokenizer.decode(s.splits["train"].tokens(d, 0, 99).tolist()) for d in range(5))
        for s in samples
    ]
    assert texts[0] != texts[1]
    assert texts[0] != [f"q{i}a{i}" for i in range(5)]


def test_what_is_malformed_is_counted_beside_a_sample(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", '{"broken\n' * 3 + LINES)
    write(tmp_path / "validation.jsonl", LINES)
    source = open_source(DATASETS["dolly"], str(tmp_path))
    counts = prepare_training(source, Encoding("dolly", "bpe", 400, 128, max_samples=5)).accounting
    assert counts["train"].documents == 5
    assert counts["train"].malformed == 3
    assert "train.jsonl:1: not valid JSON" in counts["train"].malformed_examples[0]


def test_sample_needs_no_files() -> None:
    source = open_source(DATASETS["dolly"], "sample")
    encoded = prepare_evaluation(
        source,
        Encoding("dolly", "word1000", 1000, 128),
        prepare_training(source, Encoding("dolly", "word1000", 1000, 128)).tokenizer,
    )
    assert encoded.accounting["validation"].malformed == 0
    assert encoded.accounting["validation"].documents > 100


@pytest.mark.parametrize("name", ["missing", "empty_folder", "notes.pdf"])
def test_unusable_paths(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty_folder").mkdir()
    write(tmp_path / "notes.pdf", "hello")
    with pytest.raises(UserError, match=name):
        open_source(DATASETS["dolly"], str(tmp_path / name))


@pytest.mark.parametrize(
    ("header", "line"),
    [
        (",question,answer", "{i},Q{i}?,A{i}."),  # pandas, with the numbers of rows
        ("question,answer,,", "Q{i}?,A{i}.,,"),  # a spreadsheet, with columns that were cleared
        ("question, answer", 'Q{i}?, "A{i}."'),  # a person
        ('"question","answer","how sure\n(of ten)"', '"Q{i}?","A{i}.",5'),  # a survey
        ('question,answer,height 5" tall', "Q{i}?,A{i}.,no"),  # a quote that opens nothing
    ],
)
def test_tables_as_programs_and_people_write_them(tmp_path: Path, header: str, line: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text("\n".join([header, *(line.format(i=i) for i in range(3))]))
    rows = [item.row for item in read_file(file) if isinstance(item, Located)]
    assert [(row["question"], row["answer"]) for row in rows] == [
        (f"Q{i}?", f"A{i}.") for i in range(3)
    ]
    assert "" not in rows[0]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "t.csv",
            "question,answer\nq,a, and more\n",
            "the header has 2 (question, answer",
        ),
        ("t.csv", 'question,answer\n"a \\"b\\" c",d\n', 'is written "so, with ""these"" doubled"'),
        ("t.csv", 'question,"answer\n' + "q,a\n" * 99, "a quote in the header is not closed"),
        ("t.csv", 'a\t"\n"b,c,d\n1,2,3\n', "t.csv:2: not valid CSV"),
        ("t.csv", "a,a\n1,2\n", "rename one of the two"),
        ("t.csv", ",,\n1,2,3\n", "the header names no field"),
        ("t.csv", "question\nd\xe9j\xe0\n".encode("cp1252"), "CP1252"),
        ("t.json", '[{"question": "q", "answer": "a"}, {"question": "q', ": unterminated string"),
        (
            "t.jsonl",
            '{"question": 1}\n{"question": }\n',
            "2: not valid JSON (column 14: exp",
        ),
        ("t.json", '{"a": 1}\n{"b":\n 2,}\n', "t.json:3: not valid JSON (column 3"),
        ("t.jsonl", "<!DOCTYPE html><html></html>", "markup (HTML or XML)"),
        ("t.json", '["one", "two"]', 'expected an object with fields ({"question"'),
        ("t.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("t.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("t.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("t.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_what_is_wrong_with_a_file_and_what_to_do(
    tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    told = [
        f"{item.where}: {item.reason}" for item in read_file(file) if isinstance(item, Malformed)
    ]
    assert any(says in line for line in told), told
