"""Talks with a good and a bad last answer in the fields of HH-RLHF: chosen and rejected.

Each row also names its `subset`, "helpful-base" or "harmless-base".
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tools.samples.hh_harmless import harmless_talk
from tools.samples.hh_helpful import helpful_talk
from tools.samples.phrases import Row, distinct_rows, generator
from tools.samples.talks import Talk

ROWS = {"train": 1500, "validation": 150}
SUBSETS: tuple[tuple[str, Callable[[Random], Talk]], ...] = (
    ("helpful-base", helpful_talk),
    ("harmless-base", harmless_talk),
)


def prompt_of(row: Row) -> str:
    """The talk without its last answer."""
    return str(row["chosen"]).rpartition("\n\nAssistant: ")[0]


def rows(split: str, seed: int) -> list[Row]:
    """The rows of a split in random order."""
    rng = generator("hh_rlhf", split, seed)
    result: list[Row] = []
    for subset, draw_talk in SUBSETS:

        def draw(
            rng: Random, subset: str = subset, draw_talk: Callable[[Random], Talk] = draw_talk
        ) -> Row:
            talk = draw_talk(rng)
            return {
                "chosen": talk.with_answer(talk.chosen),
                "rejected": talk.with_answer(talk.rejected),
                "subset": subset,
            }

        result += distinct_rows(draw, ROWS[split], split, rng, prompt_of)
    rng.shuffle(result)
    return result
