"""Bits per byte of every architecture: equal training time, equal parameters, equal care.

The rules, fixed before any run. A trial trains for the same minutes on one core, one process a
core. Every architecture has the same grid of learning rates, the same optimizers (Muon for the
matrices; `original` keeps its Adam), batch, schedule and no dropout, and as many parameters as fit
the budget. The rate is chosen on the first set with the first seed; the other sets and the second
seed then use it. Intervals are 95% bootstrap intervals of the ratio to `context`, over documents.

Trials are kept in --out: a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.measure import Report, Row, progress, report_options
from benchmarks.trials import run_module
from newllm.model import matched_widths

DEPTHS = {
    1.4: {"context": 2, "gru": 1, "lstm": 1, "mingru": 2, "transformer": 3, "original": 1},
    5.0: {"context": 4, "gru": 2, "lstm": 2, "mingru": 4, "transformer": 4, "original": 2},
}
"""Blocks by size in millions of parameters: what suits each architecture at that size."""

VOCABULARY = {1.4: 2048, 5.0: 4096}
"""BPE entries by size, so that the embedding does not take it all."""

RATES = (0.003, 0.006, 0.012)
SEEDS = (0, 1)
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
    minutes: float

    @property
    def name(self) -> str:
        """Name of its files."""
        return "_".join(str(value).replace(".", "p") for value in asdict(self).values())

    def arguments(self, data: str) -> list[str]:
        """Of `newllm train`."""
        layers = DEPTHS[self.millions][self.architecture]
        vocabulary = VOCABULARY[self.millions] if self.tokenizer == "bpe" else 1000
        parameters = round(self.millions * 1e6)
        pairs = self.tokenizer == "bpe"
        widths = matched_widths(self.architecture, layers, vocabulary, parameters, pairs)
        shape = [f"--{key.replace('_', '-')}={value}" for key, value in widths.items()]
        return [
            "train", self.dataset, "--data", data, "--tokenizer", self.tokenizer,
            "--vocab-size", str(VOCABULARY[self.millions]), "--architecture", self.architecture,
            "--num-layers", str(layers), *shape, "--learning-rate", str(self.learning_rate),
            "--batch-size", "32", "--max-seq-length", "128", "--dropout", "0",
            "--warmup-share", "0.02", "--warmdown-share", "0.6", "--patience", "1000",
            "--epochs", "1000", "--minutes", str(self.minutes), "--seed", str(self.seed),
        ]  # fmt: skip


def run_trial(trial: Trial, data_dir: str, out: Path) -> dict[str, Any]:
    """Train and score on one core, unless it was done before; the record of the trial."""
    record = out / f"{trial.name}.json"
    if record.exists():
        return json.loads(record.read_text(encoding="utf-8"))
    data = data_dir if data_dir == "sample" else str(Path(data_dir) / trial.dataset)
    log = out / f"{trial.name}.log"
    run_module(["newllm", *trial.arguments(data), "--out", str(out), "--name", trial.name], log)
    run_module(["benchmarks.quality", "score", str(out), trial.name, data], log)
    for kind in ("best_{}.pt", "{}_final.pt", "{}_resume.pt", "{}_resume.previous.pt"):
        (out / kind.format(trial.name)).unlink(missing_ok=True)
    return json.loads(record.read_text(encoding="utf-8"))


def score(out: Path, name: str, data: str) -> None:
    """Write a finished trial's record and its nats by document."""
    import newllm
    from newllm.evaluate.metrics import nats_by_document

    model = newllm.load(str(out / f"{name}_final.pt"))
    numbers = model.evaluate(data)
    encoded = model.validation_rows(data)
    np.save(out / f"{name}.npy", nats_by_document(model.model, encoded, model.device))
    facts = {
        **numbers,
        "bytes": int(encoded.content_bytes.sum()),
        "parameters": model.parameters,
        "trained_tokens": model.metrics["trained_tokens"],
        "trained_seconds": model.metrics["total_seconds"],
        "data_fingerprint": model.data["fingerprint"],
        "settings": model.settings.model_dump(),
        "nats_file": f"{name}.npy",
    }
    (out / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")


def run_all(trials: Iterable[Trial], data_dir: str, out: Path, cores: int) -> list[dict[str, Any]]:
    """Records of all trials, in their order, so many at a time."""

    def run(trial: Trial) -> dict[str, Any]:
        record = run_trial(trial, data_dir, out)
        progress(f"{trial.name}: {_quality(record):.4f}")
        return record

    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(run, trials))


def _quality(record: dict[str, Any]) -> float:
    """Bits per byte, or perplexity where bytes mean nothing."""
    return record["bpb"] if record["bpb"] is not None else record["ppl"]


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

    def trial(rows: tuple[str, str], architecture: str, rate: float, seed: int) -> Trial:
        return Trial(*rows, architecture, millions, rate, seed, minutes)

    tuning = [trial(sets[0], name, rate, 0) for name in architectures for rate in RATES]
    tuned = dict(zip(tuning, run_all(tuning, data_dir, out, cores), strict=True))
    best = {
        name: min(RATES, key=lambda rate: _quality(tuned[trial(sets[0], name, rate, 0)]))
        for name in architectures
    }
    final = [
        trial(rows, name, best[name], seed)
        for rows in sets
        for name in architectures
        for seed in SEEDS
    ]
    results = dict(zip(final, run_all(final, data_dir, out, cores), strict=True))
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
                    "tokens_read": record["trained_tokens"],
                    "quality": _quality(record),
                    "quality_of_second_seed": _quality(again),
                    "accuracy": record["accuracy"],
                    "nats_ratio_low": low,
                    "nats_ratio_high": high,
                }
            )
        # The columns of the others, empty but for what a table of counts has.
        floor = {"set": ":".join(rows), "architecture": "n-gram", "quality": _floor(reference)}
        table.append({**dict.fromkeys(table[-1]), **floor})
    return table


def _floor(record: dict[str, Any]) -> float:
    """The n-gram table's quality in the record's unit."""
    if record["bpb"] is None:
        return record["ngram_ppl"]
    return record["bpb"] * math.log(record["ngram_ppl"]) / record["loss"]


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
    _, verb, folder, name, rows = sys.argv
    assert verb == "score"
    score(Path(folder), name, rows)
