"""Checkpoint files: sealed, verified, replaced atomically, never executed."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from newllm import files
from newllm.errors import UserError
from newllm.files import previous_path
from newllm.train import checkpoint


def content(number: int = 1) -> dict[str, object]:
    return {"kind": "model", "model": {"w": torch.arange(50.0) * number}, "settings": {"a": None}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "best_x.pt"
    checkpoint.save(path, content())
    return path


def test_round_trip_and_plain_torch_can_read_it(saved: Path) -> None:
    for loaded in (checkpoint.load(saved), torch.load(saved, weights_only=True)):
        assert torch.equal(loaded["model"]["w"], torch.arange(50.0))
        assert loaded["format_version"] == checkpoint.FORMAT_VERSION


def test_any_flipped_byte_is_found(saved: Path) -> None:
    archive = saved.read_bytes()
    for position in [*range(0, len(archive), 37), len(archive) - 1]:
        damaged = bytearray(archive)
        damaged[position] ^= 0x10
        saved.write_bytes(bytes(damaged))
        with pytest.raises(UserError, match=r"damaged|cut off"):
            checkpoint.load(saved)


def test_any_truncation_is_found(saved: Path) -> None:
    archive = saved.read_bytes()
    for size in [0, 1, 10, *range(50, len(archive), 101), len(archive) - 1]:
        saved.write_bytes(archive[:size])
        with pytest.raises(UserError, match=r"damaged|cut off"):
            checkpoint.load(saved)


def test_other_versions_are_refused_by_name(saved: Path) -> None:
    torch.save({**torch.load(saved, weights_only=True), "format_version": 99}, saved)
    reads = f"this version reads {checkpoint.FORMAT_VERSION}"
    with pytest.raises(UserError, match=f"checkpoint format 99, but {reads}"):
        checkpoint.load(saved)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    for name, save in (("raw", pickle.dump), ("torch", torch.save)):
        path = tmp_path / f"{name}.pt"
        with path.open("wb") as file:
            save({"model": Bomb()}, file)
        with pytest.raises(UserError, match="not a New-LLM checkpoint"):
            checkpoint.load(path)
    assert not (tmp_path / "exploded").exists()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")


def test_interrupted_write_leaves_the_old_file(saved: Path, monkeypatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, function, no_space)
            with pytest.raises(OSError, match="No space"):
                checkpoint.save(saved, content(2))
        assert torch.equal(checkpoint.load(saved)["model"]["w"], torch.arange(50.0))
        assert [p.name for p in saved.parent.iterdir()] == [saved.name], "nothing is left behind"


def test_newest_valid_wins_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x_resume.pt"
    assert checkpoint.load_newest(path) is None
    checkpoint.save(path, content(1), keep_previous=True)
    checkpoint.save(path, content(2), keep_previous=True)
    loaded, warning = checkpoint.load_newest(path) or ({}, "")
    assert warning is None
    assert loaded["model"]["w"][1] == 2
    path.write_bytes(path.read_bytes()[:-5])
    loaded, warning = checkpoint.load_newest(path) or ({}, "")
    assert loaded["model"]["w"][1] == 1
    assert warning is not None
    assert "x_resume.previous.pt" in warning
    previous_path(path).write_bytes(b"")
    with pytest.raises(UserError, match=r"x_resume\.pt"):
        checkpoint.load_newest(path)


def test_nothing_is_left_where_the_previous_file_is_the_newest(saved: Path) -> None:
    """As after a kill between keeping the previous file and writing the new one."""
    os.link(saved, previous_path(saved))
    checkpoint.save(saved, content(2), keep_previous=True)
    assert {p.name for p in saved.parent.iterdir()} == {saved.name, previous_path(saved).name}


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(saved: Path) -> None:
    dead, own = 2**22 + 1, os.getppid()  # beyond the largest process number there can be
    names = [files.scratch_path(saved).name.removesuffix(str(os.getpid())) + str(number)
             for number in (dead, own)]  # fmt: skip
    for name in names:
        (saved.parent / name).write_bytes(b"half")
    checkpoint.save(saved, content(2))
    assert {p.name for p in saved.parent.iterdir()} == {saved.name, names[1]}
