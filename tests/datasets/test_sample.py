"""The built-in sample data: the same in every process, without repeats, and with right answers."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from newllm.data.located import Located
from newllm.data.sources import SAMPLES as PACKAGED
from newllm.data.sources import open_source
from newllm.datasets import DATASETS
from newllm.errors import UserError
from tools.samples import FOLDER, SAMPLES, compressed, sample_lines, sample_rows
from tools.samples.code_alpaca import TASKS, fails
from tools.samples.code_tasks import fill

ROOT = Path(__file__).resolve().parents[2]

FIELDS = {
    "dolly": {"instruction", "context", "response", "category"},
    "hh_rlhf": {"chosen", "rejected", "subset"},
    "ultrachat": {"messages"},
    "code_alpaca": {"instruction", "input", "output", "checks"},
    "math": {"problem", "level", "type", "solution"},
    "wikitext2": {"text"},
    "dolly_ja": {"instruction", "input", "output", "category"},
}
SPLITS = ("train", "validation")
COUNTS = {
    "dolly": (8000, 400),
    "hh_rlhf": (3000, 300),
    "ultrachat": (2000, 200),
    "code_alpaca": (2500, 250),
    "math": (3000, 300),
    "wikitext2": (1500, 150),
    "dolly_ja": (8000, 400),
}
FINGERPRINTS = {
    "dolly": "4d2f6caf4cc0208e0ef4f3d4dfce7ddd5ca4a552400584c6cf5842ff935a6385",
    "hh_rlhf": "e31afdfec40d5c639fe236814168c837d54dfe8a8a573dd0c52acf2995bc56a6",
    "ultrachat": "8a2060a67dfd6880a2a559c716a0bb6bb1a78e68632c24f15d9ece948acff0b2",
    "code_alpaca": "297f700dcf02e70a62e00c6611ee562c148495499329d9cdd20134a3fdba5d17",
    "math": "42a6b1f9d0d4035bd304a3a0617b46dfb5a7c702f83fac8f089f9e1a751d2f05",
    "wikitext2": "864580f625ab85f76975d0f0162158bed031700f40664fa7696b515b4eb7bf53",
    "dolly_ja": "3775ba99912cb706f6d5368e15bd3616256987e988152d9c0c1b6be19bce2ea5",
}
"""As in checkpoints and caches of every version so far: another one would refuse to resume them."""
PART_FINGERPRINTS = {
    "helpful": "92fb62a12f673f3a76d3bdf1489b26fe2487ecbdd23d4003ca7484a8ad9c6bff",
    "harmless": "5b3ae2e438831f42ad6cb3de543b78908f977d7ac06ad7c0ec097020cb4fd195",
}
ZLIB = "1.2.13"
"""The version that compressed the files; others may choose other bytes for the same rows."""
DIGEST = """
import hashlib, json, sys
from newllm.data.located import Located
from newllm.data.sources import SAMPLES as PACKAGED
from newllm.data.sources import open_source
from newllm.datasets import DATASETS
from newllm.errors import UserError
from tools.samples import FOLDER, SAMPLES, compressed, sample_lines, sample_rows
for name in SAMPLES:
    text = json.dumps([sample_rows(name, split, seed=3) for split in ("train", "validation")])
    print(name, hashlib.sha256(text.encode()).hexdigest())
