"""Rehearsal: which documents, how many, and that they are what the splits hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from newllm.data.loader import Mixture


class Made:
    """Documents whose tokens tell where they come from."""

    masked = False

    def __init__(self, mark: int, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)
        self._mark = mark

    def parts(
        self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray, marks: bool = False
    ) -> np.ndarray:
        return np.concatenate(
            [
                np.arange(start, stop) % 2 == self._mark % 2
                if marks
                else np.arange(start, stop) + 100 * document + 30_000 * self._mark
                for document, start, stop in zip(documents, starts, stops, strict=True)
            ]
        ).astype(bool if marks else np.int64)


def first_tokens(mixture: Mixture, documents: Sequence[int]) -> np.ndarray:
    """Of each document, which tells where it comes from."""
    zeros = np.zeros(len(documents), np.int64)
    return mixture.parts(np.array(documents, np.int64), zeros, zeros + 1)


lengths = st.lists(st.integers(2, 60), min_size=1, max_size=30)


@given(main=lengths, first=lengths, second=lengths, share=st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_everything_of_the_main_split_and_the_share_of_the_others(
    main, first, second, share
) -> None:
    splits = [Made(0, main), Made(1, first), Made(2, second)]
    mixture = Mixture(splits[0], splits[1:], share, (0, 0))
    first_token = first_tokens(mixture, range(len(mixture.lengths)))
    marks = first_token // 30_000
    assert mixture.lengths[: len(main)].tolist() == main
    assert (marks == 0).sum() == len(main)
    wanted = sum(main) * share / (1 - share) / 2
    for mark, split in ((1, first), (2, second)):
        drawn = mixture.lengths[marks == mark]
        assert wanted <= drawn.sum() < wanted + max(split) or (wanted == 0 and not len(drawn))
        documents, times = np.unique(first_token[marks == mark], return_counts=True)
        assert len(documents) <= len(split)
        if len(times):
            assert times.max() - (times.min() if len(documents) == len(split) else 0) <= 1


def test_tokens_and_masks_are_those_of_the_document() -> None:
    splits = [Made(0, [5, 6]), Made(1, [7, 8, 9])]
    mixture = Mixture(splits[0], splits[1:], 0.5, (3, 1))
    origins, sources = np.divmod(first_tokens(mixture, range(len(mixture.lengths))), 30_000)
    documents, lengths = np.arange(len(mixture.lengths)), mixture.lengths
    for starts, stops in ((0 * lengths, lengths), (0 * lengths + 1, lengths - 2)):
        for marks in (False, True):
            read = mixture.parts(documents, starts, stops, marks)
            parts = np.split(read, np.cumsum(stops - starts)[:-1])
            for document, part in enumerate(parts):
                source, one = sources[document] // 100, slice(document, document + 1)
                own = splits[origins[document]].parts([source], starts[one], stops[one], marks)
                assert np.array_equal(part, own)


def test_epochs_draw_differently_and_repeatably() -> None:
    splits = Made(0, [30] * 20), [Made(1, [10] * 200)]

    def drawn(epoch: int) -> list[int]:
        mixture = Mixture(*splits, 0.3, (0, epoch))
        return first_tokens(mixture, range(20, len(mixture.lengths))).tolist()

    assert drawn(0) == drawn(0) != drawn(1)


def test_nothing_to_rehearse_is_the_split_itself() -> None:
    mixture = Mixture(Made(0, [5, 6]), [], 0.5, (0, 0))
    assert mixture.lengths.tolist() == [5, 6]


def test_an_empty_split_ends() -> None:
    mixture = Mixture(Made(0, [5]), [Made(1, [])], 0.5, (0, 0))
    assert mixture.lengths.tolist() == pytest.approx([5])
