"""The report of a comparison: a table for the terminal, Markdown, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from newllm.files import write_text
from newllm.report.charts import Chart, Line, Threshold, draw, standalone
from newllm.report.text import NOTHING, aligned, count, fixed, percent
from newllm.results.records import score
from newllm.results.summary import Summary

FORMAT, VERSION = "new-llm comparison", 1

_ENCODING = ("tokenizer", "vocab_size", "max_seq_length", "max_samples", "subset", "seed")
"""Settings that decide which rows are read, and as which tokens."""


@dataclass(frozen=True)
class Comparison:
    """Finished runs, in the order of the sweep."""

    dataset: str
    swept: tuple[str, ...]
    """The settings that differ."""
    runs: tuple[Summary, ...]

    def with_run(self, summary: Summary) -> Comparison:
        return replace(self, runs=(*self.runs, summary))

    @property
    def lossless(self) -> bool:
        """Whether all runs can be compared in bits per byte; else in perplexity."""
        return all(run.best["bpb"] is not None for run in self.runs)

    @property
    def best(self) -> Summary:
        """The run with the lowest bits per byte, or perplexity."""
        measure = "bpb" if self.lossless else "ppl"
        return min(self.runs, key=lambda run: score(run.best, measure))

    @property
    def notes(self) -> list[str]:
        """What a reader has to know before comparing."""
        notes = []
        if len({run.settings["tokenizer"] for run in self.runs}) > 1:
            notes.append("The tokenizers differ: perplexities do not compare.")
        rows: dict[Any, set[str]] = {}
        for run in self.runs:
            key = tuple(run.settings[name] for name in _ENCODING)
            rows.setdefault(key, set()).add(run.data["fingerprint"])
        if any(len(found) > 1 for found in rows.values()):
            notes.append("The rows changed between the runs: their numbers do not compare.")
        return notes


def row_of(run: Summary, swept: tuple[str, ...]) -> dict[str, Any]:
    """One line of the report, as plain values."""
    return {
        **{name: run.settings[name] for name in swept},
        "parameters": run.parameters,
        "counts_bytes": run.counts_bytes,
        "ppl": run.best["ppl"],
        "accuracy": run.best["accuracy"],
        "bpb": run.best["bpb"],
        "bpb_assistant": run.best["bpb_assistant"],
        "tokens_per_second": run.trained_tokens / (60 * run.minutes) if run.minutes else None,
        "minutes": run.minutes,
        "best_epoch": run.best["epoch"],
        "epochs": run.epochs,
        "floor": asdict(run.ngram_baseline),
        "run": run.run,
        "fingerprint": run.data["fingerprint"],
        "machine": run.machine,
        "versions": run.versions,
    }


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write `compare_DATASET.{json,md,svg}`, each atomically."""
    stem = f"compare_{comparison.dataset}"
    content = {
        "format": FORMAT,
        "version": VERSION,
        "dataset": comparison.dataset,
        "swept": comparison.swept,
        "runs": [row_of(run, comparison.swept) for run in comparison.runs],
        "notes": comparison.notes,
    }
    write_text(folder / f"{stem}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / f"{stem}.svg", standalone(draw(plot(comparison), stem)))
    write_text(folder / f"{stem}.md", markdown(comparison))


def table(comparison: Comparison) -> list[tuple[str, ...]]:
    """Head and rows, as text; sizes of counts where there are any."""
    counts = ("counts",) if any(run.counts_bytes for run in comparison.runs) else ()
    head = (*comparison.swept, "parameters", *counts, "PPL", "accuracy", "bits/byte", "tokens/s",
            "minutes", "best epoch", "n-gram")  # fmt: skip
    return [head, *(_cells(row_of(run, comparison.swept), comparison) for run in comparison.runs)]


def comparison_table(comparison: Comparison) -> str:
    """The report for the terminal."""
    lines = [aligned(table(comparison)), f"Best: {comparison.best.run}", *comparison.notes]
    return "\n".join(lines)


def markdown(comparison: Comparison) -> str:
    """The report as a page, with the plot."""
    head, *rows = table(comparison)
    lines = [
        f"# {comparison.dataset}: {', '.join(comparison.swept) or 'one run'}",
        "",
        _markdown_row(head),
        "|" + "---|" * len(head),
        *map(_markdown_row, rows),
        "",
        f"Best: `{comparison.best.run}`. n-gram: what a table of counts reaches on the same rows.",
        *comparison.notes,
        "",
        f"![{plot(comparison).description}](compare_{comparison.dataset}.svg)",
        "",
        _origin(comparison.best),
    ]
    return "\n".join(lines) + "\n"


def plot(comparison: Comparison) -> Chart:
    """The measure over the first swept setting; a line for each combination of the others."""
    key, name, digits = ("bpb", "bits/byte", 3) if comparison.lossless else ("ppl", "PPL", 2)
    first, others = comparison.swept[:1], comparison.swept[1:]
    values = list(dict.fromkeys(_value(run, first) for run in comparison.runs))
    groups = list(dict.fromkeys(_label(run, others) for run in comparison.runs))
    lines = [
        Line(
            group,
            [
                (values.index(_value(run, first)), score(run.best, key))
                for run in comparison.runs
                if _label(run, others) == group
            ],
        )
        for group in groups
    ]
    best = comparison.best
    baselines = {getattr(run.ngram_baseline, key) for run in comparison.runs}
    thresholds = []
    if len(baselines) == 1 and None not in baselines:
        value = baselines.pop()
        label = f"{best.ngram_baseline.order}-gram table {fixed(value, digits)}"
        thresholds = [Threshold(label, value, "floor")]
    return Chart(
        title=f"{comparison.dataset}: {name} by {' and '.join(comparison.swept) or 'run'}",
        description=f"Lowest: {fixed(best.best[key], digits)} {name}, run {best.run}",
        x_label=first[0].replace("_", " ") if first else "run",
        y_label=name,
        x_ticks=list(enumerate(values)),
        lines=lines,
        thresholds=thresholds,
        highlight=(values.index(_value(best, first)), score(best.best, key)),
        digits=digits,
    )


def _value(run: Summary, names: tuple[str, ...]) -> str:
    """The values of some settings: `4`."""
    return ", ".join(str(run.settings[name]) for name in names)


def _label(run: Summary, names: tuple[str, ...]) -> str:
    """The same with their names: `learning rate 0.003, seed 1`."""
    return ", ".join(f"{name.replace('_', ' ')} {run.settings[name]}" for name in names)


def _cells(row: Mapping[str, Any], comparison: Comparison) -> tuple[str, ...]:
    baseline = row["floor"]
    in_bits = baseline["bpb"] is not None
    size = f"{row['counts_bytes'] / 1e6:.1f} MB" if row["counts_bytes"] else NOTHING
    counts = [size] if any(run.counts_bytes for run in comparison.runs) else []
    return (
        *(str(row[name]) for name in comparison.swept),
        count(row["parameters"]),
        *counts,
        fixed(row["ppl"], 2),
        percent(row["accuracy"]),
        fixed(row["bpb"], 4),
        fixed(row["tokens_per_second"], 0),
        fixed(row["minutes"], 1),
        f"{row['best_epoch']} of {row['epochs']}",
        fixed(baseline["bpb"], 4) if in_bits else f"PPL {fixed(baseline['ppl'], 2)}",
    )


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _origin(run: Summary) -> str:
    """Where the numbers come from."""
    machine, data, versions = run.machine, run.data, run.versions
    return (
        f"Machine: {machine['cpu']}, {machine['device']}, {machine['kernel']} kernel, "
        f"{machine['precision']}, {machine['threads']} threads; "
        f"data: {data['source']} (fingerprint {data['fingerprint']}); "
        f"newllm {versions['newllm']}, torch {versions['torch']}."
    )
