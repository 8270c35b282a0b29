"""Bits per byte with and without recall and counts, at equal parameters and steps or minutes.

    newllm bench memories --data-dir rows --steps 300
    newllm bench memories --data-dir rows --counts 1MB,4MB,16MB --slots 1024 --sets dolly:bpe
    newllm bench memories --data-dir rows --minutes 5 --millions 5

Every run has at most so many parameters (recall's included; counts are none), 32 rows of 128 tokens
a step, Muon and AdamW, no dropout, and is scored on all validation rows. With 1.4M it has 2 layers
(GRU: 1, transformer: 3) and the rate 0.006, with 5M 0.004. Runs are kept in --out: a comparison
that was stopped goes on where it was.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import Report, Row, progress, report_options
from benchmarks.quality import DEPTHS, ROWS, VOCABULARY, place
from benchmarks.trials import train_trial
from newllm.config import parse_size
from newllm.model.shape import matched_widths
from newllm.model.spec import RECALL_SLOTS
from newllm.results.summary import Summary, load_summary

RATES = {1.4: 0.006, 5.0: 0.004}
"""By millions of parameters."""


@dataclass(frozen=True)
class Run:
    """One training."""

    dataset: str
    tokenizer: str
    architecture: str
    recall_slots: int
    counts: int
    seed: int
    steps: int | None
    minutes: float | None
    millions: float

    @property
    def name(self) -> str:
        """Name of its files."""
        return "_".join(str(value) for value in asdict(self).values() if value is not None)

    def settings(self, data: str) -> dict[str, Any]:
        """Of `newllm train`."""
        bpe = self.tokenizer == "bpe"
        vocabulary = VOCABULARY[self.millions] if bpe else 1000
        layers = DEPTHS[self.millions][self.architecture]
        memories = self.recall_slots, self.counts
        widths = matched_widths(
            self.architecture, layers, vocabulary, round(1e6 * self.millions), bpe, *memories
        )
        length = "max_steps" if self.minutes is None else "minutes"
        return {
            "data": data, "tokenizer": self.tokenizer, "vocab_size": VOCABULARY[self.millions],
            "architecture": self.architecture, "num_layers": layers, **widths,
            "recall_slots": self.recall_slots, "counts": self.counts,
            "learning_rate": RATES[self.millions], "batch_size": ROWS, "max_seq_length": 128,
            "dropout": 0.0, "warmdown_share": 0.6, "patience": 1000, "epochs": 1000,
            length: self.steps if self.minutes is None else self.minutes, "seed": self.seed,
        }  # fmt: skip


def run(trial: Run, data_dir: str, out: Path) -> Summary:
    """Train on one core, unless it was done before; what it reached."""
    data = place(data_dir, trial.dataset)
    train_trial(trial.dataset, trial.name, trial.settings(data), out)
    summary = load_summary(out / f"{trial.name}.summary.json")
    progress(f"{trial.name}: {_quality(summary):.4f}")
    return summary


def _quality(summary: Summary) -> float:
    """Bits per byte, or perplexity where bytes mean nothing."""
    bpb = summary.best["bpb"]
    return summary.best["ppl"] if bpb is None else bpb


@click.command()
@click.option("--data-dir", required=True, help="Folder of the data sets, or sample.")
@click.option(
    "--sets",
    default="dolly:bpe,hh_rlhf:bpe,ultrachat:bpe,code_alpaca:bpe,math:bpe,dolly:word1000",
    show_default=True,
)
@click.option("--architectures", default="context", show_default=True)
@click.option("--slots", default=f"0,{RECALL_SLOTS}", show_default=True, help="Of recall.")
@click.option("--counts", default="0,8MB", show_default=True, help="Sizes of the table of counts.")
@click.option("--steps", default=300, show_default=True, help="Of each training.")
@click.option("--minutes", type=float, help="Of each training, instead of steps.")
@click.option("--millions", default="1.4", show_default=True, type=click.Choice(["1.4", "5"]))
@click.option("--seeds", default=2, show_default=True, help="Trainings of each.")
@click.option("--cores", default=os.cpu_count(), show_default=True, help="Trainings at a time.")
@click.option("--out", default="benchmark_runs/recall", show_default=True, type=Path)
@report_options
def command(
    data_dir: str,
    sets: str,
    architectures: str,
    slots: str,
    counts: str,
    steps: int,
    minutes: float | None,
    millions: str,
    seeds: int,
    cores: int,
    out: Path,
) -> Report:
    pairs = [pair.partition(":")[::2] for pair in sets.split(",")]
    trials = [
        Run(
            dataset,
            tokenizer,
            architecture,
            int(number),
            parse_size(size),
            seed,
            None if minutes else steps,
            minutes,
            float(millions),
        )
        for seed in range(seeds)
        for dataset, tokenizer in pairs
        for architecture in architectures.split(",")
        for number in slots.split(",")
        for size in counts.split(",")
    ]
    with ThreadPoolExecutor(cores) as pool:
        done = dict(
            zip(trials, pool.map(lambda trial: run(trial, data_dir, out), trials), strict=True)
        )
    table: list[Row] = []
    for trial in trials[: len(trials) // seeds]:
        same = [done[replace(trial, seed=seed)] for seed in range(seeds)]
        ngram = same[0].ngram_baseline
        table.append(
            {
                "set": f"{trial.dataset}:{trial.tokenizer}",
                "architecture": trial.architecture,
                "recall_slots": trial.recall_slots,
                "counts_mb": same[0].counts_bytes / 1e6,
                "parameters": same[0].parameters,
                **{f"seed_{seed}": _quality(summary) for seed, summary in enumerate(same)},
                "ngram": ngram.ppl if ngram.bpb is None else ngram.bpb,
                "minutes": max(summary.minutes for summary in same),
            }
        )
    length = f"{minutes:g} minutes" if minutes else f"{steps} steps"
    return Report({f"{millions}M parameters, {length}": table})
