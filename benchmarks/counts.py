"""What recall and a table of counts cost in training, writing and starting; and the table's trust.

    newllm bench counts --data-dir rows

Steps and tokens of three models of one shape, with neither, with recall and with both, in turns.
`trust` is the mean over all known contexts of what the model gives them, on training rows (each
scored by the table that has not counted it) and on validation rows.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.measure import PeakMemory, Report, progress, report_options, rounds
from benchmarks.memories import Run, run
from benchmarks.quality import ROWS, place
from benchmarks.train_speed import update
from newllm.config import Settings, parse_size
from newllm.data.loader import EpochLoader
from newllm.data.prepare import Encoded, Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.datasets import find_dataset
from newllm.device import keep_freed_memory
from newllm.inference.decoder import make_decoder
from newllm.model import build_model
from newllm.model.kernels import Noise
from newllm.model.residual import ResidualLM
from newllm.model.spec import RECALL_SLOTS
from newllm.settings import resolve
from newllm.train.counting import Counts, prepare_counts
from newllm.train.optimizers import make_optimizers
from newllm.trained import TrainedModel

_BOTH = "recall and counts"

_TOKENS = 200
"""Written in one round."""


def stepper(decided: Settings, data: Encoded, counts: Counts) -> Callable[[], None]:
    """Trains one step on the next rows."""
    torch.manual_seed(0)
    model = build_model(decided.model_settings(), data.tokenizer.vocab_size)
    assert isinstance(model, ResidualLM)
    tables = None
    if model.counts is not None:
        model.counts.set_tables(counts.tables)
        tables = counts.table_of[0]
    optimizers = make_optimizers(model, decided)
    loader = EpochLoader(data.splits["train"], 128, ROWS, (0, 0), tables=tables)
    step, state = iter(range(10**9)), model.initial_state(ROWS)

    def train() -> None:
        batch = loader.batch(next(step) % len(loader))
        hidden, _ = model(batch.ids, state, batch.reset, noise=Noise(0, 0), tables=batch.tables)
        update(model, model.loss(hidden, batch.targets) / batch.scored, optimizers)

    return train


def writer(model: ResidualLM, ids: list[int]) -> Callable[[], None]:
    """Reads tokens one by one, by the fused step."""
    decoder = make_decoder(model)
    slot = decoder.add()

    def write() -> None:
        for token in ids:
            decoder.step([slot], [token])

    return write


def trust(model: ResidualLM, loader: EpochLoader, batches: int) -> np.ndarray:
    """Mean trust in the longest known context, and in all, over so many batches."""
    assert model.counts is not None
    state, sums, number = model.initial_state(loader.batch_size), np.zeros(2), np.zeros(2)
    with torch.inference_mode():
        for step in range(min(batches, len(loader))):
            batch = loader.batch(step)
            said, state = model(batch.ids, state, batch.reset, tables=batch.tables)
            scored = said[batch.targets >= 0]
            given, _ = model.counts.trust(scored.hidden, scored.contexts)
            known = scored.contexts >= 0
            longest = given.gather(1, (known.sum(1) - 1).clamp(min=0)[:, None])[known.any(1)]
            sums += float(longest.sum()), float(given[known].sum())
            number += len(longest), int(known.sum())
    return sums / number


def start_seconds(path: Path) -> float:
    """From nothing to the first token of a checkpoint, in a process of its own."""
    words = f"import newllm; print(next(newllm.load({str(path)!r}).generate('Hello')))"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", words], check=True, capture_output=True)
    return time.perf_counter() - started


@click.command()
@click.option("--data-dir", required=True, help="Folder of the data sets, or sample.")
@click.option("--dataset", default="dolly", show_default=True)
@click.option("--counts", "size", default="8MB", show_default=True)
@click.option("--millions", default="1.4", show_default=True, type=click.Choice(["1.4", "5"]))
@click.option("--steps", default=300, show_default=True, help="Of the training.")
@click.option("--repeats", default=15, show_default=True, help="Rounds.")
@click.option("--starts", default=5, show_default=True, help="Processes that write one token.")
@click.option("--out", default="benchmark_runs/memories", show_default=True, type=Path)
@report_options
def command(
    data_dir: str,
    dataset: str,
    size: str,
    millions: str,
    steps: int,
    repeats: int,
    starts: int,
    out: Path,
) -> Report:
    keep_freed_memory()
    budget = parse_size(size)
    trials = {
        name: Run(dataset, "bpe", "context", slots, own, 0, steps, None, float(millions))
        for name, slots, own in (
            ("neither", 0, 0), ("recall", RECALL_SLOTS, 0), (_BOTH, RECALL_SLOTS, budget)
        )
    }  # fmt: skip
    of_trial = {
        name: resolve(dataset, trial.settings(place(data_dir, dataset)))
        for name, trial in trials.items()
    }
    decided = of_trial[_BOTH]
    source = open_source(find_dataset(dataset), decided.data, decided.subset)
    data = prepare_training(source, Encoding.of(decided))
    for file in data.folder.glob("counts-*.npz"):
        file.unlink()
    with PeakMemory() as memory:
        started = time.perf_counter()
        counts = prepare_counts([data], budget)
        seconds = time.perf_counter() - started
    preparation = {
        "tokens": data.accounting["train"].tokens,
        "tables": len(counts.tables),
        "bytes": len(counts.tables[0].pack()),
        "seconds": seconds,
        "memory_mb": memory.grown_mb,
    }
    progress("counted; training three models")
    models = {}
    for name, trial in trials.items():
        run(trial, data_dir, out)
        models[name] = TrainedModel.load(out / f"best_{trial.name}.pt", "cpu")
    split = data.splits["validation"]
    ids = split.tokens(0, 0, int(split.lengths[0])).tolist()
    ids = (ids * _TOKENS)[:_TOKENS]
    step_times = rounds({name: stepper(of_trial[name], data, counts) for name in trials}, repeats)
    token_times = rounds(
        {name: writer(trained.model, ids) for name, trained in models.items()},  # type: ignore[arg-type]
        repeats,
        work=_TOKENS,
    )
    start_times = [
        {"model": name, "seconds": float(np.median([start_seconds(m.path) for _ in range(starts)]))}
        for name, m in models.items()
    ]
    with_them = models[_BOTH].model
    assert isinstance(with_them, ResidualLM)
    assert with_them.counts is not None
    on_validation = trust(with_them, EpochLoader(split, 256, 32), 40)
    loader = EpochLoader(data.splits["train"], 256, 32, (0, 0), tables=counts.table_of[0])
    with_them.counts.set_tables(counts.tables)
    on_training = trust(with_them, loader, 40)
    loader.tables = None
    on_counted = trust(with_them, loader, 40)
    return Report(
        {
            "Preparation": [preparation],
            "A step of training": [{"model": t.name, "ms": 1e3 * t.seconds, "speed": t.ratio}
                                   for t in step_times],
            "A written token": [{"model": t.name, "us": 1e6 * t.seconds / _TOKENS, "speed": t.ratio}
                                for t in token_times],
            "From nothing to a token": start_times,
            "Trust in the longest context, in all": [
                {"rows": rows, "longest": values[0], "all": values[1]}
                for rows, values in (
                    ("validation", on_validation),
                    ("training, by the tables that did not count them", on_training),
                    ("training, by the table that did", on_counted),
                )
            ],
        },
        {"model": f"{millions}M parameters, {steps} steps of {dataset}"},
    )  # fmt: skip
