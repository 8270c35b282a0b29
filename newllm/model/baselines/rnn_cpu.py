"""The cells of GRU and LSTM on a CPU: everything of a time step but its matrix product in one pass.

The recurrent product has to be inside the loop over time; the product with the input, and the
gradients of the weights, are outside. What a cell carries from step to step is fp32, also where
the products are in bfloat16. Equal to torch's GRU and LSTM in outputs and gradients (tested).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import torch
from torch import Tensor

from newllm.model.baselines.segments import Segments
from newllm.model.kernels.numerics import (
    ONE,
    as_array,
    from_fp32,
    inlined,
    kernel,
    sigmoid,
    to_fp32,
    use_torch_threads,
)


@inlined
def _tanh(x):
    return sigmoid(x + x) - sigmoid(-x - x)


# The gates of a cell are four parts of a row: those that see the input come first, those that see
# the hidden state last. LSTM: input, forget, new, output, all see both. GRU: new, reset, keep, and
# the hidden state's part of new, which the reset gate multiplies.
#
# The rows of a step are one per sequence still running, the longest sequences first, so that row i
# is the same sequence at every step. `memory` is what the cell carries beside its output: the cell
# of an LSTM; for a GRU, the output in fp32.


@kernel
def _gru_forward(gates, recurrent, bias, memory, kept, out, start, rows):
    size = memory.shape[1]
    for row in numba.prange(rows):
        gate, after = gates[start + row], recurrent[row]
        h = memory[row]
        for i in range(size):
            r = sigmoid(to_fp32(gate[size + i]) + to_fp32(after[i]) + bias[size + i])
            z = sigmoid(to_fp32(gate[2 * size + i]) + to_fp32(after[size + i]) + bias[2 * size + i])
            seen = to_fp32(after[2 * size + i]) + bias[3 * size + i]
            n = _tanh(to_fp32(gate[i]) + bias[i] + r * seen)
            h[i] = n + z * (h[i] - n)
            gate[i], gate[size + i] = from_fp32(n, gates), from_fp32(r, gates)
            gate[2 * size + i], gate[3 * size + i] = from_fp32(z, gates), from_fp32(seen, gates)
            kept[start + row, i] = h[i]
            out[start + row, i] = from_fp32(h[i], out)


@kernel
def _gru_backward(
    gates, d_gates, carry, later, d_out, before, before_start, start, rows,
):  # fmt: skip
    """Gradients of one step's gates; turns `carry` into the gradient of the memory before it."""
    size = carry.shape[1]
    for row in numba.prange(rows):
        gate, d_gate = gates[start + row], d_gates[start + row]
        old, d_memory = before[before_start + row], carry[row]
        for i in range(size):
            n, r = to_fp32(gate[i]), to_fp32(gate[size + i])
            z, seen = to_fp32(gate[2 * size + i]), to_fp32(gate[3 * size + i])
            d = d_memory[i] + to_fp32(later[row, i]) + to_fp32(d_out[start + row, i])
            dn = d * (ONE - z) * (ONE - n * n)
            d_gate[i], d_gate[3 * size + i] = from_fp32(dn, d_gates), from_fp32(dn * r, d_gates)
            d_gate[size + i] = from_fp32(dn * seen * r * (ONE - r), d_gates)
            d_gate[2 * size + i] = from_fp32(d * (old[i] - n) * z * (ONE - z), d_gates)
            d_memory[i] = d * z


@kernel
def _lstm_forward(gates, recurrent, bias, memory, kept, out, start, rows):
    size = memory.shape[1]
    for row in numba.prange(rows):
        gate, after = gates[start + row], recurrent[row]
        c = memory[row]
        for i in range(size):
            j, k, m = size + i, 2 * size + i, 3 * size + i
            write = sigmoid(to_fp32(gate[i]) + to_fp32(after[i]) + bias[i])
            keep = sigmoid(to_fp32(gate[j]) + to_fp32(after[j]) + bias[j])
            new = _tanh(to_fp32(gate[k]) + to_fp32(after[k]) + bias[k])
            read = sigmoid(to_fp32(gate[m]) + to_fp32(after[m]) + bias[m])
            c[i] = keep * c[i] + write * new
            gate[i], gate[j] = from_fp32(write, gates), from_fp32(keep, gates)
            gate[k], gate[m] = from_fp32(new, gates), from_fp32(read, gates)
            kept[start + row, i] = c[i]
            out[start + row, i] = from_fp32(read * _tanh(c[i]), out)


