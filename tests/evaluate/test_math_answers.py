"""Results in boxes: found, compared whatever their form, and never waited for."""

from __future__ import annotations

import time

import pytest

from newllm.evaluate.math_answers import (
    MathTask,
    boxed,
    equal_results,
    math_task,
    score_math,
)
from newllm.inference.greedy import Answer


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (r"so $\boxed{5}$.", "5"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{ x = \sqrt{\frac{a}{b}} }", r"x = \sqrt{\frac{a}{b}}"),
        (r"$\boxed 7$", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{}", ""),
        (r"\boxed{1", None),
        (r"\boxed", None),
        ("the answer is 5", None),
        ("", None),
    ],
)
def test_the_last_box(text: str, result: str | None) -> None:
    assert boxed(text) == result


EQUAL = [
    ("5", "5"),
    (r"\frac12", "0.5"),
    ("1/2", r"\frac12"),
    (r"\frac{1}{2}", r"\dfrac{2}{4}"),
    (r"\sqrt{12}", r"2\sqrt{3}"),
    ("2^{10}", "1024"),
    ("1,000", "1000"),
    ("2x+1", "1+2x"),
    ("x=5", "5"),
    ("(x-1)(x+1)", "x^2-1"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("1,2", "2,1"),
    ("[0,1)", "[0, 1)"),
    (r"[-1,2]\cup[3,4]", r"[3,4]\cup[-1,2]"),
    ("(1,2)", r"\left(1,2\right)"),
    (r"6\text{ cm}", "6"),
    (r"\$5", "5"),
    (r"45 \text{ mph}", "45 "),
    (r"12,\!000", "12000"),
    ("5", "5."),
    (r"90^\circ", "90"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{(C)}", "C"),
    ("not LaTeX {", "not LaTeX {"),
]
DIFFERENT = [
    ("5", "6"),
    (r"\frac12", "2"),
    ("(1,2)", "(2,1)"),
    ("[0,1)", "(0,1)"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    ("5", "5, 6"),
    (r"\pi", "3.14"),
    (r"\frac13", "0.333"),
    (r"\text{Evelyn}", r"\text{Bob}"),
    ("5", "{"),
    ("5", r"\frac{"),
    ("5", "__import__('os').system('exit 1')"),
]


def test_results_are_compared_by_what_they_mean() -> None:
    pytest.importorskip("math_verify")
    verdicts = equal_results([*EQUAL, *DIFFERENT], seconds=30)
    for pair, verdict in zip([*EQUAL, *DIFFERENT], verdicts, strict=True):
        assert verdict is (pair in EQUAL), pair


def test_a_comparison_that_takes_too_long_is_ended() -> None:
    """The next one gets a new process."""
    pytest.importorskip("math_verify")
    endless = ("3", r"2^{2^{40}}")
    started = time.monotonic()
    assert equal_results([("1/2", "0.5"), endless, ("0.5", "1/2")], seconds=2) == [True, None, True]
    assert time.monotonic() - started < 30


def test_rows_without_a_box_are_no_tasks() -> None:
    row = {"problem": "p", "solution": r"so $\boxed{5}$", "type": "Algebra", "level": "Level 1"}
    assert math_task(row) == MathTask("5", "Algebra", "Level 1")
    assert math_task({**row, "solution": "so 5"}) is None
    assert math_task({**row, "solution": r"\boxed{}"}) is None
    assert math_task({"problem": "p", "solution": r"\boxed{5}"}) == MathTask(
        "5", "unknown", "unknown"
    )


def test_shares_by_subject_and_level() -> None:
    pytest.importorskip("math_verify")
    tasks = [
        MathTask(r"\frac12", "Algebra", "Level 1"),
        MathTask("3", "Algebra", "Level 2"),
        MathTask("4", "Geometry", "Level 2"),
        MathTask("5", "Geometry", "Level 2"),
    ]
    texts = [r"$\boxed{0.5}$", r"$\boxed{4}$", r"so $\boxed{4}$.", "no box: 5"]
    scores = score_math(tasks, [Answer(text, True) for text in texts], seconds=30)
    assert (scores["boxed"], scores["right"], scores["undecided"]) == (0.75, 0.5, 0)
    assert scores["by_subject"] == {
        "Algebra": {"rows": 2, "right": 0.5},
        "Geometry": {"rows": 2, "right": 0.5},
    }
    assert scores["by_level"]["Level 2"] == {"rows": 3, "right": 1 / 3}
