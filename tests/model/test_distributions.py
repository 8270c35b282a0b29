"""Every distribution sums to one within 1e-6 in fp32, whoever computes it.

Not of a softmax, which makes a sum of one out of anything: of what each token by itself is said to
have. A loss says it of its target, so all tokens are targets in turn. Counts leave the logits of
what did not follow as they are, so that with them it is exp(logit - total), where the total follows
from the logits without counts and from what the known contexts leave.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from newllm.inference.decoder import Decoder, FusedDecoder, ModuleDecoder, make_decoder
from newllm.model.trunk import TrunkOutput
from tests.model.test_counts import VOCAB, ids_of, model_of

ARCHITECTURES = ["context", "gru", "lstm", "mingru", "transformer"]
TOLERANCE = 1e-6


def assert_sum_to_one(logits: Any, alone: Any, model: Any, said: Any) -> None:
    """Of N positions: fp32 logits [N, V], and those of the same implementation without counts."""
    logits, alone = torch.as_tensor(logits), torch.as_tensor(alone)
    assert logits.dtype == alone.dtype == torch.float32
    left = model.counts.trust(said.hidden, said.contexts)[1]
    total = alone.double().logsumexp(-1) - left.double().log().sum(-1)
    sums = (logits.double() - total[:, None]).exp().sum(-1)
    assert float((sums - 1).abs().max()) < TOLERANCE


def assert_steps_sum_to_one(decoder: Decoder, alone: Decoder, model: Any) -> None:
    """Of two decoders, with counts and without."""
    said, ids = read(model, 1, 30), ids_of(1, 30)[0].tolist()

    def stepped(decoder: Decoder) -> np.ndarray:
        slot = decoder.add()
        return np.concatenate([decoder.step([slot], [token]).copy() for token in ids])

    assert_sum_to_one(stepped(decoder), stepped(alone), model, said)


def read(model: Any, *shape: int) -> Any:
    """What a model makes of a text: all positions in a row, most in contexts that it counted."""
    said = model(ids_of(*shape))[0].flat()
    assert isinstance(said, TrunkOutput)
    assert said.contexts is not None
    assert bool((said.contexts >= 0).float().mean() > 0.3)
    return said


def each(said: Any, position: int) -> tuple[Any, Tensor]:
    """One position once for each token, and the tokens."""
    return said[torch.full((VOCAB,), position)], torch.arange(VOCAB)


@pytest.fixture(params=["numba", "reference"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("newllm.model.kernels.FORCED", request.param)
    return request.param


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("recall", [0, 64])
@torch.no_grad()
def test_of_the_model(architecture: str, recall: int, kernel: str) -> None:
    """By its logits, by the loss and by the scores of evaluation."""
    model = model_of(architecture, recall_slots=recall)
    said = read(model, 2, 30)
    assert_sum_to_one(model.logits(said), model.without_counts().logits(said), model, said)
    for position in range(0, len(said.hidden), 7):
        same, every = each(said, position)
        of_loss = [model.loss(same[t : t + 1], every[t : t + 1]) for t in range(VOCAB)]
        assert float(torch.stack(of_loss).neg().exp().sum()) == pytest.approx(1, abs=TOLERANCE)
        scores = model.token_scores(same, every)
        for nats in (scores.nats, scores.without_counts):
            assert float(nats.neg().exp().sum()) == pytest.approx(1, abs=TOLERANCE)
        alone = model.without_counts().token_scores(same, every)
        assert float(alone.nats.neg().exp().sum()) == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("recall", [0, 64])
@pytest.mark.parametrize("usual", [True, False])
@torch.no_grad()
def test_of_a_decoders_steps(architecture: str, recall: int, usual: bool) -> None:
    """The fused step of `context`; the module's, step by step, of all."""
    model = model_of(architecture, recall_slots=recall)
    make = make_decoder if usual else ModuleDecoder
    decoders = make(model), make(model.without_counts())
    assert isinstance(decoders[0], FusedDecoder) == (usual and architecture == "context")
    assert_steps_sum_to_one(*decoders, model)
