"""Each loss of preferences and its gradient, against the formula of its paper in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from newllm.errors import UserError
from newllm.train.preference_loss import METHODS, Preferring

NATS = [[12.5, 30.25], [80.0, 9.5], [3.0, 3.5], [0.4, 60.0]]
TOKENS = [[5, 9], [40, 2], [3, 3], [4, 20]]
REFERENCE = [[11.0, 28.0], [90.0, 9.0], [3.0, 3.25], [0.5, 61.0]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_paper(options: Preferring, pair: int, nats: list[float]) -> float:
    """-ln p of the chosen and the rejected answer -> the loss of one pair."""
    beta = options.beta
    assert beta is not None
    (log_w, log_l), (size_w, size_l) = (-nats[0], -nats[1]), TOKENS[pair]
    if options.method == "simpo":  # arXiv:2405.14734, equation 6
        return -math.log(sigmoid(beta / size_w * log_w - beta / size_l * log_l - options.gamma))
    if options.method == "dpo":  # arXiv:2305.18290, equation 7
        ref_w, ref_l = (-x for x in REFERENCE[pair])
        return -math.log(sigmoid(beta * (log_w - ref_w) - beta * (log_l - ref_l)))
    # arXiv:2403.07691, equations 3, 4 and 7; P is the geometric mean over the tokens
    p_w, p_l = math.exp(log_w / size_w), math.exp(log_l / size_l)
    odds_w, odds_l = p_w / (1 - p_w), p_l / (1 - p_l)
    return -beta * math.log(sigmoid(math.log(odds_w / odds_l)))


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_are_those_of_the_paper(method: str) -> None:
    options = Preferring(method)  # type: ignore[arg-type]
    nats = torch.tensor(NATS, dtype=torch.float64, requires_grad=True)
    reference = torch.tensor(REFERENCE, dtype=torch.float64)
    losses = options.loss(nats, torch.tensor(TOKENS), reference)
    (gradient,) = torch.autograd.grad(losses.sum(), nats)
    for pair, of_pair in enumerate(NATS):
        assert losses[pair].item() == pytest.approx(by_paper(options, pair, of_pair), rel=1e-9)
        for side in (0, 1):
            step = 1e-5
            shifted = [[x + sign * step * (n == side) for n, x in enumerate(of_pair)]
                       for sign in (1, -1)]  # fmt: skip
            above, below = (by_paper(options, pair, moved) for moved in shifted)
            expected = (above - below) / (2 * step)
            assert gradient[pair, side].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert bool((gradient[:, 0] > 0).all()), "a likelier chosen answer costs less"
    assert bool((gradient[:, 1] < 0).all()), "a likelier rejected answer costs more"


def test_orpo_of_a_certain_answer_is_finite() -> None:
    nats = torch.tensor([[0.0, 5.0]], requires_grad=True)
    loss = Preferring("orpo").loss(nats, torch.tensor([[4, 4]]))
    loss.sum().backward()
    assert nats.grad is not None
    assert bool(torch.isfinite(loss).all() and torch.isfinite(nats.grad).all())


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="--method ppo: there are simpo, dpo, orpo"):
        Preferring("ppo")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--beta must be above 0"):
        Preferring(beta=0.0)
    with pytest.raises(UserError, match="--anchor not below"):
        Preferring(anchor=-1.0)
