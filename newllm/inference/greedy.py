"""Greedy answers to many prompts, written side by side; no random number is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from newllm.data.tokenizers import Tokenizer, never_written
from newllm.model import ContextLM, LanguageModel, State
from newllm.model.context.decode import Lanes, can_step

WRITING_LANES = 32
_READ_AT_ONCE = 256
"""Prompt tokens of each lane that are read at a time: bounds the memory of long prompts."""

_Step = Callable[[Sequence[int], Sequence[int]], np.ndarray]
"""Reads one token in each of some lanes; scores of every next token, fp32 [lanes, V]."""


class Answer(NamedTuple):
    """What a model wrote."""

    text: str
    finished: bool
    """False where it met the limit of its length."""


@torch.inference_mode()
def greedy_answers(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    lanes: int = WRITING_LANES,
) -> list[Answer]:
    """The likeliest token again and again, for every prompt, up to the end of the turn.

    Single tokens take the fused step where there is one (our architecture on a CPU), else the
    module.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        prompts: ids up to where the model speaks (`Renderer.prompt`), none empty.
        max_new_tokens: length of an answer at most.
        lanes: answers written side by side.

    Raises:
        FloatingPointError: the model's scores are not numbers.
    """
    answers = [Answer("", False)] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(by_length), lanes):
        chosen = by_length[start : start + lanes]
        written = _write(model, tokenizer, [prompts[index] for index in chosen], max_new_tokens)
        for index, answer in zip(chosen, written, strict=True):
            answers[index] = answer
    return answers


def _write(
    model: LanguageModel, tokenizer: Tokenizer, prompts: list[Sequence[int]], max_new_tokens: int
) -> list[Answer]:
    logits, state = _read(model, prompts)
    step = _fused_step(model, state) if can_step(model) else _module_step(model, state)
    forbidden = never_written(tokenizer)
    written: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        if np.isnan(logits).any():
            raise FloatingPointError("no token can be chosen: the model's scores are not finite")
        logits[:, forbidden] = -np.inf
        chosen = dict(zip(active, logits.argmax(axis=1).tolist(), strict=True))
        chosen = {lane: token for lane, token in chosen.items() if token != tokenizer.end}
        active = list(chosen)
        if not active:
            break
        for lane, token in chosen.items():
            written[lane].append(token)
        logits = step(active, list(chosen.values()))
    return [Answer(tokenizer.decode(ids), len(ids) < max_new_tokens) for ids in written]


def _read(model: LanguageModel, prompts: list[Sequence[int]]) -> tuple[np.ndarray, State]:
    """Read prompts of different lengths; scores after the last token of each [B, V], states."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    for lane, prompt in enumerate(prompts):
        ids[lane, : len(prompt)] = torch.tensor(prompt)
    valid = torch.arange(longest) < lengths[:, None]
    last = torch.zeros(len(prompts), model.vocab_size)
    state = model.initial_state(len(prompts))
    for start in range(0, longest, _READ_AT_ONCE):
        part = slice(start, start + _READ_AT_ONCE)
        hidden, state = model(ids[:, part].to(device), state, None, valid[:, part].to(device))
        ends = (lengths > start) & (lengths <= start + _READ_AT_ONCE)
        places = (lengths - 1 - start)[ends].to(device)
        last[ends] = model.logits(hidden[ends.to(device), places]).float().cpu()
    return last.numpy(), state


def _fused_step(model: LanguageModel, state: State) -> _Step:
    assert isinstance(model, ContextLM)
    count = next(iter(state.values())).shape[1]
    lanes = Lanes(model, count)
    numbers = [
        lanes.add({name: part[:, lane : lane + 1] for name, part in state.items()})
        for lane in range(count)
    ]
    return lambda active, tokens: lanes.step([numbers[lane] for lane in active], tokens)


def _module_step(model: LanguageModel, state: State) -> _Step:
    device = next(model.parameters()).device
    carried = state
    ids = torch.zeros(next(iter(state.values())).shape[1], 1, dtype=torch.long)

    def step(active: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        nonlocal carried
        chosen = list(active)
        ids[chosen, 0] = torch.tensor(tokens)
        # Lanes that have ended read their last token on; nobody listens.
        hidden, carried = model(ids.to(device), carried)
        return model.logits(hidden[chosen, 0]).float().numpy(force=True)

    return step
