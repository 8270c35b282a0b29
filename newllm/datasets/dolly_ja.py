"""Dolly-15k in Japanese, beside level 1: `instruction`, `input` (may be blank) and `output`."""

from __future__ import annotations

from newllm.datasets.base import Dataset, HubRepository, question_fields

DATASET = Dataset(
    name="dolly_ja",
    title="Dolly-15k in Japanese: single questions and answers",
    title_ja="日本語の Dolly-15k: 一問一答",
    licence="CC BY-SA 3.0",
    hub=(HubRepository("kunishou/databricks-dolly-15k-ja"),),
    fields=("instruction", "input", "output"),
    **question_fields("instruction", "output", "input"),
    word1000_refusal=(
        "that vocabulary is of words between blanks, and Japanese is written without: "
        "nearly every sentence would be one unknown word"
    ),
    settings={"num_layers": 1, "context_dim": 256, "max_seq_length": 128},
    epochs={"original": 100, "context": 10},
    prompts=(
        "フランスの首都はどこですか？",
        "果物を三つ挙げてください。",
        "空はなぜ青いのですか？",
        "犬は動物ですか、それとも果物ですか？",
    ),
)
