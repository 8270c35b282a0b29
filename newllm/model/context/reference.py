"""`context_read`, the heart of `ContextLM`, in plain torch: the definition.

Slow, differentiable, easy to check. `cpu.py` and `gpu.py` compute the same in one pass over memory.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.model.kernels.reference import EPSILON

CONV_TAPS = 4
"""Width of the short convolution: the current token and the three before it."""

GROUP = 64
"""Channels that share one norm of the context: growing adds groups, the old keep theirs."""

CHANNEL_PARAMETERS = CONV_TAPS + 3
"""Numbers that each channel of a context learns besides its matrices: see `split_parameters`."""


def group_size(channels: int) -> int:
    """Channels that are normalised together."""
    return math.gcd(GROUP, channels)


def split_parameters(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows [7, C], as the kernels sum up gradients, as those of `context_read`'s parameters.

    Returns:
        forget_bias [C], read_bias [C], conv_weight [4, C], read_scale [C].
    """
    conv, forget_bias, read_bias, scale = rows.split([CONV_TAPS, 1, 1, 1])
    return forget_bias[0], read_bias[0], conv, scale[0]


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
        lengths: only the first so many tokens of each sequence are read, [B], or None for all. The
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
