"""Whole runs on tiny models: files, exact resume, guards, settings that must not change."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import newllm
from newllm.datasets import DATASETS
from newllm.errors import Stopped, UserError
from newllm.results.summary import load_summary, summary_lines
from newllm.train import checkpoint
from newllm.train import trainer as loop
from newllm.train.run import count_repetitions, train
from newllm.train.signals import StopRequest, run_lock
from newllm.train.trainer import MAX_NONFINITE_STEPS, Trainer

TINY = {
    "context_dim": 16,
    "embed_dim": 16,
    "hidden_dim": 24,
    "vocab_size": 400,
    "max_seq_length": 24,
    "batch_size": 4,
    "epochs": 2,
    "device": "cpu",
}


@pytest.fixture
def flags(dolly_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {**TINY, "data": str(dolly_folder), "out": str(tmp_path / "out")}


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliver a real SIGTERM to this process after so many training steps."""
    original, count = Trainer._timed_step, 0

    def counting(self: Trainer, *arguments: Any) -> None:
        nonlocal count
        original(self, *arguments)
        count += 1
        if count == steps:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_timed_step", counting)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path)["model"]


def records(folder: Path, name: str, timed: bool = False) -> list[dict[str, Any]]:
    lines = (folder / f"{name}.metrics.jsonl").read_text().splitlines()
    untimed = [json.loads(line) for line in lines]
    for record in [] if timed else untimed:
        del record["seconds"], record["total_seconds"]
    return untimed


NAME = "new_llm_dolly_layers1_bpe"


