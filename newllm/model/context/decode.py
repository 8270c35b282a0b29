"""One token at a time: the whole stack of `ContextLM` in one call, for one or many lanes.

The module (`ContextLM.forward`) reads prompts; this writes. Both have the same state, and one may
go on where the other stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeGuard
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from newllm.model.context import CONV_TAPS, group_size
from newllm.model.context.lm import BigramHashEmbedding, ContextBlock, ContextLM
from newllm.model.kernels import active_kernel
from newllm.model.quantize import RoundedLM, WeightFormat, int8_rows
from newllm.model.residual import State


def can_step(model: nn.Module) -> TypeGuard[ContextLM]:
    """Whether :class:`Lanes` computes what the module would: our architecture on a CPU, in fp32."""
    if not isinstance(model, ContextLM) or model.embedding.weight.dtype != torch.float32:
        return False
    if any(type(block) is not ContextBlock for block in model.blocks):
        return False
    drops = model.training and model.dropout > 0
    return not drops and active_kernel(model.embedding.weight.device) == "numba"


class Lanes:
    """Texts that a model writes side by side, each with its own state, in a lane of its own.

    A lane's numbers do not depend, to the bit, on which other lanes take a step with it. Memory is
    allocated for the most lanes there ever were, and for nothing else; a step allocates nothing.
    """

    def __init__(self, model: ContextLM, capacity: int = 1) -> None:
        """Take the model's weights as they are now, and memory for so many lanes at first."""
        assert can_step(model)
        self._settings, self._vocab_size = model.settings, model.vocab_size
        self._weights = _packed_weights(model)
        self._kernel = _kernel_module().step_kernel(group_size(model.settings.context_dim))
        self._free: list[int] = []
        self._open: set[int] = set()
        self._context, self._tail, self._previous = self._zeros(0)
        self._grow(capacity)

    def add(self, state: State | None = None) -> int:
        """Open a lane and return its number.

        Args:
            state: of one lane, copied ("context" [L, 1, C], "tail" [L, 1, 3, C], with a table of
                pairs "previous" [1, 1]); None for the start of a text.
        """
        if not self._free:
            self._grow(max(1, 2 * self._context.shape[1]))
        lane = self._free.pop()
        self._open.add(lane)
        self.set_state(lane, state)
        return lane

    def remove(self, lane: int) -> None:
        """Close a lane; its number may be given to another."""
        self._open.remove(lane)
        self._free.append(lane)

    def state(self, lane: int) -> State:
        """A copy of a lane's state, as the module takes and returns it."""
        self._check([lane])
        place = slice(lane, lane + 1)
        parts = {"context": self._context, "tail": self._tail}
        if self._settings.pair_rows:
            parts["previous"] = self._previous
        return {name: torch.from_numpy(part[:, place].copy()) for name, part in parts.items()}

    def set_state(self, lane: int, state: State | None) -> None:
        """Go on from another state (None: from the start of a text), which is copied."""
        self._check([lane])
        self._context[:, lane] = 0 if state is None else state["context"][:, 0].numpy(force=True)
        self._tail[:, lane] = 0 if state is None else state["tail"][:, 0].numpy(force=True)
        self._previous[:, lane] = 0
        if state is not None and self._settings.pair_rows:
            self._previous[:, lane] = state["previous"][:, 0].numpy(force=True)

    def step(self, lanes: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """Read one token in each of these lanes (a selection, in any order).

        Returns:
            scores of every next token, fp32 [len(lanes), V], overwritten by the next step.
        """
        self._check(lanes)
        count = len(lanes)
        if len(tokens) != count:
            raise ValueError(f"{len(tokens)} tokens for {count} lanes")
        for token in tokens:
            if not 0 <= token < self._vocab_size:
                raise IndexError(f"token {token} is not in 0..{self._vocab_size - 1}")
        all_tokens, all_lanes, *_, all_logits = self._buffers
        chosen = self._views.get(count)
        if chosen is None:
            chosen = (all_tokens[:count], all_lanes[:count], all_logits[:count, : self._vocab_size])
            self._views[count] = chosen
        chosen[0][:], chosen[1][:] = tokens, lanes
        self._kernel(
            chosen[0], chosen[1], *self._weights,
            self._context, self._tail, self._previous, *self._buffers[2:],
        )  # fmt: skip
        return chosen[2]

    def _check(self, lanes: Sequence[int]) -> None:
        if not self._open.issuperset(lanes) or len(set(lanes)) < len(lanes):
            raise IndexError(f"lanes {list(lanes)}: not open, or one of them twice")

    def _zeros(self, capacity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """States, laid out as the module's: [L, N, C], [L, N, 3, C] and [1, N]."""
        layers, channels = self._settings.num_layers, self._settings.context_dim
        context = np.zeros((layers, capacity, channels), np.float32)
        tail = np.zeros((layers, capacity, CONV_TAPS - 1, channels), np.float32)
        return context, tail, np.zeros((1, capacity), np.int64)

    def _grow(self, capacity: int) -> None:
        before = self._context.shape[1]
        old = self._context, self._tail, self._previous
        self._context, self._tail, self._previous = new = self._zeros(capacity)
        for part, kept in zip(new, old, strict=True):
            part[:, :before] = kept
        self._free += range(capacity - 1, before - 1, -1)
        shape = self._settings
        stream, hidden = _padded(shape.embed_dim), _padded(shape.hidden_dim)
        channels, entries = _padded(shape.context_dim), _padded(self._vocab_size)
        widths = (stream, stream, 3 * channels, channels, hidden, stream, entries)
        self._buffers = (
            *(np.zeros(capacity, np.int64) for _ in range(2)),
            *(torch.zeros(capacity, width).numpy() for width in widths),  # aligned to cache lines
        )
        self._views: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}


class _Packed(NamedTuple):
    """A model's weights as the kernel reads them."""

    embedding: np.ndarray  # [V, D], the model's own memory
    table: np.ndarray  # [P, 16], likewise: of pairs, without rows where there is none
    widen: np.ndarray  # [16, D]
    matrices: np.ndarray  # all matrices in the order of use, in panels; the dtype tells the format
    scales: np.ndarray  # one factor for each row of all matrices
    norms: np.ndarray  # [1 + 2 L + 1, D]: the embedding's, two a layer, the last one
    channels: np.ndarray  # [L, 7, C]: four filter taps, forget and read-out bias, read-out scale


_packed: WeakKeyDictionary[ContextLM, tuple[Any, _Packed]] = WeakKeyDictionary()


def _packed_weights(model: ContextLM) -> _Packed:
    """The model's weights, packed once for all lanes of a frozen model (no gradients).

    Those of a model in training are packed for every object: fused optimizers change them without
    a trace.
    """
    parameters = list(model.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        return _pack(model)
    version = [None if p.is_inference() else p._version for p in parameters]
    stored = _packed.get(model)
    if stored is None or stored[0] != version:
        stored = _packed[model] = (version, _pack(model))
    return stored[1]


@torch.no_grad()
def _pack(model: ContextLM) -> _Packed:
    weights: WeightFormat = model.weights if isinstance(model, RoundedLM) else "fp32"
    blocks = [block for block in model.blocks if isinstance(block, ContextBlock)]
    matrices: list[Tensor] = []
    for block in blocks:
        matrices += [*block.in_proj.weight.chunk(3), block.out_proj.weight]
        matrices += [block.feed_forward.up_proj.weight, block.feed_forward.down_proj.weight]
    matrices.append(model.embedding.weight)
    words, scales = zip(*(_panels(matrix, weights) for matrix in matrices), strict=True)
    dtype = {"fp32": np.float32, "bf16": np.uint16, "int8": np.int8}[weights]
    norms = [norm for block in blocks for norm in (block.mixer_norm, block.feed_forward.norm)]
    channels = [
        [*block.conv_weight, block.forget_bias, block.read_bias, block.read_scale]
        for block in blocks
    ]
    pairs = model.pairs
    if pairs is None:
        pairs = BigramHashEmbedding(0, model.settings.embed_dim, 0.0)
    return _Packed(
        model.embedding.weight.detach().numpy(),
        pairs.table.detach().numpy(),
        pairs.widen.detach().numpy(),
        torch.from_numpy(np.concatenate(words)).clone().numpy().view(dtype),  # a clone is aligned
        np.concatenate(scales),
        torch.stack([model.embedding_norm, *norms, model.norm]).numpy(),
        torch.stack([torch.stack(rows) for rows in channels]).numpy(),
    )


def _panels(matrix: Tensor, weights: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [R, C] as the kernel reads it, both sides padded with zeros.

    Returns:
        32-bit words [panels * inputs * words of an input], the scale of each row [R padded].
    """
    kernel = _kernel_module()
    rows, inner = matrix.shape
    scales = np.ones(_padded(rows), np.float32)
    if weights == "fp32":
        patterns = matrix.numpy().view(np.uint32)
    elif weights == "bf16":
        patterns = matrix.bfloat16().view(torch.int16).numpy().view(np.uint16)
    else:
        codes, row_scales = int8_rows(matrix)
        patterns = codes.numpy().view(np.uint8)
        scales[:rows] = row_scales.numpy() * kernel.INT8_UNIT
    per_word = 4 // patterns.itemsize
    full = np.zeros((_padded(rows), _padded(inner)), np.uint32)
    full[:rows, :inner] = patterns
    vectors = kernel.PANEL // kernel.WIDTH // per_word
    parts = full.reshape(-1, vectors, per_word, kernel.WIDTH, full.shape[1])
    words = np.zeros_like(parts[:, :, 0])
    for place in range(per_word):
        words |= parts[:, :, place] << np.uint32(32 - (place + 1) * 32 // per_word)
    return words.transpose(0, 3, 1, 2).reshape(-1).view(np.int32), scales


def _padded(width: int) -> int:
    """The width up to a whole number of panels."""
    panel = _kernel_module().PANEL
    return -(-width // panel) * panel


@cache
def _kernel_module() -> Any:
    """numba takes half a second to import: only those who write text pay for it."""
    from newllm.model.context import decode_cpu as cpu_step

    return cpu_step
