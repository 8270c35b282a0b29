"""What training a `ContextLM` takes: arithmetic, memory traffic and bytes, counted from its shape.

The counts are exact for matrix products and states; activations are a fit to measured peaks
(`newllm bench plan` compares both with real steps).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from newllm.config import Settings
from newllm.model import meta_model
from newllm.model.context.lm import PAIR_DIM
from newllm.model.recall.reference import ORDERS
from newllm.model.residual import ResidualLM
from newllm.train.optimizers import NEWTON_STEPS


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
    model = meta_model(settings.model_settings(), settings.vocab_size)
    assert isinstance(model, ResidualLM)
    stream, channels = settings.embed_dim, settings.context_dim
    matrices = list(model.matrices())
    in_matrices = sum(matrix.numel() for matrix, _ in matrices)
    multiplied = in_matrices + settings.vocab_size * stream
    multiplied += PAIR_DIM * stream if settings.pair_rows else 0
    # And recall's matrix, as if no two tokens had the same candidate.
    multiplied += len(ORDERS) * stream if settings.recall_slots else 0
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
