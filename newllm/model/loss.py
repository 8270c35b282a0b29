"""Cross-entropy of a linear output layer, in chunks: the full logits never exist at once.

With 6,000 tokens and 4,096 entries the logits alone take 100 MB in fp32, and autograd would keep
several such tensors. Here each chunk's gradient is computed while its logits are still in the
cache, and only the gradients of the hidden states and of the weights survive (the idea of Liger
Kernel's fused linear cross-entropy, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.data.loader import IGNORED
from newllm.model.kernels import softmax_gradient_

_CHUNK_ELEMENTS = 1024 * 1024
"""Logits held at a time: 4 MB in fp32, about what a core's cache holds."""


def sum_of_nats(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    copying: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sum over the scored positions of -ln p(target), differentiable.

    Args:
        hidden: output of the model's trunk, [..., D].
        weight: output matrix, [V, D]; `bias`: [V] or None.
        targets: next-token ids, same leading shape as `hidden`; `IGNORED` is not scored.
        copying: an entry of each position and the score of copying it, [..., 1] both, -inf for
            none; its logit becomes ln(exp(logit) + exp(score)).

    Returns:
        fp32 scalar. Divide by the number of scored tokens (of the whole batch, over all
        micro-batches and processes) to get the mean loss.
    """
    parts = [hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)]
    if copying is not None:
        parts += [part.reshape(-1, 1) for part in copying]
    scored = parts[1] != IGNORED
    if not bool(scored.all()):
        parts = [part[scored] for part in parts]
    hidden, targets, *rest = parts
    entries, scores = rest or (None, None)
    return _SumOfNats.apply(
        hidden, weight, bias, scores, entries, targets, compute_dtype(weight),
        torch.is_grad_enabled(),
    )  # fmt: skip


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Type of the matrix products with a weight: autocast's where it is on."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def chunk_rows(vocab_size: int) -> int:
    """How many positions' logits are computed at a time."""
    return max(1, _CHUNK_ELEMENTS // vocab_size)


class _SumOfNats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scores: Tensor | None,
        entries: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        with_grad: bool,
    ) -> Tensor:
        matrix = weight.to(dtype)
        d_hidden = torch.empty_like(hidden) if with_grad else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if with_grad else None
        d_bias = torch.zeros_like(bias) if with_grad and bias is not None else None
        d_scores = torch.empty_like(scores) if with_grad and scores is not None else None
        nats = hidden.new_zeros((), dtype=torch.float32)
        step = chunk_rows(weight.shape[0])
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], step):
                rows = hidden[start : start + step].to(dtype)
                logits = F.linear(rows, matrix)
                if bias is not None:
                    logits += bias
                own, part = None, slice(start, start + step)
                if entries is not None and scores is not None:
                    own = _let_copy_(logits, entries[part], scores[part])
                nats += softmax_gradient_(logits, targets[start : start + step])
                if d_hidden is None or d_weight is None:
                    continue
                d_logits = logits  # what they have become
                if d_bias is not None:
                    d_bias += d_logits.sum(dim=0)
                if own is not None and entries is not None and scores is not None:
                    assert d_scores is not None
                    d_scores[part] = _divide_(d_logits, entries[part], scores[part] - own)
                d_hidden[start : start + step] = d_logits @ matrix
                d_weight += d_logits.t() @ rows
        ctx.grads = (d_hidden, d_weight, d_bias, d_scores)
        return nats

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if grad is None else grad * grad_outputs[0] for grad in ctx.grads)
        return (*scaled, None, None, None, None)


def _let_copy_(logits: Tensor, entries: Tensor, scores: Tensor) -> Tensor:
    """Add copying to the logits [N, V] of entries [N, 1]; what the logits were, [N, 1]."""
    own = logits.gather(1, entries).to(scores.dtype)
    logits.scatter_(1, entries, torch.logaddexp(own, scores).to(logits.dtype))
    return own


def _divide_(d_logits: Tensor, entries: Tensor, lead: Tensor) -> Tensor:
    """Divide the gradient of entries between logit and score of copying; return the score's.

    Args:
        d_logits: [N, V]; at the entries [N, 1] the logit's own part is left.
        lead: by how much the score is above the logit, [N, 1].
    """
    both = d_logits.gather(1, entries).to(lead.dtype)
    d_logits.scatter_(1, entries, (both * torch.sigmoid(-lead)).to(d_logits.dtype))
    return both * torch.sigmoid(lead)
