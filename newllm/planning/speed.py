"""How fast a device does the parts of a training step: measured here, assumed elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from newllm.config import Settings
from newllm.device import fast_bf16, keep_freed_memory, pick_device, product_speed
from newllm.model import build_model
from newllm.model.kernels import Noise
from newllm.planning.devices import PASSES, Device
from newllm.planning.work import work_of
from newllm.settings import resolve
from newllm.train.optimizers import make_optimizers

REFERENCE = {"num_layers": 4, "context_dim": 512, "vocab_size": 4096}
"""The model whose step is timed to know a machine: large enough that no fixed cost counts."""

REFERENCE_ROWS = 32, 128
"""Rows and their length."""


@dataclass(frozen=True)
class Speed:
    """Of one device."""

    products: float
    """Matrix products, FLOP/s."""
    traffic: float
    """Kept bytes/s: how fast everything between the matrix products goes."""
    update: float
    """Products of the optimizer, FLOP/s."""


def assumed_speed(device: Device, utilisation: float) -> Speed:
    """At a share of a device's peaks."""
    products = device.flops * utilisation
    return Speed(products, device.bandwidth * utilisation / PASSES, products)


def measured_speed() -> Speed:
    """Of this machine, from bare products and one model's steps: some seconds."""
    device = pick_device("auto")
    settings = resolve("ultrachat", REFERENCE)
    work = work_of(settings)
    tokens = REFERENCE_ROWS[0] * REFERENCE_ROWS[1]
    step = timed_step(settings, *REFERENCE_ROWS)
    step()  # pays for compiling
    passes, updates = zip(*(step() for _ in range(5)), strict=True)
    dtype = torch.bfloat16 if fast_bf16(device) else torch.float32
    products = product_speed(device, dtype)
    rest = median(passes) - tokens * work.flops_per_token / products
    return Speed(
        products=products,
        # Products inside a step can be faster than the bare ones on a disturbed machine.
        traffic=tokens * work.kept_per_token / max(rest, 0.1 * median(passes)),
        update=work.update_flops / median(updates),
    )


def timed_step(settings: Settings, rows: int, length: int) -> Callable[[], tuple[float, float]]:
    """A function that trains a step on made-up tokens: seconds of both passes, and of the update.

    Args:
        settings: of the model and its optimizers.
        rows: of the batch, computed at once.
        length: tokens of each.
    """
    device = pick_device("auto")
    keep_freed_memory()
    torch.manual_seed(0)
    model = build_model(settings.model_settings(), settings.vocab_size).to(device)
    optimizers = make_optimizers(model, settings)
    ids = torch.randint(settings.vocab_size, (rows, length), device=device)
    state = model.initial_state(rows)
    reset = torch.zeros_like(ids, dtype=torch.bool)

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def step() -> tuple[float, float]:
        started = wait()
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_bf16(device)):
            hidden, _ = model(ids, state, reset, noise=Noise(0, 0))
            loss = model.loss(hidden, ids) / ids.numel()
        loss.backward()
        between = wait()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return between - started, wait() - between

    return step
