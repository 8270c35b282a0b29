"""The rate over a run is tested with the loop; here is when dropout and decay set in."""

from __future__ import annotations

import pytest
import torch

from newllm.model import build_model
from newllm.model.kernels import Noise
from newllm.model.spec import EPOCHS_UNREGULARISED
from newllm.settings import resolve
from newllm.train.optimizers import VECTOR_RATE
from newllm.train.schedule import (
    PAIR_DECAY,
    decay_pairs,
    decays_pairs,
    pair_decay_amount,
    set_dropout,
)


@pytest.mark.parametrize("architecture", ["context", "gru", "original"])
def test_dropout_sets_in_when_rows_are_read_again(tiny_model_settings, architecture: str) -> None:
    shape = {"context_dim": 8, "embed_dim": 8, "hidden_dim": 8}
    settings = tiny_model_settings(architecture=architecture, dropout=0.5, **shape)
    torch.manual_seed(0)
    model = build_model(settings, 40).train()
    ids = torch.arange(4, 24)[None]

    def read(step: int) -> torch.Tensor:
        return model(ids, noise=Noise(0, step))[0]

    for epoch in range(EPOCHS_UNREGULARISED + 2):
        set_dropout(model, epoch)
        drops = architecture == "original" or epoch >= EPOCHS_UNREGULARISED
        assert torch.equal(read(1), read(2)) != drops


def test_the_table_of_pairs_fades_from_the_third_epoch_on() -> None:
    settings = resolve("dolly", {"context_dim": 16, "pair_rows": 40})
    model = build_model(settings.model_settings(), 50)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    assert [decays_pairs(epoch) for epoch in range(4)] == [False, False, True, True]
    decay_pairs(model, pair_decay_amount(settings, 0.5))
    kept = 1 - 0.5 * settings.learning_rate * VECTOR_RATE * PAIR_DECAY
    for name, parameter in model.named_parameters():
        expected = kept if name == "pairs.table" else 1.0
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected))
    fast = settings.model_copy(update={"learning_rate": 1.0})  # fades to nothing, not beyond
    decay_pairs(model, pair_decay_amount(fast, 1.0))
    assert not model.get_parameter("pairs.table").any()
    without = resolve("dolly", {"context_dim": 16, "tokenizer": "word1000"})
    decay_pairs(build_model(without.model_settings(), 50), 0.5)  # nothing to fade
