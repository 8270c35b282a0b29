"""`ContextLM` with the interface of Hugging Face transformers.

What `newllm export` writes into a folder under this name is this file with everything that it needs
of newllm put in (see `bundle.py`): it imports torch and transformers, and nothing else.

Made by newllm 0.1.0 from its own source; changes belong there.
"""

from __future__ import annotations

import math
import torch
import torch.nn.functional as F
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, LinearAttentionLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from typing import Any, ClassVar, cast

ModelSettings = Any  # its fields are those of NewLLMConfig


class NewLLMConfig(PreTrainedConfig):
    """The shape of a model, and the record of the run that trained it."""

    model_type = "new_llm"
    attribute_map = {"num_hidden_layers": "num_layers", "hidden_size": "embed_dim"}  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 4096,
        num_layers: int = 1,
        context_dim: int = 256,
        embed_dim: int = 256,
        hidden_dim: int = 512,
        pair_rows: int = 0,
        dropout: float = 0.0,
        use_cache: bool = True,
        record: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Sizes as in New-LLM; `record` is what `newllm import` needs besides the weights."""
        self.vocab_size, self.num_layers = vocab_size, num_layers
        self.context_dim, self.embed_dim, self.hidden_dim = context_dim, embed_dim, hidden_dim
        self.pair_rows = pair_rows
        self.dropout, self.use_cache, self.record = dropout, use_cache, record
        super().__init__(**{**kwargs, "tie_word_embeddings": True})


State = dict[str, Tensor]
"""Everything a model carries from token to token: plain tensors, the lanes in dimension 1."""


class ContextCache(Cache):
    """The state of fixed size, in transformers' layers for recurrent models.

    Each layer holds its context ("recurrent state", [B, C]) and its last three writes ("conv
    state", [B, C, 3], oldest first); beside them stands the last token, for the table of pairs. It
    is updated in place; `copy.deepcopy` forks it.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[LinearAttentionLayer() for _ in range(num_layers)])
        self._positions = 0
        self._previous: Tensor | None = None  # [1, B]

    @property
    def is_compileable(self) -> bool:
        """No, so that masks stay as the caller gave them."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions read so far, padding included; nothing of them is kept but the state."""
        return self._positions

    def reset(self) -> None:
        super().reset()
        self._positions, self._previous = 0, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(cast("torch.LongTensor", beam_idx))
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self._previous is not None:
            self._previous = self._previous.repeat_interleave(repeats, dim=1)

    def _select(self, lanes: Tensor) -> None:
        if self._previous is not None:
            self._previous = self._previous[:, lanes.to(self._previous.device)]

    def read(self) -> State | None:
        """The state as `ContextLM` takes it: context [L, B, C], tail [L, B, 3, C]."""
        if not self.has_previous_state():
            return None
        layers = cast("list[LinearAttentionLayer]", self.layers)
        contexts = [cast(Tensor, layer.recurrent_states[0]) for layer in layers]
        writes = [cast(Tensor, layer.conv_states[0]) for layer in layers]
        newest_first = torch.stack(writes).flip(-1).transpose(2, 3)
        state = {"context": torch.stack(contexts), "tail": newest_first}
        return state if self._previous is None else {**state, "previous": self._previous}

    def write(self, state: State, positions: int) -> None:
        """Take in a state, and how many positions were read since the last one."""
        oldest_first = state["tail"].detach().transpose(2, 3).flip(-1)
        for layer, context in enumerate(state["context"].detach()):
            self.update_conv_state(oldest_first[layer], layer)
            self.update_recurrent_state(context, layer)
        self._previous = state.get("previous")
        self._positions += positions


