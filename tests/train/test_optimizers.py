"""Muon against torch's, and who trains what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from newllm.levels import resolve
from newllm.model import build_model
from newllm.train.optimizers import MUON_RATE, Muon, make_optimizers, orthogonalize


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_muon_equals_torch(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    muon = Muon([{"params": [ours]}], lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="original"
    )
    for _ in range(4):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient, gradient.clone()
        muon.step()
        reference.step()
        # torch iterates in bf16; a step moves each entry by about lr.
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_stacked_matrices_are_treated_one_by_one() -> None:
    torch.manual_seed(0)
    stacked = nn.Parameter(torch.randn(30, 16))
    alone = [nn.Parameter(piece.clone()) for piece in stacked.detach().chunk(3)]
    together = Muon([{"params": [stacked], "pieces": 3}], lr=0.02)
    separate = Muon([{"params": alone}], lr=0.02)
    gradient = torch.randn(30, 16)
    stacked.grad = gradient
    for parameter, piece in zip(alone, gradient.chunk(3), strict=True):
        parameter.grad = piece
    together.step()
    separate.step()
    torch.testing.assert_close(stacked.detach(), torch.cat([p.detach() for p in alone]))


def test_singular_values_become_about_one() -> None:
    torch.manual_seed(0)
    result = orthogonalize(torch.randn(2, 20, 50), torch.float32)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_every_parameter_has_one_optimizer() -> None:
    settings = resolve("dolly", {"num_layers": 2, "context_dim": 16})
    model = build_model(settings.model_settings(), 50)
    muon, adamw = make_optimizers(model, settings)
    owned = [p for o in (muon, adamw) for g in o.param_groups for p in g["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))
    names = {id(p): n for n, p in model.named_parameters()}
    matrices = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    assert all(name.endswith("_proj.weight") for name in matrices)
    assert len(matrices) == 8
    assert muon.param_groups[0]["peak_lr"] == settings.learning_rate * MUON_RATE


def test_original_takes_adam_as_published() -> None:
    settings = resolve("dolly", {"architecture": "original"})
    (adam,) = make_optimizers(build_model(settings.model_settings(), 50), settings)
    assert type(adam) is torch.optim.Adam
    assert adam.param_groups[0]["weight_decay"] == 0
