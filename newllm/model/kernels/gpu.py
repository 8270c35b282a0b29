"""The residual stream, the loss and the look-ups as Triton kernels, for CUDA GPUs.

A row is one program's, in fp32, one pass over memory each for add + dropout + norm and for squared
ReLU; the loss reads a row of logits twice and leaves its gradient in its place. Sums over rows are
taken in a fixed order, without atomics: the same step gives the same bits. Dropout draws its noise
inside the kernel, from counters: it costs neither a launch nor memory.

Equal to `reference.py` in outputs and gradients (tested in Triton's interpreter, not on a GPU).
Lengths are not specialised: one compiled kernel serves every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm.data.loader import IGNORED
from newllm.model.dropout import Noise, keep_scale, threshold
from newllm.model.kernels.reference import EPSILON, LEAST, NatsGradients, Places, StepCheck

_jit: Any = triton.jit

_MOST_PROGRAMS = 512
"""Programs whose gradients of a norm's weight are summed apart, in a fixed order."""

_MOST_COLUMNS = 4096
"""Logits of a row that a program holds at a time."""

_SUMMED_ROWS = 16
"""Rows that a look-up's backward adds up at a time."""

_TILE = 32
"""Rows and columns of a matrix that a program of the optimizer has."""


def launch(
    kernel: Any, programs: int, tensors: tuple[Any, ...], warps: int, **constants: Any
) -> None:
    """Run a kernel in so many programs, on the device of the first tensor that is one."""
    on = next(x for x in tensors if isinstance(x, Tensor))
    with torch.cuda.device_of(on):  # Triton launches on the current device
        kernel[(programs,)](*tensors, **constants, num_warps=warps)


