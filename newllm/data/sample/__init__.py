"""Built-in sample data: small synthetic data sets for a first training run without a network.

Each data set has the fields of a well-known one, its text is made here from lists of words,
sentence patterns and computed results. The same data set, split and seed always give the same
rows, and no row of one split is in the other.
"""

from __future__ import annotations

from importlib import import_module

_MODULES = {
    "dolly": "dolly",
    "hh_rlhf": "hh_rlhf",
    "ultrachat": "ultrachat",
    "code_alpaca": "code_alpaca",
    "math": "math_problems",
    "wikitext2": "wikitext2",
}

SAMPLES: tuple[str, ...] = tuple(_MODULES)


def sample_rows(dataset: str, split: str, seed: int = 0) -> list[dict[str, object]]:
    """The rows of a split ("train" or "validation") of one of the `SAMPLES`."""
    if dataset not in _MODULES:
        raise ValueError(f"unknown sample {dataset!r}; known: {', '.join(SAMPLES)}")
    module = import_module(f"{__name__}.{_MODULES[dataset]}")
    return module.rows(split, seed)
