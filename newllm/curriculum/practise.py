"""A model practises what can be checked: it answers, and learns from its own right answers.

Expert iteration (STaR: Zelikman et al. 2022, arXiv:2203.14465). A round asks new problems, several
times each; a checker keeps the right answers; the model is trained on all that were kept so far,
with rows of what it knew before among them; and the next round asks the better model. A model that
cannot begin is shown solved problems first. Every training is one of :mod:`newllm.train.run`, and
`NAME.practice.json` says which rounds are done, so that practice can be stopped anywhere.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from newllm.config import parse
from newllm.curriculum.exercises import (
    GRADES,
    MathRows,
    Problem,
    Task,
    arithmetic,
    programs,
)
from newllm.data.render import ChatRenderer
from newllm.data.sources import open_source
from newllm.data.tokenizers import BPE
from newllm.datasets import find_dataset
from newllm.errors import UserError, require_packages
from newllm.evaluate.sandbox import require_sandbox
from newllm.inference.greedy import Answer, greedy_answers, sampled_answers
from newllm.results.runs import RunFiles, read_lines, write_lines
from newllm.results.stages import Practice, read_practice, write_practice
from newllm.train import checkpoint
from newllm.train.distributed import refuse_several
from newllm.train.run import named_rows, train
from newllm.train.signals import run_lock
from newllm.trained import TrainedModel

_SHOWN_EPOCHS, _ROUND_EPOCHS = 20, 3
_VALIDATION_ROWS = 50


def problems_of(plan: Practice, grade: int) -> Task:
    """The problems of a grade.

    Raises:
        UserError: rows, a package or a protection is missing.
    """
    if plan.task == "math":
        require_packages("--task math", "math_verify", extra="eval")
        return MathRows(open_source(find_dataset("math"), plan.data))
    if plan.task == "code":
        require_sandbox()
        return programs(grade)
    return arithmetic(grade)


def practise(
    plan: Practice, resume: bool = False, note: Callable[[str], None] = print
) -> dict[str, Any]:
    """Practise, and print how it goes.

    Returns:
        the record, as `NAME.practice.json` has it: plan, and rounds with `right` (share of right
        answers to unseen problems of the grade), `next_grade` (of the one above, or None), `kept`
        (right answers found in the round), `asked`, `checkpoint`, `seconds`.

    Raises:
        UserError: anything the user can mend.
        Stopped: a signal came; everything is saved.
    """
    refuse_several("practise")
    if plan.task == "math" and plan.grade != 1:
        raise UserError("--grade: MATH's rows have no grades; omit it")
    start = parse(checkpoint.load_model(Path(plan.file))["settings"])
    if start.tokenizer != "bpe":
        raise UserError(f"{plan.file}: word1000 has no numbers and no code; train with BPE first")
    if plan.replay:
        named_rows("--replay", plan.replay)
    elif plan.replay_share and start.columns and start.dataset != "chat":
        raise UserError(
            f"{plan.file}: learnt from rows with --columns, which mixing in does not know; name "
            "them as the data set does and give --replay DATASET=PATH, or give --replay-share 0"
        )
    folder = Path(plan.out)
    with run_lock(folder, f"{plan.name}.practice", note):
        return _Practising(plan, folder, resume, note).run()


class _Practising:
    def __init__(
        self, plan: Practice, folder: Path, resume: bool, note: Callable[[str], None]
    ) -> None:
        self.plan, self.folder, self.note, self.resume = plan, folder, note, resume
        self.path = folder / f"{plan.name}.practice.json"
        self.task = problems_of(plan, plan.grade)
        graded = plan.task != "math" and plan.grade < max(GRADES)
        self.above = problems_of(plan, plan.grade + 1) if graded else None
        self.rounds = self._begin()

    def _begin(self) -> list[dict[str, Any]]:
        """The rounds that are done."""
        if not self.path.exists():
            if self.resume:
                self.note(f"Nothing to resume under {self.path}; starting afresh.")
            return []
        if not self.resume:
            raise UserError(
                f"{self.path}: of an earlier practice; go on with --resume, or give another --name"
            )
        before, rounds = read_practice(self.path)
        free = {"rounds", "goal", "device"}
        now = asdict(self.plan)
        changed = [name for name in now if name not in free and now[name] != before.get(name)]
        if changed:
            raise UserError(
                f"--resume: practice began with other {', '.join(changed)}; leave them as they "
                "were, or give another --name"
            )
        return rounds

    def run(self) -> dict[str, Any]:
        plan = self.plan
        if not self.rounds:
            self.note(f"Practice {plan.name}: {plan.task}, grade {plan.grade}, from {plan.file}")
            self._finish(plan.file, 0, 0, time.perf_counter())
        while len(self.rounds) <= plan.rounds + bool(plan.shown):
            if self.rounds[-1]["right"] >= plan.goal:
                break
            self._round(len(self.rounds))
        first, last = self.rounds[0], self.rounds[-1]
        seconds = sum(done["seconds"] for done in self.rounds)
        self.note(
            f"Practised: {first['right']:.1%} -> {last['right']:.1%} right of {plan.tested} unseen "
            f"problems, in {seconds / 60:.1f} minutes\nTalk to it: newllm chat {last['checkpoint']}"
        )
        return self._record()

    def _round(self, number: int) -> None:
        """Ask, check, train: one round, which is the first again if it was not finished."""
        plan, started = self.plan, time.perf_counter()
        shows = plan.shown > 0 and number == 1
        before = [] if number == 1 else _read(self._rows(number - 1))
        path = self._rows(number)
        if not (self.resume and path.exists()):
            rng = random.Random(f"{plan.seed}:{number}")
            found = self._shown(rng) if shows else self._found(rng, number)
            known = {json.dumps(row) for row in before}
            new = [row for row in found if json.dumps(row) not in known]
            tests = self.task.problems(random.Random(plan.seed), _VALIDATION_ROWS, held_out=True)
            path.parent.mkdir(exist_ok=True)
            write_lines(path.with_name("validation.jsonl"), [_row(p, p.worked) for p in tests])
            write_lines(path, [*before, *new])
        rows = len(_read(path))
        if not rows:
            raise UserError(
                f"no answer of round {number} was right: nothing can be learnt from. Show more "
                "solved problems (--shown), or begin with a lower --grade"
            )
        best = self._train(path.parent, number, _SHOWN_EPOCHS if shows else _ROUND_EPOCHS)
        asked = plan.shown if shows else plan.problems * plan.samples
        self._finish(str(best), asked, rows - len(before), started)

    def _rows(self, number: int) -> Path:
        """All right answers up to a round."""
        return self.folder / f"{self.plan.name}_round{number}" / "train.jsonl"

    def _shown(self, rng: random.Random) -> list[dict[str, Any]]:
        problems = self.task.problems(rng, self.plan.shown, held_out=False)
        return [_row(problem, problem.worked) for problem in problems]

    def _found(self, rng: random.Random, number: int) -> list[dict[str, Any]]:
        """The model's own right answers to new problems, none twice."""
        plan = self.plan
        problems = self.task.problems(rng, plan.problems, held_out=False) * plan.samples
        model = TrainedModel.load(self.rounds[-1]["checkpoint"], plan.device)
        answers = _answers(model, problems, self.task, plan.temperature, plan.seed + number)
        right = self.task.right(problems, answers)
        rows = {
            (problem.question, answer.text): _row(problem, answer.text)
            for problem, answer, good in zip(problems, answers, right, strict=True)
            if good
        }
        return list(rows.values())

    def _train(self, data: Path, number: int, epochs: int) -> Path:
        plan, before = self.plan, self.rounds[-1]["checkpoint"]
        start = parse(checkpoint.load_model(Path(plan.file))["settings"])
        # Of rows of one's own, as those of an earlier practice, what these were mixed with.
        known = start.rehearse if start.dataset == "chat" else [f"{start.dataset}={start.data}"]
        flags: dict[str, Any] = {
            "data": str(data),
            "init_from": before,
            "epochs": epochs,
            "learning_rate": plan.learning_rate,
            "batch_size": plan.batch_size,
            "dropout": 0.0,
            "closed_answers": True,
            "patience": epochs,
            "out": plan.out,
            "name": f"{plan.name}_{number}",
            "device": plan.device,
            "seed": plan.seed,
            "rehearse": ([plan.replay] if plan.replay else known) if plan.replay_share else [],
            "rehearsal_share": plan.replay_share,
        }
        files = RunFiles(self.folder, flags["name"])
        going_on = self.resume and files.resume.exists()
        train("chat", flags, resume=going_on, advise=False)
        return files.final

    def _finish(self, model: str, asked: int, kept: int, started: float) -> None:
        """Test the model, and write the round down."""
        plan = self.plan
        trained = TrainedModel.load(model, plan.device)
        shares: list[float | None] = []
        for task in (self.task, self.above):
            if task is None:
                shares.append(None)
                continue
            problems = task.problems(random.Random(plan.seed), plan.tested, held_out=True)
            right = task.right(problems, _answers(trained, problems, task))
            shares.append(sum(right) / len(right))
        self.rounds.append(
            {
                "right": shares[0],
                "next_grade": shares[1],
                "asked": asked,
                "kept": kept,
                "checkpoint": model,
                "seconds": time.perf_counter() - started,
            }
        )
        write_practice(self.path, **self._record())
        number = len(self.rounds) - 1
        above = "" if shares[1] is None else f", of the next grade {shares[1]:.1%}"
        what = f"Round {number}: {kept} new right answers of {asked}" if number else "Before"
        self.note(f"{what} | unseen problems: {shares[0]:.1%} right{above}")

    def _record(self) -> dict[str, Any]:
        return {"plan": asdict(self.plan), "rounds": self.rounds}


def _answers(
    model: TrainedModel,
    problems: Sequence[Problem],
    task: Task,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Answer]:
    """A model's answers: greedy, or drawn."""
    assert isinstance(model.tokenizer, BPE)
    renderer = ChatRenderer(model.tokenizer)
    prompts = [renderer.prompt([{"role": "user", "content": p.question}]) for p in problems]
    if temperature == 0:
        return greedy_answers(model.model, model.tokenizer, prompts, task.answer_tokens)
    return sampled_answers(
        model.model, model.tokenizer, prompts, task.answer_tokens, temperature, seed
    )


def _row(problem: Problem, answer: str) -> dict[str, Any]:
    return {"question": problem.question, "answer": answer}


def _read(path: Path) -> list[dict[str, Any]]:
    return read_lines(path, {"question", "answer"})
