"""The built-in mathematics: every boxed result is computed again from the problem's words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from tests.datasets.test_sample import both_splits


def boxed(solution: str) -> str:
    assert solution.count("\\boxed{") == 1
    start = solution.index("\\boxed{") + len("\\boxed{")
    depth = 1
    for end in range(start, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[end], 0)
        if depth == 0:
            return solution[start:end]
    raise AssertionError(f"the box is not closed: {solution}")


def value_of(text: str) -> float:
    match = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", text)
    if match:
        return (-1 if match[1] else 1) * int(match[2]) / int(match[3])
    return float(text)


def signed(text: str) -> int:
    return int(text.replace(" ", "") or 0)


MATH_ANSWERS: dict[str, tuple[str, Callable[..., float]]] = {
    "product first": (r"\$(\d+) \+ (\d+) \\cdot (\d+)\$", lambda a, b, c: a + b * c),
    "bracket first": (r"\$\((\d+) \+ (\d+)\) \\cdot (\d+)\$", lambda a, b, c: (a + b) * c),
    "fractions": (
        r"\\frac\{(\d+)\}\{(\d+)\} \+ \\frac\{(\d+)\}\{(\d+)\}\$",
        lambda a, b, c, d: a / b + c / d,
    ),
    "percent": (r"^What is \$(\d+)\\%\$ of \$(\d+)\$", lambda a, b: a * b / 100),
    "average": (
        r"(?:average|mean) of \$(\d+), (\d+), (\d+)(?:, (\d+))?(?:, (\d+))?\$",
        lambda *values: sum(values) / len(values),
    ),
    "ratio": (r"share \$(\d+)\$ .* ratio \$(\d+):(\d+)\$", lambda n, a, b: n * b / (a + b)),
    "common divisor": (
        r"(?:common divisor of|divides both) \$(\d+)\$ and \$(\d+)\$",
        math.gcd,
    ),
    "common multiple": (
        r"(?:common multiple of|number that both) \$(\d+)\$ and \$(\d+)\$",
        math.lcm,
    ),
    "remainder": (r"\$(\d+)\^\{(\d+)\}\$ is divided by \$(\d+)\$", pow),
    "divisors": (
        r"positive divisors does \$(\d+)\$",
        lambda n: sum(2 - (d * d == n) for d in range(1, math.isqrt(n) + 1) if n % d == 0),
    ),
    "base": (r"base-\$(\d+)\$ number \$(\d+)_", lambda base, digits: int(str(digits), base)),
    "row": (r"can \$(\d+)\$ different \w+ be put in a row", math.factorial),
    "choosing": (r"choose \$(\d+)\$ of \$(\d+)\$", lambda part, whole: math.comb(whole, part)),
    "marble": (r"\$(\d+)\$ \w+ and \$(\d+)\$ \w+ marbles\. One", lambda a, b: a / (a + b)),
    "heads": (
        r"\$(\d+)\$ times.* exactly \$(\d+)\$ heads",
        lambda tosses, heads: math.comb(tosses, heads) / 2**tosses,
    ),
    "dice": (r"dice.* the sum is \$(\d+)\$", lambda total: (6 - abs(7 - total)) / 36),
    "equation": (r"\$(\d+)[xyn]((?: [-+] \d+)?) = (-?\d+)\$", lambda a, b, c: (c - b) / a),
    "two sides": (
        r"\$(\d+)x((?: [-+] \d+)?) = (\d+)x((?: [-+] \d+)?)\$",
        lambda a, b, c, d: (d - b) / (a - c),
    ),
    "quadratic": (
        r"larger solution of \$x\^2( [-+] \d+)x( [-+] \d+) = 0\$",
        lambda b, c: (-b + math.sqrt(b * b - 4 * c)) / 2,
    ),
    "slope": (
        r"through \$\((-?\d+), (-?\d+)\)\$ and \$\((-?\d+), (-?\d+)\)\$",
        lambda x, y, u, v: (v - y) / (u - x),
    ),
    "arithmetic": (
        r"first \$(\d+)\$ terms of the arithmetic sequence \$(\d+), (\d+)",
        lambda count, a, b: sum(a + place * (b - a) for place in range(count)),
    ),
    "geometric": (
        r"first \$(\d+)\$ terms of the geometric sequence \$(\d+), (\d+)",
        lambda count, a, b: sum(a * (b // a) ** place for place in range(count)),
    ),
    "roots": (
        r"roots of \$x\^2( [-+] \d+)x( [-+] \d+)\$",
        lambda b, c: b * b - 2 * c,
    ),
    "logarithm": (r"log_(\d) \(x( [-+] \d+)\) = (\d)\$", lambda base, b, c: base**c - b),
    "hypotenuse": (r"triangle are \$(\d+)\$ and \$(\d+)\$", math.hypot),
    "ladder": (r"length \$(\d+)\$.* is \$(\d+)\$ away", lambda c, a: math.sqrt(c * c - a * a)),
    "angle": (r"are \$(\d+)\^.* and \$(\d+)\^", lambda a, b: 180 - a - b),
    "volume": (
        r"\$(\d+)\$ long, \$(\d+)\$ wide and \$(\d+)\$ high. What is its volume",
        lambda a, b, c: a * b * c,
    ),
    "distance": (
        r"between \$\((-?\d+), (-?\d+)\)\$ and \$\((-?\d+), (-?\d+)\)\$",
        lambda x, y, u, v: math.hypot(u - x, v - y),
    ),
    "determinant": (
        r"pmatrix\} (-?\d+) & (-?\d+) \\\\ (-?\d+) & (-?\d+) ",
        lambda a, b, c, d: a * d - b * c,
    ),
}


def test_math_rows_have_one_box_and_known_labels() -> None:
    types = {
        "Algebra",
        "Prealgebra",
        "Number Theory",
        "Counting & Probability",
        "Geometry",
        "Intermediate Algebra",
        "Precalculus",
    }
    rows = both_splits("math")
    assert {row["type"] for row in rows} == types
    assert {row["level"] for row in rows} == {f"Level {level}" for level in range(1, 6)}
    assert all(boxed(row["solution"]) for row in rows)


@pytest.mark.parametrize("kind", MATH_ANSWERS)
def test_math_results_are_right(kind: str) -> None:
    pattern, answer = MATH_ANSWERS[kind]
    found = 0
    for row in both_splits("math"):
        match = re.search(pattern, row["problem"])
        if match:
            numbers = [signed(group) for group in match.groups() if group is not None]
            assert value_of(boxed(row["solution"])) == pytest.approx(answer(*numbers)), row
            found += 1
    assert found > 5
