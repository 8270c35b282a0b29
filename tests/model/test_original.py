"""`original` against an independent implementation, one step and one sequence at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from newllm.config import ModelSettings
from newllm.model.baselines.original import Loop, OriginalLM, read_loop, read_loop_fused

PUBLISHED = {
    "architecture": "original",
    "context_dim": 256,
    "embed_dim": 256,
    "hidden_dim": 512,
    "dropout": 0.1,
}


def step_by_step(weights: dict[str, Tensor], ids: list[int]) -> list[Tensor]:
    """Logits after each token of one document, from the published equations alone."""

    def affine(name: str, x: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    size = weights["context_norm.weight"].numel()
    context = torch.zeros(size)
    logits = []
    for token in ids:
        x = torch.cat([weights["embedding.weight"][token], context])
        h = torch.clamp(affine("in_proj", x), min=0.0)
        layer = 0
        while f"hidden_layers.{layer}.weight" in weights:
            h = torch.clamp(affine(f"hidden_layers.{layer}", h), min=0.0)
            layer += 1
        forget = 1 / (1 + torch.exp(-affine("forget", h)))
        write = 1 / (1 + torch.exp(-affine("write", h)))
        c = forget * context + write * affine("delta", h)
        mean = c.sum() / size
        variance = ((c - mean) ** 2).sum() / size
        c = (c - mean) / torch.sqrt(variance + 1e-5)
        c = c * weights["context_norm.weight"] + weights["context_norm.bias"]
        context = torch.clamp(c, -10.0, 10.0)
        logits.append(affine("output", h))
    return logits


@pytest.mark.parametrize(("layers", "parameters"), [(1, 1_426_152), (4, 2_214_120)])
def test_published_parameter_counts(layers: int, parameters: int) -> None:
    model = OriginalLM(ModelSettings(num_layers=layers, **PUBLISHED), vocab_size=1000)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_initialisation() -> None:
    model = OriginalLM(ModelSettings(num_layers=4, **PUBLISHED), vocab_size=1000)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif not name.startswith("context_norm"):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("layers", [1, 3])
def test_equals_the_equations(layers: int) -> None:
    """Logits, loss and the gradient of every weight."""
    settings = ModelSettings(
        architecture="original", num_layers=layers, context_dim=12, embed_dim=10, hidden_dim=14,
        dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(layers)
    model = OriginalLM(settings, vocab_size=30)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    documents = torch.randint(0, 30, (3, 9))
    targets = torch.randint(0, 30, (3, 9))

    hidden, _ = model(documents)
    loss = model.loss(hidden, targets)
    loss.backward()

    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    expected = torch.zeros(())
    for document, wanted in zip(documents.tolist(), targets.tolist(), strict=True):
        for logits, target in zip(step_by_step(weights, document), wanted, strict=True):
            expected = expected + torch.log(torch.exp(logits).sum()) - logits[target]
    expected.backward()

    sequence = torch.stack(step_by_step(weights, documents[1].tolist()))
    torch.testing.assert_close(model.logits(hidden)[1], sequence, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-3, atol=1e-4)


def test_context_is_clamped_and_dropout_acts() -> None:
    settings = ModelSettings(
        architecture="original", num_layers=1, context_dim=8, embed_dim=8, hidden_dim=8, dropout=0.5
    )
    model = OriginalLM(settings, vocab_size=10)
    with torch.no_grad():
        model.context_norm.weight.fill_(1000.0)
    ids = torch.randint(0, 10, (2, 6))
    _, state = model(ids)
    assert state["context"].abs().max() == 10.0
    model.train()
    assert not torch.equal(model(ids)[0], model(ids)[0])
    model.eval()
    assert torch.equal(model(ids)[0], model(ids)[0])


def test_published_rate_follows_the_batch() -> None:
    from newllm.settings import resolve

    settings = resolve("dolly", {"architecture": "original"})
    assert settings.learning_rate == pytest.approx(8e-4)
    assert (settings.batch_size, settings.patience, settings.epochs) == (2048, 20, 100)
    quarter = resolve("dolly", {"architecture": "original", "batch_size": 512})
    assert quarter.learning_rate == pytest.approx(1e-4 * math.sqrt(512 / 32))


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_loop_equals_its_twin(layers: int, resets: bool, padded: bool, dropout: float) -> None:
    """Outputs and gradients, in float64; both draw the same dropout."""
    torch.manual_seed(0)
    batch_size, time, context_dim, width = 3, 7, 6, 8

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    tokens, context, read = (
        leaf(batch_size, time, width),
        leaf(batch_size, context_dim),
        leaf(width, 6),
    )
    hidden = [(leaf(width, width), leaf(width)) for _ in range(layers)]
    gates = [(leaf(context_dim, width), leaf(context_dim)) for _ in range(3)]
    norm = leaf(context_dim), leaf(context_dim)
    with torch.no_grad():
        norm[0].fill_(8.0)  # so that the clamp acts
    loop = Loop(
        torch.rand(batch_size, time) < 0.3 if resets else None,
        torch.rand(batch_size, time) < 0.7 if padded else None,
        dropout,
    )
    leaves = [tokens, context, read, *(x for pair in (*hidden, *gates) for x in pair), *norm]
    results = []
    for function in (read_loop, read_loop_fused):
        torch.manual_seed(1)
        output, last = function(loop, tokens, context, read, hidden, gates, norm)
        weights = [torch.linspace(-1, 1, x.numel()).double().view(x.shape) for x in (output, last)]
        given = [weight.clone() for weight in weights]
        results.append([output, last, *torch.autograd.grad((output, last), leaves, given)])
        torch.testing.assert_close(given, weights, rtol=0, atol=0)  # they are not ours to change
    assert results[0][1].abs().max() == 10.0
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected)
