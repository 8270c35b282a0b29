"""Growing: the function stays, to the letter; what may grow and what not; moments; old entries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from newllm.config import ModelSettings
from newllm.errors import UserError
from newllm.model import ContextLM, growth
from newllm.model.growth import (
    grow,
    grow_moments,
    grown_settings,
    largest_difference,
    old_entries,
)
from newllm.train.counting import count_tables
from newllm.train.optimizers import get_moments, make_optimizers

ENTRIES = 40
BEFORE = ModelSettings(
    architecture="context",
    num_layers=2,
    context_dim=64,
    embed_dim=24,
    hidden_dim=40,
    pair_rows=50,
    recall_slots=64,
    counts=4000,
    dropout=0.0,
)


def trained(settings: ModelSettings = BEFORE) -> ContextLM:
    """A model far from initialization: no zeros, no ones."""
    torch.manual_seed(1)
    model = ContextLM(settings, ENTRIES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.randint(ENTRIES, (600,), generator=torch.Generator().manual_seed(0)).numpy()
    folds = np.zeros(0, np.int64)
    assert model.counts is not None
    model.counts.set_tables(
        count_tables(ids % 9, np.arange(0, 601, 30), folds, ENTRIES, (0,), settings.counts)
    )
    return model.eval()


@given(
    layers=st.integers(2, 4),
    groups=st.integers(1, 3),
    copies=st.integers(1, 3),
    hidden=st.integers(40, 70),
    seed=st.integers(0, 100),
)
def test_logits_and_state_stay(layers: int, groups: int, copies: int, hidden: int, seed) -> None:
    sizes = {
        "num_layers": layers, "context_dim": 64 * groups, "embed_dim": 24 * copies,
        "hidden_dim": hidden,
    }  # fmt: skip
    if ModelSettings.model_validate({**BEFORE.model_dump(), **sizes}) == BEFORE:
        return
    model = trained()
    larger = grow(model, grown_settings(BEFORE, sizes), seed)
    ids = torch.randint(ENTRIES, (3, 70), generator=torch.Generator().manual_seed(seed))
    small, big = model(ids), larger(ids)
    torch.testing.assert_close(larger.logits(big[0]), model.logits(small[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        big[1]["context"][:2, :, :64], small[1]["context"], atol=1e-5, rtol=1e-5
    )


def test_growing_twice_is_growing() -> None:
    model = trained()
    once = grow(model, grown_settings(BEFORE, {"num_layers": 3}))
    twice = grow(once, grown_settings(once.settings, {"embed_dim": 48, "context_dim": 128}))
    assert largest_difference(model, twice) < 1e-6


def test_same_seed_same_model() -> None:
    sizes = {"num_layers": 3, "embed_dim": 48}
    first, second, other = (
        grow(trained(), grown_settings(BEFORE, sizes), seed).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_copies_of_the_stream_can_learn_apart() -> None:
    larger = grow(trained(), grown_settings(BEFORE, {"embed_dim": 48}))
    ids = torch.randint(ENTRIES, (2, 20))
    larger.loss(larger(ids)[0], ids.roll(-1, 1)).backward()
    gradient = larger.blocks[0].out_proj.weight.grad  # type: ignore[union-attr]
    assert isinstance(gradient, torch.Tensor)
    assert not torch.allclose(gradient[:24], gradient[24:], rtol=1e-2)


def test_a_changed_function_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "_placed", lambda tensor, target, axes: target)
    with pytest.raises(ArithmeticError, match="growth changed a logit"):
        grow(trained(), grown_settings(BEFORE, {"num_layers": 3}))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_layers": 1}, "--num-layers 1: the model has 2 already"),
        ({"num_layers": 4, "hidden_dim": 39}, "--hidden-dim 39: the model has 40"),
        ({"context_dim": 100}, "--context-dim 100: .* multiple of 64"),
        ({"embed_dim": 36}, "--embed-dim 36: .* multiple of 24"),
        ({}, "nothing to grow; the model has --num-layers 2"),
    ],
)
def test_what_cannot_grow_is_said(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        grown_settings(BEFORE, sizes)


def test_only_our_architecture_grows() -> None:
    gru = ModelSettings.model_validate({**BEFORE.model_dump(), "architecture": "gru"})
    with pytest.raises(UserError, match="gru; only context can grow"):
        grown_settings(gru, {"num_layers": 3})


def test_moments_grow_to_the_gradients_of_the_larger_model() -> None:
    """In one step from nothing the first moment is a multiple of the gradient."""
    from newllm.settings import resolve

    settings = resolve("dolly", BEFORE.model_dump())
    sizes = {"num_layers": 3, "context_dim": 128, "hidden_dim": 56}
    after = grown_settings(BEFORE, sizes)
    ids = torch.randint(ENTRIES, (2, 30), generator=torch.Generator().manual_seed(0))
    model = trained()
    larger = grow(model, after)
    moments = []
    for candidate in (model, larger):
        optimizers = make_optimizers(candidate, settings)
        candidate.loss(candidate(ids)[0], ids.roll(-1, 1)).backward()
        for optimizer in optimizers:
            optimizer.step()
        moments.append(get_moments(candidate, optimizers))
    carried = grow_moments(moments[0], BEFORE, after)
    shapes = {name: parameter.shape for name, parameter in larger.named_parameters()}
    for name, parts in carried.items():
        for part, value in parts.items():
            if value.ndim == 0:
                assert torch.equal(value, moments[1][name][part])
                continue
            assert value.shape == shapes[name]
            old = old_entries(name, value, BEFORE)
            assert not value[~old].any()
            torch.testing.assert_close(
                value[old], moments[1][name][part][old], rtol=1e-3, atol=1e-6
            )


def test_old_entries_are_those_of_the_smaller_model() -> None:
    sizes = {"num_layers": 3, "context_dim": 128, "hidden_dim": 56}
    model = trained()
    larger = grow(model, grown_settings(BEFORE, sizes))
    count = 0
    for name, parameter in larger.named_parameters():
        old = old_entries(name, parameter.detach(), BEFORE)
        count += int(old.sum())
        if name in model.state_dict():
            assert torch.equal(parameter[old], model.state_dict()[name].flatten()), name
    assert count == sum(parameter.numel() for parameter in model.parameters())


def test_every_parameter_has_axes() -> None:
    kinds = {growth._kind(name) for name, _ in trained().named_parameters()}
    assert kinds == set(growth._AXES)
    axes = set(itertools.chain(*growth._AXES.values()))
    assert axes == {
        "entries",
        "orders",
        "times",
        "confidences",
        "stream",
        "reads",
        "contexts",
        "context",
        "taps",
        "hidden",
        "pairs",
        "pair",
    }
