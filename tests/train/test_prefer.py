"""Training on pairs: gradients by hand, exact resume, its verdict, what is refused."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import newllm
from newllm.errors import Stopped, UserError
from newllm.evaluate.preferences import PairScores, Side, bootstrap_interval
from newllm.evaluate.refusals import is_refusal
from newllm.model.residual import ResidualLM
from newllm.train import checkpoint
from newllm.train.prefer import (
    Pairs,
    PreferenceTrainer,
    harmless_prompts,
    judge_preferences,
    prefer,
    preference_lines,
)
from newllm.train.preference_loss import METHODS, Preferring
from newllm.train.run import train
from newllm.train.trainer import Trainer
from tests.faults.forkserver import Jobs
from tests.train.test_distributed import launch_command

TINY = {"context_dim": 16, "embed_dim": 16, "hidden_dim": 24, "vocab_size": 320,
        "max_seq_length": 24, "batch_size": 4, "epochs": 1, "device": "cpu"}  # fmt: skip


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("newllm.model.kernels.FORCED", "reference")  # no compiling for a few steps


def row(number: int, answer: str, other: str) -> dict[str, str]:
    begin = f"\n\nHuman: is {number} a number?\n\nAssistant:"
    return {"chosen": f"{begin} {answer}", "rejected": f"{begin} {other}"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model of HH-RLHF-like rows, and the flags of a run that goes on from it."""
    folder = tmp_path_factory.mktemp("pairs")
    for part in ("helpful-base", "harmless-base"):
        (folder / "rows" / part).mkdir(parents=True)
        for split, first, count in (("train", 0, 8), ("validation", 90, 4)):
            rows = [row(n, "yes it is", "no no" if n % 2 else "not at all, never")
                    for n in range(first, first + count)]  # fmt: skip
            if split == "train":
                rows[2]["rejected"] = rows[2]["chosen"]
                rows[3]["rejected"] = "\n\nHuman: no answer"
            text = "".join(json.dumps(r) + "\n" for r in rows)
            (folder / "rows" / part / f"{split}.jsonl").write_text(text)
    flags = {**TINY, "data": str(folder / "rows"), "out": str(folder)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("newllm.model.kernels.FORCED", "reference")
        file = train("hh_rlhf", flags)
    return {"file": str(file), "data": flags["data"], "batch_size": 4, "device": "cpu"}


def run(base: dict[str, Any], out: Path, options: Preferring, **more: Any) -> Path:
    flags = {name: value for name, value in base.items() if name != "file"}
    resume = more.pop("resume", False)
    return prefer(base["file"], options, {**flags, "out": str(out), **more}, resume)


def test_it_learns_what_is_preferred_and_says_so(base, tmp_path, capsys) -> None:
    best = run(base, tmp_path, Preferring(anchor=0.1), epochs=20, learning_rate=3e-3)
    said = capsys.readouterr().out
    assert "Pairs  12 training; 4 rows without two answers left out" in said
    assert "train.jsonl:4: field 'rejected'" in said
    assert "Pairs  8 validation\n" in said
    assert "Pref=100.0% Len=50.0%" in said
    assert "better than always the longer answer (50.0%): +50.0 points" in said
    (verdict,) = (json.loads(p.read_text()) for p in tmp_path.glob("*.preferences.json"))
    assert verdict["after"] == 1
    assert verdict["method"] == "simpo"
    assert verdict["beta"] == 2
    assert set(verdict["rejected_likelier"]) == {"all", "harmless", "helpful"}
    assert best.name == f"best_{Path(base['file']).stem.removeprefix('best_')}_simpo.pt"
    assert checkpoint.load_model(best)["metrics"]["prefers_chosen"] == 1


def test_refusals_are_counted_before_and_after(base, tmp_path, capsys) -> None:
    assert is_refusal("I’m sorry, I can't.")
    assert is_refusal("That would be illegal in most places.")
    assert not is_refusal("Put the kettle on. Then wait.")
    assert not is_refusal("Tea! " * 50 + "I cannot say more.")
    best = run(base, tmp_path, Preferring(anchor=0.1), epochs=1)
    (verdict,) = (json.loads(p.read_text()) for p in tmp_path.glob("*.preferences.json"))
    assert verdict["refusals_before"] == verdict["refusals_after"] == 0
    assert "refusals of harmless validation prompts: 0.0% -> 0.0%" in capsys.readouterr().out
    tokenizer: Any = newllm.load(str(best), "cpu").tokenizer
    ids, sides = [1, 4, 30, 2, 5, 31, 2, 4, 32, 2, 5, 33, 2], []
    for number in range(250):
        sides.append((Side([*ids[:2], number + 40, *ids[2:]], [], 1),) * 2)
    pairs = Pairs(sides, [number % 2 == 0 for number in range(250)], 0, "")
    prompts = harmless_prompts(pairs, tokenizer.roles["assistant"])
    assert len(prompts) == 63  # of 125, spread
    assert prompts[1] == [*ids[:2], 44, *ids[2:11]]
    assert harmless_prompts(Pairs(sides, [None] * 250, 0, ""), 5) == []


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = Trainer._timed_step, 0

    def counting(self: Trainer, *arguments: Any) -> None:
        nonlocal count
        original(self, *arguments)
        count += 1
        if count == steps:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_timed_step", counting)


def test_a_stopped_run_goes_on_to_the_bit(base, tmp_path, monkeypatch) -> None:
    options = Preferring("dpo")
    calm = run(base, tmp_path / "calm", options, epochs=2, learning_rate=1e-3)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stopped):
            run(base, tmp_path / "cut", options, epochs=2, learning_rate=1e-3)
    with pytest.raises(UserError, match=r"began with method dpo, beta 0\.1"):
        run(base, tmp_path / "cut", Preferring("dpo", beta=1.0), epochs=2, resume=True)
    again = run(base, tmp_path / "cut", options, resume=True)  # its settings are the run's
    settings = checkpoint.load_model(again)["settings"]
    assert (settings["epochs"], settings["learning_rate"]) == (2, 1e-3)
    once, then = (checkpoint.load(path)["model"] for path in (calm, again))
    assert all(torch.equal(once[name], then[name]) for name in once)
    verdicts = [json.loads(next((tmp_path / name).glob("*.preferences.json")).read_text())
                for name in ("calm", "cut")]  # fmt: skip
    assert verdicts[0] == verdicts[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_prefer_as_one(base, tmp_path, jobs: Jobs, method) -> None:
    """Also where one of them is told to stop and both go on later; the steps are uneven parts."""
    flags = {"data": base["data"], "epochs": 2, "batch_size": 5, "device": "cpu"}
    one = run(base, tmp_path / "one", Preferring(method), **flags)
    command = ["prefer", base["file"], f"--method={method}"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    command += ["--out", str(tmp_path / "two")]
    code, output = launch_command(jobs, command, 2, {"HURT": "3:SIGTERM"})
    assert code != 0
    assert "Stopped; to go on: start the 2 processes again" in output
    code, output = launch_command(jobs, [*command, "--resume"], 2, {})
    assert code == 0, output
    assert output.count("Prefers the chosen answer of") == 1
    two = tmp_path / "two" / one.name
    expected, got = (checkpoint.load(file)["model"] for file in (one, two))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-4, msg=name)
    expected, got = (json.loads(next(file.parent.glob("*.preferences.json")).read_text())
                     for file in (one, two))  # fmt: skip
    assert got["loss_after"] == pytest.approx(expected["loss_after"], rel=1e-3)
    assert got["loss_after"] != got["loss_before"]
    assert got["pairs"] == expected["pairs"] == 8


DAMAGED = [
    b'{"chosen": "\\n\\nHuman: a?\\n\\nAssistant: b"',  # half a row
    b'["no object"]',
    b'{"chosen": 1, "rejected": "\\n\\nHuman: a?\\n\\nAssistant: b"}',
    b'{"rejected": "\\n\\nHuman: a?\\n\\nAssistant: b"}',
    b'{"chosen": "", "rejected": ""}',
    b"\xff\xfe no text",
]


def test_damaged_rows_are_counted_and_named(base, tmp_path, capsys) -> None:
    """They are left out; the first is told with its place, and the rest is learnt from."""
    folder = tmp_path / "rows"
    shutil.copytree(base["data"], folder)
    damaged = folder / "harmless-base" / "train.jsonl"
    damaged.write_bytes(b"\n".join(DAMAGED) + b"\n" + damaged.read_bytes())
    run(base, tmp_path / "out", Preferring(), data=str(folder))
    said = capsys.readouterr().out
    left_out = re.search(
        r"Pairs  (\d+) training; (\d+) rows without two answers left out, (.*)", said
    )
    assert left_out is not None, said
    assert int(left_out[1]) == 12
    assert int(left_out[2]) == 4 + len(DAMAGED)
    assert "harmless-base/train.jsonl:1: " in left_out[3]


def test_rows_without_any_pair_are_refused_in_one_line(base, tmp_path) -> None:
    folder = tmp_path / "rows"
    shutil.copytree(base["data"], folder)
    for file in folder.rglob("train.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({"chosen": r["chosen"]}) + "\n" for r in rows))
    with pytest.raises(UserError, match=r"^[^\n]*no training row has two answers$"):
        run(base, tmp_path / "out", Preferring(), data=str(folder))
    assert not list((tmp_path / "out").glob("*.pt"))


def test_a_sample_without_any_pair_is_refused(base, tmp_path) -> None:
    folder = tmp_path / "rows"
    shutil.copytree(base["data"], folder)
    for file in folder.rglob("train.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        same = [{**row, "rejected": row["chosen"]} for row in rows[1:]]
        file.write_text("".join(json.dumps(row) + "\n" for row in [*same, rows[0]]))
    refused = 0
    for seed in range(3):  # 2 of 16 rows have two answers
        try:
            run(base, tmp_path / "out", Preferring(), data=str(folder), max_samples=1, seed=seed)
        except UserError as error:
            refused += "--max-samples 1: no row of these has two answers" in str(error)
    assert refused >= 1


def by_hand(trainer: PreferenceTrainer, batch: Any) -> dict[str, torch.Tensor]:
    """Gradients of a batch, each dialogue read by itself, without padding."""
    model, options = trainer.model, trainer.options
    assert isinstance(model, ResidualLM)
    count, nats, sizes, ordinary = len(batch.ids) // 2, [], [], torch.zeros(())
    for number in range(2 * count):
        length = int((batch.targets[number] >= 0).sum())
        ids, targets = batch.ids[number : number + 1, :length], batch.targets[number, :length]
        tables = None if batch.tables is None else batch.tables[number : number + 1, :length]
        hidden, _ = model(ids, tables=tables)
        costs = F.cross_entropy(model.logits(hidden)[0], targets, reduction="none")
        wanted = batch.compared[number, :length]
        nats.append(costs[wanted].sum())
        sizes.append(wanted.sum())
        if number < count:
            ordinary = ordinary + model.loss(hidden, targets[None])
    pairs = torch.stack(nats).view(2, count).t(), torch.stack(sizes).view(2, count).t()
    losses = options.loss(*pairs, batch.reference)
    model.zero_grad()
    (losses.mean() + options.anchor * ordinary / batch.scored).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_dialogues_read_alone(base, tmp_path, monkeypatch, method) -> None:
    trainers: list[PreferenceTrainer] = []

    def fit(self: PreferenceTrainer, stop: Any) -> bool:
        trainers.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(PreferenceTrainer, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path, Preferring(method))
    (trainer,) = trainers
    model = trainer.model
    assert isinstance(model, ResidualLM)
    assert model.counts is not None
    assert trainer._counts is not None
    model.counts.set_tables(trainer._counts.tables)
    assert trainer.tables is not None
    assert set(trainer.tables.tolist()) == {1, 2, 3, 4}, "each predicted by what did not count it"
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    trainer.reference = np.random.default_rng(0).uniform(5, 9, (12, 2))
    batch = trainer._loader(0).batch(0)
    expected = by_hand(trainer, batch)
    for rows in (1, 3, 8):
        trainer._gradients(batch, rows)
        for name, parameter in model.named_parameters():
            if name in expected:
                assert parameter.grad is not None
                torch.testing.assert_close(
                    parameter.grad, expected[name], rtol=2e-3, atol=2e-6, msg=name
                )


def test_word1000_is_refused(tmp_path, dolly_folder) -> None:
    flags = {**TINY, "data": str(dolly_folder), "out": str(tmp_path), "tokenizer": "word1000"}
    file = train("dolly", {n: v for n, v in flags.items() if n != "vocab_size"})
    with pytest.raises(UserError, match="word1000 loses most words"):
        prefer(str(file), Preferring(), {})


def test_the_verdict_by_hand() -> None:
    sizes = np.tile([[10, 5], [5, 10]], (50, 1))
    before = PairScores(np.tile([[20.0, 5.0], [5.0, 20.0]], (50, 1)), sizes)
    after = PairScores(np.tile([[5.0, 4.0], [5.0, 30.0]], (50, 1)), sizes)
    verdict = judge_preferences(before, after, [True, False] * 50, (2.0, 2.1))
    assert (verdict["before"], verdict["after"], verdict["longer"]) == (0.5, 1.0, 0.5)
    assert verdict["after_interval"] == (1.0, 1.0)
    low, high = verdict["over_before_interval"]
    assert 0.38 < low < 0.44
    assert 0.56 < high < 0.62
    assert verdict["better_than_before"]
    assert not verdict["loss_kept"]
    assert verdict["rejected_likelier"] == {"all": 0.5, "harmless": 1.0, "helpful": 0.0}
    assert verdict["reward_accuracy"] == 1.0  # 15 and 0 nats gained, against 1 and -10
    lines = "\n".join(preference_lines(verdict))
    assert "gained more likelihood than the rejected one in 100.0% (95%: 100.0%" in lines
    assert "(+5.0%): more than the 1% that it may cost" in lines
    same = judge_preferences(before, before, [None] * 100, (2.0, 2.0))
    assert "not told apart from the model before" in "\n".join(preference_lines(same))
    earlier = {name: value for name, value in verdict.items() if "reward" not in name}
    assert len(preference_lines(earlier)) == len(preference_lines(verdict)) - 1


def test_the_bootstrap_covers_what_it_should() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(100):
        low, high = bootstrap_interval(rng.random(60) < 0.6, trial)
        inside += low <= 0.6 <= high
    assert 85 <= inside <= 100
