"""One check a data set, on rows that can be judged, and one line where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from newllm.data.located import Located, Malformed
from newllm.data.sources import Source, open_source
from newllm.data.tokenizers import BPE, Word1000
from newllm.datasets import find_dataset
from newllm.errors import UserError
from newllm.evaluate import sandbox, skills
from newllm.evaluate.skills import require_skills, skill_check
from newllm.inference.greedy import Answer
from newllm.model import LanguageModel, build_model
from newllm.report.tables import evaluation_table

SCORED = {
    "dataset": "x",
    "tokenizer": "bpe",
    "protocol": "p",
    "rows": 1,
    "tokens": 9,
    "loss": 1.0,
    "ppl": 2.0,
    "accuracy": 0.5,
    "bpb": 1.0,
    "bpb_assistant": None,
    "ngram_ppl": 2.0,
}


@pytest.fixture
def tokenizer() -> BPE:
    return BPE.train(["def f(x): return x  so the sum is \\boxed{12}"], 300)


@pytest.fixture
def model(tokenizer: BPE, tiny_model_settings) -> LanguageModel:
    torch.manual_seed(0)
    return build_model(tiny_model_settings(), tokenizer.vocab_size).train()


def rows_source(rows: list[dict]) -> Source:
    items = [Located(f"rows:{number}", row) for number, row in enumerate(rows)]
    items = [*items, Malformed("rows:x", "not valid JSON")]
    return Source("rows", "0", {"all": lambda: iter(items)})


@pytest.mark.parametrize(
    ("dataset", "check"),
    [("code_alpaca", "code answers"), ("math", "math answers"), ("hh_rlhf", "preferences")],
)
def test_every_check_on_the_sample(model, tokenizer, dataset: str, check: str, monkeypatch) -> None:
    if dataset == "math":
        pytest.importorskip("math_verify")
    monkeypatch.setattr(skills, "_ANSWER_TOKENS", 8)
    source = open_source(find_dataset(dataset), "sample")
    results = [skill_check(model, tokenizer, dataset, source, rows=5) for _ in range(2)]
    assert results[0] == results[1]
    assert model.training  # as it was
    assert results[0]["check"] == check
    assert results[0]["rows"] == 5
    assert results[0]["of"] > 100
    json.dumps(results[0])
    lines = evaluation_table({**SCORED, "skills": results[0]})
    assert f"{check}: 5 of {results[0]['of']:,} rows" in lines
    assert ("not tried; --run-code" in lines) == (dataset == "code_alpaca")


def test_rows_that_cannot_be_judged_are_counted(model, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(skills, "_ANSWER_TOKENS", 2)
    code = {"instruction": "Add.", "input": "", "output": "x = 1 + 1"}
    rows = [code, {**code, "output": "It is 2."}, {**code, "output": None}, {**code, "checks": 1}]
    result = skill_check(model, tokenizer, "code_alpaca", rows_source(rows))
    assert (result["rows"], result["of"], result["left_out"]) == (1, 1, 4)
    assert "(4 others cannot be judged)" in evaluation_table({**SCORED, "skills": result})
    none = skill_check(model, tokenizer, "code_alpaca", rows_source(rows[1:]))
    assert none["check"] is None
    assert none["reason"] == "no answer of rows is a Python program"
    assert none["left_out"] == 4


def test_no_check_says_why(model, tokenizer) -> None:
    source = open_source(find_dataset("dolly"), "sample")
    assert "no skill check for dolly" in skill_check(model, tokenizer, "dolly", source)["reason"]
    words = Word1000.train(["a b c"])
    reason = skill_check(model, words, "math", source)["reason"]
    assert "word1000" in reason
    result = {"check": None, "reason": reason, "rows": 0, "of": 0, "left_out": 0}
    assert f"none: {reason}" in evaluation_table({**SCORED, "skills": result})


def test_what_is_missing_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    for dataset in ("hh_rlhf", "dolly"):
        require_skills(dataset, run_code=True)
    require_skills("code_alpaca", run_code=False)
    with pytest.raises(UserError, match="leave --run-code out"):
        require_skills("code_alpaca", run_code=True)


def test_choice_of_rows_is_spread_and_fixed(model, tokenizer, monkeypatch) -> None:
    pytest.importorskip("math_verify")
    monkeypatch.setattr(skills, "_ANSWER_TOKENS", 1)
    rows = [
        {"problem": "p", "solution": r"\boxed{1}", "type": f"Subject {number // 50}", "level": "1"}
        for number in range(200)
    ]
    result = skill_check(model, tokenizer, "math", rows_source(rows), rows=40)
    assert set(result["by_subject"]) == {f"Subject {number}" for number in range(4)}


def test_answers_a_person_could_have_given(model, tokenizer, monkeypatch, tmp_path: Path) -> None:
    """The whole way, from rows to shares, with what the model writes replaced."""
    try:
        require_skills("code_alpaca", run_code=True)
    except UserError as reason:
        pytest.skip(str(reason))
    rows = [
        {"instruction": f"Add {n}.", "input": "", "output": f"def f(x):\n    return x + {n}",
         "checks": [f"assert f(1) == {n + 1}"]}
        for n in range(4)
    ]  # fmt: skip
    replies = [rows[0]["output"], rows[1]["output"], rows[0]["output"], "I do not know."]
    monkeypatch.setattr(
        skills, "greedy_answers", lambda *_: [Answer(text, True) for text in replies]
    )
    result = skill_check(model, tokenizer, "code_alpaca", rows_source(rows), run_code=True)
    assert (result["parses"], result["runs"], result["passes"]) == (0.75, 0.75, 0.5)
    assert (result["own_runs"], result["own_passes"]) == (1, 1)
    lines = evaluation_table({**SCORED, "skills": result})
    assert "50.0% of 4 rows with checks (the rows' own answers: 100.0%)" in lines
    assert "faults of the Linux kernel" in lines
