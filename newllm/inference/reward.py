"""A reward head: one number for an answer, linear in the state at its end (arXiv:2203.02155).

It is learnt from pairs of answers (:mod:`newllm.curriculum.reward`), lies beside its model as
`NAME.reward.pt`, and chooses among several answers to the same prompt: best of n.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from newllm.inference.decoder import PROMPT_TOKENS, read_chunks
from newllm.model import LanguageModel, State
from newllm.model.trunk import TrunkOutput

TEXTS_AT_ONCE = 32


def reward_file(model_file: Path) -> Path:
    """Where the reward head of a checkpoint is: `best_NAME.reward.pt` beside `best_NAME.pt`."""
    return model_file.with_suffix(".reward.pt")


@torch.inference_mode()
def end_states(
    model: LanguageModel, texts: Sequence[Sequence[int]], start: State | None = None
) -> Tensor:
    """What a model's trunk says after the last token of N texts, fp32 [N, D] on the CPU.

    Args:
        model: in evaluation mode.
        texts: ids up to the token that ends the answer, none empty.
        start: the state of one text from which all of them go on; None for the start of a text.
    """
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    at_once = TEXTS_AT_ONCE if start is None else 1
    for first in range(0, len(by_length), at_once):
        chosen = by_length[first : first + at_once]
        asked = [texts[index] for index in chosen]
        state = model.initial_state(len(chosen)) if start is None else start
        for part, hidden, _ in read_chunks(model, asked, state, PROMPT_TOKENS):
            said = hidden.hidden if isinstance(hidden, TrunkOutput) else hidden
            for row, index in enumerate(chosen):
                last = len(texts[index]) - 1
                if part.start <= last < part.stop:
                    found[index] = said[row, last - part.start].float().cpu()
    return torch.stack(found)


def rewards(
    model: LanguageModel,
    weight: Tensor,
    texts: Sequence[Sequence[int]],
    start: State | None = None,
) -> list[float]:
    """The rewards of N texts that end with an answer, by a head's weights [D].

    See :func:`end_states` for the rest.
    """
    return (end_states(model, texts, start) @ weight).tolist()
