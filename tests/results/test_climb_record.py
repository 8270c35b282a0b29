"""The forgetting matrix and backward transfer, by hand-made numbers."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newllm.cli import cli
from newllm.results.climb import ClimbConfig, backward_transfer, forgetting_matrix

LEVELS = ["dolly", "hh_rlhf", "math"]


def test_rows_are_after_a_level_and_columns_of_a_level() -> None:
    scores = [{"dolly": 1.5}, {"hh_rlhf": 1.4, "dolly": 1.7}]
    assert forgetting_matrix(LEVELS, scores) == [[1.5, None, None], [1.7, 1.4, None]]


@pytest.mark.parametrize(
    ("matrix", "transfer"),
    [
        ([[1.5, None, None], [1.7, 1.4, None]], -0.2),
        ([[1.5, None, None], [1.7, 1.4, None], [1.4, 1.6, 1.0]], (0.1 - 0.2) / 2),
        ([[1.5, 2.0]], None),
        ([], None),
        ([[1.5, None, None], [1.7, None, None], [1.4, 1.6, 1.0]], None),
        ([[1.5, None], [None, 1.4]], None),
    ],
)
def test_backward_transfer(matrix, transfer) -> None:
    found = backward_transfer(matrix)
    assert found == (transfer if transfer is None else pytest.approx(transfer))


@given(st.lists(st.floats(0.5, 4), min_size=2, max_size=5), st.floats(-0.4, 0.4))
def test_the_same_loss_everywhere_is_its_negative(learned: list[float], loss: float) -> None:
    size = len(learned)
    matrix: list[list[float | None]] = [[None] * size for _ in range(size)]
    for level, score in enumerate(learned):
        matrix[level][level] = score
    matrix[-1][:-1] = [score + loss for score in learned[:-1]]
    assert backward_transfer(matrix) == pytest.approx(-loss, abs=1e-9)


@pytest.mark.parametrize("chosen", [True, False])
def test_its_command_can_be_pasted(chosen: bool) -> None:
    """Also where the size was chosen for the time, which no option of `climb` says."""
    shape = {"num_layers": 4, "context_dim": 256}
    widths = {"embed_dim": 256, "hidden_dim": 384, "pair_rows": 32768} if chosen else {}
    settings = {"vocab_size": 2048, "learning_rate": 0.006, **shape, **widths, "minutes": 3.0}
    command = ClimbConfig(LEVELS, settings=settings).command("--resume")
    verb, *words = shlex.split(command)[1:]
    given = cli.commands[verb].make_context(verb, words).params
    assert (given["minutes"], given["learning_rate"], given["resume"]) == (3.0, 0.006, True)
    assert given["num_layers"] == (None if chosen else 4)
