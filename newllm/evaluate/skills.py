"""What a model can do, beside how well it predicts: one check a data set, or none.

Answers are greedy, so that a check gives the same result every time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from newllm.data.located import Located
from newllm.data.render import ChatRenderer
from newllm.data.sources import Source
from newllm.data.tokenizers import BPE, Tokenizer
from newllm.datasets import find_dataset
from newllm.datasets.base import Dataset
from newllm.errors import require_packages
from newllm.evaluate.code_answers import code_task, score_code
from newllm.evaluate.math_answers import math_task, score_math
from newllm.evaluate.preferences import preference_pair, score_preferences
from newllm.evaluate.sandbox import require_sandbox
from newllm.inference.greedy import greedy_answers
from newllm.model import LanguageModel

SKILL_ROWS = 200
"""Rows a check takes, where nothing else is said."""

_ANSWER_TOKENS = 512
_SEED = 0
"""Of the choice of rows: every model is asked the same."""

_Row = Mapping[str, Any]


def require_skills(dataset: str, run_code: bool = False) -> None:
    """Make sure, before any work, that the check of a data set can be done on this machine.

    Raises:
        UserError: a package or a protection is missing.
    """
    check = find_dataset(dataset).skill_check
    if check == "math answers":
        require_packages("--skills on MATH", "math_verify", extra="eval")
    if check == "code answers" and run_code:
        require_sandbox()


def skill_check(
    model: LanguageModel,
    tokenizer: Tokenizer,
    dataset: str,
    source: Source,
    rows: int = SKILL_ROWS,
    run_code: bool = False,
) -> dict[str, Any]:
    """Check what a model can do on the evaluation rows of a data set at `source`.

    Args:
        model: trained with `tokenizer`, on any device.
        rows: at most so many of the rows that can be judged, always the same ones.
        run_code: run code answers sandboxed (:mod:`newllm.evaluate.sandbox`); else they are parsed.

    Returns:
        check (its name, or None), reason (why there is none, or None), rows (judged), of (that
        can be judged) and left_out (that cannot: other languages than Python, no box, twice the
        same dialogue, malformed); then, by check, what `score_code`, `score_math` or
        `score_preferences` return; checks of answers also have `unfinished`, the share cut at 512
        tokens.

    Raises:
        UserError: a package or a protection is missing.
    """
    rows_of = find_dataset(dataset)
    if rows_of.skill_check is None:
        return _none(f"there is no skill check for {dataset}")
    if not isinstance(tokenizer, BPE):
        return _none("word1000 loses case, white space and most words; train with --tokenizer bpe")
    require_skills(dataset, run_code)
    was_training = model.training
    model.eval()
    try:
        return _judged(model, ChatRenderer(tokenizer), rows_of, source, rows, run_code)
    finally:
        model.train(was_training)


_TASKS: dict[str, tuple[Callable[[_Row], Any], str]] = {
    "preferences": (preference_pair, "no row of {} has two answers"),
    "math answers": (math_task, "no solution of {} has a box"),
    "code answers": (code_task, "no answer of {} is a Python program"),
}
"""Check -> what makes a task of a row (or None), and what is said where no row has one."""


def _judged(
    model: LanguageModel,
    renderer: ChatRenderer,
    dataset: Dataset,
    source: Source,
    rows: int,
    run_code: bool,
) -> dict[str, Any]:
    check = dataset.skill_check
    assert check is not None
    read, nothing = _TASKS[check]
    usable, left_out = _usable(source, dataset, read)
    if not usable:
        return _none(nothing.format(source.description), left_out)
    # Not the first ones: some copies stand in the order of their subjects.
    count = min(rows, len(usable))
    chosen = [usable[i] for i in sorted(random.Random(_SEED).sample(range(len(usable)), count))]
    tasks = [task for _, task in chosen]
    facts = {"check": check, "reason": None, "rows": count, "of": len(usable), "left_out": left_out}
    if check == "preferences":
        return facts | score_preferences(model, renderer, tasks)
    prompts = [renderer.prompt(dataset.conversation(row)[:-1]) for row, _ in chosen]
    answers = greedy_answers(model, renderer.tokenizer, prompts, _ANSWER_TOKENS)
    facts["unfinished"] = sum(not answer.finished for answer in answers) / len(answers)
    if check == "math answers":
        return facts | score_math(tasks, answers)
    return facts | score_code(tasks, answers, run_code)


def _none(reason: str, left_out: int = 0) -> dict[str, Any]:
    return {"check": None, "reason": reason, "rows": 0, "of": 0, "left_out": left_out}


def _usable(
    source: Source, dataset: Dataset, read: Callable[[_Row], Any]
) -> tuple[list[tuple[_Row, Any]], int]:
    """The rows of which `read` makes a task, each with its task; how many others there are."""
    usable: list[tuple[_Row, Any]] = []
    total = 0
    for item in source.evaluation_split()():
        total += 1
        if not isinstance(item, Located):
            continue
        try:
            dataset.conversation(item.row)
            task = read(item.row)
        except ValueError:  # malformed: counted with what cannot be judged
            continue
        if task is not None:
            usable.append((item.row, task))
    return usable, total - len(usable)
