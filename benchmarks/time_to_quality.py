"""Seconds of training to the published quality of Dolly: PPL 15.6 and accuracy 46.6%, word1000.

Trains with the defaults for so many minutes (the schedule ends with them) and says whether both
marks are reached. The run's files stay in --out.

    newllm bench time-to-quality --data FOLDER --minutes 3
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from benchmarks.measure import Report, report_options
from newllm.results.summary import load_summary
from newllm.train.run import train

PUBLISHED_PPL, PUBLISHED_ACCURACY = 15.6, 0.466


@click.command()
@click.option("--data", default="sample", show_default=True, help="Rows of Dolly: sample or PATH.")
@click.option("--minutes", multiple=True, type=float, default=(3.0,), show_default=True)
@click.option("--out", default="benchmark_runs", show_default=True, help="Folder of the runs.")
@click.option("--num-layers", default=1, show_default=True, help="Blocks of the model.")
@click.option("--seed", default=0, show_default=True)
@report_options
def command(data: str, minutes: tuple[float, ...], out: str, num_layers: int, seed: int) -> Report:
    rows = []
    for limit in minutes:
        name = f"time_to_quality_layers{num_layers}_{limit:g}min"
        flags = {"minutes": limit, "out": out, "name": name, "num_layers": num_layers, "seed": seed}
        with redirect_stdout(sys.stderr):
            train("dolly", {"data": data, "tokenizer": "word1000", **flags})
        lines = Path(out, f"{name}.metrics.jsonl").read_text(encoding="utf-8").splitlines()
        last = json.loads(lines[-1])
        rows.append(
            {
                "layers": num_layers,
                "parameters": load_summary(Path(out, f"{name}.summary.json")).parameters,
                "minutes_allowed": limit,
                "seconds_of_training": last["total_seconds"],
                "trained_tokens": last["trained_tokens"],
                "ppl": last["ppl"],
                "accuracy": last["accuracy"],
                "reached": last["ppl"] <= PUBLISHED_PPL and last["accuracy"] >= PUBLISHED_ACCURACY,
            }
        )
    return Report({"Dolly, word-1000 protocol": rows}, {"rows": data})
