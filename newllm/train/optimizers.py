"""Muon for the weight matrices, AdamW for everything else; Adam as published for `original`.

Also what surrounds their step: numbers that are not finite, entries that do not train, moments by
name.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from newllm.config import ModelSettings, Settings
from newllm.device import fast_bf16, send
from newllm.model import LanguageModel
from newllm.model.growth import old_entries
from newllm.model.kernels import Places, blend, check_step, move_
from newllm.model.kernels.reference import StepCheck
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

_SMALL = 8 * 1024 * 1024
"""Numbers up to which matrices of several shapes are one stack on a GPU, which takes longer to be
asked for small products than to compute them. Zeros beside a matrix change nothing."""

NEWTON_STEPS = len(_POLAR_EXPRESS)
"""Iterations of Muon in each step."""


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Replace the singular values of each matrix [K, M, N] by about one; the result is `dtype`.

    The iteration of Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers"), for K
    matrices at once, computed in `dtype`.
    """
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = _iterate(_normalised(wide, torch.empty_like(wide, dtype=dtype)))
    return x if wide is matrices else x.mT


def _normalised(x: Tensor, out: Tensor) -> Tensor:
    """Matrices of Frobenius norm one, rounded as they are written: gradients may be too small for
    their squares, or for fp16.
    """
    return torch.div(x, torch.linalg.matrix_norm(x, keepdim=True).add_(1e-20), out=out)


def _iterate(x: Tensor) -> Tensor:
    """Wide matrices of Frobenius norm one -> with singular values of about one."""
    gram = x @ x.mT
    # In Frobenius norms, |X X^T|^(1/2) bounds the spectral norm from above, much closer than |X|.
    norm = torch.linalg.vector_norm(gram, dim=(1, 2), keepdim=True, dtype=torch.float32)
    bound = norm.sqrt_().add_(1e-20)
    x = torch.div(x, bound, out=torch.empty_like(x))
    gram = torch.div(gram, bound.square(), out=torch.empty_like(gram))
    for iteration, (a, b, c) in enumerate(_POLAR_EXPRESS):
        if iteration > 0:
            gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


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
    optimizers take it) a step that is not finite leaves weights and momenta as they are. The rate
    of its groups is a number there, too, for such a step.

    Args:
        groups: parameter groups, which have one rate; each may set `pieces`, into how many equal
            parts along the first dimension its matrices are split.
        lr: size of a step in units of spectral norm.
        momentum: decay of the (Nesterov) momentum.
        weight_decay: decoupled, times the rate.
    """

    found_inf: Tensor | None = None
    """1 where nothing may change, and what the gradients are divided by first; both are set for a
    step by `step_if_finite`."""
    grad_scale: Tensor | None = None

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "pieces": 1}
        super().__init__(groups, defaults)
        self._vectors: _Vectors | None = None

    def _trained(self) -> list[tuple[Tensor, int]]:
        """The parameters that have a gradient, and how many stacked matrices each one is."""
        return [
            (parameter, group["pieces"])
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; the gradients are overwritten."""
        assert closure is None
        trained = self._trained()
        if not trained:
            return
        rate, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        keep, dtype = self.defaults["momentum"], muon_dtype(trained[0][0].device)
        gradients = [parameter.grad for parameter, _ in trained if parameter.grad is not None]
        if self.found_inf is not None:
            assert self.grad_scale is not None
            vectors = self._in_vectors(trained)
            together = torch.cat([gradient.flatten() for gradient in gradients])
            for places, rates in vectors.stacks:
                stack = blend(
                    together, vectors.momenta, places, self.found_inf, self.grad_scale, keep
                )
                moved = orthogonalize(stack, dtype)
                move_(vectors.weights, moved, places, rates, self.found_inf, rate, decay)
            return
        momenta = [self._momentum(parameter) for parameter, _ in trained]
        _torch._foreach_lerp_(momenta, gradients, 1 - keep)
        _torch._foreach_lerp_(gradients, momenta, keep)  # Nesterov: as if they stayed what they are
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for (parameter, pieces), update in zip(trained, gradients, strict=True):
            for piece, change in zip(parameter.chunk(pieces), update.chunk(pieces), strict=True):
                by_shape.setdefault(tuple(piece.shape), []).append((piece, change))
        for (rows, columns), entries in by_shape.items():
            weights = [weight for weight, _ in entries]
            moved = orthogonalize(torch.stack([change for _, change in entries]), dtype)
            _torch._foreach_mul_(weights, 1 - rate * decay)
            _torch._foreach_add_(weights, moved.unbind(), alpha=-rate * own_rate(rows, columns))

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]

    def _in_vectors(self, trained: list[tuple[Tensor, int]]) -> _Vectors:
        """Weights and momenta in one vector each, of which those they were are views from now on.

        (Again where an optimizer's state was loaded, or other parameters have gradients.)
        """
        parameters = [parameter for parameter, _ in trained]
        momenta = [self._momentum(parameter) for parameter in parameters]
        vectors = self._vectors
        if vectors is None or not (
            _lie_in(vectors.weights, parameters) and _lie_in(vectors.momenta, momenta)
        ):
            self._vectors = vectors = _Vectors(
                torch.cat([parameter.flatten() for parameter in parameters]),
                torch.cat([momentum.flatten() for momentum in momenta]),
                _stacks(trained),
            )
            sizes, weights = [p.numel() for p in parameters], vectors.weights
            parts = zip(weights.split(sizes), vectors.momenta.split(sizes), strict=True)
            for parameter, (weight, momentum) in zip(parameters, parts, strict=True):
                parameter.data = weight.view_as(parameter)
                self.state[parameter]["momentum_buffer"] = momentum.view_as(parameter)
        return vectors


