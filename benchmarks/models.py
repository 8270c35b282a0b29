"""The model that a benchmark runs: of a checkpoint, or a fresh one of a given shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from benchmarks.measure import Row, setting_options
from newllm.config import Settings
from newllm.model import LanguageModel, build_model
from newllm.settings import resolve
from newllm.trained import TrainedModel

_SHAPE = ("architecture", "num_layers", "context_dim", "embed_dim", "hidden_dim", "vocab_size")


@dataclass(frozen=True)
class Subject:
    """A model on the CPU, frozen and in evaluation mode, and where it is from."""

    model: LanguageModel
    settings: Settings
    facts: Row


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every benchmark that runs a model; `find_model` takes their values."""
    command = setting_options(*_SHAPE)(command)
    option = click.option("--checkpoint", metavar="FILE", help="Take the model of this checkpoint.")
    return option(command)


def find_model(checkpoint: str | None, **shape: Any) -> Subject:
    """Load the checkpoint, or make a fresh model: the shape given, the rest as for Dolly.

    Speed and memory do not depend on the weights' values, so a fresh model shows them as well.
    """
    if checkpoint is not None:
        trained = TrainedModel.load(checkpoint, "cpu")
        model, settings = trained.model, trained.settings
    else:
        settings = resolve("dolly", {name: v for name, v in shape.items() if v is not None})
        model = build_model(settings.model_settings(), settings.vocab_size)
    model.eval().requires_grad_(False)
    facts = {
        "model": checkpoint or "fresh",
        "architecture": settings.architecture,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **{name: getattr(settings, name) for name in _SHAPE[1:-1]},
        "vocab_size": model.vocab_size,
    }
    return Subject(model, settings, facts)
