"""Makes the built-in rows: small synthetic data sets for a first training run without a network.

Each data set has the fields of a well-known one; its text is made here from lists of words,
sentence patterns and computed results. The same data set, split and seed always give the same
rows, and no row of one split is in the other. `python -m tools.samples` writes the rows of seed 0
into the package, which holds them as data alone.
"""

from __future__ import annotations

import gzip
import io
import json
from importlib import import_module
from pathlib import Path

from tools.samples.phrases import SPLITS

FOLDER = Path(__file__).parents[2] / "newllm" / "datasets" / "samples"
"""Where the package keeps its rows: DATASET/train.jsonl.gz and DATASET/validation.jsonl.gz."""

_MODULES = {
    "dolly": "dolly",
    "hh_rlhf": "hh_rlhf",
    "ultrachat": "ultrachat",
    "code_alpaca": "code_alpaca",
    "math": "math_problems",
    "wikitext2": "wikitext2",
    "dolly_ja": "dolly_ja",
}

SAMPLES: tuple[str, ...] = tuple(_MODULES)


def sample_rows(dataset: str, split: str, seed: int = 0) -> list[dict[str, object]]:
    """The rows of a split ("train" or "validation") of one of the `SAMPLES`."""
    if dataset not in _MODULES:
        raise ValueError(f"unknown sample {dataset!r}; known: {', '.join(SAMPLES)}")
    module = import_module(f"{__name__}.{_MODULES[dataset]}")
    return module.rows(split, seed)


def sample_lines(dataset: str, split: str) -> bytes:
    """The rows of a split as the package holds them, before compression: a line of JSON each."""
    rows = sample_rows(dataset, split)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def compressed(lines: bytes) -> bytes:
    """The gzip file of some lines: without name and time, so that equal lines give equal bytes.

    Another version of zlib may compress otherwise; what comes out again is the same.
    """
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as stream:
        stream.write(lines)
    return buffer.getvalue()


def write_sample(dataset: str) -> list[Path]:
    """Write both splits of a data set into the package, and return the files."""
    files = []
    for split in SPLITS:
        file = FOLDER / dataset / f"{split}.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(compressed(sample_lines(dataset, split)))
        files.append(file)
    return files
