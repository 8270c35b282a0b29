"""The bake-off's candidates: each kernel against plain torch, and their stack against itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import candidate_kernels as kernels
from benchmarks.candidates import CANDIDATES, CandidateLM
from newllm.config import ModelSettings
from newllm.model import ContextLM

BATCH, TIME, HEADS, KEYS, VALUES = 3, 7, 2, 4, 8


def loop(
    step: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    reset: Tensor,
    lengths: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Outputs and last state of a recurrence, one token after the other."""
    outputs = []
    for t in range(TIME):
        on = [-1, *[1] * (state.dim() - 1)]
        fresh = torch.where(reset[:, t].view(on), 0.0, state)
        out, new = step(t, fresh)
        read = t < lengths
        state = torch.where(read.view(on), new, state)
        outputs.append(out * read.view([-1, *[1] * (out.dim() - 1)]))
    return torch.stack(outputs, 1), state


def diagonal(value, forget, weight, reset, lengths, context):  # type: ignore[no-untyped-def]
    def step(t: int, c: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.sigmoid(forget[:, t] + weight * c)
        new = s * c + (1 - s) * value[:, t]
        return new, new

    return loop(step, reset, lengths, context)


def hgrn2(query, forget, value, reset, lengths, memory):  # type: ignore[no-untyped-def]
    def step(t: int, s: Tensor) -> tuple[Tensor, Tensor]:
        f = forget[:, t, :, :, None]
        new = f * s + (1 - f) * value[:, t, :, None]
        return (query[:, t, :, :, None] * new).sum(2), new

    return loop(step, reset, lengths, memory)


def gated_delta(query, key, value, decay, rate, reset, lengths, memory):  # type: ignore[no-untyped-def]
    def step(t: int, s: Tensor) -> tuple[Tensor, Tensor]:
        a, r, k = decay[:, t, :, None, None], rate[:, t, :, None, None], key[:, t, :, :, None]
        recalled = (k * s).sum(2, keepdim=True)
        new = a * (s - r * k * recalled) + r * k * value[:, t, :, None]
        return (query[:, t, :, :, None] * new).sum(2), new

    return loop(step, reset, lengths, memory)


def tensors(name: str) -> tuple[list[Tensor], Tensor]:
    """What a kernel is differentiated by, but for its state; and the state."""
    pairs = BATCH, TIME, HEADS, KEYS
    values = torch.randn(BATCH, TIME, HEADS, VALUES)
    memory = torch.randn(BATCH, HEADS, KEYS, VALUES)
    if name == "diagonal":
        flat = torch.randn(2, BATCH, TIME, VALUES)
        return [flat[0].clone(), flat[1].clone(), torch.randn(VALUES)], torch.randn(BATCH, VALUES)
    if name == "hgrn2":
        return [torch.randn(pairs), torch.rand(pairs), values], memory
    key = torch.nn.functional.normalize(torch.randn(pairs), dim=3)
    return [torch.randn(pairs), key, values, *torch.rand(2, *pairs[:3]).clone()], memory


@pytest.mark.parametrize("plain", [diagonal, hgrn2, gated_delta])
def test_kernel_equals_plain_torch(plain: Callable[..., tuple[Tensor, Tensor]]) -> None:
    torch.manual_seed(0)
    name = plain.__name__
    inputs, state = tensors(name)
    leaves = [x.detach().clone().requires_grad_() for x in (*inputs, state)]
    reset = torch.rand(BATCH, TIME) < 0.3
    lengths = torch.tensor([TIME, 4, 1])
    results = []
    for function in (plain, getattr(kernels, name)):
        out, last = function(*leaves[:-1], reset, lengths, leaves[-1])
        weights = [torch.linspace(-1, 1, x.numel()).view(x.shape) for x in (out, last)]
        total = (out * weights[0]).sum() + (last * weights[1]).sum()
        results.append([out, last, *torch.autograd.grad(total, leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CANDIDATES)
def test_any_split_and_resets_give_the_same(name: str) -> None:
    torch.manual_seed(0)
    widths = {"context_dim": 64, "embed_dim": 32, "hidden_dim": 48, "pair_rows": 256}
    settings = ModelSettings.model_validate({"num_layers": 2, **widths})
    model = CandidateLM(CANDIDATES[name], settings, 50).eval()
    with torch.device("meta"):  # as checkpoints are checked
        parameters = sum(
            p.numel() for p in CandidateLM(CANDIDATES[name], settings, 50).parameters()
        )
    ours = sum(p.numel() for p in ContextLM(settings, 50).parameters())
    assert abs(parameters - ours) <= 2 * 4 * 64  # no more than a filter's worth apart
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        ids = torch.randint(50, (2, 9))
        reset = torch.zeros(2, 9, dtype=torch.bool)
        reset[1, 5] = True
        whole, after = model(ids, reset=reset)
        first, state = model(ids[:, :4], reset=reset[:, :4])
        second, last = model(ids[:, 4:], state, reset[:, 4:])
        torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-4, atol=1e-5)
        for part in after:
            torch.testing.assert_close(last[part], after[part], rtol=1e-4, atol=1e-5)
        alone, _ = model(ids[1:, 5:])
        torch.testing.assert_close(whole[1:, 5:], alone, rtol=1e-4, atol=1e-5)
