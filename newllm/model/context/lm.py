"""`ContextLM`: a stack of blocks, each carrying one context vector of fixed size. No attention.

Shapes as in `residual.py`, which holds all that is not about the context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from newllm.config import ModelSettings
from newllm.model.context.pairs import PairTable, last_tokens, previous_tokens
from newllm.model.kernels import CONV_TAPS, Noise, context_read, group_size
from newllm.model.residual import (
    EMBEDDING_STD,
    Block,
    FeedForward,
    ResidualLM,
    State,
    projection,
)  # fmt: skip

SHORTEST_MEMORY, LONGEST_MEMORY = 1.5, 256.0
"""Time scales (tokens) over which the forget gates are spread at birth."""


OPEN_GATE = 1.27846
"""Bias of the read-out gates at birth: silu of it is 1."""


class ContextBlock(Block):
    """One layer: read the stream, update the context vector, write back; then a feed-forward.

    ::

        u, f, g = W_in norm(x)                     # write, forget gate, read-out gate
        x       = x + W_out context_read(u, f, g)  # short convolution, recurrence, gated read-out
        x       = x + W_down relu(W_up norm(x))^2
    """

    feed_forward: FeedForward

    def __init__(self, embed_dim: int, context_dim: int, hidden_dim: int) -> None:
        super().__init__(embed_dim, hidden_dim)
        self.in_proj = projection(embed_dim, 3 * context_dim)
        # Open read-out gates: with random ones the first reads are half noise (docs/LOG.md).
        nn.init.zeros_(self.in_proj.weight[2 * context_dim :])
        self.read_bias = nn.Parameter(torch.full((context_dim,), OPEN_GATE))
        self.forget_bias = nn.Parameter(_spread_forget_bias(context_dim))
        self.conv_weight = nn.Parameter(torch.eye(CONV_TAPS, 1).repeat(1, context_dim))
        self.read_scale = nn.Parameter(torch.ones(context_dim))
        self.out_proj = projection(context_dim, embed_dim, zero=True)

    def mix(
        self,
        normed: Tensor,
        carried: list[Tensor],
        places: tuple[Tensor | None, Tensor | None],
    ) -> tuple[Tensor, list[Tensor]]:
        """`carried`: context [B, C] and tail [B, 3, C]; `places`: resets and lengths of lanes."""
        read, *carried = context_read(
            self.in_proj(normed),
            self.forget_bias,
            self.read_bias,
            self.conv_weight,
            self.read_scale,
            *places,
            *carried,
        )
        return self.out_proj(read), carried

    def mixing_matrices(self) -> Iterator[tuple[Tensor, int]]:
        yield self.in_proj.weight, 3
        yield self.out_proj.weight, 1


class ContextLM(ResidualLM):
    """Language model whose memory is one context vector a layer: O(1) time and memory a token.

    The state is "context" [L, B, C] and "tail" [L, B, 3, C], the last three writes; with a table of
    pairs also "previous" [1, B], one more than the last token, 0 before the first.
    """

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        channels = settings.context_dim
        widths = settings.embed_dim, channels, settings.hidden_dim
        blocks = [ContextBlock(*widths) for _ in range(settings.num_layers)]
        carried = {"context": (channels,), "tail": (CONV_TAPS - 1, channels)}
        super().__init__(settings, vocab_size, blocks, carried)
        self.pairs: PairTable | None = None
        if settings.pair_rows:
            self.pairs = PairTable(settings.pair_rows, settings.embed_dim, EMBEDDING_STD)

    def initial_state(self, batch_size: int) -> State:
        """Zeros before the first token."""
        state = super().initial_state(batch_size)
        if self.pairs is not None:
            state["previous"] = state["context"].new_zeros(1, batch_size, dtype=torch.long)
        return state

    def _embed(
        self, ids: Tensor, state: State, places: tuple[Tensor | None, Tensor | None]
    ) -> Tensor:
        embedded = self.embedding(ids)
        if self.pairs is None:
            return embedded
        previous = previous_tokens(ids, state["previous"][0], places[0])
        return embedded + self.pairs(ids, previous)

    def _read(
        self,
        ids: Tensor,
        state: State,
        reset: Tensor | None,
        lengths: Tensor | None,
        noise: Noise | None,
    ) -> tuple[Tensor, State]:
        hidden, after = super()._read(ids, state, reset, lengths, noise)
        if self.pairs is not None:
            after["previous"] = last_tokens(ids, state["previous"][0], lengths)[None]
        return hidden, after


def _spread_forget_bias(context_dim: int) -> Tensor:
    """Gate biases whose memories 1 / (1 - f) are spread evenly in log time, each group alike."""
    group = group_size(context_dim)
    steps = torch.linspace(math.log(SHORTEST_MEMORY), math.log(LONGEST_MEMORY), group)
    return torch.log(steps.exp() - 1).repeat(context_dim // group)
