"""Muon for the weight matrices, AdamW for everything else; Adam as published for `original`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from newllm.config import Settings
from newllm.device import fast_bf16

MUON_RATE = 10.0
"""Muon's rate as a multiple of the learning rate (an update of Muon has unit spectral norm)."""

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Replace the singular values of each matrix [K, M, N] by about one.

    Newton-Schulz iteration of Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers"),
    for K matrices at once, computed in `dtype`.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(dtype)
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x.float(), keepdim=True) + 1e-7).to(dtype)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


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
        """Update all parameters that have a gradient."""
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
                update = parameter.grad.lerp(momentum, group["momentum"])
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


def make_optimizers(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """The optimizers of a run; each group remembers its peak rate as `peak_lr`."""
    if settings.architecture == "original":
        adam = torch.optim.Adam(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        optimizers: list[torch.optim.Optimizer] = [adam]
    else:
        optimizers = _muon_and_adamw(model, settings)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _muon_and_adamw(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Matrices inside the blocks to Muon; embedding, gates' biases, norms and filters to AdamW."""
    matrices: dict[int, list[nn.Parameter]] = {}
    others = []
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and name.endswith("_proj.weight"):
            matrices.setdefault(3 if name.endswith("in_proj.weight") else 1, []).append(parameter)
        else:
            others.append(parameter)
    muon = Muon(
        [{"params": params, "pieces": pieces} for pieces, params in matrices.items()],
        lr=settings.learning_rate * MUON_RATE,
        weight_decay=settings.weight_decay,
    )
    adamw = torch.optim.AdamW(
        others, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    return [muon, adamw]
