"""Talks that end with a good and a bad answer, and small talk to put between their turns."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tools.samples.facts import fact_questions

SMALL_TALK = (
    ("The weather is nice today.", "That is good to hear. I hope that you can enjoy it."),
    ("It is raining here.", "Then it is a good day to stay inside with a book."),
    ("I had a long day.", "I am sorry to hear that. I hope that you can rest now."),
    ("I am a little tired.", "Then a short rest and a cup of tea may help."),
    ("I am happy today.", "That is wonderful. What a good start for our talk."),
    ("I have just had breakfast.", "I hope that it was good."),
    ("My tea is still too hot.", "Give it a few minutes and it will be just right."),
    ("I am waiting for the bus.", "Then we have a little time to talk."),
    ("I like to talk to you.", "Thank you, I like to talk to you too."),
    ("It is very quiet here.", "A quiet hour can be a good thing."),
)


@dataclass(frozen=True)
class Talk:
    """What was said, the human first and last, and two ways to answer the last turn."""

    turns: tuple[str, ...]
    chosen: str
    rejected: str

    def prompt(self) -> str:
        """The talk up to its last human turn, each turn with its speaker."""
        speakers = ("Human", "Assistant")
        return "".join(
            f"\n\n{speakers[place % 2]}: {text}" for place, text in enumerate(self.turns)
        )

    def with_answer(self, answer: str) -> str:
        """The whole talk with an answer at its end."""
        return f"{self.prompt()}\n\nAssistant: {answer}"


def interlude(rng: Random) -> tuple[str, ...]:
    """No turns, or a human turn and its answer that have nothing to do with the rest."""
    kind = rng.random()
    if kind < 0.4:
        return ()
    if kind < 0.7:
        return rng.choice(fact_questions())
    return rng.choice(SMALL_TALK)
