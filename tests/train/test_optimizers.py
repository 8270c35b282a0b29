"""Muon against torch's, and who trains what."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from newllm.model import build_model
from newllm.settings import resolve
from newllm.train import optimizers
from newllm.train.optimizers import (
    MUON_RATE,
    VECTOR_RATE,
    Muon,
    load_optimizer,
    make_optimizers,
    orthogonalize,
    step_if_finite,
)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_muon_agrees_with_torch(shape: tuple[int, int]) -> None:
    """Same momentum, decay and scale; the iteration differs, and both only come near."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    muon = Muon([{"params": [ours]}], lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="original"
    )
    for _ in range(4):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient, gradient.clone()
        muon.step()
        reference.step()
        moved = torch.stack([(p.detach() - start).flatten() for p in (ours, theirs)])
        assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.97
        assert 0.8 < (moved[0].norm() / moved[1].norm()).item() < 1.3


def test_stacked_matrices_are_treated_one_by_one() -> None:
    torch.manual_seed(0)
    stacked = nn.Parameter(torch.randn(30, 16))
    alone = [nn.Parameter(piece.clone()) for piece in stacked.detach().chunk(3)]
    together = Muon([{"params": [stacked], "pieces": 3}], lr=0.02)
    separate = Muon([{"params": alone}], lr=0.02)
    gradient = torch.randn(30, 16)
    stacked.grad = gradient
    for parameter, piece in zip(alone, gradient.chunk(3), strict=True):
        parameter.grad = piece.clone()  # a step overwrites its gradients
    together.step()
    separate.step()
    torch.testing.assert_close(stacked.detach(), torch.cat([p.detach() for p in alone]))


def test_singular_values_become_about_one() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 20, 50) * torch.tensor([1e-12, 1e6])[:, None, None]
    result = orthogonalize(matrices, torch.float32)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.75
    assert values.max() < 1.25
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    torch.testing.assert_close(result, left @ right, atol=0.2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 5, 64])
def test_few_directions_do_not_explode(rank: int, dtype: torch.dtype) -> None:
    """Where one direction dominates, a bound of the spectral norm is the norm itself."""
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(100, 64, rank, generator=generator)
    strength = torch.logspace(0, -6, rank)
    right = torch.randn(100, rank, 192, generator=generator)
    values = torch.linalg.svdvals(orthogonalize(left * strength @ right, dtype).float())
    assert values[:, 0].min() > 0.7
    assert values.max() < 1.35


