"""What `newllm plan --device here` expects against what real training steps take.

    newllm bench plan --threads 1

Each shape trains some steps on made-up tokens in a process of its own, right before the machine is
measured; its speed is the median step's, its memory the most the process held.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path

import click

from benchmarks.measure import PeakMemory, Report, Row, progress, report_options
from benchmarks.trials import run_module
from newllm.planning.plan import machine_of, make_plan
from newllm.planning.speed import timed_step
from newllm.settings import resolve

SHAPES = (
    (1, 256, 32), (2, 128, 32), (4, 256, 32), (4, 256, 128), (4, 512, 32), (8, 512, 32),
    (12, 1024, 32),
)  # fmt: skip
"""Layers, context, rows of a step."""

STEPS = 5


def measure(layers: int, context_dim: int, rows: int, record: Path) -> None:
    """Write what one shape is expected to take, and what it takes."""
    shape = {"num_layers": layers, "context_dim": context_dim}
    settings = resolve("ultrachat", {**shape, "batch_size": rows})
    with PeakMemory() as memory:
        step = timed_step(settings, rows, settings.max_seq_length)
        taken = [sum(step()) for _ in range(STEPS + 1)][1:]
    plan = make_plan(settings, 1, machine_of("here", settings))
    facts = {
        "parameters": plan.work.parameters,
        "tokens": plan.batch_tokens,
        "expected_seconds": plan.step.seconds,
        "seconds": statistics.median(taken),
        "expected_mb": plan.memory_bytes / 1e6,
        "mb": memory.peak_mb,
    }
    record.write_text(json.dumps(facts), encoding="utf-8")


@click.command()
@click.option("--threads", default=os.cpu_count(), show_default=True, help="Cores a step uses.")
@click.option("--out", default="benchmark_runs/plan", show_default=True, type=Path)
@report_options
def command(threads: int, out: Path) -> Report:
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for layers, context_dim, batch in SHAPES:
        record = out / "step.json"
        words = ["benchmarks.plan", str(layers), str(context_dim), str(batch), str(record)]
        run_module(words, out / "plan.log", threads)
        found = json.loads(record.read_text(encoding="utf-8"))
        tokens = found["tokens"]
        row = {
            "layers": layers,
            "context": context_dim,
            "tokens_a_step": tokens,
            "parameters": found["parameters"],
            "tokens/s expected": tokens / found["expected_seconds"],
            "tokens/s": tokens / found["seconds"],
            "time: real over expected": found["seconds"] / found["expected_seconds"],
            "MB expected": found["expected_mb"],
            "MB": found["mb"],
            "memory: real over expected": found["mb"] / found["expected_mb"],
        }
        progress(f"{layers} x {context_dim}: {row['time: real over expected']:.2f} in time, "
                 f"{row['memory: real over expected']:.2f} in memory")  # fmt: skip
        rows.append(row)
    return Report({"Expected and real": rows}, {"steps": STEPS})


if __name__ == "__main__":
    _, layers, context_dim, rows, record = sys.argv
    measure(int(layers), int(context_dim), int(rows), Path(record))
