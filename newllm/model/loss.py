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
from newllm.model.recall.layer import let_copy_

_CHUNK_ELEMENTS = 1024 * 1024
"""Logits held at a time: 4 MB in fp32, about what a core's cache holds."""

_LEAST = 1e-37
"""Probabilities are taken for no less, so that their ratios and logarithms are finite."""


def sum_of_nats(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    copying: tuple[Tensor, Tensor] | None = None,
    mixing: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sum over the scored positions of -ln p(target), differentiable.

    With `mixing`, what is differentiated is the sum of this and of the network's own -ln p(target):
    from the mixture alone a network learns only what the counts do not know, and not well. Of the
    two, the score of copying is differentiated in the network's alone: else a model that can count
    copies less, and no longer what no training row has (docs/LOG.md).

    Args:
        hidden: output of the model's trunk, [..., D].
        weight: output matrix, [V, D]; `bias`: [V] or None.
        targets: next-token ids, same leading shape as `hidden`; `IGNORED` is not scored.
        copying: an entry of each position and the score of copying it, [..., 1] both, -inf for
            none; its logit becomes ln(exp(logit) + exp(score)).
        mixing: counted and left, [...] both: the network's p(target), before anything is copied,
            becomes counted + left * p(target).

    Returns:
        fp32 scalar. Divide by the number of scored tokens (of the whole batch, over all
        micro-batches and processes) to get the mean loss.
    """
    entries, scores = copying or (None, None)
    rows = [targets, *(mixing or (None, None)), entries, scores]
    flat = [None if part is None else part.reshape(targets.numel()) for part in rows]
    scored = targets.reshape(-1) != IGNORED
    hidden = hidden.reshape(-1, hidden.shape[-1])
    if not bool(scored.all()):
        hidden = hidden[scored]
        flat = [None if part is None else part[scored] for part in flat]
    return _SumOfNats.apply(
        hidden, weight, bias, *flat, compute_dtype(weight), torch.is_grad_enabled()
    )


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Type of the matrix products with a weight: autocast's where it is on."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def chunk_rows(vocab_size: int) -> int:
    """How many positions' logits are computed at a time."""
    return max(1, _CHUNK_ELEMENTS // vocab_size)


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
        matrix = weight.to(dtype)
        d_hidden, d_counted, d_left, d_scores = (
            torch.empty_like(part) if with_grad and part is not None else None
            for part in (hidden, counted, left, scores)
        )
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if with_grad else None
        d_bias = torch.zeros_like(bias) if with_grad and bias is not None else None
        nats = hidden.new_zeros((), dtype=torch.float32)
        step = chunk_rows(weight.shape[0])
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], step):
                part = slice(start, start + step)
                rows = hidden[part].to(dtype)
                logits = F.linear(rows, matrix)
                if bias is not None:
                    logits += bias
                own = None
                if entries is not None and scores is not None:
                    own = let_copy_(logits, entries[part, None], scores[part, None])
                wanted = targets[part, None]
                of_target = logits.gather(1, wanted)[:, 0].float()
                of_network = softmax_gradient_(logits, targets[part])
                d_logits = logits  # what they have become
                d_copying = None
                if own is not None and entries is not None and scores is not None:
                    lead = scores[part, None] - own
                    d_copying = _divide_(d_logits, entries[part, None], lead)[:, 0]
                if counted is None or left is None:
                    nats += of_network.sum()
                else:
                    p = torch.exp(-of_network).clamp(min=_LEAST)
                    copied, by_copying = torch.zeros_like(p), torch.zeros_like(p)
                    if own is not None and entries is not None and scores is not None:
                        copied = torch.exp(scores[part] - of_target - of_network)
                        by_copying = (entries[part] == targets[part]) * copied
                    alone = (p - by_copying).clamp(min=0)  # what the network has without copying
                    mixture = (1 - copied) * counted[part] + left[part] * alone + by_copying
                    mixture = mixture.clamp(min=_LEAST)
                    nats -= mixture.log().sum()
                    if d_counted is not None and d_left is not None:
                        d_counted[part], d_left[part] = (copied - 1) / mixture, -alone / mixture
                        # -ln mixture = ln Z' - ln(counted Z + left exp(logit) + exp(score) where
                        # the target is copied), Z' = Z + exp(score); its gradient is added.
                        more = 1 - counted[part] / mixture
                        d_logits *= (1 + more)[:, None].to(dtype)
                        of_wanted = alone * (more / p - left[part] / mixture)
                        d_logits.scatter_add_(1, wanted, of_wanted[:, None].to(dtype))
                if d_hidden is None or d_weight is None:
                    continue
                if d_bias is not None:
                    d_bias += d_logits.sum(dim=0)
                if d_scores is not None and d_copying is not None:
                    d_scores[part] = d_copying
                d_hidden[part] = d_logits @ matrix
                d_weight += d_logits.t() @ rows
        ctx.grads = d_hidden, d_weight, d_bias, d_counted, d_left, d_scores
        return nats

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias, d_counted, d_left, d_scores = (
            None if grad is None else grad * grad_outputs[0] for grad in ctx.grads
        )
        return d_hidden, d_weight, d_bias, None, d_counted, d_left, None, d_scores, None, None


def _divide_(d_logits: Tensor, entries: Tensor, lead: Tensor) -> Tensor:
    """Divide the gradient of entries between logit and score of copying; return the score's.

    Args:
        d_logits: [N, V]; at the entries [N, 1] the logit's own part is left.
        lead: by how much the score is above the logit, [N, 1].
    """
    both = d_logits.gather(1, entries).to(lead.dtype)
    d_logits.scatter_(1, entries, (both * torch.sigmoid(-lead)).to(d_logits.dtype))
    return both * torch.sigmoid(lead)
