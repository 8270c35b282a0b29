"""Preferred answers by method, weight and rate: does any of it hold for pairs never seen?

    newllm bench preference --data FOLDER --minutes 3 --seed 0 --seed 1

For each seed a model is trained on the chosen answers, then taught the pairs by every method of the
grid, each time from that model. Choose by one seed, and believe the others: the best of so many on
the pairs that it was chosen by is ahead by chance alone. One core; what training prints goes to
logs beside the checkpoints, and a line for each run to the error channel.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import Report, Row, progress, report_options
from newllm.datasets.hh_rlhf import DATASET
from newllm.results.runs import RunFiles
from newllm.results.stages import read_preferences
from newllm.train.prefer import prefer
from newllm.train.preference_loss import Preferring
from newllm.train.run import train

BETAS: dict[Any, tuple[float, ...]] = {"simpo": (2.0, 10.0), "dpo": (0.1, 0.5), "orpo": (0.5, 2.0)}
RATES = (1e-4, 1e-3)


@click.command()
@click.option("--data", default="sample", show_default=True, help="The pairs: a path or sample.")
@click.option("--minutes", default=3.0, show_default=True,
              type=click.FloatRange(min=0, min_open=True),
              help="Training of the model that they begin with.")  # fmt: skip
@click.option("--seed", "seeds", multiple=True, default=(0, 1), show_default=True, type=int,
              help="May be repeated.")  # fmt: skip
@click.option("--method", "methods", multiple=True, default=tuple(BETAS), show_default=True,
              type=click.Choice(list(BETAS)), help="May be repeated.")  # fmt: skip
@click.option("--rate", "rates", multiple=True, default=RATES, show_default=True, type=float,
              help="May be repeated.")  # fmt: skip
@click.option("--max-steps", type=int, help="End each run on pairs after so many steps.")
@click.option("--out", default="benchmark_runs", show_default=True, help="Folder of the runs.")
@report_options
def command(
    data: str, minutes: float, seeds: tuple[int, ...], methods: tuple[Any, ...],
    rates: tuple[float, ...], max_steps: int | None, out: str,
) -> Report:  # fmt: skip
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"data": data, "threads": 1, "out": out}
    rows: list[Row] = []
    for seed in seeds:
        flags = {**shared, "minutes": minutes, "seed": seed}
        with _logged(folder / f"preference_{seed}.log"):
            base = train(DATASET.name, {**flags, "name": f"preference_{seed}"})
        for method, rate in itertools.product(methods, rates):
            for beta in BETAS[method]:
                name = f"preference_{seed}_{method}_{beta:g}_{rate:g}"
                flags = {**shared, "seed": seed, "learning_rate": rate, "name": name}
                flags |= {} if max_steps is None else {"max_steps": max_steps}
                with _logged(folder / f"{name}.log"):
                    prefer(str(base), Preferring(method, beta), flags)
                verdict = read_preferences(RunFiles(folder, name).preferences)
                found = {"seed": seed, "method": method, "beta": beta, "rate": rate}
                rows.append({**found, **_percents(verdict)})
                progress(str(rows[-1]))
    return Report({"The chosen answer is likelier, % of the validation pairs": rows})


@contextlib.contextmanager
def _logged(file: Path) -> Iterator[None]:
    with file.open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        yield


def _percents(verdict: dict[str, Any]) -> Row:
    low, high = verdict["over_before_interval"]
    refusals = (verdict["refusals_before"], verdict["refusals_after"])
    numbers = {
        "before": verdict["before"],
        "after": verdict["after"],
        "gain_low": low,
        "gain_high": high,
        "longer": verdict["longer"],
        "reward_accuracy": verdict["reward_accuracy"],
        "ordinary_loss": verdict["loss_after"] / verdict["loss_before"] - 1,
        "rejected_likelier": verdict["rejected_likelier"]["all"],
        "refusals_before": refusals[0],
        "refusals_after": refusals[1],
    }
    return {name: None if x is None else round(100 * x, 1) for name, x in numbers.items()}
