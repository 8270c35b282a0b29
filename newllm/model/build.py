"""From settings to a model: the one place where an architecture's class is called."""

from __future__ import annotations

import torch

from newllm.config import ModelSettings, is_own_block
from newllm.errors import UserError
from newllm.model.baselines.original import OriginalLM
from newllm.model.context.lm import ContextLM
from newllm.model.own_block import OwnBlock, check_block
from newllm.model.residual import Block, Boundaries, FeedForward, ResidualLM, State, projection
from newllm.model.spec import find_spec

LanguageModel = ResidualLM | OriginalLM

__all__ = [
    "Block", "Boundaries", "ContextLM", "FeedForward", "LanguageModel", "OwnBlock", "State",
    "build_model", "check_block", "count_parameters", "projection",
]  # fmt: skip


def build_model(
    settings: ModelSettings, vocab_size: int, block: OwnBlock | None = None
) -> LanguageModel:
    """A freshly initialised model of the architecture that the settings name.

    Args:
        settings: shape.
        vocab_size: V.
        block: the loaded block, where the architecture is a block of one's own. A name alone never
            runs its file: only what a person gave as `--architecture` is loaded.

    Raises:
        UserError: the block was not given, or does not do what a block has to.
    """
    if not is_own_block(settings.architecture):
        return find_spec(settings.architecture).load()(settings, vocab_size)
    if block is None:
        raise UserError(
            f"{settings.architecture}: a block of one's own runs only where it is given as "
            "--architecture FILE.py:CLASS"
        )
    return block.build(settings, vocab_size)


def count_parameters(
    settings: ModelSettings, vocab_size: int, block: OwnBlock | None = None
) -> int:
    """Parameters of a model, counted without allocating them."""
    with torch.device("meta"):
        model = build_model(settings, vocab_size, block)
    return sum(parameter.numel() for parameter in model.parameters())
