"""Many answers at once are the answers one by one."""

from __future__ import annotations

import pytest
import torch

from newllm.chat.session import ChatSession
from newllm.data.render import ChatRenderer
from newllm.data.tokenizers import BPE
from newllm.inference.decoder import make_decoder
from newllm.inference.greedy import Answer, greedy_answers
from newllm.inference.sampling import Sampling
from newllm.model import LanguageModel, build_model

QUESTIONS = ["a", "some words", "some more words, and more words still " * 9, "words?", "more"]
LIMIT = 30


@pytest.fixture
def renderer() -> ChatRenderer:
    return ChatRenderer(BPE.train(["some words, and some more words"], 290))


def talkative(settings, vocab_size: int) -> LanguageModel:
    """A model whose answers differ, and some of which end."""
    torch.manual_seed(3)
    model = build_model(settings, vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("architecture", "kernel"),
    [("context", "numba"), ("context", "reference"), ("original", "reference")],
)
def test_side_by_side_as_one_by_one(
    renderer, architecture: str, kernel: str, tiny_model_settings, monkeypatch
) -> None:
    monkeypatch.setattr("newllm.model.kernels.FORCED", kernel)
    tokenizer = renderer.tokenizer
    model = talkative(tiny_model_settings(architecture=architecture), tokenizer.vocab_size)
    prompts = [renderer.prompt([{"role": "user", "content": text}]) for text in QUESTIONS]
    expected = []
    for text in QUESTIONS:
        session = ChatSession(
            make_decoder(model), renderer, Sampling(temperature=0, repetition_penalty=1)
        )
        expected.append(session.say(text, max_new_tokens=LIMIT))
    assert len(set(expected)) > 1
    for at_once in (1, 2, 8):
        answers = greedy_answers(model, tokenizer, prompts, LIMIT, at_once)
        assert [answer.text.lstrip() for answer in answers] == expected


def test_answers_end_or_meet_the_limit(renderer, tiny_model_settings) -> None:
    tokenizer = renderer.tokenizer
    model = talkative(tiny_model_settings(), tokenizer.vocab_size)
    prompt = renderer.prompt([{"role": "user", "content": "some words"}])
    [answer] = greedy_answers(model, tokenizer, [prompt], 3)
    assert not answer.finished
    with torch.no_grad():
        hidden, _ = model(torch.tensor([prompt]))
        model.get_parameter("embedding.weight")[tokenizer.end] = 10 * hidden[0, -1]
    assert greedy_answers(model, tokenizer, [prompt], 3) == [Answer("", True)]
    with torch.no_grad():
        model.get_parameter("norm").fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        greedy_answers(model, tokenizer, [prompt], 3)
