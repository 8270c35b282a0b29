"""What is minimised so that preferred answers become likelier than rejected ones.

All three take the nats (-ln p) of the answers of P pairs, and say what to minimise a pair:

    simpo   -ln sigmoid(beta (m_c - m_r) - gamma)
    dpo     -ln sigmoid(beta ((l_c - ref_c) - (l_r - ref_r)))
    orpo    -beta ln sigmoid(odds(m_c) - odds(m_r))

(Meng et al. 2024, arXiv:2405.14734; Rafailov et al. 2023, arXiv:2305.18290; Hong et al. 2024,
arXiv:2403.07691) with l the log-likelihood of an answer, m = l / tokens its mean over tokens, ref
that of the model before training, and odds(m) = ln(e^m / (1 - e^m)). ORPO's other term, the
ordinary loss of the chosen answer, is the anchor that all have here (:mod:`newllm.train.prefer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.errors import UserError

Method = Literal["simpo", "dpo", "orpo"]
METHODS: tuple[str, ...] = get_args(Method)

BETA = {"simpo": 2.0, "dpo": 0.1, "orpo": 0.5}
"""Where nothing is said: of each paper's usual range."""

_SURE = -1e-6
"""Mean log-likelihood above which odds are taken as its: certainty has none."""


@dataclass(frozen=True)
class Preferring:
    """How a model is taught what people preferred."""

    method: Method = "simpo"
    beta: float | None = None
    """How much a difference counts; None: `BETA`."""
    gamma: float = 0.5
    """SimPO: by how much the chosen answer should be ahead, beta included."""
    anchor: float = 1.0
    """Weight of the ordinary loss of the chosen dialogues, in nats a token."""

    def __post_init__(self) -> None:
        """Decide beta.

        Raises:
            UserError: there is no such method, or a number is out of range.
        """
        if self.method not in METHODS:
            raise UserError(f"--method {self.method}: there are {', '.join(METHODS)}")
        if self.beta is None:
            object.__setattr__(self, "beta", BETA[self.method])
        if not self.beta or self.beta < 0 or self.gamma < 0 or self.anchor < 0:
            raise UserError("--beta must be above 0, --gamma and --anchor not below it")

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the model before training."""
        return self.method == "dpo"

    def loss(self, nats: Tensor, tokens: Tensor, reference: Tensor | None = None) -> Tensor:
        """What to minimise for each pair, [P].

        Args:
            nats: of the answers, [P, 2], chosen first.
            tokens: of the answers, [P, 2].
            reference: nats by the model before training, [P, 2], for DPO.
        """
        assert self.beta is not None
        if self.method == "dpo":
            assert reference is not None, "DPO compares with the model before training"
            gained = reference - nats
            return -F.logsigmoid(self.beta * (gained[:, 0] - gained[:, 1]))
        mean = -nats / tokens
        if self.method == "simpo":
            return -F.logsigmoid(self.beta * (mean[:, 0] - mean[:, 1]) - self.gamma)
        mean = mean.clamp(max=_SURE)
        odds = mean - torch.log(-torch.expm1(mean))
        return -self.beta * F.logsigmoid(odds[:, 0] - odds[:, 1])
