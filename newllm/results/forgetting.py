"""What a climb did to earlier levels: the forgetting matrix and backward transfer.

After each level every level so far is evaluated in bits per byte. Row i of the matrix is the model
after level i, column j the rows of level j; the diagonal is each level right after it was learned.
Backward transfer is that of GEM (arXiv:1706.08840), with the sign of a gain: positive where earlier
levels are better at the end than right after they were learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Matrix = list[list[float | None]]


def forgetting_matrix(levels: Sequence[str], scores: Sequence[Mapping[str, float]]) -> Matrix:
    """Arrange scores as a matrix.

    Args:
        levels: data sets in the order they were learned.
        scores: for each level that is done, in order, bits per byte by data set.

    Returns:
        One row a finished level, one column a level; None where it was not evaluated.
    """
    return [[row.get(level) for level in levels] for row in scores]


def backward_transfer(matrix: Matrix) -> float | None:
    """Mean over the earlier levels of (right after learning) - (after the last level), in bits
    per byte; positive: they got better.

    None with fewer than two finished levels, or where a number it needs is missing.
    """
    if len(matrix) < 2:
        return None
    changes = []
    for level, last in enumerate(matrix[-1][: len(matrix) - 1]):
        learned = matrix[level][level]
        if learned is None or last is None:
            return None
        changes.append(learned - last)
    return sum(changes) / len(changes)
