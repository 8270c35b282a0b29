"""Dolly-15k, level 1: `instruction`, `context` (may be blank) and `response`."""

from __future__ import annotations

from newllm.datasets.base import (
    FOUR_LAYERS,
    LARGER_CONTEXT,
    LONGER_ROWS,
    MORE_EPOCHS,
    Dataset,
    HubRepository,
    question_fields,
)
from newllm.datasets.hh_rlhf import TO_HH_RLHF
from newllm.datasets.ultrachat import TO_ULTRACHAT

DATASET = Dataset(
    name="dolly",
    number=1,
    title="Dolly-15k: single questions and answers",
    title_ja="Dolly-15k: 一問一答",
    licence="CC BY-SA 3.0",
    hub=(HubRepository("databricks/databricks-dolly-15k"),),
    fields=("instruction", "context", "response"),
    **question_fields("instruction", "response", "context"),
    settings={"num_layers": 1, "context_dim": 256, "max_seq_length": 128},
    epochs={"original": 100, "context": 10},
    prompts=(
        "What is the capital of France?",
        "Name three fruits.",
        "Why is the sky blue?",
        "Which of these are animals: dog, table, cat?",
    ),
    pass_mark=17.0,
    excellent=15.0,
    advice={
        "excellent": (TO_ULTRACHAT, TO_HH_RLHF, FOUR_LAYERS),
        "cleared": (FOUR_LAYERS, LARGER_CONTEXT, LONGER_ROWS, TO_ULTRACHAT),
        "needs work": (MORE_EPOCHS, FOUR_LAYERS),
    },
)
