"""Muon for the weight matrices, AdamW for everything else; Adam as published for `original`.

Also what surrounds their step: numbers that are not finite, entries that do not train, moments by
name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from newllm.config import ModelSettings, Settings
from newllm.device import fast_bf16
from newllm.model import LanguageModel
from newllm.model.growth import old_entries
from newllm.model.residual import ResidualLM
from newllm.model.spec import find_spec

_torch: Any = torch
"""Its functions on many tensors at once, which are named as private."""

MUON_RATE = 10.0
"""Muon's rate as a multiple of the learning rate (an update of Muon has unit spectral norm)."""

MUON_MOMENTUM = 0.7
"""Short, as our runs are: 0.95 cost 2% over 200 steps, and over 700 still 1%."""

VECTOR_RATE = 3.0
"""That of norms, filters, gates' biases and the bigram hash embedding; the token embedding has the
plain one."""

ADAM_BETAS = (0.7, 0.98)
"""As short a momentum as Muon's; over 300 steps 0.9% fewer bits per byte than with (0.9, 0.95)."""

_POLAR_EXPRESS = (
    (8.2193, -23.3375, 16.6266),
    (3.9641, -2.8377, 0.5158),
    (3.4369, -2.4752, 0.4761),
    (2.4901, -1.8343, 0.4368),
)
"""Coefficients of X, (X X^T) X and (X X^T)^2 X in each iteration: each the polynomial nearest to 1
on what the one before leaves of the singular values 0.003..1, which end within 0.8..1.2 (Amsel et
al. 2025, "The Polar Express", arXiv:2505.16932). Four of these do what took Muon's first five.
Beyond its interval a polynomial explodes, and bfloat16 would carry singular values there: hence a
margin of 2% in all but the last."""

