"""What the published commands share: they run from a bare clone, in the word-1000 protocol."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def launch(dataset: str) -> int:
    """Run `newllm train DATASET --tokenizer word1000` with this process's flags after it."""
    sys.path.insert(0, str(ROOT))
    try:
        import torch  # noqa: F401 (the one that is most often missing)

        from newllm.cli import main
    except ModuleNotFoundError as error:
        line = f"{error.name} is not installed; install New-LLM first:  pip install -e {ROOT}"
        print(line, file=sys.stderr)
        return 2
    return main(["train", dataset, "--tokenizer", "word1000", *sys.argv[1:]])
