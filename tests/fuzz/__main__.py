"""Coverage-guided fuzzing of one target: `python -m tests.fuzz yaml --seconds 60` (`make fuzz`).

It ends when the time is over or so many inputs were tried, whichever comes first.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

_COMPILED = [
    "newllm.model.kernels.cpu", "newllm.model.kernels.numerics", "newllm.model.context.cpu",
    "newllm.model.context.decode_cpu", "newllm.model.recall.cpu", "newllm.model.counts.cpu",
    "newllm.inference.nucleus",
]  # fmt: skip
"""What numba compiles, which cannot be instrumented."""


def main() -> None:
    """Ends with exit code 0 when all is tried, otherwise with the input that was too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--inputs", type=int, default=-1)
    given = parser.parse_args()
    atheris = importlib.import_module("atheris")  # of the extra `fuzz`
    with atheris.instrument_imports(include=["newllm", "yaml", "json"], exclude=_COMPILED):
        from tests.fuzz import common, targets
    if given.target not in targets.NAMES:
        parser.error(f"no such target; there are {', '.join(targets.NAMES)}")
    target, seeds = targets.make(given.target)
    # libFuzzer ends the process by itself: what is written lies in one temporary folder.
    corpus = Path(tempfile.mkdtemp(prefix="newllm-corpus-", dir=common.FOLDER))
    for number, seed in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(seed)
        target(seed)
    options = [
        f"-max_total_time={given.seconds}", f"-runs={given.inputs}", "-timeout=20",
        "-rss_limit_mb=3000", "-max_len=65536", "-print_final_stats=1", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
