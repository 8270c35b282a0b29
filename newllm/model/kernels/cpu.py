"""On a CPU: the residual stream, one pass each for add + dropout + norm and for squared ReLU, and
the cross-entropy, whose logits become their gradient in two passes over a row in the cache.

Equal to `reference.py` in outputs and gradients (tested).
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from newllm.model.dropout import Noise, keep_scale, threshold
from newllm.model.kernels import reference
from newllm.model.kernels.numerics import (
    ONE,
    ZERO,
    as_array,
    exp,
    from_fp32,
    kernel,
    random_byte,
    to_fp32,
    use_torch_threads,
)
from newllm.model.kernels.reference import EPSILON

_EPSILON = np.float32(EPSILON)
_BLOCKS = 64
"""Blocks of rows whose gradients of the norm's weight are summed apart, in a fixed order."""


@kernel
def _add_norm_forward(
    stream, branch, weight, drop_below, scale, key, second_key, first, total, normed, moments
):
    rows, width = branch.shape
    size = np.float32(width)
    has_stream = stream.shape[0] == rows
    for row in numba.prange(rows):
        if drop_below > 0:
            counter = np.uint32(first + row * width)
            for i in range(width):
                byte = random_byte(np.uint32(counter + i), key, second_key)
                kept = scale if byte >= drop_below else ZERO
                total[row, i] = kept * to_fp32(branch[row, i])
        else:
            for i in range(width):
                total[row, i] = to_fp32(branch[row, i])
        if has_stream:
            for i in range(width):
                total[row, i] += stream[row, i]
        mean = ZERO
        for i in range(width):
            mean += total[row, i]
        mean /= size
        variance = ZERO
        for i in range(width):
            difference = total[row, i] - mean
            variance += difference * difference
        deviation = ONE / np.sqrt(variance / size + _EPSILON)
        for i in range(width):
            normed[row, i] = from_fp32((total[row, i] - mean) * deviation * weight[i], normed)
        moments[row, 0], moments[row, 1] = mean, deviation


