"""What counts as a program, where it stands in an answer, and what its scores mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newllm.errors import UserError
from newllm.evaluate.code_answers import (
    CodeTask,
    code_task,
    extract_code,
    is_program,
    score_code,
)
from newllm.evaluate.sandbox import Limits, require_sandbox
from newllm.inference.greedy import Answer
from tools.samples import sample_rows


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = 1\n", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("```py\nx = 1", "x = 1"),
        ("  ```python\n  if x:\n      y()\n  ```", "if x:\n    y()"),
        ("```java\nint x;\n```\n```python\nx = 1\n```", "x = 1"),
        ("```python\nx = 1\n```\n```python\ny = 2\n```", "x = 1"),
        ("    x = 1\n    y = 2", "x = 1\ny = 2"),
        ("```java\nint x;\n```", "```java\nint x;\n```"),
        ("", ""),
    ],
)
def test_the_program_in_an_answer(answer: str, code: str) -> None:
    assert extract_code(answer) == code


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("x = 1", True),
        ("print(1)", True),
        ("[x for x in y]", True),
        ("import os", True),
        ("Yes", False),
        ("red, green, blue", False),
        ("'a text'", False),
        ("", False),
        ("def f(:", False),
        ("The sum is 5.", False),
        ("x = '\0'", False),
        ("print('\\d')", True),  # would warn
        ("(" * 10_000, False),
        ("-" * 100_000 + "1", False),
    ],
)
def test_what_a_program_is(text: str, does: bool) -> None:
    assert is_program(text) is does


@given(st.text(max_size=200))
def test_any_text_can_be_judged(text: str) -> None:
    is_program(extract_code(text))


def test_rows_that_ask_for_programs() -> None:
    row = {"instruction": "Add.", "input": "", "output": "def f(a, b):\n    return a + b"}
    assert code_task(row) == CodeTask(row["output"])
    checked = {**row, "checks": ["assert f(1, 2) == 3"], "expected_output": "3"}
    task = code_task(checked)
    assert task is not None
    assert task.checked
    assert code_task({**row, "output": "public int f() { return 1; }"}) is None
    with pytest.raises(ValueError, match="'checks' is no list"):
        code_task({**row, "checks": "assert True"})
    with pytest.raises(ValueError, match="'expected_output' is int"):
        code_task({**row, "expected_output": 3})


def test_the_sample_is_its_own_ceiling() -> None:
    tasks = [code_task(row) for row in sample_rows("code_alpaca", "validation")]
    assert sum(task is not None and task.checked for task in tasks) > 50


def test_without_running_only_the_form_is_judged() -> None:
    tasks = [CodeTask("x = 1"), CodeTask("x = 1", ("assert x == 1",))]
    scores = score_code(tasks, [Answer("import os", True), Answer("no", True)], run_code=False)
    assert (scores["parses"], scores["checked_rows"]) == (0.5, 1)
    for name in ("runs", "passes", "own_runs", "own_passes", "errors", "not_protected_from"):
        assert scores[name] is None


def test_scores_of_answers_that_were_run() -> None:
    try:
        require_sandbox()
    except UserError as reason:
        pytest.skip(str(reason))
    own = "def f(x):\n    return x + 1"
    checks = ("assert f(1) == 2", "assert f(5) == 6")
    task, prints, free = CodeTask(own, checks), CodeTask("print(3)", (), "3"), CodeTask("open('x')")
    cases = [
        (task, own, True, True),
        (task, f"```python\n{own}\n```", True, True),
        (task, "f = lambda x: 2", True, False),  # one check of two
        (task, "def f(x):\n    return y", True, False),
        (task, "def g(x):\n    return x + 1", True, False),
        (task, "def f(x) return x", False, False),
        (task, "while True:\n    pass", False, False),
        (prints, "print(1 + 2)", True, True),
        (prints, "print(4)", True, False),
        (free, "import math", True, False),
    ]
    answers = [Answer(text, True) for _, text, _, _ in cases]
    scores = score_code([case[0] for case in cases], answers, True, Limits(seconds=1))
    assert scores["parses"] == 9 / 10
    assert scores["runs"] == sum(case[2] for case in cases) / 10
    assert scores["checked_rows"] == 9
    assert scores["passes"] == sum(case[3] for case in cases) / 9
    assert scores["own_runs"] == 9 / 10  # the last row's own answer reads a file nobody has
    assert scores["own_passes"] == 1
    assert scores["errors"] == {"time limit (1 s)": 1}
    assert "kernel" in scores["not_protected_from"]
