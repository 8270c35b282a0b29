"""Cross-entropy of a linear output layer, in chunks: the full logits never exist at once.

With 6,000 tokens and 4,096 entries the logits alone take 100 MB in fp32, and autograd would keep
several such tensors. Here each chunk's gradient is computed while its logits are still in the
cache, and only the gradients of the hidden states and of the weights survive (the idea of Liger
Kernel's fused linear cross-entropy, arXiv:2410.10989).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.data.loader import IGNORED
from newllm.device import send
from newllm.model.kernels import half_copy, nats_gradient_, wide_product
from newllm.model.sampled_softmax import SampledVocabulary

_torch: Any = torch
"""Its functions on many tensors at once, which are named as private."""

_CHUNK_ELEMENTS = {"cpu": 1024 * 1024, "cuda": 64 * 1024 * 1024}
"""Logits held at a time: 4 MB in fp32, about what a core's cache holds; on a GPU 128 MB in 16 bits,
as every chunk costs a few launches."""


def sum_of_nats(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    sample: SampledVocabulary | None = None,
) -> Tensor:
    """Sum over the scored positions of -ln p(target), differentiable.

    Args:
        hidden: output of the model's trunk, [..., D].
        weight: output matrix, [V, D]; `bias`: [V] or None.
        targets: next-token ids, same leading shape as `hidden`, here or on the CPU; `IGNORED` is
            not scored.
        sample: of the vocabulary, over which the softmax is estimated; on a CPU.

    Returns:
        fp32 scalar. Divide by the number of scored tokens (of the whole batch, over all
        micro-batches and processes) to get the mean loss.
    """
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if hidden.device.type == "cpu":  # a GPU takes all: to know which ones are scored it would wait
        scored = targets != IGNORED
        if not bool(scored.all()):
            hidden, targets = hidden[scored], targets[scored]
    return nats_of(hidden, weight, bias, send(targets, hidden.device), sample=sample)


def nats_of(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    copying: tuple[Tensor, Tensor] | None = None,
    mixing: tuple[Tensor, Tensor] | None = None,
    sample: SampledVocabulary | None = None,
) -> Tensor:
    """Sum of the nats of N positions, differentiable; nothing of it is asked for by the host.

    With `mixing`, what is differentiated is the sum of this and of the network's own -ln p(target):
    from the mixture alone a network learns only what the counts do not know, and not well. Of the
    two, the score of copying is differentiated in the network's alone: else a model that can count
    copies less, and no longer what no training row has (docs/LOG.md).

    Args:
        hidden: [N, D].
        weight: output matrix, [V, D]; `bias`: [V] or None.
        targets: [N], where `hidden` is; `IGNORED` is not scored.
        copying: an entry of each position and the score of copying it, [N, 1] both, -inf for
            none; its logit becomes ln(exp(logit) + exp(score)).
        mixing: counted and left, [N] both: the network's p(target), before anything is copied,
            becomes counted + left * p(target).
        sample: as for :func:`sum_of_nats`.
    """
    if sample is not None:
        weight = weight[sample.entries]
        bias = sample.offsets if bias is None else bias[sample.entries] + sample.offsets
        targets = sample.positions(targets)
        copying = copying and (sample.positions(copying[0]), copying[1])
    entries, scores = (part.flatten() for part in copying) if copying else (None, None)
    rows = targets, *(mixing or (None, None)), entries, scores
    return _SumOfNats.apply(
        hidden, weight, bias, *rows, compute_dtype(weight), torch.is_grad_enabled()
    )


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Type of the matrix products with a weight: autocast's where it is on."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """How many positions' logits are computed at a time."""
    return max(1, _CHUNK_ELEMENTS[device.type] // vocab_size)


class _SumOfNats(torch.autograd.Function):
    """N positions; all but `hidden` [N, D], `weight` [V, D] and `bias` [V] are [N] or None."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        counted: Tensor | None,
        left: Tensor | None,
        entries: Tensor | None,
        scores: Tensor | None,
        dtype: torch.dtype,
        with_grad: bool,
    ) -> Tensor:
        matrix = half_copy(weight, dtype)
        chunks: list[tuple[Tensor | None, ...]] = []  # gradients of what is a row's own
        d_weight, d_bias, nats = None, None, None
        step = chunk_rows(weight.shape[0], hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, max(1, hidden.shape[0]), step):
                part = slice(start, start + step)
                rows = hidden[part].to(dtype)
                logits = F.linear(rows, matrix)
                if bias is not None:
                    logits += bias
                copying = mixing = None
                if entries is not None and scores is not None:
                    copying = entries[part], scores[part]
                if counted is not None and left is not None:
                    mixing = counted[part], left[part]
                gradients = nats_gradient_(logits, targets[part], copying, mixing)
                nats = _plus(nats, gradients.nats.sum(), torch.float32)
                if not with_grad:
                    continue
                if bias is not None and ctx.needs_input_grad[2]:
                    d_bias = _plus(d_bias, logits.sum(dim=0), bias.dtype)
                d_weight = _plus(d_weight, wide_product(logits.t(), rows), torch.float32)
                d_hidden = (logits @ matrix).to(hidden.dtype)
                chunks.append((d_hidden, gradients.d_counted, gradients.d_left, gradients.d_scores))
        joined = [_joined(parts) for parts in zip(*chunks, strict=True)] or [None] * 4
        d_hidden, d_counted, d_left, d_scores = joined
        ctx.grads = d_hidden, d_weight, d_bias, d_counted, d_left, d_scores
        assert nats is not None
        return nats

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        given = [grad for grad in ctx.grads if grad is not None]
        scaled = iter(_torch._foreach_mul(given, grad_outputs[0]))
        d_hidden, d_weight, d_bias, d_counted, d_left, d_scores = (
            None if grad is None else next(scaled) for grad in ctx.grads
        )
        return d_hidden, d_weight, d_bias, None, d_counted, d_left, None, d_scores, None, None


def _plus(total: Tensor | None, more: Tensor, dtype: torch.dtype) -> Tensor:
    return more.to(dtype) if total is None else total.add_(more)


def _joined(chunks: Sequence[Tensor | None]) -> Tensor | None:
    parts = [chunk for chunk in chunks if chunk is not None]
    return torch.cat(parts) if len(parts) > 1 else parts[0] if parts else None
