"""What training a `ContextLM` takes: arithmetic, memory traffic and bytes, counted from its shape.

The counts are exact for matrix products and states; activations are a fit to measured peaks
(`newllm bench plan` compares both with real steps).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from newllm.config import Settings
from newllm.errors import UserError
from newllm.model import build_model, count_parameters
from newllm.model.pairs import PAIR_DIM
from newllm.model.residual import ResidualLM
from newllm.recipes import resolve
from newllm.train.optimizers import NEWTON_STEPS

_NEAR = 0.7
"""Of the parameters asked for, a shape that has so many will do."""

WIDTH_PER_LAYER = 64
"""Stream numbers a block, about: what most published language models have."""

_SHAPE_OF = "ultrachat"
"""Data set whose settings a planned model has where none are given; widths do not depend on it."""


@dataclass(frozen=True)
class Work:
    """Training of one model, for a token or for a step."""

    parameters: int
    flops_per_token: int
    """Of the matrix products, forward and backward: 6 for each number of a matrix (Kaplan et al.
    2020, arXiv:2001.08361), the output layer's included; there is no attention to add."""
    kept_per_token: int
    """Bytes that the forward pass keeps for the backward pass."""
    update_flops: int
    """Of one step of the optimizer: Muon's iterations, whatever the batch."""
    static_bytes: int
    """Weights, gradients, moments, and what Muon holds while it works."""
    moment_bytes: int


def work_of(settings: Settings) -> Work:
    """Count for these settings, without allocating the model."""
    with torch.device("meta"):
        model = build_model(settings.model_settings(), settings.vocab_size)
    assert isinstance(model, ResidualLM)
    stream, channels = settings.embed_dim, settings.context_dim
    matrices = list(model.matrices())
    in_matrices = sum(matrix.numel() for matrix, _ in matrices)
    multiplied = in_matrices + settings.vocab_size * stream
    multiplied += PAIR_DIM * stream if settings.pair_rows else 0
    parameters = sum(parameter.numel() for parameter in model.parameters())
    moments = 4 * in_matrices + 8 * (parameters - in_matrices)
    by_shape: dict[torch.Size, int] = {}
    for matrix, _ in matrices:
        by_shape[matrix.shape] = by_shape.get(matrix.shape, 0) + matrix.numel()
    stacked = 8 * max(by_shape.values())  # an fp32 copy, and two in bfloat16
    return Work(
        parameters=parameters,
        flops_per_token=6 * multiplied,
        kept_per_token=40 * stream + settings.num_layers * (24 * stream + 14 * channels),
        update_flops=sum(_muon_flops(matrix, pieces) for matrix, pieces in matrices),
        static_bytes=8 * parameters + moments + stacked,
        moment_bytes=moments,
    )


def _muon_flops(matrix: Tensor, pieces: int) -> int:
    rows, columns = matrix.shape[0] // pieces, matrix.shape[1]
    short, long = min(rows, columns), max(rows, columns)
    products = 4 * short * short * long + 2 * short**3  # X X^T, its square, times X
    return pieces * NEWTON_STEPS * products


def planned_settings(parameters: int, vocab_size: int, num_layers: int | None = None) -> Settings:
    """Settings of a `context` model of about so many parameters, in the default proportions.

    Args:
        parameters: the most it may have.
        vocab_size: entries of the vocabulary.
        num_layers: depth (default: the one whose stream is nearest to 64 numbers a block).

    Raises:
        UserError: no shape has so few or so many parameters.
    """
    depths = (num_layers,) if num_layers else (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    shapes = [shape for layers in depths if (shape := _widest(parameters, vocab_size, layers))]
    if not shapes:
        raise UserError(
            f"--params {parameters:,}: no model of {num_layers or 1} layer(s) with a vocabulary of "
            f"{vocab_size:,} is so small; change --params, --vocab-size or --num-layers"
        )
    counts = [_count(s.num_layers, s.context_dim, vocab_size) for s in shapes]
    large = [s for s, count in zip(shapes, counts, strict=True) if count > _NEAR * parameters]
    if not large:
        raise UserError(
            f"--params {parameters:,}: the largest model of at most {depths[-1]} layer(s) has "
            f"{max(counts):,} parameters"
        )
    return min(large, key=lambda s: abs(math.log(s.embed_dim / (WIDTH_PER_LAYER * s.num_layers))))


def _widest(parameters: int, vocab_size: int, num_layers: int) -> Settings | None:
    """The widest shape of a depth within the budget, its context a multiple of 32."""
    fitting = 0
    step = 256  # halved each time: up to 511 of them, which is a context of 16,352
    while step:
        if _count(num_layers, 32 * (fitting + step), vocab_size) <= parameters:
            fitting += step
        step //= 2
    return _shape(num_layers, 32 * fitting, vocab_size) if fitting else None


def _shape(num_layers: int, context_dim: int, vocab_size: int) -> Settings:
    given = {"num_layers": num_layers, "context_dim": context_dim, "vocab_size": vocab_size}
    return resolve(_SHAPE_OF, given)


@functools.cache
def _count(num_layers: int, context_dim: int, vocab_size: int) -> int:
    """Parameters of a shape; of deep ones from those of two and three blocks."""
    if num_layers > 3:
        two, three = (_count(layers, context_dim, vocab_size) for layers in (2, 3))
        return two + (num_layers - 2) * (three - two)
    shape = _shape(num_layers, context_dim, vocab_size)
    return count_parameters(shape.model_settings(), vocab_size)
