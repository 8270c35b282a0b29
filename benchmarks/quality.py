"""Bits per byte of every architecture: equal training time, equal parameters, equal care.

The rules, fixed before any run. A trial has as many steps as fit into the minutes on one core, at
the speeds measured in turns beforehand: what else runs on the machine then changes no result.
Every architecture has the same grid of learning rates, the same optimizers (Muon for the
matrices; `original` keeps its Adam), batch, schedule and no dropout, and as many parameters as fit
the budget. The rate is chosen on the first set with the first seed; the other sets and the second
seed then use it. Intervals are 95% bootstrap intervals of the ratio to the first, over documents.

`--architectures` takes the bake-off's names too: `context_1_layer` and `context_4_layers`, and the
memories of `candidates.py`, which have the widths of `context` and as many steps as it makes,
though steps of theirs take longer.

Speeds and trials are kept in --out: a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import candidates
from benchmarks.candidates import CANDIDATES
from benchmarks.measure import Report, Row, progress, report_options, rounds
from benchmarks.train_speed import stepper
from benchmarks.trials import run_module, train_trial
from newllm.data.loader import EpochLoader
from newllm.data.prepare import Encoding, prepare_training
from newllm.data.shards import EncodedSplit
from newllm.data.sources import open_source
from newllm.datasets import find_dataset
from newllm.device import fast_bf16, keep_freed_memory
from newllm.evaluate.metrics import EVALUATION_BATCH_SIZE, EVALUATION_ROW
from newllm.model import LanguageModel
from newllm.model.shape import matched_widths
from newllm.model.spec import RECALL_SLOTS
from newllm.results.summary import load_summary
from newllm.settings import resolve
from newllm.trained import TrainedModel

DEPTHS = {
    1.4: {"context": 2, "gru": 1, "lstm": 1, "mingru": 2, "transformer": 3, "original": 1},
    5.0: {"context": 4, "gru": 2, "lstm": 2, "mingru": 4, "transformer": 4, "original": 2},
}
"""Blocks by size in millions of parameters: what suits each architecture at that size."""

CONTEXT_DEPTHS = {"context_1_layer": 1, "context_4_layers": 4}
"""Depth against width: `context` with other depths, and the widths that fit."""

VOCABULARY = {1.4: 2048, 5.0: 4096}
"""BPE entries by size, so that the embedding does not take it all."""

ROWS = 32
RATES = (0.003, 0.006, 0.012)
SEEDS = (0, 1)
SPEED_ROUNDS = 24
BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class Trial:
    """One training run."""

    dataset: str
    tokenizer: str
    architecture: str
    millions: float
    learning_rate: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return "_".join(str(value).replace(".", "p") for value in asdict(self).values())

    @property
    def memory(self) -> list[str]:
        """The candidate of the bake-off that takes the place of the context, if one does."""
        return [self.architecture] if self.architecture in CANDIDATES else []

    def settings(self, data: str) -> dict[str, Any]:
        """Of `newllm train`."""
        depths = DEPTHS[self.millions]
        architecture = self.architecture if self.architecture in depths else "context"
        layers = CONTEXT_DEPTHS.get(self.architecture, depths[architecture])
        vocabulary = VOCABULARY[self.millions] if self.tokenizer == "bpe" else 1000
        parameters = round(self.millions * 1e6)
        widths = matched_widths(architecture, layers, vocabulary, parameters, True, RECALL_SLOTS)
        return {
            "data": data, "tokenizer": self.tokenizer, "vocab_size": VOCABULARY[self.millions],
            "architecture": architecture, "num_layers": layers, **widths,
            "learning_rate": self.learning_rate, "batch_size": ROWS, "max_seq_length": 128,
            "dropout": 0.0, "warmup_share": 0.02, "warmdown_share": 0.6, "patience": 1000,
            "epochs": 1000, "max_steps": self.steps, "seed": self.seed,
        }  # fmt: skip


def run_trial(trial: Trial, data_dir: str, out: Path, nats: bool = False) -> dict[str, Any]:
    """Train on one core, unless it was done before; what the trial reached.

    Args:
        trial: what is trained.
        data_dir: holds the data sets, or `sample`.
        out: folder of the trials.
        nats: also score each document, into `NAME.npy`.
    """
    data = place(data_dir, trial.dataset)
    record, scores = out / f"{trial.name}.json", out / f"{trial.name}.npy"
    if not record.exists():
        program = ["benchmarks.candidates", *trial.memory] if trial.memory else ["newllm"]
        train_trial(trial.dataset, trial.name, trial.settings(data), out, program=program)
        run = load_summary(out / f"{trial.name}.summary.json")
        facts = {
            **{name: run.best[name] for name in ("bpb", "ppl", "accuracy")},
            "ngram_bpb": run.ngram_baseline.bpb,
            "ngram_ppl": run.ngram_baseline.ppl,
            "parameters": run.parameters,
            "trained_tokens": run.trained_tokens,
        }
        record.write_text(json.dumps(facts), encoding="utf-8")
        for kind in ("final", "resume", "resume.previous"):
            (out / f"{trial.name}_{kind}.pt").unlink(missing_ok=True)
    if nats and not scores.exists():
        words = ["score", str(out / f"best_{trial.name}.pt"), data, str(scores), *trial.memory]
        run_module(["benchmarks.quality", *words], out / f"{trial.name}.log")
    return {**json.loads(record.read_text(encoding="utf-8")), "nats_file": scores.name}


def place(data_dir: str, dataset: str) -> str:
    """Where a data set's rows are."""
    return data_dir if data_dir == "sample" else str(Path(data_dir) / dataset)


