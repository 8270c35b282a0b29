"""kill -9 at random moments, while training and while saving: the resumed run ends the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from newllm.train import checkpoint
from tests.faults.forkserver import Jobs

NAME = "new_llm_dolly_layers1_bpe"
KILLS = 10


def command(data: Path, out: Path, *more: str) -> list[str]:
    flags = (
        "--context-dim 16 --embed-dim 16 --hidden-dim 24 --vocab-size 400 --max-seq-length 24 "
        "--batch-size 2 --sampled-softmax 64 --epochs 12 --device cpu --save-minutes 0"
    )
    return ["train", "dolly", "--data", str(data), "--out", str(out), *flags.split(), *more]


@pytest.mark.slow
def test_ten_kills_change_nothing(jobs: Jobs, dolly_folder: Path, tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    cache = Path(os.environ["NEWLLM_CACHE"])
    alone = jobs.run("command", command(dolly_folder, calm), cache)
    assert alone.code == 0, alone.output

    rng = random.Random(0)
    resumed = command(dolly_folder, killed, "--resume")
    for _ in range(KILLS):
        moment = str(rng.randint(2, 12)), str(rng.uniform(0.0, 0.05))
        struck = jobs.run("killed", [*moment, *resumed], cache)
        assert "Traceback" not in struck.output, struck.output
        assert struck.code == -signal.SIGKILL, "the run was over before it could be killed"
    again = [sys.executable, "-m", "newllm", *resumed]  # its memory lies elsewhere
    finished = subprocess.run(again, check=True, capture_output=True, text=True, timeout=300)
    assert "Resumed at epoch" in finished.stdout

    for file in (f"{NAME}_final.pt", f"best_{NAME}.pt"):
        once, again = (checkpoint.load(folder / file)["model"] for folder in (calm, killed))
        assert all(torch.equal(once[key], again[key]) for key in once)
    records = [
        [json.loads(line)["loss"] for line in (folder / f"{NAME}.metrics.jsonl").open()]
        for folder in (calm, killed)
    ]
    assert records[0] == records[1]
    leftovers = [p.name for p in killed.iterdir() if ".tmp-" in p.name]
    assert len(leftovers) <= KILLS, "half files keep their temporary names"
