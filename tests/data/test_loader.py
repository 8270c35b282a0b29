"""A batch in micro-batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from newllm.data.loader import IGNORED, Batch


def batch_of(lengths: list[int], columns: int) -> Batch:
    """Sequences filled from the left, each with its own number as tokens."""
    shape = len(lengths), columns
    targets = torch.full(shape, IGNORED)
    for sequence, length in enumerate(lengths):
        targets[sequence, :length] = sequence
    ids = torch.arange(len(lengths))[:, None].expand(shape)
    flags = torch.zeros(shape, dtype=torch.bool)
    return Batch(ids, targets, flags, sum(lengths), flags)


def micro_batches_of(batch: Batch, rows: int, apart: bool) -> list[tuple[list[int], Batch]]:
    """The micro-batches, with the numbers of their sequences."""
    numbers = torch.arange(len(batch.ids))
    return [
        (numbers[sequences].tolist(), part) for sequences, part in batch.micro_batches(rows, apart)
    ]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    rows=st.integers(1, 5),
    apart=st.booleans(),
)
def test_micro_batches_hold_every_target_once(lengths: list[int], rows: int, apart: bool) -> None:
    batch = batch_of(lengths, 9)
    seen = []
    for sequences, part in micro_batches_of(batch, rows, apart):
        assert len(sequences) <= rows
        assert part.ids[:, 0].tolist() == sequences
        assert part.assistant is not None
        assert part.targets.shape == part.ids.shape == part.reset.shape == part.assistant.shape
        for sequence, targets in zip(sequences, part.targets, strict=True):
            assert (targets == sequence).sum() == lengths[sequence]
        assert part.scored == sum(lengths[sequence] for sequence in sequences)
        seen += sequences
    assert sorted(seen) == list(range(len(lengths)))
    if not apart:
        assert seen == list(range(len(lengths)))


def test_micro_batches_of_rows_apart_have_little_padding() -> None:
    batch = batch_of([2, 9, 0, 3, 8, 1], 9)
    micro_batches = micro_batches_of(batch, 2, True)
    assert [sequences for sequences, _ in micro_batches] == [[1, 4], [3, 0], [5, 2]]
    assert [part.ids.shape[1] for _, part in micro_batches] == [9, 3, 1]
    assert batch.filled().tolist() == [2, 9, 0, 3, 8, 1]


@pytest.mark.parametrize("apart", [False, True])
def test_micro_batches_of_whole_rows_are_the_batch(apart: bool) -> None:
    batch = batch_of([4, 4], 4)
    ((sequences, part),) = micro_batches_of(batch, 8, apart)
    assert sequences == [0, 1]
    assert torch.equal(part.targets, batch.targets)
