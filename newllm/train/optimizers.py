"""Muon for the weight matrices, AdamW for everything else; Adam as published for `original`.

Also what surrounds their step: the scaler of fp16, entries that do not train, moments by name.
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
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-20)).to(dtype)
    gram = x @ x.mT
    # In Frobenius norms, |X X^T|^(1/2) bounds the spectral norm from above, much closer than |X|.
    bound = torch.linalg.matrix_norm(gram.float(), keepdim=True).sqrt() + 1e-20
    x, gram = (x / bound).to(dtype), (gram / bound.square()).to(dtype)
    for iteration, (a, b, c) in enumerate(_POLAR_EXPRESS):
        if iteration > 0:
            gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised: every direction of a matrix moves equally far.

    Equal to `torch.optim.Muon` (tested), besides three things: matrices of one shape are
    orthogonalised together, a matrix that is several stacked ones (`pieces` of its parameter
    group) is treated as those, and the iteration runs in fp32 where bf16 is slow.

    Args:
        groups: parameter groups; each may set `pieces`, into how many equal parts along the first
            dimension its matrices are split.
        lr: size of a step in units of spectral norm.
        momentum: decay of the (Nesterov) momentum.
        weight_decay: decoupled, times the rate.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "pieces": 1}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; the gradients are overwritten."""
        assert closure is None
        by_shape: dict[tuple[Any, ...], list[tuple[Tensor, Tensor, dict[str, Any]]]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"]
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                # Nesterov: what the momentum will be if the gradient stays what it is.
                update = parameter.grad.lerp_(momentum, group["momentum"])
                for piece, change in zip(
                    parameter.chunk(group["pieces"]), update.chunk(group["pieces"]), strict=True
                ):
                    key = (*piece.shape, piece.device)
                    by_shape.setdefault(key, []).append((piece, change, group))
        for (rows, columns, device), entries in by_shape.items():
            dtype = torch.bfloat16 if fast_bf16(device) else torch.float32
            changes = orthogonalize(torch.stack([change for _, change, _ in entries]), dtype)
            scale = max(1.0, rows / columns) ** 0.5
            for (piece, _, group), change in zip(entries, changes, strict=True):
                piece.mul_(1 - group["lr"] * group["weight_decay"])
                piece.add_(change, alpha=-group["lr"] * scale)


def make_optimizers(model: LanguageModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """The optimizers of a run; each group remembers its peak rate as `peak_lr`."""
    if find_spec(settings.architecture).optimizer == "adam":
        adam = torch.optim.Adam(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
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


def step_all(optimizers: Iterable[torch.optim.Optimizer], scaler: torch.amp.GradScaler) -> None:
    """Step every optimizer through the scaler of fp16, whose scale then changes once for all.

    It skips an optimizer whose gradients (unscaled already) overflowed; disabled, it only steps.
    """
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()


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
        self._held = [parameter[old].clone() for parameter, old in self._partly]

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
            parameter[old] = held
