"""Two processes that share a model's weights train what one does, and lose nothing either."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_distributed import FLAGS, NAME, launch, records

import newllm
from newllm.config import Settings
from newllm.errors import UserError
from newllm.model import LanguageModel, build_model
from newllm.settings import resolve
from newllm.train import checkpoint, sharding
from newllm.train.distributed import GradientSums, Processes
from newllm.train.optimizers import make_optimizers
from newllm.train.run import train
from tests.faults.forkserver import Jobs

ROUNDED = 1e-3
"""Relative, of losses after some 40 steps, where sums are taken in another order and Muon rounds to
bf16."""


@pytest.fixture(scope="module")
def calm(
    jobs: Jobs, shared_dolly_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A sharded run that nothing happened to: its folder and output."""
    out = tmp_path_factory.mktemp("sharded") / "out"
    code, output = launch(jobs, shared_dolly_folder, out, "--shard", "--save-minutes=9")
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
    jobs: Jobs,
    calm: tuple[Path, str],
    shared_dolly_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGKILL in the second epoch; one process goes on alone."""
    code, output = launch(jobs, shared_dolly_folder, tmp_path, "--shard", HURT="6:SIGKILL")
    assert code != 0
    assert re.search("^newllm: process 0 of 2 lost another one .*--resume", output, re.M), output
    stored = checkpoint.load(tmp_path / f"{NAME}_resume.pt")
    assert stored["trainer"]["model"] is None
    assert stored["trainer"]["progress"]["total_steps"] == 5
    flags = {**FLAGS, "data": str(shared_dolly_folder), "out": str(tmp_path)}
    train("dolly", flags, resume=True)
    assert "Resumed with 1 processes instead of 2" in capsys.readouterr().out
    for once, again in zip(records(calm[0]), records(tmp_path), strict=True):
        assert once["trained_tokens"] == again["trained_tokens"]
        for name in ("train_loss", "loss"):
            assert again[name] == pytest.approx(once[name], rel=ROUNDED), name


@pytest.mark.slow
def test_two_processes_then_four_then_one(
    jobs: Jobs,
    calm: tuple[Path, str],
    shared_dolly_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped twice, and gone on with by another number each time."""
    code, output = launch(jobs, shared_dolly_folder, tmp_path, "--shard", HURT="6:SIGTERM")
    assert code != 0
    more = "--shard", "--resume"
    code, output = launch(
        jobs, shared_dolly_folder, tmp_path, *more, processes=4, HURT="14:SIGTERM"
    )
    assert "Resumed with 4 processes instead of 2" in output, output
    train("dolly", {**FLAGS, "data": str(shared_dolly_folder), "out": str(tmp_path)}, resume=True)
    assert "Resumed with 1 processes instead of 4" in capsys.readouterr().out
    for once, again in zip(records(calm[0]), records(tmp_path), strict=True):
        assert once["trained_tokens"] == again["trained_tokens"]
        for name in ("train_loss", "loss"):
            assert again[name] == pytest.approx(once[name], rel=ROUNDED), name


@pytest.mark.slow
def test_what_one_process_began_two_may_share(
    jobs: Jobs, shared_dolly_folder: Path, tmp_path: Path
) -> None:
    """An ordinary resume file is taken up; a damaged part makes the one before it count."""
    flags = {**FLAGS, "data": str(shared_dolly_folder), "out": str(tmp_path), "max_steps": 2}
    train("dolly", flags)
    stored = checkpoint.load(tmp_path / f"{NAME}_resume.pt")
    stored["trainer"]["progress"]["finished"] = False  # as if it had been stopped there
    stored["settings"]["max_steps"] = None
    checkpoint.save(tmp_path / f"{NAME}_resume.pt", stored)
    code, output = launch(
        jobs, shared_dolly_folder, tmp_path, "--shard", "--resume", HURT="5:SIGTERM"
    )
    assert "Stopped; to go on: start the 2 processes again" in output, output
    named = checkpoint.load(tmp_path / f"{NAME}_resume.pt")["parts"]
    part = tmp_path / named["folder"] / next(n for n in named["files"] if n.startswith("__1_"))
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    part.write_bytes(damaged)
    rarely = "--save-minutes=9"
    code, output = launch(jobs, shared_dolly_folder, tmp_path, "--shard", "--resume", rarely)
    assert code == 0, output
    assert "damaged" in output
    assert f"going on from {NAME}_resume.previous.pt" in output
    assert "Resumed at epoch 2, step 2" in output
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
    flags: tuple[str, ...], said: str, jobs: Jobs, shared_dolly_folder: Path, tmp_path: Path
) -> None:
    code, output = launch(jobs, shared_dolly_folder, tmp_path, "--shard", *flags)
    assert code != 0
    assert output.count("newllm: ") == output.count(said) == 1, output


