"""CodeAlpaca, level 4: `instruction`, `input` (may be blank) and `output`."""

from __future__ import annotations

from newllm.datasets.base import (
    MORE_EPOCHS,
    TWELVE_LAYERS,
    Advice,
    Dataset,
    HubRepository,
    question_fields,
)
from newllm.datasets.math import TO_MATH

TO_CODE = Advice("level 4, code", "レベル 4（コード）へ進む", level="code_alpaca")

DATASET = Dataset(
    name="code_alpaca",
    number=4,
    title="CodeAlpaca: writing, explaining and mending code",
    title_ja="CodeAlpaca: コードを書く、説明する、直す",
    licence="CC BY 4.0 on the Hub, CC BY-NC 4.0 in its source repository",
    hub=(HubRepository("sahil2801/CodeAlpaca-20k"),),
    fields=("instruction", "input", "output"),
    **question_fields("instruction", "output", "input"),
    protocol_length=256,
    settings={"num_layers": 8, "context_dim": 512, "max_seq_length": 256},
    epochs={"original": 200, "context": 8},
    prompts=(
        "Write a Python function that adds two numbers.",
        "Write a Python program that prints the numbers from 1 to 5.",
        "Explain what a loop is.",
    ),
    skill_check="code answers",
    pass_mark=32.0,
    excellent=25.0,
    marks_guessed=True,
    advice={
        "excellent": (TO_MATH,),
        "cleared": (TO_MATH, TWELVE_LAYERS),
        "needs work": (MORE_EPOCHS, TWELVE_LAYERS),
    },
)