NEWTON_STEPS = len(_POLAR_EXPRESS)
"""Iterations of Muon in each step."""


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Replace the singular values of each matrix [K, M, N] by about one; the result is `dtype`.

    The iteration of Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers"), for K
    matrices at once, computed in `dtype`.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    # Scaled in fp32 first: gradients may be too small for their squares.
    x = _divided(x, torch.linalg.matrix_norm(x, keepdim=True).add_(1e-20), dtype)
    gram = x @ x.mT
    # In Frobenius norms, |X X^T|^(1/2) bounds the spectral norm from above, much closer than |X|.
    norm = torch.linalg.vector_norm(gram, dim=(1, 2), keepdim=True, dtype=torch.float32)
    bound = norm.sqrt_().add_(1e-20)
    x, gram = _divided(x, bound, dtype), _divided(gram, bound.square(), dtype)
    for iteration, (a, b, c) in enumerate(_POLAR_EXPRESS):
        if iteration > 0:
            gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _divided(x: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    """x / by, computed in fp32 and rounded as it is written."""
    return torch.div(x, by, out=torch.empty_like(x, dtype=dtype))


def muon_dtype(device: torch.device) -> torch.dtype:
    """Type in which Muon's iteration runs: half precision where there are units for it.

    All numbers of the iteration are near one. fp16 holds them with three more bits than bf16.
    """
    if fast_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised: every direction of a matrix moves equally far.

    Equal to `torch.optim.Muon` (tested), besides three things: matrices of one shape are
    orthogonalised together, a matrix that is several stacked ones (`pieces` of its parameter
    group) is treated as those, and the iteration runs in the type that is fast (`muon_dtype`).

    On a GPU nothing is decided by the host: with `found_inf` (a number there, as torch's fused
    optimizers take it) a step that is not finite leaves weights and momenta as they are.

    Args:
        groups: parameter groups, which have one rate; each may set `pieces`, into how many equal
            parts along the first dimension its matrices are split.
        lr: size of a step in units of spectral norm.
        momentum: decay of the (Nesterov) momentum.
        weight_decay: decoupled, times the rate.
    """

    grad_scale: Tensor | None = None
    """What the gradients are divided by first; both are set for a step by `step_unless`."""
    found_inf: Tensor | None = None

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "pieces": 1}
        super().__init__(groups, defaults)
        self._momenta: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; the gradients are overwritten."""
        assert closure is None
        trained = [
            (parameter, group["pieces"])
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not trained:
            return
        updates = self._updates([parameter for parameter, _ in trained])
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for (parameter, pieces), update in zip(trained, updates, strict=True):
            for piece, change in zip(parameter.chunk(pieces), update.chunk(pieces), strict=True):
                by_shape.setdefault(tuple(piece.shape), []).append((piece, change))
        rate, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        for (rows, columns), entries in by_shape.items():
            weights, changes = zip(*entries, strict=True)
            dtype = muon_dtype(weights[0].device)
            moved = orthogonalize(torch.stack(changes), dtype)
            factor = -rate * max(1.0, rows / columns) ** 0.5
            if self.found_inf is None:
                _torch._foreach_mul_(weights, 1 - rate * decay)
                _torch._foreach_add_(weights, moved.unbind(), alpha=factor)
            else:
                taken = 1 - self.found_inf.view(1, 1, 1)
                _torch._foreach_mul_(weights, 1 - rate * decay * taken.view(()))
                _torch._foreach_add_(weights, (moved * (factor * taken)).unbind())

    def _updates(self, parameters: list[Tensor]) -> Sequence[Tensor]:
        """Nesterov: what the momentum will be if the gradient stays what it is."""
        keep = self.defaults["momentum"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.found_inf is None:
            momenta = [self._momentum(parameter) for parameter in parameters]
            _torch._foreach_lerp_(momenta, gradients, 1 - keep)
            _torch._foreach_lerp_(gradients, momenta, keep)
            return gradients
        # All of them as one: a launch costs as much as a matrix.
        momentum = self._momentum_of_all(parameters)
        gradient = torch.cat([gradient.flatten() for gradient in gradients])
        if self.grad_scale is not None:
            gradient.div_(self.grad_scale)
        gradient = torch.where(self.found_inf > 0, momentum, gradient)
        momentum.lerp_(gradient, 1 - keep)
        parts = gradient.lerp_(momentum, keep).split([p.numel() for p in parameters])
        return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]

    def _momentum_of_all(self, parameters: list[Tensor]) -> Tensor:
        """All momenta in one vector, of which those in the optimizer's state are views."""
        momenta = [self._momentum(parameter) for parameter in parameters]
        flat = self._momenta
        if flat is None or any(momentum._base is not flat for momentum in momenta):
            self._momenta = flat = torch.cat([momentum.flatten() for momentum in momenta])
            parts = flat.split([momentum.numel() for momentum in momenta])
            for parameter, part in zip(parameters, parts, strict=True):
                self.state[parameter]["momentum_buffer"] = part.view_as(parameter)
        return flat


def make_optimizers(model: LanguageModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """The optimizers of a run; each group remembers its peak rate as `peak_lr`."""
    if find_spec(settings.architecture).optimizer == "adam":
        adam = torch.optim.Adam(
            model.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=next(model.parameters()).device.type == "cuda",
        )
        optimizers: list[torch.optim.Optimizer] = [adam]
    else:
        assert isinstance(model, ResidualLM)
        optimizers = _muon_and_adamw(model, settings)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _muon_and_adamw(model: ResidualLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Matrices inside the blocks to Muon, everything else to AdamW."""
    by_pieces: dict[int, list[Tensor]] = {}
    for parameter, pieces in model.matrices():
        by_pieces.setdefault(pieces, []).append(parameter)
    taken = {id(parameter) for group in by_pieces.values() for parameter in group}
    embedding = model.embedding.weight
    taken.add(id(embedding))
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    muon = Muon(
        [{"params": group, "pieces": pieces} for pieces, group in by_pieces.items()],
        lr=settings.learning_rate * MUON_RATE,
        momentum=MUON_MOMENTUM,
        weight_decay=settings.weight_decay,
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [embedding]},
            {"params": others, "lr": settings.learning_rate * VECTOR_RATE},
        ],
        lr=settings.learning_rate,
        betas=ADAM_BETAS,
        weight_decay=0.0,
        fused=True,
    )
    return [muon, adamw]


def loss_scale(scaler: torch.amp.GradScaler) -> Tensor | float:
    """What the gradients were multiplied by, where it is known: on the device."""
    if not scaler.is_enabled():
        return 1.0
    assert scaler._scale is not None  # since a loss was scaled
    return scaler._scale


def step_unless(
    optimizers: Iterable[torch.optim.Optimizer],
    found_inf: Tensor,
    grad_scale: Tensor,
    scaler: torch.amp.GradScaler,
) -> None:
    """Step every optimizer where `found_inf` is 0, which a GPU knows alone: nobody waits for it.

    Gradients are divided by `grad_scale` first (that is how torch's fused optimizers are told by
    its scaler). The scale of fp16 then changes.
    """
    for optimizer in optimizers:
        optimizer.found_inf, optimizer.grad_scale = found_inf, grad_scale  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
    if scaler.is_enabled():
        _torch._amp_update_scale_(
            scaler._scale, scaler._growth_tracker, found_inf, scaler.get_growth_factor(),
            scaler.get_backoff_factor(), scaler.get_growth_interval(),
        )  # fmt: skip


def get_moments(
    model: LanguageModel, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, dict[str, Any]]:
    """What the optimizers remember of each parameter's gradients, by the parameter's name."""
    states = [optimizer.state for optimizer in optimizers]
    return {
        name: dict(state[parameter])
        for name, parameter in model.named_parameters()
        for state in states
        if parameter in state
    }


def set_moments(
    model: LanguageModel,
    optimizers: Sequence[torch.optim.Optimizer],
    moments: Mapping[str, Mapping[str, Any]],
) -> None:
    """Give the optimizers what :func:`get_moments` took from others of the same kind."""
    parameters = dict(model.named_parameters())
    for optimizer in optimizers:
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parts in moments.items():
            parameter = parameters[name]
            if id(parameter) in trained and parameter.requires_grad:
                optimizer.state[parameter] = {
                    part: value.to(parameter.device) if isinstance(value, Tensor) else value
                    for part, value in parts.items()
                }


class Frozen:
    """With --freeze-old only what growing added trains: the old entries stay as they are."""

    def __init__(self, model: nn.Module, before: ModelSettings) -> None:
        """Wholly old parameters of the model, whose shape was `before`, ask for no gradients."""
        self._partly: list[tuple[Tensor, Tensor]] = []  # parameter, where it is old
        self._held: list[Tensor] = []
        for name, parameter in model.named_parameters():
            old = old_entries(name, parameter.detach(), before)
            if bool(old.all()):
                parameter.requires_grad_(False)
            elif bool(old.any()):
                self._partly.append((parameter, old))

    @torch.no_grad()
    def hold(self) -> None:
        """From now on the old entries are what they are at this moment."""
        self._held = [parameter.clone() for parameter, _ in self._partly]

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Before clipping and stepping: no part of the step is spent on the old entries."""
        for parameter, old in self._partly:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(old, 0.0)

    @torch.no_grad()
    def restore(self) -> None:
        """After a step: undo what momentum and weight decay did to the old entries."""
        for (parameter, old), held in zip(self._partly, self._held, strict=True):
            parameter.copy_(torch.where(old, held, parameter))
