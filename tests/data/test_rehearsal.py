"""Rehearsal: which documents, how many, and that they are what the splits hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from newllm.data.loader import Mixture


class Made:
    """Documents whose tokens tell where they come from."""

    def __init__(self, mark: int, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)
        self._mark = mark

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop) + 1000 * document + 100_000 * self._mark

    def assistant(self, document: int, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop) % 2 == self._mark % 2


lengths = st.lists(st.integers(2, 60), min_size=1, max_size=30)


@given(main=lengths, first=lengths, second=lengths, share=st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_everything_of_the_main_split_and_the_share_of_the_others(
    main, first, second, share
) -> None:
    splits = [Made(0, main), Made(1, first), Made(2, second)]
    mixture = Mixture(splits[0], splits[1:], share, (0, 0))
    marks = np.array([mixture.tokens(d, 0, 1)[0] // 100_000 for d in range(len(mixture.lengths))])
    assert mixture.lengths[: len(main)].tolist() == main
    assert (marks == 0).sum() == len(main)
    wanted = sum(main) * share / (1 - share) / 2
    for mark, split in ((1, first), (2, second)):
        drawn = mixture.lengths[marks == mark]
        assert wanted <= drawn.sum() < wanted + max(split) or (wanted == 0 and not len(drawn))
        documents, times = np.unique(
            [mixture.tokens(d, 0, 1)[0] for d in np.flatnonzero(marks == mark).tolist()],
            return_counts=True,
        )
        assert len(documents) <= len(split)
        if len(times):
            assert times.max() - (times.min() if len(documents) == len(split) else 0) <= 1


def test_tokens_and_masks_are_those_of_the_document() -> None:
    splits = [Made(0, [5, 6]), Made(1, [7, 8, 9])]
    mixture = Mixture(splits[0], splits[1:], 0.5, (3, 1))
    for document, length in enumerate(mixture.lengths):
        tokens = mixture.tokens(document, 0, int(length))
        mark, source = tokens[0] // 100_000, tokens[0] % 100_000 // 1000
        assert np.array_equal(tokens, splits[mark].tokens(source, 0, int(length)))
        assert length == splits[mark].lengths[source]
        assert np.array_equal(
            mixture.assistant(document, 1, 4), splits[mark].assistant(source, 1, 4)
        )


def test_epochs_draw_differently_and_repeatably() -> None:
    splits = Made(0, [30] * 20), [Made(1, [10] * 200)]

    def drawn(epoch: int) -> list[int]:
        mixture = Mixture(*splits, 0.3, (0, epoch))
        return [int(mixture.tokens(d, 0, 1)[0]) for d in range(20, len(mixture.lengths))]

    assert drawn(0) == drawn(0) != drawn(1)


def test_nothing_to_rehearse_is_the_split_itself() -> None:
    mixture = Mixture(Made(0, [5, 6]), [], 0.5, (0, 0))
    assert mixture.lengths.tolist() == [5, 6]


def test_an_empty_split_ends() -> None:
    mixture = Mixture(Made(0, [5]), [Made(1, [])], 0.5, (0, 0))
    assert mixture.lengths.tolist() == pytest.approx([5])
