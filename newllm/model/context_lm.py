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
from newllm.model.dropout import Dropout
from newllm.model.loss import sum_of_nats
from newllm.model.recurrence import CONV_TAPS, context_scan

State = dict[str, Tensor]
"""Everything a model carries from token to token: plain tensors, the lanes in dimension 1."""

GROUP = 64
"""Channels that share one norm of the context: growing adds groups, the old keep theirs."""

SHORTEST_MEMORY, LONGEST_MEMORY = 1.5, 256.0
"""Time scales (tokens) over which the forget gates are spread at birth."""

EMBEDDING_STD = 0.02
"""Small at birth: the head is tied, and a large embedding would first predict its own token."""


class ContextBlock(nn.Module):
    """One layer: read the stream, update the context vector, write back; then a feed-forward.

    ::

        u, f, g = W_in norm(x)                 # write, forget gate, read-out gate
        c       = context_scan(u, f + b_f)     # short convolution and gated recurrence
        x       = x + W_out (groupnorm(c) * silu(g))
        x       = x + W_down relu(W_up norm(x))^2

    `W_out` and `W_down` start at zero, so that a new block is the identity.
    """

    def __init__(self, embed_dim: int, context_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.context_dim = context_dim
        self.context_norm = nn.LayerNorm(embed_dim, bias=False)
        self.in_proj = nn.Linear(embed_dim, 3 * context_dim, bias=False)
        self.forget_bias = nn.Parameter(_spread_forget_bias(context_dim))
        self.conv_weight = nn.Parameter(torch.zeros(CONV_TAPS, context_dim))
        self.read_scale = nn.Parameter(torch.ones(context_dim))
        self.out_proj = nn.Linear(context_dim, embed_dim, bias=False)
        self.hidden_norm = nn.LayerNorm(embed_dim, bias=False)
        self.up_proj = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, embed_dim, bias=False)
        self.dropout = Dropout(dropout)
        with torch.no_grad():
            self.conv_weight[0] = 1.0
            for linear in (self.in_proj, self.up_proj):
                nn.init.normal_(linear.weight, std=embed_dim**-0.5)
            nn.init.zeros_(self.out_proj.weight)
            nn.init.zeros_(self.down_proj.weight)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        tail: Tensor,
        reset: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D], context [B, C], tail [B, 3, C] -> the same three after T tokens.

        With `lengths` [B] only the first tokens of each lane count for the new state.
        """
        write, forget, gate = self.in_proj(self.context_norm(x)).chunk(3, dim=-1)  # [B, T, C] each
        contexts, last_context, last_tail = context_scan(
            write, forget.float() + self.forget_bias, self.conv_weight, reset, context, tail
        )
        if lengths is not None:
            last_context, last_tail = _state_after(lengths, contexts, write, reset, context, tail)
        read = _group_norm(contexts) * self.read_scale
        x = x + self.dropout(self.out_proj(read * F.silu(gate)))
        hidden = F.relu(self.up_proj(self.hidden_norm(x))).square()
        return x + self.dropout(self.down_proj(hidden)), last_context, last_tail


class ContextLM(nn.Module):
    """Language model whose memory is one context vector a layer: O(1) time and memory a token."""

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        super().__init__()
        self.settings, self.vocab_size = settings, vocab_size
        self.embedding = nn.Embedding(vocab_size, settings.embed_dim)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.embedding_norm = nn.LayerNorm(settings.embed_dim, bias=False)
        self.dropout = Dropout(settings.dropout)
        self.blocks = nn.ModuleList(
            ContextBlock(
                settings.embed_dim, settings.context_dim, settings.hidden_dim, settings.dropout
            )
            for _ in range(settings.num_layers)
        )
        self.norm = nn.LayerNorm(settings.embed_dim, bias=False)

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
    ) -> tuple[Tensor, State]:
        """Read tokens.

        Token by token, the whole, any split, documents packed with resets and left-padded lanes
        all give the same values and gradients.

        Args:
            ids: token ids, [B, T].
            state: what an earlier call returned, or None for the start of a text.
            reset: True where a new document starts (nothing is carried over), [B, T].
            valid: False where a token is padding and leaves the state as it is, [B, T].

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
        x = self.dropout(self.embedding_norm(self.embedding(ids)))
        contexts, tails = [], []
        for layer, block in enumerate(self.blocks):
            x, context, tail = block(
                x, state["context"][layer], state["tail"][layer], reset, lengths
            )
            contexts.append(context)
            tails.append(tail)
        hidden = self.norm(x)
        if order is not None and valid is not None:
            place = order[:, :, None].expand_as(hidden)
            hidden = torch.zeros_like(hidden).scatter(1, place, hidden) * valid[:, :, None]
        return hidden, {"context": torch.stack(contexts), "tail": torch.stack(tails)}

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every next token, [..., D] -> [..., V]; the matrix is the embedding's."""
        return F.linear(hidden, self.embedding.weight)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Sum of nats over the scored targets; see :func:`newllm.model.loss.sum_of_nats`."""
        return sum_of_nats(hidden, self.embedding.weight, None, targets)


def _group_norm(contexts: Tensor) -> Tensor:
    """Root-mean-square norm over each group of channels, [B, T, C]."""
    group = math.gcd(GROUP, contexts.shape[-1])
    grouped = contexts.unflatten(-1, (-1, group))
    return F.layer_norm(grouped, (group,)).flatten(-2)


def _spread_forget_bias(context_dim: int) -> Tensor:
    """Gate biases whose memories 1 / (1 - f) are spread evenly in log time, each group alike."""
    group = math.gcd(GROUP, context_dim)
    steps = torch.linspace(math.log(SHORTEST_MEMORY), math.log(LONGEST_MEMORY), group)
    return torch.log(steps.exp() - 1).repeat(context_dim // group)


def _state_after(
    lengths: Tensor,
    contexts: Tensor,
    write: Tensor,
    reset: Tensor | None,
    context: Tensor,
    tail: Tensor,
) -> tuple[Tensor, Tensor]:
    """The state after the first `lengths[b]` tokens of lane b: ([B, C], [B, 3, C])."""
    channels = contexts.shape[-1]
    history = torch.cat([context[:, None], contexts], dim=1)  # [B, 1 + T, C]
    last_context = history.gather(1, lengths[:, None, None].expand(-1, 1, channels))[:, 0]
    writes = torch.cat([tail.flip(1), write.float()], dim=1)  # [B, 3 + T, C], oldest first
    ages = torch.arange(CONV_TAPS - 1, device=lengths.device)
    newest = (lengths[:, None] + CONV_TAPS - 2 - ages)[:, :, None]  # [B, 3, 1]
    last_tail = writes.gather(1, newest.expand(-1, -1, channels))
    if reset is not None:
        # Hide a write when a document started after it: count the resets up to each position.
        starts = F.pad(reset.long().cumsum(dim=1), (CONV_TAPS, 0))  # [B, 4 + T]
        end = starts.gather(1, lengths[:, None] + CONV_TAPS - 1)
        last_tail = last_tail * (starts[:, 1:].gather(1, newest[:, :, 0]) == end)[:, :, None]
    return last_context, last_tail
