"""Two processes train what one would; one that dies or is stopped loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from newllm.data.encode import MASKED
from newllm.data.loader import IGNORED, EpochLoader
from newllm.errors import UserError
from newllm.train import checkpoint
from newllm.train.distributed import Processes, StepFlags, process_group, refuse_several
from newllm.train.run import train
from newllm.train.signals import StopRequest
from tests.faults.forkserver import Jobs

NAME = "new_llm_dolly_layers1_bpe"
TOLERANCE = 1e-3
"""Relative, of losses after some 40 steps, where sums are taken in another order: Muon rounds to
bf16 where that is quick, so that steps differ in the fourth digit."""

FLAGS = {
    "context_dim": 16,
    "embed_dim": 16,
    "hidden_dim": 24,
    "vocab_size": 400,
    "max_seq_length": 24,
    "batch_size": 4,
    "epochs": 3,
    "device": "cpu",
    "precision": "fp32",
    "sampled_softmax": 64,
    "save_minutes": 0,
}


def _command(data: Path, out: Path, *more: str) -> list[str]:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    return ["train", "dolly", *flags, "--data", str(data), "--out", str(out), *more]


def launch(
    jobs: Jobs, data: Path, out: Path, *more: str, processes: int = 2, **environment: str
) -> tuple[int, str]:
    """Train in several processes; returns the launcher's exit code and what all of them printed.

    They are forked where everything is imported already: a start costs no seconds.
    """
    return launch_command(jobs, _command(data, out, *more), processes, environment)


def launch_command(
    jobs: Jobs, command: Sequence[str], processes: int, environment: Mapping[str, str]
) -> tuple[int, str]:
    """The same for any command line of `newllm`."""
    jobs.load(["torch.distributed.fsdp", "torch.distributed.checkpoint"])
    cache = Path(os.environ["NEWLLM_CACHE"])
    result = jobs.run("launched", [str(processes), *command], cache, environment=environment)
    return result.code, result.output


def torchrun(data: Path, out: Path) -> tuple[int, str]:
    """The same in two processes as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               str(Path(__file__).with_name("launched.py")), *_command(data, out)]  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{NAME}.metrics.jsonl").open()]