def step_seconds(
    rows: tuple[str, str], architectures: Sequence[str], millions: float, data_dir: str, out: Path
) -> dict[str, float]:
    """Seconds of a training step on one core, unless they were measured before."""
    name = "_".join(("speed", *rows, f"{millions:g}".replace(".", "p"), *architectures))
    record, data = out / f"{name}.json", place(data_dir, rows[0])
    if not record.exists():
        words = ["speed", *rows, str(millions), data, str(record), *architectures]
        run_module(["benchmarks.quality", *words], out / f"{name}.log")
    return json.loads(record.read_text(encoding="utf-8"))


def measure_steps(
    rows: tuple[str, str], millions: float, data: str, record: Path, architectures: Sequence[str]
) -> None:
    """Write a record of :func:`step_seconds`: medians of steps in turns."""
    keep_freed_memory()
    dtype = torch.bfloat16 if fast_bf16(torch.device("cpu")) else torch.float32
    steps = {}
    for name in architectures:
        trial = Trial(*rows, name, millions, RATES[0], 0, 1)
        settings = resolve(trial.dataset, trial.settings(data))
        source = open_source(find_dataset(trial.dataset), data, "all")
        encoded = prepare_training(source, Encoding.of(settings))
        steps[name] = stepper(settings, encoded, dtype)[0]
    timings = rounds(steps, SPEED_ROUNDS)
    record.write_text(json.dumps({t.name: t.seconds for t in timings}), encoding="utf-8")


def score(checkpoint: str, data: str, file: str, memory: str | None = None) -> None:
    """Write the nats of each validation document."""
    if memory is not None:
        candidates.install(memory)
    model = TrainedModel.load(checkpoint)
    np.save(file, nats_by_document(model.model, model.validation_rows(data), model.device))


@torch.inference_mode()
def nats_by_document(
    model: LanguageModel,
    split: EncodedSplit,
    device: torch.device,
    batch_size: int = EVALUATION_BATCH_SIZE,
) -> np.ndarray:
    """Nats of every document of a split, [D] float64; their sum is `evaluate`'s."""
    model.eval()
    nats = np.zeros(len(split))
    state = model.initial_state(batch_size)
    loader = EpochLoader(split, EVALUATION_ROW, batch_size)
    for step, batch in enumerate(loader.batches()):
        hidden, state = model(batch.ids.to(device), state, batch.reset.to(device))
        segments = (numbers.tolist() for numbers in loader.plan.segments(step))
        for sequence, document, start, stop, column in zip(*segments, strict=True):
            place = slice(column, column + stop - start)
            targets = batch.targets[sequence, place].to(device)
            logits = model.logits(hidden[sequence, place]).float()
            nats[document] += F.cross_entropy(logits, targets, reduction="sum").item()
    return nats


def run_all(
    trials: Iterable[Trial], data_dir: str, out: Path, cores: int, nats: bool = False
) -> list[dict[str, Any]]:
    """Records of all trials, in their order, so many at a time."""

    def run(trial: Trial) -> dict[str, Any]:
        record = run_trial(trial, data_dir, out, nats)
        progress(f"{trial.name}: {_quality(record):.4f}")
        return record

    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(run, trials))


def _quality(record: dict[str, Any], of: str = "") -> float:
    """Bits per byte, or perplexity where bytes mean nothing."""
    return record[f"{of}ppl"] if record["bpb"] is None else record[f"{of}bpb"]


