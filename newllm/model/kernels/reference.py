"""The definition of the fused operations in plain torch: slow, differentiable, easy to check."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.model.dropout import Noise, dropout

EPSILON = 1e-5
"""Added to the variance by every norm."""


def add_norm(
    stream: Tensor | None,
    branch: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    p: float = 0.0,
    noise: Noise | None = None,
    site: int = 0,
) -> tuple[Tensor, Tensor]:
    """Add a branch, with dropout, to the residual stream, and normalise the sum.

    Args:
        stream: [B, T, D] fp32, or None for zeros.
        branch: what a layer adds, [B, T, D].
        weight: of the layer norm, [D].
        dtype: type of the normalised output, that of the matrix product it enters.
        p: probability with which dropout zeroes an element of the branch.
        noise: of this step, or None for no dropout.
        site: number of this operation in the model, for the noise.

    Returns:
        the new stream, fp32, and its layer norm, `dtype`: [B, T, D] both.
    """
    branch = dropout(branch.to(torch.promote_types(branch.dtype, torch.float32)), p, noise, site)
    stream = branch if stream is None else stream + branch
    return stream, F.layer_norm(stream, weight.shape, weight, eps=EPSILON).to(dtype)


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al. 2021, "Primer", arXiv:2109.08668); any shape."""
    return F.relu(x).square()


def softmax_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """Turn logits, in place, into the gradient of their cross-entropy: softmax minus one-hot.

    Args:
        logits: [N, V].
        targets: class of each row, [N].

    Returns:
        -ln p(target) of each row, fp32 [N] (float64 if `logits` is).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = wide - wide.logsumexp(dim=1, keepdim=True)
    nats = -log_p.gather(1, targets[:, None])[:, 0]
    gradient = log_p.exp()
    gradient[torch.arange(len(targets), device=targets.device), targets] -= 1
    logits.copy_(gradient)
    return nats