@kernel
def _lstm_backward(
    gates, d_gates, carry, later, d_out, before, before_start, start, rows,
):  # fmt: skip
    """As `_gru_backward`."""
    size = carry.shape[1]
    for row in numba.prange(rows):
        gate, d_gate = gates[start + row], d_gates[start + row]
        old, d_memory = before[before_start + row], carry[row]
        for i in range(size):
            j, k, m = size + i, 2 * size + i, 3 * size + i
            write, keep = to_fp32(gate[i]), to_fp32(gate[j])
            new, read = to_fp32(gate[k]), to_fp32(gate[m])
            shown = _tanh(keep * old[i] + write * new)
            d = to_fp32(later[row, i]) + to_fp32(d_out[start + row, i])
            dc = d_memory[i] + d * read * (ONE - shown * shown)
            d_gate[i] = from_fp32(dc * new * write * (ONE - write), d_gates)
            d_gate[j] = from_fp32(dc * old[i] * keep * (ONE - keep), d_gates)
            d_gate[k] = from_fp32(dc * write * (ONE - new * new), d_gates)
            d_gate[m] = from_fp32(d * shown * read * (ONE - read), d_gates)
            d_memory[i] = dc * keep


class _Cell(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_x: Tensor,
        weight_h: Tensor,
        bias: Tensor,
        hidden: Tensor,
        memory: Tensor,
        segments: Segments,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        size, seen = weight_h.shape[1], weight_h.shape[0]
        weight_x, weight_h = weight_x.to(dtype), weight_h.to(dtype)
        rows = x.to(dtype)[segments.token]
        gates = rows.new_empty(len(rows), 4 * size)
        torch.mm(rows, weight_x.t(), out=gates[:, :seen])
        recurrent = rows.new_empty(len(hidden), seen)
        kept, out = torch.empty(len(rows), size), rows.new_empty(len(rows), size)
        hidden, last_memory = hidden.to(dtype), memory.clone()
        buffers = (gates, recurrent, bias, last_memory, kept, out)
        arrays = [as_array(buffer) for buffer in buffers]
        step_kernel: Callable[..., None] = _KERNELS[seen // size][0]
        use_torch_threads()
        start, old = 0, hidden
        for count in segments.counts:
            torch.mm(old[:count], weight_h.t(), out=recurrent[:count])
            step_kernel(*arrays, start, count)
            old = out[start:]
            start += count
        ctx.save_for_backward(rows, weight_x, weight_h, gates, kept, out, hidden, memory)
        ctx.segments, ctx.shape, ctx.x_dtype = segments, x.shape, x.dtype
        y = rows.new_zeros(len(x), size).index_copy_(0, segments.token, out)
        return y, out[segments.last].float(), last_memory

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_x, weight_h, gates, kept, out, hidden, memory = ctx.saved_tensors
        segments: Segments = ctx.segments
        d_y, d_last_hidden, d_last_memory = grad_outputs
        size, seen = weight_h.shape[1], weight_h.shape[0]
        d_gates = torch.empty_like(gates)
        d_seen = d_gates[:, -seen:]
        carry, later = d_last_memory.clone(), d_last_hidden.to(x.dtype, copy=True)
        d_out = d_y[segments.token]
        buffers = (gates, d_gates, carry, later, d_out)
        arrays = [as_array(buffer) for buffer in buffers]
        kept_array, memory_array = as_array(kept), as_array(memory)
        step_kernel: Callable[..., None] = _KERNELS[seen // size][1]
        use_torch_threads()
        start = len(gates)
        for step in reversed(range(len(segments.counts))):
            count = segments.counts[step]
            start -= count
            if step:
                step_kernel(*arrays, kept_array, start - segments.counts[step - 1], start, count)
            else:
                step_kernel(*arrays, memory_array, 0, start, count)
            torch.mm(d_seen[start : start + count], weight_h, out=later[:count])
        d_shown = d_gates[:, :seen]
        d_weight_x = (d_shown.t() @ x).float()
        d_weight_h = (d_seen.t() @ torch.cat([hidden, out])[segments.previous]).float()
        d_x = torch.zeros(ctx.shape, dtype=ctx.x_dtype)
        d_x[segments.token] = (d_shown @ weight_x).to(ctx.x_dtype)
        d_bias = d_gates.sum(dim=0).float()
        return d_x, d_weight_x, d_weight_h, d_bias, later.float(), carry, None, None


_KERNELS = {3: (_gru_forward, _gru_backward), 4: (_lstm_forward, _lstm_backward)}
"""By the number of gates that see the hidden state."""


def gated_cell(
    x: Tensor,
    weight_x: Tensor,
    weight_h: Tensor,
    bias: Tensor,
    hidden: Tensor,
    memory: Tensor,
    segments: Segments,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run S sequences through a GRU's cell or an LSTM's.

    Args:
        x: inputs of all sequences, [B T, D].
        weight_x: [3 C, D] (new, reset, keep) makes a GRU, [4 C, D] (input, forget, new, output) an
            LSTM.
        weight_h: [3 C, C] (reset, keep, new) or [4 C, C].
        bias: of the four parts, [4 C].
        hidden: output before the first token, [S, C] fp32.
        memory: the same for a GRU, the cell for an LSTM, [S, C] fp32.
        segments: where each sequence's tokens are.
        dtype: of the matrix products.

    Returns:
        outputs [B T, C] in `dtype`, zero where no sequence is; the last output of each sequence
        [S, C] and its last memory [S, C], fp32 (a GRU's memory is its output, unrounded).
    """
    return _Cell.apply(x, weight_x, weight_h, bias, hidden, memory, segments, dtype)
