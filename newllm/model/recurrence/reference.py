"""The definition of the recurrence, in plain torch: slow, differentiable, easy to check."""

from __future__ import annotations

import torch
from torch import Tensor

CONV_TAPS = 4
"""Width of the short convolution: the current token and the three before it."""


def context_scan(
    write: Tensor,
    forget_logits: Tensor,
    conv_weight: Tensor,
    reset: Tensor | None,
    context: Tensor,
    tail: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Short causal convolution, forget gate and leaky integration of the context vector.

    For every time step t, with the old context and the earlier writes zeroed where a document
    starts (`reset`)::

        v_t = sum_k conv_weight[k] * write_{t-k}          k = 0..3
        f_t = sigmoid(forget_logits_t)
        c_t = f_t * c_{t-1} + (1 - f_t) * v_t

    The gated linear recurrence is that of QRNN (Bradbury et al. 2017, arXiv:1611.01576) and HGRN
    (Qin et al. 2023, arXiv:2311.04823); the short convolution before it follows H3 and Mamba
    (arXiv:2212.14052, arXiv:2312.00752).

    Args:
        write: what each token wants to store, [B, T, C].
        forget_logits: forget gate before the sigmoid, [B, T, C].
        conv_weight: one filter a channel, [4, C]; row k weighs the write of k tokens ago.
        reset: True where a new document starts, [B, T], or None for nowhere.
        context: context vector before the first token, [B, C].
        tail: the three writes before the first token, newest first, [B, 3, C].

    Returns:
        contexts after every token [B, T, C], the last context [B, C], the last tail [B, 3, C].
        All fp32 (float64 if `write` is).
    """
    dtype = torch.promote_types(write.dtype, torch.float32)
    write, forget = write.to(dtype), torch.sigmoid(forget_logits.to(dtype))
    context, tail, conv_weight = context.to(dtype), tail.to(dtype), conv_weight.to(dtype)
    contexts = []
    for t in range(write.shape[1]):
        if reset is not None:
            keep = ~reset[:, t, None]  # [B, 1]
            context = context * keep
            tail = tail * keep[:, :, None]
        window = torch.cat([write[:, t : t + 1], tail], dim=1)  # [B, 4, C]
        value = (window * conv_weight).sum(dim=1)
        context = forget[:, t] * context + (1 - forget[:, t]) * value
        tail = window[:, : CONV_TAPS - 1]
        contexts.append(context)
    if not contexts:
        return write, context, tail
    return torch.stack(contexts, dim=1), context, tail