@dataclass(frozen=True)
class _Vectors:
    """All that Muon trains on a GPU, where a launch costs as much as a matrix."""

    weights: Tensor
    momenta: Tensor
    stacks: list[tuple[Places, Tensor]]
    """Which matrices are orthogonalised together, and the rate of each, [K]."""


def _lie_in(vector: Tensor, parts: Sequence[Tensor]) -> bool:
    """Whether the vector is these parts, one after the other, and nothing else."""
    memory, end = vector.untyped_storage()._cdata, 0
    for part in parts:
        if part.untyped_storage()._cdata != memory or part.storage_offset() != end:
            return False
        end += part.numel()
    return end == vector.numel()


def _stacks(trained: list[tuple[Tensor, int]]) -> list[tuple[Places, Tensor]]:
    """Places in a vector of all, and rates: in one stack of all if that is small, or by shape."""
    by_shape: dict[tuple[int, int], list[tuple[int, int, int, int, int]]] = {}
    start = 0
    for parameter, pieces in trained:
        rows, columns = parameter.shape[0] // pieces, parameter.shape[1]
        down, across = (columns, 1) if rows <= columns else (1, columns)
        for _ in range(pieces):
            entry = start, down, across, min(rows, columns), max(rows, columns)
            by_shape.setdefault((rows, columns), []).append(entry)
            start += rows * columns
    stacks = [
        (Places(tuple(entries)), [own_rate(*shape)] * len(entries))
        for shape, entries in by_shape.items()
    ]
    together = Places(tuple(entry for places, _ in stacks for entry in places.entries))
    if math.prod(together.shape) <= _SMALL:
        stacks = [(together, [rate for _, rates in stacks for rate in rates])]
    device = trained[0][0].device
    return [(places, send(torch.tensor(rates), device)) for places, rates in stacks]


def own_rate(rows: int, columns: int) -> float:
    """By how much farther a tall matrix moves."""
    return max(1.0, rows / columns) ** 0.5


def make_optimizers(
    model: LanguageModel, settings: Settings, muon: type[Muon] = Muon
) -> list[torch.optim.Optimizer]:
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
        optimizers = _muon_and_adamw(model, settings, muon)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def load_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """`load_state_dict`, of a run that may have gone on another device until here.

    Whether the update is fused stays as this device has it: a scaled loss needs the fused one.
    """
    groups = [
        {**theirs, "fused": own["fused"]} if "fused" in own else theirs
        for own, theirs in zip(optimizer.param_groups, stored["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({**stored, "param_groups": groups})


def _muon_and_adamw(
    model: ResidualLM, settings: Settings, kind: type[Muon]
) -> list[torch.optim.Optimizer]:
    """Matrices inside the blocks to Muon, everything else to AdamW."""
    by_pieces: dict[int, list[Tensor]] = {}
    for parameter, pieces in model.matrices():
        by_pieces.setdefault(pieces, []).append(parameter)
    taken = {id(parameter) for group in by_pieces.values() for parameter in group}
    embedding = model.embedding.weight
    taken.add(id(embedding))
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    muon = kind(
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


def rates_at(optimizers: Iterable[torch.optim.Optimizer], rate_factor: float) -> list[float]:
    """The rate of every group of every optimizer at the schedule's factor."""
    return [
        group["peak_lr"] * rate_factor
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]


def step_if_finite(
    optimizers: Iterable[torch.optim.Optimizer],
    parameters: Iterable[Tensor],
    nats: Tensor,
    clip: float,
    scaler: torch.amp.GradScaler,
    rates: Tensor,
    before: Callable[[Tensor], None],
) -> Tensor:
    """Clip the gradients and step on a GPU, which knows alone whether it may; no wait for the host.

    (torch's own scaler hands its fused optimizers the same attributes.) The scale of fp16 changes,
    too.

    Args:
        optimizers: AdamW or Adam, fused, and Muon.
        parameters: all of them.
        nats: of the step.
        clip: norm of all gradients above which they are scaled down.
        scaler: by which the loss was scaled, or a disabled one.
        rates: as :func:`rates_at` has them, on the device.
        before: is called before the step with 1 on the device, or 0 where it is not taken.

    Returns:
        the step's nats, and 1 where it was taken, else 0: [2].
    """
    norms = torch.stack(_torch._foreach_norm([p.grad for p in parameters if p.grad is not None]))
    check = check_step(nats, norms, scaler._scale if scaler.is_enabled() else None, clip)
    before(check.outcome[1])
    own = iter(rates.unbind())
    for optimizer in optimizers:
        with _for_one_step(optimizer, check, own):
            optimizer.step()
    update_scale(scaler, check.found_inf)
    return check.outcome


@contextlib.contextmanager
def _for_one_step(
    optimizer: torch.optim.Optimizer, check: StepCheck, rates: Iterator[Tensor]
) -> Iterator[None]:
    """Give an optimizer the check and the rates as tensors on the GPU, for one step.

    Its groups have plain numbers again afterwards, which files hold.
    """
    untyped: Any = optimizer
    before = [dict(group) for group in optimizer.param_groups]
    untyped.found_inf, untyped.grad_scale = check.found_inf, check.grad_scale
    on_gpu = check.found_inf.device.type == "cuda"
    capturing = on_gpu and torch.cuda.is_current_stream_capturing()
    for group in optimizer.param_groups:
        group |= {"lr": next(rates), "capturable": capturing}
    try:
        yield
    finally:
        del untyped.found_inf, untyped.grad_scale
        for group, kept in zip(optimizer.param_groups, before, strict=True):
            group.clear()
            group |= kept


def update_scale(scaler: torch.amp.GradScaler, found_inf: Tensor) -> None:
    """The scale of fp16 after a step with (1) or without (0) a number that is not finite."""
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
