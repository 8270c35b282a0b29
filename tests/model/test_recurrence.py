"""The numba kernel equals the plain loop, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from newllm.model import recurrence
from newllm.model.recurrence import cpu, reference


def random_inputs(batch: int, time: int, channels: int, resets: bool, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    reset = torch.rand(batch, time, generator=generator) < (0.3 if resets else 0.0)
    return [
        randn(batch, time, channels),
        randn(batch, time, channels),
        randn(4, channels),
        reset,
        randn(batch, channels),
        randn(batch, 3, channels),
    ]


def outputs_and_gradients(scan, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    outputs = scan(*leaves)
    generator = torch.Generator().manual_seed(9)
    # Every output takes part, so that gradients through the returned state are compared too.
    weighted = [(o * torch.randn(o.shape, generator=generator)).sum() for o in outputs]
    torch.stack(weighted).sum().backward()
    return [*outputs, *(x.grad for x in leaves if x.grad is not None)]


@pytest.mark.parametrize("time", [1, 2, 3, 4, 63, 100])
@pytest.mark.parametrize("resets", [False, True], ids=["plain", "resets"])
def test_kernel_equals_reference(time: int, resets: bool) -> None:
    for seed in range(4):
        inputs = random_inputs(batch=3, time=time, channels=5, resets=resets, seed=seed)
        fast = outputs_and_gradients(cpu.context_scan, inputs)
        slow = outputs_and_gradients(reference.context_scan, inputs)
        assert len(fast) == len(slow) == 8
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_reference_gradients_are_right() -> None:
    """The definition itself against finite differences."""
    inputs = random_inputs(batch=2, time=5, channels=3, resets=True, seed=0)
    leaves = [x.double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    assert torch.autograd.gradcheck(reference.context_scan, leaves)


def test_no_time_steps() -> None:
    inputs = random_inputs(batch=2, time=0, channels=3, resets=False, seed=0)
    contexts, context, tail = cpu.context_scan(*inputs)
    assert contexts.shape == (2, 0, 3)
    assert torch.equal(context, inputs[4])
    assert torch.equal(tail, inputs[5])


def test_reset_everywhere_forgets_everything() -> None:
    inputs = random_inputs(batch=2, time=6, channels=4, resets=False, seed=1)
    write, logits, conv, _, context, tail = inputs
    reset = torch.ones(2, 6, dtype=torch.bool)
    contexts, _, last_tail = cpu.context_scan(write, logits, conv, reset, context, tail)
    torch.testing.assert_close(contexts, (1 - torch.sigmoid(logits)) * conv[0] * write)
    assert torch.equal(last_tail[:, 0], write[:, -1])
    assert not last_tail[:, 1:].any()


def test_kernel_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recurrence.active_kernel("cpu") == "numba"
    monkeypatch.setenv(recurrence.KERNEL_VARIABLE, "reference")
    assert recurrence.active_kernel("cpu") == "reference"
    monkeypatch.setenv(recurrence.KERNEL_VARIABLE, "fast")
    with pytest.raises(ValueError, match="numba or reference"):
        recurrence.active_kernel("cpu")
