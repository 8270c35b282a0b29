"""Answers to many prompts, written side by side: greedy, or drawn from one seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from newllm.data.tokenizers import Tokenizer, never_written
from newllm.inference.decoder import Decoder, make_decoder
from newllm.model import LanguageModel

ANSWERS_AT_ONCE = 32
_PROMPT_TOKENS = 256
"""Tokens of each prompt that are read at a time: bounds the memory of long prompts."""


class Answer(NamedTuple):
    """What a model wrote."""

    text: str
    finished: bool
    """False where it met the limit of its length."""


def greedy_answers(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    at_once: int = ANSWERS_AT_ONCE,
) -> list[Answer]:
    """The likeliest token again and again, for every prompt, up to the end of the turn.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        prompts: ids up to where the model speaks (`Renderer.prompt`), none empty.
        max_new_tokens: length of an answer at most.
        at_once: answers written side by side.

    Raises:
        FloatingPointError: the model's scores are not numbers.
    """
    return sampled_answers(model, tokenizer, prompts, max_new_tokens, 0.0, 0, at_once)


def sampled_answers(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    at_once: int = ANSWERS_AT_ONCE,
) -> list[Answer]:
    """The same, drawn at a temperature: same seed, same answers. At 0 they are greedy.

    A token is the largest of logits / temperature + Gumbel noise, which draws from the softmax.
    """
    decoder = make_decoder(model, batched=True)
    rng = np.random.default_rng(seed)
    answers = [Answer("", False)] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(by_length), at_once):
        chosen = by_length[start : start + at_once]
        asked = [prompts[index] for index in chosen]
        written = _write(decoder, tokenizer, asked, max_new_tokens, temperature, rng)
        for index, answer in zip(chosen, written, strict=True):
            answers[index] = answer
    return answers


def _write(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: list[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    rng: np.random.Generator,
) -> list[Answer]:
    forbidden = never_written(tokenizer)
    written: list[list[int]] = [[] for _ in prompts]
    slots = {decoder.add(): ids for ids in written}
    logits = decoder.read(list(slots), prompts, _PROMPT_TOKENS)
    for slot in slots:
        decoder.begin_answer(slot)
    for _ in range(max_new_tokens):
        if np.isnan(logits).any():
            raise FloatingPointError("no token can be chosen: the model's scores are not finite")
        logits[:, forbidden] = -np.inf
        if temperature > 0:
            logits = logits / temperature + rng.gumbel(size=logits.shape)
        tokens = dict(zip(list(slots), logits.argmax(axis=1).tolist(), strict=True))
        for slot, token in tokens.items():
            if token == tokenizer.end:
                decoder.remove(slot)
                del slots[slot]
            else:
                slots[slot].append(token)
        if not slots:
            break
        logits = decoder.step(list(slots), [tokens[slot] for slot in slots])
    for slot in slots:
        decoder.remove(slot)
    return [Answer(tokenizer.decode(ids), len(ids) < max_new_tokens) for ids in written]
