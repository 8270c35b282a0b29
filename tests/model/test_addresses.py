"""What a kernel computes does not depend on where its arrays lie: the allocator decides that anew
in every run, and a resumed run would end with other weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from newllm.model.baselines import mingru_cpu, rnn_cpu
from newllm.model.context import cpu as context_cpu
from newllm.model.kernels import cpu

LAYOUTS = 6


def moved(function: Callable[..., Any], rng: random.Random) -> Callable[..., Any]:
    """The kernel on copies of its arrays, one behind the other in another order, close together.

    Between them are 0, 64, 128 or 192 bytes: so much do the loops that LLVM makes of one look at.
    """

    def call(*arguments: Any) -> Any:
        arrays = [a for a in arguments if isinstance(a, np.ndarray) and a.flags.c_contiguous]
        order = sorted(range(len(arrays)), key=lambda _: rng.random())
        places, end = {}, 0
        for number in order:
            places[number] = end
            end += -(-arrays[number].nbytes // 64) * 64 + 64 * rng.randrange(4)
        room = np.zeros(end + 64, np.uint8)
        start = -room.ctypes.data % 64
        copies = {}
        for number, array in enumerate(arrays):
            begin = start + places[number]
            part = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
            part[...] = array
            copies[id(array)] = part
        function(*(copies.get(id(a), a) if isinstance(a, np.ndarray) else a for a in arguments))
        for array in arrays:
            if array.flags.writeable:
                array[...] = copies[id(array)]

    return call


KERNELS = {
    cpu: ["_add_norm_forward", "_add_norm_backward", "_squared_relu_forward",
          "_squared_relu_backward", "_softmax_gradient"],
    mingru_cpu: ["_min_gru_forward", "_min_gru_backward"],
    rnn_cpu: ["_gru_forward", "_gru_backward", "_lstm_forward", "_lstm_backward"],
}  # fmt: skip


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have all kernels compute somewhere else, by a number."""
    originals = {
        (module, name): getattr(module, name) for module in KERNELS for name in KERNELS[module]
    }
    forward, backward = context_cpu._forward_kernel, context_cpu._backward_kernel

    def move(seed: int) -> None:
        rng = random.Random(seed)
        for (module, name), kernel in originals.items():
            monkeypatch.setattr(module, name, moved(kernel, rng))
        monkeypatch.setattr(context_cpu, "_forward_kernel", lambda n: moved(forward(n), rng))
        monkeypatch.setattr(context_cpu, "_backward_kernel", lambda n: moved(backward(n), rng))

    return move


def step(architecture: str, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Loss and gradients of a model of that architecture."""
    from newllm.config import ModelSettings
    from newllm.model import build_model

    settings = ModelSettings(
        architecture=architecture, num_layers=2, context_dim=width, embed_dim=width,
        hidden_dim=width + 8, dropout=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(settings, 40).train()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(6, 40, (3, 9))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden = model(ids)[0]
    loss = model.loss(hidden, ids.roll(-1, 1))
    loss.sum().backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("width", [16, 24, 64])
@pytest.mark.parametrize("architecture", ["context", "mingru", "gru", "lstm"])
def test_addresses_change_nothing(
    architecture: str, width: int, elsewhere: Callable[[int], None]
) -> None:
    wanted = step(architecture, width, torch.float32)
    for seed in range(LAYOUTS):
        elsewhere(seed)
        found = step(architecture, width, torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), seed