def test_files_of_a_run(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    best = train("dolly", flags)
    folder = Path(flags["out"])
    assert best == folder / f"best_{NAME}.pt"
    names = {f"best_{NAME}.pt", f"{NAME}_final.pt", f"{NAME}_resume.pt",
             f"{NAME}_resume.previous.pt", f"{NAME}.metrics.jsonl", f"{NAME}.yaml",
             f"{NAME}.answers.jsonl", f"{NAME}.summary.json"}  # fmt: skip
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == names
    output = capsys.readouterr().out
    for record in records(folder, NAME):
        line = f"  Val: Loss={record['loss']:.2f} PPL={record['ppl']:.1f}"
        assert line in output, "what is printed is what is stored"
    answers = [json.loads(line) for line in (folder / f"{NAME}.answers.jsonl").open()]
    assert [line["epoch"] for line in answers] == [1, 2]
    assert [a["prompt"] for a in answers[0]["answers"]] == list(DATASETS["dolly"].prompts)
    assert 0 <= answers[0]["repetition_rate"] <= 1
    summary = load_summary(folder / f"{NAME}.summary.json")
    assert all(line in output for line in summary_lines(summary))
    assert summary.best in records(folder, NAME, timed=True)
    assert (summary.run, summary.epochs, summary.settings["data"]) == (NAME, 2, flags["data"])
    assert set(summary.data["accounting"]) == {"train", "validation"}
    assert summary.machine["device"] == "cpu"
    assert summary.machine["memory"] > 2**20
    model = newllm.load(str(best))
    assert isinstance(model.chat().say("What comes after 3?", max_new_tokens=5), str)


@pytest.mark.parametrize("architecture", ["context", "original"])
@pytest.mark.parametrize("stops", [(1,), (5, 3), (30,)])
def test_stopped_and_resumed_equals_never_stopped(
    architecture: str, stops: tuple[int, ...], flags, tmp_path, monkeypatch
) -> None:
    """Bit for bit: weights, and every number of the record. Dropout is on, states are carried."""
    flags |= {"architecture": architecture, "patience": 2}
    if architecture == "original":
        flags |= {"batch_size": 16}
    name = NAME.replace("_bpe", "_original_bpe") if architecture == "original" else NAME
    train("dolly", flags)
    resumed = {**flags, "out": str(tmp_path / "resumed")}
    for number, steps in enumerate(stops):
        with monkeypatch.context() as patch:
            stop_after(steps, patch)
            try:
                train("dolly", resumed, resume=number > 0)
            except Stopped as stop:
                assert stop.exit_code == 143
                assert "--resume" in str(stop)
    train("dolly", resumed, resume=True)
    for pattern in (f"{name}_final.pt", f"best_{name}.pt"):
        once = weights(Path(flags["out"]) / pattern)
        again = weights(tmp_path / "resumed" / pattern)
        assert all(torch.equal(once[key], again[key]) for key in once)
    assert records(Path(flags["out"]), name) == records(tmp_path / "resumed", name)
    answers = [(folder / f"{name}.answers.jsonl").read_text()
               for folder in (Path(flags["out"]), tmp_path / "resumed")]  # fmt: skip
    assert answers[0] == answers[1]


def test_resume_from_before_recall_had_sets(flags, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(Stopped):
            train("dolly", flags)
    file = Path(flags["out"]) / f"{NAME}_resume.pt"
    stored = checkpoint.load(file)
    carried = stored["trainer"]["carried_state"]
    assert (carried["recall"] > 0).any()
    carried["recall"] = carried["recall"].flatten(2)
    checkpoint.save(file, {key: stored[key] for key in stored if not key.startswith("format")})
    train("dolly", flags, resume=True)
    assert checkpoint.load(file)["trainer"]["carried_state"]["recall"].ndim == 4


def test_resume_of_a_finished_run_says_so(flags, capsys) -> None:
    train("dolly", flags)
    before = weights(Path(flags["out"]) / f"{NAME}_final.pt")
    capsys.readouterr()
    train("dolly", flags, resume=True)
    assert "finished" in capsys.readouterr().out.lower()
    after = weights(Path(flags["out"]) / f"{NAME}_final.pt")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_resume_of_nothing_starts_afresh(flags, capsys) -> None:
    train("dolly", {**flags, "epochs": 1}, resume=True)
    assert "starting afresh" in capsys.readouterr().out


def test_resume_refuses_changed_settings_by_name(flags) -> None:
    train("dolly", flags)
    with pytest.raises(UserError, match=r"--learning-rate 0.003 -> 0.5"):
        train("dolly", {**flags, "learning_rate": 0.5}, resume=True)
    # What is not given is taken from the run.
    best = train("dolly", {"out": flags["out"]}, resume=True)
    assert checkpoint.load(best)["settings"]["data"] == flags["data"]
    resume = checkpoint.load(Path(flags["out"]) / f"{NAME}_resume.pt")
    assert resume["settings"]["device"] == "cpu"


def test_resume_refuses_changed_data(flags, dolly_folder: Path) -> None:
    train("dolly", flags)
    file = dolly_folder / "train.jsonl"
    file.write_text(file.read_text().replace("comes 4", "comes four"))
    with pytest.raises(UserError, match="the data changed"):
        train("dolly", flags, resume=True)


def test_earlier_run_of_the_name_is_moved_not_lost(flags, capsys) -> None:
    train("dolly", {**flags, "epochs": 1, "tensorboard": True})
    before = (Path(flags["out"]) / f"best_{NAME}.pt").read_bytes()
    train("dolly", {**flags, "epochs": 1, "seed": 1})
    assert "was moved to" in capsys.readouterr().out
    (kept,) = (Path(flags["out"]) / "replaced").glob(f"*/best_{NAME}.pt")
    assert kept.read_bytes() == before
    assert list((kept.parent / NAME).glob("events*"))
    assert not (Path(flags["out"]) / "tensorboard" / NAME).exists()


def test_second_writer_is_refused(flags) -> None:
    with (
        run_lock(Path(flags["out"]), NAME),
        pytest.raises(UserError, match="another process is writing this run"),
    ):
        train("dolly", flags)


def test_folder_that_cannot_lock_is_told(flags, monkeypatch, capsys) -> None:
    def unsupported(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr("filelock.FileLock.acquire", unsupported)
    train("dolly", {**flags, "epochs": 1})
    assert "cannot lock files" in capsys.readouterr().out


def test_from_takes_weights_and_tokenizer(flags, tmp_path: Path) -> None:
    best = train("dolly", flags)
    onward = {**flags, "out": str(tmp_path / "onward"), "init_from": str(best), "epochs": 1}
    second = train("dolly", onward)
    assert checkpoint.load(second)["tokenizer"] == checkpoint.load(best)["tokenizer"]
    assert checkpoint.load(second)["metrics"]["loss"] < checkpoint.load(best)["metrics"]["loss"]
    with pytest.raises(UserError, match="--num-layers 1"):
        train("dolly", {**onward, "num_layers": 2})
    with pytest.raises(UserError, match="give --tokenizer bpe"):
        train("dolly", {**onward, "tokenizer": "word1000"})


def test_from_a_file_older_than_the_table_of_pairs(flags, tmp_path: Path) -> None:
    plain = {**flags, "epochs": 1, "pair_rows": 0}
    content = checkpoint.load(train("dolly", plain))
    del content["settings"]["pair_rows"], content["format"], content["format_version"]
    old = tmp_path / "old.pt"
    checkpoint.save(old, content)
    onward = {**plain, "out": str(tmp_path / "onward"), "init_from": str(old)}
    assert checkpoint.load(train("dolly", onward))["settings"]["pair_rows"] == 0
    with pytest.raises(UserError, match="--pair-rows 0"):
        train("dolly", {**onward, "pair_rows": 64})


@pytest.mark.parametrize("architecture", ["context", "original"])
def test_micro_batches_change_nothing_but_rounding(
    flags, architecture: str, tmp_path: Path
) -> None:
    flags |= {"dropout": 0.0, "precision": "fp32", "epochs": 1, "name": NAME}
    flags |= {"architecture": architecture, "batch_size": 8, "sampled_softmax": 32}
    train("dolly", flags)
    train("dolly", {**flags, "micro_batch_size": 3, "out": str(tmp_path / "micro")})
    (whole,), (parts,) = (
        records(folder, NAME) for folder in (tmp_path / "out", tmp_path / "micro")
    )
    # Equal gradients up to rounding (tests/model/test_context_lm.py); Muon's bfloat16 amplifies it.
    assert parts["train_loss"] == pytest.approx(whole["train_loss"], rel=5e-3)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=5e-3)


@pytest.mark.parametrize("minutes", [1e-4, 1e-9])
def test_minutes_end_a_run(flags, minutes: float) -> None:
    """The budget ends the run, its schedule included; the numbers are judged all the same."""
    train("dolly", {**flags, "epochs": 1000, "minutes": minutes})
    (record,) = records(Path(flags["out"]), NAME)[-1:]
    assert record["epoch"] < 1000
    assert record["loss"] > 0


def test_non_finite_steps_never_reach_the_weights(flags, monkeypatch, capsys) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    original = Trainer._step

    def poisoned(self: Trainer, batch: Any, factor: float) -> float:
        if self.progress.total_steps == 3:
            before = {k: v.clone() for k, v in self.model.state_dict().items()}
            with monkeypatch.context() as patch:
                nats: Any = self.model.nats
                patch.setattr(self.model, "nats", lambda *given: nats(*given) * float("nan"))
                result = original(self, batch, factor)
            seen.extend([before, {k: v.clone() for k, v in self.model.state_dict().items()}])
            return result
        return original(self, batch, factor)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    train("dolly", flags)
    before, after = seen
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "Step 4 of epoch 1 skipped" in capsys.readouterr().out
    final = records(Path(flags["out"]), NAME)[-1]
    assert final["skipped_steps"] == 1
    assert final["train_loss"] > 0


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on the CPU by the loop that a GPU has: nothing of a step is known before the next."""
    original = Trainer.__init__

    def made(self: Trainer, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        self._on_gpu = True

    monkeypatch.setattr(Trainer, "__init__", made)


def test_the_loop_of_gpus_trains_the_same_and_resumes_exactly(flags, tmp_path, monkeypatch) -> None:
    """Of fp32 products; the numbers of a step are added in another order."""
    flags |= {"precision": "fp32"}
    usual = train("dolly", {**flags, "out": str(tmp_path / "usual")})
    as_on_a_gpu(monkeypatch)
    whole = train("dolly", {**flags, "out": str(tmp_path / "whole")})
    for name, tensor in weights(usual).items():
        torch.testing.assert_close(weights(whole)[name], tensor, rtol=0.05, atol=0.02)
    pairs = zip(records(tmp_path / "whole", NAME), records(tmp_path / "usual", NAME), strict=True)
    for one, other in pairs:
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert one["trained_tokens"] == other["trained_tokens"]
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        with pytest.raises(Stopped):
            train("dolly", flags)
    parts = train("dolly", flags, resume=True)
    assert all(torch.equal(weights(parts)[name], tensor) for name, tensor in weights(whole).items())
    assert records(Path(flags["out"]), NAME) == records(tmp_path / "whole", NAME)


def test_the_loop_of_gpus_skips_steps_that_are_not_finite(flags, monkeypatch, capsys) -> None:
    as_on_a_gpu(monkeypatch)
    test_non_finite_steps_never_reach_the_weights(flags, monkeypatch, capsys)
    computed = Trainer._accumulate

    def spoilt(self: Trainer, *given: Any) -> Any:
        nats, state = computed(self, *given)
        return nats * torch.nan, state

    monkeypatch.setattr(Trainer, "_accumulate", spoilt)
    with pytest.raises(UserError, match=f"{MAX_NONFINITE_STEPS} steps in a row"):
        train("dolly", {**flags, "epochs": 50})


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "loop of gpus"])
@pytest.mark.parametrize("spoilt", ["gradient", "loss"])
def test_states_survive_gradients_that_overflow(spoilt, gpu, flags, monkeypatch) -> None:
    """As those of fp16 do until their scale is found: the states behind a finite loss are good."""
    if gpu:
        as_on_a_gpu(monkeypatch)
    computed, counted = Trainer._accumulate, Trainer._count_skipped
    kept: list[bool] = []

    def spoil(self: Trainer, *given: Any) -> Any:
        nats, state = computed(self, *given)
        if self.progress.total_steps == 3:
            next(self.model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
            nats = nats * torch.nan if spoilt == "loss" else nats
        return nats, state

    def count(self: Trainer, *given: Any) -> None:
        before = {name: part.clone() for name, part in self.state.items()}
        counted(self, *given)
        kept.append(all(torch.equal(part, before[name]) for name, part in self.state.items()))
        assert any(part.any() for part in before.values())

    monkeypatch.setattr(Trainer, "_accumulate", spoil)
    monkeypatch.setattr(Trainer, "_count_skipped", count)
    train("dolly", flags)
    assert kept == [spoilt == "gradient"]


def test_divergence_ends_with_one_line(flags, monkeypatch) -> None:
    monkeypatch.setattr(loop, "all_finite", lambda *_: False)
    with pytest.raises(UserError, match=f"{MAX_NONFINITE_STEPS} steps in a row"):
        train("dolly", {**flags, "epochs": 50})


def test_second_signal_acts_as_usual() -> None:
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert stop.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_early_stop_warms_down_first(flags, monkeypatch, capsys) -> None:
    """Patience exhausted in the constant part starts the warmdown; `original` just stops."""
    monkeypatch.setattr(loop, "MIN_IMPROVEMENT", 100.0)
    flags |= {"epochs": 40, "patience": 2}
    train("dolly", flags)
    output = capsys.readouterr().out
    assert "warming down to the end" in output
    epochs = len(records(Path(flags["out"]), NAME))
    assert 3 <= epochs < 10
    train("dolly", {**flags, "architecture": "original", "batch_size": 16})
    assert "stopping" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "repeated", "runs"),
    [("", 0, 0), ("a b", 0, 0), ("a b c d", 0, 2), ("a b c a b c", 1, 4), ("x " * 6, 3, 4)],
)
def test_repetitions(text: str, repeated: int, runs: int) -> None:
    assert count_repetitions(text) == (repeated, runs)
