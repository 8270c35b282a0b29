"""Pass marks in bits per byte: what a tuned GRU reaches, to be beaten on the same rows.

    newllm bench marks --data-dir FOLDER --parameters 5500000 --minutes 4

For every level a GRU of at most so many parameters is trained for so many minutes at each learning
rate of the grid, with the optimizers, batch, schedule, recall and counts of our own model. The best
is the mark. It is kept in the cache, where `newllm train` and `newllm climb` find it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import date
from pathlib import Path

import click

from benchmarks.measure import Report, Row, progress, report_options
from benchmarks.trials import train_trial
from newllm.curriculum.climb import named_levels
from newllm.device import cpu_model
from newllm.model.shape import matched_widths
from newllm.model.spec import COUNTS, RECALL_SLOTS
from newllm.results.climb import ClimbConfig
from newllm.results.marks import Mark, add_marks
from newllm.results.records import score
from newllm.results.summary import load_summary

RATES = (0.001, 0.003, 0.01)
LAYERS = 2
VOCABULARY = 4096
MEMORIES = RECALL_SLOTS, COUNTS
"""As in our own models, so that what is compared is the network."""


@click.command()
@click.option("--levels", multiple=True, default=("1", "2", "3", "4", "5"), show_default=True,
              metavar="TEXT...", help="Numbers or names of levels.")  # fmt: skip
@click.argument("more_levels", nargs=-1, metavar="")  # the second and further words of --levels
@click.option(
    "--data-dir",
    default="hub",
    show_default=True,
    help="hub, sample, or a folder with a folder for every level's data set.",
)
@click.option("--parameters", default=2_500_000, show_default=True, help="Of the GRU, at most.")
@click.option("--minutes", default=3.0, show_default=True, help="Of training, each rate.")
@click.option("--threads", default=os.cpu_count(), show_default=True, help="Cores a training uses.")
@click.option("--out", default="benchmark_runs/marks", show_default=True, type=Path)
@report_options
def command(
    levels: tuple[str, ...],
    more_levels: tuple[str, ...],
    data_dir: str,
    parameters: int,
    minutes: float,
    threads: int,
    out: Path,
) -> Report:
    config = ClimbConfig(named_levels([*levels, *more_levels]), data_dir)
    marks = []
    for dataset in config.levels:
        marks.append(measure(dataset, config.data_of(dataset), parameters, minutes, threads, out))
        progress(f"{dataset}: {marks[-1].bpb:.4f} bits per byte, kept in {add_marks(marks[-1:])}")
    return Report({"Marks": [_row(mark) for mark in marks]}, {"rates": str(RATES)})


def measure(
    dataset: str, data: str, parameters: int, minutes: float, threads: int, out: Path
) -> Mark:
    """Train a GRU at every rate of the grid; the best is the mark."""
    scores, summary = {}, None
    for rate in RATES:
        name = f"gru_{dataset}_{parameters}_{minutes:g}_{rate}"
        settings = {
            "data": data, "architecture": "gru", "num_layers": LAYERS, "vocab_size": VOCABULARY,
            **matched_widths("gru", LAYERS, VOCABULARY, parameters, True, *MEMORIES),
            "recall_slots": MEMORIES[0], "counts": MEMORIES[1], "learning_rate": rate,
            "dropout": 0, "minutes": minutes, "epochs": 1000, "patience": 1000,
        }  # fmt: skip
        train_trial(dataset, name, settings, out, threads)
        summary = load_summary(out / f"{name}.summary.json")
        scores[str(rate)] = score(summary.best, "bpb")
        progress(f"{dataset}, rate {rate}: {scores[str(rate)]:.4f} bits per byte")
    assert summary is not None
    return Mark(
        dataset=dataset,
        rows=summary.data["rows"],
        bpb=min(scores.values()),
        parameters=summary.parameters,
        minutes=minutes,
        rates=scores,
        machine=f"{threads} core(s) of {cpu_model()}",
        date=date.today().isoformat(),
        command=f"newllm bench marks --levels {dataset} --parameters {parameters} "
        f"--minutes {minutes:g} --threads {threads}",
    )


def _row(mark: Mark) -> Row:
    kept = {key: value for key, value in asdict(mark).items() if key not in ("command", "date")}
    return {**kept, "rates": json.dumps(mark.rates)}
