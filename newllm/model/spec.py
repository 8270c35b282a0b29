"""One object an architecture: all that the rest of the program asks about it.

Nothing here imports torch, so that the command line can answer `--help`, resolve settings and
refuse wrong ones at once. The classes are in `build.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from newllm.config import ModelSettings
from newllm.errors import UserError

EPOCHS_UNREGULARISED = 2
"""Epochs without dropout, and without decay of the bigram hash embedding. A model does not overfit
rows that it has read once or twice: there both would only slow the training."""

RECALL_SLOTS = 1024
"""Slots of each table of recall where nothing else is asked for: 16 KB in all (docs/LOG.md)."""

COUNTS = 8_000_000
"""Bytes of the table of counts where nothing else is asked for (docs/LOG.md)."""

PAIR_ROWS = 128
"""Rows of the bigram hash embedding of `context`, for each number of its context vector."""

_RECIPE: dict[str, Any] = {
    "batch_size": 32,
    "learning_rate": 0.003,
    "weight_decay": 0.1,
    "warmup_share": 0.02,
    "warmdown_share": 0.6,
    "patience": 5,
    "sampled_softmax": 256,
}

# As published: Adam, 0.0001 at batch 32 times the square root of the ratio.
_PUBLISHED: dict[str, Any] = {
    "batch_size": 2048,
    "weight_decay": 0.0,
    "warmup_share": 0.0,
    "warmdown_share": 0.0,
    "patience": 20,
    "sampled_softmax": 0,
    "embed_dim": 256,
    "hidden_dim": 512,
}
_PUBLISHED_RATE, _PUBLISHED_RATE_BATCH = 1e-4, 32


@dataclass(frozen=True)
class ModelSpec:
    """What an architecture is, as far as others have to know."""

    name: str
    """As `--architecture` says it."""
    recipe: Mapping[str, Any] = field(default_factory=lambda: _RECIPE)
    """Training defaults, where a level has none of its own."""
    epochs: str = "context"
    """Key of a level's recommended epochs."""
    widths: Literal["default", "equal", "one", "published"] = "default"
    """How the widths go together: as `default_widths`; `context_dim` equal to the stream where
    they are not given; always equal, and `hidden_dim` does nothing; as published."""
    has_pairs: bool = False
    """Whether it has a bigram hash embedding."""
    has_recall: bool = True
    """Whether it can have a memory that copies."""
    has_counts: bool = True
    """Whether it can have a table of counts."""
    heads_of: int = 1
    """`context_dim`, heads side by side, is a multiple of this."""
    optimizer: Literal["muon", "adam"] = "muon"
    """Muon and AdamW, or Adam alone."""
    clip_norm: Callable[[int], float] = lambda epoch: 1.0
    """Gradient norm above which gradients are scaled down, by the epochs that are finished."""
    epochs_without_dropout: int = EPOCHS_UNREGULARISED
    one_document_per_row: bool = False
    """Whether a row of a batch holds one document alone."""
    can_grow: bool = False
    can_export: bool = False
    can_round: bool = False
    """Whether its matrices can be rounded to bfloat16 or int8 (`--weights`)."""

    def proportions(
        self, num_layers: int, width: int, pairs: bool, recall: bool = False
    ) -> dict[str, int]:
        """Widths of a model whose context has `width` numbers.

        Args:
            num_layers: depth.
            width: `context_dim`.
            pairs: whether a bigram hash embedding takes some of the parameters.
            recall: whether recall does.
        """
        if self.widths in ("equal", "one"):
            return equal_widths(num_layers, width)
        if self.widths == "published":  # 256, 256, 512
            return {"context_dim": width, "embed_dim": width, "hidden_dim": 2 * width}
        return {"context_dim": width, **default_widths(num_layers, width, pairs, recall)}

    def default_pair_rows(self, context_dim: int, tokenizer: object) -> int:
        """Rows of the bigram hash embedding where none are asked for.

        Two fifths of a text are one unknown word in the 1,000-word vocabulary: no pairs there.
        """
        return PAIR_ROWS * context_dim if self.has_pairs and tokenizer != "word1000" else 0

    def derived(self, values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that follow from others, where they are not given.

        Args:
            values: all settings so far, from level, recipe and user; not validated yet.
            given: those of the user.
        """
        if self.widths == "published":
            batch = values["batch_size"]
            if not isinstance(batch, int) or batch <= 0:
                return {}
            return {"learning_rate": _PUBLISHED_RATE * (batch / _PUBLISHED_RATE_BATCH) ** 0.5}
        memories = {
            "recall_slots": RECALL_SLOTS if self.has_recall else 0,
            "counts": COUNTS if self.has_counts else 0,
        }
        layers, context_dim = values["num_layers"], values["context_dim"]
        if not isinstance(layers, int) or not isinstance(context_dim, int):
            return memories
        rows = self.default_pair_rows(context_dim, values.get("tokenizer"))
        rows = values.get("pair_rows", rows)
        slots = values.get("recall_slots", memories["recall_slots"])
        widths = default_widths(layers, context_dim, rows != 0, slots != 0)
        if self.widths in ("equal", "one"):
            width = given.get("context_dim", given.get("embed_dim", widths["embed_dim"]))
            widths |= equal_widths(layers, width) if isinstance(width, int) else {}
        return {"pair_rows": rows, **memories, **widths}

    def refuse(self, settings: ModelSettings) -> None:
        """Refuse a shape that this architecture cannot have.

        Raises:
            UserError: saying which settings do not go together.
        """
        context_dim, embed_dim = settings.context_dim, settings.embed_dim
        if self.widths == "one" and context_dim != embed_dim:
            both = f"--context-dim {context_dim} and --embed-dim {embed_dim}"
            raise UserError(f"{both}: in {self.name} they are one width; give one of the two")
        if settings.pair_rows and not self.has_pairs:
            raise UserError(f"--pair-rows {settings.pair_rows}: {self.name} has no table of pairs")
        if settings.recall_slots and not self.has_recall:
            raise UserError(f"--recall-slots {settings.recall_slots}: {self.name} has no recall")
        if settings.counts and not self.has_counts:
            raise UserError(f"--counts {settings.counts}: {self.name} has no table of counts")
        if context_dim % self.heads_of:
            raise UserError(
                f"--context-dim {context_dim}: heads need a multiple of {self.heads_of}"
            )


def find_spec(architecture: str) -> ModelSpec:
    """What an architecture is.

    A block of one's own (`FILE.py:CLASS`) is trained by the recipe of `context`, and has its
    widths. Its file is not read here; `build_model` is given the loaded block.
    """
    return SPECS.get(architecture) or ModelSpec(architecture)


def default_widths(
    num_layers: int, context_dim: int, pairs: bool = False, recall: bool = False
) -> dict[str, int]:
    """Width of stream and feed-forward that go with a depth and a context size.

    At context 256 and the 1,000-word vocabulary they keep the parameters at or under those of
    `original`: 1.38M of 1.43M with 1 layer, 2.17M of 2.21M with 4. A single layer is wider, for
    want of depth, unless a bigram hash embedding (`pairs`) has those parameters, and its
    feed-forward twice as wide as the stream, unless `recall` has those; beyond context 256 the
    stream grows with the square root of the context.
    """
    embed_dim = context_dim
    if context_dim > 256:
        embed_dim = 64 * math.ceil(math.sqrt(256 * context_dim) / 64)
    if num_layers == 1:
        embed_dim += 0 if pairs else embed_dim // 2
    single = num_layers == 1 and not recall
    return {"embed_dim": embed_dim, "hidden_dim": embed_dim + embed_dim // (1 if single else 2)}


def equal_widths(num_layers: int, width: int) -> dict[str, int]:
    """The same where `context_dim` and the stream have one width."""
    hidden_dim = 2 * width if num_layers == 1 else width + width // 2
    return {"context_dim": width, "embed_dim": width, "hidden_dim": hidden_dim}


def _published_clipping(epoch: int) -> float:
    """`original` loosens its clipping, as published."""
    return 0.5 if epoch < 10 else 1.0 if epoch < 30 else 2.0


SPECS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("context", has_pairs=True, can_grow=True, can_export=True, can_round=True),
        ModelSpec(
            "original",
            recipe=_PUBLISHED,
            epochs="original",
            widths="published",
            optimizer="adam",
            clip_norm=_published_clipping,
            epochs_without_dropout=0,
            one_document_per_row=True,
            has_recall=False,
            has_counts=False,
        ),
        ModelSpec("gru", widths="one"),
        ModelSpec("lstm", widths="one"),
        ModelSpec("mingru"),
        ModelSpec("transformer", widths="equal", heads_of=16),
    )
}
"""The architectures that come with the package, by name; `config.ARCHITECTURES` names the
same, `build.CLASSES` has their classes."""
