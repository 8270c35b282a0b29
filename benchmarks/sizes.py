"""What a size reaches in a time: the runs behind `--params auto`, and the law fitted on them.

    newllm bench sizes --data-dir rows --sets dolly --millions 0.8,1.4,2.6,5 --minutes 3,10
    newllm bench sizes --data-dir rows --sets dolly,hh_rlhf --millions 1.4,5 --minutes 3
    newllm bench sizes --data-dir rows --sets dolly,math --millions auto --minutes 1,3

Every run is `newllm train SET --params N --minutes M` on one core. Floor, A and B of the law
(`newllm/planning/size.py`) are fitted on the runs of Dolly by least squares. With "auto" a run
chooses its size itself, and what it then reaches is held against the interval that it said
beforehand. Runs are kept in --out, where more can be added.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np

from benchmarks.measure import Report, Row, progress, report_options
from benchmarks.quality import place
from benchmarks.trials import train_trial
from newllm.errors import UserError
from newllm.planning.size import (
    EXPONENT,
    SMALL,
    SMALL_VOCABULARY,
    VOCABULARY,
    expected_bpb,
    rate_of,
)  # fmt: skip
from newllm.results.summary import Summary, load_summary


def run(dataset: str, data: str, parameters: int, minutes: float, seed: int, out: Path) -> Summary:
    """One training, unless it was done before."""
    name = f"{dataset}_{parameters}_{minutes:g}_{seed}"
    vocabulary = SMALL_VOCABULARY if parameters < SMALL else VOCABULARY
    settings = {
        "data": data, "params": parameters, "vocab_size": vocabulary, "minutes": minutes,
        "learning_rate": rate_of(parameters), "epochs": 1000, "patience": 1000, "seed": seed,
    }  # fmt: skip
    train_trial(dataset, name, settings, out)
    summary = load_summary(out / f"{name}.summary.json")
    progress(f"{name}: {summary.best['bpb']:.4f} after {summary.trained_tokens:,} tokens")
    return summary


EXPECTED = re.compile(r": ([\d.]+) bits per byte \(([\d.]+) to ([\d.]+)\)")
"""The line of a training's log that says what to expect of its size."""


def promised(dataset: str, data: str, minutes: float, seed: int, out: Path) -> Row:
    """One training of the size that it chose, and what it said of it before the first step."""
    name = f"{dataset}_auto_{minutes:g}_{seed}"
    settings = {"data": data, "params": "auto", "minutes": minutes, "seed": seed}
    train_trial(dataset, name, settings, out)
    summary = load_summary(out / f"{name}.summary.json")
    said = EXPECTED.search((out / f"{name}.log").read_text(encoding="utf-8"))
    if said is None:
        raise UserError(f"{name}: its log does not say what to expect; remove its files from {out}")
    likely, least, most = map(float, said.groups())
    reached = float(summary.best["bpb"])  # type: ignore[arg-type]
    progress(f"{name}: {reached:.4f} of {least} to {most}")
    return {"set": dataset, "minutes": minutes, "seed": seed, "parameters": summary.parameters,
            "tokens": summary.trained_tokens, "least": least, "expected": likely, "most": most,
            "bpb": reached, "inside": least <= reached <= most}  # fmt: skip


def fit(points: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    """The law of one set: of (parameters, tokens, bits per byte)."""
    n, d, bpb = np.array(points).T
    powers = [(n / 1e6) ** -EXPONENT, (d / 1e6) ** -EXPONENT]
    columns = np.stack([np.ones_like(n), *powers], axis=1)
    (floor, of_n, of_d), *_ = np.linalg.lstsq(columns, bpb, rcond=None)
    error = float(np.abs((columns @ (floor, of_n, of_d)) / bpb - 1).max())
    return {"floor": float(floor), "A": float(of_n), "B": float(of_d), "largest_error": error}


@click.command()
@click.option("--data-dir", required=True, help="Folder of the data sets, or sample.")
@click.option("--sets", default="dolly", show_default=True)
@click.option(
    "--millions",
    default="0.8,1.4,2.6,5",
    show_default=True,
    help="Of parameters; auto: what each run chooses.",
)
@click.option("--minutes", default="3,10", show_default=True)
@click.option("--seeds", default=1, show_default=True)
@click.option("--cores", default=os.cpu_count(), show_default=True, help="Trainings at a time.")
@click.option("--out", default="benchmark_runs/sizes", show_default=True, type=Path)
@report_options
def command(
    data_dir: str, sets: str, millions: str, minutes: str, seeds: int, cores: int, out: Path
) -> Report:
    times = [float(each) for each in minutes.split(",")]
    if millions == "auto":
        cases = list(itertools.product(sets.split(","), times, range(seeds)))
        with ThreadPoolExecutor(cores) as pool:
            rows = list(
                pool.map(lambda c: promised(c[0], place(data_dir, c[0]), c[1], c[2], out), cases)
            )
        return Report({"What was expected, and what was reached": rows})
    sizes = [round(1e6 * float(size)) for size in millions.split(",")]
    trials = list(itertools.product(sets.split(","), sizes, times, range(seeds)))
    with ThreadPoolExecutor(cores) as pool:
        done = list(
            pool.map(lambda t: run(t[0], place(data_dir, t[0]), t[1], t[2], t[3], out), trials)
        )
    rows = [
        {"set": t[0], "parameters": s.parameters, "minutes": t[2], "seed": t[3],
         "tokens": s.trained_tokens, "bpb": s.best["bpb"],
         "expected": expected_bpb(t[0], s.parameters, s.trained_tokens)}
        for t, s in zip(trials, done, strict=True)
    ]  # fmt: skip
    tables = {"Runs": rows}
    points = [(r["parameters"], r["tokens"], r["bpb"]) for r in rows if r["set"] == "dolly"]
    if len(points) > 3:
        tables["The law, on Dolly"] = [fit(points)]
    return Report(tables)
