"""The comparison with the baselines: budgets, intervals and the table, nothing trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import quality
from benchmarks.measure import markdown_table
from newllm.config import ModelSettings
from newllm.model import count_parameters
from newllm.model.shape import matched_widths
from newllm.model.spec import RECALL_SLOTS


@pytest.mark.parametrize("millions", [1.4, 5.0])
@pytest.mark.parametrize("tokenizer", ["bpe", "word1000"])
def test_every_trial_keeps_to_the_budget(millions: float, tokenizer: str) -> None:
    """Equal parameters: all within 5% of the budget, and none beyond it."""
    for architecture in quality.DEPTHS[millions]:
        trial = quality.Trial("dolly", tokenizer, architecture, millions, 0.003, 0, 100)
        settings = trial.settings("sample")
        layers = quality.DEPTHS[millions][architecture]
        vocabulary = quality.VOCABULARY[millions] if tokenizer == "bpe" else 1000
        budget = round(millions * 1e6)
        widths = matched_widths(architecture, layers, vocabulary, budget, True, RECALL_SLOTS)
        assert settings["context_dim"] == widths["context_dim"]
        values = {"architecture": architecture, "num_layers": layers, **widths}
        parameters = count_parameters(ModelSettings(**values), vocabulary)
        assert 0.95 * millions * 1e6 < parameters <= millions * 1e6, architecture


def test_bootstrap_interval(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    theirs = generator.gamma(2.0, 100.0, size=400)
    np.save(tmp_path / "theirs.npy", theirs)
    np.save(tmp_path / "ours.npy", theirs * generator.normal(1.1, 0.05, size=400))
    ours, reference = ({"nats_file": f"{name}.npy"} for name in ("ours", "theirs"))
    low, high = quality.interval(ours, reference, tmp_path)
    assert 1.08 < low < 1.1 < high < 1.12


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each architecture's best rate of the first set is the one it has everywhere."""

    def pretend(
        trial: quality.Trial, data_dir: str, out: Path, nats: bool = False
    ) -> dict[str, Any]:
        words = trial.tokenizer == "word1000"
        best_rate = {"context": 0.003, "gru": 0.012}[trial.architecture]
        loss = 2.0 + abs(trial.learning_rate - best_rate) + 0.001 * trial.seed
        if nats:
            np.save(out / f"{trial.name}.npy", np.full(20, loss))
        return {
            "bpb": None if words else loss / 2, "ppl": 10 * loss, "loss": loss, "accuracy": 0.5,
            "ngram_ppl": 20.0, "ngram_bpb": 1.5, "parameters": 7, "trained_tokens": trial.steps,
            "nats_file": f"{trial.name}.npy",
        }  # fmt: skip

    def speeds(rows: tuple[str, str], *_: Any) -> dict[str, float]:
        return {"context": 0.1, "gru": 0.2 if rows[1] == "bpe" else 0.3}

    monkeypatch.setattr(quality, "run_trial", pretend)
    monkeypatch.setattr(quality, "step_seconds", speeds)
    sets = [("dolly", "bpe"), ("dolly", "word1000")]
    rows = quality.compare(sets, ["context", "gru"], 1.4, 1.0, "sample", tmp_path, 2)
    named = {(row["set"], row["architecture"]): row for row in rows}
    assert len(named) == 6
    assert named["dolly:word1000", "gru"]["learning_rate"] == 0.012
    assert named["dolly:bpe", "gru"]["tokens_read"] == 300
    assert named["dolly:word1000", "gru"]["tokens_read"] == 200
    assert named["dolly:bpe", "context"]["quality"] == pytest.approx(1.0)
    assert named["dolly:word1000", "context"]["quality"] == pytest.approx(20.0)
    assert named["dolly:bpe", "n-gram"]["quality"] == 1.5
    assert named["dolly:word1000", "n-gram"]["quality"] == 20.0
    assert markdown_table(rows).count("\n") == 7
