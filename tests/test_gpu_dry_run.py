"""What a training step asks of a GPU, counted on tensors without content: its limits."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tools.gpu_dry_run import CASES, count_step

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has no wheels for this system"
)

LIMITS = {
    "4 x 256": (150, 900),
    "4 x 256, dropout": (151, 900),
    "4 x 256, fp16": (154, 900),
    "4 x 256, recall and counts": (274, 1000),
}
"""Most launches of a step, and most megabytes outside of matrix products; waits: none."""


@pytest.mark.parametrize("case", LIMITS)
def test_a_step_waits_for_nothing_and_launches_little(case: str) -> None:
    torch.use_deterministic_algorithms(False)  # it fills what is empty, which would be counted
    flags, capability, dropout = CASES[case]
    counts = count_step("hh_rlhf", flags, capability, dropout)
    assert not counts.waits
    launches, megabytes = LIMITS[case]
    assert counts.launches <= launches
    assert counts.bytes <= megabytes * 1e6


def test_a_wait_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the counting is for: a number of the GPU that somebody reads."""
    from newllm.train import trainer

    judged = trainer.step_if_finite

    def asking(*given: object, **named: object) -> torch.Tensor:
        said = judged(*given, **named)  # type: ignore[arg-type]
        assert bool(said[1] > 0)
        return said

    monkeypatch.setattr(trainer, "step_if_finite", asking)
    torch.use_deterministic_algorithms(False)
    counts = count_step("hh_rlhf", {**CASES["4 x 256"][0], "num_layers": 1})
    assert sum(counts.waits.values()) == 1
