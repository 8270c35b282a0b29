"""How many rows fit at once: presets by device, then a real step tried before the first one."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil
import torch

from newllm.data.loader import Batch
from newllm.device import send
from newllm.errors import UserError
from newllm.model import LanguageModel
from newllm.model.sampled_softmax import SampledVocabulary

TOKENS_AT_ONCE = {
    "cpu": 16_384,
    "cuda": 65_536,
    "T4": 65_536,
    "L4": 131_072,
    "A100": 262_144,
    "H100": 524_288,
    "H200": 524_288,
}
"""Tokens computed at once, by device (other GPUs: "cuda"); halved until they fit."""

Result = TypeVar("Result")

_USABLE_FRACTION = 0.8
"""Of the memory that is free, how much a step may take."""


def preset_rows(device: torch.device, row_length: int) -> int:
    """Rows computed at once to begin with."""
    key = device.type
    if device.type == "cuda":
        # "Tesla T4", "NVIDIA A100-SXM4-40GB"; "NVIDIA L40S" is none of them.
        words = re.split(r"\W", torch.cuda.get_device_name(device))
        key = next((word for word in words if word in TOKENS_AT_ONCE), key)
    return max(1, TOKENS_AT_ONCE[key] // row_length)


def step_trial(
    model: LanguageModel,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    autocast: torch.autocast,
    device: torch.device,
    sample: SampledVocabulary | None = None,
) -> Callable[[int], int]:
    """What `fit_rows` tries: a whole step, in this precision, on a batch's first rows.

    The optimizers step at a rate of zero along gradients of zero, and forget it.
    """

    def try_rows(rows: int) -> int:
        part = batch.select(slice(rows))
        with autocast:
            hidden, _ = model(send(part.ids, device), None, send(part.reset, device))
            loss = model.loss(hidden, part.targets, sample)
        held = resident_bytes()
        loss.backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        for optimizer in optimizers:
            _step_in_place(optimizer)
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what was only asked for takes time, too
        return held

    return try_rows


def _step_in_place(optimizer: torch.optim.Optimizer) -> None:
    """Spend a step's time and memory, and leave weights and moments as they are."""
    moments, optimizer.state = optimizer.state, defaultdict(dict)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    try:
        optimizer.step()
    finally:
        optimizer.state = moments
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def fit_rows(
    try_rows: Callable[[int], int],
    rows: int,
    device: torch.device,
    note: Callable[[str], None],
    neighbours: int = 1,
    all_reduce_min: Callable[[int], int] | None = None,
) -> tuple[int, float]:
    """Find a number of rows that fits, by doing a step's work on real rows.

    On a CPU the system would kill the process rather than refuse memory, so the first try is on few
    rows, and how many fit follows from its growth.

    Args:
        try_rows: a step on so many rows, leaving no trace; returns the bytes the process held when
            it held most.
        rows: the most rows that are wanted; where there are fewer, `note` prints a line.
        neighbours: processes on this machine that take memory alike, this one among them.
        all_reduce_min: the least of the processes' numbers, where they all have to try alike; then
            nothing is halved where memory runs out in one of them.

    Returns:
        (rows at once, seconds that one try took).

    Raises:
        UserError: not even one row fits.
    """
    wanted = rows
    if device.type == "cpu":
        rows = min(rows, _rows_in_free_memory(try_rows, rows, neighbours))
    rows = rows if all_reduce_min is None else all_reduce_min(rows)

    def timed(rows: int) -> float:
        try_rows(rows)  # pays for compiling
        started = time.perf_counter()
        try_rows(rows)
        return time.perf_counter() - started

    seconds, rows = halve_until_it_fits(timed, rows, device, lambda: all_reduce_min is None)
    if rows < wanted:
        note(f"Memory holds {rows} rows at once instead of {wanted}; the batch stays what it was.")
    return rows, seconds


def halve_until_it_fits(
    attempt: Callable[[int], Result],
    rows: int,
    device: torch.device,
    may_halve: Callable[[], bool] = lambda: True,
) -> tuple[Result, int]:
    """Do something on so many rows at once, or on half as many when memory runs out, and so on.

    Returns:
        (what the attempt gave that succeeded, its number of rows).

    Raises:
        UserError: not even one row fits; or fewer may not be tried.
    """
    while True:
        try:
            return attempt(rows), rows
        except (MemoryError, torch.cuda.OutOfMemoryError):
            pass
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # what torch says on CPUs
                raise
        if rows == 1:
            raise UserError(
                "out of memory with a single row; use a smaller model or --max-seq-length"
            )
        if not may_halve():
            raise UserError(
                f"out of memory with {rows} rows at once, while other processes wait for this one; "
                f"train with --micro-batch-size {rows // 2}"
            )
        rows //= 2
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _rows_in_free_memory(try_rows: Callable[[int], int], rows: int, neighbours: int) -> int:
    few = max(2, rows // 8)
    if few >= rows:
        return rows
    try_rows(1)  # first-time costs: code, thread pools
    before = resident_bytes()
    per_row = max(0, try_rows(few) - before) / few
    free = psutil.virtual_memory().available * _USABLE_FRACTION / neighbours
    return rows if per_row == 0 else max(1, int(free / per_row))


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return psutil.Process().memory_info().rss