def interval(record: dict[str, Any], reference: dict[str, Any], out: Path) -> tuple[float, float]:
    """95% bootstrap interval, over documents, of the ratio of nats to the reference's."""
    ours, theirs = np.load(out / record["nats_file"]), np.load(out / reference["nats_file"])
    draws = np.random.default_rng(0).integers(len(ours), size=(BOOTSTRAP_DRAWS, len(ours)))
    ratios = ours[draws].sum(axis=1) / theirs[draws].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def compare(
    sets: Sequence[tuple[str, str]],
    architectures: Sequence[str],
    millions: float,
    minutes: float,
    data_dir: str,
    out: Path,
    cores: int,
) -> list[Row]:
    """All trials of one size, and the rows of the table."""
    out.mkdir(parents=True, exist_ok=True)
    timed = ["context", *(n for n in architectures if n not in CANDIDATES and n != "context")]
    seconds = {rows: step_seconds(rows, timed, millions, data_dir, out) for rows in sets}
    for measured in seconds.values():
        measured |= dict.fromkeys(CANDIDATES, measured["context"])

    def trial(rows: tuple[str, str], architecture: str, rate: float, seed: int) -> Trial:
        steps = round(60 * minutes / seconds[rows][architecture])
        return Trial(*rows, architecture, millions, rate, seed, steps)

    tuning = [trial(sets[0], name, rate, 0) for name in architectures for rate in RATES]
    tuned = dict(zip(tuning, run_all(tuning, data_dir, out, cores), strict=True))
    best = {
        name: min(RATES, key=lambda rate: _quality(tuned[trial(sets[0], name, rate, 0)]))
        for name in architectures
    }
    results: dict[Trial, dict[str, Any]] = {}
    for seed in SEEDS:
        final = [trial(rows, name, best[name], seed) for rows in sets for name in architectures]
        done = run_all(final, data_dir, out, cores, nats=seed == SEEDS[0])
        results |= dict(zip(final, done, strict=True))
    table: list[Row] = []
    for rows in sets:
        pairs = {
            name: [results[trial(rows, name, best[name], seed)] for seed in SEEDS]
            for name in architectures
        }
        reference = pairs[architectures[0]][0]
        for name, (record, again) in pairs.items():
            low, high = interval(record, reference, out)
            table.append(
                {
                    "set": ":".join(rows),
                    "architecture": name,
                    "parameters": record["parameters"],
                    "learning_rate": best[name],
                    "ms_a_step": 1000 * seconds[rows][name],
                    "tokens_read": record["trained_tokens"],
                    "quality": _quality(record),
                    "quality_of_second_seed": _quality(again),
                    "accuracy": record["accuracy"],
                    "nats_ratio_low": low,
                    "nats_ratio_high": high,
                }
            )
        # The columns of the others, empty but for what a table of counts has.
        baseline = {
            "set": ":".join(rows),
            "architecture": "n-gram",
            "quality": _quality(reference, "ngram_"),
        }
        table.append({**dict.fromkeys(table[-1]), **baseline})
    return table


@click.command()
@click.option("--data-dir", required=True, help="Folder of the data sets, or sample.")
@click.option(
    "--sets", default="dolly:bpe,dolly:word1000,hh_rlhf:bpe,code_alpaca:bpe", show_default=True
)
@click.option("--architectures", default=",".join(DEPTHS[1.4]), show_default=True)
@click.option(
    "--millions", default="1.4", type=click.Choice([str(m) for m in DEPTHS]), show_default=True
)
@click.option("--minutes", default=3.0, show_default=True, help="Of training, each trial.")
@click.option("--cores", default=os.cpu_count(), show_default=True, help="Trials at a time.")
@click.option("--out", default="benchmark_runs/quality", show_default=True, type=Path)
@report_options
def command(
    data_dir: str,
    sets: str,
    architectures: str,
    millions: str,
    minutes: float,
    cores: int,
    out: Path,
) -> Report:
    pairs = [
        (dataset, tokenizer)
        for dataset, _, tokenizer in (s.partition(":") for s in sets.split(","))
    ]
    rows = compare(pairs, architectures.split(","), float(millions), minutes, data_dir, out, cores)
    title = f"{millions}M parameters, {minutes:g} minutes on one core"
    return Report({title: rows}, {"rates": str(RATES), "seeds": str(SEEDS)})


if __name__ == "__main__":
    match sys.argv[1:]:
        case "score", checkpoint, data, file, *memory:
            score(checkpoint, data, file, *memory)
        case "speed", dataset, tokenizer, size, data, file, *names:
            measure_steps((dataset, tokenizer), float(size), data, Path(file), names)
