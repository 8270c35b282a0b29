"""Growing a trained `ContextLM` without changing what it computes.

Deeper and wider models that start from a smaller one's function save much of its training (Net2Net,
Chen et al. 2015, arXiv:1511.05641; LEMON, Wang et al. 2023, arXiv:2310.07999):

- a new block adds nothing to the stream, because its output projections start at zero;
- new context channels and new units of a feed-forward read at random and are read by zeros, and
  context channels are normalised in groups of their own;
- the stream is widened by whole copies of itself. Layer norms of copies are copies of the norm,
  a matrix W that read the stream becomes [W / k + R_1, ..., W / k + R_k] with random R that sum to
  zero (so that the copies differ), and a matrix that writes to it is repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from newllm.config import ModelSettings, option_name, parse_model
from newllm.errors import UserError
from newllm.model.context import group_size
from newllm.model.context.lm import ContextLM
from newllm.model.spec import find_spec

GROWING = ("num_layers", "context_dim", "embed_dim", "hidden_dim")
"""Settings that may grow."""

TOLERANCE = 1e-5
"""Largest difference of a logit that growth may make (computed in float64)."""

_TOLD_APART = 0.5
"""Size of the random R, in units of a fresh matrix."""

_CHECKED_LANES, _CHECKED_TOKENS = 2, 96

# What the axes of each parameter run over; "reads" is the stream as the input of a matrix.
_AXES = {
    "embedding.weight": ("entries", "stream"),
    "pairs.table": ("pairs", "pair"),
    "pairs.widen": ("pair", "stream"),
    "embedding_norm": ("stream",),
    "norm": ("reads",),
    "recall.project": ("stream", "reads"),
    "recall.order": ("orders", "stream"),
    "recall.times": ("times", "stream"),
    "recall.gate": ("orders", "stream"),
    "recall.bias": ("orders", "times"),
    "counts.gate": ("orders", "stream"),
    "counts.bias": ("orders", "confidences"),
    "mixer_norm": ("stream",),
    "in_proj.weight": ("contexts", "reads"),
    "forget_bias": ("context",),
    "read_bias": ("context",),
    "conv_weight": ("taps", "context"),
    "read_scale": ("context",),
    "out_proj.weight": ("stream", "context"),
    "feed_forward.norm": ("stream",),
    "feed_forward.up_proj.weight": ("hidden", "reads"),
    "feed_forward.down_proj.weight": ("stream", "hidden"),
}


def grown_settings(before: ModelSettings, sizes: Mapping[str, int]) -> ModelSettings:
    """The shape with these sizes in place of the old ones.

    Raises:
        UserError: the shape cannot be grown to that without changing the function.
    """
    if not find_spec(before.architecture).can_grow:
        raise UserError(
            f"grow: this is a model of architecture {before.architecture}; only context can grow"
        )
    after = parse_model({**before.model_dump(), **sizes})
    for name in GROWING:
        old, new = getattr(before, name), getattr(after, name)
        if new < old:
            raise UserError(
                f"{option_name(name)} {new}: the model has {old} already, and growing cannot shrink"
            )
    if all(getattr(before, name) == getattr(after, name) for name in GROWING):
        shape = " ".join(f"{option_name(name)} {getattr(before, name)}" for name in GROWING)
        raise UserError(f"grow: nothing to grow; the model has {shape}")
    group = group_size(before.context_dim)
    if group_size(after.context_dim) != group:
        raise UserError(
            f"--context-dim {after.context_dim}: channels are normalised in groups of {group}; "
            f"give a multiple of {group}"
        )
    if after.embed_dim % before.embed_dim:
        raise UserError(
            f"--embed-dim {after.embed_dim}: the stream grows by whole copies; "
            f"give a multiple of {before.embed_dim}"
        )
    return after


@torch.no_grad()
def grow(model: ContextLM, after: ModelSettings, seed: int = 0) -> ContextLM:
    """A larger model that computes the same function.

    Args:
        model: the trained one; unchanged.
        after: its new shape, from :func:`grown_settings`.
        seed: of the new weights.

    Raises:
        ArithmeticError: the logits differ by more than `TOLERANCE`; nothing should be written.
    """
    before = model.settings
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        larger = ContextLM(after, model.vocab_size)
        old = model.state_dict()
        for name, fresh in larger.named_parameters():
            if name in old:
                fresh.copy_(_enlarged(name, old[name].to(fresh), fresh, before, after))
        if larger.counts is not None and model.counts is not None:
            own = larger.counts.state_dict()
            larger.counts.load_state_dict({**own, "packed": model.counts.packed})
        difference = largest_difference(model, larger)
    if not difference <= TOLERANCE:
        raise ArithmeticError(f"growth changed a logit by {difference:.2g}; nothing is written")
    return larger.to(model.embedding.weight.device)


def grow_moments(
    moments: Mapping[str, Mapping[str, Any]], before: ModelSettings, after: ModelSettings
) -> dict[str, dict[str, Any]]:
    """An optimizer's moments of each parameter, for the grown model: zero for what is new.

    Gradients of copies are the gradient, or equal parts of it where copies act together.
    """
    copies = after.embed_dim // before.embed_dim
    sizes = _sizes(after)
    grown: dict[str, dict[str, Any]] = {}
    for name, parts in moments.items():
        axes = _AXES[_kind(name)]
        fraction = 1.0 / copies if "stream" in axes else 1.0
        grown[name] = {}
        for part, value in parts.items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                grown[name][part] = value  # the number of steps
                continue
            pieces = [
                sizes.get(axis, length * copies if axis in ("stream", "reads") else length)
                for axis, length in zip(axes, value.shape, strict=True)
            ]
            factor = fraction**2 if part == "exp_avg_sq" else fraction
            grown[name][part] = _placed(
                _copied(value, axes, copies) * factor, value.new_zeros(pieces), axes
            )
    return grown


def old_entries(name: str, larger: Tensor, before: ModelSettings) -> Tensor:
    """Where a grown model's parameter holds what the smaller model had: bool, its shape.

    Only for growth that left the width of the stream as it was.
    """
    if _layer(name) >= before.num_layers:
        return torch.zeros_like(larger, dtype=torch.bool)
    axes = _AXES[_kind(name)]
    shape = [_sizes(before).get(axis, size) for axis, size in zip(axes, larger.shape, strict=True)]
    old = torch.ones(shape, dtype=torch.bool, device=larger.device)
    return _placed(old, torch.zeros_like(larger, dtype=torch.bool), axes)


@torch.no_grad()
def largest_difference(model: ContextLM, larger: ContextLM) -> float:
    """Largest |difference| of logits over random texts with a reset, in float64."""
    generator = torch.Generator().manual_seed(0)
    shape = _CHECKED_LANES, _CHECKED_TOKENS
    ids = torch.randint(model.vocab_size, shape, generator=generator)
    reset = torch.zeros(shape, dtype=torch.bool)
    third = _CHECKED_TOKENS // 3
    reset[:, third] = True
    ids[:, 2 * third :] = ids[:, third : 2 * third]  # what recall finds again
    both = []
    for candidate in (model, larger):
        exact = ContextLM(candidate.settings, candidate.vocab_size).double().eval()
        exact.load_state_dict(candidate.state_dict())
        both.append(exact.logits(exact(ids, reset=reset)[0]))
    return float((both[0] - both[1]).abs().max())


def _enlarged(
    name: str, old: Tensor, fresh: Tensor, before: ModelSettings, after: ModelSettings
) -> Tensor:
    """A parameter of the larger model: the old one in its place, fresh numbers around it."""
    copies = after.embed_dim // before.embed_dim
    axes = _AXES[_kind(name)]
    enlarged = _copied(old, axes, copies)
    if "reads" in axes and copies > 1:
        enlarged /= copies
        if len(axes) == 2:
            enlarged += _TOLD_APART * _summing_to_zero(_part(fresh, enlarged.shape, axes), copies)
    return _placed(enlarged, fresh.clone(), axes)


def _copied(tensor: Tensor, axes: tuple[str, ...], copies: int) -> Tensor:
    """Repeated along the stream."""
    return tensor.repeat([copies if axis in ("stream", "reads") else 1 for axis in axes])


def _summing_to_zero(matrix: Tensor, copies: int) -> Tensor:
    parts = matrix.unflatten(1, (copies, -1))
    return (parts - parts.mean(dim=1, keepdim=True)).flatten(1)


def _placed(tensor: Tensor, target: Tensor, axes: tuple[str, ...]) -> Tensor:
    """`target` with `tensor` copied into its leading block, of each matrix of a fused one."""
    _view(target, tensor.shape, axes).copy_(_pieces(tensor, axes))
    return target


def _part(tensor: Tensor, shape: torch.Size, axes: tuple[str, ...]) -> Tensor:
    """What `_placed` would replace, in the shape of the smaller tensor."""
    return _view(tensor, shape, axes).reshape(shape)


def _view(tensor: Tensor, shape: torch.Size, axes: tuple[str, ...]) -> Tensor:
    view = _pieces(tensor, axes)
    inner = (shape[0] // 3, *shape[1:]) if axes[0] == "contexts" else shape
    for axis, size in enumerate(reversed(inner), start=1):
        view = view.narrow(view.ndim - axis, 0, size)
    return view


def _pieces(tensor: Tensor, axes: tuple[str, ...]) -> Tensor:
    """Write, forget and read-out are one fused matrix: its pieces as an axis of their own."""
    return tensor.unflatten(0, (3, -1)) if axes[0] == "contexts" else tensor


def _sizes(settings: ModelSettings) -> dict[str, int]:
    return {
        "context": settings.context_dim,
        "contexts": 3 * settings.context_dim,
        "hidden": settings.hidden_dim,
    }


def _layer(name: str) -> int:
    """Number of the block that a parameter belongs to; -1 for none."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else -1


def _kind(name: str) -> str:
    return name.split(".", 2)[2] if name.startswith("blocks.") else name
