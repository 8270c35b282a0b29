"""Answers that are not learnt, tool calls, rows of both splits, names of columns and splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from newllm.data.loader import IGNORED, EpochLoader
from newllm.data.located import Located
from newllm.data.prepare import Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.datasets import DATASETS
from newllm.errors import UserError

CHAT = DATASETS["chat"]
ENCODING = Encoding("chat", "bpe", 300, 64)


def turns(*said: tuple[str, str], **of_first_answer: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in said]
    next(m for m in messages if m["role"] == "assistant").update(of_first_answer)
    return {"messages": messages}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_answers_of_weight_0_are_read_and_not_scored(tmp_path: Path) -> None:
    said = ("user", "q"), ("assistant", "WRONG"), ("user", "again"), ("assistant", "right")
    file = write(tmp_path / "rows.jsonl", [turns(*said, weight=0)] * 30)
    encoded = prepare_training(open_source(CHAT, str(file)), ENCODING)
    split, counts = encoded.splits["train"], encoded.accounting["train"]
    tokens, marks = split.tokens(0, 0, 99), split.assistant(0, 0, 99)
    decode = encoded.tokenizer.decode
    assert decode(tokens[marks == 2].tolist()) == "WRONG"
    assert decode(tokens[marks == 1].tolist()) == "right"
    assert counts.assistant_bytes == 27 * len("right")
    assert counts.content_bytes == 27 * len("qagainright")
    assert counts.masked_tokens == int((marks == 2).sum()) * 27
    assert counts.scored_tokens == counts.tokens - counts.documents - counts.masked_tokens
    runs = split.scored_runs(0)
    assert sum(len(run) - 1 for run in runs) == counts.scored_tokens // 27
    assert all("WRONG" not in decode(run[1:].tolist()) for run in runs)
    scored = 0
    for batch in EpochLoader(split, 16, 4).batches():
        wanted = batch.targets[batch.targets != IGNORED]
        assert "WRONG" not in decode(wanted.tolist())
        scored += batch.scored
    assert scored == counts.scored_tokens
    parts = [EpochLoader(split, 16, 4, part=part) for part in (slice(3), slice(3, 4))]
    for first, second in zip(*(part.batches() for part in parts), strict=True):
        assert first.scored == second.scored


def test_tool_calls_are_left_out_and_counted(tmp_path: Path) -> None:
    row = turns(("user", "q"), ("assistant", ""), ("tool", "4"), ("assistant", "It is 4."),
                tool_calls=[{"type": "function"}])  # fmt: skip
    counts = prepare_training(
        open_source(CHAT, str(write(tmp_path / "rows.jsonl", [row] * 20))), ENCODING
    ).accounting["train"]
    assert (counts.documents, counts.tool_calls, counts.malformed) == (18, 36, 0)
    assert "left out" in counts.exceptions("train", False)["train tool calls and thoughts"]


@pytest.mark.parametrize("decontaminate", [False, True])
def test_rows_of_both_splits_are_told(tmp_path: Path, decontaminate: bool) -> None:
    rows = [turns(("user", f"q{i}"), ("assistant", f"a{i}")) for i in range(30)]
    write(tmp_path / "train.jsonl", rows[:25])
    write(tmp_path / "validation.jsonl", rows[20:])
    encoding = Encoding("chat", "bpe", 300, 64, decontaminate=decontaminate)
    counts = prepare_training(open_source(CHAT, str(tmp_path)), encoding).accounting["validation"]
    assert (counts.rows, counts.repeated) == (10, 5)
    assert counts.documents == (5 if decontaminate else 10)
    write(tmp_path / "validation.jsonl", rows[:5])
    if decontaminate:
        with pytest.raises(UserError, match="all validation rows stand in training too"):
            prepare_training(open_source(CHAT, str(tmp_path)), encoding)


def rows_of(source: Any) -> list[dict[str, Any]]:
    return [item.row for item in source.training_splits()[0]() if isinstance(item, Located)]


def test_columns_have_the_names_they_have(tmp_path: Path) -> None:
    rows = [{"Frage": f"q{i}", "Antwort": f"a{i}", "text": "no"} for i in range(20)]
    file = str(write(tmp_path / "rows.jsonl", rows))
    for dataset, names in (("dolly", "instruction=Frage response=Antwort"),
                           ("chat", "question=Frage answer=Antwort")):  # fmt: skip
        level = DATASETS[dataset]
        row = rows_of(open_source(level, file, columns=names.split()))[0]
        said = [message["content"] for message in level.conversation(row)]
        assert said == ["q0", "a0"]
    for wrong, complaint in (("instruction", "expected OURS=THEIRS"),
                             ("instructions=x", "did you mean instruction"),
                             ("response=a response=b", "was a already")):  # fmt: skip
        with pytest.raises(UserError, match=complaint):
            open_source(DATASETS["dolly"], file, columns=wrong.split())
    source = open_source(CHAT, file, columns=["question=Fräge"])
    with pytest.raises(UserError, match="no field Fräge; the row has Frage, Antwort, text"):
        prepare_training(source, ENCODING)


@pytest.mark.parametrize("most", [None, 8])
def test_any_set_of_the_hub(tmp_path: Path, most: int | None) -> None:
    """From a folder laid out like a repository; with a limit as a stream."""
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(40)]
    write(tmp_path / "data" / "train_sft-00000-of-00001.jsonl", rows[:30])
    write(tmp_path / "data" / "test_sft-00000-of-00001.jsonl", rows[30:])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: all\n  data_files:\n"
        "  - {split: train_sft, path: data/train*}\n  - {split: test_sft, path: data/test*}\n---\n"
    )
    source = open_source(CHAT, f"hub:{tmp_path}:all", most=most)
    train, validation = source.training_splits()
    assert sum(1 for _ in train()) == (most or 30)
    assert sum(1 for _ in validation()) == 10
    assert CHAT.conversation(rows_of(source)[0])[1]["content"] == "a0"
    turned = open_source(CHAT, f"hub:{tmp_path}", splits=["train=test_sft"], most=most)
    assert {int(row["question"][1:]) >= 30 for row in rows_of(turned)} == {True}
    assert turned.fingerprint != source.fingerprint


@pytest.mark.parametrize("name", ["hub:a/b/c", "hub:", "hub:a b", "hub:a:b:c"])
def test_names_that_no_set_has(name: str) -> None:
    with pytest.raises(UserError, match="expected hub:ORG/NAME"):
        open_source(CHAT, name)
    with pytest.raises(UserError, match=r"nobody/nothing cannot be had from the Hub"):
        open_source(CHAT, "hub:nobody/nothing")
