"""The rate over a run is tested with the loop; here is when dropout sets in."""

from __future__ import annotations

import pytest
import torch

from newllm.model import build_model
from newllm.model.kernels import Noise
from newllm.model.spec import EPOCHS_UNREGULARISED, find_spec


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
        model.set_dropout(find_spec(architecture).dropout_at(epoch, settings.dropout))
        drops = architecture == "original" or epoch >= EPOCHS_UNREGULARISED
        assert torch.equal(read(1), read(2)) != drops
