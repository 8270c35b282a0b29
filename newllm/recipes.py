"""Training defaults by architecture, and how every setting is decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from newllm.config import Settings, parse
from newllm.datasets import find_dataset
from newllm.errors import UserError
from newllm.widths import EQUAL_WIDTHS, ONE_WIDTH, PAIR_ROWS, default_widths, equal_widths

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
        UserError: a value is wrong, or the tokenizer cannot hold the rows.
    """
    level = find_dataset(dataset)
    given = {**(file or {}), **flags, "dataset": dataset}
    where = {name: f"setting {name}" for name in file or {} if name not in flags}
    architecture = str(given.get("architecture", "context"))  # wrong ones are told by `parse`
    recipe = RECIPES.get(architecture, RECIPES["context"])
    epochs = level.epochs.get(architecture, level.epochs["context"])
    defaults = {**recipe, **level.settings, "epochs": epochs}
    settings = parse({**defaults, **_computed(defaults, given), **given}, where)
    level.refuse_unfit(settings.tokenizer)
    context_dim, embed_dim = settings.context_dim, settings.embed_dim
    if architecture in ONE_WIDTH and context_dim != embed_dim:
        both = f"--context-dim {context_dim} and --embed-dim {embed_dim}"
        raise UserError(f"{both}: in {architecture} they are one width; give one of the two")
    if architecture != "context" and settings.pair_rows:
        raise UserError(f"--pair-rows {settings.pair_rows}: {architecture} has no table of pairs")
    if architecture == "transformer" and context_dim % HEAD_STEP:
        raise UserError(f"--context-dim {context_dim}: heads need a multiple of {HEAD_STEP}")
    return settings


def _computed(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that follow from others."""
    values = {**defaults, **given}
    architecture = str(values.get("architecture", "context"))  # wrong ones are told by `parse`
    computed: dict[str, Any] = {}
    if architecture == "original":
        batch = values["batch_size"]
        if isinstance(batch, int) and batch > 0:
            computed["learning_rate"] = PUBLISHED_RATE * (batch / PUBLISHED_RATE_BATCH) ** 0.5
        return computed
    layers, context_dim = values["num_layers"], values["context_dim"]
    if isinstance(layers, int) and isinstance(context_dim, int):
        ours = architecture == "context"
        # Two fifths of a text are one unknown word in the 1,000-word vocabulary: no pairs there.
        pairs = PAIR_ROWS * context_dim if ours and values.get("tokenizer") != "word1000" else 0
        computed["pair_rows"] = values.get("pair_rows", pairs)
        computed |= default_widths(layers, context_dim, computed["pair_rows"] != 0)
        if architecture in EQUAL_WIDTHS:
            width = given.get("context_dim", given.get("embed_dim", computed["embed_dim"]))
            computed |= equal_widths(layers, width) if isinstance(width, int) else {}
    return computed
