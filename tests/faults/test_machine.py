"""What else a machine does to a run: signals, clocks, disks, rows that vanish, memory that ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from newllm.cli import main
from newllm.errors import UserError
from newllm.train import checkpoint
from newllm.train.run import train
from newllm.train.signals import run_lock
from newllm.train.trainer import Trainer
from tests.faults.forkserver import Jobs
from tests.faults.scenarios import NAME, SCENARIOS, content, same, write_rows

TINY = {
    "context_dim": 16, "embed_dim": 16, "hidden_dim": 24, "vocab_size": 320, "pair_rows": 16,
    "max_seq_length": 32, "batch_size": 8, "epochs": 2, "device": "cpu",
}  # fmt: skip

Patch = pytest.MonkeyPatch


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, Any]:
    rows = write_rows(tmp_path / "rows")
    return {**TINY, "data": str(rows / "dolly"), "out": str(tmp_path / "out")}


def final(folder: Path | str) -> dict[str, torch.Tensor]:
    return checkpoint.load(Path(folder) / f"{NAME}_final.pt")["model"]


def before_step(number: int, action: Callable[[Trainer], None], patch: Patch) -> None:
    """Do something before a step (counted from 0)."""
    original = Trainer._step

    def acting(self: Trainer, batch: Any, factor: float) -> float:
        if self.progress.total_steps == number:
            action(self)
        return original(self, batch, factor)

    patch.setattr(Trainer, "_step", acting)


def test_terminated_twice_in_one_step(jobs: Jobs, tmp_path: Path) -> None:
    """The second signal ends the process at once; the last save stands, and the run goes on."""
    rows, scenario = write_rows(tmp_path / "rows"), SCENARIOS["train"]
    calm, struck = tmp_path / "calm", tmp_path / "struck"
    cache = tmp_path / "cache"
    assert jobs.run("command", scenario.arguments(rows, calm), cache).code == 0
    command = scenario.arguments(rows, struck)
    for step in (1, 4):
        killed = jobs.run("terminated_twice", [str(step), *command, "--resume"], cache)
        assert killed.code == -15, killed.output
        assert "Traceback" not in killed.output
    resumed = jobs.run("command", [*command, "--resume"], cache)
    assert resumed.code == 0, resumed.output
    assert same(content(calm / "out" / f"{NAME}_final.pt"),
                content(struck / "out" / f"{NAME}_final.pt"))  # fmt: skip


def test_two_runs_with_one_name(jobs: Jobs, flags, monkeypatch) -> None:
    """The second process is refused in one line; the first one does not notice."""
    train("dolly", flags)
    alone = final(flags["out"])
    shutil.rmtree(flags["out"])
    codes: list[int] = []

    def another(trainer: Trainer) -> None:
        arguments = SCENARIOS["train"].arguments(Path(flags["data"]).parent, Path(flags["out"]))
        arguments[arguments.index("--out") + 1] = flags["out"]
        result = jobs.run("command", arguments, Path(os.environ["NEWLLM_CACHE"]))
        assert "another process is writing this run" in result.output
        assert len(result.output.splitlines()) == 1
        codes.append(result.code)

    before_step(3, another, monkeypatch)
    train("dolly", flags)
    assert codes == [2]
    assert same(final(flags["out"]), alone)
    with run_lock(Path(flags["out"]), NAME):
        pass


@pytest.mark.parametrize("jump", [-(10**9), 10**9])
def test_the_clock_jumps(jump: int, flags, monkeypatch) -> None:
    """Durations come from clocks that never jump: nothing negative, and --minutes means minutes."""
    train("dolly", flags)
    calm = final(flags["out"])
    offset, real = 0.0, time.time

    def set_clock(trainer: Trainer) -> None:
        nonlocal offset
        offset += jump

    monkeypatch.setattr(time, "time", lambda: real() + offset)
    before_step(2, set_clock, monkeypatch)
    jumped = {**flags, "out": flags["out"] + "2", "save_minutes": 0.0}
    train("dolly", jumped)
    assert same(final(jumped["out"]), calm)
    records = content(Path(jumped["out"]) / f"{NAME}.metrics.jsonl")
    assert [record["epoch"] for record in records] == [1, 2]
    seconds = checkpoint.load(Path(jumped["out"]) / f"{NAME}_resume.pt")["trainer"]["progress"]
    assert 0 < seconds["seconds"] < 600
    minutes = {**flags, "out": flags["out"] + "3", "minutes": 1000.0}
    train("dolly", minutes)
    assert content(Path(minutes["out"]) / f"{NAME}.metrics.jsonl")[-1]["epoch"] == 2


def test_rows_vanish_between_epochs(flags, tmp_path: Path, monkeypatch, capsys) -> None:
    """The run in progress goes on with what it has open; --resume says what is missing."""
    train("dolly", flags)
    calm, rows = final(flags["out"]), Path(flags["data"])
    kept, cache = tmp_path / "kept", Path(os.environ["NEWLLM_CACHE"])

    def vanish(trainer: Trainer) -> None:
        rows.rename(kept)
        shutil.rmtree(cache)

    with monkeypatch.context() as patch:
        before_step(3, vanish, patch)
        again = {**flags, "out": flags["out"] + "2"}
        train("dolly", again)
    assert same(final(again["out"]), calm)
    with pytest.raises(UserError, match=r"dolly: no such file or folder"):
        train("dolly", again, resume=True)
    kept.rename(rows)
    train("dolly", again, resume=True)
    assert same(final(again["out"]), calm)


@pytest.mark.parametrize("fits", [4, 2, 1])
def test_memory_ends_in_the_middle(fits: int, flags, monkeypatch, capsys) -> None:
    """Fewer rows at once from that step on; the gradients are those of the whole batch."""
    flags |= {"dropout": 0.1, "precision": "fp32"}
    gradients: list[dict[str, torch.Tensor]] = []
    update = Trainer._update

    def keep(self: Trainer, nats: torch.Tensor, factor: float) -> torch.Tensor:
        if self.progress.total_steps == 2:
            kept = {
                n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None
            }
            gradients.append(kept)
        return update(self, nats, factor)

    def run_out(trainer: Trainer) -> None:
        loss = trainer.model.loss

        def limited(hidden: torch.Tensor, targets: torch.Tensor, sample: Any) -> torch.Tensor:
            if len(targets) > fits:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return loss(hidden, targets, sample)

        monkeypatch.setattr(trainer.model, "loss", limited)

    monkeypatch.setattr(Trainer, "_update", keep)
    train("dolly", {**flags, "epochs": 1})
    before_step(2, run_out, monkeypatch)
    train("dolly", {**flags, "epochs": 1, "out": flags["out"] + "2"})
    assert f"Out of memory: {fits} rows at once from here on" in capsys.readouterr().out
    whole, parts = gradients
    assert whole.keys() == parts.keys()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-5)
    stored = checkpoint.load(Path(flags["out"] + "2") / f"{NAME}_resume.pt")
    assert stored["trainer"]["micro_batch"] == fits


def test_not_even_one_row_fits(flags, monkeypatch) -> None:
    def run_out(trainer: Trainer) -> None:
        def never(*_: torch.Tensor) -> torch.Tensor:
            raise MemoryError

        monkeypatch.setattr(trainer.model, "loss", never)

    before_step(4, run_out, monkeypatch)
    with pytest.raises(UserError, match="out of memory with a single row"):
        train("dolly", {**flags, "save_minutes": 0.0})
    monkeypatch.undo()
    train("dolly", flags, resume=True)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Mounts something on a folder until the test ends."""
    places: list[Path] = []

    def mount(place: Path, *arguments: str) -> None:
        done = subprocess.run(["mount", *arguments, str(place)], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip("mounting needs root: the same faults are injected in test_points.py")
        places.append(place)

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", str(place)], check=True)


def complaint(flags: dict[str, Any], capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line of the command line."""
    options = [
        word for key, value in flags.items() for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    capsys.readouterr()
    assert main(["train", "dolly", *options, *more]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_disk_that_is_full(mounted, flags, capsys) -> None:
    """A real one, of many sizes: it fills up at another place each time."""
    train("dolly", flags)
    calm, out = final(flags["out"]), Path(flags["out"])
    sizes = [64, 128, 192, 256, 320]
    full = 0
    for kilobytes in sizes:
        disk = out.with_name(f"disk{kilobytes}")
        disk.mkdir()
        mounted(disk, "-t", "tmpfs", "-o", f"size={kilobytes}k", "none")
        flags["out"] = str(disk)
        try:
            train("dolly", flags)
        except OSError as error:
            full += 1
            assert "No space left" in str(error)
            assert "No space left on device; nothing written before is lost" in complaint(
                flags, capsys, "--resume"
            )
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        train("dolly", flags, resume=True)
        assert same(final(disk), calm), kilobytes
    assert full >= 2


def test_a_folder_that_is_read_only(mounted, flags, capsys) -> None:
    """A real one: a read-only bind mount, which binds root as well."""
    train("dolly", {**flags, "epochs": 1})
    out = Path(flags["out"])
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    mounted(out, "--bind", str(out))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(out)], check=True)
    for more in ([], ["--resume"]):
        said = complaint({**flags, "epochs": 1}, capsys, *more)
        assert "no folder to write in (Read-only file system); give another --out" in said
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert after == before
