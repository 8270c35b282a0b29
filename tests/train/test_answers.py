"""What is written beside the numbers, so that a person sees what they mean."""

from __future__ import annotations

import pytest

from newllm.train.run import count_repetitions


@pytest.mark.parametrize(
    ("text", "repeated", "runs"),
    [("", 0, 0), ("a b", 0, 0), ("a b c d", 0, 2), ("a b c a b c", 1, 4), ("x " * 6, 3, 4)],
)
def test_repetitions(text: str, repeated: int, runs: int) -> None:
    assert count_repetitions(text) == (repeated, runs)
