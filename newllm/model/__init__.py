"""The models: one interface, our architecture, the first published one, and their peers."""

from __future__ import annotations

import torch

from newllm.config import ModelSettings
from newllm.errors import UserError
from newllm.model.baselines.original import OriginalLM
from newllm.model.baselines.rnn import GruLM, LstmLM, MinGruLM
from newllm.model.baselines.transformer import TransformerLM
from newllm.model.context.lm import ContextLM
from newllm.model.context.pairs import PAIR_DIM
from newllm.model.residual import State
from newllm.widths import EQUAL_WIDTHS, ONE_WIDTH, default_widths, equal_widths, largest

LanguageModel = ContextLM | OriginalLM | GruLM | LstmLM | MinGruLM | TransformerLM

__all__ = [
    "PAIR_SHARE", "ContextLM", "GruLM", "LanguageModel", "LstmLM", "MinGruLM", "OriginalLM",
    "State", "TransformerLM", "build_model", "count_parameters", "matched_widths",
]  # fmt: skip

PAIR_SHARE = 0.375
"""Share of a budget of parameters that a table of pairs takes: found with 1.4M."""

_CLASSES: dict[str, type[LanguageModel]] = {
    "context": ContextLM,
    "original": OriginalLM,
    "gru": GruLM,
    "lstm": LstmLM,
    "mingru": MinGruLM,
    "transformer": TransformerLM,
}


def build_model(settings: ModelSettings, vocab_size: int) -> LanguageModel:
    """A freshly initialised model of the architecture that the settings name."""
    return _CLASSES[settings.architecture](settings, vocab_size)


def count_parameters(settings: ModelSettings, vocab_size: int) -> int:
    """Parameters of a model, counted without allocating them."""
    with torch.device("meta"):
        model = build_model(settings, vocab_size)
    return sum(parameter.numel() for parameter in model.parameters())


def matched_widths(
    architecture: str, num_layers: int, vocab_size: int, parameters: int, pairs: bool = False
) -> dict[str, int]:
    """The widest shape of an architecture with at most so many parameters.

    The proportions are those of `default_widths` and `equal_widths` in `widths.py`. The width is a
    multiple of 32, and what is left goes into the feed-forward. GRU, LSTM and `original` (in its
    published proportions) have none inside a block, so that their width is a multiple of 8.

    Args:
        architecture: name of the architecture.
        num_layers: depth.
        vocab_size: V.
        parameters: budget.
        pairs: give `PAIR_SHARE` of it to a table of pairs (`context` alone has one).

    Returns:
        context_dim, embed_dim and hidden_dim; with `pairs` also pair_rows.

    Raises:
        UserError: not even the smallest shape has so few.
    """

    table: dict[str, int] = {}
    if pairs and architecture == "context":
        table["pair_rows"] = 256 * round(PAIR_SHARE * parameters / (256 * PAIR_DIM))

    def shape(width: int) -> dict[str, int]:
        if architecture in EQUAL_WIDTHS:
            return equal_widths(num_layers, (8 if architecture in ONE_WIDTH else 32) * width)
        if architecture == "original":  # published with 256, 256, 512
            return {"context_dim": 8 * width, "embed_dim": 8 * width, "hidden_dim": 16 * width}
        return {**table, "context_dim": 32 * width, **default_widths(num_layers, 32 * width, pairs)}

    def fits(widths: dict[str, int]) -> bool:
        named = {"architecture": architecture, "num_layers": num_layers}
        settings = ModelSettings.model_validate({**named, **widths})
        return count_parameters(settings, vocab_size) <= parameters

    width = largest(lambda candidate: fits(shape(candidate)))
    if width == 0:
        raise UserError(
            f"{architecture} with {num_layers} layers has more than {parameters:,} parameters"
        )
    widths = shape(width)
    if architecture in (*ONE_WIDTH, "original"):
        return widths
    wider = largest(
        lambda eights: fits({**widths, "hidden_dim": widths["hidden_dim"] + 8 * eights})
    )
    return {**widths, "hidden_dim": widths["hidden_dim"] + 8 * wider}
