"""MATH, level 5: `problem` and `solution`, in LaTeX."""

from __future__ import annotations

from newllm.datasets.base import (
    MORE_EPOCHS,
    TWELVE_LAYERS,
    Advice,
    Dataset,
    HubRepository,
    question_fields,
)

TO_MATH = Advice("level 5, mathematics", "レベル 5（数学）へ進む", level="math")

DATASET = Dataset(
    name="math",
    number=5,
    title="MATH: worked solutions, step by step",
    title_ja="MATH: 途中の段階を示す解答",
    licence="MIT, disputed: its main copy was withdrawn in 2025 after a copyright notice",
    hub=(
        HubRepository("hendrycks/competition_math"),
        HubRepository("DigitalLearningGmbH/MATH-lighteval"),
        HubRepository(
            "EleutherAI/hendrycks_math",
            configurations=(
                "algebra",
                "counting_and_probability",
                "geometry",
                "intermediate_algebra",
                "number_theory",
                "prealgebra",
                "precalculus",
            ),
        ),
    ),
    fields=("problem", "solution", "level", "type"),
    **question_fields("problem", "solution"),
    protocol_length=256,
    settings={"num_layers": 8, "context_dim": 512, "max_seq_length": 256},
    epochs={"original": 200, "context": 8},
    rehearsal_share=0.35,
    prompts=(
        "What is $3 + 4$?",
        "Solve $2x + 3 = 11$ for $x$.",
        "What is the area of a rectangle with sides $3$ and $5$?",
    ),
    skill_check="math answers",
    pass_mark=42.0,
    excellent=30.0,
    marks_guessed=True,
    advice={
        "excellent": (Advice("a larger model", "モデルを大きくする", settings={"num_layers": 12}),),
        "cleared": (
            TWELVE_LAYERS,
            Advice("a larger context", "コンテキストを大きくする", settings={"context_dim": 1024}),
        ),
        "needs work": (MORE_EPOCHS, TWELVE_LAYERS),
    },
)
