"""`newllm bench gpu`: the stages in small, their deadlines, and what makes it fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from newllm.cli import main
from newllm.model.kernels import triton_is_installed

needs_triton = pytest.mark.skipif(
    not triton_is_installed(), reason="Triton has no wheels for this system"
)
NAMES = ["facts", "equality", "kernels", "steps", "peers", "commands", "writing"]


@needs_triton
@pytest.mark.slow
def test_a_dry_run_goes_through_all_stages(capsys, tmp_path: Path) -> None:
    code = main(["bench", "gpu", "--dry-run", "--out", str(tmp_path), "--json"])
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert code == 0, said.err
    assert result["facts"]["equal"] is True
    assert list(result["tables"]) == NAMES
    for rows in result["tables"].values():
        assert all(list(row) == list(gpu.row("", 0)) for row in rows)
        assert not [row for row in rows if row["what"].startswith("ended by")]
    assert all(row["equal"] for row in result["tables"]["equality"])
    assert len(result["tables"]["equality"]) > 20
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    stored = [json.loads(line) for line in lines]
    assert [line["stage"] for line in stored if line.get("ended") == ""] == NAMES
    assert "**equality**" in said.err  # a table after each stage


def test_without_a_gpu_it_is_one_line(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "gpu", "--out", str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "torch sees no CUDA GPU; --dry-run" in line
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(gpu, "triton_is_installed", lambda: False)
    assert main(["bench", "gpu", "--dry-run", "--out", str(tmp_path)]) == 2
    assert "needs Triton" in capsys.readouterr().err


def lines_of(**others: list[Any]) -> dict[str, list[Any]]:
    return {"equality": [gpu.row("same", 0.0, equal=True)], "steps": [gpu.row("a step", 1e9)],
            **others}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "equal"),
    [
        (lines_of(), True),
        (lines_of(steps=[gpu.row("ended by its deadline", None)]), True),
        (lines_of(equality=[gpu.row("other", 1.0, equal=False)]), False),
        (lines_of(equality=[gpu.row("same", 0.0, equal=True), gpu.row("ended by x", 0)]), False),
        (lines_of(equality=[]), False),
    ],
)
def test_only_equality_makes_it_fail(found, equal, capsys, monkeypatch, tmp_path) -> None:
    """Slow steps and late stages do not; a comparison that was not made does."""
    monkeypatch.setattr(gpu, "triton_is_installed", lambda: True)
    monkeypatch.setattr(gpu, "run_stages", lambda *_: found)
    assert main(["bench", "gpu", "--dry-run", "--out", str(tmp_path)]) == (0 if equal else 1)
    said = capsys.readouterr().out
    assert said.startswith("All that has to be equal is" if equal else "NOT EQUAL")


WORKER = """
import json, pathlib, sys, time
out, first = pathlib.Path(sys.argv[1]), int(sys.argv[2])
names = "facts equality kernels steps peers commands writing".split()
with (out / "results.jsonl").open("a") as file:
    for name in names[first:]:
        def write(**line):
            file.write(json.dumps({"stage": name, **line}) + "\\n")
            file.flush()
        write(begins=True)
        write(what="a line", measured=1, unit="", estimated=None, equal=None)
        if name == "equality":
            time.sleep(600)
        if name == "kernels":
            sys.exit(3)
        if name == "steps":
            write(ended="ValueError: no")
            sys.exit(1)
        write(ended="")
"""


def test_a_stage_that_hangs_dies_or_fails_costs_only_itself(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "stub_worker.py").write_text(WORKER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "WORKER", "stub_worker")
    monkeypatch.setattr(gpu, "_START", 30.0)
    short = [gpu.Stage(stage.run, 0.5 if i == 1 else 60) for i, stage in enumerate(gpu.STAGES)]
    monkeypatch.setattr(gpu, "STAGES", short)
    said: list[tuple[str, int]] = []
    found = gpu.run_stages(tmp_path, False, lambda name, lines: said.append((name, len(lines))))
    assert [name for name, _ in said] == NAMES
    ends = {name: lines[-1]["what"] for name, lines in found.items()}
    assert ends.pop("equality") == "ended by its deadline"
    assert ends.pop("kernels").startswith("ended by its process, with exit code 3")
    assert ends.pop("steps") == "ended by ValueError: no"
    assert set(ends.values()) == {"a line"}
    assert [count for _, count in said] == [1, 2, 2, 2, 1, 1, 1]


def test_the_time_of_all_stages_is_limited(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "stub_worker.py").write_text(WORKER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "WORKER", "stub_worker")
    found = gpu.run_stages(tmp_path, False, lambda *_: None, limit=2.0)
    assert found["equality"][-1]["what"] == "ended by its deadline"
    assert found["kernels"] == []
    assert sum(stage.seconds for stage in gpu.STAGES) + gpu._START <= gpu.LIMIT
