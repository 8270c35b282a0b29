"""The models: one interface, two architectures."""

from __future__ import annotations

from newllm.config import ModelSettings
from newllm.model.context_lm import ContextLM, State
from newllm.model.original import OriginalLM

LanguageModel = ContextLM | OriginalLM

__all__ = ["ContextLM", "LanguageModel", "OriginalLM", "State", "build_model"]


def build_model(settings: ModelSettings, vocab_size: int) -> LanguageModel:
    """A freshly initialised model of the architecture that the settings name."""
    return (OriginalLM if settings.architecture == "original" else ContextLM)(settings, vocab_size)
