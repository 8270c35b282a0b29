"""Twenty steps from a fixed seed give the losses they gave before.

Other numbers mean another model, other initial weights, other rows or another recipe. If that is
meant, take the new ones (`python -m tests.train.test_golden`) and say so in CHANGELOG.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from newllm.train.loop import Trainer
from newllm.train.run import train

STEPS = 20
SETTINGS: dict[str, Any] = {
    "data": "sample", "max_samples": 200, "vocab_size": 400, "num_layers": 2, "context_dim": 64,
    "embed_dim": 32, "hidden_dim": 48, "max_seq_length": 32, "batch_size": 8, "epochs": 1,
    "dropout": 0.1, "device": "cpu", "precision": "fp32",
}  # fmt: skip
GOLDEN = {
    "context": [
        5.9815, 5.9928, 5.9499, 5.9351, 5.8672, 5.8089, 5.7429, 5.7004, 5.6481, 5.5920,
        5.5198, 5.4677, 5.3748, 5.3430, 5.2338, 5.2198, 5.1401, 5.1096, 4.9952, 5.0419,
    ],
    "original": [
        5.9915, 5.9915, 5.9911, 5.9905, 5.9911, 5.9907, 5.9906, 5.9904, 5.9900, 5.9899,
        5.9891, 5.9895, 5.9899, 5.9897, 5.9896, 5.9898, 5.9889, 5.9889, 5.9893, 5.9888,
    ],
}  # fmt: skip
"""Architecture -> nats a token before each of the first steps, in fp32."""


def losses(architecture: str) -> list[float]:
    """Mean loss of each of the first steps of a run."""
    seen: list[float] = []
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        step = Trainer._step

        def watched(self: Trainer, *arguments: Any) -> float:
            seen.append(step(self, *arguments))
            return seen[-1]

        patch.setattr(Trainer, "_step", watched)
        train("dolly", {**SETTINGS, "architecture": architecture, "out": str(Path(folder))})
    return seen[:STEPS]


@pytest.mark.parametrize("architecture", GOLDEN)
def test_the_first_steps_are_as_they_were(architecture: str) -> None:
    # Kernels sum in another order on another processor: hence the tolerance.
    assert losses(architecture) == pytest.approx(GOLDEN[architecture], rel=2e-4)


def test_there_are_as_many_as_are_said() -> None:
    assert all(len(values) == STEPS for values in GOLDEN.values())


if __name__ == "__main__":
    for name in GOLDEN:
        print(f'    "{name}": {[round(loss, 4) for loss in losses(name)]},')
