"""Steps that are replayed, as a CUDA graph is, are the steps that they stand for, to the bit.

On a CPU, where `replay.py` stands in for the graph, by the loop and the operations that a GPU has
(the kernels are the definitions: numba's would not be seen).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from replay import Recorded, Replays
from test_run import NAME, TINY, as_on_a_gpu, records, stop_after, weights
from torch import Tensor

from newllm import cuda_graph
from newllm.cuda_graph import GraphedStep
from newllm.data.loader import IGNORED
from newllm.errors import Stopped, UserError
from newllm.model import kernels, residual
from newllm.model.kernels import reference
from newllm.train.run import train
from newllm.train.trainer import Trainer

SMALL = {
    **TINY, "max_samples": 24, "precision": "fp32",
    "pair_rows": 64, "recall_slots": 64, "counts": 20_000,
}  # fmt: skip


@pytest.fixture
def flags(dolly_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {**SMALL, "data": str(dolly_folder), "out": str(tmp_path / "out")}


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """Trainers train as on a GPU, which can capture; all of them that were made."""
    trainers: list[Trainer] = []
    as_on_a_gpu(monkeypatch)
    begin = Trainer._begin

    def begun(self: Trainer) -> None:
        begin(self)
        trainers.append(self)

    monkeypatch.setattr(Trainer, "_begin", begun)
    for module in (kernels, residual):
        monkeypatch.setattr(module, "active_kernel", lambda *_: "reference")
    monkeypatch.setattr(
        reference, "nats_gradient_", partial(nats_gradient_, reference.nats_gradient_)
    )
    monkeypatch.setattr(cuda_graph, "Surroundings", Replays)
    return trainers


def nats_gradient_(own: Any, logits: Tensor, targets: Tensor, *given: Any) -> Any:
    """The definition asks a CPU, and no GPU, whether all targets are scored: here never are."""
    wide = torch.cat([logits, logits[:1]])
    more = [x and tuple(torch.cat([part, part[:1]]) for part in x) for x in given]
    said = own(wide, torch.cat([targets, targets.new_full((1,), IGNORED)]), *more)
    logits.copy_(wide[:-1])
    parts = {f.name: getattr(said, f.name) for f in fields(said)}
    return replace(said, **{n: None if x is None else x[:-1] for n, x in parts.items()})


def replays(trainer: Trainer) -> Replays:
    assert trainer._graph is not None
    around: Any = trainer._graph._around
    return around


def assert_same_run(one: Path, other: Path, name: str = NAME) -> None:
    for file in (f"{name}_final.pt", f"best_{name}.pt"):
        a, b = weights(one / file), weights(other / file)
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert records(one, name) == records(other, name)


CASES: dict[str, dict[str, Any]] = {
    "recall and counts": {},
    "alone": {"recall_slots": 0, "counts": 0, "pair_rows": 0},
    "micro-batches in bf16": {"num_layers": 2, "micro_batch_size": 3, "precision": "bf16"},
    "mingru": {"architecture": "mingru", "pair_rows": 0},
    "answers closed": {"closed_answers": True},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_replays(case: str, flags, tmp_path: Path, made, capsys) -> None:
    """Over the epoch from which on there is dropout, and pairs decay: another graph."""
    flags |= {"epochs": 3, **CASES[case]}
    usual = {**flags, "out": str(tmp_path / "usual")}
    train("dolly", {**usual, "cuda_graph": False})
    train("dolly", flags)
    without, by_graphs = made
    assert replays(without).captured == 0
    assert replays(by_graphs).captured == 2
    steps = by_graphs.progress.total_steps
    assert replays(by_graphs).replayed == steps - 2 * cuda_graph.WARM_UP > 9
    assert "captured" not in capsys.readouterr().out
    name = NAME.replace("1", str(flags.get("num_layers", 1)))
    if "architecture" in flags:
        name = name.replace("_bpe", f"_{flags['architecture']}_bpe")
    assert_same_run(tmp_path / "usual", tmp_path / "out", name)


def test_resumed_by_replays(flags, tmp_path: Path, monkeypatch) -> None:
    flags |= {"epochs": 3}
    train("dolly", {**flags, "out": str(tmp_path / "usual"), "cuda_graph": False})
    for steps, resume in ((7, False), (9, True)):
        with monkeypatch.context() as patch:
            stop_after(steps, patch)
            with pytest.raises(Stopped):
                train("dolly", flags, resume=resume)
    train("dolly", flags, resume=True)
    assert_same_run(tmp_path / "usual", tmp_path / "out")


def both(
    flags: dict[str, Any], tmp_path: Path, change: Callable[[Trainer], None], monkeypatch: Any
) -> None:
    """A run with and without replays, in whose every step something is changed first."""
    step = Trainer._step

    def changed(self: Trainer, batch: Any, factor: float) -> float:
        change(self)
        return step(self, batch, factor)

    monkeypatch.setattr(Trainer, "_step", changed)
    train("dolly", {**flags, "out": str(tmp_path / "usual"), "cuda_graph": False})
    train("dolly", flags)
    assert_same_run(tmp_path / "usual", tmp_path / "out")


def test_a_replay_that_is_not_finite(flags, tmp_path: Path, made, monkeypatch) -> None:
    """Weights and moments stay, and states begin anew, where the graph reads them."""

    def spoil(trainer: Trainer) -> None:
        if trainer.progress.total_steps in (1, 8):
            trainer.state["context"].fill_(torch.nan)

    both(flags, tmp_path, spoil, monkeypatch)
    assert [t.progress.skipped_steps for t in made] == [4, 4]  # the next one is under way by then


def test_replays_find_the_scale_of_fp16(flags, tmp_path: Path, made, monkeypatch) -> None:
    def scale(trainer: Trainer) -> None:
        if trainer.progress.total_steps == 0:
            trainer.scaler = torch.amp.GradScaler(
                "cpu", init_scale=2.0**75, growth_interval=4, enabled=True
            )

    both(flags, tmp_path, scale, monkeypatch)
    assert made[0].progress.skipped_steps == made[1].progress.skipped_steps > cuda_graph.WARM_UP
    assert torch.equal(made[0].scaler._scale, made[1].scaler._scale)  # type: ignore[arg-type]
    assert replays(made[1]).replayed > 0


@pytest.mark.parametrize("error", [RuntimeError, torch.cuda.OutOfMemoryError])
def test_a_gpu_that_captures_nothing(error, flags, tmp_path, made, monkeypatch, capsys) -> None:
    """Half a step has been asked for by then; nothing of it is lost, and one line says so."""
    train("dolly", {**flags, "out": str(tmp_path / "usual"), "cuda_graph": False})

    def refuse(self: Replays, step: Callable[[], Any]) -> Any:
        def broken(*_: Any, **__: Any) -> Any:
            raise error("this driver is too old\nmore of it")

        recorded = Recorded()
        with monkeypatch.context() as patch, recorded:
            patch.setattr(made[-1].optimizers[1], "step", broken)
            with contextlib.suppress(error, UserError):
                step()
        recorded.restore()
        broken()

    monkeypatch.setattr(Replays, "capture", refuse)
    capsys.readouterr()
    train("dolly", flags)
    assert_same_run(tmp_path / "usual", tmp_path / "out")
    told = [line for line in capsys.readouterr().out.splitlines() if "CUDA graph" in line]
    assert len(told) == 1
    assert "launched one by one: " in told[0]


def test_more_kinds_of_steps_than_there_are_graphs(flags, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cuda_graph, "MOST_GRAPHS", 1)
    train("dolly", {**flags, "epochs": 3, "out": str(tmp_path / "usual"), "cuda_graph": False})
    train("dolly", {**flags, "epochs": 3})
    assert_same_run(tmp_path / "usual", tmp_path / "out")
    assert capsys.readouterr().out.count("more than 1 kinds of steps") == 1


@pytest.mark.parametrize("architecture", ["transformer", "gru"])
def test_what_cannot_be_captured_says_so(architecture: str, flags, made, capsys) -> None:
    others = {"pair_rows": 0, "recall_slots": 0, "counts": 0, "batch_size": 32}
    train("dolly", {**flags, "architecture": architecture, "epochs": 1, **others})
    assert made[0]._graph is None
    told = f"launched one by one: not with --architecture {architecture}"
    assert capsys.readouterr().out.count(told) == 1


def test_memory_that_runs_out_before_a_capture_halves_the_rows(flags, made, monkeypatch) -> None:
    accumulate = Trainer._accumulate

    def full(self: Trainer, passes: Any, share: Any) -> Any:
        found = accumulate(self, passes, share)
        if len(passes) == 1 and self.progress.total_steps == 5:
            raise torch.cuda.OutOfMemoryError
        return found

    monkeypatch.setattr(Trainer, "_accumulate", full)
    train("dolly", {**flags, "epochs": 1, "cuda_graph": False})
    assert made[0].micro_batch == 2


def test_loaded_moments_are_captured_anew(flags, made) -> None:
    train("dolly", {**flags, "epochs": 1})
    (trainer,) = made
    assert trainer._graph is not None
    assert trainer._graph._graphs
    trainer.load_state_dict(trainer.state_dict())
    assert not trainer._graph._graphs


def test_a_replay_knows_no_other_numbers() -> None:
    """What the stand-in is for: a number that Python has is the one of the recorded step."""
    factor, x, sums = 2.0, torch.ones(2), torch.zeros(2)

    def step(sent: Any) -> torch.Tensor:
        return sums.add_(sent["x"] * factor)

    steps = GraphedStep(torch.device("cpu"), wanted=True, note=lambda _: None)
    for number in range(6):
        factor, x = float(number), torch.full((2,), 10.0**number)
        steps.take({"x": x}, None, step)
    assert sums.tolist() == [10 + 200 + 3 * (1000 + 10_000 + 100_000)] * 2


def test_a_replay_whose_host_would_be_told_something_else_is_found() -> None:
    def step(sent: Any) -> torch.Tensor:
        return sent["x"] * 2 if bool(sent["x"] > 0) else sent["x"]

    steps = GraphedStep(torch.device("cpu"), wanted=True, note=lambda _: None)
    for _ in range(5):
        steps.take({"x": torch.ones(())}, None, step)
    with pytest.raises(AssertionError, match="decides what a step is"):
        steps.take({"x": -torch.ones(())}, None, step)
