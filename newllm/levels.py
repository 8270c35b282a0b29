"""The levels as plain data: where their rows are, what they recommend, and their pass marks.

A pass mark is a validation perplexity in the word-1000 protocol, as published; it is judged in that
protocol alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from newllm.config import Settings, parse
from newllm.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Level:
    """One level of the progression."""

    number: int
    dataset: str
    title: str
    hub_ids: tuple[str, ...]
    """Repositories of the data set, the first that answers is taken."""
    settings: Mapping[str, Any]
    """What the level recommends, for every architecture."""
    epochs: Mapping[str, int]
    """Recommended epochs by architecture."""
    pass_mark: float
    """Cleared below this perplexity (word-1000 protocol)."""
    excellent: float
    """Excellent below this perplexity."""
    advice: Mapping[str, tuple[str, ...]]
    """Band (excellent, cleared, needs work) -> what to do next, flags included."""

    def band(self, ppl: float) -> str:
        """excellent, cleared or needs work."""
        if ppl < self.excellent:
            return "excellent"
        return "cleared" if ppl < self.pass_mark else "needs work"


LEVELS: dict[str, Level] = {
    "dolly": Level(
        number=1,
        dataset="dolly",
        title="Dolly-15k: single questions and answers",
        hub_ids=("databricks/databricks-dolly-15k",),
        settings={"num_layers": 1, "context_dim": 256, "max_seq_length": 128, "patience": 20},
        epochs={"original": 100, "context": 10},
        pass_mark=17.0,
        excellent=15.0,
        advice={
            "excellent": ("--num-layers 4", "--context-dim 512", "--max-seq-length 256"),
            "cleared": ("--num-layers 4", "--context-dim 512"),
            "needs work": ("--epochs {more_epochs}", "--num-layers 4"),
        },
    ),
}

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
        "embed_dim": 256,
        "hidden_dim": 512,
    },
}
"""Training defaults by architecture, where a level has none of its own."""

PUBLISHED_RATE, PUBLISHED_RATE_BATCH = 1e-4, 32


def find_level(dataset: str) -> Level:
    """The level of a data set.

    Raises:
        UserError: unknown name, with the nearest one.
    """
    if dataset not in LEVELS:
        raise UserError(f"unknown data set {dataset}{did_you_mean(dataset, LEVELS)}")
    return LEVELS[dataset]


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
    values = {**recipe, **level.settings, "epochs": epochs, **given}
    return parse({**_computed(values), **values}, where)


def _computed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that follow from others."""
    computed: dict[str, Any] = {}
    if values.get("architecture") == "original":
        batch = values["batch_size"]
        if isinstance(batch, int) and batch > 0:
            computed["learning_rate"] = PUBLISHED_RATE * (batch / PUBLISHED_RATE_BATCH) ** 0.5
        return computed
    layers, context_dim = values["num_layers"], values["context_dim"]
    if isinstance(layers, int) and isinstance(context_dim, int):
        computed |= default_widths(layers, context_dim)
    return computed


def default_widths(num_layers: int, context_dim: int) -> dict[str, int]:
    """Width of stream and feed-forward that go with a depth and a context size.

    At context 256 and the 1,000-word vocabulary they keep the parameters at or under those of
    `original`: 1.37M of 1.43M with 1 layer, 2.10M of 2.21M with 4. A single layer is wider, for
    want of depth.
    """
    half = context_dim // 2
    if num_layers == 1:
        return {"embed_dim": context_dim + half, "hidden_dim": 2 * (context_dim + half)}
    return {"embed_dim": context_dim, "hidden_dim": context_dim + half}
