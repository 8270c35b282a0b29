"""The baselines: their cells against torch's, kernels against plain torch, window, sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from newllm.config import ModelSettings
from newllm.errors import UserError
from newllm.model import LanguageModel, build_model, count_parameters
from newllm.model.baselines.mingru import min_gru
from newllm.model.baselines.rnn import GatedBlock
from newllm.model.baselines.segments import Segments
from newllm.model.baselines.transformer import WINDOW, View
from newllm.model.kernels import Noise
from newllm.model.shape import PAIR_SHARE, matched_widths
from newllm.settings import resolve

PEERS = ["gru", "lstm", "mingru", "transformer"]
VOCAB = 40


def make_model(architecture: str, **changes: Any) -> LanguageModel:
    shape = {"num_layers": 2, "context_dim": 32, "embed_dim": 32, "hidden_dim": 48, "dropout": 0.0}
    settings = ModelSettings.model_validate({"architecture": architecture, **shape, **changes})
    torch.manual_seed(0)
    model = build_model(settings, VOCAB)
    with torch.no_grad():  # away from the initial zeros
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch(batch_size: int, time: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(0, VOCAB, (batch_size, time)), torch.rand(batch_size, time) < 0.1


@pytest.mark.parametrize("kernel", ["numba", "reference"])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_layer_is_torchs(kind: type[nn.GRU | nn.LSTM], kernel: str, monkeypatch) -> None:
    """Outputs, last states and all gradients, on sequences without a reset."""
    monkeypatch.setattr("newllm.model.kernels.FORCED", kernel)
    torch.manual_seed(0)
    block = GatedBlock(kind, 24)
    for parameter in block.rnn.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, 11, 24, requires_grad=True)
    states = [torch.randn(3, 24, requires_grad=True) for _ in range(1 + (kind is nn.LSTM))]
    leaves = [x, *states, *block.rnn.parameters()]
    ours, last = block.mix(x, states, Segments.cut(None, None, x.shape[:2]))
    first = [state[None] for state in states]
    theirs, their_last = block.rnn(x.transpose(0, 1), first[0] if len(first) == 1 else tuple(first))
    results = [[ours, *last]]
    parts = their_last if isinstance(their_last, tuple) else (their_last,)
    results.append([theirs.transpose(0, 1), *(part[0] for part in parts)])
    weights = [torch.randn_like(result) for result in results[0]]
    gradients = [
        torch.autograd.grad(sum((r * w).sum() for r, w in zip(rs, weights, strict=True)), leaves)  # type: ignore[arg-type]
        for rs in results
    ]
    for a, b in zip([*results[0], *gradients[0]], [*results[1], *gradients[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", PEERS)
def test_kernels_equal_plain_torch(architecture: str, dtype: torch.dtype, monkeypatch) -> None:
    """The whole model with carried states, resets and padding: values and gradients."""
    model = make_model(architecture)
    ids, reset = batch(4, 30)
    valid = torch.ones(4, 30, dtype=torch.bool)
    valid[1, :7] = valid[2, :] = False
    found = []
    for kernel in ("numba", "reference"):
        monkeypatch.setattr("newllm.model.kernels.FORCED", kernel)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            _, carried = model(*batch(4, 20)[:1])
            hidden, last = model(ids, carried, reset, valid)
        model.zero_grad()
        floats = [part for part in last.values() if part.is_floating_point()]
        (hidden.float().square().sum() + sum(part.float().sum() for part in floats)).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(gradients) == len(list(model.parameters()))
        found.append([hidden.detach(), *(part.detach() for part in floats), *gradients])
    for a, b in zip(*found, strict=True):
        error = (a.float() - b.float()).norm() / b.float().norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.05)


@given(seed=st.integers(0, 1000))
def test_min_gru_is_its_definition(seed: int) -> None:
    torch.manual_seed(seed)
    projected, bias, hidden = torch.randn(2, 9, 12), torch.randn(6), torch.randn(2, 6)
    reset, lengths = torch.rand(2, 9) < 0.2, torch.randint(0, 10, (2,))
    h, states = hidden, []
    for t in range(9):
        old = h * ~reset[:, t, None]
        z = torch.sigmoid(projected[:, t, :6] + bias)
        h = torch.where((t < lengths)[:, None], (1 - z) * old + z * projected[:, t, 6:], h)
        states.append(h)
    for dtype in (torch.float32, torch.float64):  # the kernel, and plain torch
        y, last = min_gru(projected.to(dtype), bias.to(dtype), reset, lengths, hidden.to(dtype))
        torch.testing.assert_close(last.float(), h)
        for sequence, length in enumerate(lengths.tolist()):
            expected = torch.stack(states, dim=1)[sequence, :length]
            torch.testing.assert_close(y[sequence, :length].float(), expected)


def test_a_token_sees_the_window_and_no_more() -> None:
    model = make_model("transformer", num_layers=1)
    ids, _ = batch(1, WINDOW + 20)
    whole, _ = model(ids)
    for place in (0, 5):
        other = ids.clone()
        other[0, place] = (other[0, place] + 1) % VOCAB
        changed = (model(other)[0] != whole).any(dim=2)[0]
        assert changed[place : place + WINDOW + 1].all()
        assert not changed[:place].any()
        assert not changed[place + WINDOW + 1 :].any()


def test_what_a_gpu_does_not_ask_for_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads all carried columns, those too that no sequence can see."""
    model = make_model("transformer")
    ids, reset = batch(3, 20)
    make = View.make.__func__  # type: ignore[attr-defined]

    def read() -> tuple[Tensor, dict[str, Tensor]]:
        _, state = model(ids[:, :9], reset=reset[:, :9])
        return model(ids[:, 9:], state, reset[:, 9:])

    def asking_for_nothing(cls: type[View], *given: Any) -> View:
        view = make(cls, *given)
        return view._replace(past=WINDOW, first=view.first + WINDOW - view.past)

    expected, after = read()
    monkeypatch.setattr(View, "make", classmethod(asking_for_nothing))
    found, state = read()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(state, after)


