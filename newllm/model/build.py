"""From settings to a model: the one place where an architecture's class is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from newllm.config import ModelSettings, is_own_block
from newllm.errors import UserError
from newllm.model.baselines.mingru import MinGruLM
from newllm.model.baselines.original import OriginalLM
from newllm.model.baselines.rnn import GruLM, LstmLM
from newllm.model.baselines.transformer import TransformerLM
from newllm.model.block import Block, Boundaries, FeedForward, projection
from newllm.model.context.lm import ContextLM
from newllm.model.own_block import OwnBlock, OwnBlockLM, check_block
from newllm.model.residual import ResidualLM, State

LanguageModel = ResidualLM | OriginalLM

CLASSES: dict[str, Callable[[ModelSettings, int], LanguageModel]] = {
    "context": ContextLM,
    "original": OriginalLM,
    "gru": GruLM,
    "lstm": LstmLM,
    "mingru": MinGruLM,
    "transformer": TransformerLM,
}
"""The class of each architecture of the package."""

__all__ = [
    "Block", "Boundaries", "ContextLM", "FeedForward", "LanguageModel", "OwnBlock", "State",
    "build_model", "check_block", "count_parameters", "meta_model", "projection",
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
        return CLASSES[settings.architecture](settings, vocab_size)
    if block is None:
        raise UserError(
            f"{settings.architecture}: a block of one's own runs only where it is given as "
            "--architecture FILE.py:CLASS"
        )
    return OwnBlockLM(block, settings, vocab_size)


def count_parameters(
    settings: ModelSettings, vocab_size: int, block: OwnBlock | None = None
) -> int:
    """Parameters of a model, counted without allocating them."""
    return sum(p.numel() for p in meta_model(settings, vocab_size, block).parameters())


def meta_model(
    settings: ModelSettings, vocab_size: int, block: OwnBlock | None = None
) -> LanguageModel:
    """A model whose matrices are on torch's meta device: shapes without memory or values."""
    on_meta = _MatricesOnMeta() if block is None else torch.device("meta")
    with on_meta:
        return build_model(settings, vocab_size, block)


class _MatricesOnMeta(TorchFunctionMode):
    """Makes matrices on the meta device, and nothing else.

    Whatever is computed there, a `linspace` or a random number, is first done by code whose import
    takes longer than loading a checkpoint; vectors are small enough to be made.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        matrix = len(args) > 1 or (args and isinstance(args[0], tuple) and len(args[0]) > 1)
        if function in (torch.empty, torch.zeros) and matrix:
            kwargs = {**kwargs, "device": "meta"}
        return function(*args, **kwargs)
