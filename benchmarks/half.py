"""Half precision on CPUs with and without units for it: speed, and whether it is right.

    newllm bench half

Each row is a process of its own that is told which instructions it may use: `NUMBA_CPU_NAME` for
our kernels, `ONEDNN_MAX_CPU_ISA` and `ATEN_CPU_CAPABILITY` for torch. A step is forward, backward,
clipping and optimizer on the built-in rows of Dolly (word1000, 32 x 128 tokens, one core), in fp32
and in bfloat16 by autocast; beside it `torch.nn.GRU` with as many parameters, a tied head and
AdamW, in the same precision. `difference` is the largest relative difference of the loss between
bfloat16 and fp32 over so many steps of one training.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import cycle
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Report, Row, progress, report_options, rounds
from benchmarks.train_speed import ROWS, settings_of, update
from benchmarks.trials import ROOT
from newllm.data.loader import IGNORED, Batch, EpochLoader
from newllm.data.prepare import Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.datasets import find_dataset
from newllm.device import fast_bf16, keep_freed_memory
from newllm.model import build_model, count_parameters
from newllm.model.kernels import Noise
from newllm.train.optimizers import make_optimizers

MACHINES: dict[str, dict[str, str]] = {
    "as it is": {},
    "AVX2": {
        "NUMBA_CPU_NAME": "haswell", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2",
    },
    "SSE4": {
        "NUMBA_CPU_NAME": "nehalem", "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
    },
}  # fmt: skip
"""Name -> variables that say which instructions are used."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchGRU(nn.Module):
    """Torch's own GRU between an embedding and the same matrix as the head."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.gru = nn.GRU(width, width, batch_first=True)

    def loss(self, batch: Batch) -> Tensor:
        """Nats per scored token."""
        hidden, _ = self.gru(self.embedding(batch.ids))
        logits = F.linear(hidden, self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)


def losses(batches: list[Batch], dtype: torch.dtype, gru: bool) -> Callable[[], float]:
    """A function that trains one step on the next rows and says its loss, nats a token."""
    torch.manual_seed(0)
    settings = settings_of("context", 1, 1000)
    size = count_parameters(settings.model_settings(), 1000)
    width = next(w for w in range(1024, 0, -8) if 1000 * w + 6 * w * w + 6 * w <= size)
    model = TorchGRU(1000, width) if gru else build_model(settings.model_settings(), 1000)
    if isinstance(model, TorchGRU):
        optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(model.parameters(), 0.003)]
    else:
        optimizers = make_optimizers(model, settings)
    upcoming = cycle(batches)

    def step() -> float:
        batch = next(upcoming)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            if isinstance(model, TorchGRU):
                loss = model.loss(batch)
            else:
                hidden, _ = model(
                    batch.ids, model.initial_state(ROWS), batch.reset, noise=Noise(0, 0)
                )
                loss = model.loss(hidden, batch.targets) / batch.scored
        update(model, loss, optimizers)
        return loss.item()

    return step


def measured(repeats: int) -> dict[str, Any]:
    """Of this process: timings by model and precision, the difference, what `auto` takes."""
    torch.set_num_threads(1)
    keep_freed_memory()
    source = open_source(find_dataset("dolly"), "sample", "all")
    encoding = Encoding.of(settings_of("context", 1, 1000).model_copy(update={"data": "sample"}))
    data = prepare_training(source, encoding)
    loader = EpochLoader(data.splits["train"], 128, ROWS, (0, 0))
    batches = [loader.batch(step) for step in range(min(8, len(loader)))]
    both = [losses(batches, dtype, gru=False) for dtype in DTYPES.values()]
    pairs = [(both[0](), both[1]()) for _ in range(repeats)]
    timings = rounds(
        {
            f"{name} {precision}": _untimed(losses(batches, dtype, gru))
            for name, gru in (("context", False), ("torch GRU", True))
            for precision, dtype in DTYPES.items()
        },
        repeats,
        baseline="torch GRU fp32",
    )
    return {
        "timings": [asdict(timing) for timing in timings],
        "difference": max(abs(half / full - 1) for full, half in pairs),
        "auto": "bf16" if fast_bf16(torch.device("cpu")) else "fp32",
    }


def _untimed(step: Callable[[], float]) -> Callable[[], None]:
    """The same, but `rounds` times it, where a number would be taken for its own time."""

    def call() -> None:
        step()

    return call


@click.command()
@click.option("--repeats", default=15, show_default=True, help="Rounds.")
@click.option("--machine", "own", hidden=True, is_flag=True, help="Measure this process.")
@report_options
def command(repeats: int, own: bool) -> Report:
    if own:
        return Report({}, measured(repeats))
    rows: list[Row] = []
    for name, variables in MACHINES.items():
        words = [sys.executable, "-m", "newllm", "bench", "half", "--machine", "--json"]
        process = subprocess.run(
            [*words, "--repeats", str(repeats)],
            env={**os.environ, **variables, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        if process.returncode:
            raise click.ClickException(f"{name}: {process.stderr.strip()[-500:]}")
        facts = json.loads(process.stdout)["facts"]
        ms = {timing["name"]: 1e3 * timing["seconds"] for timing in facts["timings"]}
        for precision in DTYPES:
            ours, theirs = ms[f"context {precision}"], ms[f"torch GRU {precision}"]
            rows.append(
                {"instructions": name, "precision": precision, "ms": ours, "torch_gru_ms": theirs,
                 "times_as_fast": theirs / ours, "difference": facts["difference"],
                 "auto": facts["auto"]}
            )  # fmt: skip
        progress(f"{name}: done")
    return Report({"A training step": rows}, {"rows": ROWS, "length": 128})