def projection(inputs: int, outputs: int, zero: bool = False) -> nn.Linear:
    """A matrix at birth: it keeps unit variance, or (`zero`) adds nothing yet."""
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=0.0 if zero else inputs**-0.5)
    return linear


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al. 2021, "Primer", arXiv:2109.08668); any shape."""
    return F.relu(x).square()


class FeedForward(nn.Module):
    """W_down relu(W_up x)^2; zero at birth."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(embed_dim))
        self.up_proj = projection(embed_dim, hidden_dim)
        self.down_proj = projection(hidden_dim, embed_dim, zero=True)

    def forward(self, normed: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.down_proj(squared_relu(self.up_proj(normed)))


class Block(nn.Module):
    """One layer: something that mixes tokens, then (with `hidden_dim`) a feed-forward.

    ::

        x = x + mix(norm(x))
        x = x + W_down relu(W_up norm(x))^2

    What is added is dropped out in training, and starts at zero: a new block is the identity.
    """

    def __init__(self, embed_dim: int, hidden_dim: int | None) -> None:
        super().__init__()
        self.mixer_norm = nn.Parameter(torch.ones(embed_dim))
        self.feed_forward = None if hidden_dim is None else FeedForward(embed_dim, hidden_dim)

    def mix(
        self, normed: Tensor, carried: list[Tensor], places: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """What is added to the stream, [B, T, D], and what is carried on.

        Args:
            normed: the stream's norm, [B, T, D].
            carried: this layer's parts of the state, lanes first.
            places: where documents start and lanes end, as the model's `_read` made it.
        """
        raise NotImplementedError


EMBEDDING_STD = 0.02
"""Small at birth: the head is tied, and a large embedding would first predict its own token."""

_32_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class Noise:
    """The noise of one optimizer step."""

    seed: int
    step: int
    first_lane: int = 0
    """Lane of the whole batch that is lane 0 of this micro-batch."""

    @classmethod
    def drawn(cls) -> Noise:
        """Noise nobody asked to be reproducible, from torch's generator."""
        return cls(int(torch.randint(2**31, ())), 0)

    def keys(self, site: int) -> tuple[int, int]:
        """Two 32-bit keys of a place in the model (splitmix64 of seed, step and place)."""
        word = 0
        for part in (self.seed, self.step, site):
            word = (word ^ part) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
            word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
            word = (word ^ word >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
            word ^= word >> 31
        return word & _32_BITS, word >> 32


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Type of the matrix products with a weight: autocast's where it is on."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


EPSILON = 1e-5
"""Added to the variance by every norm."""


def threshold(share: float) -> int:
    """Bytes below this are dropped: the share, rounded to the nearest 1/256."""
    return round(share * 256)


def random_bytes(
    noise: Noise, site: int, shape: tuple[int, int, int], device: torch.device
) -> Tensor:
    """Noise of every element of a [B, T, D] tensor: int64 in 0..255."""
    lanes, time, width = shape
    key, second_key = noise.keys(site)
    first = noise.first_lane * time * width
    x = torch.arange(first, first + lanes * time * width, device=device)
    x = x + key & _32_BITS
    x = (x ^ x >> 16) * 0x7FEB352D & _32_BITS
    x = (x ^ x >> 15) + second_key & _32_BITS
    x = (x ^ x >> 13) * 0x846CA68B & _32_BITS
    return (x >> 24).view(shape)


def keep_scale(share: float) -> float:
    """What the kept elements are multiplied by."""
    return 256 / (256 - threshold(share))


def dropout(x: Tensor, share: float, noise: Noise | None, site: int) -> Tensor:
    """Zero a share of the elements and scale up the rest (Srivastava et al. 2014).

    Args:
        x: [B, T, D].
        share: of the elements that are zeroed, rounded to the nearest 1/256.
        noise: of this step, or None for no dropout.
        site: number of the place in the model.
    """
    if noise is None or threshold(share) == 0:
        return x
    kept = random_bytes(noise, site, (x.shape[0], x.shape[1], x.shape[2]), x.device)
    return x * ((kept >= threshold(share)) * keep_scale(share)).to(x.dtype)


def add_norm(
    stream: Tensor | None,
    branch: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    share: float = 0.0,
    noise: Noise | None = None,
    site: int = 0,
) -> tuple[Tensor, Tensor]:
    """Add a branch, with dropout, to the residual stream, and normalise the sum.

    Args:
        stream: [B, T, D] fp32, or None for zeros.
        branch: what a layer adds, [B, T, D].
        weight: of the layer norm, [D].
        dtype: type of the normalised output, that of the matrix product it enters.
        share: share of the branch's elements that dropout zeroes.
        noise: of this step, or None for no dropout.
        site: number of the place in the model, for the noise.

    Returns:
        the new stream, fp32, and its layer norm, `dtype`: [B, T, D] both.
    """
    branch = dropout(
        branch.to(torch.promote_types(branch.dtype, torch.float32)), share, noise, site
    )
    stream = branch if stream is None else stream + branch
    return stream, F.layer_norm(stream, weight.shape, weight, eps=EPSILON).to(dtype)


class ResidualLM(nn.Module):
    """Language model with a stack of blocks and a tied head."""

    FIRST_REPLACES: ClassVar[bool] = False
    """Whether the first block's output replaces the embedding in the stream, instead of adding."""

    def __init__(
        self,
        settings: ModelSettings,
        vocab_size: int,
        blocks: Sequence[Block],
        carried: Mapping[str, tuple[int, ...]],
    ) -> None:
        """Around finished blocks.

        Args:
            settings: shape of the model.
            vocab_size: V.
            blocks: L of them.
            carried: what every layer carries for a lane: name -> shape.
        """
        super().__init__()
        self.settings, self.vocab_size = settings, vocab_size
        self.dropout = settings.dropout
        """Share of every branch that is dropped in training mode; may change from step to step."""
        self.embedding = nn.Embedding(vocab_size, settings.embed_dim)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.embedding_norm = nn.Parameter(torch.ones(settings.embed_dim))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.Parameter(torch.ones(settings.embed_dim))
        self._carried = carried

    def initial_state(self, batch_size: int) -> State:
        """State before the first token: fp32 zeros, a tensor [L, B, ...] of each name."""
        lanes = self.settings.num_layers, batch_size
        zeros = self.embedding.weight.new_zeros
        return {
            name: zeros(*lanes, *shape, dtype=torch.float32)
            for name, shape in self._carried.items()
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
        hidden = self.embedding.weight.new_zeros(*ids.shape, self.settings.embed_dim)
        if ids.numel() == 0 or (valid is not None and not bool(valid.any())):
            return hidden, state
        if valid is None or bool(valid.all()):
            return self._read(ids, state, reset, None, noise)
        # Move each lane's real tokens to the front; what follows them is ignored.
        lengths = valid.sum(dim=1)
        order = torch.argsort(~valid, dim=1, stable=True)[:, : int(lengths.max())]
        reset = None if reset is None else reset.gather(1, order)
        read, last = self._read(ids.gather(1, order), state, reset, lengths, noise)
        place = order[:, :, None].expand_as(read)
        return hidden.to(read.dtype).scatter(1, place, read) * valid[:, :, None], last

    def _read(
        self,
        ids: Tensor,
        state: State,
        reset: Tensor | None,
        lengths: Tensor | None,
        noise: Noise | None,
    ) -> tuple[Tensor, State]:
        """The stack on tokens of which each lane's first `lengths` count."""
        return self._run(ids, state, (reset, lengths), noise)

    def _run(
        self, ids: Tensor, state: State, places: Any, noise: Noise | None
    ) -> tuple[Tensor, State]:
        """The residual stream through all blocks."""
        dtype = compute_dtype(self.embedding.weight)
        share = self.dropout if self.training else 0.0
        noise = (noise or Noise.drawn()) if share else None
        width = self.embedding_norm.shape
        x, site, parts = None, 0, []
        embedded = self._embed(ids, state, places).to(self.embedding_norm.dtype)
        branch = F.layer_norm(embedded, width, self.embedding_norm, eps=EPSILON)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x, normed = add_norm(x, branch, block.mixer_norm, dtype, share, noise, site)
            carried = [state[name][layer] for name in self._carried]
            branch, carried = block.mix(normed, carried, places)
            parts.append(carried)
            site += 1
            if layer == 0 and self.FIRST_REPLACES:
                x = None
            if block.feed_forward is not None:
                weight = block.feed_forward.norm
                x, normed = add_norm(x, branch, weight, dtype, share, noise, site)
                branch = block.feed_forward(normed)
                site += 1
        _, hidden = add_norm(x, branch, self.norm, dtype, share, noise, site)
        stacked = (torch.stack(layers) for layers in zip(*parts, strict=True))
        return hidden, dict(zip(self._carried, stacked, strict=True))

    def _embed(self, ids: Tensor, state: State, places: Any) -> Tensor:
        """What enters the stream, before its norm: [B, T, D]."""
        return self.embedding(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every next token, [..., D] -> [..., V]; the matrix is the embedding's."""
        return F.linear(hidden, self.embedding.weight)


OPEN_GATE = 1.27846
"""Bias of the read-out gates at birth: silu of it is 1."""

GROUP = 64
"""Channels that share one norm of the context: growing adds groups, the old keep theirs."""


def group_size(channels: int) -> int:
    """Channels that are normalised together."""
    return math.gcd(GROUP, channels)


SHORTEST_MEMORY, LONGEST_MEMORY = 1.5, 256.0
"""Time scales (tokens) over which the forget gates are spread at birth."""


def _spread_forget_bias(context_dim: int) -> Tensor:
    """Gate biases whose memories 1 / (1 - f) are spread evenly in log time, each group alike."""
    group = group_size(context_dim)
    steps = torch.linspace(math.log(SHORTEST_MEMORY), math.log(LONGEST_MEMORY), group)
    return torch.log(steps.exp() - 1).repeat(context_dim // group)


CONV_TAPS = 4
"""Width of the short convolution: the current token and the three before it."""


def context_read(
    projected: Tensor,
    forget_bias: Tensor,
    read_bias: Tensor,
    conv_weight: Tensor,
    read_scale: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
    context: Tensor,
    tail: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Update the context vector with every token, and read it out.

    For every time step t, with the old context and the earlier writes zeroed where a document
    starts (`reset`), and u, f, g the three parts of `projected`::

        v_t = sum_k conv_weight[k] * u_{t-k}          k = 0..3
        c_t = s * c_{t-1} + (1 - s) * v_t             s = sigmoid(f_t + forget_bias)
        y_t = groupnorm(c_t) * read_scale * silu(g_t + read_bias)

    The gated linear recurrence is that of QRNN (Bradbury et al. 2017, arXiv:1611.01576) and HGRN
    (Qin et al. 2023, arXiv:2311.04823); the short convolution before it follows H3 and Mamba
    (arXiv:2212.14052, arXiv:2312.00752); the normalised, gated read-out RetNet (arXiv:2307.08621).

    Args:
        projected: what to write, forget gate before the sigmoid, read-out gate, [B, T, 3 C].
        forget_bias: [C].
        read_bias: [C].
        conv_weight: one filter a channel, [4, C]; row k weighs the write of k tokens ago.
        read_scale: [C].
        reset: True where a new document starts, [B, T], or None for nowhere.
        lengths: only the first so many tokens of each lane are read, [B], or None for all. The
            rest is zero in `y` and leaves the state as it is.
        context: context vector before the first token, [B, C].
        tail: the three writes before the first token, newest first, [B, 3, C].

    Returns:
        y [B, T, C] in the type of `projected`; the last context [B, C] and tail [B, 3, C] in fp32
        (float64 if `projected` is).
    """
    dtype = torch.promote_types(projected.dtype, torch.float32)
    write, forget, gate = projected.to(dtype).chunk(3, dim=-1)  # [B, T, C] each
    forget = torch.sigmoid(forget + forget_bias)
    context, tail = context.to(dtype), tail.to(dtype)
    contexts = []
    for t in range(write.shape[1]):
        old_context, old_tail = context, tail
        if reset is not None:
            keep = ~reset[:, t, None]  # [B, 1]
            context, tail = context * keep, tail * keep[:, :, None]
        window = torch.cat([write[:, t : t + 1], tail], dim=1)  # [B, 4, C]
        value = (window * conv_weight).sum(dim=1)
        context = forget[:, t] * context + (1 - forget[:, t]) * value
        tail = window[:, : CONV_TAPS - 1]
        if lengths is not None:
            read = (t < lengths)[:, None]  # [B, 1]
            context = torch.where(read, context, old_context)
            tail = torch.where(read[:, :, None], tail, old_tail)
        contexts.append(context)
    if not contexts:
        return projected[:, :, : context.shape[1]], context, tail
    group = group_size(context.shape[1])
    normed = F.layer_norm(
        torch.stack(contexts, 1).unflatten(-1, (-1, group)), (group,), eps=EPSILON
    )
    y = normed.flatten(-2) * read_scale * F.silu(gate + read_bias)
    if lengths is not None:
        y = y * (torch.arange(y.shape[1], device=y.device) < lengths[:, None])[:, :, None]
    return y.to(projected.dtype), context, tail


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


PAIR_DIM = 16
"""Numbers in a row of the table; one matrix widens them to the stream."""

PREVIOUS_FACTOR, TOKEN_FACTOR, HASH_SHIFT = 0x9E3779B1, 0x85EBCA77, 15


class PairTable(nn.Module):
    """W_pair table[hash(previous, token)]; zero at birth."""

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

    def forward(self, ids: Tensor, previous: Tensor) -> Tensor:
        """[B, T, D] of tokens [B, T] after `previous`, [B, T]: one more than their ids, 0 for none.

        Nothing is added where there is no previous token.
        """
        mixed = previous * PREVIOUS_FACTOR + ids * TOKEN_FACTOR
        rows = F.embedding((mixed >> HASH_SHIFT) % len(self.table), self.table)
        return (rows * (previous > 0)[:, :, None]) @ self.widen


def previous_tokens(ids: Tensor, before: Tensor, reset: Tensor | None) -> Tensor:
    """The token before each one, as one more than its id; 0 at the start of a document.

    Args:
        ids: [B, T].
        before: that of the first one, [B].
        reset: True where a document starts, [B, T], or None for nowhere.
    """
    previous = torch.cat([before[:, None], ids[:, :-1] + 1], dim=1)
    return previous if reset is None else previous.masked_fill(reset, 0)


def last_tokens(ids: Tensor, before: Tensor, lengths: Tensor | None) -> Tensor:
    """What `before` is to the next call, [B]; lanes of which no token is read keep theirs."""
    if lengths is None:
        return ids[:, -1] + 1
    last = ids.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0] + 1
    return torch.where(lengths > 0, last, before)


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


class NewLLMBackbone(ContextLM):
    """The stack without its head, called as transformers calls one."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: ContextCache | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Read tokens; arguments as in :meth:`NewLLMForCausalLM.forward`."""
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("New-LLM reads input_ids; inputs_embeds are not supported")
        time = input_ids.shape[1]
        valid = None
        if attention_mask is not None:
            if attention_mask.dim() != 2 or attention_mask.shape[1] < time:
                raise ValueError(
                    f"attention_mask {list(attention_mask.shape)}: expected one number for each "
                    f"token read, [batch, {time} or more]"
                )
            valid = attention_mask[:, attention_mask.shape[1] - time :].bool()
        cache = past_key_values
        if cache is not None and not isinstance(cache, ContextCache):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}, which has no place for a context; "
                "pass the cache that the model returned, or none"
            )
        reset = None if position_ids is None else (position_ids == 0).expand_as(input_ids)
        state = None if cache is None else cache.read()
        hidden, state = super().forward(input_ids, state, reset, valid)
        if use_cache and cache is None:
            cache = ContextCache(self.settings.num_layers)
        if cache is not None:
            cache.write(state, time)
        return BaseModelOutputWithPast(
            last_hidden_state=cast(torch.FloatTensor, hidden), past_key_values=cache
        )


class NewLLMForCausalLM(PreTrainedModel, GenerationMixin):
    """A stack of context blocks for `generate`, pipelines and trainers."""

    config_class = NewLLMConfig
    base_model_prefix = "model"
    _no_split_modules = ["ContextBlock"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}  # noqa: RUF012
    # Loaded in 16 bits, only the matrices are; norms and recurrence stay exact.
    _keep_in_fp32_modules_strict = {  # noqa: RUF012
        "norm", "embedding_norm", "mixer_norm", "forget_bias", "read_bias", "conv_weight",
        "read_scale",
    }  # fmt: skip
    _is_stateful = True  # the state cannot be taken back: assisted decoding is refused

    def __init__(self, config: NewLLMConfig) -> None:
        super().__init__(config)
        self.model = NewLLMBackbone(cast("ModelSettings", config), config.vocab_size)
        self.lm_head = nn.Linear(config.embed_dim, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the blocks initialise themselves when they are made."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the backbone makes the cache

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding = cast(nn.Embedding, value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: ContextCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Read tokens.

        Args:
            input_ids: [B, T].
            attention_mask: 0 at padding (on either side), [B, T] or, with a cache, [B, longer],
                of which the last T columns count.
            past_key_values: cache that an earlier call returned; it goes on in place.
            labels: the `input_ids` themselves, -100 where they are not to be learnt, [B, T].
            use_cache: return a cache; by default in evaluation mode without labels.
            logits_to_keep: only those of the last so many positions; 0 for all.
            return_dict: False for a tuple.
            kwargs: `position_ids` [B, T]: a document starts where they are 0 (rows that several
                documents share); the rest goes to the loss.

        Raises:
            ValueError: no `input_ids`, another kind of mask or cache.
        """
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        of_backbone = {name: kwargs.pop(name, None) for name in ("position_ids", "inputs_embeds")}
        read = self.model(
            input_ids, attention_mask, past_key_values, use_cache=use_cache, **of_backbone
        )
        logits = self.lm_head(read.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            size = self.config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=size, **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=read.past_key_values
        )
        return output if return_dict in (None, True) else output.to_tuple()
