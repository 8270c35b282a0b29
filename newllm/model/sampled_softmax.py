"""A training step's softmax over a part of the vocabulary.

A step of 4,096 tokens has some 900 different targets of a vocabulary of 2,048, and 1,150 of 4,096:
all other entries are in its softmax for their sum alone. Here the targets are all there, and some
of the others, drawn anew for each step, stand for the rest: each logit is raised by the logarithm
of how many entries it stands for, so that the sum of exponentials is right in the mean (Jean et al.
2015, "On Using Very Large Target Vocabulary for Neural Machine Translation", arXiv:1412.2007).
Evaluation and all that reads a model have the whole softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from newllm.data.loader import IGNORED

_WORTH_IT = 0.75
"""Fraction of the vocabulary from which on all of it is as cheap."""


def is_worth_it(vocab_size: int, targets: float, others: int) -> bool:
    """Whether a sample of so many entries is wanted, and cheaper than the whole vocabulary."""
    return others > 0 and targets + others <= _WORTH_IT * vocab_size


def mark_targets(targets: Tensor, vocab_size: int) -> Tensor:
    """True for the tokens that are among the targets of any shape, [V]; `IGNORED` is none."""
    marks = torch.zeros(vocab_size, dtype=torch.bool)
    marks[targets[targets != IGNORED]] = True
    return marks


@dataclass(frozen=True)
class SampledVocabulary:
    """The entries of one step, M of V; the same for all its micro-batches and processes."""

    entries: Tensor
    """Their tokens, [M]."""
    offsets: Tensor
    """What is added to their logits, fp32 [M]."""
    position: Tensor
    """Where each token stands among them, [V]; -1 where it does not."""

    @classmethod
    def drawn(cls, targets: Tensor, others: int, seed: int) -> SampledVocabulary | None:
        """All targets of a step, and some others; None where a sample is not worth it.

        Args:
            targets: True for the tokens that are targets, [V].
            others: how many more, evenly drawn without replacement; 0: no sample is wanted.
            seed: of the draw.
        """
        rest = (~targets).nonzero().flatten()
        if not is_worth_it(len(targets), len(targets) - len(rest), others):
            return None
        generator = torch.Generator().manual_seed(seed)
        drawn = rest[torch.randperm(len(rest), generator=generator)[:others]]
        entries = torch.cat([targets.nonzero().flatten(), drawn])
        offsets = torch.zeros(len(entries))
        offsets[-others:] = math.log(len(rest) / others)
        position = torch.full(targets.shape, -1)
        position[entries] = torch.arange(len(entries))
        return cls(entries, offsets, position)

    def positions(self, tokens: Tensor) -> Tensor:
        """Where these tokens [N] stand; negative numbers stay as they are."""
        return torch.where(tokens < 0, tokens, self.position[tokens.clamp(min=0)])
