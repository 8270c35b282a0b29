"""Problems, their worked answers, and what is taken for right."""

from __future__ import annotations

import random
import re

import pytest

from newllm.curriculum.exercises import (
    GRADES,
    Generated,
    Problem,
    arithmetic,
    difference,
    last_number_is_right,
    product,
    program_is_right,
    programs,
    total,
)
from newllm.inference.greedy import Answer


def test_worked_answers_are_right_steps_and_all() -> None:
    rng = random.Random(0)
    for _ in range(300):
        a, b = sorted((rng.randint(10, 999), rng.randint(2, 999)), reverse=True)
        for problem, result in (
            (total(a, b), a + b), (difference(a, b), a - b), (product(a, b % 10), a * (b % 10)),
        ):  # fmt: skip
            assert problem.result == str(result)
            assert last_number_is_right(problem, problem.worked)
            steps, _, said = problem.worked.rpartition(". ")
            assert said == problem.result
            for step in steps.split(", "):
                left, right = step.split(" = ")
                assert eval(left) == int(right)


def test_a_wrong_or_unfinished_answer_is_not_right() -> None:
    task = arithmetic(1)
    problem = total(47, 35)
    answers = [Answer("82", True), Answer("82", False), Answer("28", True), Answer("I know", True),
               Answer("7 + 5 = 12. -82", True), Answer("it is 82.", True)]  # fmt: skip
    right = task.right([problem] * len(answers), answers)
    assert right == [True, False, False, False, False, True]


@pytest.mark.parametrize("make", [arithmetic, programs])
@pytest.mark.parametrize("grade", GRADES)
def test_what_is_held_out_is_never_asked(make, grade: int) -> None:
    task: Generated = make(grade)
    asked = task.problems(random.Random(1), 200, held_out=False)
    tested = task.problems(random.Random(2), 50, held_out=True)
    words = [{problem.question for problem in part} for part in (asked, tested)]
    assert [len(part) for part in words] == [len(asked), len(tested)]
    assert not words[0] & words[1]
    assert task.problems(random.Random(1), 200, held_out=False) == asked


def test_a_sum_turned_round_is_the_same_problem() -> None:
    task = arithmetic(1)
    rounds = [task.problems(random.Random(seed), 400, held_out=seed == 1) for seed in (0, 1)]
    asked, tested = ({frozenset(_operands(p)) for p in problems} for problems in rounds)
    assert len(asked) == len(tested) == 400
    assert not asked & tested
    assert any(a > b for a, b in map(_operands, rounds[0]))
    assert any(a < b for a, b in map(_operands, rounds[0]))


def _operands(problem: Problem) -> tuple[int, int]:
    a, b = map(int, re.findall(r"\d+", problem.question))
    return a, b


def test_programs_do_what_they_are_asked() -> None:
    problem = programs(2).problems(random.Random(0), 1, held_out=False)[0]
    assert program_is_right(problem, f"```python\n{problem.worked}\n```")
    assert not program_is_right(problem, "def f(x):\n    return 0.5")
    assert not program_is_right(problem, "I do not know")
    worked = programs(4).problems(random.Random(3), 30, held_out=False)
    for one in worked:
        scope: dict[str, object] = {}
        exec(f"{one.worked}\n{one.result}", scope)
