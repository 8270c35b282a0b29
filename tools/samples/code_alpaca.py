"""Small tasks about Python code in the fields of CodeAlpaca: instruction, input, output.

Each row also has `checks`: statements that hold after its output was executed. Rows whose output
is text have none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random

from tools.samples.code_programs import ASSIGNMENTS, blanks, draw_program, filled, printed
from tools.samples.code_tasks import NUMBERED_TASKS, Function, fill
from tools.samples.code_tasks_plain import PLAIN_TASKS
from tools.samples.phrases import Row, distinct_rows, generator, sentence_case

VALIDATION_SHARE = 10
TASKS = (*NUMBERED_TASKS, *PLAIN_TASKS)

MISTAKES = (
    ("result = []", "result = [0]"),
    ("count = 0", "count = 1"),
    ("total = 0", "total = 1"),
    ("result = 1", "result = 0"),
    ("result = ''", "result = ' '"),
    (" > ", " < "),
    (" < ", " > "),
    (" == 0", " != 0"),
    (" == 1", " == 0"),
    ("+= 1", "+= 2"),
    ("total += ", "total = "),
    ("result += ", "result = "),
    ("result *= ", "result += "),
    (" not in ", " in "),
    (" * ", " + "),
    (" + 1)", ")"),
    ("return True", "return False"),
    ("return result", "return"),
    ("return total", "return"),
    ("):\n", ")\n"),
    ("    return ", "    print "),
)


def row(instruction: str, output: str, checks: list[str], given: str = "") -> Row:
    """A row in the fields of CodeAlpaca."""
    return {"instruction": instruction, "input": given, "output": output, "checks": checks}


def row_key(row: Row) -> str:
    """What makes a row different from others: the task without its answer."""
    return f"{row['instruction']}\n{row['input']}"


def draw_function(rng: Random) -> Function:
    """A random function with names and number."""
    task = rng.choice(TASKS)
    return fill(task, rng.choice(task.names), rng.choice(task.arguments), rng.randint(2, 12))


def writing(rng: Random) -> Row:
    """A function is to be written, in steps or in one line."""
    function = draw_function(rng)
    name, goal = function.name, function.goal
    in_one_line = rng.random() < 0.35
    asked = rng.choice(
        (
            f"Write a Python function {name}({function.argument}) that {goal}.",
            f"Define a function called {name} with the argument {function.argument} that {goal}.",
            f"I need a Python function {name}. It has the argument {function.argument} and {goal}.",
            f"Create the function {name}({function.argument}), which {goal}.",
            f"How do I write a function {name}({function.argument}) that {goal}?",
        )
    )
    if in_one_line:
        asked += rng.choice((" Use one line for the body.", " Make it as short as you can."))
    return row(asked, function.source(in_one_line), function.checks())


def assignment(rng: Random) -> Row:
    """A few lines of code that store a value."""
    goal, code, variable, expected = rng.choice(ASSIGNMENTS)
    values = blanks(rng)
    asked = rng.choice(
        ("Write Python code that {}.", "Show me code that {}.", "Write code which {}.")
    )
    result = repr(eval(filled(expected, values)))
    return row(
        asked.format(filled(goal, values)),
        filled(code, values),
        [f"assert {variable} == {result}"],
    )


def printing(rng: Random) -> Row:
    """What a program prints."""
    source = draw_program(rng)
    text = printed(source)
    asked = rng.choice(
        (
            "What does this program print?",
            "What is the output of this code?",
            "Tell me what this Python code prints.",
            "Run this code in your head. What do you see?",
        )
    )
    if "\n" in text:
        return row(asked, f"The program prints these lines:\n{text}", [], source)
    return row(asked, f"The program prints {text}", [], source)


@cache
def fails(source: str, checks: tuple[str, ...]) -> bool:
    """Whether some check does not hold for the code."""
    space: dict[str, object] = {}
    try:
        for statement in (source, *checks):
            exec(statement, space)
    except Exception:
        return True
    return False


@cache
def broken_versions(function: Function) -> tuple[str, ...]:
    """The function with one mistake, in each way that makes it fail."""
    source = function.source()
    checks = tuple(function.checks())
    versions = (source.replace(right, wrong, 1) for right, wrong in MISTAKES if right in source)
    return tuple(version for version in versions if fails(version, checks))


def debugging(rng: Random) -> Row:
    """Code with a mistake that is to be put right."""
    function = draw_function(rng)
    asked = rng.choice(
        (
            f"This function {function.goal}, but it has a bug. Fix it.",
            f"Find and fix the mistake. The function {function.goal}.",
            f"This code should be a function that {function.goal}. Correct it.",
        )
    )
    broken = rng.choice(broken_versions(function))
    return row(asked, function.source(), function.checks(), broken)


def explaining(rng: Random) -> Row:
    """What a function does, with an example."""
    function = draw_function(rng)
    asked = rng.choice(
        (
            "Explain what this function does.",
            "What is this function for?",
            "Describe this code in plain words.",
        )
    )
    case = rng.choice(function.cases)
    return row(
        asked,
        f"The function {function.name} {function.goal}. "
        f"For example, {function.name}({case}) returns {function.result(case)}.",
        [],
        function.source(in_one_line=rng.random() < 0.35),
    )


def calling(rng: Random) -> Row:
    """What a call of a function returns."""
    function = draw_function(rng)
    case = rng.choice(function.cases)
    asked = sentence_case(
        rng.choice(
            (
                f"what does {function.name}({case}) return?",
                f"which value does the call {function.name}({case}) give?",
            )
        )
    )
    return row(
        asked,
        f"The call {function.name}({case}) returns {function.result(case)}.",
        [],
        function.source(in_one_line=rng.random() < 0.35),
    )


SHARES: tuple[tuple[Callable[[Random], Row], int], ...] = (
    (writing, 1100),
    (assignment, 200),
    (printing, 500),
    (debugging, 350),
    (explaining, 200),
    (calling, 150),
)


def rows(split: str, seed: int) -> list[Row]:
    """The rows of a split in random order."""
    rng = generator("code_alpaca", split, seed)
    divisor = VALIDATION_SHARE if split == "validation" else 1
    result: list[Row] = []
    for draw, count in SHARES:
        result += distinct_rows(draw, count // divisor, split, rng, row_key)
    rng.shuffle(result)
    return result
