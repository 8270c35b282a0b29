"""Counts: the kernel is the definition, what is learnt, and a table as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from newllm.config import ModelSettings
from newllm.data.loader import IGNORED
from newllm.model import build_model
from newllm.model.counts import cpu, reference
from newllm.model.counts.table import MOST_CONTEXT, CountTable, StoredTable
from newllm.model.recall.reference import LONGEST
from newllm.model.residual import ResidualLM
from newllm.train.counting import count_tables

VOCAB = 50


def ids_of(*shape: int, seed: int = 1, letters: int = 9) -> Tensor:
    return torch.randint(0, letters, shape, generator=torch.Generator().manual_seed(seed))


def tables_of(seed: int = 0, letters: int = 9, budget: int = 6000) -> list[StoredTable]:
    """Of some documents in two folds: all together, and without each fold."""
    ids = ids_of(2000, seed=seed, letters=letters).numpy()
    offsets = np.arange(0, 2001, 50)
    return count_tables(ids, offsets, np.arange(40) % 2, VOCAB, (0,), budget)


def model_of(architecture: str = "context", **changes: int) -> Any:
    torch.manual_seed(0)
    width = {"gru": 24, "lstm": 24, "transformer": 48}.get(architecture, 16)
    settings = ModelSettings(
        architecture=architecture, num_layers=2, context_dim=width, embed_dim=24, hidden_dim=40,
        **{"recall_slots": 64, "counts": 6000, **changes},
    )  # fmt: skip
    model = build_model(settings, VOCAB).eval()
    assert isinstance(model, ResidualLM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    if model.counts is not None:
        model.counts.set_tables(tables_of())
    return model


@given(
    seed=st.integers(0, 10**6),
    length=st.sampled_from([1, 2, 7, 33]),
    letters=st.sampled_from([2, 9, 40]),
    resets=st.sampled_from([0.0, 0.1]),
    padded=st.booleans(),
    folds=st.booleans(),
)
def test_the_kernel_is_the_definition(
    seed: int, length: int, letters: int, resets: float, padded: bool, folds: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def text() -> Tensor:
        return torch.randint(0, letters, (3, length), generator=generator)

    table = CountTable(*tables_of(seed % 3, letters))
    reset = torch.rand(3, length, generator=generator) < resets if resets else None
    lengths = torch.randint(0, length + 1, (3,), generator=generator) if padded else None
    numbers = None
    if folds:
        numbers = torch.randint(0, 3, (3, length), generator=generator).to(torch.uint8)
    start = torch.zeros(LONGEST, 3, dtype=torch.int32)
    recent = reference.contexts(table, text(), None, None, None, start)[1]
    ids = text()
    given_ = table, ids, numbers, reset, lengths, recent
    (ours, after), (theirs, expected) = cpu.contexts(*given_), reference.contexts(*given_)
    counts = (
        torch.arange(length) < (torch.tensor([length] * 3) if lengths is None else lengths)[:, None]
    )
    assert torch.equal(ours[counts], theirs[counts])
    assert after.dtype == expected.dtype == torch.int32
    assert torch.equal(after, expected)
    assert not start.any()
    targets = text().flatten()
    rows = theirs.reshape(-1, MOST_CONTEXT)
    assert torch.equal(cpu.followed(table, rows, targets), reference.followed(table, rows, targets))


def test_contexts_say_what_followed() -> None:
    """Three documents "1 2 3 4 5 6", one "1 2 3 4 5 7": after five tokens the longest context is
    four of them, and 6 is the likelier."""
    text = [[1, 2, 3, 4, 5, 6]] * 3 + [[1, 2, 3, 4, 5, 7]]
    tables = count_tables(
        np.array(text).flatten(), np.arange(0, 25, 6), np.zeros(4, np.int64), VOCAB, (0,), 10**6
    )
    table = CountTable(tables[0])
    start = torch.zeros(LONGEST, 1, dtype=torch.int32)
    (known,), _ = reference.contexts(
        table, torch.tensor([[1, 2, 3, 4, 5]]), None, None, None, start
    )
    assert bool((known[-1] >= 0).all())
    assert (known[0] >= 0).tolist() == [True, False, False, False]  # a document has no more yet
    longest = known[-1, -1:].expand(3, MOST_CONTEXT).clone()
    longest[:, :-1] = -1
    said = reference.followed(table, longest, torch.tensor([6, 7, 8]))[:, -1]
    assert said[0] > said[1] > said[2] == 0
    rest = table.rest[known[-1, -1]]
    assert float(said.sum()) + rest == pytest.approx(1, abs=1e-6)
    assert len(CountTable(tables[1])) == 0  # nothing is left without the only fold


def test_unknown_contexts_leave_the_network_alone() -> None:
    model = model_of()
    model.counts.set_tables([StoredTable.empty()])
    ids = ids_of(2, 20)
    hidden, _ = model(ids)
    plain = model.without_counts()
    torch.testing.assert_close(model.logits(hidden), plain.logits(hidden))
    torch.testing.assert_close(plain(ids)[0].hidden, hidden.hidden)
    assert plain.counts is None
    assert model.counts is not None


@pytest.mark.parametrize("architecture", ["context", "transformer"])
@pytest.mark.parametrize("recall", [0, 64])
def test_the_loss_is_the_mixture_and_both_are_learnt(
    architecture: str, recall: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value is that of the logits; the gradient that of mixture and network together."""
    model = model_of(architecture, recall_slots=recall)
    ids, targets = ids_of(2, 40), ids_of(2, 40, seed=2)
    targets[0, 5:9] = IGNORED

    def gradients(loss: Tensor) -> list[Tensor]:
        model.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    def entropy(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    hidden, _ = model(ids)
    fused = model.loss(hidden, targets)
    ours = gradients(fused)
    hidden, _ = model(ids)
    network = entropy(model.without_counts().logits(hidden))
    if recall:  # how much is copied is learnt from the network's own loss
        scores = model.recall.scores
        monkeypatch.setattr(
            model.recall, "scores", lambda *said: tuple(part.detach() for part in scores(*said))
        )
    mixture = entropy(model.logits(hidden))
    torch.testing.assert_close(fused, mixture)
    plain = gradients(mixture + network)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("recall", [0, 64])
@pytest.mark.parametrize("counts", [True, False])
def test_tokens_are_scored_as_by_the_logits(recall: int, counts: bool) -> None:
    """What evaluation asks for at once is what the logits of both models say."""
    model = model_of(recall_slots=recall).eval()
    scored = model if counts else model.without_counts()
    ids, targets = ids_of(2, 60), ids_of(2, 60, seed=2).flatten()
    with torch.inference_mode():
        hidden = scored(ids)[0]
        hidden = hidden.flatten(0, 1) if isinstance(hidden, Tensor) else hidden.flat()
        scores, logits = scored.token_scores(hidden, targets), scored.logits(hidden)
        alone = model.without_counts().logits(hidden)
    torch.testing.assert_close(scores.nats, F.cross_entropy(logits, targets, reduction="none"))
    assert bool((scores.hit == (logits.argmax(dim=1) == targets)).all())
    if counts:
        network = F.cross_entropy(alone, targets, reduction="none")
        torch.testing.assert_close(scores.without_counts, network)
    else:
        assert scores.without_counts is None


def test_trust_is_learnt_where_it_pays() -> None:
    """After some steps on texts that the table knows, it is trusted; on noise it is not."""
    trusts = []
    for seed in (0, 99):  # what the tables counted, and other noise
        model = model_of(recall_slots=0).train()
        optimizer = torch.optim.Adam([model.counts.gate, model.counts.bias], lr=0.1)
        known = ids_of(2000, seed=seed).view(40, 50)
        for _ in range(30):
            model.zero_grad()
            model.loss(model(known[:, :-1])[0], known[:, 1:]).backward()
            optimizer.step()
        hidden, _ = model(known[:, :-1])
        trust, _ = model.counts.trust(hidden.hidden.flatten(0, 1), hidden.contexts.flatten(0, 1))
        trusts.append(float(trust.detach()[trust > 0].mean()))
    assert trusts[0] > 0.8 > trusts[1] + 0.2


def test_a_table_goes_through_bytes() -> None:
    table = tables_of()[0]
    packed = table.pack()
    assert packed.dtype == np.uint8
    assert len(packed) <= 6000
    back = StoredTable.unpack(packed, VOCAB)
    assert all(
        np.array_equal(a, b) for a, b in zip(vars(table).values(), vars(back).values(), strict=True)
    )
    assert len(CountTable(StoredTable.unpack(np.zeros(0, np.uint8), VOCAB))) == 0


@given(place=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.booleans())
def test_what_is_no_table_is_refused_or_harmless(place: int, value: int, cut: bool) -> None:
    """Changed bytes are refused, or are a table that can be read and sums to one."""
    packed = tables_of()[0].pack()
    packed[place % len(packed)] = value
    packed = packed[: place % len(packed)] if cut else packed
    try:
        table = CountTable(StoredTable.unpack(packed, VOCAB))
    except ValueError:
        return
    sums = np.add.reduceat(table.probability, table.first[:-1]) if len(table) else np.zeros(0)
    np.testing.assert_allclose(sums + table.rest, 1, atol=1e-5)
    start = torch.zeros(LONGEST, 2, dtype=torch.int32)
    cpu.contexts(table, ids_of(2, 30), None, None, None, start)


def test_a_checkpoint_has_the_table_and_loading_takes_it_in() -> None:
    model, fresh = model_of(), build_model(model_of().settings, VOCAB)
    fresh.load_state_dict(model.state_dict())
    ids = ids_of(2, 20)
    torch.testing.assert_close(fresh.eval().logits(fresh(ids)[0]), model.logits(model(ids)[0]))
