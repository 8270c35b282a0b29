"""Twenty steps from a fixed seed give the losses they gave before.

Other numbers mean another model, other initial weights, other rows or another recipe. If that is
meant, take the new ones (`python -m tests.train.test_golden`) and say so in CHANGELOG.md.
"""

from __future__ import annotations

import tempfile
from typing import Any

import pytest

from newllm.train.run import train
from newllm.train.trainer import Trainer

STEPS = 20
SETTINGS: dict[str, Any] = {
    "data": "sample", "max_samples": 200, "vocab_size": 400, "num_layers": 2, "context_dim": 64,
    "embed_dim": 32, "hidden_dim": 48, "max_seq_length": 32, "batch_size": 8, "epochs": 1,
    "dropout": 0.1, "device": "cpu", "precision": "fp32",
}  # fmt: skip
GOLDEN = {
    "context": [
        2.5318, 2.2162, 2.4490, 2.6145, 2.7200, 2.2372, 2.0118, 1.8122, 2.3678, 2.0015,
        2.3737, 2.3801, 1.9019, 2.3100, 2.1166, 2.4226, 1.5027, 1.8680, 2.0331, 2.4142,
    ],
    "context, counts=0": [
        5.9749, 5.9499, 5.9114, 5.8753, 5.7570, 5.6889, 5.5727, 5.5318, 5.3928, 5.3479,
        5.2570, 5.0945, 5.0479, 4.9394, 4.8131, 4.6392, 4.7949, 4.2310, 4.0167, 4.5686,
    ],
    "context, counts=0, recall_slots=0": [
        5.9780, 5.9915, 5.9415, 5.9164, 5.8382, 5.7706, 5.6762, 5.6184, 5.5302, 5.4496,
        5.3754, 5.3157, 5.2190, 5.2084, 5.0842, 5.0843, 4.9882, 4.9383, 4.8424, 4.9006,
    ],
    "original": [
        5.9914, 5.9914, 5.9914, 5.9911, 5.9912, 5.9911, 5.9907, 5.9906, 5.9905, 5.9902,
        5.9899, 5.9899, 5.9901, 5.9899, 5.9896, 5.9899, 5.9891, 5.9892, 5.9896, 5.9889,
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
        name, *without = architecture.split(", ")
        given = {setting.partition("=")[0]: 0 for setting in without}
        train("dolly", {**SETTINGS, "architecture": name, "out": folder, **given})
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
