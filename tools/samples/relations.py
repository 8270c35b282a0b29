"""Relations: facts of one kind, and the phrasings in which one can ask about them.

A relation is written as text: the names of its fields, one fact after another, and one line per
phrasing with the question before the bar and the answer after it. In a phrasing `{field}` is the
fact's value, `{not_field}` the different value of some other fact, and the form of a word is
chosen as in `phrases.Word`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tools.samples.phrases import Word, sentence_case


@dataclass(frozen=True)
class Relation:
    """Facts of one kind with their phrasings."""

    fields: tuple[str, ...]
    facts: tuple[tuple[str, ...], ...]
    phrasings: tuple[tuple[str, str], ...]

    def questions(self) -> Iterator[tuple[str, str]]:
        """Every fact in every phrasing: the question and its answer."""
        for position, fact in enumerate(self.facts):
            values = {name: Word(value) for name, value in zip(self.fields, fact, strict=True)}
            for column, name in enumerate(self.fields):
                values[f"not_{name}"] = Word(self._different(position, column))
            for question, answer in self.phrasings:
                yield (
                    sentence_case(question.format_map(values)),
                    sentence_case(answer.format_map(values)),
                )

    def _different(self, position: int, column: int) -> str:
        """The next value in a column that is not the one at the position."""
        following = self.facts[position:] + self.facts[:position]
        return next(
            fact[column] for fact in following if fact[column] != self.facts[position][column]
        )


def relation(fields: str, facts: str, phrasings: str) -> Relation:
    """Read a relation from text; facts end with ";" and their values are parted by ","."""
    return Relation(
        tuple(fields.split()),
        tuple(
            tuple(" ".join(value.split()) for value in fact.split(","))
            for fact in facts.split(";")
            if fact.strip()
        ),
        tuple(
            (question.strip(), answer.strip())
            for question, answer in (line.split("|") for line in phrasings.strip().splitlines())
        ),
    )


def following(words: Sequence[str], last: bool) -> str:
    """Neighbours in a sequence as the text of a relation; `last` lets it go round."""
    pairs = list(pairwise(words))
    if last:
        pairs.append((words[-1], words[0]))
    return ";".join(f"{earlier},{later}" for earlier, later in pairs)
