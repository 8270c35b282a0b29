"""How fast a device does the parts of a training step: measured here, assumed elsewhere.

Peaks are those of the makers' data sheets (dense, 16-bit), prices what renting one costs about;
neither was measured here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from newllm.config import Settings
from newllm.device import (
    TYPES,
    autocast,
    keep_freed_memory,
    pick_device,
    pick_precision,
    product_speed,
)
from newllm.errors import UserError
from newllm.model import build_model
from newllm.model.kernels import Noise
from newllm.model.sampled_softmax import SampledVocabulary, mark_targets
from newllm.planning.work import token_frequencies, work_of
from newllm.settings import resolve
from newllm.train.optimizers import make_optimizers

UTILISATION = 0.4
"""Share of the peaks that is assumed to be reached, unless said."""

PASSES = 6
"""Times that each kept byte is assumed to go through a GPU's memory: written, read and summed up
forward, and the same for its gradient."""


@dataclass(frozen=True)
class Device:
    """One device, and how its neighbours in one machine are reached."""

    title: str
    flops: float
    """Arithmetic at its peak, FLOP/s."""
    bandwidth: float
    """Of its memory, bytes/s."""
    memory: float
    """Bytes."""
    link: float
    """Bytes/s between neighbours."""
    price: float
    """Dollars an hour."""


DEVICES = {
    "t4": Device("T4", 65e12, 320e9, 16e9, 10e9, 0.40),
    "l4": Device("L4", 121e12, 300e9, 24e9, 12e9, 0.80),
    "rtx4090": Device("RTX 4090", 165e12, 1008e9, 24e9, 12e9, 0.50),
    "a100": Device("A100 40 GB", 312e12, 1555e9, 40e9, 200e9, 1.50),
    "a100-80gb": Device("A100 80 GB", 312e12, 2039e9, 80e9, 200e9, 2.00),
    "h100": Device("H100", 989e12, 3350e9, 80e9, 350e9, 3.00),
    "h200": Device("H200", 989e12, 4800e9, 141e9, 350e9, 4.00),
}
HERE = "here"


def parse_device(text: str) -> tuple[str, int]:
    """`l4x8` -> ("l4", 8); `here` is the machine that plans.

    Raises:
        UserError: unknown device.
    """
    known = sorted((HERE, *DEVICES), key=len, reverse=True)
    found = re.fullmatch(rf"({'|'.join(known)})(?:x([1-9]\d{{0,3}}))?", text.lower())
    if found is None or (found[1] == HERE and found[2] is not None):
        raise UserError(
            f"--device {text}: expected here, or one of {', '.join(DEVICES)}, "
            "with the number of them: l4x8"
        )
    return found[1], int(found[2] or 1)


REFERENCE = {"num_layers": 4, "context_dim": 512, "vocab_size": 4096}
"""The model whose steps are timed where the one that is asked for is too large."""

_DEEPEST, _LARGEST = 4, 20_000_000
"""Layers, which are alike, and parameters of the models whose steps are timed."""

_TIMED_TOKENS, _TIMED_STEPS = 4096, 5


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
    """At a fraction of a device's peaks."""
    products = device.flops * utilisation
    return Speed(products, device.bandwidth * utilisation / PASSES, products)


def measured_speed(settings: Settings) -> Speed:
    """Of this machine, from bare products and steps of this model, or of one like it: some seconds.

    What a step costs besides the work that is counted depends on the shape; so the shape is that of
    the model, but for layers beyond the fourth.
    """
    device = pick_device("auto")
    settings = _timed(settings)
    length = min(settings.max_seq_length, _TIMED_TOKENS)
    rows = min(settings.batch_size, _TIMED_TOKENS // length)
    tokens = rows * length
    work = work_of(settings, tokens if device.type == "cpu" else None)
    step = timed_step(settings, rows, length)
    step()  # pays for compiling
    passes, updates = zip(*(step() for _ in range(_TIMED_STEPS)), strict=True)
    dtype = TYPES[pick_precision("auto", device)]
    # Products inside a step can be faster than the bare ones.
    in_products = tokens * work.flops_per_token / product_speed(device, dtype)
    in_products = min(in_products, 0.9 * median(passes))
    return Speed(
        products=tokens * work.flops_per_token / in_products,
        traffic=tokens * work.kept_per_token / (median(passes) - in_products),
        update=work.update_flops / median(updates),
    )


def _timed(settings: Settings) -> Settings:
    """The model whose steps are timed for one that is asked for."""
    layers = min(settings.num_layers, _DEEPEST)
    shallow = settings.model_copy(update={"num_layers": layers})
    small = work_of(shallow).parameters <= _LARGEST
    return shallow if small else resolve("ultrachat", REFERENCE)


def timed_step(settings: Settings, rows: int, length: int) -> Callable[[], tuple[float, float]]:
    """A function that trains a step on made-up tokens: seconds of both passes, and of the update.

    All rows, of `length` tokens each, are computed at once.
    """
    device = pick_device("auto")
    precision = pick_precision("auto", device)
    keep_freed_memory()
    torch.manual_seed(0)
    model = build_model(settings.model_settings(), settings.vocab_size).to(device)
    optimizers = make_optimizers(model, settings)
    frequencies = token_frequencies(settings.vocab_size)
    ids = frequencies.multinomial(rows * length, replacement=True).reshape(rows, length)
    sample = None
    if device.type == "cpu":
        marks = mark_targets(ids, settings.vocab_size)
        sample = SampledVocabulary.drawn(marks, settings.sampled_softmax, 0)
    ids = ids.to(device)
    state = model.initial_state(rows)
    reset = torch.zeros_like(ids, dtype=torch.bool)

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def step() -> tuple[float, float]:
        started = wait()
        with autocast(device, precision):
            hidden, _ = model(ids, state, reset, noise=Noise(0, 0))
            loss = model.loss(hidden, ids, sample) / ids.numel()
        loss.backward()
        between = wait()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return between - started, wait() - between

    return step
