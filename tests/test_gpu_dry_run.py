"""What steps ask of a GPU, counted on tensors without content: their limits."""

from __future__ import annotations

import collections
import importlib.util

import pytest
import torch

from tools.gpu_dry_run import (
    CASES,
    WRITING,
    count_evaluation,
    count_step,
    count_steps,
    count_writing,
    estimates,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has no wheels for this system"
)

LIMITS = {
    "4 x 256": (147, 900),
    "4 x 256, dropout": (147, 900),
    "4 x 256, fp16": (150, 900),
    "4 x 256, recall and counts": (256, 1000),
}
"""Most launches of a step, and most megabytes outside of matrix products; waits: none. Of a step
that is a graph: a copy to the GPU, the graph, and a copy of what the step was."""

WRITTEN = {
    "writing, 4 x 256": 71,
    "writing, 4 x 256, recall": 112,
    "writing, 4 x 256, recall and counts": 235,
}
"""Most launches of a token of 64 texts."""


@pytest.mark.parametrize("case", LIMITS)
def test_a_step_waits_for_nothing_and_launches_little(case: str) -> None:
    torch.use_deterministic_algorithms(False)  # it fills what is empty, which would be counted
    flags, capability, dropout = CASES[case]
    *_, before, counts, captured, replayed = count_steps("hh_rlhf", flags, capability, dropout)
    assert not counts.waits
    launches, megabytes = LIMITS[case]
    assert counts.launches <= launches
    assert counts.bytes <= megabytes * 1e6
    assert replayed.operations == {"copy to the GPU": 1, "graph": 1, "copy to the host": 1}
    # What is captured is what every step asks for, in order, at another rate and with other tokens;
    # around it are two copies.
    assert counts.asked == before.asked
    assert captured.asked == counts.asked[1:-1]
    assert not captured.waits
    assert not {"copy to the GPU", "copy to the host"} & captured.operations.keys()


ARCHITECTURES = {
    "context": 150, "mingru": 686, "gru": 137, "lstm": 166, "transformer": 550, "original": 1060,
}  # fmt: skip
"""Most launches of a step; of `original`, whose loop launches for each token, with rows of 16
tokens."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_no_architecture_waits_in_any_precision(architecture: str, precision: str) -> None:
    torch.use_deterministic_algorithms(False)
    flags, capability, dropout = CASES[f"{architecture}, {precision}"]
    if architecture == "original":
        flags = {**flags, "max_seq_length": 16}
    counts = count_step("hh_rlhf", flags, capability, dropout)
    assert not counts.waits
    assert counts.launches <= ARCHITECTURES[architecture]


def test_an_evaluation_waits_for_its_first_state_and_at_its_end() -> None:
    """Never for a batch, with recall and counts; the first state has three parts made of tokens."""
    torch.use_deterministic_algorithms(False)
    waits = count_evaluation(CASES["4 x 256, recall and counts"][0]).waits
    kinds: collections.Counter[str] = collections.Counter()
    for where, times in waits.items():
        kinds[where.rpartition(":")[0]] += times
    assert kinds == {
        "copy to the host in model/residual.py": 3,
        "copy to the host in evaluate/metrics.py": 1,
    }


@pytest.mark.parametrize("case", WRITING)
def test_a_token_of_many_texts_is_a_copy_a_graph_and_a_copy(case: str) -> None:
    torch.use_deterministic_algorithms(False)
    _, before, counts, captured, replayed = count_writing(WRITING[case], 64)
    assert counts.launches <= WRITTEN[case]
    assert replayed.operations == {"copy to the GPU": 1, "graph": 1, "copy to the host": 1}
    assert counts.asked == before.asked
    assert captured.asked == counts.asked[1:-1]
    assert not captured.waits
    assert sum(counts.waits.values()) == sum(replayed.waits.values()) == 1  # for the scores
    assert not {"copy to the GPU", "copy to the host"} & captured.operations.keys()


def test_a_number_that_changes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph would have the one of the step that was captured for good."""
    from newllm.train import optimizers

    move_ = optimizers.move_

    def moving(weights: torch.Tensor, *given: object) -> None:
        move_(weights, *given)  # type: ignore[arg-type]
        moving.calls += 1  # type: ignore[attr-defined]
        weights.mul_(1 - 1e-9 * moving.calls)  # type: ignore[attr-defined]

    moving.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(optimizers, "move_", moving)
    torch.use_deterministic_algorithms(False)
    *_, before, counts, _, _ = count_steps("hh_rlhf", {**CASES["4 x 256"][0], "num_layers": 1})
    assert len(before.asked) == len(counts.asked)
    assert before.asked != counts.asked


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


def test_estimates_follow_the_counts() -> None:
    told = estimates("1 x 256, word1000")
    assert told["launches (dropout)"] == "78 (78) -> 3"
    assert all(" -> " in told[gpu] for gpu in ("T4", "L4", "A100", "H200"))
