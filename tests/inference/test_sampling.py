"""Drawing a token: the distribution of a plain torch version, by sorting; same seed, same draws."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from newllm.inference.nucleus import draw, work_space
from newllm.inference.sampler import PENALTY_WINDOW, Sampler, Sampling, likeliest

GRID = 2000
NONE = np.empty(0, np.int64)


def free(*arguments: Any, **options: Any) -> Sampling:
    """Without a penalty: what is drawn does not depend on what was drawn before."""
    return Sampling(*arguments, repetition_penalty=1, **options)


def plain(logits: np.ndarray, forbidden: list[int], temperature: float, top_p: float) -> np.ndarray:
    """Probability of every token, [V] float64."""
    scores = torch.from_numpy(logits).double()
    scores[forbidden] = -torch.inf
    probabilities = torch.softmax(scores / temperature, dim=-1)
    ordered, order = probabilities.sort(descending=True, stable=True)
    # Keep a token while those before it have not reached the share.
    ordered[ordered.cumsum(0) - ordered >= top_p] = 0
    return torch.zeros_like(ordered).scatter(0, order, ordered / ordered.sum()).numpy()


def drawn(logits: np.ndarray, forbidden: list[int], temperature: float, top_p: float) -> np.ndarray:
    """The same, from the tokens drawn with evenly spread random numbers."""
    counts = np.zeros(len(logits))
    space = work_space(len(logits))
    ids = np.array(forbidden, np.int64)
    for number in range(GRID):
        uniform = (number + 0.5) / GRID
        token = draw(logits, ids, NONE, np.float32(1), np.float32(temperature), np.float32(top_p),
                     uniform, *space)  # fmt: skip
        counts[token] += 1
    return counts / GRID


@given(
    size=st.sampled_from([1, 2, 63, 64, 65, 300, 1000]),
    spread=st.floats(0.1, 8),
    temperature=st.floats(0.2, 3),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]),
    seed=st.integers(0, 1000),
)
def test_the_distribution_is_the_plain_one(size, spread, temperature, top_p, seed) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, spread, size).astype(np.float32)
    forbidden = random.permutation(size)[: size // 4].tolist()
    wanted = plain(logits, forbidden, temperature, top_p)
    got = drawn(logits, forbidden, temperature, top_p)
    # A token's share of an even grid is off by less than one point at each of its ends.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1.01 / GRID)
    assert not got[wanted == 0].any()


@pytest.mark.parametrize(
    ("probabilities", "top_p", "kept"),
    [
        ([0.5, 0.25, 0.125, 0.125], 0.5, {0}),  # exactly reached: the next one is left out
        ([0.5, 0.25, 0.125, 0.125], 0.51, {0, 1}),
        ([0.125, 0.25, 0.125, 0.5], 0.75, {1, 3}),
        ([0.125, 0.25, 0.125, 0.5], 0.8, {0, 1, 3}),  # of equal tokens, those with low ids
        ([0.25] * 4, 0.5, {0, 1}),
        ([0.25] * 4, 0.6, {0, 1, 2}),
        ([0.25] * 4, 1e-6, {0}),
        ([1.0, 1e-30, 1e-30, 0], 0.999999, {0}),
    ],
)
def test_the_nucleus(probabilities, top_p, kept) -> None:
    with np.errstate(divide="ignore"):
        logits = np.log(np.array(probabilities)).astype(np.float32)
    assert set(np.flatnonzero(drawn(logits, [], 1.0, top_p))) == kept


def test_the_frequencies_are_the_probabilities() -> None:
    logits = np.random.default_rng(0).normal(0, 2, 50).astype(np.float32)
    sampler = Sampler(free(0.8, 0.9, seed=1), [2, 3])
    tokens = [sampler.draw(logits) for _ in range(20_000)]
    wanted = plain(logits, [2, 3], 0.8, 0.9)
    error = np.bincount(tokens, minlength=50) / 20_000 - wanted
    assert (np.abs(error) <= 5 * np.sqrt(wanted / 20_000)).all()


def test_same_seed_same_draws() -> None:
    logits = np.random.default_rng(0).normal(0, 2, 500).astype(np.float32)
    texts = []
    for seed in (1, 1, 2, None, None):
        sampler = Sampler(free(1.0, 0.95, seed), [])
        texts.append([sampler.draw(logits) for _ in range(50)])
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts}) == 4


def test_temperature_zero_takes_the_likeliest_allowed() -> None:
    logits = np.array([-3, 4, 9, 4, -np.inf, 8.5], np.float32)
    before = logits.copy()
    sampler = Sampler(free(temperature=0, top_p=0.5), [2])
    assert sampler.draw(logits) == 5
    assert sampler.draw(logits, (5,)) == 1, "of equal ones the first"
    assert sampler.draw(logits, (5, 1)) == 3
    assert sampler.draw(-np.abs(logits)) == 0
    assert np.array_equal(logits, before)


def test_a_sampler_serves_vocabularies_of_any_size() -> None:
    sampler = Sampler(free(1.0, 1.0, seed=0), [])
    for size in (300, 3, 70):
        logits = np.zeros(size, np.float32)
        assert {sampler.draw(logits) for _ in range(20 * size)} == set(range(size))


@pytest.mark.parametrize("temperature", [1e-30, 1e-5])
def test_cold_is_nearly_zero(temperature: float) -> None:
    logits = np.array([1e4, -1e30, 1.0001e4, 3e38, 0], np.float32)
    sampler = Sampler(free(temperature, 1.0, seed=0), [3])
    assert {sampler.draw(logits) for _ in range(20)} == {2}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("logits", [[np.nan, 1, 2], [0, 1, np.nan], [-np.inf] * 3])
def test_no_token_is_invented(temperature: float, logits: list[float]) -> None:
    sampler = Sampler(free(temperature, 0.9, seed=0), [1])
    with pytest.raises(FloatingPointError, match="not finite"):
        sampler.draw(np.array(logits, np.float32))


def test_everything_forbidden_is_an_error() -> None:
    with pytest.raises(FloatingPointError):
        Sampler(Sampling(), [0, 1]).draw(np.zeros(2, np.float32))


def test_the_repetition_penalty() -> None:
    """What was written lately gets less likely, once, and only in the same answer."""
    logits = np.array([2.0, 1.5, -1.0, -1.2], np.float32)
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.5), [])
    assert [sampler.draw(logits) for _ in range(4)] == [0, 1, 0, 0], "2 / 1.5 twice would be 0.89"
    sampler.begin_answer()
    assert [sampler.draw(logits) for _ in range(2)] == [0, 1]
    negative = Sampler(Sampling(temperature=0, repetition_penalty=1.5), [0, 1])
    assert [negative.draw(logits) for _ in range(2)] == [2, 3], "-1 becomes -1.5"


def test_the_penalty_forgets() -> None:
    size = PENALTY_WINDOW + 3
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1e6), [])
    logits = np.linspace(2, 1, size).astype(np.float32)
    tokens = [sampler.draw(logits) for _ in range(3 * size)]
    assert tokens[:size] == [*range(PENALTY_WINDOW + 1), 0, 1]
    assert all(tokens[i] not in tokens[i - 60 : i] for i in range(60, len(tokens)))


@pytest.mark.parametrize("seed", [None, 4])
def test_a_sampler_goes_on_where_another_stopped(seed) -> None:
    logits = np.random.default_rng(0).normal(0, 2, 500).astype(np.float32)
    first = Sampler(free(1.0, 0.95, seed), [])
    for _ in range(5):
        first.draw(logits)
    second = Sampler(free(1.0, 0.95, seed), [], first.rng_state)
    assert [first.draw(logits) for _ in range(20)] == [second.draw(logits) for _ in range(20)]
    assert first.rng_state == second.rng_state


def _drawn(sampling: Sampling, scores: list[float], count: int = 400) -> Counter[int]:
    sampler = Sampler(sampling, [])
    logits = np.array(scores, np.float32)
    tokens: Counter[int] = Counter()
    for _ in range(count):
        sampler.begin_answer()
        tokens[sampler.draw(logits)] += 1
    return tokens


@given(
    scores=st.lists(st.sampled_from([-np.inf, -2.0, 0.0, 0.5, 3.0]), min_size=1, max_size=30),
    count=st.integers(0, 35),
)
def test_the_likeliest_are_those_of_a_whole_sort(scores: list[float], count: int) -> None:
    expected = sorted(range(len(scores)), key=lambda i: -scores[i])[:count]
    assert likeliest(np.array(scores), count).tolist() == expected


def test_top_k_and_min_p() -> None:
    plain = {"temperature": 1.0, "top_p": 1.0, "seed": 0, "repetition_penalty": 1.0}
    scores = [2.0, 1.0, 0.5, -1.0]
    assert set(_drawn(Sampling(**plain, top_k=2), scores)) == {0, 1}
    assert set(_drawn(Sampling(**plain, top_k=9), scores)) == {0, 1, 2, 3}
    # exp(0.5 - 2) = 0.22, exp(1 - 2) = 0.37 of the likeliest one's probability
    assert set(_drawn(Sampling(**plain, min_p=0.3), scores)) == {0, 1}
    assert set(_drawn(Sampling(**plain, min_p=0.2), scores)) == {0, 1, 2}
    drawn = _drawn(Sampling(**plain, top_k=2), scores, 4000)
    assert drawn[0] / 4000 == pytest.approx(1 / (1 + np.exp(-1)), abs=0.03)


def test_penalties_of_what_was_said() -> None:
    greedy: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 1.0}
    logits = np.array([1.0, 0.75, 0.5], np.float32)

    def said(**penalty: Any) -> list[int]:
        sampler = Sampler(Sampling(**greedy, **penalty), [])
        return [sampler.draw(logits) for _ in range(6)]

    assert said() == [0] * 6
    assert said(presence_penalty=0.3) == [0, 1, 0, 0, 0, 0]
    assert said(frequency_penalty=0.3) == [0, 1, 0, 2, 1, 0]
    assert said(frequency_penalty=-1.0) == [0] * 6


def test_values_out_of_all_proportion() -> None:
    """A forged file's temperature: any finite one draws something."""
    for sampling in (Sampling(1e308, 1.0, 0), Sampling(1.0, 1.0, 0, 1e308)):
        sampler = Sampler(sampling, [1])
        assert all(sampler.draw(np.array([5.0, 9.0, -5.0], np.float32)) != 1 for _ in range(20))
