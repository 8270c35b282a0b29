"""Checkpoints judged by lm-eval: rows of the tasks' forms, made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import harness
from newllm.cli import main
from newllm.trained import TrainedModel


def write(file: Path, rows: list[dict[str, str]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pair = {"sentence_good": "She sees a river.", "sentence_bad": "She see a river."}
    same = {"sentence_good": "A river.", "sentence_bad": "A river."}
    write(tmp_path / "agreement.jsonl", [{**pair, "field": "morphology"}] * 3)
    write(tmp_path / "islands.jsonl", [{**same, "field": "syntax"}] * 2)
    return tmp_path


def sums(place: Path) -> Path:
    place.mkdir()
    for name in harness.SUMS:
        row = {"context": "\n\nQ: What is 9 plus 4?\n\nA:", "completion": " 13"}
        write(place / f"{name}.jsonl", [row])
    return place


def test_pairs_sums_and_text(trained: TrainedModel, folder: Path, capsys) -> None:
    texts = ["The river is long.", "After 3 comes 4."]
    file = write(folder / "validation.txt", [{"text": text} for text in texts])
    flags = ["--checkpoint", str(trained.path), "--blimp", str(folder), "--text", str(file)]
    capsys.readouterr()
    assert (
        main(["bench", "harness", *flags, "--arithmetic", str(sums(folder / "s")), "--json"]) == 0
    )
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert {row["field"]: (row["ties"], row["pairs"]) for row in tables["BLiMP"]} == {
        "morphology": (0, 3), "syntax": (1, 2), "all": (0.4, 5),
    }  # fmt: skip
    right = {row["field"]: row["right"] for row in tables["BLiMP"]}
    assert right["syntax"] == 0, "a tie is not right"
    assert right["morphology"] in (0, 1)
    assert [row["task"] for row in tables["Sums"]] == list(harness.SUMS)
    (text,) = tables["Text"]
    rows = write(folder / "rows.jsonl", [{"text": text} for text in texts])
    ours = trained.evaluate(str(rows), dataset="chat")["bpb"]
    assert text["bits_per_byte"] == pytest.approx(ours, rel=1e-6)


def test_a_sum_is_asked_as_the_harness_asks_it(folder: Path) -> None:
    """lm-eval's own `arithmetic` rewrites a row; a template of ours does the same."""
    from jinja2 import Environment

    task = harness.sum_task("two_digit_addition", folder / "x.jsonl")
    asked = Environment().from_string(task["doc_to_text"])
    assert asked.render(context="\n\nQ: What is 98 plus 45?\n\nA:") == (
        "Question: What is 98 plus 45?\nAnswer:"
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "nothing to judge by"),
        (["--blimp", "EMPTY"], "no *.jsonl in it"),
        (["--arithmetic", "EMPTY"], "two_digit_addition.jsonl: no such file"),
    ],
)
def test_mistakes_get_one_line(flags, says, trained: TrainedModel, tmp_path, capsys) -> None:
    flags = [str(tmp_path) if flag == "EMPTY" else flag for flag in flags]
    capsys.readouterr()
    assert main(["bench", "harness", "--checkpoint", str(trained.path), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
