"""One token at a time: the whole stack of `ContextLM` in one call, for one or many texts.

`Slots` are what such steps have in common, wherever they are computed
(`newllm/inference/graphed.py`: on a GPU).

The module (`ContextLM.forward`) reads prompts; this writes. Both have the same state, and one may
go on where the other stopped.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from newllm.model.context import CONV_TAPS, group_size
from newllm.model.context.lm import PAIR_DIM, ContextBlock, ContextLM
from newllm.model.counts.layer import CountsLayer
from newllm.model.kernels import active_kernel
from newllm.model.quantize import RoundedLM, WeightFormat, int8_rows
from newllm.model.recall.layer import RecallLayer
from newllm.model.recall.reference import LONGEST, ORDERS, WAYS, longest_match
from newllm.model.residual import ResidualLM, State

_Kind = TypeVar("_Kind", bound="Slots")


def can_step(model: nn.Module) -> TypeGuard[ContextLM]:
    """Whether :class:`ContextSlots` computes what the module would: `ContextLM` on a CPU, fp32."""
    if not isinstance(model, ContextLM) or model.embedding.weight.dtype != torch.float32:
        return False
    if any(type(block) is not ContextBlock for block in model.blocks):
        return False
    drops = model.training and model.dropout > 0
    return not drops and active_kernel(model.embedding.weight.device) == "numba"


class Slots:
    """Texts that a model writes side by side, the state of each in a slot of its own.

    This class keeps what is made of tokens alone, and where recall looks; those derived from it
    take steps, and keep the rest. Memory is taken for the most slots there ever were.
    """

    def __init__(self, model: ResidualLM[Any], capacity: int) -> None:
        """Take memory for so many slots at first."""
        self._settings, self._vocab_size = model.settings, model.vocab_size
        self._names = tuple(model.initial_state(0))
        self._clear(capacity)

    def empty_copy(self: _Kind, capacity: int = 1) -> _Kind:
        """Slots of their own for the same weights, which are shared."""
        other = copy.copy(self)
        other._clear(capacity)
        return other

    def _clear(self, capacity: int) -> None:
        self._free: list[int] = []
        self._open: set[int] = set()
        self._arrays = self._zeros(0)
        self._answering, self._found = np.zeros(0, bool), np.zeros(0, np.int64)
        self._grow(capacity)

    def add(self, state: State | None = None) -> int:
        """Open a slot and return its number.

        Args:
            state: of one text, copied (as the model's `initial_state` says); None for the start of
                a text.
        """
        if not self._free:
            self._grow(max(1, 2 * len(self._answering)))
        slot = self._free.pop()
        self._open.add(slot)
        self.set_state(slot, state)
        return slot

    def remove(self, slot: int) -> None:
        """Close a slot; its number may be given to another."""
        self._open.remove(slot)
        self._free.append(slot)

    def state(self, slot: int) -> State:
        """A copy of a slot's state, as the module takes and returns it."""
        self._check([slot])
        own, kept = slice(slot, slot + 1), [name for name in self._names if name in self._arrays]
        return {name: torch.from_numpy(self._arrays[name][:, own].copy()) for name in kept}

    def set_state(self, slot: int, state: State | None) -> None:
        """Go on from another state (None: from the start of a text), which is copied."""
        self._check([slot])
        self._answering[slot], self._found[slot] = False, -1
        for name, part in self._arrays.items():
            if name in self._names:
                part[:, slot] = 0 if state is None else state[name][:, 0].numpy(force=True)

    def set_answering(self, slot: int, answering: bool) -> None:
        """Whether what a slot reads from here on is its own answer, which recall does not copy."""
        self._check([slot])
        self._answering[slot], self._found[slot] = answering, -1
        if answering:
            self._arrays["looked_up"][:, slot] = self._arrays["recall"][:, slot]

    def match(self, slot: int) -> int:
        """What recall found behind a slot's last tokens: as `recall` says it."""
        self._check([slot])
        if self._found[slot] < 0:  # read by the module
            tables = self._arrays["looked_up" if self._answering[slot] else "recall"]
            self._found[slot] = longest_match(tables[:, slot], self._arrays["recent"][:, slot])
        return int(self._found[slot])

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """Read one token in each of these slots (a selection, in any order).

        Returns:
            scores of every next token, fp32 [len(slots), V], overwritten by the next step.
        """
        raise NotImplementedError

    def _check(self, slots: Sequence[int], tokens: Sequence[int] | None = None) -> None:
        if not self._open.issuperset(slots) or len(set(slots)) < len(slots):
            raise IndexError(f"slots {list(slots)}: not open, or one of them twice")
        if tokens is not None and len(tokens) != len(slots):
            raise ValueError(f"{len(tokens)} tokens for {len(slots)} slots")
        for token in tokens or ():
            if not 0 <= token < self._vocab_size:
                raise IndexError(f"token {token} is not in 0..{self._vocab_size - 1}")

    def _zeros(self, capacity: int) -> dict[str, np.ndarray]:
        """Parts of states, laid out as the module's, whether this model has them or not; and the
        tables that slots look up while they answer."""
        tables = len(ORDERS), capacity, self._settings.recall_slots // WAYS, WAYS
        return {
            "recall": np.zeros(tables, np.int32),
            "recent": np.zeros((LONGEST, capacity), np.int32),
            "looked_up": np.zeros(tables, np.int32),
        }

    def _grow(self, capacity: int) -> None:
        before, old = len(self._answering), self._arrays
        self._arrays = self._zeros(capacity)
        for name, part in self._arrays.items():
            part[:, :before] = old[name]
        self._answering = np.append(self._answering, np.zeros(capacity - before, bool))
        self._found = np.append(self._found, np.full(capacity - before, -1))
        self._free += range(capacity - 1, before - 1, -1)


class ContextSlots(Slots):
    """Slots of which a numba kernel takes the steps, on the CPU.

    A slot's numbers do not depend, to the bit, on which other slots take a step with it. A step
    allocates nothing.
    """

    def __init__(self, model: ContextLM, capacity: int = 1) -> None:
        """Pack the model's weights as they are now, and take memory for so many slots at first."""
        assert can_step(model)
        self._weights = _pack(model)
        self._kernel = kernel_module().step_kernel(group_size(model.settings.context_dim))
        super().__init__(model, capacity)

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        self._check(slots, tokens)
        count = len(slots)
        all_tokens, all_slots, *_, all_logits = self._buffers
        chosen = self._views.get(count)
        if chosen is None:
            chosen = (all_tokens[:count], all_slots[:count], all_logits[:count, : self._vocab_size])
            self._views[count] = chosen
        chosen[0][:], chosen[1][:] = tokens, slots
        self._kernel(
            chosen[0], chosen[1], *self._weights,
            *self._arrays.values(), self._answering, self._found, *self._buffers[2:],
        )  # fmt: skip
        return chosen[2]

    def _zeros(self, capacity: int) -> dict[str, np.ndarray]:
        layers, channels = self._settings.num_layers, self._settings.context_dim
        return {
            "context": np.zeros((layers, capacity, channels), np.float32),
            "tail": np.zeros((layers, capacity, CONV_TAPS - 1, channels), np.float32),
            "previous": np.zeros((1, capacity), np.int64),
            **super()._zeros(capacity),
        }

    def _grow(self, capacity: int) -> None:
        super()._grow(capacity)
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
    """A model's weights as the kernel reads them: a copy, but for the embedding and the table."""

    embedding: np.ndarray  # [V, D], the model's own memory
    table: np.ndarray  # [P, 16], likewise: of pairs, without rows where there is none
    widen: np.ndarray  # [16, D]
    project: np.ndarray  # [D, D], transposed: the parts of `RecallLayer`
    order: np.ndarray  # [K, D]
    times: np.ndarray  # [16, D]
    gate: np.ndarray  # [K, D]
    bias: np.ndarray  # [K, 16]
    trust_gate: np.ndarray  # [K, D]: the parts of `CountsLayer`
    trust_bias: np.ndarray  # [K, 16]
    matrices: np.ndarray  # all matrices in the order of use, in panels; the dtype tells the format
    scales: np.ndarray  # one factor for each row of all matrices
    norms: np.ndarray  # [1 + 2 L + 1, D]: the embedding's, two a layer, the last one
    channels: np.ndarray  # [L, 7, C]: four filter taps, forget and read-out bias, read-out scale
    tables: np.ndarray  # the table of counts, as `CountTable` has it; without contexts for none
    starts: np.ndarray
    checks: np.ndarray
    rest: np.ndarray
    confidence: np.ndarray
    first: np.ndarray
    followers: np.ndarray
    log_probability: np.ndarray


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
    pairs, widen = torch.zeros(0, PAIR_DIM), torch.zeros(PAIR_DIM, model.settings.embed_dim)
    if model.pairs is not None:
        pairs, widen = model.pairs.table.detach(), model.pairs.widen.detach()
    recall = model.recall or RecallLayer(model.settings.embed_dim)
    learnt = recall.order, recall.times, recall.gate, recall.bias
    order, times, gate, bias = (parameter.detach().numpy() for parameter in learnt)
    counts = model.counts or CountsLayer(model.settings.embed_dim, model.vocab_size)
    table = counts.table
    return _Packed(
        model.embedding.weight.detach().numpy(),
        pairs.numpy(),
        widen.numpy(),
        recall.project.detach().t().contiguous().numpy(),
        order,
        times,
        gate,
        bias,
        counts.gate.detach().numpy(),
        counts.bias.detach().numpy(),
        torch.from_numpy(np.concatenate(words)).clone().numpy().view(dtype),  # a clone is aligned
        np.concatenate(scales),
        torch.stack([model.embedding_norm, *norms, model.norm]).numpy(),
        torch.stack([torch.stack(rows) for rows in channels]).numpy(),
        table.index,
        table.starts,
        table.checks,
        table.rest,
        table.confidence,
        table.first,
        table.tokens,
        np.log(table.probability),
    )


def _panels(matrix: Tensor, weights: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [R, C] as the kernel reads it, both sides padded with zeros.

    Returns:
        32-bit words [panels * inputs * words of an input], the scale of each row [R padded].
    """
    kernel = kernel_module()
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
    for part in range(per_word):
        words |= parts[:, :, part] << np.uint32(32 - (part + 1) * 32 // per_word)
    return words.transpose(0, 3, 1, 2).reshape(-1).view(np.int32), scales


def _padded(width: int) -> int:
    """The width up to a whole number of panels."""
    panel = kernel_module().PANEL
    return -(-width // panel) * panel


@cache
def kernel_module() -> Any:
    """Imported late: numba takes half a second."""
    from newllm.model.context import decode_cpu as cpu_step

    return cpu_step
