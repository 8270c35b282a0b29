"""The levels as plain data: where their rows are, what they recommend, and their pass marks.

A pass mark is a validation perplexity in the word-1000 protocol, as published; it is judged in that
protocol alone. Those of levels 4 and 5 were published as guesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from newllm.errors import UserError, did_you_mean


@dataclass(frozen=True)
class HubRepository:
    """One place on the Hub where a data set can be had."""

    id: str
    configurations: tuple[str, ...] = ()
    """Configurations that together are the data set (none: the default one)."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """The repository's names of splits -> ours, the others unread; none: by their names."""


@dataclass(frozen=True)
class Advice:
    """One thing to do next, as words and as a change of the command."""

    text: str
    level: str | None = None
    """Train this data set next."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Change these settings."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Multiply these settings."""
    dropped: tuple[str, ...] = ()
    """Leave these settings out."""


@dataclass(frozen=True)
class Level:
    """One level of the progression, or a data set beside it (number and marks None)."""

    dataset: str
    title: str
    hub: tuple[HubRepository, ...]
    """Places of the data set, the first that answers is taken; none for one's own rows."""
    settings: Mapping[str, Any]
    """What the level recommends, for every architecture."""
    epochs: Mapping[str, int]
    """Recommended epochs by architecture."""
    prompts: tuple[str, ...]
    """Asked after every epoch, so that a person sees what the numbers mean."""
    number: int | None = None
    rehearsal_share: float = 0.1
    """Share of the tokens from earlier levels when a climb trains this one: little after related
    dialogues, more where the texts differ much."""
    pass_mark: float | None = None
    """Cleared below this perplexity (word-1000 protocol)."""
    excellent: float | None = None
    """Excellent below this perplexity."""
    advice: Mapping[str, tuple[Advice, ...]] = field(default_factory=dict)
    """Band (excellent, cleared, needs work) -> what to do next."""
    subsets: Mapping[str, str] = field(default_factory=dict)
    """Parts that --subset chooses -> their folders in the repository."""

    def band(self, ppl: float) -> str:
        """excellent, cleared or needs work."""
        assert self.excellent is not None
        assert self.pass_mark is not None
        if ppl < self.excellent:
            return "excellent"
        return "cleared" if ppl < self.pass_mark else "needs work"


FOUR_LAYERS = Advice("4 layers", settings={"num_layers": 4})
LARGER_CONTEXT = Advice("a larger context", settings={"context_dim": 512})
LONGER_ROWS = Advice("longer rows", settings={"max_seq_length": 256})
MORE_EPOCHS = Advice("more epochs", factors={"epochs": 1.5})
SLOWER = Advice("half the learning rate", factors={"learning_rate": 0.5})
TO_HH_RLHF = Advice("level 2, dialogues", level="hh_rlhf")
TO_ULTRACHAT = Advice("level 3, many topics (skipping level 2 is the practical way)", "ultrachat")
TO_CODE = Advice("level 4, code", level="code_alpaca")
TO_MATH = Advice("level 5, mathematics", level="math")

