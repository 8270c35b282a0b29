"""Training defaults by architecture, the widths of models, and how every setting is decided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from newllm.config import Settings, parse
from newllm.errors import UserError
from newllm.levels import find_level

RECIPES: dict[str, dict[str, Any]] = {
    "context": {
        "batch_size": 32,
        "learning_rate": 0.003,
        "weight_decay": 0.1,
        "warmup_share": 0.02,
        "warmdown_share": 0.6,
        "patience": 5,
    },
    # As published: Adam, 0.0001 at batch 32 times the square root of the ratio.
    "original": {
        "batch_size": 2048,
        "weight_decay": 0.0,
        "warmup_share": 0.0,
        "warmdown_share": 0.0,
        "patience": 20,
        "embed_dim": 256,
        "hidden_dim": 512,
    },
}
"""Training defaults by architecture, where a level has none of its own."""

PUBLISHED_RATE, PUBLISHED_RATE_BATCH = 1e-4, 32

ONE_WIDTH = frozenset({"gru", "lstm"})
"""Architectures whose state has to be as wide as the stream; `hidden_dim` does nothing there."""

EQUAL_WIDTHS = ONE_WIDTH | {"transformer"}
"""Architectures whose state, or attention, is as wide as the stream unless told otherwise."""

HEAD_STEP = 16
"""A transformer's `context_dim`, its heads side by side, is a multiple of this."""


def resolve(
    dataset: str, flags: Mapping[str, Any], file: Mapping[str, Any] | None = None
) -> Settings:
    """Decide every setting: flag > file > level > recipe > default.

    Args:
        dataset: name of the data set.
        flags: settings given on the command line (or in Python).
        file: settings from a YAML file.

    Raises:
        UserError: a value is wrong.
    """
    level = find_level(dataset)
    given = {**(file or {}), **flags, "dataset": dataset}
    where = {name: f"setting {name}" for name in file or {} if name not in flags}
    architecture = given.get("architecture", "context")
    recipe = RECIPES.get(architecture, RECIPES["context"])
    epochs = level.epochs.get(architecture, level.epochs["context"])
    defaults = {**recipe, **level.settings, "epochs": epochs}
    settings = parse({**defaults, **_computed(defaults, given), **given}, where)
    context_dim, embed_dim = settings.context_dim, settings.embed_dim
    if architecture in ONE_WIDTH and context_dim != embed_dim:
        both = f"--context-dim {context_dim} and --embed-dim {embed_dim}"
        raise UserError(f"{both}: in {architecture} they are one width; give one of the two")
    if architecture == "transformer" and context_dim % HEAD_STEP:
        raise UserError(f"--context-dim {context_dim}: heads need a multiple of {HEAD_STEP}")
    return settings


def _computed(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that follow from others."""
    values = {**defaults, **given}
    computed: dict[str, Any] = {}
    if values.get("architecture") == "original":
        batch = values["batch_size"]
        if isinstance(batch, int) and batch > 0:
            computed["learning_rate"] = PUBLISHED_RATE * (batch / PUBLISHED_RATE_BATCH) ** 0.5
        return computed
    layers, context_dim = values["num_layers"], values["context_dim"]
    if isinstance(layers, int) and isinstance(context_dim, int):
        computed |= default_widths(layers, context_dim)
        if values.get("architecture") in EQUAL_WIDTHS:
            width = given.get("context_dim", given.get("embed_dim", computed["embed_dim"]))
            computed |= equal_widths(layers, width) if isinstance(width, int) else {}
    return computed


def default_widths(num_layers: int, context_dim: int) -> dict[str, int]:
    """Width of stream and feed-forward that go with a depth and a context size.

    At context 256 and the 1,000-word vocabulary they keep the parameters at or under those of
    `original`: 1.37M of 1.43M with 1 layer, 2.10M of 2.21M with 4. A single layer is wider, for
    want of depth; beyond context 256 the stream grows with the square root of the context.
    """
    embed_dim = context_dim
    if context_dim > 256:
        embed_dim = 64 * math.ceil(math.sqrt(256 * context_dim) / 64)
    if num_layers == 1:
        embed_dim += embed_dim // 2
        return {"embed_dim": embed_dim, "hidden_dim": 2 * embed_dim}
    return {"embed_dim": embed_dim, "hidden_dim": embed_dim + embed_dim // 2}


def equal_widths(num_layers: int, width: int) -> dict[str, int]:
    """The same where `context_dim` and the stream have one width (see `EQUAL_WIDTHS`)."""
    hidden_dim = 2 * width if num_layers == 1 else width + width // 2
    return {"context_dim": width, "embed_dim": width, "hidden_dim": hidden_dim}
