"""Topics for longer talks, and how they are read from text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """A topic with one sentence for each thing that one may ask about it."""

    area: str
    name: str
    meaning: str
    detail: str
    example: str
    value: str
    surprise: str

    @property
    def is_plural(self) -> bool:
        """Whether the name stands for many things, as the sentence on its meaning shows."""
        return self.meaning[len(self.name) :].startswith(" are ")


def read_topics(area: str, text: str) -> tuple[Topic, ...]:
    """Topics of an area: blocks of six lines with empty lines between them."""
    blocks = "\n".join(line.strip() for line in text.strip().splitlines()).split("\n\n")
    return tuple(Topic(area, *block.splitlines()) for block in blocks)
