"""A tiny model with recall and counts, its random weights far from the initial ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch

from newllm.data.render import ChatRenderer
from newllm.data.tokenizers import BPE
from newllm.inference.decoder import Decoder, Stream
from newllm.model import ContextLM, build_model
from tests.untrained import count_something


@pytest.fixture
def renderer() -> ChatRenderer:
    return ChatRenderer(BPE.train(["some words, and some more words"], 290))


@pytest.fixture
def model(renderer: ChatRenderer, tiny_model_settings) -> ContextLM:
    torch.manual_seed(1)
    settings = tiny_model_settings(recall_slots=64, counts=20_000)
    model = build_model(settings, renderer.tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    count_something(model)
    assert isinstance(model, ContextLM)
    return model.eval()


@dataclass
class Read:
    """What a conversation reads, prompts and answers."""

    tokens: list[int] = field(default_factory=list)
    edges: list[int] = field(default_factory=list)
    """Where answers begin and end, one after the other."""

    def again(self, decoder: Decoder) -> Stream:
        """A text that has read the same, and copied as little from its own answers."""
        stream = Stream(decoder)
        edges = pairwise([0, *self.edges, len(self.tokens)])
        for number, (start, stop) in enumerate(edges):
            if number % 2 == 0:
                stream.read(self.tokens[start:stop])
                continue
            stream.begin_answer()
            for token in self.tokens[start:stop]:
                stream.read([token])
            stream.end_answer()
        return stream


@pytest.fixture
def read(monkeypatch) -> Read:
    """What the one conversation of a test reads from here on."""
    read = Read()

    class Recording(Stream):
        def read(self, ids) -> None:
            read.tokens.extend(ids)
            super().read(ids)

        def begin_answer(self) -> None:
            read.edges.append(len(read.tokens))
            super().begin_answer()

        def end_answer(self) -> None:
            read.edges.append(len(read.tokens))
            super().end_answer()

    monkeypatch.setattr("newllm.chat.session.Stream", Recording)
    return read
