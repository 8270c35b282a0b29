"""The definition of the fused operations in plain torch: slow, differentiable, easy to check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.data.loader import IGNORED
from newllm.device import send
from newllm.model.dropout import Noise, dropout

EPSILON = 1e-5
"""Added to the variance by every norm."""

LEAST = 1e-37
"""Probabilities are taken for no less, so that their ratios and logarithms are finite."""


Facts = dict[str, Tensor]
"""What is known of tokens before anything is computed with weights, by name.

`.._rows` are rows of a table to be looked up, [...]."""


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """Layer norm of the last dimension, without a bias: [..., D] and [D] -> [..., D]."""
    return F.layer_norm(x, weight.shape, weight, eps=EPSILON)


def norms_together(weights: Sequence[Tensor], x: Tensor) -> Sequence[Tensor]:
    """Weights of norms of a stream like `x`, as they are."""
    return weights


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
    return stream, norm(stream, weight).to(dtype)


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al. 2021, "Primer", arXiv:2109.08668); any shape."""
    return F.relu(x).square()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T: [..., I] and [O, I] -> [..., O]."""
    return F.linear(x, weight)


def embedding(
    table: Tensor, index: Tensor, base: Tensor | None = None, holes: bool = False
) -> Tensor:
    """Rows [..., D] of a table [R, D], added to `base` where there is one.

    With `holes` the index [...] may be -1, for zeros.
    """
    if holes:
        rows = F.embedding(index.clamp(min=0), table) * (index >= 0)[..., None]
    else:
        rows = F.embedding(index, table)
    return rows if base is None else base + rows


def sent(facts: Facts, device: torch.device) -> Facts:
    """Facts where they are used; what an exported model has in place of the kernels' `sent`."""
    return {name: fact.to(device) for name, fact in facts.items()}


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


@dataclass(frozen=True)
class NatsGradients:
    """What :func:`nats_gradient_` says of N positions, besides the gradient of their logits."""

    nats: Tensor
    """-ln p(target), fp32 [N]; 0 where nothing is scored."""
    d_scores: Tensor | None = None
    """Gradients of the scores of copying, of `counted` and of `left`, [N]."""
    d_counted: Tensor | None = None
    d_left: Tensor | None = None


def nats_gradient_(
    logits: Tensor,
    targets: Tensor,
    copying: tuple[Tensor, Tensor] | None = None,
    mixing: tuple[Tensor, Tensor] | None = None,
    softmax: Callable[[Tensor, Tensor], Tensor] = softmax_gradient_,
) -> NatsGradients:
    """Turn logits, in place, into the gradient of their loss: see `model.loss.nats_of`.

    Args:
        logits: of the network alone, [N, V].
        targets: [N]; `IGNORED` has no nats and no gradients.
        copying: an entry of each position and the score of copying it, [N] both.
        mixing: counted and left, [N] both.
        softmax: what stands for :func:`softmax_gradient_`.
    """
    scored = targets != IGNORED
    wanted = targets.clamp(min=0)
    of_target = logits.gather(1, wanted[:, None])[:, 0].float()
    nats = softmax(logits, wanted)
    d_logits = logits  # what they have become
    d_scores, d_counted, d_left = None, None, None
    # With ln Z of the logits, copying takes sigmoid(score - ln Z) of everything and leaves the
    # rest; `alone` is p(target) without what is copied. The score is never written into the logits:
    # 16 bits would round it, and what is left could be below zero.
    rest, by_copying, own_share = torch.ones_like(nats), torch.zeros_like(nats), 1.0
    ln_alone = -nats
    if copying is not None:
        entries, scores = copying
        lead = scores - (of_target + nats)
        rest, ln_copied = torch.sigmoid(-lead), F.logsigmoid(lead)
        ln_alone = ln_alone + F.logsigmoid(-lead)
        is_target = entries == targets
        ln_by_copying = ln_copied.masked_fill(~is_target, -torch.inf)
        nats = -torch.logaddexp(ln_alone, ln_by_copying)
        by_copying = ln_by_copying.exp()
        own_share = torch.exp(ln_alone + nats)
        d_scores = ln_copied.exp() - torch.exp(ln_by_copying + nats)
    factor, of_counts = 1.0, 0.0
    alone = ln_alone.exp().clamp(min=LEAST)
    if mixing is not None:
        counted, left = mixing
        mixture = (rest * counted + left * alone + by_copying).clamp(min=LEAST)
        nats = -mixture.log()
        d_counted, d_left = -rest / mixture, -alone / mixture
        # -ln mixture = ln Z' - ln(counted Z + left exp(logit) + exp(score) where the target is
        # copied), Z' = Z + exp(score); its gradient is added.
        factor, of_counts = 2 - counted / mixture, left * alone / mixture
    if copying is not None or mixing is not None:
        d_logits *= (rest * factor)[:, None].to(logits.dtype)
        d_target = alone * factor - own_share - of_counts  # set, not added: 16 bits again
        d_logits.scatter_(1, wanted[:, None], d_target[:, None].to(logits.dtype))
    if logits.device.type != "cpu" or not bool(scored.all()):  # a GPU is not asked: that waits
        d_logits *= scored[:, None]
        nats = nats * scored
        d_scores, d_counted, d_left = (
            None if part is None else part * scored for part in (d_scores, d_counted, d_left)
        )
    return NatsGradients(nats, d_scores, d_counted, d_left)


