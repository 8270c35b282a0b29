"""`newllm compare`: the grid, resume semantics, and the report."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from newllm.cli import main
from newllm.curriculum.compare import plan
from newllm.errors import UserError
from newllm.train.trainer import Trainer

TINY = (
    "--context-dim 16 --embed-dim 16 --hidden-dim 24 --vocab-size 400 --max-seq-length 24 "
    "--batch-size 4 --epochs 1 --device cpu"
).split()


@pytest.fixture
def command(dolly_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A comparison of depths; further words are added by the tests."""
    words = ["compare", "dolly", "--data", str(dolly_folder), "--out", str(tmp_path / "out"), *TINY]
    monkeypatch.setattr(sys, "argv", ["newllm", *words])
    return words


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "compare_dolly.json").read_text(encoding="utf-8"))


def test_the_grid_and_its_names() -> None:
    sweeps = {"num_layers": (1, 4), "learning_rate": (0.001, 0.003), "context_dim": (32,)}
    variants = plan("dolly", sweeps, {"out": "x"})
    assert [variant.settings.run_name for variant in variants] == [
        "new_llm_dolly_layers1_bpe_learning_rate0.001",
        "new_llm_dolly_layers1_bpe_learning_rate0.003",
        "new_llm_dolly_layers4_bpe_learning_rate0.001",
        "new_llm_dolly_layers4_bpe_learning_rate0.003",
    ]
    assert variants[2].words == "--num-layers 4 --learning-rate 0.001"
    assert all(variant.settings.context_dim == 32 for variant in variants)


def test_a_name_is_a_file_name() -> None:
    for variant in plan("dolly", {"data": ("a/b c.jsonl", "/d/e")}, {}):
        assert "/" not in variant.settings.run_name
        assert " " not in variant.settings.run_name


def test_the_published_experiment() -> None:
    """Depths of the first architecture, with its own recipe."""
    variants = plan("wikitext2", {"num_layers": (1, 4, 5, 6, 7), "architecture": ("original",)}, {})
    assert [variant.settings.num_layers for variant in variants] == [1, 4, 5, 6, 7]
    assert {variant.settings.batch_size for variant in variants} == {2048}
    assert variants[1].settings.run_name == "new_llm_wikitext2_layers4_original_bpe"


@pytest.mark.parametrize(
    ("sweeps", "says"),
    [
        ({"num_layers": (1, 0)}, "--num-layers 0: input should be greater"),
        ({"num_layers": (1, 2, 1)}, "--num-layers 1: given twice"),
        ({"data": ("a/b", "a b")}, "two runs would have this name"),
    ],
)
def test_a_wrong_value_is_told_before_any_training(sweeps, says) -> None:
    with pytest.raises(UserError, match=says):
        plan("dolly", sweeps, {})


def test_runs_are_compared_once(command, tmp_path, capsys, monkeypatch) -> None:
    folder = tmp_path / "out"
    assert main([*command, "--num-layers", "1", "2"]) == 0
    output = capsys.readouterr().out
    assert "Run 2 of 2: --num-layers 2" in output
    found = report(folder)
    assert found["swept"] == ["num_layers"]
    assert [run["num_layers"] for run in found["runs"]] == [1, 2]
    assert all(run["tokens_per_second"] > 0 and run["bpb"] > 0 for run in found["runs"])
    page = (folder / "compare_dolly.md").read_text(encoding="utf-8")
    assert page.count("\n| ") == 3
    ElementTree.fromstring((folder / "compare_dolly.svg").read_text(encoding="utf-8"))
    # Again with one depth more: only that one is trained.
    trained = []
    real = Trainer.fit
    monkeypatch.setattr(
        Trainer,
        "fit",
        lambda self, stop: trained.append(self.settings.num_layers) or real(self, stop),
    )
    assert main([*command, "--num-layers", "1", "2", "3"]) == 0
    assert trained == [3]
    assert capsys.readouterr().out.count("Finished before.") == 2
    assert [run["num_layers"] for run in report(folder)["runs"]] == [1, 2, 3]
    # With other settings, the earlier runs are not taken for these.
    capsys.readouterr()
    assert main([*command, "--num-layers", "1", "2", "--dropout", "0.3"]) == 2
    error = capsys.readouterr().err
    assert "--dropout 0.1 -> 0.3" in error
    assert "another --out" in error
    assert error.count("\n") == 1


def test_stopped_and_gone_on(command, tmp_path, capsys, monkeypatch) -> None:
    """SIGTERM in the second run: train's exit code, the same command goes on."""
    words = [*command, "--num-layers", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["newllm", *words])
    real, steps = Trainer._timed_step, []

    def stopping(self: Trainer, *arguments: Any) -> None:
        real(self, *arguments)
        steps.append(self.settings.num_layers)
        if steps.count(2) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_timed_step", stopping)
        assert main(words) == 143
    assert f"to go on: newllm {' '.join(words)}" in capsys.readouterr().err
    assert len(report(tmp_path / "out")["runs"]) == 1
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "Finished before." in output
    assert "Resumed at epoch 1, step 3" in output
    assert len(report(tmp_path / "out")["runs"]) == 2


def test_two_tokenizers_are_compared_with_a_word_of_caution(command, tmp_path, capsys) -> None:
    """And the swept settings may be several."""
    words = [*command, "--tokenizer", "bpe", "word1000", "--dropout", "0", "0.2"]
    assert main(words) == 0
    assert "perplexities do not compare" in capsys.readouterr().out
    found = report(tmp_path / "out")
    assert [(run["tokenizer"], run["dropout"]) for run in found["runs"]] == [
        ("bpe", 0.0), ("bpe", 0.2), ("word1000", 0.0), ("word1000", 0.2)
    ]  # fmt: skip
    assert [run["bpb"] is None for run in found["runs"]] == [False, False, True, True]
    assert main(["progress", "--out", str(tmp_path / "out")]) == 0
