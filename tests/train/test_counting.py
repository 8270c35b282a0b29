"""Tables of counts: what they count, what they cost; no row is scored by its own counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from newllm.data.loader import IGNORED, EpochLoader
from newllm.data.ngrams import Documents, estimate, predictable_ids, rank_ngrams
from newllm.data.prepare import Encoding, prepare_training
from newllm.data.shards import EncodedSplit
from newllm.data.sources import open_source
from newllm.datasets import find_dataset
from newllm.evaluate.ngram import NgramTable
from newllm.model.counts import reference
from newllm.model.counts.table import MOST_CONTEXT, CountTable
from newllm.model.recall.reference import LONGEST
from newllm.model.residual import ResidualLM
from newllm.settings import resolve
from newllm.train import counting
from newllm.train.counting import count_tables, prepare_counts
from newllm.train.run import train
from newllm.trained import TrainedModel

VOCAB = 60


def text_of(seed: int, documents: int = 60, length: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Documents of a small grammar: what comes next depends on the two tokens before."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((documents, length), np.int64)
    ids[:, 0] = 1
    for t in range(1, length):
        usual = 2 + (3 * ids[:, t - 1] + 5 * ids[:, max(0, t - 2)]) % (VOCAB - 2)
        ids[:, t] = np.where(rng.random(documents) < 0.7, usual, rng.integers(2, VOCAB, documents))
    return ids.flatten(), np.arange(0, ids.size + 1, length)


def tables_of(seed: int, budget: int, folds: int = 3) -> list[CountTable]:
    tokens, offsets = text_of(seed)
    numbers = np.arange(len(offsets) - 1) % folds
    return [CountTable(t) for t in count_tables(tokens, offsets, numbers, VOCAB, (0, 1), budget)]


def nats(table: CountTable, tokens: np.ndarray, offsets: np.ndarray, below: float) -> float:
    """Mean of -ln p with full trust, and `below` as what the network would say of each token."""
    total, scored = 0.0, 0
    for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
        ids = torch.from_numpy(tokens[start:stop])
        empty = torch.zeros(LONGEST, 1, dtype=torch.int32)
        (known,), _ = reference.contexts(table, ids[None, :-1], None, None, None, empty)
        said = reference.followed(table, known, ids[1:]).numpy()
        rest = np.where(known.numpy() >= 0, table.rest[known.numpy()], 1)
        p = np.full(len(ids) - 1, below)
        for order in range(MOST_CONTEXT):
            p = said[:, order] + rest[:, order] * p
        total -= float(np.log(p).sum())
        scored += len(p)
    return total / scored


def test_with_room_for_all_it_is_the_smoothed_table() -> None:
    """Each follower's probability and each rest are those of interpolated Kneser-Ney, rounded."""
    tokens, offsets = text_of(0)
    table = tables_of(0, 10**7)[0]
    documents = Documents.checked(tokens, offsets, VOCAB)
    levels = estimate(
        documents, rank_ngrams(documents, MOST_CONTEXT + 1), predictable_ids(VOCAB, (0, 1))
    )
    kept = sum(int((level.discounted > 0).sum()) for level in levels[1:])
    assert len(table.tokens) > 0.8 * kept  # all but those that shorter contexts know as well
    exact = NgramTable(levels, np.full(VOCAB, 1 / (VOCAB - 2)))
    later, edges = text_of(1)
    scored = exact.nats(later, edges)
    mine = nats(table, later, edges, 1 / (VOCAB - 2))
    assert mine == pytest.approx(float(scored.sum() / (len(later) - len(edges) + 1)), rel=0.03)


def test_a_fold_is_as_if_its_documents_were_not_there() -> None:
    tokens, offsets = text_of(0)
    numbers = np.arange(len(offsets) - 1) % 3
    _, first, *_ = count_tables(tokens, offsets, numbers, VOCAB, (0, 1), 9000)
    others = np.repeat(numbers != 0, np.diff(offsets))
    rest = np.concatenate([[0], np.cumsum(np.diff(offsets)[numbers != 0])])
    alone, *_ = count_tables(tokens[others], rest, numbers[numbers != 0], VOCAB, (0, 1), 9000)
    for name, part in vars(first).items():
        assert np.array_equal(part, getattr(alone, name)), name


def test_bytes_buy_bits_and_are_kept_to() -> None:
    later, edges = text_of(1)
    reached = []
    for budget in (300, 1500, 4000, 12_000):
        tokens, offsets = text_of(0)
        (stored,) = count_tables(tokens, offsets, np.zeros(0, np.int64), VOCAB, (0, 1), budget)
        assert len(stored.pack()) <= budget
        assert len(stored.pack()) > 0.85 * budget or budget == 12_000
        reached.append(nats(CountTable(stored), later, edges, 1 / (VOCAB - 2)))
    assert reached == sorted(reached, reverse=True)
    assert reached[-1] < 0.95 * reached[0]


def test_trust_is_the_same_on_rows_that_were_never_seen(tmp_path: Path) -> None:
    """A model of some epochs trusts the counts on its training rows as on others, within 2%.

    On the training rows by the tables that did not count them. By the one that did it trusts more:
    there every row finds itself.
    """
    settings = resolve("dolly", {
        "data": "sample", "num_layers": 1, "context_dim": 64, "vocab_size": 400, "epochs": 4,
        "batch_size": 8, "out": str(tmp_path), "device": "cpu", "max_samples": 2000,
    })  # fmt: skip
    train("dolly", settings.model_dump(exclude={"dataset"}))
    model = TrainedModel.load(tmp_path / f"best_{settings.run_name}.pt", "cpu").model
    assert isinstance(model, ResidualLM)
    assert model.counts is not None
    source = open_source(find_dataset("dolly"), "sample")
    data = prepare_training(source, Encoding.of(settings))
    counts, layer = prepare_counts([data], settings.counts), model.counts

    def trust(split: EncodedSplit, tables: np.ndarray | None) -> float:
        """Mean trust in a known context."""
        loader = EpochLoader(split, 128, 32, (0, 0), tables=tables)
        state, total, number = model.initial_state(32), 0.0, 0
        for batch in loader.batches():
            said, state = model(batch.ids, state, batch.reset, tables=batch.tables)
            scored = said[batch.targets != IGNORED]
            given, _ = layer.trust(scored.hidden, scored.contexts)
            total += float(given.sum())
            number += int((scored.contexts >= 0).sum())
        return total / number

    with torch.inference_mode():
        unseen = trust(data.splits["validation"], None)
        layer.set_tables(counts.tables)
        trained = trust(data.splits["train"], counts.table_of[0])
        counted = trust(data.splits["train"], None)
    assert trained == pytest.approx(unseen, rel=0.02)
    assert counted > 1.02 * unseen


@pytest.mark.parametrize(
    ("tokens", "shares"),
    [
        ([3_000_000], [1]),
        ([16_000_000], [0.5]),
        ([1_000_000, 2_000_000], [1, 1]),
        ([5_000_000, 5_000_000], [0.8, 0.8]),
        ([2_000_000, 12_000_000], [1, 0.5]),
        ([8_000_000, 1_000_000, 1_000_000], [0.75, 1, 1]),
    ],
)
def test_the_level_itself_has_half_of_what_is_counted(
    tokens: list[int], shares: list[float]
) -> None:
    assert counting.counted_shares(tokens) == pytest.approx(shares)