def let_copy_(logits: Tensor, candidates: Tensor, scores: Tensor) -> None:
    """Give candidates [N, 1] the entry of copying besides their own in logits [N, V], in place."""
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    # Not `gather`: its backward would need the logits as they were.
    own = logits[rows, candidates].to(scores.dtype)
    logits.scatter_(1, candidates, torch.logaddexp(own, scores).to(logits.dtype))


@dataclass(frozen=True)
class StepCheck:
    """Whether a step may be taken, as its device alone knows; fp32 scalars there."""

    outcome: Tensor
    """The step's nats, and 1 where it may be taken, else 0: [2]."""
    found_inf: Tensor
    """1 where nats or gradients are not finite, else 0."""
    grad_scale: Tensor
    """What the gradients are divided by: the loss's scale, and more where they are too long."""


def check_step(nats: Tensor, norms: Tensor, scale: Tensor | None, clip: float) -> StepCheck:
    """Whether a step may be taken, by its nats and the norms of its gradients.

    Args:
        nats: of the step.
        norms: of each gradient, [P].
        scale: by which the loss was multiplied, or None.
        clip: norm of all gradients above which they are scaled down.
    """
    loss_scale = 1.0 if scale is None else scale
    norm = torch.linalg.vector_norm(norms) / loss_scale
    both = norm + nats
    found_inf = (both - both != 0).float()  # inf - inf is no number
    grad_scale = ((norm + 1e-6) / clip).clamp(min=1) * loss_scale
    return StepCheck(torch.stack([nats, 1 - found_inf]), found_inf, grad_scale)


@dataclass(frozen=True)
class Places:
    """Where K matrices of several shapes stand in one vector, and in one stack [K, M, N].

    In the stack each lies on its longer side, with zeros beside the smaller ones.
    """

    entries: tuple[tuple[int, int, int, int, int], ...]
    """Of each matrix as it lies: its first number in the vector, how far it is from there to the
    next row and to the next column, and its rows and columns."""
    _table: list[Tensor] = field(default_factory=list, init=False, compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """[K, M, N]."""
        *_, rows, columns = zip(*self.entries, strict=True)
        return len(self.entries), max(rows), max(columns)

    def table_on(self, device: torch.device) -> Tensor:
        """`entries` there, int64 [K, 5]; copied once."""
        if not self._table:
            self._table.append(send(torch.tensor(self.entries), device))
        return self._table[0]

    def of(self, vector: Tensor) -> list[Tensor]:
        """Views of the matrices in the vector, as they lie."""
        return [
            vector.as_strided((rows, columns), (down, across), start)
            for start, down, across, rows, columns in self.entries
        ]


def blend(
    gradients: Tensor,
    momenta: Tensor,
    places: Places,
    found_inf: Tensor,
    grad_scale: Tensor,
    keep: float,
) -> Tensor:
    """Nesterov's momentum of gradients / grad_scale, or of nothing where `found_inf`.

    Args:
        gradients: in one vector.
        momenta: of them, changed in place where `places` are.
        places: of the matrices.
        found_inf: see :class:`StepCheck`, as `grad_scale`.
        keep: decay of the momentum.

    Returns:
        what the momenta will be if the gradients stay what they are: a stack [K, M, N].
    """
    stack = gradients.new_zeros(places.shape)
    for ahead, gradient, momentum in zip(
        stack, places.of(gradients), places.of(momenta), strict=True
    ):
        given = torch.where(found_inf > 0, momentum, gradient / grad_scale)
        momentum.lerp_(given, 1 - keep)
        rows, columns = given.shape
        ahead[:rows, :columns] = given.lerp(momentum, keep)
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
    """Shrink matrices by rate * decay and subtract rate * their own rate * what the stack has.

    Args:
        weights: in one vector, changed in place where `places` are.
        stack: [K, M, N], finite.
        places: of the matrices.
        rates: of each matrix, fp32 [K].
        found_inf: 1 where nothing may change, else 0.
        rate: of all, a number.
        decay: of all.
    """
    taken = rate * (1 - found_inf)
    for weight, change, own in zip(places.of(weights), stack, rates, strict=True):
        rows, columns = weight.shape
        moved = change[:rows, :columns].to(weight.dtype) * (taken * own)
        weight.mul_(1 - decay * taken).sub_(moved)
