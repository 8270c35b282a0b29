"""Folders of runs written by hand: what `progress` reads, without any training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest

from newllm.config import to_yaml
from newllm.data.encode import Accounting
from newllm.datasets import DATASETS
from newllm.results.marks import BpbVerdict
from newllm.results.records import ComparedBaseline, EpochRecord, NgramBaseline
from newllm.results.runs import RunFiles
from newllm.results.summary import Summary, save_summary
from newllm.results.verdict import judge, next_steps
from newllm.settings import resolve

AddRun = Callable[..., RunFiles]


def record(epoch: int, ppl: float, bpb: float | None, best: bool) -> EpochRecord:
    values = {
        "epoch": epoch, "epochs": 3, "ppl": ppl, "accuracy": 0.4, "bpb": bpb,
        "bpb_assistant": bpb, "unk_share": 0.4 if bpb is None else None, "best": best,
        "train_loss": 2.0, "trained_tokens": 1000 * epoch,
    }  # fmt: skip
    return cast(EpochRecord, values)


@pytest.fixture
def add_run(tmp_path: Path) -> AddRun:
    """Writes a run: three epochs, the second the best."""

    def add(
        dataset: str = "dolly",
        score: float = 16.0,
        finished: bool = True,
        answer: str = "An answer.",
        bpb_mark: BpbVerdict | None = None,
        **flags: Any,
    ) -> RunFiles:
        folder = tmp_path / "runs"
        settings = resolve(dataset, {"data": "my rows", "out": str(folder), **flags})
        files = RunFiles(folder, settings.run_name)
        folder.mkdir(exist_ok=True)
        bpe = settings.tokenizer == "bpe"
        ppl, bpb = (20.0, score) if bpe else (score, None)
        history = [
            record(1, 2 * ppl, 2 * bpb if bpb else None, True),
            record(2, ppl, bpb, True),
            record(3, ppl + 1, bpb + 1 if bpb else None, False),
        ]
        files.settings.write_text(to_yaml(settings), encoding="utf-8")
        lines = "".join(json.dumps(line) + "\n" for line in history)
        files.metrics.write_text(lines, encoding="utf-8")
        answers = [
            {"epoch": r["epoch"], "repetition_rate": 0.1,
             "answers": [{"prompt": "Who?", "answer": answer}]} for r in history
        ]  # fmt: skip
        lines = "".join(json.dumps(line) + "\n" for line in answers)
        files.answers.write_text(lines, encoding="utf-8")
        if not finished:
            return files
        level = DATASETS[dataset]
        baseline = NgramBaseline(5 if bpe else 3, 21.0, 1.9 if bpe else None)
        counts = Accounting(rows=1010, malformed=10, documents=1000, tokens=50_000, cut_tokens=7)
        verdict = replace(judge(level, settings, history[1]), bpb_mark=bpb_mark)
        save_summary(
            files.summary,
            Summary(
                run=files.name,
                dataset=dataset,
                level=level.number,
                settings=settings.model_dump(),
                parameters=1_370_112,
                counts_bytes=7_900_000,
                data={
                    "fingerprint": "abc123",
                    "source": "my rows",
                    "revision": None,
                    "vocab_size": 4096,
                    "accounting": {"train": asdict(counts), "validation": asdict(counts)},
                },
                best=history[1],
                epochs=3,
                minutes=12.5,
                trained_tokens=150_000,
                ngram_baseline=ComparedBaseline(
                    **asdict(baseline), beaten=baseline.beaten_by(history[1])
                ),
                verdict=verdict,
                advice=tuple(next_steps(level, settings, history[1], baseline)),
                checkpoint=str(files.best),
                versions={"newllm": "0.1.0", "torch": "2", "python": "3"},
                machine={
                    "cpu": "A processor",
                    "cores": 2,
                    "memory": 8 * 2**30,
                    "device": "cpu",
                    "kernel": "numba",
                    "precision": "bf16",
                    "threads": 2,
                },
                created="2026-01-01T00:00:00Z",
            ),
        )
        return files

    return add


def write_climb(
    folder: Path, scores: list[dict[str, float]], preferred: dict[str, Any] | None = None
) -> None:
    """A `climb.json` with these bits per byte after each level; `preferred` of the last one."""
    levels = list(scores[-1])
    results = [
        {
            "dataset": levels[number],
            "run": f"new_llm_{levels[number]}_layers1_bpe",
            "grown": {"num_layers": [1, 4]} if number else None,
            "minutes": 3.0,
            "evaluations": {name: {"bpb": bpb} for name, bpb in row.items()},
            "skills": None,
        }
        for number, row in enumerate(scores)
    ]
    if preferred is not None:
        results[-1]["preferred"] = preferred
    content = {"format": "new-llm climb", "version": 1, "levels": levels, "rehearsal_share": 0.2,
               "tokenizer": "tokenizer.json", "results": results,
               "backward_transfer": None}  # fmt: skip
    (folder / "climb.json").write_text(json.dumps(content), encoding="utf-8")
