"""Benchmarks made of trainings: marks and growth, with trainings of seconds in place of minutes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import growth, marks, trials
from newllm.cli import main
from newllm.results.marks import known_marks
from newllm.results.summary import load_summary
from newllm.train.run import train

TINY = {"epochs": 1, "batch_size": 4, "max_seq_length": 24, "vocab_size": 300, "device": "cpu"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process, an epoch each."""

    def quick(
        dataset: str, name: str, settings: Mapping[str, Any], out: Path, threads: int = 1
    ) -> Path:
        flags = {key: value for key, value in settings.items() if key != "minutes"}
        start = {"init_from": str(flags.pop("init_from"))} if "init_from" in flags else {}
        return train(dataset, {**flags, **TINY, **start, "out": str(out), "name": name})

    def run(arguments: Sequence[str], log: Path, threads: int = 1) -> None:
        assert main(arguments[1:]) == 0

    monkeypatch.setattr(marks, "train_trial", quick)
    monkeypatch.setattr(growth, "train_trial", quick)
    monkeypatch.setattr(growth, "run_module", run)


def report(command: Any, *arguments: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (rows,) = json.loads(result.stdout.strip().splitlines()[-1])["tables"].values()
    return rows


def test_marks_are_the_best_rate_and_judge_the_next_run(
    dolly_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    place = ["--levels", "dolly", "--data-dir", str(dolly_folder.parent)]
    sizes = ["--parameters", "200000", "--minutes", "1", "--threads", "1"]
    (row,) = report(marks.command, *place, *sizes, "--out", str(tmp_path / "out"))
    rates = json.loads(row["rates"])
    assert set(rates) == {str(rate) for rate in marks.RATES}
    assert row["bpb"] == min(rates.values())
    assert row["parameters"] <= 200_000
    (mark,) = [mark for mark in known_marks() if mark.rows == row["rows"]]
    assert (mark.bpb, mark.minutes) == (row["bpb"], 1)
    small = {"context_dim": 16, "embed_dim": 16, "hidden_dim": 16, "pair_rows": 0}
    best = train("dolly", {**TINY, **small, "data": str(dolly_folder), "out": str(tmp_path / "b")})
    name = best.stem.removeprefix("best_")
    verdict = load_summary(best.with_name(f"{name}.summary.json")).verdict.bpb_mark
    assert verdict is not None
    assert verdict.bpb == mark.bpb


def test_growth_compares_equal_models(dolly_folder: Path, tmp_path: Path) -> None:
    rows = report(
        growth.command, "--data", str(dolly_folder), "--layers", "1", "2", "--seeds", "1",
        "--out", str(tmp_path),
    )  # fmt: skip
    scratch, grown = rows
    assert (scratch["how"], grown["how"]) == ("from scratch", "grown")
    assert scratch["parameters"] == grown["parameters"]
    assert scratch["before_growing"] is None
    assert grown["before_growing"] not in (None, grown["bits_per_byte"])
    assert grown["tokens_read"] == 2 * scratch["tokens_read"]  # an epoch before, an epoch after


def test_a_trial_is_a_process_of_its_own_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    trials.run_module(["newllm", "--version"], log)
    trials.run_module(["newllm", "--version"], log)
    assert log.read_text().count("newllm") == 2
