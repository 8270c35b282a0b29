"""`ContextLM`: a stack of blocks, each carrying one context vector of fixed size. No attention.

Shapes as in `residual.py`, which holds all that is not about the context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from newllm.config import ModelSettings
from newllm.model.block import Block, Boundaries, FeedForward, projection
from newllm.model.context import CONV_TAPS, context_read, group_size
from newllm.model.kernels import Facts, embedding
from newllm.model.residual import EMBEDDING_STD, ResidualLM, State

SHORTEST_MEMORY, LONGEST_MEMORY = 1.5, 256.0
"""Time scales (tokens) over which the forget gates are spread at initialization."""

OPEN_GATE = 1.27846
"""Bias of the read-out gates at initialization: silu of it is 1."""

PAIR_DIM = 16
"""Numbers in a row of the table; one matrix widens them to the stream."""

PREVIOUS_FACTOR, TOKEN_FACTOR, HASH_SHIFT = 0x9E3779B1, 0x85EBCA77, 15


class ContextBlock(Block[Boundaries]):
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

    def carries(self) -> dict[str, tuple[int, ...]]:
        (channels,) = self.read_bias.shape
        return {"context": (channels,), "tail": (CONV_TAPS - 1, channels)}

    def mix(
        self, normed: Tensor, carried: list[Tensor], boundaries: Boundaries
    ) -> tuple[Tensor, list[Tensor]]:
        """`carried`: context [B, C] and tail [B, 3, C]."""
        read, *carried = context_read(
            self.in_proj(normed),
            self.forget_bias,
            self.read_bias,
            self.conv_weight,
            self.read_scale,
            boundaries.reset,
            boundaries.lengths,
            *carried,
        )
        return self.out_proj(read), carried

    def mixing_matrices(self) -> Iterator[tuple[Tensor, int]]:
        yield self.in_proj.weight, 3
        yield self.out_proj.weight, 1


class ContextLM(ResidualLM[Boundaries]):
    """Language model whose memory is one context vector a layer: O(1) time and memory a token.

    The state is "context" [L, B, C] and "tail" [L, B, 3, C], the last three writes; with a bigram
    hash embedding also "previous" [1, B], one more than the last token, 0 before the first.
    """

    STEADY = True

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        widths = settings.embed_dim, settings.context_dim, settings.hidden_dim
        blocks = [ContextBlock(*widths) for _ in range(settings.num_layers)]
        super().__init__(settings, vocab_size, blocks)
        self.pairs: BigramHashEmbedding | None = None
        if settings.pair_rows:
            self.pairs = BigramHashEmbedding(settings.pair_rows, settings.embed_dim, EMBEDDING_STD)

    def initial_state(self, batch_size: int) -> State:
        """Zeros before the first token."""
        state = super().initial_state(batch_size)
        if self.pairs is not None:
            state["previous"] = state["context"].new_zeros(1, batch_size, dtype=torch.long)
        return state

    def late_decaying(self) -> Iterator[nn.Parameter]:
        if self.pairs is not None:
            yield self.pairs.table

    def _rows(self, ids: Tensor, state: State, reset: Tensor | None) -> Facts:
        rows = super()._rows(ids, state, reset)
        if self.pairs is None:
            return rows
        previous = previous_tokens(ids, state["previous"][0], reset)
        return rows | {"pair_rows": self.pairs.rows(ids, previous)}

    def _embed(self, facts: Facts) -> Tensor:
        if self.pairs is None:
            return super()._embed(facts)
        pairs = self.pairs(facts["pair_rows"])
        return embedding(self.embedding.weight, facts["token_rows"], pairs)

    def _tokens_behind(self, ids: Tensor, state: State, lengths: Tensor | None) -> State:
        if self.pairs is None:
            return {}
        return {"previous": last_tokens(ids, state["previous"][0], lengths)[None]}

    def _boundaries(
        self, ids: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None
    ) -> Boundaries:
        return Boundaries(reset, lengths, ids)


class BigramHashEmbedding(nn.Module):
    """W table[hash(previous, token)]: what a token means after the one before it; zero at first.

    A row of the table costs a look-up where a matrix of as many numbers costs a product: per
    parameter it is the cheapest memory there is. The idea is fastText's hashed n-grams (Joulin et
    al. 2016, arXiv:1607.01759), as input to a language model.
    """

    def __init__(self, rows: int, embed_dim: int, std: float) -> None:
        """A table of so many rows.

        Args:
            rows: rows; several pairs may share one.
            embed_dim: D.
            std: of what a row of unit variance adds to an embedding.
        """
        super().__init__()
        self.table = nn.Parameter(torch.zeros(rows, PAIR_DIM))
        self.widen = nn.Parameter(torch.randn(PAIR_DIM, embed_dim) * std * PAIR_DIM**-0.5)

    def rows(self, ids: Tensor, previous: Tensor) -> Tensor:
        """Rows of tokens [B, T] after `previous`, one more than their ids, 0 for none: [B, T].

        -1 where there is no previous token: nothing is added there.
        """
        mixed = previous * PREVIOUS_FACTOR + ids * TOKEN_FACTOR
        return ((mixed >> HASH_SHIFT) % len(self.table)).masked_fill(previous == 0, -1)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, T, D] of rows [B, T]."""
        if rows.dtype != torch.int32:
            return embedding(self.table, rows, holes=True) @ self.widen
        with torch.autocast(self.table.device.type, enabled=False):  # no numbers to speak of
            return embedding(self.table, rows) @ self.widen


def previous_tokens(ids: Tensor, before: Tensor, reset: Tensor | None) -> Tensor:
    """The token before each one, as one more than its id; 0 at the start of a document.

    Args:
        ids: [B, T].
        before: that of the first one, [B].
        reset: True where a document starts, [B, T], or None for nowhere.
    """
    previous = torch.cat([before.to(ids.device)[:, None], ids[:, :-1] + 1], dim=1)
    return previous if reset is None else previous.masked_fill(reset, 0)


def last_tokens(ids: Tensor, before: Tensor, lengths: Tensor | None) -> Tensor:
    """What `before` is to the next call, [B]; sequences of which no token is read keep theirs."""
    if lengths is None:
        return ids[:, -1] + 1
    last = ids.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0] + 1
    return torch.where(lengths > 0, last, before)


def _spread_forget_bias(context_dim: int) -> Tensor:
    """Gate biases whose memories 1 / (1 - f) are spread evenly in log time, each group alike."""
    group = group_size(context_dim)
    steps = torch.linspace(math.log(SHORTEST_MEMORY), math.log(LONGEST_MEMORY), group)
    return torch.log(steps.exp() - 1).repeat(context_dim // group)