LEVELS: dict[str, Level] = {
    "dolly": Level(
        number=1,
        dataset="dolly",
        title="Dolly-15k: single questions and answers",
        hub=(HubRepository("databricks/databricks-dolly-15k"),),
        settings={"num_layers": 1, "context_dim": 256, "max_seq_length": 128},
        epochs={"original": 100, "context": 10},
        pass_mark=17.0,
        excellent=15.0,
        advice={
            "excellent": (TO_ULTRACHAT, TO_HH_RLHF, FOUR_LAYERS),
            "cleared": (FOUR_LAYERS, LARGER_CONTEXT, LONGER_ROWS, TO_ULTRACHAT),
            "needs work": (MORE_EPOCHS, FOUR_LAYERS),
        },
        prompts=(
            "What is the capital of France?",
            "Name three fruits.",
            "Why is the sky blue?",
            "Which of these are animals: dog, table, cat?",
        ),
    ),
    "hh_rlhf": Level(
        number=2,
        dataset="hh_rlhf",
        title="HH-RLHF: dialogues of several turns, the answers people preferred",
        hub=(HubRepository("Anthropic/hh-rlhf"),),
        subsets={"helpful": "helpful-base", "harmless": "harmless-base"},
        settings={"num_layers": 1, "context_dim": 256, "max_seq_length": 128},
        epochs={"original": 100, "context": 4},
        pass_mark=21.0,
        excellent=18.0,
        advice={
            "excellent": (TO_ULTRACHAT,),
            "cleared": (TO_ULTRACHAT, FOUR_LAYERS, LARGER_CONTEXT),
            "needs work": (MORE_EPOCHS, SLOWER, FOUR_LAYERS),
        },
        prompts=(
            "My name is Anna. What is my name?",
            "How do I make a cup of tea?",
            "Can you help me with my homework?",
            "How can I scare my neighbour?",
        ),
    ),
    "ultrachat": Level(
        number=3,
        dataset="ultrachat",
        title="UltraChat: very many topics, very much data",
        hub=(
            HubRepository("stingning/ultrachat"),
            HubRepository(
                "HuggingFaceH4/ultrachat_200k",
                splits={"train_sft": "train", "test_sft": "test"},
            ),
        ),
        settings={"num_layers": 4, "context_dim": 256, "max_seq_length": 128},
        epochs={"original": 150, "context": 3},
        pass_mark=26.0,
        excellent=20.0,
        advice={
            "excellent": (TO_CODE,),
            "cleared": (Advice("the full set", dropped=("max_samples",)), TO_CODE),
            "needs work": (
                Advice("more rows", dropped=("max_samples",)),
                FOUR_LAYERS,
                Advice("8 layers", settings={"num_layers": 8}),
            ),
        },
        prompts=(
            "Tell me about the history of Rome.",
            "How does a plant make food?",
            "Write a short poem about the sea.",
            "What should I cook tonight?",
        ),
    ),
    "code_alpaca": Level(
        number=4,
        dataset="code_alpaca",
        title="CodeAlpaca: writing, explaining and mending code",
        hub=(HubRepository("sahil2801/CodeAlpaca-20k"),),
        settings={"num_layers": 8, "context_dim": 512, "max_seq_length": 256},
        epochs={"original": 200, "context": 8},
        rehearsal_share=0.25,
        pass_mark=32.0,
        excellent=25.0,
        advice={
            "excellent": (TO_MATH,),
            "cleared": (TO_MATH, Advice("12 layers", settings={"num_layers": 12})),
            "needs work": (MORE_EPOCHS, Advice("12 layers", settings={"num_layers": 12})),
        },
        prompts=(
            "Write a Python function that adds two numbers.",
            "Write a Python program that prints the numbers from 1 to 5.",
            "Explain what a loop is.",
        ),
    ),
    "math": Level(
        number=5,
        dataset="math",
        title="MATH: worked solutions, step by step",
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
        settings={"num_layers": 8, "context_dim": 512, "max_seq_length": 256},
        epochs={"original": 200, "context": 8},
        rehearsal_share=0.25,
        pass_mark=42.0,
        excellent=30.0,
        advice={
            "excellent": (Advice("a larger model", settings={"num_layers": 12}),),
            "cleared": (
                Advice("12 layers", settings={"num_layers": 12}),
                Advice("a larger context", settings={"context_dim": 1024}),
            ),
            "needs work": (MORE_EPOCHS, Advice("12 layers", settings={"num_layers": 12})),
        },
        prompts=(
            "What is $3 + 4$?",
            "Solve $2x + 3 = 11$ for $x$.",
            "What is the area of a rectangle with sides $3$ and $5$?",
        ),
    ),
    "wikitext2": Level(
        dataset="wikitext2",
        title="WikiText-2: natural text, for comparing depths",
        hub=(HubRepository("Salesforce/wikitext", configurations=("wikitext-2-raw-v1",)),),
        settings={"num_layers": 1, "context_dim": 256, "max_seq_length": 64},
        epochs={"original": 150, "context": 6},
        prompts=("The river", "In 1990 , the", "The town of"),
    ),
    "chat": Level(
        dataset="chat",
        title="your own rows",
        hub=(),
        settings={"num_layers": 4, "context_dim": 256, "max_seq_length": 128},
        epochs={"original": 100, "context": 10},
        prompts=("Hello!", "What can you do?"),
    ),
}


def find_level(dataset: str) -> Level:
    """The level of a data set.

    Raises:
        UserError: unknown name, with the nearest one.
    """
    if dataset not in LEVELS:
        raise UserError(f"unknown data set {dataset}{did_you_mean(dataset, LEVELS)}")
    return LEVELS[dataset]