@pytest.mark.parametrize(
    ("architecture", "pieces"),
    [
        ("context", {3: 2, 1: 7}),  # one of them recall's
        ("gru", {3: 4, 1: 1}),
        ("lstm", {4: 4, 1: 1}),
        ("mingru", {2: 2, 1: 7}),
        ("transformer", {3: 2, 1: 7}),
    ],
)
def test_every_parameter_has_one_optimizer(architecture: str, pieces: dict[int, int]) -> None:
    """Two layers: `pieces` says how many of Muon's matrices are so many stacked ones."""
    settings = resolve("dolly", {"architecture": architecture, "num_layers": 2, "context_dim": 16})
    model = build_model(settings.model_settings(), 50)
    muon, adamw = make_optimizers(model, settings)
    owned = [p for o in (muon, adamw) for g in o.param_groups for p in g["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))
    assert {g["pieces"]: len(g["params"]) for g in muon.param_groups} == pieces
    names = {id(p): n for n, p in model.named_parameters()}
    for group in muon.param_groups:
        for matrix in group["params"]:
            name = names[id(matrix)]
            assert name.startswith("blocks.") or name == "recall.project"
            rows, columns = matrix.shape
            assert min(rows // group["pieces"], columns) == 16
    # Of what has two dimensions, AdamW takes the embedding and our short filters.
    rest = {names[id(p)] for g in adamw.param_groups for p in g["params"] if p.ndim == 2}
    filters = {f"blocks.{layer}.conv_weight" for layer in range(2)}
    filters |= {"pairs.table", "pairs.widen"}
    recall = {f"recall.{part}" for part in ("order", "times", "gate", "bias")}
    recall |= {"counts.gate", "counts.bias"}
    own = filters if architecture == "context" else set()
    assert rest == {"embedding.weight"} | recall | own
    assert adamw.param_groups[0]["params"] == [model.embedding.weight]
    assert adamw.param_groups[0]["peak_lr"] == settings.learning_rate
    assert adamw.param_groups[1]["peak_lr"] == settings.learning_rate * VECTOR_RATE
    assert muon.param_groups[0]["peak_lr"] == settings.learning_rate * MUON_RATE


def test_original_takes_adam_as_published() -> None:
    settings = resolve("dolly", {"architecture": "original"})
    (adam,) = make_optimizers(build_model(settings.model_settings(), 50), settings)
    assert type(adam) is torch.optim.Adam
    assert adam.param_groups[0]["weight_decay"] == 0


def _both(matrices: list[Tensor], vector: Tensor) -> list[torch.optim.Optimizer]:
    """Muon of these matrices, the first of which is three; and AdamW, as a GPU has it."""
    first, *others = [nn.Parameter(matrix.clone()) for matrix in matrices]
    groups = [{"params": [first], "pieces": 3}, {"params": others}]
    adamw = torch.optim.AdamW([nn.Parameter(vector.clone())], lr=0.02, eps=0.1, fused=True)
    return [Muon(groups, lr=0.02), adamw]


def _parameters(optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"]]


@pytest.mark.parametrize("small", [optimizers._SMALL, 0], ids=["one stack", "by shape"])
def test_a_step_that_nobody_waits_for(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled gradients and no decision of the host: the same weights and momenta, also resumed; a
    step that is not finite leaves all of them as they are.
    """
    monkeypatch.setattr(optimizers, "_SMALL", small)
    torch.manual_seed(0)
    matrices, vector = [torch.randn(24, 8), torch.randn(8, 8), torch.randn(8, 12)], torch.randn(8)
    usual, fast = _both(matrices, vector), _both(matrices, vector)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        for a, b in zip(_parameters(usual), _parameters(fast), strict=True):
            gradient = torch.randn(a.shape)
            a.grad, b.grad = gradient.clone(), scaler.scale(gradient)
        broken, clip = step == 3, 10.0
        if broken:
            _parameters(fast)[1].grad[0, 0] = torch.inf  # type: ignore[index]
            _parameters(fast)[3].grad[:] = torch.nan  # type: ignore[index]
        else:
            torch.nn.utils.clip_grad_norm_(_parameters(usual), clip)
            for optimizer in usual:
                optimizer.step()
        told: list[float] = []
        said = step_if_finite(
            fast, _parameters(fast), torch.tensor(5.0), clip, scaler, torch.full((3,), 0.02),
            before=lambda taken, told=told: told.append(float(taken)),
        )  # fmt: skip
        assert said.tolist() == [5.0, float(not broken)]
        assert told == [float(not broken)]
        assert float(scaler._scale) == (512 if step >= 3 else 1024)  # type: ignore[arg-type]
        for a, b in zip(_parameters(usual), _parameters(fast), strict=True):
            torch.testing.assert_close(a, b)
        if step == 1:
            resumed = _both(
                [p.detach() for p in _parameters(fast)[:3]], _parameters(fast)[3].detach()
            )
            for old, new in zip(fast, resumed, strict=True):
                new.load_state_dict(copy.deepcopy(old.state_dict()))
            fast = resumed
    momenta = [usual[0].state[p]["momentum_buffer"] for p in _parameters(usual[:1])]
    for a, parameter in zip(momenta, _parameters(fast[:1]), strict=True):
        torch.testing.assert_close(a, fast[0].state[parameter]["momentum_buffer"])
    assert len(fast[0]._vectors.stacks) == (1 if small else 2)  # type: ignore[attr-defined]


def test_muon_in_half_precision_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, device, dtype in (
        (True, "cuda", torch.bfloat16), (False, "cuda", torch.float16),
        (True, "cpu", torch.bfloat16), (False, "cpu", torch.float32),
    ):  # fmt: skip
        monkeypatch.setattr(optimizers, "fast_bf16", lambda _, fast=fast: fast)
        assert optimizers.muon_dtype(torch.device(device)) == dtype
    values = torch.linalg.svdvals(
        orthogonalize(1e-9 * torch.randn(2, 64, 96), torch.float16).float()
    )
    assert values.min() > 0.75
    assert values.max() < 1.25


def test_an_update_stays_fused_whatever_the_run_went_on_before() -> None:
    """`original` begun on a CPU: a GPU's scaled loss needs the fused update there."""
    weight, gradient = torch.ones(3), torch.full((3,), 0.5)
    stored, fused = (
        torch.optim.Adam([nn.Parameter(weight.clone())], fused=fused) for fused in (False, True)
    )
    for optimizer in (stored, fused):
        optimizer.param_groups[0]["params"][0].grad = gradient.clone()
    stored.step()
    load_optimizer(fused, stored.state_dict())
    assert fused.param_groups[0]["fused"] is True
    fused.grad_scale, fused.found_inf = None, torch.zeros(())  # type: ignore[attr-defined]
    fused.step()
    assert next(iter(fused.state.values()))["step"] == 2
