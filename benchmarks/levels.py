"""Every data set with both tokenizers: what a few minutes of training each reach.

    newllm bench levels --data-dir FOLDER --minutes 3
    newllm bench levels --data-dir sample --minutes 1 --dataset dolly

FOLDER holds one folder for each data set (FOLDER/dolly, FOLDER/math, ..); `sample` stands for the
built-in rows. What training prints goes to a log beside the checkpoints.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import Report, Row, progress, report_options, setting_options
from newllm.datasets import DATASETS
from newllm.train.run import train
from newllm.trained import TrainedModel

NAMES = [name for name, dataset in DATASETS.items() if dataset.hub]
TOKENIZERS = ["word1000", "bpe"]


@click.command()
@click.option("--data-dir", required=True, help="Folder of the data sets, or sample.")
@click.option("--minutes", default=3.0, show_default=True,
              type=click.FloatRange(min=0, min_open=True),
              help="Training time of each.")  # fmt: skip
@click.option("--dataset", "datasets", multiple=True, type=click.Choice(NAMES),
              help="Only this one (may be repeated).")  # fmt: skip
@click.option("--tokenizer", "tokenizers", multiple=True, type=click.Choice(TOKENIZERS),
              help="Only this one (may be repeated).")  # fmt: skip
@click.option("--out", default="benchmark_runs", show_default=True, help="Folder of the runs.")
@setting_options("num_layers", "context_dim", "max_samples")
@report_options
def command(
    data_dir: str,
    minutes: float,
    datasets: tuple[str, ...],
    tokenizers: tuple[str, ...],
    out: str,
    **settings: Any,
) -> Report:
    rows = []
    for dataset in datasets or NAMES:
        data = "sample" if data_dir == "sample" else str(Path(data_dir) / dataset)
        for tokenizer in tokenizers or TOKENIZERS:
            flags = {"data": data, "tokenizer": tokenizer, "minutes": minutes, "out": out}
            flags |= {name: value for name, value in settings.items() if value is not None}
            rows.append(train_and_score(dataset, f"{dataset}_{tokenizer}", flags))
            progress(f"{dataset}, {tokenizer}: perplexity {rows[-1]['ppl']:.2f}")
    return Report({f"{minutes:g} minutes of training each": rows})


def train_and_score(dataset: str, name: str, flags: dict[str, Any]) -> Row:
    """Train one model; what it and the n-gram table score on the validation rows."""
    folder = Path(flags["out"])
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / f"{name}.log").open("w", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
    ):
        best = train(dataset, {**flags, "name": name})
    model = TrainedModel.load(best, "cpu")
    score = model.evaluate(flags["data"])
    return {
        "data_set": dataset,
        "tokenizer": flags["tokenizer"],
        "parameters": model.parameters,
        "rows": model.data["accounting"]["train"]["documents"],
        "tokens_read": model.metrics["trained_tokens"],
        "unk_share": score["unk_share"],
        "ngram_ppl": score["ngram_ppl"],
        "ppl": score["ppl"],
        "accuracy": score["accuracy"],
        "bits_per_byte": score["bpb"],
    }
