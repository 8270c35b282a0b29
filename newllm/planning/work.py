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
from newllm.model.sampled_softmax import is_worth_it
from newllm.train.optimizers import NEWTON_STEPS
from newllm.train.sharding import part_of_rows


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

    @property
    def state_bytes(self) -> int:
        """What lasts from step to step: weights and moments."""
        return 4 * self.parameters + self.moment_bytes


@dataclass(frozen=True)
class Share:
    """What one of several processes has of a model that they share (`--shard`): the first, which
    has the most.
    """

    state_bytes: int
    """Its parts of weights and moments."""
    step_bytes: int
    """Besides, while a step runs: its parts of the gradients, what is gathered, and what Muon
    holds. Counted from the shapes, and not measured."""
    sent_once: int
    """Bytes of a step that cross to the processes: gradients, updates to their owners and back."""
    sent_each: int
    """The same of each micro-batch: the blocks' weights twice, all others once."""


def token_frequencies(vocab_size: int) -> Tensor:
    """How often tokens stand in a text, most frequent first, by Zipf's law, [V]; they sum to 1.

    So 974 of 2,048 differ in a step of 4,096 tokens, and 1,226 of 4,096; in the rows of Dolly 917
    and 1,150 do.
    """
    frequencies = 1 / torch.arange(1, vocab_size + 1, dtype=torch.float64)
    return frequencies / frequencies.sum()


def softmax_entries(settings: Settings, tokens: int) -> int:
    """Entries of the vocabulary over which a step of so many tokens sums on a CPU."""
    frequencies = token_frequencies(settings.vocab_size)
    targets = float((1 - (1 - frequencies) ** tokens).sum())
    others = settings.sampled_softmax
    sampled = is_worth_it(settings.vocab_size, targets, others)
    return round(targets) + others if sampled else settings.vocab_size


def work_of(settings: Settings, cpu_tokens: int | None = None) -> Work:
    """Count for these settings, without allocating the model.

    Args:
        settings: of a training.
        cpu_tokens: of a step on a CPU, which sums its softmax over a sample.
    """
    model = meta_model(settings.model_settings(), settings.vocab_size)
    assert isinstance(model, ResidualLM)
    stream, channels = settings.embed_dim, settings.context_dim
    matrices = list(model.matrices())
    in_matrices = sum(matrix.numel() for matrix, _ in matrices)
    entries = settings.vocab_size if cpu_tokens is None else softmax_entries(settings, cpu_tokens)
    multiplied = in_matrices + entries * stream
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


def share_of(settings: Settings, processes: int) -> Share:
    """Count for these settings what FSDP2 leaves in one of so many processes."""
    model = meta_model(settings.model_settings(), settings.vocab_size)
    assert isinstance(model, ResidualLM)
    matrices = [matrix for matrix, _ in model.matrices()]
    in_matrices = {id(matrix) for matrix in matrices}
    state, parts, total = 0, 0, 0
    for parameter in model.parameters():
        rows = part_of_rows(len(parameter), 0, processes)
        part = (rows.stop - rows.start) * parameter[0].numel()
        state += part * (8 if id(parameter) in in_matrices else 12)
        parts, total = parts + part, total + parameter.numel()
    block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    outside = total - len(model.blocks) * block
    owned = sorted((matrix.numel() for matrix in matrices), reverse=True)[::processes]
    multiplied = sum(matrix.numel() for matrix in matrices)
    # Weights and gradients of all outside of the blocks, two blocks' weights (the next is gathered
    # while one runs), a block's gradients and what is sent of them.
    gathered = 4 * (2 * outside + 4 * block)
    # Updates as they are sent, as they are received, and as a stack (see `Work.static_bytes`).
    orthogonalised = 4 * multiplied // processes + 12 * sum(owned)
    return Share(
        state_bytes=state,
        step_bytes=4 * parts + gathered + orthogonalised,
        sent_once=4 * total + 6 * multiplied,
        sent_each=4 * (total + len(model.blocks) * block),
    )


def _muon_flops(matrix: Tensor, pieces: int) -> int:
    rows, columns = matrix.shape[0] // pieces, matrix.shape[1]
    short, long = min(rows, columns), max(rows, columns)
    products = 4 * short * short * long + 2 * short**3  # X X^T, its square, times X
    return pieces * NEWTON_STEPS * products