@pytest.fixture(scope="module")
def calm(shared_dolly_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two processes that nothing happened to, started by `torchrun`: their folder and output."""
    out = tmp_path_factory.mktemp("calm") / "out"
    code, output = torchrun(shared_dolly_folder, out)
    assert code == 0, output
    return out, output


@pytest.mark.slow
def test_two_processes_train_as_one(
    calm: tuple[Path, str], shared_dolly_folder: Path, tmp_path: Path
) -> None:
    """As one does, in two parts to the bit, or at once; dropout is on, states are carried."""
    out, output = calm
    flags = {**FLAGS, "data": str(shared_dolly_folder)}
    train("dolly", {**flags, "out": str(tmp_path / "parts"), "micro_batch_size": 2})
    train("dolly", {**flags, "out": str(tmp_path / "whole")})
    for two, one, other in zip(
        *(records(folder) for folder in (out, tmp_path / "parts", tmp_path / "whole")), strict=True
    ):
        for name in ("train_loss", "loss", "bpb", "bpb_assistant"):
            assert two[name] == pytest.approx(one[name], rel=TOLERANCE), name
            assert two[name] == pytest.approx(other[name], rel=TOLERANCE), name
        for name in ("train_loss", "steps", "trained_tokens", "rows", "tokens"):
            assert two[name] == one[name], name
    assert records(out)[-1]["steps"] >= 20
    assert {p.name for p in out.iterdir()} == {p.name for p in (tmp_path / "parts").iterdir()}
    assert output.count("Epoch 1/3") == output.count("[Checkpoint saved]") / 3 == 1
    assert "2 processes" in output


@pytest.mark.slow
def test_four_processes_train_as_one(jobs: Jobs, shared_dolly_folder: Path, tmp_path: Path) -> None:
    code, output = launch(jobs, shared_dolly_folder, tmp_path / "four", "--epochs=1", processes=4)
    assert code == 0, output
    assert "4 processes" in output
    flags = {**FLAGS, "epochs": 1, "data": str(shared_dolly_folder)}
    train("dolly", {**flags, "out": str(tmp_path / "one")})
    for four, one in zip(records(tmp_path / "four"), records(tmp_path / "one"), strict=True):
        assert four["trained_tokens"] == one["trained_tokens"]
        for name in ("train_loss", "loss", "bpb", "bpb_assistant"):
            assert four[name] == pytest.approx(one[name], rel=TOLERANCE), name


@pytest.mark.slow
def test_a_process_that_dies(
    jobs: Jobs, calm: tuple[Path, str], shared_dolly_folder: Path, tmp_path: Path
) -> None:
    """SIGKILL: a clear line, and the run goes on to the weights it would have had."""
    code, output = launch(jobs, shared_dolly_folder, tmp_path, HURT="11:SIGKILL")
    assert code != 0
    assert re.search("^newllm: process 0 of 2 lost another one .*--resume", output, re.M), output
    code, output = launch(jobs, shared_dolly_folder, tmp_path, "--resume")
    assert code == 0, output
    assert "Resumed at epoch 1, step 10" in output
    assert "bit for bit" not in output
    assert_as_if_nothing_had_happened(tmp_path, calm[0])


def assert_as_if_nothing_had_happened(hurt: Path, calm: Path) -> None:
    for once, again in zip(records(calm), records(hurt), strict=True):
        assert once["trained_tokens"] == again["trained_tokens"]
        for name in ("train_loss", "loss"):
            assert again[name] == pytest.approx(once[name], rel=TOLERANCE), name


@pytest.mark.slow
def test_a_process_that_is_stopped(
    jobs: Jobs, shared_dolly_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One signal and one number that is not one, both in process 1, are a matter of all.

    Of five sequences one process has two, the other three.
    """
    size, data, hurt = "--batch-size=5", shared_dolly_folder, tmp_path / "hurt"
    code, output = launch(jobs, data, tmp_path / "calm", size, POISON="3")
    assert code == 0, output
    code, output = launch(jobs, data, hurt, size, HURT="15:SIGTERM", POISON="3")
    assert code != 0
    assert output.count("Stopped; to go on: start the 2 processes again") == 1
    assert "exitcode  : 143" in output, output  # the launcher may kill the other one meanwhile
    assert output.count("Step 4 of epoch 1 skipped") == 1
    stored = checkpoint.load(hurt / f"{NAME}_resume.pt")["trainer"]
    assert stored["progress"]["total_steps"] == 15
    assert all(tensor.shape[1] == 5 for tensor in stored["carried_state"].values())
    flags = {**FLAGS, "batch_size": 5, "data": str(data), "out": str(hurt)}
    train("dolly", flags, resume=True)
    assert "Resumed with 1 processes instead of 2" in capsys.readouterr().out
    last = records(hurt)[-1]
    assert last["epoch"] == 3
    assert last["skipped_steps"] == 1
    assert_as_if_nothing_had_happened(hurt, tmp_path / "calm")


@pytest.mark.slow
def test_each_process_goes_on_with_its_own_random_numbers(
    jobs: Jobs, shared_dolly_folder: Path, tmp_path: Path
) -> None:
    """`original` draws its dropout from torch's generator; uneven parts draw unequally."""
    flags = ("--architecture=original", "--batch-size=5", "--epochs=1")
    code, output = launch(jobs, shared_dolly_folder, tmp_path / "calm", *flags)
    assert code == 0, output
    code, output = launch(jobs, shared_dolly_folder, tmp_path / "hurt", *flags, HURT="5:SIGTERM")
    assert "Stopped" in output
    stored = checkpoint.load(next((tmp_path / "hurt").glob("*_resume.pt")))["trainer"]
    assert not torch.equal(stored["generators"]["cpu"], stored["other_generators"][0]["cpu"])
    code, output = launch(jobs, shared_dolly_folder, tmp_path / "hurt", *flags, "--resume")
    assert code == 0, output
    once, again = (
        checkpoint.load(next((tmp_path / name).glob("*_final.pt")))["model"]
        for name in ("calm", "hurt")
    )
    for key, value in once.items():  # other numbers drawn would differ a hundred times as much
        torch.testing.assert_close(again[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_mistake_is_told_once(jobs: Jobs, shared_dolly_folder: Path, tmp_path: Path) -> None:
    code, output = launch(jobs, shared_dolly_folder, tmp_path, "--batch-size=1")
    assert code != 0
    assert output.count("newllm: ") == output.count("--batch-size 1: each of 2 processes") == 1


@given(world=st.integers(1, 9), more=st.integers(0, 40))
def test_sequences_are_shared_out(world: int, more: int) -> None:
    count = world + more
    alone = Processes()
    parts = []
    for rank in range(world):
        alone.rank, alone.world = rank, world
        parts.append(list(range(count)[alone.sequences(count)]))
    assert [sequence for part in parts for sequence in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(UserError, match="start fewer processes"):
        alone.sequences(world - 1)


class _Counting:
    """Documents of the given lengths; every token is its own number, every third is not scored."""

    masked = True

    def __init__(self, *lengths: int) -> None:
        self.lengths = np.array(lengths)
        self._first = np.cumsum(self.lengths) - self.lengths

    def parts(
        self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray, marks: bool = False
    ) -> np.ndarray:
        first = self._first[documents]
        ranges = [np.arange(*ends) for ends in zip(first + starts, first + stops, strict=True)]
        tokens = np.concatenate(ranges)
        return tokens % 3 if marks else tokens


def test_parts_of_a_batch_are_the_batch() -> None:
    documents = _Counting(*range(2, 40))
    whole = EpochLoader(documents, 16, 5, (0, 0), assistant=True)
    parts = [
        EpochLoader(documents, 16, 5, (0, 0), part=part, assistant=True)
        for part in (slice(2), slice(2, 5))
    ]
    for batch, *own in zip(whole.batches(), *(part.batches() for part in parts), strict=True):
        for name in ("ids", "targets", "reset", "assistant"):
            together = torch.cat([getattr(part, name) for part in own])
            assert torch.equal(together, getattr(batch, name)), name
        assert [part.scored for part in own] == [batch.scored] * 2
        assert batch.scored == int((batch.targets != IGNORED).sum())
        assert (batch.targets[batch.targets != IGNORED] % 3 != MASKED).all()


def test_alone_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as alone:
        assert (alone.main, alone.world) == (True, 1)
        assert alone.broadcast("x") == "x"
        assert alone.all_reduce_sum([1.5, 2]) == [1.5, 2]
        flags = StepFlags(15, True, 2.5, 0.5)
        assert alone.sync_flags(flags) == flags
    refuse_several("climb")


def test_a_gpu_without_a_number_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch makes only a numbered one the current device."""
    current: list[int | None] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(device.index))
    for name, index in (("cuda", 0), ("cuda:1", 1)):
        assert Processes().take_device(torch.device(name)) == torch.device("cuda", index)
    assert current == [0, 1]


@pytest.mark.parametrize(("said", "threads"), [(None, [3]), ("2", [])])
def test_processes_of_a_machine_share_its_cores(
    said: str | None, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless OMP_NUM_THREADS says how many threads each has, as torchrun does."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 7)
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    processes = Processes()
    processes.world = processes.local_world = 2
    assert processes.take_device(torch.device("cpu")) == torch.device("cpu")
    assert set_to == threads


def test_half_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for told in ("auto", ""):
        monkeypatch.setenv("WORLD_SIZE", told)
        with pytest.raises(UserError, match=f"WORLD_SIZE={told}: expected"), process_group():
            pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE=2 without RANK"), process_group():
        pass
    with pytest.raises(UserError, match="newllm climb: runs in one process"):
        refuse_several("climb")


def test_a_launcher_may_repeat_a_signal() -> None:
    stop = StopRequest(launched=True)
    try:
        with stop.listening():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the launcher ends those that are still leaving
    finally:
        for kind, handler in stop._before.items():
            signal.signal(kind, handler)
    assert stop.exit_code == 143