"""

Rows = list[dict[str, Any]]


@cache
def rows_of(name: str, split: str, seed: int = 0) -> Rows:
    return sample_rows(name, split, seed)


def both_splits(name: str) -> Rows:
    return rows_of(name, "train") + rows_of(name, "validation")


def as_text(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def test_names() -> None:
    assert set(SAMPLES) == set(FIELDS)


def test_the_package_holds_a_folder_for_every_sample_and_nothing_else() -> None:
    assert PACKAGED == FOLDER
    files = {file.relative_to(FOLDER).as_posix() for file in FOLDER.rglob("*") if file.is_file()}
    assert files == {f"{name}/{split}.jsonl.gz" for name in SAMPLES for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SAMPLES)
def test_the_generators_make_the_packaged_bytes(name: str, split: str) -> None:
    packaged = (FOLDER / name / f"{split}.jsonl.gz").read_bytes()
    lines = sample_lines(name, split)
    assert gzip.decompress(packaged) == lines, f"python -m tools.samples {name}"
    assert packaged[3:8] == bytes(5), "neither a file name nor a time"
    if zlib.ZLIB_RUNTIME_VERSION == ZLIB:
        assert packaged == compressed(lines)


@pytest.mark.parametrize("name", SAMPLES)
def test_packaged_rows_are_read_as_they_were_made(name: str) -> None:
    source = open_source(DATASETS[name], "sample")
    assert source.description == f"built-in sample of {name}"
    assert list(source.splits) == list(SPLITS)
    for split, rows in source.splits.items():
        made = enumerate(rows_of(name, split), start=1)
        assert list(rows()) == [Located(f"sample {split}:{n}", row) for n, row in made]


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_fingerprints_stay(name: str) -> None:
    assert open_source(DATASETS[name], "sample").fingerprint == FINGERPRINTS[name]
    for part in DATASETS[name].subsets:
        known = PART_FINGERPRINTS[part]
        assert open_source(DATASETS[name], "sample", part).fingerprint == known


def test_a_damaged_file_is_told_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("newllm.data.sources.SAMPLES", tmp_path)
    with pytest.raises(UserError, match="dolly: there is no built-in sample"):
        open_source(DATASETS["dolly"], "sample")
    (tmp_path / "dolly").mkdir()
    for split in SPLITS:
        whole = compressed(sample_lines("dolly", split))
        (tmp_path / "dolly" / f"{split}.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    source = open_source(DATASETS["dolly"], "sample")
    items = list(source.splits["train"]())
    assert items[-1].where == f"sample train:{len(items)}"
    assert not isinstance(items[-1], Located)
    assert source.fingerprint != FINGERPRINTS["dolly"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown sample"):
        sample_rows("novels", "train")
    for name in SAMPLES:
        with pytest.raises(ValueError, match="split"):
            sample_rows(name, "test")


def test_rows_are_the_same_in_other_processes() -> None:
    digests = {}
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        digests[hash_seed] = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert digests["1"] == digests["2"]
    for line in digests["1"].splitlines():
        name, digest = line.split()
        here = json.dumps([rows_of(name, split, 3) for split in ("train", "validation")])
        assert hashlib.sha256(here.encode()).hexdigest() == digest


@pytest.mark.parametrize("name", SAMPLES)
def test_counts_and_fields(name: str) -> None:
    for split, expected in zip(("train", "validation"), COUNTS[name], strict=True):
        rows = rows_of(name, split)
        assert abs(len(rows) - expected) <= expected // 20
        assert all(set(row) == FIELDS[name] for row in rows)


@pytest.mark.parametrize("name", SAMPLES)
def test_no_row_occurs_twice(name: str) -> None:
    texts = [as_text(row) for row in both_splits(name)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", SAMPLES)
def test_no_row_is_held_out_under_one_seed_and_taught_under_another(name: str) -> None:
    taught = {as_text(row) for row in rows_of(name, "train", 3)}
    assert taught.isdisjoint(as_text(row) for row in rows_of(name, "validation"))
    assert rows_of(name, "train", 3) != rows_of(name, "train")


def test_dolly_teaches_every_word_that_it_asks_for() -> None:
    taught = {word for row in rows_of("dolly", "train") for word in words(row["response"])}
    for row in rows_of("dolly", "validation"):
        if row["category"] == "open_qa":
            assert taught.issuperset(words(row["response"])), row


def test_dolly_has_no_question_twice() -> None:
    asked = [(row["instruction"], row["context"]) for row in both_splits("dolly")]
    assert len(set(asked)) == len(asked)


def test_dolly_answers_about_a_context_are_in_the_context() -> None:
    closed = [row for row in both_splits("dolly") if row["category"] == "closed_qa"]
    assert closed
    for row in closed:
        assert row["context"]
        # Verbs take other forms in an answer, so the first letters of a word are compared.
        known = {word[:3] for word in words(row["context"] + " " + row["instruction"])}
        unknown = [word for word in words(row["response"]) if word[:3] not in known]
        assert set(unknown) <= {"a", "an", "as", "by", "in", "of", "on", "at", "you"}, row


def test_dolly_calculations_are_right() -> None:
    signs: dict[str, Callable[[int, int], int]] = {
        "plus": lambda a, b: a + b,
        "minus": lambda a, b: a - b,
        "times": lambda a, b: a * b,
    }
    found = 0
    for row in both_splits("dolly"):
        match = re.fullmatch(r"(\d+) (plus|minus|times) (\d+) is (\d+)\.", row["response"])
        if match:
            first, sign, second, result = match.groups()
            assert signs[sign](int(first), int(second)) == int(result)
            found += 1
    assert found > 200


def test_dolly_rows_without_need_of_a_context_have_none() -> None:
    with_context = {"closed_qa", "information_extraction", "summarization"}
    for row in both_splits("dolly"):
        assert bool(row["context"]) == (row["category"] in with_context)


def turns_of(talk: str) -> list[tuple[str, str]]:
    return re.findall(r"\n\n(Human|Assistant): (.*?)(?=\n\n(?:Human|Assistant): |\Z)", talk, re.S)


def test_hh_rlhf_talks_alternate_and_differ_in_the_last_answer() -> None:
    for row in both_splits("hh_rlhf"):
        chosen, rejected = turns_of(row["chosen"]), turns_of(row["rejected"])
        for turns, talk in ((chosen, row["chosen"]), (rejected, row["rejected"])):
            assert "".join(f"\n\n{speaker}: {text}" for speaker, text in turns) == talk
            speakers = [speaker for speaker, _ in turns]
            assert speakers == ["Human", "Assistant"] * (len(turns) // 2)
        assert chosen[:-1] == rejected[:-1]
        assert chosen[-1] != rejected[-1]


def test_hh_rlhf_has_both_subsets_in_equal_parts() -> None:
    for split in ("train", "validation"):
        subsets = [row["subset"] for row in rows_of("hh_rlhf", split)]
        assert set(subsets) == {"helpful-base", "harmless-base"}
        assert subsets.count("helpful-base") == subsets.count("harmless-base")


def test_hh_rlhf_counts_are_right() -> None:
    found = 0
    for row in rows_of("hh_rlhf", "train"):
        turns = [text for _, text in turns_of(row["chosen"])]
        match = re.fullmatch(r"You have (\d+) \w+ now\.", turns[-1])
        if not match:
            continue
        count = 0
        for text in turns[:-2:2]:
            number = int(re.findall(r"\d+", text)[0])
            less = re.search(r"\b(ate|lost|gave)\b", text)
            count += -number if less else number
        assert count == int(match[1]), row
        found += 1
    assert found > 50


def test_ultrachat_messages_alternate() -> None:
    for row in both_splits("ultrachat"):
        messages = row["messages"]
        assert 4 <= len(messages) <= 8
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(set(message) == {"role", "content"} for message in messages)
        assert all(message["content"].strip() == message["content"] != "" for message in messages)


def test_code_alpaca_outputs_run_and_pass_their_checks() -> None:
    checked = 0
    for row in both_splits("code_alpaca"):
        if row["checks"]:
            space: dict[str, Any] = {}
            exec(row["output"], space)
            for check in row["checks"]:
                exec(check, space)
            checked += 1
    assert checked > 1000


def test_code_alpaca_inputs_with_a_bug_fail() -> None:
    broken = [row for row in both_splits("code_alpaca") if row["checks"] and row["input"]]
    assert broken
    assert all(fails(row["input"], tuple(row["checks"])) for row in broken)


def test_code_alpaca_functions_in_steps_and_in_one_line_agree() -> None:
    for task in TASKS:
        for number in (2, 7, 12):
            function = fill(task, task.names[0], task.arguments[0], number)
            checks = tuple(function.checks())
            assert not fails(function.source(), checks), function.source()
            assert not fails(function.source(in_one_line=True), checks), function.source(True)


def test_wikitext2_is_a_sequence_of_articles() -> None:
    for split in ("train", "validation"):
        lines = [row["text"] for row in rows_of("wikitext2", split)]
        assert re.fullmatch(r"= [^=]+ =", lines[0])
        titles = [line.strip("= ") for line in lines if re.fullmatch(r"= [^=]+ =", line)]
        assert len(titles) >= 20
        for before, line in pairwise(lines):
            if before.startswith("= = "):
                assert not line.startswith("="), "a heading without a paragraph"
        assert all("  " not in line and line == line.strip() for line in lines)
        paragraphs = [line for line in lines if not line.startswith("=")]
        assert all(line.endswith(" .") for line in paragraphs)
        assert not any(re.search(r"\w[,.;]", line) for line in paragraphs)


def test_wikitext2_paragraphs_stay_with_their_article() -> None:
    title = ""
    for row in both_splits("wikitext2"):
        text = row["text"]
        if re.fullmatch(r"= [^=]+ =", text):
            title = text.strip("= ")
        else:
            assert title.split()[-1] in text
