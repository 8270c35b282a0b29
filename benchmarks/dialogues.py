"""Made-up dialogues of UltraChat's shape, in any number, for what depends on size alone.

Four messages and more, user and assistant in turn; their lengths are lognormal, with the parameters
measured on 792 filtered dialogues of the real set (5.0 messages and 2,000 characters on average).
Words are made of syllables and drawn by Zipf's law, so that a vocabulary finds common words, rare
ones and their parts, as in text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MEAN_CHARACTERS = 2000
"""Of a dialogue."""

_LOG_LENGTHS = ((5.19, 0.94), (5.96, 0.80))
"""Mean and deviation of log(characters), of the user's messages and of the assistant's."""
_MORE_TURNS = 0.33
"""Chance of another pair of messages after the first two."""
_LONGEST = 20_000
"""Characters of a message at most."""
_WORDS = 50_000
_AT_ONCE = 1000
_SYLLABLES = [c + v for c in "b c d f g h k l m n p r s t w st tr ch".split() for v in "aeiou"]
_MARKS = np.array(["", "", "", "", "", "", "", "", ",", ",", ".", ".", ".\n", "?", ":", " -"])


def write_dialogues(path: Path, rows: int, seed: int, mean_characters: int) -> int:
    """Write rows as JSON lines; returns the bytes written."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for line in _lines(rows, seed, mean_characters / MEAN_CHARACTERS):
            size += file.write(line)
    return size


def _lines(rows: int, seed: int, scale: float) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    words = _vocabulary()
    chances = np.cumsum(1 / np.arange(1, _WORDS + 1))
    chances /= chances[-1]
    mean_word = 6.8  # characters, with the blank and the mark; a message ends with a whole word
    for begin in range(0, rows, _AT_ONCE):
        count = min(_AT_ONCE, rows - begin)
        pairs = 1 + rng.geometric(1 - _MORE_TURNS, count)
        lengths = np.empty(2 * pairs.sum())
        for speaker, (mean, deviation) in enumerate(_LOG_LENGTHS):
            lengths[speaker::2] = rng.lognormal(mean, deviation, pairs.sum())
        counts = np.maximum(1, np.minimum(lengths * scale, _LONGEST) / mean_word).astype(int)
        drawn = words[np.searchsorted(chances, rng.random(counts.sum()))]
        marks = _MARKS[rng.integers(0, len(_MARKS), counts.sum())]
        spoken = np.char.add(drawn, marks).tolist()
        ends = np.cumsum(counts).tolist()
        texts = [" ".join(spoken[e - c : e]) for e, c in zip(ends, counts.tolist(), strict=True)]
        place = 0
        for number, messages in enumerate((2 * pairs).tolist(), start=begin):
            data = texts[place : place + messages]
            place += messages
            yield json.dumps({"id": str(number), "data": data}) + "\n"


def _vocabulary() -> np.ndarray:
    """Words of one to four syllables, common ones short; always the same, [W] str."""
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.normal(np.log10(np.arange(1, _WORDS + 1)) * 0.7 + 0.8, 0.6), 1, 4)
    return np.array(
        ["".join(rng.choice(_SYLLABLES, size)) for size in sizes.round().astype(int).tolist()]
    )
