"""A tiny model that was never trained, far from initialization, and the renderer that goes with it."""

from __future__ import annotations

import pytest
import torch

from newllm.data.render import ChatRenderer
from newllm.data.tokenizers import BPE
from newllm.model import ContextLM, build_model


@pytest.fixture
def renderer() -> ChatRenderer:
    return ChatRenderer(BPE.train(["some words, and some more words"], 290))


@pytest.fixture
def model(renderer: ChatRenderer, tiny_model_settings) -> ContextLM:
    torch.manual_seed(1)
    model = build_model(tiny_model_settings(), renderer.tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    assert isinstance(model, ContextLM)
    return model.eval()
