"""Packing loses and doubles nothing, cuts no document that fits, and is a function of the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from newllm.data.encode import Accounting, Block
from newllm.data.loader import IGNORED, EpochLoader
from newllm.data.packing import Plan, plan_epoch
from newllm.data.render import Document
from newllm.data.shards import EncodedSplit, SplitWriter

Row = list[tuple[int, int, int, int]]
"""Of one sequence at one step: document, start, stop and column of each segment."""

lengths_of_documents = st.lists(st.integers(0, 50), min_size=1, max_size=30)


def rows_of(plan: Plan, step: int) -> list[Row]:
    rows: list[Row] = [[] for _ in range(plan.batch_size)]
    for sequence, *segment in zip(*(x.tolist() for x in plan.segments(step)), strict=True):
        rows[sequence].append(tuple(segment))
    return rows


@given(lengths_of_documents, st.integers(1, 20), st.integers(1, 5), st.booleans(), st.booleans())
def test_every_position_once_and_in_order(lengths, row_length, batch_size, shuffle, alone) -> None:
    plan = plan_epoch(np.array(lengths), row_length, batch_size, (0, 1) if shuffle else None, alone)
    seen: dict[int, list[tuple[int, int, int, int]]] = {}
    for step in range(plan.steps):
        rows = rows_of(plan, step)
        assert len(rows) == batch_size
        for sequence, row in enumerate(rows):
            end = 0
            assert not alone or len(row) <= 1
            for document, start, stop, column in row:
                assert column == end  # segments fill a row from the left, without holes
                end += stop - start
                seen.setdefault(document, []).append((start, stop, step, sequence))
            assert end <= row_length
    for document, length in enumerate(lengths):
        parts = sorted(seen.get(document, []))
        covered = [position for start, stop, *_ in parts for position in range(start, stop)]
        assert covered == list(range(length))
        if length <= row_length:
            assert len(parts) <= 1, "a document that fits a row was cut"
        for (_, stop, step, sequence), following in zip(parts, parts[1:], strict=False):
            assert stop % row_length == 0, "only whole rows are continued"
            assert following[2:] == (step + 1, sequence), "the next row of the same sequence"


def test_rows_are_well_filled() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 127, size=3000)
    plan = plan_epoch(lengths, 128, 16, (0, 0))
    assert lengths.sum() / (plan.steps * 16 * 128) > 0.93


def test_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.arange(1, 60)

    def rows(seed: int, epoch: int) -> list[list[Row]]:
        plan = plan_epoch(lengths, 64, 4, (seed, epoch))
        return [rows_of(plan, step) for step in range(plan.steps)]

    assert rows(7, 0) == rows(7, 0)
    assert rows(7, 1) != rows(7, 0)
    assert rows(8, 0) != rows(7, 0)


def test_a_plan_is_a_few_bytes_a_document() -> None:
    lengths = np.random.default_rng(0).integers(1, 900, size=20_000)
    plan = plan_epoch(lengths, 128, 32, (0, 0))
    arrays = [plan.chains.documents, plan.chains.first, plan.chains.rows]
    arrays += [plan.entries, plan.begins]
    assert sum(array.nbytes for array in arrays) <= 20 * len(lengths)


def write_split(folder: Path, documents: list[list[int]], shard_tokens: int) -> EncodedSplit:
    writer = SplitWriter(folder, "train")
    for ids in documents:
        document = Document(ids, [i % 2 == 1 for i in range(len(ids))], len(ids), 1)
        writer.add(Block.of([document], Accounting()))
        if writer.pending >= shard_tokens:
            writer.finish_shard()
    writer.finish_shard()
    return EncodedSplit(folder, "train", writer.shards)


@pytest.mark.parametrize("shard_tokens", [1, 40, 10_000])
def test_shards_give_back_every_document(tmp_path: Path, shard_tokens: int) -> None:
    documents = [list(range(100 * i, 100 * i + 3 + i)) for i in range(12)]
    split = write_split(tmp_path, documents, shard_tokens)
    assert len(split) == 12
    for number, ids in enumerate(documents):
        assert split.tokens(number, 0, len(ids)).tolist() == ids
        assert split.tokens(number, 1, 3).tolist() == ids[1:3]
    tokens, offsets = split.all_tokens()
    assert tokens.tolist() == [token for ids in documents for token in ids]
    assert offsets[-1] == len(tokens)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_hold_inputs_targets_and_resets(tmp_path: Path, batch_size: int) -> None:
    documents = [[1, *range(10 * i, 10 * i + length)] for i, length in enumerate((4, 20, 2, 7), 1)]
    split = write_split(tmp_path, documents, 10_000)
    loader = EpochLoader(split, row_length=8, batch_size=batch_size, shuffle_seed=(0, 0))
    pairs, resets = [], 0
    for batch in loader.batches():
        assert batch.scored == int((batch.targets != IGNORED).sum())
        scored = batch.targets != IGNORED
        pairs += list(zip(batch.ids[scored].tolist(), batch.targets[scored].tolist(), strict=True))
        resets += int((batch.reset & scored).sum())
        assert (batch.ids[batch.reset & scored] == 1).all()
    expected = [pair for ids in documents for pair in zip(ids, ids[1:], strict=False)]
    assert sorted(pairs) == sorted(expected)
    assert resets == len(documents)


def test_loader_starts_anywhere(tmp_path: Path) -> None:
    split = write_split(tmp_path, [[1] * (3 + i % 30) for i in range(50)], 10_000)
    loader = EpochLoader(split, 16, 2, (3, 4))
    whole = list(loader.batches())
    for step, batch in enumerate(loader.batches(5), start=5):
        assert np.array_equal(batch.ids, whole[step].ids)
        assert np.array_equal(batch.targets, whole[step].targets)