@pytest.fixture
def alone() -> Iterator[Processes]:
    """A group of one process, for what torch does not do without one."""
    store: Any = dist
    dist.init_process_group("gloo", store=store.HashStore(), rank=0, world_size=1)
    yield Processes()
    dist.destroy_process_group()


def a_model(architecture: str = "context") -> tuple[Settings, LanguageModel]:
    flags = {"architecture": architecture, "num_layers": 2, "context_dim": 32, "embed_dim": 32}
    settings = resolve("dolly", {**flags, "hidden_dim": 37, "dropout": 0.0, "counts": 0})
    torch.manual_seed(3)
    return settings, build_model(settings.model_settings(), 301)


def step(model: LanguageModel, optimizers: Sequence[torch.optim.Optimizer], seed: int) -> float:
    torch.manual_seed(seed)
    ids, targets = torch.randint(301, (2, 3, 20))
    hidden, _ = model(ids, None, torch.rand(3, 20) < 0.1)
    loss = model.loss(hidden, targets) / 60
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


@pytest.mark.parametrize("architecture", ["context", "gru", "lstm", "mingru", "transformer"])
def test_a_step_on_parts_is_a_step(architecture: str, alone: Processes, tmp_path: Path) -> None:
    """The kernels see gathered weights; what is saved goes on in a model that is not sharded."""
    settings, plain = a_model(architecture)
    usual = make_optimizers(plain, settings)
    _, model = a_model(architecture)
    sharding.shard(model, torch.device("cpu"), alone)
    optimizers = make_optimizers(model, settings, sharding.ShardedMuon)
    assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    for seed in range(3):
        assert step(model, optimizers, seed) == pytest.approx(step(plain, usual, seed), rel=1e-5)
    resume = tmp_path / "run_resume.pt"
    parts = sharding.save_parts(resume, model, optimizers, 3, alone)
    sharding.check_parts(resume, {"parts": parts})
    _, later = a_model(architecture)
    afresh = make_optimizers(later, settings)
    sharding.load_parts(tmp_path / parts["folder"], later, afresh)
    whole = sharding.whole_model(model, settings, None, alone)
    assert whole is not None
    for weight, other in zip(later.parameters(), whole.parameters(), strict=True):
        assert torch.equal(weight, other)
    assert step(later, afresh, 3) == pytest.approx(step(model, optimizers, 3), rel=1e-6)


def test_gradients_set_out_before_the_backward_pass_ends(
    alone: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In buckets, those of the last layers first, and only in a step's last pass."""
    monkeypatch.setattr("newllm.train.distributed._BUCKET_BYTES", 4096)
    layers = torch.nn.Sequential(*[torch.nn.Linear(40, 40) for _ in range(5)])
    sums = GradientSums(layers.parameters(), alone)
    assert len(sums._buckets) == 5
    seen: list[int] = []
    first = next(layers.parameters())
    first.register_post_accumulate_grad_hook(lambda _: seen.append(len(sums._under_way)))
    x = torch.randn(2, 40)
    layers(x).sum().backward()
    sums.expect_last()
    layers(2 * x).sum().backward()
    assert sums.begun
    expected = [p.grad.clone() for p in layers.parameters() if p.grad is not None]
    sums.finish(torch.tensor(3.0))
    assert seen[0] == 0
    assert seen[1] >= 3
    assert not sums.begun
    for parameter, gradient in zip(layers.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


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


def test_the_number_of_steps_lies_where_its_weight_does() -> None:
    """A fused update on a GPU reads it there; `meta` stands in for a GPU."""
    weight = torch.nn.Parameter(torch.empty(4, device="meta"))
    optimizer = torch.optim.AdamW([weight])
    sharding.load_optimizer(optimizer, {"state": {0: {"step": torch.tensor(3.0)}}})
    assert optimizer.state[weight]["step"].device == weight.device
