"""Two processes that share a model's weights train what one does, and lose nothing either."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from test_distributed import FLAGS, NAME, launch, records

import newllm
from newllm.errors import UserError
from newllm.train import checkpoint, sharding
from newllm.train.distributed import Processes
from newllm.train.run import train

ROUNDED = 1e-3
"""Relative, of losses after some 40 steps, where sums are taken in another order and Muon rounds to
bf16."""


@pytest.fixture(scope="module")
def calm(shared_dolly_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sharded run that nothing happened to: its folder and output."""
    out = tmp_path_factory.mktemp("sharded") / "out"
    code, output = launch(shared_dolly_folder, out, "--shard", "--save-minutes=9")
    assert code == 0, output
    return out, output


@pytest.mark.slow
def test_processes_that_share_a_model_train_as_one(
    calm: tuple[Path, str], shared_dolly_folder: Path, tmp_path: Path
) -> None:
    """Their losses are one's; what they leave is what any run leaves, and a folder of parts."""
    out, output = calm
    assert "2 processes, sharded" in output
    train("dolly", {**FLAGS, "data": str(shared_dolly_folder), "out": str(tmp_path)})
    for two, one in zip(records(out), records(tmp_path), strict=True):
        for name in ("train_loss", "loss", "bpb", "bpb_assistant"):
            assert two[name] == pytest.approx(one[name], rel=ROUNDED), name
        for name in ("steps", "trained_tokens", "rows", "tokens"):
            assert two[name] == one[name], name
    parts = {path.name for path in out.glob("*.parts-*")}
    assert 1 <= len(parts) <= 2  # those of the newest resume file and of the one before it
    left = {path.name for path in out.iterdir()}
    assert left - parts == {path.name for path in tmp_path.iterdir()}
    mine, theirs = (
        checkpoint.load_model(folder / f"{NAME}_final.pt") for folder in (out, tmp_path)
    )
    assert mine["model"].keys() == theirs["model"].keys()
    assert mine["moments"].keys() == theirs["moments"].keys()
    for name, moments in mine["moments"].items():
        for part, value in moments.items():
            assert value.shape == theirs["moments"][name][part].shape
    model = newllm.load(str(out / f"best_{NAME}.pt"))
    assert model.generate("What is a cat?", max_new_tokens=4) is not None


@pytest.mark.slow
def test_a_sharded_run_goes_on_after_a_kill_with_any_number_of_processes(
    calm: tuple[Path, str],
    shared_dolly_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGKILL in the second epoch; one process goes on alone."""
    code, output = launch(shared_dolly_folder, tmp_path, "--shard", HURT="16:SIGKILL")
    assert code != 0
    assert re.search("^newllm: process 0 of 2 lost another one .*--resume", output, re.M), output
    stored = checkpoint.load(tmp_path / f"{NAME}_resume.pt")
    assert stored["trainer"]["model"] is None
    assert stored["trainer"]["progress"]["total_steps"] == 15
    flags = {**FLAGS, "data": str(shared_dolly_folder), "out": str(tmp_path)}
    train("dolly", flags, resume=True)
    assert "Resumed with 1 processes instead of 2" in capsys.readouterr().out
    for once, again in zip(records(calm[0]), records(tmp_path), strict=True):
        assert once["trained_tokens"] == again["trained_tokens"]
        for name in ("train_loss", "loss"):
            assert again[name] == pytest.approx(once[name], rel=ROUNDED), name


@pytest.mark.slow
def test_what_one_process_began_two_may_share(shared_dolly_folder: Path, tmp_path: Path) -> None:
    """An ordinary resume file is taken up; a damaged part makes the one before it count."""
    flags = {**FLAGS, "data": str(shared_dolly_folder), "out": str(tmp_path), "max_steps": 9}
    train("dolly", flags)
    stored = checkpoint.load(tmp_path / f"{NAME}_resume.pt")
    stored["trainer"]["progress"]["finished"] = False  # as if it had been stopped there
    stored["settings"]["max_steps"] = None
    checkpoint.save(tmp_path / f"{NAME}_resume.pt", stored)
    code, output = launch(shared_dolly_folder, tmp_path, "--shard", "--resume", HURT="13:SIGTERM")
    assert "Stopped; to go on: start the 2 processes again" in output, output
    named = checkpoint.load(tmp_path / f"{NAME}_resume.pt")["parts"]
    part = tmp_path / named["folder"] / next(n for n in named["files"] if n.startswith("__1_"))
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    part.write_bytes(damaged)
    code, output = launch(shared_dolly_folder, tmp_path, "--shard", "--resume")
    assert code == 0, output
    assert "damaged" in output
    assert f"going on from {NAME}_resume.previous.pt" in output
    assert "Resumed at epoch 1, step 12" in output
    assert records(tmp_path)[-1]["epoch"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--batch-size=5",), "--shard: --batch-size 5 is no multiple of 2 processes"),
        (("--architecture=original",), "--shard: --architecture original"),
    ],
)
def test_what_is_not_sharded_is_told_once(
    flags: tuple[str, ...], said: str, shared_dolly_folder: Path, tmp_path: Path
) -> None:
    code, output = launch(shared_dolly_folder, tmp_path, "--shard", *flags)
    assert code != 0
    assert output.count("newllm: ") == output.count(said) == 1, output


def test_rows_are_divided_as_torch_divides_them() -> None:
    for rows in range(1, 30):
        for world in range(1, 9):
            chunks = torch.arange(rows).chunk(world)
            for rank in range(world):
                own = torch.arange(rows)[sharding.part_of_rows(rows, rank, world)]
                other = chunks[rank] if rank < len(chunks) else torch.arange(0)
                assert torch.equal(own, other), (rows, rank, world)


def test_parts_that_would_run_code_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return print, ("code ran",)

    for thing in (Evil(), torch.nn.Linear(1, 1), pickle.Unpickler):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(thing))
        with pytest.raises(ValueError, match="is no part of a checkpoint"):
            sharding._reader(tmp_path).read_metadata()


def test_a_resume_file_names_no_folder_elsewhere(tmp_path: Path) -> None:
    resume = tmp_path / "run_resume.pt"
    for name in ("../run_resume.parts-1", "run_resume.parts-1/..", "other", "/tmp"):
        with pytest.raises(ValueError, match="no folder of parts"):
            sharding.parts_folder(resume, name)
    with pytest.raises(UserError, match="missing or incomplete"):
        sharding.check_parts(
            resume, {"parts": {"folder": "run_resume.parts-1", "files": {"a": ""}}}
        )


def test_folders_that_no_file_names_are_removed(tmp_path: Path) -> None:
    resume = tmp_path / "run_resume.pt"
    names = ("run_resume.parts-1-0", "run_resume.parts-2-0", ".run_resume.parts-3-0",
             "other_resume.parts-1-0")  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir()
    sharding.remove_other_parts(resume, ["run_resume.parts-2-0", None])
    assert {path.name for path in tmp_path.iterdir()} == {names[1], names[3]}


def test_one_process_has_nothing_to_share(shared_dolly_folder: Path, tmp_path: Path) -> None:
    flags = {**FLAGS, "data": str(shared_dolly_folder), "out": str(tmp_path), "max_steps": 2}
    train("dolly", {**flags, "shard": True, "epochs": 1})
    assert checkpoint.load(tmp_path / f"{NAME}_resume.pt").get("parts") is None
    assert Processes().world == 1
