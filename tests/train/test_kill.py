"""kill -9 at random moments, while training and while saving: the resumed run ends the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from newllm.train import checkpoint

NAME = "new_llm_dolly_layers1_bpe"
KILLS = 10


def command(data: Path, out: Path, *more: str) -> list[str]:
    flags = (
        "--context-dim 16 --embed-dim 16 --hidden-dim 24 --vocab-size 400 --max-seq-length 24 "
        "--batch-size 2 --epochs 12 --device cpu --save-minutes 0"
    )
    return [sys.executable, "-m", "newllm", "train", "dolly", "--data", str(data),
            "--out", str(out), *flags.split(), *more]  # fmt: skip


@pytest.mark.slow
def test_ten_kills_change_nothing(dolly_folder: Path, tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    subprocess.run(command(dolly_folder, calm), check=True, capture_output=True, timeout=300)

    rng = random.Random(0)
    kills = finished = 0
    for _ in range(10 * KILLS):
        process = subprocess.Popen(
            command(dolly_folder, killed, "--resume"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1,
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:  # until it trains
            if line.startswith(("Epoch", "Finished")):
                break
        time.sleep(rng.uniform(0.0, 0.4))
        if kills < KILLS and process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        output = process.communicate()[0]
        assert "Traceback" not in output, output
        if process.returncode == 0:
            finished += 1
            break
    assert finished == 1
    assert kills == KILLS, "the run was over before it could be killed often enough"

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
