"""The fused step: equal to the module, slot by slot, in any order and company."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from newllm.config import ModelSettings
from newllm.model import ContextLM, State, build_model
from newllm.model.context.decode import ContextSlots, can_step
from newllm.model.quantize import RoundedLM, int8_rows, rounded
from tests.untrained import count_something

VOCAB = 130


def make_model(context_dim: int = 48, **changes: Any) -> ContextLM:
    """Widths that are no whole number of vectors, weights far from the initial ones."""
    shape: dict[str, Any] = {"num_layers": 2, "embed_dim": 40, "hidden_dim": 72, "pair_rows": 50}
    shape |= {"recall_slots": 64, "counts": 20_000, **changes}
    torch.manual_seed(0)
    model = ContextLM(ModelSettings(context_dim=context_dim, **shape), VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    count_something(model)
    return model.eval()


@torch.inference_mode()
def read(model: ContextLM, tokens: list[int], state: State | None) -> tuple[np.ndarray, State]:
    """Logits [V] after the tokens, and the state, by the module."""
    hidden, after = model(torch.tensor([tokens]), state)
    return model.logits(hidden[0, -1]).numpy(), after


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("slots", [1, 2, 7])
def test_equals_the_module(layers: int, slots: int) -> None:
    """100 steps; every now and then a slot ends and another begins, in the middle of a text."""
    model = make_model(num_layers=layers)
    random = np.random.default_rng(slots)
    side_by_side = ContextSlots(model)
    states: dict[int, State | None] = {side_by_side.add(): None for _ in range(slots)}
    for number in range(100):
        chosen = random.permutation(list(states))[: random.integers(1, slots + 1)].tolist()
        tokens = random.integers(0, VOCAB, len(chosen)).tolist()
        logits = side_by_side.step(chosen, tokens)
        assert logits.shape == (len(chosen), VOCAB)
        for row, slot, token in zip(logits, chosen, tokens, strict=True):
            expected, states[slot] = read(model, [token], states[slot])
            assert_close(row, expected)
        if number % 10 == 9:
            slot = chosen[0]
            after = states.pop(slot)
            assert after is not None
            for name, part in side_by_side.state(slot).items():
                torch.testing.assert_close(part, after[name], rtol=1e-4, atol=1e-4)
            side_by_side.remove(slot)
            begin = [None, read(model, [3, 1, 4], None)[1], after][number // 10 % 3]
            states[side_by_side.add(begin)] = begin


@pytest.mark.parametrize("recall_slots", [0, 64])
@pytest.mark.parametrize("counts", [0, 20_000])
@pytest.mark.parametrize("pair_rows", [0, 64])
@pytest.mark.parametrize("context_dim", [64, 48])  # groups of 64 and of 16 channels
def test_equals_the_module_for_other_shapes(
    context_dim: int, pair_rows: int, counts: int, recall_slots: int
) -> None:
    model = make_model(context_dim, pair_rows=pair_rows, counts=counts, recall_slots=recall_slots)
    slots, state = ContextSlots(model), None
    slot = slots.add()
    for token in (*range(7), *range(13)):
        expected, state = read(model, [token], state)
        assert_close(slots.step([slot], [token])[0], expected)


@given(cuts=st.lists(st.integers(1, 30), max_size=6), seed=st.integers(0, 100))
def test_module_and_steps_go_on_from_each_other(cuts: list[int], seed: int) -> None:
    model = make_model()
    tokens = np.random.default_rng(seed).integers(0, VOCAB, 31).tolist()
    slots, edges = ContextSlots(model), sorted({0, 31, *cuts})
    slot, logits, state = slots.add(), np.zeros(0), None
    for number, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        if number % 2:
            logits, state = read(model, tokens[start:stop], slots.state(slot))
            slots.set_state(slot, state)
        else:
            for token in tokens[start:stop]:
                logits = slots.step([slot], [token])[0]
    whole, last = read(model, tokens, None)
    assert_close(logits, whole)
    for name, part in slots.state(slot).items():
        torch.testing.assert_close(part, last[name], rtol=1e-4, atol=1e-4)


def test_a_slot_does_not_depend_on_its_company() -> None:
    """To the bit, also when one of the others has gone mad."""
    model = make_model()
    alone, together = ContextSlots(model), ContextSlots(model, 7)
    single = alone.add()
    mad = {
        name: part * torch.nan if part.is_floating_point() else part
        for name, part in model.initial_state(1).items()
    }
    together.add(mad)
    numbers = [together.add() for _ in range(6)]
    for token in range(30):
        expected = alone.step([single], [token])[0]
        others = [slot for slot in numbers if (slot * token) % 3 == 0]
        company = [0, *(slot for slot in others if slot != 4), 4]
        logits = together.step(company, [*(7 for _ in company[1:]), token])
        assert np.array_equal(logits[-1], expected)
    together.remove(0)
    new = ContextSlots(model)
    assert np.array_equal(together.step([together.add()], [5]), new.step([new.add()], [5])), (
        "nothing of the mad slot is left"
    )


def test_a_state_taken_or_given_is_a_copy() -> None:
    model = make_model()
    slots = ContextSlots(model)
    given_state = read(model, [1, 2], None)[1]
    before = {name: part.clone() for name, part in given_state.items()}
    slot = slots.add(given_state)
    taken = slots.state(slot)
    slots.step([slot], [3])
    for name, part in before.items():
        assert torch.equal(given_state[name], part)
        assert torch.equal(taken[name], part)
        assert not torch.equal(slots.state(slot)[name], part)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_small_weights_agree_with_the_rounded_model(weights) -> None:
    original = make_model()
    before = copy.deepcopy(original.state_dict())
    model = RoundedLM(original, weights)
    assert all(torch.equal(before[name], part) for name, part in original.state_dict().items())
    slots, plain = ContextSlots(model), ContextSlots(original)
    numbers = [slots.add() for _ in range(3)]
    single, state = plain.add(), None
    exact = expected = np.zeros(0)
    for token in range(60):
        expected, state = read(model, [token], state)
        for row in slots.step(numbers, [token] * 3):
            assert_close(row, expected)
        exact = plain.step([single], [token])[0]
    assert 1e-4 < np.abs(exact - expected).max() / np.abs(exact).max() < 0.3


def test_int8_rows_are_the_nearest_codes() -> None:
    matrix = torch.randn(20, 33, generator=torch.Generator().manual_seed(0))
    matrix[3] = 0
    matrix[4] = -matrix[4].abs()
    matrix[5] *= 1e-30
    codes, scales = int8_rows(matrix)
    error = (codes * scales[:, None] - matrix).abs()
    assert bool((error <= 0.5001 * scales[:, None]).all())
    used = codes.abs().amax(dim=1)
    assert used[3] == 0
    assert bool((used[[*range(3), *range(4, 20)]] == 127).all())
    again, same_scales = int8_rows(rounded(matrix, "int8"))
    assert torch.equal(again, codes)
    torch.testing.assert_close(same_scales, scales, rtol=1e-6, atol=0)


def test_weights_that_change_are_packed_again() -> None:
    def first_logits(model: ContextLM) -> np.ndarray:
        slots = ContextSlots(model)
        return slots.step([slots.add()], [9])[0]

    model = make_model()
    before = first_logits(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # leaves no trace in the parameters' versions
    trained = first_logits(model)
    assert_close(trained, read(model, [9], None)[0])
    assert np.abs(trained - before).max() > 0.1
    frozen = make_model().requires_grad_(False)
    assert np.array_equal(first_logits(frozen), before)
    frozen.load_state_dict(model.state_dict())
    assert np.array_equal(first_logits(frozen), trained)


def test_weights_are_packed_once() -> None:
    slots = ContextSlots(make_model())
    first = slots.add()
    other = slots.empty_copy()
    assert other._weights is slots._weights
    assert np.array_equal(slots.step([first], [9]), other.step([other.add()], [9]))
    assert slots.step([first], [9]) is not other.step([0], [9]), "each has buffers of its own"


@pytest.mark.parametrize(
    ("slots", "tokens"),
    [([1], [0]), ([0, 0], [1, 2]), ([-1], [0]), ([0], [VOCAB]), ([0], [-1]), ([2], [0])],
)
def test_wrong_slots_and_tokens_are_refused(slots: list[int], tokens: list[int]) -> None:
    side_by_side = ContextSlots(make_model(), 3)
    for _ in range(2):
        side_by_side.add()
    side_by_side.remove(1)
    with pytest.raises(IndexError):
        side_by_side.step(slots, tokens)
    with pytest.raises(ValueError, match="2 tokens for 1 slots"):
        side_by_side.step([0], [1, 2])


def test_where_the_module_has_to_do_it(tiny_model_settings, monkeypatch) -> None:
    assert can_step(make_model())
    assert not can_step(make_model().double())
    assert not can_step(build_model(tiny_model_settings(architecture="original"), 50))
    drops = ContextLM(tiny_model_settings(dropout=0.1), 50)
    assert not can_step(drops.train())
    assert can_step(drops.eval())
    monkeypatch.setattr("newllm.model.kernels.FORCED", "reference")
    assert not can_step(make_model())


def test_no_slots_no_logits() -> None:
    slots = ContextSlots(make_model(), 0)
    assert slots.step([], []).shape == (0, VOCAB)
    assert slots.add() == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tokens() -> None:
    slots = ContextSlots(make_model(num_layers=1))
    slot = slots.add()
    token, before = 0, 0
    for number in range(100_000):
        token = int(slots.step([slot], [token])[0].argmax())
        before = psutil.Process().memory_info().rss if number == 1000 else before
    assert psutil.Process().memory_info().rss < before + 1e6
