"""Trained tokens a second: ours, the baselines, the published time loop, the bare products.

A step is forward, backward, clipping and optimizer, on real rows in the word-1000 protocol (PAD
positions take time and are not counted). Peers have at most as many parameters as the published
model. Each runs in the faster of fp32 and bfloat16. The last line is what the matrix products of
our step alone would take, forward and backward: nothing can be faster.

    newllm bench train-speed --data sample
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import click
import torch
import torch.nn.functional as F

from benchmarks.measure import Report, report_options, rounds
from benchmarks.published_loop import PublishedLoop
from newllm.config import Settings
from newllm.data.loader import EpochLoader
from newllm.data.prepare import Encoded, Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.datasets import find_dataset
from newllm.device import fast_bf16, keep_freed_memory
from newllm.model import build_model
from newllm.model.kernels import Noise
from newllm.model.shape import matched_widths
from newllm.model.spec import RECALL_SLOTS, find_spec
from newllm.settings import resolve
from newllm.train.optimizers import make_optimizers

PUBLISHED_PARAMETERS = 1_426_152
PEERS = {"gru": 1, "lstm": 1, "mingru": 1, "transformer": 3, "original": 1}
"""Blocks of each peer."""

ROWS = 32
"""Of a step."""


def settings_of(architecture: str, layers: int, vocab_size: int) -> Settings:
    """Settings of a peer with no more parameters than the published model."""
    flags: dict[str, Any] = {"architecture": architecture, "num_layers": layers}
    if architecture not in ("context", "original"):
        flags |= matched_widths(
            architecture, layers, vocab_size, PUBLISHED_PARAMETERS, recall_slots=RECALL_SLOTS
        )
    return resolve("dolly", {**flags, "tokenizer": "word1000", "batch_size": ROWS})


def stepper(
    settings: Settings, data: Encoded, dtype: torch.dtype
) -> tuple[Callable[[], None], float]:
    """A function that trains one step on the next rows, and the tokens it trains on average."""
    torch.manual_seed(0)
    model = build_model(settings.model_settings(), data.tokenizer.vocab_size)
    optimizers = make_optimizers(model, settings)
    loader = EpochLoader(
        data.splits["train"],
        128,
        ROWS,
        (0, 0),
        find_spec(settings.architecture).one_document_per_row,
    )
    batches = [loader.batch(step) for step in range(min(8, len(loader)))]
    upcoming = cycle(batches)
    state = model.initial_state(ROWS)

    def step() -> None:
        batch = next(upcoming)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            hidden, _ = model(batch.ids, state, batch.reset, noise=Noise(0, 0))
            loss = model.loss(hidden, batch.targets) / batch.scored
        update(model, loss, optimizers)

    return step, sum(batch.scored for batch in batches) / len(batches)


def published_stepper(settings: Settings, data: Encoded) -> tuple[Callable[[], None], float]:
    """The same for the published time loop, fp32."""
    model = PublishedLoop(settings.model_settings(), data.tokenizer.vocab_size)
    optimizers = make_optimizers(model, settings)
    loader = EpochLoader(data.splits["train"], 128, ROWS, (0, 0), one_document_per_row=True)
    batches = [loader.batch(step) for step in range(min(8, len(loader)))]
    upcoming = cycle(batches)

    def step() -> None:
        batch = next(upcoming)
        update(model, model.mean_loss(batch.ids, batch.targets), optimizers)

    return step, sum(batch.scored for batch in batches) / len(batches)


def update(
    model: torch.nn.Module, loss: torch.Tensor, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Backward, clipping and the optimizers' step."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def bare_products(settings: Settings, vocab_size: int, dtype: torch.dtype) -> Callable[[], None]:
    """The matrix products of a step of `ContextLM`, forward and backward, and nothing else."""
    model = build_model(settings.model_settings(), vocab_size)
    shapes = [p.shape for name, p in model.named_parameters() if name.endswith("_proj.weight")]
    shapes.append(torch.Size([vocab_size, settings.embed_dim]))
    positions = ROWS * 128
    factors = [
        [torch.randn(*shape).to(dtype) for shape in ((positions, k), (n, k), (positions, n))]
        for n, k in shapes
    ]

    def products() -> None:
        for x, weight, dy in factors:
            F.linear(x, weight)
            dy @ weight
            dy.t() @ x

    return products


@click.command()
@click.option("--data", default="sample", show_default=True, help="Rows of Dolly: sample or PATH.")
@click.option("--repeats", default=15, show_default=True, help="Rounds.")
@click.option("--peers", multiple=True, type=click.Choice(list(PEERS)), help="Only these.")
@report_options
def command(data: str, repeats: int, peers: tuple[str, ...]) -> Report:
    keep_freed_memory()
    ours = settings_of("context", 1, 1000)
    source = open_source(find_dataset("dolly"), data, "all")
    encoded = prepare_training(source, Encoding.of(ours.model_copy(update={"data": data})))
    vocab_size = encoded.tokenizer.vocab_size
    half = fast_bf16(torch.device("cpu"))
    dtypes = [torch.float32, torch.bfloat16] if half else [torch.float32]
    dtype = dtypes[-1]
    candidates: dict[str, Callable[[], None]] = {}
    work: dict[str, float] = {}
    candidates["context"], work["context"] = stepper(ours, encoded, dtype)
    for peer in peers or PEERS:
        settings = settings_of(peer, PEERS[peer], vocab_size)
        options = {
            f"{peer} {d}".replace("torch.", ""): stepper(settings, encoded, d) for d in dtypes
        }
        quick = rounds({name: step for name, (step, _) in options.items()}, 3)
        fastest = min(quick, key=lambda timing: timing.seconds).name
        candidates[fastest], work[fastest] = options[fastest]
    published = settings_of("original", 1, vocab_size)
    candidates["published time loop"], work["published time loop"] = published_stepper(
        published, encoded
    )
    candidates["bare products"] = bare_products(ours, vocab_size, dtype)
    work["bare products"] = work["context"]
    timings = rounds(candidates, repeats, "context", work)
    rows = [
        {
            "candidate": timing.name,
            "ms_a_step": 1000 * timing.seconds,
            "trained_tokens_a_second": timing.per_second,
            "spread": timing.spread,
            "speed_against_context": timing.ratio,
        }
        for timing in timings
    ]
    return Report({"Training step": rows}, {"rows": encoded.source, "batch": f"{ROWS} rows of 128"})
