"""How text is written where nothing else is said; light to import, for the command line."""

from __future__ import annotations

from dataclasses import dataclass

MAX_NEW_TOKENS = 256
"""Length of an answer at most."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.7
    """0 takes the likeliest token; higher values even out the probabilities."""
    top_p: float = 0.9
    """Sample from the likeliest tokens that together have this probability (arXiv:1904.09751)."""
    seed: int | None = None
    """None: another text every time."""
    repetition_penalty: float = 1.1
    """Scores of the answer's last tokens are divided by it, >= 1; 1 leaves them as they are."""
    top_k: int = 0
    """Only so many of the likeliest tokens are drawn (arXiv:1805.04833); 0: any."""
    min_p: float = 0.0
    """Only tokens of at least this fraction of the likeliest one's probability are drawn, 0..1
    (arXiv:2407.01082)."""
    frequency_penalty: float = 0.0
    """Taken off a token's score for each time that the answer has it."""
    presence_penalty: float = 0.0
    """Taken off a token's score once the answer has it."""
