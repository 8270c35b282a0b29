"""Code answers: do they parse, do they run to their end, do they pass the row's checks.

Judged are the rows whose own answer is a Python program (CodeAlpaca asks for many languages and for
explanations, too). A program is text that Python's grammar accepts and that does something: single
words and lists of words would parse as well.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from newllm.evaluate.sandbox import NOT_PROTECTED_FROM, PROTECTED_FROM, Limits, Outcome, run_program
from newllm.inference.greedy import Answer

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.M | re.S)
_PYTHON = ("", "python", "python3", "py")
_DOES_SOMETHING = (
    ast.Call, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda,
)  # fmt: skip


def extract_code(answer: str) -> str:
    """The program in an answer: its first fenced block of Python, else the whole answer.

    A block whose language is not named is taken for Python; one that is not closed goes on to the
    end.
    """
    blocks = [text for language, text in _FENCE.findall(answer) if language.lower() in _PYTHON]
    return textwrap.dedent(blocks[0] if blocks else answer).strip("\n")


def is_program(source: str) -> bool:
    """Whether Python's grammar accepts a text, and it does something."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the answer's literals
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if any(not isinstance(statement, ast.Expr) for statement in tree.body):
        return True
    return any(isinstance(node, _DOES_SOMETHING) for node in ast.walk(tree))


@dataclass(frozen=True)
class CodeTask:
    """A row that asks for a Python program."""

    own_answer: str
    """The program that the row gives."""
    checks: tuple[str, ...] = ()
    """Statements that hold once a right answer has run (field `checks`)."""
    expected_output: str | None = None
    """What a right answer prints (field `expected_output`)."""

    @property
    def checked(self) -> bool:
        """Whether the row has a check or an expected output."""
        return bool(self.checks) or self.expected_output is not None

    def passed(self, outcome: Outcome) -> bool:
        """Whether an answer that became so is right."""
        expected = self.expected_output
        prints = expected is None or outcome.output.strip() == expected.strip()
        return outcome.ran and prints and outcome.passed == len(self.checks)


def code_task(row: Mapping[str, Any]) -> CodeTask | None:
    """The task of a CodeAlpaca row; None where its own answer is no Python program.

    Raises:
        ValueError: `checks` is no list of texts, or `expected_output` no text.
    """
    checks, expected = row.get("checks"), row.get("expected_output")
    if checks is not None and not (
        isinstance(checks, list) and all(isinstance(check, str) for check in checks)
    ):
        raise ValueError("field 'checks' is no list of texts")
    if expected is not None and not isinstance(expected, str):
        raise ValueError(f"field 'expected_output' is {type(expected).__name__}, expected text")
    own = extract_code(row["output"])
    return CodeTask(own, tuple(checks or ()), expected) if is_program(own) else None


def score_code(
    tasks: Sequence[CodeTask],
    answers: Sequence[Answer],
    run_code: bool,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """Fractions of answers that parse, run, and pass.

    With `run_code` they run sandboxed (:mod:`newllm.evaluate.sandbox`); else they are only read.

    Returns:
        parses, runs (fractions of all rows), checked_rows, passes (fraction of those; None without
        any), own_runs, own_passes (the same of the rows' own answers: what can be reached), errors
        (reasons why answers did not run -> how many, the most frequent first), protected_from and
        not_protected_from (in words). What takes running is None where nothing was run.

    Raises:
        UserError: `run_code` where this machine has no sandbox.
    """
    sources = [extract_code(answer.text) for answer in answers]
    parses = [is_program(source) for source in sources]
    result: dict[str, Any] = {
        "parses": sum(parses) / len(tasks),
        "runs": None,
        "checked_rows": sum(task.checked for task in tasks),
        "passes": None,
        "own_runs": None,
        "own_passes": None,
        "errors": None,
        "protected_from": None,
        "not_protected_from": None,
    }
    if not run_code:
        return result

    def run(task: CodeTask, source: str) -> Outcome:
        return run_program(source, task.checks, limits)

    outcomes = [
        run(task, source) if parsed else None
        for task, source, parsed in zip(tasks, sources, parses, strict=True)
    ]
    own = [run(task, task.own_answer) for task in tasks]
    reasons = Counter(
        outcome.error.split(":")[0] for outcome in outcomes if outcome and outcome.error
    )
    runs, passes = _shares(tasks, outcomes)
    own_runs, own_passes = _shares(tasks, own)
    return result | {
        "runs": runs,
        "passes": passes,
        "own_runs": own_runs,
        "own_passes": own_passes,
        "errors": dict(reasons.most_common()),
        "protected_from": PROTECTED_FROM,
        "not_protected_from": NOT_PROTECTED_FROM,
    }


def _shares(
    tasks: Sequence[CodeTask], outcomes: Sequence[Outcome | None]
) -> tuple[float, float | None]:
    """(fraction of all that ran, fraction of those with checks that passed)."""
    ran = sum(outcome is not None and outcome.ran for outcome in outcomes)
    checked = [(task, o) for task, o in zip(tasks, outcomes, strict=True) if task.checked]
    passed = sum(o is not None and task.passed(o) for task, o in checked)
    return ran / len(tasks), passed / len(checked) if checked else None
