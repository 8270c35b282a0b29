"""Every CPU kernel equals its plain twin, in values and gradients, in fp32 and bfloat16."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from newllm.errors import UserError
from newllm.model import kernels
from newllm.model.context import context_read
from newllm.model.context import cpu as cpu_context
from newllm.model.context.reference import context_read as plain_context_read
from newllm.model.dropout import dropout, random_bytes
from newllm.model.kernels import Noise, cpu, reference


def context_inputs(
    batch: int, time: int, channels: int, resets: bool, cut: bool, seed: int
) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return [
        randn(batch, time, 3 * channels),
        randn(channels),
        randn(channels),
        randn(4, channels),
        randn(channels),
        torch.rand(batch, time, generator=generator) < 0.3 if resets else None,
        torch.randint(0, time + 1, (batch,), generator=generator) if cut else None,
        randn(batch, channels),
        randn(batch, 3, channels),
    ]


def outputs_and_gradients(operation: Callable[..., Any], inputs: list[Any]) -> list[Tensor]:
    leaves = [
        x.clone().requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x
        for x in inputs
    ]
    outputs = operation(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(9)
    # Every output takes part, so that gradients through the returned state are compared too.
    weighted = [(o.float() * torch.randn(o.shape, generator=generator)).sum() for o in outputs]
    torch.stack(weighted).sum().backward()
    return [*outputs, *(x.grad for x in leaves if isinstance(x, Tensor) and x.grad is not None)]


def assert_equal(fast: list[Tensor], slow: list[Tensor], tolerance: float = 1e-5) -> None:
    assert len(fast) == len(slow)
    for a, b in zip(fast, slow, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("time", [1, 2, 3, 4, 63, 100])
@pytest.mark.parametrize("resets", [False, True], ids=["plain", "resets"])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "lengths"])
def test_context_read(time: int, resets: bool, cut: bool) -> None:
    for seed in range(4):
        inputs = context_inputs(3, time, 16, resets, cut, seed)
        fast = outputs_and_gradients(cpu_context.context_read, inputs)
        slow = outputs_and_gradients(plain_context_read, inputs)
        assert len(fast) == 10
        assert_equal(fast, slow, 1e-4)


def test_context_read_of_several_groups_in_bfloat16() -> None:
    inputs = context_inputs(2, 9, 128, resets=True, cut=False, seed=0)
    inputs[0] = inputs[0].bfloat16()
    fast = outputs_and_gradients(cpu_context.context_read, inputs)
    slow = outputs_and_gradients(plain_context_read, inputs)
    assert fast[0].dtype == torch.bfloat16
    assert_equal(fast, slow, 0.02)


def test_gradients_of_the_reference_are_right() -> None:
    """The definition itself against finite differences."""
    inputs = context_inputs(2, 5, 4, resets=True, cut=True, seed=0)
    leaves: Any = [
        x.double().requires_grad_() if x is not None and x.is_floating_point() else x
        for x in inputs
    ]
    assert torch.autograd.gradcheck(plain_context_read, leaves)


def test_a_reset_everywhere_forgets_everything() -> None:
    inputs = context_inputs(2, 6, 8, resets=False, cut=False, seed=1)
    inputs[5] = torch.ones(2, 6, dtype=torch.bool)
    other = list(inputs)
    other[7], other[8] = torch.randn(2, 8), torch.randn(2, 3, 8)
    for a, b in zip(
        cpu_context.context_read(*inputs), cpu_context.context_read(*other), strict=True
    ):
        assert torch.equal(a, b)


def test_no_time_steps() -> None:
    inputs = context_inputs(2, 0, 8, resets=False, cut=False, seed=0)
    read, context, tail = context_read(*inputs)
    assert read.shape == (2, 0, 8)
    assert torch.equal(context, inputs[7])
    assert torch.equal(tail, inputs[8])


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("with_stream", [True, False], ids=["stream", "first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_add_norm(share: float, with_stream: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stream = torch.randn(2, 7, 24) if with_stream else None
    inputs = [
        stream, torch.randn(2, 7, 24).to(dtype), torch.randn(24), dtype, share,
        Noise(seed=3, step=5, first_sequence=2), 4,
    ]  # fmt: skip
    fast = outputs_and_gradients(cpu.add_norm, inputs)
    slow = outputs_and_gradients(reference.add_norm, inputs)
    assert_equal(fast, slow, 1e-5 if dtype == torch.float32 else 0.02)
    dropped = fast[0] == (stream if stream is not None else 0)
    assert dropped.any() == (share > 0)


@pytest.mark.parametrize("output", [0, 1], ids=["stream", "norm"])
def test_add_norm_of_which_one_output_is_used(output: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 7, 24), torch.randn(2, 7, 24), torch.randn(24)]
    gradients = []
    for operation in (cpu.add_norm, reference.add_norm):
        leaves = [x.clone().requires_grad_() for x in inputs]
        operation(leaves[0], leaves[1], leaves[2], torch.float32)[output].square().sum().backward()
        gradients.append([torch.zeros(()) if x.grad is None else x.grad for x in leaves])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow.expand_as(fast), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_squared_relu(dtype: torch.dtype) -> None:
    inputs = [torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0)).to(dtype)]
    fast = outputs_and_gradients(cpu.squared_relu, inputs)
    assert_equal(fast, outputs_and_gradients(reference.squared_relu, inputs), 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_softmax_gradient(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (10 * torch.randn(9, 1001, generator=generator)).to(dtype)
    targets = torch.randint(0, 1001, (9,), generator=generator)
    fast, slow = logits.clone(), logits.clone()
    nats = cpu.softmax_gradient_(fast, targets)
    torch.testing.assert_close(nats, reference.softmax_gradient_(slow, targets))
    torch.testing.assert_close(fast, slow, rtol=1e-2, atol=1e-5)


def exact_nats(
    logits: Tensor, targets: Tensor, entries: Tensor, scores: Tensor, counted: Tensor, left: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Nats of the mixture, and the gradients of both losses, by autograd in float64."""
    inputs = [x.detach().double().requires_grad_() for x in (logits, scores, counted, left)]
    logits, scores, counted, left = inputs

    def parts(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both = torch.cat([logits, scores[:, None]], 1).log_softmax(1)
        copied = both[:, -1].exp()
        alone = both.gather(1, targets[:, None])[:, 0].exp()
        return copied, alone, (entries == targets) * copied

    _, alone, by_copying = parts(scores)
    network = -(alone + by_copying).log().sum()
    copied, alone, by_copying = parts(scores.detach())
    nats = -((1 - copied) * counted + left * alone + by_copying).log()
    return nats.detach(), list(torch.autograd.grad(network + nats.sum(), inputs))


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [(cpu, torch.float32), (cpu, torch.bfloat16), (reference, torch.float16)],
    ids=str,
)
@given(seed=st.integers(0, 2**31), sure=st.sampled_from([0.0, 6.0, 12.3, 25.0]))
def test_the_loss_where_copying_is_sure(kernel: Any, dtype: torch.dtype, seed: int, sure: float):
    """Right and wrong: gradients stay what they are, whatever the logits' type would round."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(8, 21, generator=generator)).to(dtype)
    targets, entries = (torch.randint(0, 21, (8,), generator=generator) for _ in range(2))
    entries[:3] = targets[:3]
    scores = sure + torch.randn(8, generator=generator)
    counted, left = (0.5 * torch.rand(8, generator=generator) for _ in range(2))
    nats, expected = exact_nats(logits, targets, entries, scores, counted, left)
    found = logits.clone()
    said = kernel.nats_gradient_(found, targets, (entries, scores), (counted, left))
    assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    assert_close(said.nats, nats.float())
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (0.02, 0.01)
    torch.testing.assert_close(found.float(), expected[0].float(), rtol=rtol, atol=atol)
    for one, other in zip((said.d_scores, said.d_counted, said.d_left), expected[1:], strict=True):
        assert one is not None
        assert_close(one, other.float())


@pytest.mark.parametrize("mixes", [False, True], ids=["", "counts"])
@pytest.mark.parametrize(
    ("entry", "score", "d_score"),
    [(0, 150, 0), (0, -50, -1), (0, -torch.inf, 0), (1, 150, 1), (1, -50, 0), (1, -torch.inf, 0)],
)
def test_gradients_of_probabilities_that_underflow(
    entry: int, score: float, d_score: float, mixes: bool
) -> None:
    """exp(-200) is 0 in fp32; the score's gradient is a ratio of two such numbers."""
    logits = torch.tensor([[-100.0, 0.0, 100.0]])
    copying = torch.tensor([entry]), torch.tensor([float(score)])
    mixing = (torch.tensor([0.0]), torch.tensor([1.0])) if mixes else None
    said = reference.nats_gradient_(logits, torch.tensor([0]), copying, mixing)
    parts = logits, said.nats, said.d_scores, said.d_counted, said.d_left
    assert all(bool(part.isfinite().all()) for part in parts if part is not None)
    assert said.d_scores is not None
    assert float(said.d_scores) == pytest.approx(d_score, abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    """The guard before the optimizer can only stop what it can see."""
    logits = torch.zeros(2, 40)
    logits[1, 7] = bad
    assert cpu.softmax_gradient_(logits, torch.tensor([0, 0])).isfinite().tolist() == [True, False]
    branch = torch.zeros(1, 2, 16)
    branch[0, 1, 3] = bad
    for dtype in (torch.float32, torch.bfloat16):
        _, normed = cpu.add_norm(None, branch, torch.ones(16), dtype)
        assert not normed[0, 1].isfinite().any()
        assert normed[0, 0].isfinite().all()
    inputs = context_inputs(1, 3, 8, resets=False, cut=False, seed=0)
    inputs[0][0, 0, :] = bad
    assert not cpu_context.context_read(*inputs)[0][0, 1].isfinite().any()


def test_kernel_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.active_kernel("cpu") == "numba"
    monkeypatch.setattr(kernels, "FORCED", "reference")
    assert kernels.active_kernel("cpu") == "reference"
    monkeypatch.setattr(kernels, "FORCED", "fast")
    with pytest.raises(UserError, match="numba or reference"):
        kernels.active_kernel("cpu")


@given(
    seed=st.integers(0, 2**31 - 1),
    step=st.integers(0, 2**40),
    cut=st.integers(1, 5),
    site=st.integers(0, 300),
)
def test_noise_does_not_depend_on_the_micro_batch(seed, step, cut, site) -> None:
    cpu = torch.device("cpu")
    whole = random_bytes(Noise(seed, step), site, (6, 3, 8), cpu)
    first = random_bytes(Noise(seed, step), site, (cut, 3, 8), cpu)
    rest = random_bytes(Noise(seed, step, first_sequence=cut), site, (6 - cut, 3, 8), cpu)
    assert torch.equal(torch.cat([first, rest]), whole)


def test_noise_is_even_and_differs_by_seed_step_and_place() -> None:
    shape, cpu = (16, 64, 256), torch.device("cpu")
    fields = [
        random_bytes(Noise(seed, step), site, shape, cpu).flatten()
        for seed, step, site in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 7, 5)]
    ]
    n = fields[0].numel()
    for index, field in enumerate(fields):
        counts = torch.bincount(field, minlength=256).double()
        chi_square = ((counts - n / 256) ** 2 / (n / 256)).sum().item()
        assert 150 < chi_square < 380  # 255 degrees of freedom: 255 +- 5.6 deviations
        for other in fields[index + 1 :]:
            pair = torch.stack([field, other]).double()
            assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.01
        neighbours = torch.stack([field[:-1], field[1:]]).double()
        assert abs(torch.corrcoef(neighbours)[0, 1].item()) < 0.01


def test_dropout_keeps_the_mean() -> None:
    x = torch.ones(10, 100, 101)
    dropped = dropout(x, 0.1, Noise(1, 1), 0)
    assert (dropped == 0).float().mean().item() == pytest.approx(26 / 256, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    assert dropout(x, 0.1, None, 0) is x
    assert dropout(x, 0.0, Noise(1, 1), 0) is x


@pytest.mark.slow
def test_kernels_leave_the_thread_count_alone() -> None:
    """Numba's threads are OpenMP's, as torch's are: starting the ones must not set the others."""
    script = (
        "import torch; from newllm.model.kernels.numerics import use_torch_threads; "
        "use_torch_threads(); import numba; print(torch.get_num_threads(), numba.get_num_threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1", "1"]
