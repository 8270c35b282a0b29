"""Two processes with and without --shard: what each holds, how long a step takes, its losses.

    newllm bench shard --params 40000000

Each row is a training of the same few steps on the built-in rows of Dolly: in one process, in two
that hold the whole model each, their gradients summed after the backward pass or during it, and in
two that share it (FSDP2). `held` are the bytes of parameters and optimizer state in a process,
`grown` what its resident memory has grown by since before there was a model, after the last step; a
small model has been trained the same way by then, so that imports and machine code are not in it.
Losses are compared with those of one process.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import click
import torch

from benchmarks.measure import Report, Row, progress, report_options
from benchmarks.trials import ROOT
from newllm.config import Settings
from newllm.data.prepare import Encoded, Encoding, prepare_training
from newllm.data.sources import open_chosen
from newllm.device import give_back_freed_memory
from newllm.settings import resolve
from newllm.train.distributed import Processes, process_group
from newllm.train.log import EpochLog
from newllm.train.memory import resident_bytes
from newllm.train.sharding import own_part
from newllm.train.trainer import Trainer

WAYS = {
    "one": "one process",
    "after": "two, sums after the backward pass",
    "during": "two, sums during it",
    "shard": "two, --shard",
}


def prepared(params: int, tokens: int, way: str) -> tuple[Settings, Encoded]:
    """Settings of a model of that size, and the built-in rows."""
    flags = {
        "data": "sample", "device": "cpu", "precision": "fp32", "max_seq_length": tokens // 4,
        "batch_size": 4, "micro_batch_size": 2, "counts": 0, "shard": way == "shard",
    }  # fmt: skip
    settings = resolve("dolly", flags, None, params)
    return settings, prepare_training(open_chosen(settings), Encoding.of(settings))


def measured(way: str, params: int, steps: int, tokens: int) -> dict[str, Any] | None:
    """Of this process and those beside it; None but in the main one."""
    torch.set_num_threads(1)
    settings, data = prepared(params, tokens, way)
    small = settings.model_copy(update={"context_dim": 32, "embed_dim": 32, "hidden_dim": 32})
    with process_group() as processes:
        _trained(way, small, data, 2, processes)
        gc.collect()
        give_back_freed_memory()
        before = resident_bytes()
        trainer, losses, seconds = _trained(way, settings, data, steps, processes)
        give_back_freed_memory()
        state = [part for o in trainer.optimizers for s in o.state.values() for part in s.values()]
        held = [own_part(tensor) for tensor in (*trainer.model.parameters(), *state)]
        facts = {
            "held": sum(part.untyped_storage().nbytes() for part in held),
            "grown": resident_bytes() - before,
        }
        everyone = processes.gather(facts)
        if not processes.main:
            return None
        return {
            "parameters": trainer.parameters, "everyone": everyone, "losses": losses,
            "seconds": statistics.median(seconds[1:]),
        }  # fmt: skip


def _trained(
    way: str, settings: Settings, data: Encoded, steps: int, processes: Processes
) -> tuple[Trainer, list[float], list[float]]:
    """The trainer after so many steps, their nats and their seconds."""
    trainer = Trainer(
        settings, data, EpochLog(), lambda _: None, lambda _, __: None,
        torch.device("cpu"), processes=processes,
    )  # fmt: skip
    trainer.micro_batch = 2
    trainer._begin()
    if way == "after" and trainer._sums is not None:
        trainer._sums.expect_last = lambda: None  # type: ignore[method-assign]
    loader = trainer._loader(0)
    losses, seconds = [], []
    for step in range(steps):
        started = time.perf_counter()
        losses.append(trainer._step(loader.batch(step), 1.0))
        seconds.append(time.perf_counter() - started)
    return trainer, losses, seconds


@click.command()
@click.option("--params", default=40_000_000, show_default=True, help="Size of the model.")
@click.option("--steps", default=6, show_default=True, help="Steps of each training.")
@click.option("--tokens", default=512, show_default=True, help="Tokens of a step, in four rows.")
@click.option("--way", "own", hidden=True, type=click.Choice(list(WAYS)), help="Measure this one.")
@report_options
def command(params: int, steps: int, tokens: int, own: str | None) -> Report:
    if own is not None:
        facts = measured(own, params, steps, tokens)
        if facts is None:
            raise SystemExit(0)
        return Report({}, facts)
    prepared(params, tokens, "one")  # once, before several do it at a time
    rows: list[Row] = []
    found: dict[str, dict[str, Any]] = {}
    for way, name in WAYS.items():
        words = [*_start(way), "bench", "shard", "--way", way, "--params", str(params)]
        process = subprocess.run(
            [*words, "--steps", str(steps), "--tokens", str(tokens), "--json"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        if process.returncode:
            raise click.ClickException(f"{name}: {process.stderr.strip()[-500:]}")
        facts = found[way] = json.loads(process.stdout[process.stdout.index('{"machine"') :])[
            "facts"
        ]
        alone = found["one"]
        rows.append(
            {
                "processes": name,
                "held_mb": max(part["held"] for part in facts["everyone"]) / 1e6,
                "held_of_one": max(part["held"] for part in facts["everyone"])
                / alone["everyone"][0]["held"],
                "grown_mb": max(part["grown"] for part in facts["everyone"]) / 1e6,
                "step_s": facts["seconds"],
                "loss_differs": max(
                    abs(a / b - 1) for a, b in zip(facts["losses"], alone["losses"], strict=True)
                ),
            }
        )
        progress(f"{name}: done")
    return Report(
        {"A step": rows},
        {"parameters": found["one"]["parameters"], "steps": steps, "tokens": tokens},
    )


def _start(way: str) -> list[str]:
    """The words that start one process, or two."""
    if way == "one":
        return [sys.executable, "-m", "newllm"]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "newllm"]  # fmt: skip
