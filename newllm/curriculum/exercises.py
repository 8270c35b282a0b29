"""Problems whose answers can be checked: arithmetic and small programs by grades, MATH's rows.

A problem is held out for good by its own words (their SHA-256), whatever the seed: what a model is
tested with, no practice ever asks, nor the same sum turned round.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from newllm.data.located import Located
from newllm.data.sources import Source
from newllm.datasets import find_dataset
from newllm.errors import UserError
from newllm.evaluate.code_answers import CodeTask, extract_code, is_program
from newllm.evaluate.math_answers import boxed, equal_results, math_task
from newllm.evaluate.sandbox import run_program
from newllm.inference.greedy import Answer

GRADES = (1, 2, 3, 4)

_HELD_OUT = 32
"""Of 256 problems so many are held out."""

_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Problem:
    """A question and what makes an answer right."""

    question: str
    worked: str
    """A right answer with its steps."""
    result: str
    """What a right answer comes to; of a program: what has to hold once it has run."""
    known_as: str = ""
    """The question of all problems that are this one in other words; its own if nothing is said."""

    @property
    def essence(self) -> str:
        """The same for all wordings of a problem: a model that has seen one knows the others."""
        return self.known_as or self.question

    @property
    def held_out(self) -> bool:
        """Whether it is for tests alone."""
        return hashlib.sha256(self.essence.encode()).digest()[0] < _HELD_OUT


class Task(Protocol):
    """A kind of problem."""

    answer_tokens: int
    """Length of an answer at most."""

    def problems(self, rng: random.Random, count: int, held_out: bool) -> list[Problem]:
        """So many different problems, or all that there are."""
        ...

    def right(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[bool]:
        """Whether each answer is right; one that was cut off is not."""
        ...


class Generated:
    """Problems that a function of a random generator makes."""

    def __init__(
        self,
        make: Callable[[random.Random], Problem],
        check: Callable[[Problem, str], bool],
        answer_tokens: int,
    ) -> None:
        self._make, self._check, self.answer_tokens = make, check, answer_tokens

    def problems(self, rng: random.Random, count: int, held_out: bool) -> list[Problem]:
        """See :class:`Task`."""
        found: dict[str, Problem] = {}
        for _ in range(100 * count):
            problem = self._make(rng)
            if problem.held_out == held_out:
                found.setdefault(problem.essence, problem)
            if len(found) == count:
                break
        return list(found.values())

    def right(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[bool]:
        """See :class:`Task`."""
        return [
            answer.finished and self._check(problem, answer.text)
            for problem, answer in zip(problems, answers, strict=True)
        ]


# -- arithmetic ------------------------------------------------------------------------------------


def arithmetic(grade: int) -> Generated:
    """Sums (1), sums and differences (2) of two digits; of three digits (3); products (4)."""

    def make(rng: random.Random) -> Problem:
        if grade == 4:
            return product(rng.randint(11, 99), rng.randint(2, 9))
        low, high = (100, 999) if grade == 3 else (10, 99)
        a, b = rng.randint(low, high), rng.randint(low, high)
        return total(a, b) if grade == 1 or rng.random() < 0.5 else difference(max(a, b), min(a, b))

    return Generated(make, last_number_is_right, 96)


def total(a: int, b: int) -> Problem:
    """a + b, column by column from the right.

    >>> total(47, 35).worked
    '7 + 5 = 12, 4 + 3 + 1 = 8. 82'
    """
    steps, carry = [], 0
    for x, y in zip(_digits(a, b), _digits(b, a), strict=True):
        more = " + 1" if carry else ""
        steps.append(f"{x} + {y}{more} = {x + y + carry}")
        carry = (x + y + carry) // 10
    question, turned = f"What is {a} + {b}?", f"What is {b} + {a}?"
    worked = f"{', '.join(steps)}. {a + b}"
    return Problem(question, worked, str(a + b), known_as=min(question, turned))


def difference(a: int, b: int) -> Problem:
    """a - b for a >= b, column by column; a column that does not suffice takes ten from the next.

    >>> difference(42, 17).worked
    '12 - 7 = 5, 4 - 1 - 1 = 2. 25'
    """
    steps, taken = [], 0
    for x, y in zip(_digits(a, b), _digits(b, a), strict=True):
        ten = 10 if x < y + taken else 0
        less = " - 1" if taken else ""
        steps.append(f"{x + ten} - {y}{less} = {x + ten - y - taken}")
        taken = ten // 10
    return Problem(f"What is {a} - {b}?", f"{', '.join(steps)}. {a - b}", str(a - b))


def product(a: int, b: int) -> Problem:
    """a * b for b of one digit.

    >>> product(47, 6).worked
    '7 * 6 = 42, 4 * 6 + 4 = 28. 282'
    """
    steps, carry = [], 0
    for x in _digits(a, 0):
        more = f" + {carry}" if carry else ""
        steps.append(f"{x} * {b}{more} = {x * b + carry}")
        carry = (x * b + carry) // 10
    return Problem(f"What is {a} * {b}?", f"{', '.join(steps)}. {a * b}", str(a * b))


def _digits(number: int, other: int) -> list[int]:
    """From the right, with zeros in front where the other number is longer."""
    return [int(digit) for digit in reversed(str(number).zfill(len(str(other))))]


def last_number_is_right(problem: Problem, answer: str) -> bool:
    """Whether the last number of an answer is the result, however it was found."""
    numbers = _NUMBER.findall(answer)
    return bool(numbers) and numbers[-1] == problem.result


# -- small programs --------------------------------------------------------------------------------

_STEPS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "plus": ("{x} + {n}", lambda x, n: x + n),
    "minus": ("{x} - {n}", lambda x, n: x - n),
    "times": ("{x} * {n}", lambda x, n: x * n),
    "modulo": ("{x} % {n}", lambda x, n: x % n),
}


def programs(grade: int) -> Generated:
    """A function of as many steps as the grade: `f(x)` is x times 3, then minus 7, ..."""

    def make(rng: random.Random) -> Problem:
        names = [rng.choice(list(_STEPS)) for _ in range(grade)]
        numbers = [rng.randint(2, 20) for _ in range(grade)]
        words = ", then ".join(f"{name} {n}" for name, n in zip(names, numbers, strict=True))
        code = "x"
        for name, n in zip(names, numbers, strict=True):
            code = f"({code})" if " " in code else code
            code = _STEPS[name][0].format(x=code, n=n)
        holds = [f"assert f({x}) == {_value(x, names, numbers)}" for x in (0, 7, 31)]
        return Problem(
            f"Write a Python function f(x) that returns x {words}.",
            f"def f(x):\n    return {code}",
            "\n".join(holds),
        )

    return Generated(make, program_is_right, 64)


def _value(x: int, names: Sequence[str], numbers: Sequence[int]) -> int:
    for name, n in zip(names, numbers, strict=True):
        x = _STEPS[name][1](x, n)
    return x


def program_is_right(problem: Problem, answer: str) -> bool:
    """Whether the program in an answer does what it should, run in the sandbox."""
    source, task = extract_code(answer), CodeTask("", tuple(problem.result.splitlines()))
    return is_program(source) and task.passed(run_program(source, task.checks))


# -- rows of MATH ----------------------------------------------------------------------------------


class MathRows:
    """The rows of MATH that have a boxed result; held out are those for validation."""

    answer_tokens = 384

    def __init__(self, source: Source) -> None:
        train, validation = source.training_splits()
        read = find_dataset("math").conversation
        self._problems: dict[bool, list[Problem]] = {}
        for held_out, rows in ((False, train), (True, validation)):
            problems = []
            for item in rows():
                if not isinstance(item, Located):
                    continue
                try:
                    question, solution = (message["content"] for message in read(item.row))
                    task = math_task(item.row)
                except ValueError:
                    continue
                if task is not None:
                    problems.append(Problem(question, solution, task.result))
            if not problems:
                raise UserError(f"{source.description}: no solution has a box")
            self._problems[held_out] = problems

    def problems(self, rng: random.Random, count: int, held_out: bool) -> list[Problem]:
        """See :class:`Task`."""
        known = self._problems[held_out]
        return rng.sample(known, min(count, len(known)))

    def right(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[bool]:
        """See :class:`Task`."""
        given = [boxed(answer.text) if answer.finished else None for answer in answers]
        asked = [(p.result, g) for p, g in zip(problems, given, strict=True) if g]
        verdicts = iter(equal_results(asked))
        return [bool(next(verdicts)) if result else False for result in given]
