"""The stack: size, initialization, interface of the loss, dropout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from newllm.data.loader import IGNORED
from newllm.model import ContextLM, build_model
from newllm.model.kernels import Noise
from newllm.model.loss import sum_of_nats
from newllm.settings import resolve


@pytest.mark.parametrize(("layers", "published"), [(1, 1_426_152), (4, 2_214_120)])
def test_no_larger_than_the_published_model(layers: int, published: int) -> None:
    settings = resolve("dolly", {"num_layers": layers, "tokenizer": "word1000"})
    model = build_model(settings.model_settings(), vocab_size=1000)
    count = sum(p.numel() for p in model.parameters())
    assert 0.9 * published < count <= published


def test_new_blocks_are_the_identity(tiny_model_settings) -> None:
    torch.manual_seed(0)
    model = ContextLM(tiny_model_settings(num_layers=3), 40)
    ids = torch.randint(0, 40, (2, 5))
    embedded = F.layer_norm(model.embedding(ids), (model.settings.embed_dim,))
    twice = F.layer_norm(embedded, embedded.shape[-1:])
    torch.testing.assert_close(model(ids)[0], twice)


def test_forget_gates_start_with_spread_memories(tiny_model_settings) -> None:
    block = ContextLM(tiny_model_settings(context_dim=64), 40).blocks[0]
    memory = 1 / (1 - torch.sigmoid(block.forget_bias.detach()))  # type: ignore[union-attr]
    assert memory.min().item() == pytest.approx(1.5, rel=1e-3)
    assert memory.max().item() == pytest.approx(256, rel=1e-2)


def test_state_size_does_not_depend_on_the_text(tiny_model_settings) -> None:
    model = ContextLM(tiny_model_settings(), 40)
    for length in (1, 50):
        _, state = model(torch.randint(0, 40, (3, length)))
        assert {k: tuple(v.shape) for k, v in state.items()} == {
            "context": (2, 3, 16),
            "tail": (2, 3, 3, 16),
        }


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("vocab", [7, 600_000])  # the second forces a chunk of few rows
def test_loss_equals_cross_entropy(with_bias: bool, vocab: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 5, 4, requires_grad=True)
    weight = torch.randn(vocab, 4, requires_grad=True)
    bias = torch.randn(vocab, requires_grad=True) if with_bias else None
    targets = torch.randint(0, vocab, (2, 5))
    targets[0, 2] = targets[1, 4] = IGNORED
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]
    fast = sum_of_nats(hidden, weight, bias, targets)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits = F.linear(*exact).flatten(0, 1)
    slow = F.cross_entropy(logits, targets.flatten(), reduction="sum")
    torch.testing.assert_close(fast, slow.float())
    for a, b in zip(
        torch.autograd.grad(fast / 3, leaves), torch.autograd.grad(slow / 3, exact), strict=True
    ):
        torch.testing.assert_close(a, b.float(), rtol=1e-3, atol=5e-4)


def test_loss_of_nothing_is_zero() -> None:
    hidden = torch.randn(1, 3, 4, requires_grad=True)
    loss = sum_of_nats(hidden, torch.randn(5, 4), None, torch.full((1, 3), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_dropout_acts_in_training_alone(tiny_model_settings) -> None:
    model = ContextLM(tiny_model_settings(dropout=0.5), 40)
    ids = torch.randint(0, 40, (2, 5))
    noise = Noise(seed=1, step=2)
    first = model(ids, noise=noise)[0]
    assert torch.equal(first, model(ids, noise=noise)[0])
    assert not torch.equal(first, model(ids, noise=Noise(seed=1, step=3))[0])
    assert not torch.equal(model(ids)[0], model(ids)[0])
    model.eval()
    assert torch.equal(model(ids, noise=noise)[0], model(ids)[0])


def test_a_split_batch_sees_the_same_dropout(tiny_model_settings) -> None:
    model = ContextLM(tiny_model_settings(dropout=0.5), 40)
    ids = torch.randint(0, 40, (3, 5))
    whole, _ = model(ids, noise=Noise(1, 2))
    parts = [
        model(ids[sequence : sequence + 1], noise=Noise(1, 2, sequence))[0] for sequence in range(3)
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_gradients_of_a_split_batch_add_up(tiny_model_settings) -> None:
    torch.manual_seed(0)
    model = ContextLM(tiny_model_settings(dropout=0.1), 40)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids, targets = torch.randint(0, 40, (2, 8, 12))
    reset = torch.rand(8, 12) < 0.1

    def gradients(edges: list[int]) -> list[torch.Tensor]:
        model.zero_grad()
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            hidden, _ = model(ids[start:stop], None, reset[start:stop], noise=Noise(1, 2, start))
            model.loss(hidden, targets[start:stop]).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for whole, parts in zip(gradients([0, 8]), gradients([0, 3, 6, 8]), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5 * whole.abs().max().item())
