"""Token by token == whole == any split == packed with resets == left-padded; all architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import Node

from newllm.config import ModelSettings
from newllm.model import LanguageModel, State, build_model
from newllm.model.trunk import TrunkOutput
from newllm.train.counting import count_tables

VOCAB = 50
ARCHITECTURES = [
    "context", "context, pairs", "context, pairs, recall", "context, counts",
    "context, pairs, recall, counts", "original", "gru", "gru, recall", "lstm",
    "lstm, recall", "mingru", "mingru, recall", "mingru, counts", "transformer",
    "transformer, recall",
]  # fmt: skip
CONTEXT_DIM = {"gru": 24, "lstm": 24, "transformer": 48}
"""The stream is 24 wide, and a GRU's state must be; three heads make mistakes visible."""


def make_model(architecture: str, settings: Callable[..., ModelSettings]) -> LanguageModel:
    torch.manual_seed(0)
    name, *parts = architecture.split(", ")
    shape = settings(
        architecture=name,
        context_dim=CONTEXT_DIM.get(name, 16),
        pair_rows=37 if "pairs" in parts else 0,
        recall_slots=64 if "recall" in parts else 0,
        counts=6000 if "counts" in parts else 0,
    )
    model = build_model(shape, VOCAB)
    with torch.no_grad():  # away from the initial zeros and ones, where mistakes could hide
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    if "counts" in parts:
        ids = random_ids(1000).numpy()
        edges = np.arange(0, 1001, 25)
        (table,) = count_tables(ids, edges, np.zeros(0, np.int64), VOCAB, (0,), 6000)
        model.get_submodule("counts").set_tables([table])  # type: ignore[operator]
    return model


def random_ids(*shape: int, seed: int = 1) -> Tensor:
    """Of few different tokens, so that runs come again."""
    return 7 * torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(seed))


def read(model: Any, *arguments: Tensor | State | None) -> tuple[Tensor, State]:
    """Hidden states; of a model with recall also the scores of every token, which add to them."""
    hidden, state = model(*arguments)
    if isinstance(hidden, TrunkOutput):
        hidden = torch.cat([hidden.hidden, model.logits(hidden)], dim=-1)
    return hidden, state


def gradients(model: LanguageModel, hiddens: list[Tensor]) -> list[Tensor]:
    model.zero_grad()
    sum(hidden.square().sum() for hidden in hiddens).backward()  # type: ignore[union-attr]
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        # Sums of many parts are rounded by their largest: those of all logits' squares, too.
        largest = float(y.detach().abs().max()) if y.numel() else 0.0
        torch.testing.assert_close(x, y, rtol=2e-4, atol=max(2e-4, 2e-5 * largest))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("length", [1, 63, 100])
def test_token_by_token_equals_whole(architecture, length, tiny_model_settings) -> None:
    model = make_model(architecture, tiny_model_settings)
    ids = random_ids(2, length)
    whole, last = read(model, ids)
    state, steps = None, []
    for t in range(length):
        hidden, state = read(model, ids[:, t : t + 1], state)
        steps.append(hidden)
    assert state is not None
    assert_same([torch.cat(steps, 1), *state.values()], [whole, *last.values()])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(cuts=st.lists(st.integers(0, 20), max_size=4), seed=st.integers(0, 1000))
