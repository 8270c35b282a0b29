"""A softmax over a part of the vocabulary: with all of it exact, with a part right in the mean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from newllm.data.loader import IGNORED
from newllm.model import sampled_softmax
from newllm.model.loss import nats_of
from newllm.model.sampled_softmax import SampledVocabulary

V, D, N = 40, 6, 24


def positions(
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Hidden states, weight, targets (of some ten tokens), copying and mixing."""
    draw = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(N, D, generator=draw), torch.randn(V, D, generator=draw)
    targets = torch.randint(10, (N,), generator=draw) * 3
    targets[::7] = IGNORED
    entries = torch.randint(V, (N, 1), generator=draw)
    scores = torch.randn(N, 1, generator=draw)
    scores[::5] = -torch.inf
    counted = torch.rand(N, generator=draw) / 2
    return hidden, weight, targets, (entries, scores), (counted, 1 - counted)


def step(seed: int, parts: str, sample: SampledVocabulary | None) -> list[Tensor]:
    """The loss, and the gradients of everything."""
    hidden, weight, targets, (entries, scores), mixing = positions(seed)
    numbers = [hidden, weight, scores, *mixing]
    for number in numbers:
        number.requires_grad_()
    copying = (entries, scores) if "copying" in parts else None
    mixed = mixing if "mixing" in parts else None
    loss = nats_of(hidden, weight, None, targets, copying, mixed, sample)
    loss.backward()
    return [loss.detach(), *(n.grad for n in numbers if n.grad is not None)]


def of_targets(seed: int, others: int, draw: int = 0) -> SampledVocabulary | None:
    *_, targets, _, _ = positions(seed)
    needed = torch.zeros(V, dtype=torch.bool)
    needed[targets[targets != IGNORED]] = True
    return SampledVocabulary.drawn(needed, others, draw)


@pytest.mark.parametrize("parts", ["", "copying", "mixing", "copying and mixing"])
def test_all_other_entries_give_the_whole_softmax(
    parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled_softmax, "_WORTH_IT", 1.0)
    for seed in range(3):
        targets = positions(seed)[2]
        sample = of_targets(seed, V - len(targets[targets != IGNORED].unique()))
        assert sample is not None
        assert sorted(sample.entries.tolist()) == list(range(V))
        torch.testing.assert_close(step(seed, parts, sample), step(seed, parts, None))


def test_the_sum_of_exponentials_is_right_in_the_mean() -> None:
    hidden, weight, *_ = positions(0)
    logits = hidden @ weight.t()
    sums = []
    for draw in range(3000):
        sample = of_targets(0, 8, draw)
        assert sample is not None
        sums.append((logits[:, sample.entries] + sample.offsets).exp().sum(dim=1))
    torch.testing.assert_close(
        torch.stack(sums).mean(dim=0), logits.exp().sum(dim=1), rtol=0.05, atol=0
    )


def test_what_is_copied_need_not_be_among_them() -> None:
    """Only whether it is the target counts."""
    sample = of_targets(0, 8)
    assert sample is not None
    hidden, weight, targets, (_, scores), _ = positions(0)
    missing = [token for token in range(V) if sample.position[token] < 0]
    present = [token for token in sample.entries.tolist() if token not in targets.tolist()]
    first, second = (
        nats_of(hidden, weight, None, targets, (torch.full((N, 1), token), scores), None, sample)
        for token in (missing[0], present[0])
    )
    torch.testing.assert_close(first, second)


@given(st.sets(st.integers(0, 99)), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_every_target_is_there_once(targets: set[int], others: int, seed: int) -> None:
    needed = torch.zeros(100, dtype=torch.bool)
    needed[list(targets)] = True
    sample = SampledVocabulary.drawn(needed, others, seed)
    if sample is None:
        assert len(targets) + others > 75
        return
    entries = sample.entries.tolist()
    assert len(set(entries)) == len(entries) == len(targets) + others
    assert targets <= set(entries)
    tokens = torch.tensor([*entries, IGNORED])
    assert sample.positions(tokens).tolist() == [*range(len(entries)), IGNORED]
    assert (sample.offsets > 0).sum() == (others if len(targets) + others < 100 else 0)
    again = SampledVocabulary.drawn(needed, others, seed)
    assert again is not None
    assert torch.equal(again.entries, sample.entries)
