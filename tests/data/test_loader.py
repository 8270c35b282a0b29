"""A batch in pieces, as micro-batches take it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from newllm.data.loader import IGNORED, Batch


def batch_of(lengths: list[int], columns: int) -> Batch:
    """Lanes filled from the left, each with its own number as tokens."""
    shape = len(lengths), columns
    targets = torch.full(shape, IGNORED)
    for lane, length in enumerate(lengths):
        targets[lane, :length] = lane
    ids = torch.arange(len(lengths))[:, None].expand(shape)
    flags = torch.zeros(shape, dtype=torch.bool)
    return Batch(ids, targets, flags, flags, sum(lengths))


def pieces_of(batch: Batch, rows: int, apart: bool) -> list[tuple[list[int], Batch]]:
    """The pieces, with the numbers of their lanes."""
    numbers = torch.arange(len(batch.ids))
    return [(numbers[lanes].tolist(), piece) for lanes, piece in batch.pieces(rows, apart)]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    rows=st.integers(1, 5),
    apart=st.booleans(),
)
def test_pieces_hold_every_target_once(lengths: list[int], rows: int, apart: bool) -> None:
    batch = batch_of(lengths, 9)
    seen = []
    for lanes, piece in pieces_of(batch, rows, apart):
        assert len(lanes) <= rows
        assert piece.ids[:, 0].tolist() == lanes
        assert piece.targets.shape == piece.ids.shape == piece.reset.shape == piece.assistant.shape
        for lane, targets in zip(lanes, piece.targets, strict=True):
            assert (targets == lane).sum() == lengths[lane]
        assert piece.scored == sum(lengths[lane] for lane in lanes)
        seen += lanes
    assert sorted(seen) == list(range(len(lengths)))
    if not apart:
        assert seen == list(range(len(lengths)))


def test_pieces_of_rows_apart_have_little_padding() -> None:
    batch = batch_of([2, 9, 0, 3, 8, 1], 9)
    pieces = pieces_of(batch, 2, True)
    assert [lanes for lanes, _ in pieces] == [[1, 4], [3, 0], [5, 2]]
    assert [piece.ids.shape[1] for _, piece in pieces] == [9, 3, 1]
    assert batch.filled().tolist() == [2, 9, 0, 3, 8, 1]


@pytest.mark.parametrize("apart", [False, True])
def test_pieces_of_whole_rows_are_the_batch(apart: bool) -> None:
    batch = batch_of([4, 4], 4)
    ((lanes, piece),) = pieces_of(batch, 8, apart)
    assert lanes == [0, 1]
    assert torch.equal(piece.targets, batch.targets)