def _warps(width: int) -> int:
    """Warps of a program that holds a row of so many numbers, a power of two."""
    return max(1, min(8, width // 256))


@_jit
def _kept(counter, keys, site, DROP_BELOW: tl.constexpr):
    """Which elements stay: `random_byte` of `numerics.py` on uint32 counters."""
    key = tl.load(keys + 2 * site).to(tl.uint32)
    second_key = tl.load(keys + 2 * site + 1).to(tl.uint32)
    x = counter + key
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) + second_key
    x = (x ^ (x >> 13)) * 0x846CA68B
    return (x >> 24) >= DROP_BELOW


@_jit(do_not_specialize=["site", "first", "rows"])
def _add_norm_forward(
    branch, stream, weight, keys, total, normed, moments, site, first, rows,
    EPSILON: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    DROP_BELOW: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    within = at < WIDTH
    place = row * WIDTH + at
    x = tl.load(branch + place, mask=within, other=0.0).to(tl.float32)
    if DROP_BELOW > 0:
        kept = _kept((place + first).to(tl.uint32), keys, site, DROP_BELOW)
        x = tl.where(kept, x * SCALE, 0.0)
    if stream is not None:
        x += tl.load(stream + place, mask=within, other=0.0)
    tl.store(total + place, x, mask=within)
    mean = tl.sum(x, axis=0) / WIDTH
    centred = tl.where(within, x - mean, 0.0)
    deviation = tl.rsqrt(tl.sum(centred * centred, axis=0) / WIDTH + EPSILON)
    w = tl.load(weight + at, mask=within, other=0.0)
    y = centred * deviation * w
    tl.store(normed + place, y.to(normed.dtype.element_ty), mask=within)
    tl.store(moments + 2 * row, mean)
    tl.store(moments + 2 * row + 1, deviation)


@_jit(do_not_specialize=["site", "first", "rows"])
def _add_norm_backward(
    total, weight, keys, moments, d_total, d_normed, d_stream, d_branch, d_weight,
    site, first, rows,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, DROP_BELOW: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    at = tl.arange(0, BLOCK)
    within = at < WIDTH
    w = tl.load(weight + at, mask=within, other=0.0)
    sums = tl.zeros([BLOCK], tl.float32)
    for number in range(tl.cdiv(rows - tl.program_id(0), programs)):
        row = program + number * programs
        place = row * WIDTH + at
        mean, deviation = tl.load(moments + 2 * row), tl.load(moments + 2 * row + 1)
        n = (tl.load(total + place, mask=within, other=0.0) - mean) * deviation
        n = tl.where(within, n, 0.0)
        d_y = tl.load(d_normed + place, mask=within, other=0.0).to(tl.float32)
        sums += d_y * n
        d = d_y * w
        mean_d, mean_d_n = tl.sum(d, axis=0) / WIDTH, tl.sum(d * n, axis=0) / WIDTH
        d = deviation * (d - mean_d - n * mean_d_n)
        if d_total is not None:
            d += tl.load(d_total + place, mask=within, other=0.0)
        if d_stream is not None:
            tl.store(d_stream + place, d, mask=within)
        if DROP_BELOW > 0:
            kept = _kept((place + first).to(tl.uint32), keys, site, DROP_BELOW)
            d = tl.where(kept, d * SCALE, 0.0)
        tl.store(d_branch + place, d.to(d_branch.dtype.element_ty), mask=within)
    tl.store(d_weight + program * WIDTH + at, sums, mask=within)


def _for_programs(weight: Tensor, rows: int) -> Tensor:
    """Weights [..., D] as often as there are programs in the backward: each gives its gradient."""
    programs = min(rows, _MOST_PROGRAMS)
    return weight.unsqueeze(-2).expand(*weight.shape[:-1], programs, weight.shape[-1])


def norms_together(weights: Sequence[Tensor], rows: int) -> Sequence[Tensor]:
    """Weights [D] of several norms as :func:`add_norm` takes them for so many rows, [P, D].

    What the programs of all of them give is then summed in one launch.
    """
    return _for_programs(torch.stack(list(weights)), rows).unbind()


class _AddNorm(torch.autograd.Function):
    """Everything [rows, D]; `stream` may be None. `weight` is [P, D], P times the same."""

    @staticmethod
    def forward(
        ctx: Any,
        stream: Tensor | None,
        branch: Tensor,
        weight: Tensor,
        dtype: torch.dtype,
        keys: Tensor | None,
        drawn: tuple[int, int, int, float],
    ) -> tuple[Tensor, Tensor]:
        rows, width = branch.shape
        site, first, drop_below, scale = drawn
        total = torch.empty_like(branch, dtype=torch.float32)
        normed, moments = torch.empty_like(branch, dtype=dtype), total.new_empty(rows, 2)
        constants = {"WIDTH": width, "BLOCK": triton.next_power_of_2(width)}
        constants |= {"DROP_BELOW": drop_below, "SCALE": scale}
        tensors = branch, stream, weight, keys, total, normed, moments, site, first, rows
        warps = _warps(constants["BLOCK"])
        launch(_add_norm_forward, rows, tensors, warps, EPSILON=EPSILON, **constants)
        ctx.save_for_backward(total, weight, keys, moments)
        ctx.set_materialize_grads(False)  # the last sum is not read: no zeros to add
        ctx.drawn, ctx.constants, ctx.warps = (site, first), constants, warps
        ctx.branch_dtype, ctx.has_stream = branch.dtype, stream is not None
        return total, normed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, keys, moments = ctx.saved_tensors
        rows = len(total)
        d_total, d_normed = (None if d is None else d.contiguous() for d in grad_outputs)
        d_normed = torch.zeros_like(total) if d_normed is None else d_normed
        d_stream = torch.empty_like(total) if ctx.has_stream else None
        d_branch = torch.empty_like(total, dtype=ctx.branch_dtype)
        d_weight = total.new_empty(weight.shape)
        launch(
            _add_norm_backward,
            len(weight),
            (total, weight, keys, moments, d_total, d_normed, d_stream, d_branch, d_weight,
             *ctx.drawn, rows),
            ctx.warps,
            **ctx.constants,
        )  # fmt: skip
        return d_stream, d_branch, d_weight, None, None, None


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
    drawn, keys = (0, 0, 0, 1.0), None
    if noise is not None and threshold(p) > 0:
        keys = noise.keys_on(branch.device)
        drawn = site, noise.first_sequence * shape[1] * shape[2], threshold(p), keep_scale(p)
    total, normed = _AddNorm.apply(
        None if stream is None else stream.reshape(-1, shape[-1]).contiguous(),
        branch.reshape(-1, shape[-1]).contiguous(),
        _for_programs(weight, branch.numel() // shape[-1]) if weight.ndim == 1 else weight,
        dtype,
        keys,
        drawn,
    )
    return total.view(shape), normed.view(shape)


@_jit(do_not_specialize=["size"])
def _squared_relu_forward(x, y, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    positive = tl.maximum(tl.load(x + at, mask=at < size, other=0.0).to(tl.float32), 0.0)
    tl.store(y + at, (positive * positive).to(y.dtype.element_ty), mask=at < size)


@_jit(do_not_specialize=["size"])
def _squared_relu_backward(x, d_y, d_x, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    positive = tl.maximum(tl.load(x + at, mask=at < size, other=0.0).to(tl.float32), 0.0)
    d = 2.0 * positive * tl.load(d_y + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(d_x + at, d.to(d_x.dtype.element_ty), mask=at < size)


class _SquaredRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        _elementwise(_squared_relu_forward, x, y)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        d_x = torch.empty_like(x)
        _elementwise(_squared_relu_backward, x, grad_outputs[0].contiguous(), d_x)
        return d_x


def _elementwise(kernel: Any, *tensors: Tensor, block: int = 1024) -> None:
    size = tensors[0].numel()
    launch(kernel, int(triton.cdiv(size, block)), (*tensors, size), 4, BLOCK=block)


def squared_relu(x: Tensor) -> Tensor:
    """See :func:`newllm.model.kernels.reference.squared_relu`."""
    return _SquaredRelu.apply(x.contiguous())


@_jit
def _sigmoid_of(x):
    return 1.0 / (1.0 + tl.exp(-x))


@_jit
def _log_add(a, b):
    """ln(exp(a) + exp(b)); b may be -inf."""
    most, least = tl.maximum(a, b), tl.minimum(a, b)
    return most + tl.log(1.0 + tl.exp(least - most))


@_jit
def _nats(
    logits, targets, entries, scores, counted, left,
    nats, d_scores, d_counted, d_left,
    IGNORED: tl.constexpr, LEAST: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr,
    GRADIENTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * VOCAB
    target = tl.load(targets + row)
    scored = target != IGNORED
    target = tl.where(scored, target, 0)
    of_target = tl.load(logits + target).to(tl.float32)
    most = tl.full([BLOCK], -float("inf"), tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z = tl.load(logits + at, mask=at < VOCAB, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(most, z)
        # Lanes behind the vocabulary's end have seen nothing yet, and -inf - -inf is NaN.
        sums = tl.where(
            higher > -float("inf"), sums * tl.exp(most - higher) + tl.exp(z - higher), 0.0
        )
        most = higher
    peak = tl.max(most, axis=0)
    total = peak + tl.log(tl.sum(sums * tl.exp(most - peak), axis=0))

    # See the reference: what copying takes and leaves, of everything and of the target.
    ln_alone = of_target - total
    result, own_share, rest, by_copying = -ln_alone, 1.0, 1.0, 0.0
    if scores is not None:
        lead = tl.load(scores + row) - total
        ln_copied, rest = -_log_add(0.0, -lead), _sigmoid_of(-lead)
        ln_alone -= _log_add(0.0, lead)
        is_target = tl.load(entries + row) == target
        ln_by_copying = tl.where(is_target, ln_copied, -float("inf"))
        result = -_log_add(ln_alone, ln_by_copying)
        by_copying = tl.exp(ln_by_copying)
        own_share = tl.exp(ln_alone + result)
        if d_scores is not None:
            d = tl.exp(ln_copied) - tl.exp(ln_by_copying + result)
            tl.store(d_scores + row, tl.where(scored, d, 0.0))
    factor, of_counts = 1.0, 0.0
    alone = tl.maximum(tl.exp(ln_alone), LEAST)
    if counted is not None:
        has, share = tl.load(counted + row), tl.load(left + row)
        mixture = tl.maximum(rest * has + share * alone + by_copying, LEAST)
        result = -tl.log(mixture)
        if d_counted is not None:
            tl.store(d_counted + row, tl.where(scored, -rest / mixture, 0.0))
            tl.store(d_left + row, tl.where(scored, -alone / mixture, 0.0))
        factor, of_counts = 2.0 - has / mixture, share * alone / mixture
    d_target = alone * factor - own_share - of_counts
    tl.store(nats + row, tl.where(scored, result, 0.0))
    if GRADIENTS:
        for start in range(0, VOCAB, BLOCK):
            at = start + tl.arange(0, BLOCK)
            z = tl.load(logits + at, mask=at < VOCAB, other=0.0).to(tl.float32)
            gradient = tl.exp(z - total) * (rest * factor)
            gradient = tl.where(at == target, d_target, gradient)
            gradient = tl.where(scored, gradient, 0.0)
            tl.store(logits + at, gradient.to(logits.dtype.element_ty), mask=at < VOCAB)


def nats_gradient_(
    logits: Tensor,
    targets: Tensor,
    copying: tuple[Tensor, Tensor] | None = None,
    mixing: tuple[Tensor, Tensor] | None = None,
) -> NatsGradients:
    """See :func:`newllm.model.kernels.reference.nats_gradient_`; one launch."""
    rows, vocab = logits.shape
    nats = logits.new_empty(rows, dtype=torch.float32)
    entries, scores = copying or (None, None)
    counted, left = mixing or (None, None)
    given = [None if x is None else x.contiguous() for x in (entries, scores, counted, left)]
    d_scores, d_counted, d_left = (
        None if x is None else torch.empty_like(x) for x in given[1:]
    )  # fmt: skip
    block = min(_MOST_COLUMNS, int(triton.next_power_of_2(vocab)))
    launch(
        _nats,
        rows,
        (logits, targets.contiguous(), *given, nats, d_scores, d_counted, d_left),
        _warps(block),
        IGNORED=IGNORED,
        LEAST=LEAST,
        VOCAB=vocab,
        BLOCK=block,
        GRADIENTS=True,
    )
    return NatsGradients(nats, d_scores, d_counted, d_left)


@_jit
def _gather(table, index, base, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    position = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    row = tl.load(index + position).to(tl.int64)
    x = tl.load(table + row * WIDTH + at, mask=(at < WIDTH) & (row >= 0), other=0.0).to(tl.float32)
    place = position * WIDTH + at
    if base is not None:
        x += tl.load(base + place, mask=at < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + place, x.to(out.dtype.element_ty), mask=at < WIDTH)


@_jit
def _gather_backward(
    d_out, order, row, times, d_table, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """The program of the first position (in `order`) of a row of the table sums up all of them."""
    first = tl.program_id(0)
    count = tl.load(times + first)
    at, nth = tl.arange(0, BLOCK), tl.arange(0, ROWS)
    sums = tl.zeros([BLOCK], tl.float32)
    for done in range(0, count, ROWS):
        position = tl.load(order + first + done + nth, mask=done + nth < count, other=0).to(
            tl.int64
        )
        within = (done + nth < count)[:, None] & (at < WIDTH)[None, :]
        d = tl.load(d_out + position[:, None] * WIDTH + at[None, :], mask=within, other=0.0)
        sums += tl.sum(d.to(tl.float32), axis=0)
    if count > 0:
        place = tl.load(row + first).to(tl.int64) * WIDTH + at
        tl.store(d_table + place, sums, mask=at < WIDTH)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, lookup: Tensor, base: Tensor | None) -> Tensor:
        index, width = lookup[0], table.shape[1]
        kind = table.dtype if base is None else torch.promote_types(table.dtype, base.dtype)
        out = table.new_empty(len(index), width, dtype=kind)
        constants = {"WIDTH": width, "BLOCK": triton.next_power_of_2(width)}
        launch(
            _gather, len(index), (table, index, base, out), _warps(constants["BLOCK"]), **constants
        )
        ctx.save_for_backward(lookup)
        ctx.shape, ctx.constants, ctx.dtype = table.shape, constants, table.dtype
        ctx.base_dtype = None if base is None else base.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (lookup,), (d_out,) = ctx.saved_tensors, grad_outputs
        d_table = None
        if ctx.needs_input_grad[0]:
            d_table = d_out.new_zeros(ctx.shape, dtype=torch.float32)
            tensors = d_out.contiguous(), *lookup[1:], d_table
            programs, warps = lookup.shape[1], _warps(_SUMMED_ROWS * ctx.constants["BLOCK"])
            launch(_gather_backward, programs, tensors, warps, ROWS=_SUMMED_ROWS, **ctx.constants)
            d_table = d_table.to(ctx.dtype)
        return d_table, None, None if ctx.base_dtype is None else d_out.to(ctx.base_dtype)


def embedding(table: Tensor, lookup: Tensor, base: Tensor | None = None) -> Tensor:
    """Rows of a table, zeros for -1, on top of `base`: see :func:`newllm.model.kernels.embedding`.

    Args:
        table: [R, D].
        lookup: int32 [4, N], see :func:`newllm.model.kernels.make_lookup`.
        base: what they are added to, [N, D].
    """
    base = None if base is None else base.contiguous()
    return _Embedding.apply(table.contiguous(), lookup, base)


@_jit(do_not_specialize=["count"])
def _judge(nats, norms, scale, said, found_inf, grad_scale, count, CLIP: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    loss_scale = 1.0
    if scale is not None:
        loss_scale = tl.load(scale)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        norm = tl.load(norms + at, mask=at < count, other=0.0) / loss_scale
        squares += norm * norm
    norm = tl.sqrt(tl.sum(squares, axis=0))
    loss = tl.load(nats)
    both = norm + loss
    taken = tl.where(both - both == 0, 1.0, 0.0)  # inf - inf is no number
    tl.store(said, loss)
    tl.store(said + 1, taken)
    tl.store(found_inf, 1.0 - taken)
    tl.store(grad_scale, tl.maximum((norm + 1e-6) / CLIP, 1.0) * loss_scale)


def check_step(nats: Tensor, norms: Tensor, scale: Tensor | None, clip: float) -> StepCheck:
    """See :func:`newllm.model.kernels.reference.check_step`; one launch."""
    said, found_inf, grad_scale = (norms.new_empty(size) for size in ((2,), (), ()))
    tensors = nats, norms, scale, said, found_inf, grad_scale, len(norms)
    launch(_judge, 1, tensors, 1, CLIP=clip, BLOCK=128)
    return StepCheck(said, found_inf, grad_scale)


@_jit
def _tile(entries, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    """The matrix that a program has a tile of; where its numbers are in the vector of all, and in
    the stack [K, ROWS, COLUMNS]; and which of both there are.
    """
    across: tl.constexpr = (COLUMNS + TILE - 1) // TILE
    down: tl.constexpr = (ROWS + TILE - 1) // TILE
    program = tl.program_id(0)
    matrix = (program // (down * across)).to(tl.int64)
    row = (program // across % down * TILE + tl.arange(0, TILE))[:, None]
    column = (program % across * TILE + tl.arange(0, TILE))[None, :]
    entry = entries + 5 * matrix
    place = tl.load(entry) + row * tl.load(entry + 1) + column * tl.load(entry + 2)
    within = (row < tl.load(entry + 3)) & (column < tl.load(entry + 4))
    stacked = (matrix * ROWS + row) * COLUMNS + column
    return matrix, place, within, stacked, (row < ROWS) & (column < COLUMNS)


@_jit
def _blend(
    gradients, momenta, entries, found_inf, grad_scale, stack,
    KEEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    _, place, within, stacked, inside = _tile(entries, ROWS, COLUMNS, TILE)
    m = tl.load(momenta + place, mask=within, other=0.0)
    g = tl.load(gradients + place, mask=within, other=0.0) / tl.load(grad_scale)
    g = tl.where(tl.load(found_inf) > 0, m, g)
    m += (1.0 - KEEP) * (g - m)
    tl.store(momenta + place, m, mask=within)
    tl.store(stack + stacked, g + KEEP * (m - g), mask=inside)


@_jit
def _move(
    weights, stack, entries, rates, found_inf, rate, decay,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    matrix, place, within, stacked, _ = _tile(entries, ROWS, COLUMNS, TILE)
    taken = tl.load(rate) * (1.0 - tl.load(found_inf))
    w = tl.load(weights + place, mask=within)
    change = tl.load(stack + stacked, mask=within).to(tl.float32)
    w = w * (1.0 - decay * taken) - change * (taken * tl.load(rates + matrix))
    tl.store(weights + place, w, mask=within)


def _in_tiles(kernel: Any, shape: tuple[int, int, int], *tensors: Any, **constants: Any) -> None:
    matrices, rows, columns = shape
    tiles = int(triton.cdiv(rows, _TILE) * triton.cdiv(columns, _TILE))
    constants |= {"ROWS": rows, "COLUMNS": columns, "TILE": _TILE}
    launch(kernel, matrices * tiles, tensors, 4, **constants)


def blend(
    gradients: Tensor,
    momenta: Tensor,
    places: Places,
    found_inf: Tensor,
    grad_scale: Tensor,
    keep: float,
) -> Tensor:
    """See :func:`newllm.model.kernels.reference.blend`; one launch."""
    stack, table = gradients.new_empty(places.shape), places.table_on(gradients.device)
    tensors = gradients, momenta, table, found_inf, grad_scale, stack
    _in_tiles(_blend, places.shape, *tensors, KEEP=keep)
    return stack


def move_(
    weights: Tensor,
    stack: Tensor,
    places: Places,
    rates: Tensor,
    found_inf: Tensor,
    rate: Tensor,
    decay: float,
) -> None:
    """See :func:`newllm.model.kernels.reference.move_`; one launch."""
    table = places.table_on(weights.device)
    tensors = weights, stack.contiguous(), table, rates, found_inf, rate, decay
    _in_tiles(_move, places.shape, *tensors)