def test_any_split_equals_whole(architecture, cuts, seed, tiny_model_settings) -> None:
    """Values and gradients, the gradients flowing through the carried state."""
    model = make_model(architecture, tiny_model_settings)
    ids = random_ids(2, 20, seed=seed)
    reset = torch.rand(2, 20, generator=torch.Generator().manual_seed(seed)) < 0.15
    edges = sorted({0, 20, *cuts})
    state, parts = None, []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        hidden, state = read(model, ids[:, start:stop], state, reset[:, start:stop])
        parts.append(hidden)
    whole, last = read(model, ids, None, reset)
    assert state is not None
    assert_same([torch.cat(parts, 1), *state.values()], [whole, *last.values()])
    assert_same(gradients(model, parts), gradients(model, [whole]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_packed_equals_separate(architecture, lengths, seed, tiny_model_settings) -> None:
    model = make_model(architecture, tiny_model_settings)
    documents = [random_ids(1, n, seed=seed + i) for i, n in enumerate(lengths)]
    starts = torch.cat([torch.arange(n) == 0 for n in lengths])[None]
    packed, last = read(model, torch.cat(documents, dim=1), None, starts)
    alone = [read(model, document) for document in documents]
    assert_same([packed], [torch.cat([hidden for hidden, _ in alone], dim=1)])
    assert_same(list(last.values()), list(alone[-1][1].values()))
    assert_same(gradients(model, [packed]), gradients(model, [h for h, _ in alone]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(padding=st.lists(st.integers(0, 6), min_size=3, max_size=3), seed=st.integers(0, 1000))
def test_left_padded_equals_unpadded(architecture, padding, seed, tiny_model_settings) -> None:
    """Also when the padding comes between two turns, with the state carried across it."""
    model = make_model(architecture, tiny_model_settings)
    first, second = random_ids(3, 4, seed=seed), random_ids(3, 7, seed=seed + 1)
    carried = {name: part.detach() for name, part in read(model, first)[1].items()}
    valid = torch.stack([torch.arange(7) >= pad for pad in padding])
    hidden, last = read(model, second, carried, None, valid)
    assert not hidden[~valid].any()
    single = []
    for sequence, pad in enumerate(padding):
        own = {name: part[:, sequence : sequence + 1] for name, part in carried.items()}
        alone, alone_last = read(model, second[sequence : sequence + 1, pad:], own)
        assert_same([hidden[sequence : sequence + 1, pad:]], [alone])
        single.append(alone)
        for name, part in alone_last.items():
            assert_same([last[name][:, sequence : sequence + 1]], [part])
    assert_same(gradients(model, [hidden]), gradients(model, single))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gaps_with_resets_equal_compact(architecture, tiny_model_settings) -> None:
    """Padding may stand anywhere, and resets among it count only where a token is real."""
    model = make_model(architecture, tiny_model_settings)
    ids = random_ids(1, 12)
    valid = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0]], dtype=torch.bool)
    reset = torch.zeros(1, 12, dtype=torch.bool)
    reset[0, 6] = True
    hidden, last = read(model, ids, None, reset, valid)
    compact, compact_last = read(model, ids[valid][None], None, reset[valid][None])
    assert_same([hidden[valid][None], *last.values()], [compact, *compact_last.values()])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_passes_a_reset(architecture, tiny_model_settings) -> None:
    model = make_model(architecture, tiny_model_settings)
    ids = random_ids(1, 10)
    reset = torch.zeros(1, 10, dtype=torch.bool)
    reset[0, 5] = True
    other = ids.clone()
    other[0, :5] = (other[0, :5] + 1) % VOCAB
    assert torch.equal(
        read(model, ids, None, reset)[0][:, 5:], read(model, other, None, reset)[0][:, 5:]
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_backward_leaves_the_gradients_it_is_given(architecture, tiny_model_settings) -> None:
    """They may be another node's too: a kernel that writes into them breaks what runs later."""
    model = make_model(architecture, tiny_model_settings)
    hidden, state = read(model, random_ids(3, 20))
    carried = [part for part in state.values() if part.requires_grad]
    watched: set[Node] = set()
    changed: list[str] = []

    def watch(node: Node) -> None:
        given: list[Tensor | None] = []

        def before(gradients: tuple[Tensor | None, ...]) -> None:
            given[:] = [None if g is None else g.clone() for g in gradients]

        def after(_: object, gradients: tuple[Tensor | None, ...]) -> None:
            for was, now in zip(given, gradients, strict=True):
                if was is not None and now is not None and not torch.equal(was, now):
                    changed.append(node.name())

        node.register_prehook(before)
        node.register_hook(after)

    total = hidden.square().sum() + sum(part.square().sum() for part in carried)
    nodes = [total.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in watched:
            watched.add(node)
            watch(node)
            nodes.extend(following for following, _ in node.next_functions)
    total.backward()
    assert len(watched) > 10
    assert not changed
