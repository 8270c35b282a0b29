"""Mathematics problems in the fields of MATH: problem, level, type and solution.

The numbers are drawn at random and the result is computed from them; the worked solution in LaTeX
has it in one box.
"""

from __future__ import annotations

from random import Random

from tools.samples.math_algebra import ALGEBRA_PROBLEMS
from tools.samples.math_counting import COUNTING_PROBLEMS
from tools.samples.math_numbers import NUMBER_PROBLEMS
from tools.samples.math_shapes import SHAPE_PROBLEMS
from tools.samples.phrases import Row, distinct_rows, generator

ROWS = {"train": 3000, "validation": 300}
KINDS = (*NUMBER_PROBLEMS, *COUNTING_PROBLEMS, *ALGEBRA_PROBLEMS, *SHAPE_PROBLEMS)


def draw_problem(rng: Random) -> Row:
    """A random problem of any kind."""
    drawn = rng.choice(KINDS)(rng)
    return {
        "problem": drawn.problem,
        "level": f"Level {drawn.level}",
        "type": drawn.type,
        "solution": drawn.solution(),
    }


def rows(split: str, seed: int) -> list[Row]:
    """The rows of a split in random order."""
    rng = generator("math", split, seed)
    return distinct_rows(draw_problem, ROWS[split], split, rng, lambda row: str(row["problem"]))
