"""Practice on a tiny model: rounds, what is kept, resuming, what is refused."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from newllm.curriculum import practise as practice
from newllm.curriculum.practise import practise
from newllm.errors import Stopped, UserError
from newllm.inference.greedy import Answer
from newllm.results.stages import Practice, read_practice
from newllm.train import checkpoint
from newllm.train.run import train
from newllm.train.trainer import Trainer

TINY = {"context_dim": 16, "embed_dim": 16, "hidden_dim": 24, "vocab_size": 320,
        "max_seq_length": 24, "batch_size": 8, "epochs": 1, "device": "cpu"}  # fmt: skip


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("newllm.model.kernels.FORCED", "reference")  # no compiling for a few steps
    monkeypatch.setattr(practice, "_SHOWN_EPOCHS", 2)


@pytest.fixture(scope="module")
def plan(shared_dolly_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Practice:
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("newllm.model.kernels.FORCED", "reference")
        file = train("dolly", {**TINY, "data": str(shared_dolly_folder), "out": str(folder)})
    return Practice(str(file), shown=6, rounds=2, problems=3, samples=2, tested=4, device="cpu")


@pytest.fixture
def half_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows every second answer."""

    def answers(model: Any, problems: Any, task: Any, *how: Any) -> list[Answer]:
        return [Answer(p.result if n % 2 else "0", True) for n, p in enumerate(problems)]

    monkeypatch.setattr(practice, "_answers", answers)


def test_right_answers_are_kept_and_trained_on(plan, tmp_path, half_right, capsys) -> None:
    record = practise(dataclasses.replace(plan, out=str(tmp_path)))
    assert [done["right"] for done in record["rounds"]] == [0.5] * 4
    assert [done["asked"] for done in record["rounds"]] == [0, 6, 6, 6]
    # Asked twice, three problems have a right answer each, in the first three or the last.
    assert [done["kept"] for done in record["rounds"]] == [0, 6, 3, 3]
    rows = (tmp_path / "practice_round3" / "train.jsonl").read_text().splitlines()
    assert len(rows) == 12
    stored = read_practice(tmp_path / "practice.practice.json")
    assert stored == (record["plan"], record["rounds"])
    assert "Practised: 50.0% -> 50.0% right of 4 unseen problems" in capsys.readouterr().out
    with pytest.raises(UserError, match="of an earlier practice; go on with --resume"):
        practise(dataclasses.replace(plan, out=str(tmp_path)))
    other = dataclasses.replace(plan, out=str(tmp_path), grade=2)
    with pytest.raises(UserError, match="began with other grade"):
        practise(other, resume=True)


def test_stopped_practice_goes_on_to_the_bit(plan, tmp_path, half_right, monkeypatch) -> None:
    calm = practise(dataclasses.replace(plan, out=str(tmp_path / "calm"), rounds=1))
    original, count = Trainer._timed_step, 0

    def counting(self: Trainer, *arguments: Any) -> None:
        nonlocal count
        original(self, *arguments)
        count += 1
        if count == calm_steps + 1:
            signal.raise_signal(signal.SIGTERM)

    first = checkpoint.load(Path(calm["rounds"][1]["checkpoint"]))
    calm_steps = first["metrics"]["steps"]  # into the second training
    cut = dataclasses.replace(plan, out=str(tmp_path / "cut"), rounds=1)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_timed_step", counting)
        with pytest.raises(Stopped):
            practise(cut)
    again = practise(cut, resume=True)
    once, then = (checkpoint.load(Path(r["rounds"][-1]["checkpoint"]))["model"]
                  for r in (calm, again))  # fmt: skip
    assert all(torch.equal(once[name], then[name]) for name in once)


def test_without_a_right_answer_it_says_so(plan, tmp_path) -> None:
    with pytest.raises(UserError, match="no answer of round 1 was right"):
        practise(dataclasses.replace(plan, out=str(tmp_path), shown=0))


def test_replay_is_looked_at_before_anything_is_written(plan, tmp_path) -> None:
    for replay, says in (("dolly", "--replay dolly: say where its rows are: dolly=PATH"),
                         ("doly=rows", "unknown data set doly")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            practise(dataclasses.replace(plan, out=str(tmp_path), replay=replay))
    assert not list(tmp_path.iterdir())


def test_columns_are_not_mixed_in_unasked(plan, tmp_path) -> None:
    """Rows that have names of their own: said at once, not after the problems that are shown."""
    content = checkpoint.load_model(Path(plan.file))
    content["settings"]["columns"] = ["instruction=question"]
    named = tmp_path / "named.pt"
    checkpoint.save(named, {k: v for k, v in content.items() if not k.startswith("format")})
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"learnt from rows with --columns.*--replay-share 0"):
        practise(dataclasses.replace(plan, file=str(named), out=str(out)))
    assert not out.exists()


def test_math_has_no_grades(plan, tmp_path) -> None:
    with pytest.raises(UserError, match="--grade: MATH's rows have no grades"):
        practise(dataclasses.replace(plan, out=str(tmp_path), task="math", grade=2))