@kernel
def _add_norm_backward(
    total, weight, moments, d_total, d_normed, drop_below, scale, key, second_key, first,
    d_stream, d_branch, d_weight,
):  # fmt: skip
    rows, width = total.shape
    size = np.float32(width)
    blocks = d_weight.shape[0]
    has_total = d_total.shape[0] == rows
    for block in numba.prange(blocks):
        d_weight[block] = ZERO
        for row in range(rows * block // blocks, rows * (block + 1) // blocks):
            mean, deviation = moments[row, 0], moments[row, 1]
            for i in range(width):
                d_weight[block, i] += to_fp32(d_normed[row, i]) * (total[row, i] - mean) * deviation
            for i in range(width):
                d_stream[row, i] = to_fp32(d_normed[row, i]) * weight[i]
            # Sums are loops that store nothing: one that does is compiled twice, for arrays that
            # overlap and not, and which one runs, and in which order it adds, is up to addresses.
            mean_d, mean_d_n = ZERO, ZERO
            for i in range(width):
                mean_d += d_stream[row, i]
                mean_d_n += d_stream[row, i] * (total[row, i] - mean) * deviation
            mean_d /= size
            mean_d_n /= size
            for i in range(width):
                n = (total[row, i] - mean) * deviation
                d_stream[row, i] = deviation * (d_stream[row, i] - mean_d - n * mean_d_n)
            if has_total:
                for i in range(width):
                    d_stream[row, i] += d_total[row, i]
            if drop_below > 0:
                counter = np.uint32(first + row * width)
                for i in range(width):
                    byte = random_byte(np.uint32(counter + i), key, second_key)
                    kept = scale if byte >= drop_below else ZERO
                    d_branch[row, i] = from_fp32(kept * d_stream[row, i], d_branch)
            else:
                for i in range(width):
                    d_branch[row, i] = from_fp32(d_stream[row, i], d_branch)


class _AddNorm(torch.autograd.Function):
    """Everything [rows, D]; `stream` has no rows where there is none."""

    @staticmethod
    def forward(
        ctx: Any, stream: Tensor, branch: Tensor, weight: Tensor, dtype: torch.dtype, noise: tuple
    ) -> tuple[Tensor, Tensor]:
        total = torch.empty(branch.shape)
        normed = torch.empty(branch.shape, dtype=dtype)
        moments = torch.empty(branch.shape[0], 2)
        use_torch_threads()
        arrays = [as_array(x) for x in (stream, branch, weight)]
        _add_norm_forward(*arrays, *noise, as_array(total), as_array(normed), as_array(moments))
        ctx.save_for_backward(total, weight, moments)
        ctx.set_materialize_grads(False)  # the last sum is not read: no zeros to add
        ctx.noise, ctx.branch_dtype, ctx.has_stream = noise, branch.dtype, len(stream) > 0
        return total, normed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, moments = ctx.saved_tensors
        d_total, d_normed = grad_outputs
        d_total = total[:0] if d_total is None else d_total.contiguous()
        d_normed = total.new_zeros(total.shape) if d_normed is None else d_normed.contiguous()
        d_stream = torch.empty_like(total)
        d_branch = torch.empty(total.shape, dtype=ctx.branch_dtype)
        d_weight = torch.empty(_BLOCKS, total.shape[1])
        use_torch_threads()
        _add_norm_backward(
            *(as_array(x) for x in (total, weight, moments, d_total, d_normed)),
            *ctx.noise,
            *(as_array(x) for x in (d_stream, d_branch, d_weight)),
        )
        return d_stream if ctx.has_stream else None, d_branch, d_weight.sum(dim=0), None, None


def add_norm(
    stream: Tensor | None,
    branch: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    p: float = 0.0,
    noise: Noise | None = None,
    site: int = 0,
) -> tuple[Tensor, Tensor]:
    """See :func:`newllm.model.kernels.reference.add_norm`."""
    shape = branch.shape
    rows = branch.reshape(-1, shape[-1]).contiguous()
    old = rows.new_empty(0, shape[-1], dtype=torch.float32) if stream is None else stream
    key, second_key, first, drop_below = 0, 0, 0, 0
    if noise is not None:
        key, second_key = noise.keys(site)
        first, drop_below = noise.first_sequence * shape[1] * shape[2], threshold(p)
    total, normed = _AddNorm.apply(
        old.reshape(-1, shape[-1]).contiguous(),
        rows,
        weight,
        dtype,
        (drop_below, np.float32(keep_scale(p)), np.uint32(key), np.uint32(second_key), first),
    )
    return total.view(shape), normed.view(shape)


@kernel
def _squared_relu_forward(x, y):
    for row in numba.prange(x.shape[0]):
        for i in range(x.shape[1]):
            positive = max(to_fp32(x[row, i]), ZERO)
            y[row, i] = from_fp32(positive * positive, y)


@kernel
def _squared_relu_backward(x, dy, dx):
    two = np.float32(2)
    for row in numba.prange(x.shape[0]):
        for i in range(x.shape[1]):
            dx[row, i] = from_fp32(two * max(to_fp32(x[row, i]), ZERO) * to_fp32(dy[row, i]), dx)


class _SquaredRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        use_torch_threads()
        _squared_relu_forward(as_array(x), as_array(y))
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        use_torch_threads()
        _squared_relu_backward(as_array(x), as_array(grad_outputs[0].contiguous()), as_array(dx))
        return dx


def squared_relu(x: Tensor) -> Tensor:
    """See :func:`newllm.model.kernels.reference.squared_relu`."""
    return _SquaredRelu.apply(x.reshape(-1, x.shape[-1]).contiguous()).view(x.shape)


@kernel
def _softmax_gradient(logits, targets, peaks, nats):
    for row in numba.prange(logits.shape[0]):
        peak = to_fp32(peaks[row])
        total = ZERO
        for i in range(logits.shape[1]):
            total += exp(to_fp32(logits[row, i]) - peak)
        target = targets[row]
        wanted = to_fp32(logits[row, target]) - peak
        nats[row] = np.log(total) - wanted
        inverse = ONE / total
        for i in range(logits.shape[1]):
            logits[row, i] = from_fp32(exp(to_fp32(logits[row, i]) - peak) * inverse, logits)
        logits[row, target] = from_fp32(exp(wanted) * inverse - ONE, logits)


def softmax_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """See :func:`newllm.model.kernels.reference.softmax_gradient_`."""
    nats = torch.empty(len(logits))
    use_torch_threads()
    arrays = (as_array(x) for x in (logits, targets, logits.amax(dim=1), nats))
    _softmax_gradient(*arrays)
    return nats


nats_gradient_ = functools.partial(reference.nats_gradient_, softmax=softmax_gradient_)
"""See :func:`newllm.model.kernels.reference.nats_gradient_`."""
