"""`context_read` as two Triton kernels with a hand-written backward, for CUDA GPUs.

One program has one sequence and one channel group. The forward reads a tile of 16 tokens at a time:
the filter reads its writes anew, the recurrence is a scan over pairs (factor, term), since two
updates c -> factor * c + term one after the other are one such update (Blelloch, "Prefix sums and
their applications", 1990), and the context goes from tile to tile in registers, in fp32. A shorter
text, a single token too, is read token by token.

The backward goes from the last token to the first, in a single warp: what a token needs stays in
registers, sums over a group are shuffles within the warp, and the next token's inputs are requested
before the current token is worked on. It needs no look back: it carries the gradient of the state
(context and tail) and takes the earlier contexts from the forward. Tiles would take all registers
of four warps there, and be faster only with at most two programs on a multiprocessor (docs/LOG.md,
by the machine code: nothing here was timed). Parameter gradients are summed in each program and
reduced by torch afterwards, always in the same order: no atomics.

Equal to `reference.py` in outputs and gradients (tested in Triton's interpreter, not on a GPU).
`time` is not specialised: two compiled kernels of the forward, one of the backward, serve every
length.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm.model.context.reference import CHANNEL_PARAMETERS, group_size, split_parameters
from newllm.model.kernels.reference import EPSILON

_TILE, _TILE_WARPS = 16, 4
"""Tokens that the forward reads at a time, where a text has so many, and warps that share them."""

_jit: Any = triton.jit


@_jit
def _inputs(token, within, CHANNELS: tl.constexpr):
    """What to write, forget gate and read-out gate of a token, zero unless it is `within`."""
    write = tl.load(token, mask=within, other=0.0).to(tl.float32)
    forget = tl.load(token + CHANNELS, mask=within, other=0.0).to(tl.float32)
    gate = tl.load(token + 2 * CHANNELS, mask=within, other=0.0).to(tl.float32)
    return write, forget, gate


@_jit
def _compose(factor, term, later_factor, later_term):
    """The update c -> factor * c + term that two, one after the other, are together.

    A document's start is a factor of zero; what is not finite before it is not forgotten in its
    tile, as nothing is to be learnt from a row with such numbers.
    """
    return factor * later_factor, term * later_factor + later_term


@_jit
def _document_starts(reset, t, length, WITHIN: tl.constexpr):
    """Whether a document starts at one of the WITHIN tokens up to t, which hides t - WITHIN."""
    found = t != t
    if reset is not None:
        for back in tl.static_range(WITHIN):  # pyright: ignore[reportGeneralTypeIssues]
            inside = (t - back >= 0) & (t - back < length)
            found = found | (tl.load(reset + t - back, mask=inside, other=0) != 0)
    return found


@_jit
def _writes(tokens, tail, t, seen, CHANNELS: tl.constexpr):
    """Writes of tokens t, before the first those of the tail; zero where not `seen`."""
    of_text = tl.load(
        tokens + (t * 3 * CHANNELS)[:, None], mask=(seen & (t >= 0))[:, None], other=0.0
    ).to(tl.float32)
    in_tail = (seen & (t < 0))[:, None]
    return of_text + tl.load(tail + ((-1 - t) * CHANNELS)[:, None], mask=in_tail, other=0.0)


@_jit
def _normalise(context, EPSILON: tl.constexpr, GROUP: tl.constexpr, AXIS: tl.constexpr):
    """Contexts minus their mean over the group, which is this axis, and 1 / their deviation."""
    centred = context - tl.sum(context, axis=AXIS, keep_dims=AXIS > 0) / GROUP
    variance = tl.sum(centred * centred, axis=AXIS, keep_dims=AXIS > 0) / GROUP
    return centred, tl.rsqrt(variance + EPSILON)


@_jit(do_not_specialize=["time"])
def _forward(
    projected, forget_bias, read_bias, conv, scale, reset, lengths, context, tail,
    read, contexts, last_context, last_tail, time,
    EPSILON: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    sequence = (program // (CHANNELS // GROUP)).to(tl.int64)  # products with it pass 2^31
    at = (program % (CHANNELS // GROUP)) * GROUP + tl.arange(0, GROUP)
    length = time
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + sequence).to(tl.int32), time)

    b_f, b_g = tl.load(forget_bias + at)[None, :], tl.load(read_bias + at)[None, :]
    s = tl.load(scale + at)[None, :]
    c = tl.load(context + sequence * CHANNELS + at)
    tail = (tail + sequence * 3 * CHANNELS + at)[None, :]
    tokens = (projected + sequence * time * 3 * CHANNELS + at)[None, :]
    read = (read + sequence * time * CHANNELS + at)[None, :]
    if reset is not None:
        reset += sequence * time
    if contexts is not None:
        contexts += sequence * (time + 1) * CHANNELS + at
        tl.store(contexts, c)

    row = tl.arange(0, TILE)
    for first in range(0, length, TILE):
        t = first + row
        within = t < length
        token = tokens + (t * 3 * CHANNELS)[:, None]
        v = tl.load(conv + at)[None, :] * _writes(tokens, tail, t, within, CHANNELS)
        for back in tl.static_range(1, 4):  # pyright: ignore[reportGeneralTypeIssues]
            seen = within & ~_document_starts(reset, t, length, back)
            weight = tl.load(conv + back * CHANNELS + at)[None, :]
            v += weight * _writes(tokens, tail, t - back, seen, CHANNELS)

        inside = within[:, None]
        f = tl.load(token + CHANNELS, mask=inside, other=0.0).to(tl.float32)
        f = tl.sigmoid(f + b_f)
        # Tokens after the last leave the context as it is.
        factor = tl.where(
            inside, tl.where(_document_starts(reset, t, length, 1)[:, None], 0.0, f), 1.0
        )
        term = tl.where(inside, (1.0 - f) * v, 0.0)
        factor, term = tl.associative_scan((factor, term), 0, _compose)
        after = factor * c[None, :] + term
        c = tl.sum(tl.where((row == TILE - 1)[:, None], after, 0.0), axis=0)

        centred, deviation = _normalise(after, EPSILON, GROUP, 1)
        opened = tl.load(token + 2 * CHANNELS, mask=inside, other=0.0).to(tl.float32) + b_g
        y = centred * deviation * s * opened * tl.sigmoid(opened)
        place = (t * CHANNELS)[:, None]
        tl.store(read + place, y.to(read.dtype.element_ty), mask=inside)
        if contexts is not None:
            tl.store(contexts[None, :] + CHANNELS + place, after, mask=inside)

    tl.store(last_context + sequence * CHANNELS + at, c)
    # The last three writes, those hidden by a document's start being zero.
    back = tl.arange(0, 4)
    seen = back < 3
    if reset is not None:
        for start in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
            t = length - 1 - start
            found = tl.load(reset + t, mask=t >= 0, other=0) != 0
            seen = seen & ~(found & (back > start))
    w = _writes(tokens, tail, length - 1 - back, seen, CHANNELS)
    last_tail = (last_tail + sequence * 3 * CHANNELS + at)[None, :]
    tl.store(last_tail + (back * CHANNELS)[:, None], w, mask=(back < 3)[:, None])


@_jit(do_not_specialize=["time"])
def _backward(
    projected, forget_bias, read_bias, conv, scale, reset, lengths, tail, contexts,
    d_read, d_last_context, d_last_tail,
    d_projected, d_parameters, d_context, d_tail, time,
    EPSILON: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    sequence = (program // (CHANNELS // GROUP)).to(tl.int64)
    at = (program % (CHANNELS // GROUP)) * GROUP + tl.arange(0, GROUP)
    length = time
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + sequence).to(tl.int32), time)

    conv_0, conv_1 = tl.load(conv + at), tl.load(conv + CHANNELS + at)
    conv_2, conv_3 = tl.load(conv + 2 * CHANNELS + at), tl.load(conv + 3 * CHANNELS + at)
    b_f, b_g = tl.load(forget_bias + at), tl.load(read_bias + at)
    s = tl.load(scale + at)
    zero = tl.zeros([GROUP], tl.float32)
    sum_0, sum_1, sum_2, sum_3 = zero, zero, zero, zero
    sum_forget, sum_open, sum_scale = zero, zero, zero

    # Gradients of the state after token t: its context and the three writes of its tail.
    d_c, d_w1, d_w2, d_w3 = zero, zero, zero, zero
    if d_last_context is not None:
        d_c = tl.load(d_last_context + sequence * CHANNELS + at)
    if d_last_tail is not None:
        d_last_tail += sequence * 3 * CHANNELS + at
        d_w1, d_w2 = tl.load(d_last_tail), tl.load(d_last_tail + CHANNELS)
        d_w3 = tl.load(d_last_tail + 2 * CHANNELS)
    # Gradients of v_{t+1} .. v_{t+3}, zero where a document's start hides token t from them.
    d_v1, d_v2, d_v3 = zero, zero, zero

    last = length - 1
    token = projected + (sequence * time + last) * 3 * CHANNELS + at
    d_token = d_projected + (sequence * time + last) * 3 * CHANNELS + at
    d_read += (sequence * time + last) * CHANNELS + at
    contexts += (sequence * (time + 1) + length) * CHANNELS + at  # after the last token
    if reset is not None:
        reset += sequence * time

    c = tl.load(contexts)
    contexts -= CHANNELS
    w0, forget, gate = _inputs(token, length > 0, CHANNELS)
    d_y = tl.load(d_read, mask=length > 0, other=0.0).to(tl.float32)
    old = tl.load(contexts, mask=length > 0, other=0.0)
    for step in range(length):
        t = last - step
        token -= 3 * CHANNELS
        d_read -= CHANNELS
        contexts -= CHANNELS
        next_w0, next_forget, next_gate = _inputs(token, t > 0, CHANNELS)
        next_d_y = tl.load(d_read, mask=t > 0, other=0.0).to(tl.float32)
        next_old = tl.load(contexts, mask=t > 0, other=0.0)

        # The read-out: y = n * scale * silu(opened), n the normalised context.
        centred, deviation = _normalise(c, EPSILON, GROUP, 0)
        n = centred * deviation
        opened = gate + b_g
        opening = tl.sigmoid(opened)
        sum_scale += d_y * n * opened * opening
        d_n = d_y * s
        d_gate = d_n * n * opening * (1.0 + opened * (1.0 - opening))
        sum_open += d_gate
        d_n *= opened * opening
        mean_d_n, mean_d_n_n = tl.sum(d_n, axis=0) / GROUP, tl.sum(d_n * n, axis=0) / GROUP
        d_c += deviation * (d_n - mean_d_n - n * mean_d_n_n)

        # The recurrence: c = f * before + (1 - f) * v. The forget gate's gradient has the factor
        # (1 - f) * (before - v), which is before - c.
        f = tl.sigmoid(forget + b_f)
        before = old
        if reset is not None:
            keep = tl.load(reset + t) == 0
            before = tl.where(keep, old, 0.0)
        d_forget = d_c * f * (before - c)
        d_v0 = d_c * (1.0 - f)
        d_c *= f
        sum_forget += d_forget

        # The filter: token t's write is in v_t .. v_{t+3}; the tail moves by one.
        sum_0 += d_v0 * w0
        sum_1 += d_v1 * w0
        sum_2 += d_v2 * w0
        sum_3 += d_v3 * w0
        d_w0 = d_w1 + conv_0 * d_v0
        d_w1, d_w2, d_w3 = d_w2 + conv_1 * d_v0, d_w3 + conv_2 * d_v0, conv_3 * d_v0
        d_v1, d_v2, d_v3 = d_v0, d_v1, d_v2
        if reset is not None:
            d_c = tl.where(keep, d_c, 0.0)
            d_w1, d_v1 = tl.where(keep, d_w1, 0.0), tl.where(keep, d_v1, 0.0)
            d_w2, d_v2 = tl.where(keep, d_w2, 0.0), tl.where(keep, d_v2, 0.0)
            d_w3, d_v3 = tl.where(keep, d_w3, 0.0), tl.where(keep, d_v3, 0.0)

        tl.store(d_token, d_w0.to(d_token.dtype.element_ty))
        tl.store(d_token + CHANNELS, d_forget.to(d_token.dtype.element_ty))
        tl.store(d_token + 2 * CHANNELS, d_gate.to(d_token.dtype.element_ty))
        d_token -= 3 * CHANNELS
        c, old, d_y = old, next_old, next_d_y
        w0, forget, gate = next_w0, next_forget, next_gate

    # The filter also saw the writes before the first token.
    tail += sequence * 3 * CHANNELS + at
    w1, w2, w3 = tl.load(tail), tl.load(tail + CHANNELS), tl.load(tail + 2 * CHANNELS)
    sum_1 += d_v1 * w1
    sum_2 += d_v2 * w1 + d_v1 * w2
    sum_3 += d_v3 * w1 + d_v2 * w2 + d_v1 * w3

    tl.store(d_context + sequence * CHANNELS + at, d_c)
    d_tail += sequence * 3 * CHANNELS + at
    tl.store(d_tail, d_w1)
    tl.store(d_tail + CHANNELS, d_w2)
    tl.store(d_tail + 2 * CHANNELS, d_w3)
    d_parameters += sequence * 7 * CHANNELS + at
    tl.store(d_parameters, sum_0)
    tl.store(d_parameters + CHANNELS, sum_1)
    tl.store(d_parameters + 2 * CHANNELS, sum_2)
    tl.store(d_parameters + 3 * CHANNELS, sum_3)
    tl.store(d_parameters + 4 * CHANNELS, sum_forget)
    tl.store(d_parameters + 5 * CHANNELS, sum_open)
    tl.store(d_parameters + 6 * CHANNELS, sum_scale)


def _launch(kernel: Any, channels: int, tensors: tuple[Tensor | None, ...], time: int) -> None:
    """Run a kernel, one program for every sequence and channel group, on the tensors' device."""
    projected, group = tensors[0], group_size(channels)
    assert projected is not None
    grid = (projected.shape[0] * channels // group,)
    constants = {"num_warps": 1}
    if kernel is _forward:
        tile, warps = (_TILE, _TILE_WARPS) if time >= _TILE else (1, 1)
        constants = {"TILE": tile, "num_warps": warps}
    with torch.cuda.device_of(projected):  # Triton launches on the current device
        kernel[grid](
            *tensors, time, EPSILON=EPSILON, CHANNELS=channels, GROUP=group, **constants
        )  # fmt: skip


class _ContextRead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        forget_bias: Tensor,
        read_bias: Tensor,
        conv: Tensor,
        scale: Tensor,
        reset: Tensor | None,
        lengths: Tensor | None,
        context: Tensor,
        tail: Tensor,
        with_gradients: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, time, channels = projected.shape[0], projected.shape[1], context.shape[1]
        # Tokens beyond a sequence's length are not visited.
        make = torch.empty if lengths is None else torch.zeros
        read = make(batch, time, channels, dtype=projected.dtype, device=projected.device)
        # Before the first token, and after each.
        contexts = context.new_empty(batch, time + 1, channels) if with_gradients else None
        last_context, last_tail = torch.empty_like(context), torch.empty_like(tail)
        inputs = (projected, forget_bias, read_bias, conv, scale, reset, lengths, context, tail)
        _launch(_forward, channels, (*inputs, read, contexts, last_context, last_tail), time)
        ctx.save_for_backward(*inputs[:7], tail, contexts)
        ctx.set_materialize_grads(False)  # nothing flows back through the last state in training
        return read, last_context, last_tail

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        projected, lengths, tail = saved[0], saved[6], saved[7]
        batch, time, channels = projected.shape[0], projected.shape[1], tail.shape[2]
        d_projected = (torch.empty_like if lengths is None else torch.zeros_like)(projected)
        d_parameters = tail.new_empty(batch, CHANNEL_PARAMETERS, channels)
        d_context, d_tail = tail.new_empty(batch, channels), torch.empty_like(tail)
        d_read, *d_last = (None if grad is None else grad.contiguous() for grad in grad_outputs)
        if d_read is None:
            d_read = projected.new_zeros(batch, time, channels)
        d_inputs = (d_projected, d_parameters, d_context, d_tail)
        _launch(_backward, channels, (*saved, d_read, *d_last, *d_inputs), time)
        d_vectors = split_parameters(d_parameters.sum(dim=0))
        return d_projected, *d_vectors, None, None, d_context, d_tail, None


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
    """See :func:`newllm.model.context.reference.context_read`; fp32 inside."""
    floats = (projected, forget_bias, read_bias, conv_weight, read_scale, context, tail)
    return _ContextRead.apply(
        projected.contiguous(),
        forget_bias.float().contiguous(),
        read_bias.float().contiguous(),
        conv_weight.float().contiguous(),
        read_scale.float().contiguous(),
        None if reset is None else reset.contiguous(),
        None if lengths is None else lengths.contiguous(),
        context.float().contiguous(),
        tail.float().contiguous(),
        torch.is_grad_enabled() and any(x.requires_grad for x in floats),
    )
