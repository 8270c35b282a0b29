"""`ContextLM`: a stack of blocks, each carrying one context vector of fixed size. No attention.

Shapes: B lanes of a batch, T time steps, D width of the stream (`embed_dim`), C size of a context
vector (`context_dim`), F width of the feed-forward (`hidden_dim`), L layers, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.config import ModelSettings
from newllm.model.kernels import (
    CONV_TAPS,
    EPSILON,
    Noise,
    add_norm,
    context_read,
    group_size,
    squared_relu,
)
from newllm.model.loss import compute_dtype, sum_of_nats

State = dict[str, Tensor]
"""Everything a model carries from token to token: plain tensors, the lanes in dimension 1."""

SHORTEST_MEMORY, LONGEST_MEMORY = 1.5, 256.0
"""Time scales (tokens) over which the forget gates are spread at birth."""

EMBEDDING_STD = 0.02
"""Small at birth: the head is tied, and a large embedding would first predict its own token."""


class ContextBlock(nn.Module):
    """One layer: read the stream, update the context vector, write back; then a feed-forward.

    ::

        u, f, g = W_in norm(x)                     # write, forget gate, read-out gate
        x       = x + W_out context_read(u, f, g)  # short convolution, recurrence, gated read-out
        x       = x + W_down relu(W_up norm(x))^2

    What is added to the stream is dropped out in training. `W_out` and `W_down` start at zero, so
    that a new block is the identity.
    """

    def __init__(self, embed_dim: int, context_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.context_norm = nn.Parameter(torch.ones(embed_dim))
        self.in_proj = nn.Linear(embed_dim, 3 * context_dim, bias=False)
        self.forget_bias = nn.Parameter(_spread_forget_bias(context_dim))
        self.conv_weight = nn.Parameter(torch.zeros(CONV_TAPS, context_dim))
        self.read_scale = nn.Parameter(torch.ones(context_dim))
        self.out_proj = nn.Linear(context_dim, embed_dim, bias=False)
        self.hidden_norm = nn.Parameter(torch.ones(embed_dim))
        self.up_proj = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, embed_dim, bias=False)
        with torch.no_grad():
            self.conv_weight[0] = 1.0
            for linear in (self.in_proj, self.up_proj):
                nn.init.normal_(linear.weight, std=embed_dim**-0.5)
            nn.init.zeros_(self.out_proj.weight)
            nn.init.zeros_(self.down_proj.weight)


class ContextLM(nn.Module):
    """Language model whose memory is one context vector a layer: O(1) time and memory a token."""

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        super().__init__()
        self.settings, self.vocab_size = settings, vocab_size
        self.embedding = nn.Embedding(vocab_size, settings.embed_dim)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.embedding_norm = nn.Parameter(torch.ones(settings.embed_dim))
        self.blocks = nn.ModuleList(
            ContextBlock(settings.embed_dim, settings.context_dim, settings.hidden_dim)
            for _ in range(settings.num_layers)
        )
        self.norm = nn.Parameter(torch.ones(settings.embed_dim))

    def initial_state(self, batch_size: int) -> State:
        """State before the first token: fp32 zeros, "context" [L, B, C] and "tail" [L, B, 3, C]."""
        layers, channels = self.settings.num_layers, self.settings.context_dim
        zeros = self.embedding.weight.new_zeros
        return {
            "context": zeros(layers, batch_size, channels, dtype=torch.float32),
            "tail": zeros(layers, batch_size, CONV_TAPS - 1, channels, dtype=torch.float32),
        }

    def forward(
        self,
        ids: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        valid: Tensor | None = None,
        noise: Noise | None = None,
    ) -> tuple[Tensor, State]:
        """Read tokens.

        Token by token, the whole, any split, documents packed with resets and left-padded lanes
        all give the same values and gradients.

        Args:
            ids: token ids, [B, T].
            state: what an earlier call returned, or None for the start of a text.
            reset: True where a new document starts (nothing is carried over), [B, T].
            valid: False where a token is padding and leaves the state as it is, [B, T].
            noise: of dropout, in training mode; drawn from torch's generator if not given.

        Returns:
            hidden [B, T, D] (zeros at padding) for :meth:`logits`, and the state after the last
            token.
        """
        state = state or self.initial_state(ids.shape[0])
        order = lengths = None
        if valid is not None and not bool(valid.all()):
            # Move each lane's real tokens to the front; what follows them is ignored.
            order = torch.argsort(~valid, dim=1, stable=True)  # [B, T]
            lengths = valid.sum(dim=1)
            ids = ids.gather(1, order)
            reset = None if reset is None else reset.gather(1, order)
        hidden, last = self._read(ids, state, reset, lengths, noise)
        if order is not None and valid is not None:
            place = order[:, :, None].expand_as(hidden)
            hidden = torch.zeros_like(hidden).scatter(1, place, hidden) * valid[:, :, None]
        return hidden, last

    def _read(
        self,
        ids: Tensor,
        state: State,
        reset: Tensor | None,
        lengths: Tensor | None,
        noise: Noise | None,
    ) -> tuple[Tensor, State]:
        """The stack on tokens of which each lane's first `lengths` count."""
        dtype = compute_dtype(self.embedding.weight)
        share = self.settings.dropout if self.training else 0.0
        noise = (noise or Noise.drawn()) if share else None
        width = self.embedding_norm.shape
        x = None
        branch = F.layer_norm(self.embedding(ids), width, self.embedding_norm, eps=EPSILON)
        contexts, tails = [], []
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, ContextBlock)
            x, normed = add_norm(x, branch, block.context_norm, dtype, share, noise, 2 * layer)
            read, context, tail = context_read(
                block.in_proj(normed),
                block.forget_bias,
                block.conv_weight,
                block.read_scale,
                reset,
                lengths,
                state["context"][layer],
                state["tail"][layer],
            )
            branch = block.out_proj(read)
            x, normed = add_norm(x, branch, block.hidden_norm, dtype, share, noise, 2 * layer + 1)
            branch = block.down_proj(squared_relu(block.up_proj(normed)))
            contexts.append(context)
            tails.append(tail)
        _, hidden = add_norm(x, branch, self.norm, dtype, share, noise, 2 * len(self.blocks))
        return hidden, {"context": torch.stack(contexts), "tail": torch.stack(tails)}

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every next token, [..., D] -> [..., V]; the matrix is the embedding's."""
        return F.linear(hidden, self.embedding.weight)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Sum of nats over the scored targets; see :func:`newllm.model.loss.sum_of_nats`."""
        return sum_of_nats(hidden, self.embedding.weight, None, targets)


def _spread_forget_bias(context_dim: int) -> Tensor:
    """Gate biases whose memories 1 / (1 - f) are spread evenly in log time, each group alike."""
    group = group_size(context_dim)
    steps = torch.linspace(math.log(SHORTEST_MEMORY), math.log(LONGEST_MEMORY), group)
    return torch.log(steps.exp() - 1).repeat(context_dim // group)