@pytest.mark.parametrize("kernel", ["numba", "reference"])
def test_long_texts_are_read_in_parts(kernel: str, monkeypatch) -> None:
    """More queries than are computed at once, with a full window carried and a reset within."""
    monkeypatch.setattr("newllm.model.kernels.FORCED", kernel)
    model = make_model("transformer")
    ids, reset = batch(2, 600)[0], torch.zeros(2, 600, dtype=torch.bool)
    reset[0, 290] = True
    whole, last = model(ids, None, reset)
    parts, state = [], None
    for start, stop in ((0, 270), (270, 271), (271, 600)):
        part, state = model(ids[:, start:stop], state, reset[:, start:stop])
        parts.append(part)
    assert state is not None
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)
    for name in last:
        torch.testing.assert_close(state[name], last[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", PEERS)
def test_state_is_plain_and_of_fixed_size(architecture: str) -> None:
    model = make_model(architecture)
    shapes = {name: part.shape for name, part in model.initial_state(3).items()}
    assert all(shape[1] == 3 for shape in shapes.values())
    for time in (0, 1, 300):
        hidden, state = model(torch.zeros(3, time, dtype=torch.long))
        assert hidden.shape == (3, time, 32)
        assert {name: part.shape for name, part in state.items()} == shapes


@pytest.mark.parametrize("architecture", PEERS)
def test_nothing_but_padding_leaves_the_state(architecture: str) -> None:
    model = make_model(architecture)
    ids, _ = batch(2, 6)
    _, carried = model(ids)
    hidden, state = model(ids, carried, None, torch.zeros(2, 6, dtype=torch.bool))
    assert not hidden.any()
    assert all(torch.equal(state[name], part) for name, part in carried.items())


@pytest.mark.parametrize("architecture", PEERS)
def test_a_split_batch_sees_the_same_dropout(architecture: str) -> None:
    model = make_model(architecture, dropout=0.5)
    ids, _ = batch(3, 8)
    whole, _ = model(ids, noise=Noise(1, 2))
    parts = [
        model(ids[sequence : sequence + 1], noise=Noise(1, 2, sequence))[0] for sequence in range(3)
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.equal(model(ids, noise=Noise(1, 3))[0], whole)
    model.eval()
    assert torch.equal(model(ids, noise=Noise(1, 2))[0], model(ids)[0])


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    ("architecture", "own"),
    [
        ("gru", lambda d, c, f: 6 * d * d + 6 * d + d),
        ("lstm", lambda d, c, f: 8 * d * d + 8 * d + d),
        ("mingru", lambda d, c, f: 3 * c * d + c + 2 * d * f + 2 * d),
        ("transformer", lambda d, c, f: 4 * c * d + 32 + 2 * d * f + 2 * d),
    ],
)
def test_parameters_are_what_the_formulas_say(architecture: str, own: Any, layers: int) -> None:
    widths = {"context_dim": 96, "embed_dim": 96, "hidden_dim": 56}
    settings = ModelSettings.model_validate(
        {"architecture": architecture, "num_layers": layers, "dropout": 0.0, **widths}
    )
    expected = VOCAB * 96 + 2 * 96 + layers * own(96, 96, 56)
    assert count_parameters(settings, VOCAB) == expected
    assert sum(p.numel() for p in build_model(settings, VOCAB).parameters()) == expected


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("architecture", ["context", "original", *PEERS])
def test_matched_widths_are_the_largest_that_fit(architecture: str, layers: int) -> None:
    def count(widths: dict[str, int]) -> int:
        named = {"architecture": architecture, "num_layers": layers, "dropout": 0.0}
        return count_parameters(ModelSettings.model_validate({**named, **widths}), 1000)

    target = 1_370_112
    widths = matched_widths(architecture, layers, 1000, target)
    assert 0.95 * target < count(widths) <= target
    assert all(width % 4 == 0 for width in widths.values())
    if architecture in ("gru", "lstm"):
        wider = {name: width + 8 for name, width in widths.items()}
    elif architecture == "original":
        wider = {**widths, "context_dim": widths["context_dim"] + 8}
        wider |= {"embed_dim": wider["context_dim"], "hidden_dim": 2 * wider["context_dim"]}
    else:
        wider = {**widths, "hidden_dim": widths["hidden_dim"] + 8}
    assert count(wider) > target
    flags = {"architecture": architecture, "num_layers": layers, **widths}
    assert resolve("dolly", flags).hidden_dim == widths["hidden_dim"]


@pytest.mark.parametrize("layers", [1, 2])
def test_a_table_of_pairs_is_part_of_the_budget(layers: int) -> None:
    widths = matched_widths("context", layers, 2048, 1_400_000, pairs=True)
    assert widths["pair_rows"] * 16 == pytest.approx(PAIR_SHARE * 1_400_000, rel=0.01)
    named = {"num_layers": layers, **widths}
    assert 1_350_000 < count_parameters(ModelSettings.model_validate(named), 2048) <= 1_400_000
    assert "pair_rows" not in matched_widths("gru", layers, 2048, 1_400_000, pairs=True)


def test_no_shape_is_small_enough() -> None:
    with pytest.raises(UserError, match="more than 100 parameters"):
        matched_widths("gru", 1, 1000, 100)


@pytest.mark.parametrize("architecture", PEERS)
def test_a_peer_has_sensible_defaults_and_a_name(architecture: str) -> None:
    settings = resolve("dolly", {"architecture": architecture, "num_layers": 1})
    context = resolve("dolly", {"num_layers": 1, "pair_rows": 0})
    assert settings.embed_dim == context.embed_dim
    assert architecture == "mingru" or settings.context_dim == settings.embed_dim
    assert settings.learning_rate == context.learning_rate
    assert settings.run_name == f"new_llm_dolly_layers1_{architecture}_bpe"
    again = resolve("dolly", settings.model_dump())
    assert again == settings
    narrow = resolve("dolly", {"architecture": architecture, "context_dim": 64})
    assert narrow.embed_dim == (96 if architecture == "mingru" else 64)


def test_impossible_widths_are_refused() -> None:
    with pytest.raises(UserError, match="one width"):
        resolve("dolly", {"architecture": "gru", "context_dim": 64, "embed_dim": 96})
    with pytest.raises(UserError, match="multiple of 16"):
        resolve("dolly", {"architecture": "transformer", "context_dim": 100})
