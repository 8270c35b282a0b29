"""The other side of `math_answers.py`: compares two results by `math-verify`, line by line.

Run as a script in a process of its own: computer algebra may take for ever, or all memory.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

_MEMORY_BYTES = 2 * 1024**3


def main() -> None:
    """Read lines `{"expected", "given"}` from stdin, answer each by `true` or `false`."""
    del sys.path[0]  # the folder of this file, which would shadow installed modules
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # Windows has none; there time alone is limited

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    # LaTeX alone: the parser of plain expressions would hand the model's text to Python's eval.
    reading: dict[str, Any] = {
        "extraction_config": [LatexExtractionConfig()],
        "parsing_timeout": None,  # the other side watches the time
    }
    print("ready", flush=True)
    for line in sys.stdin:
        pair = json.loads(line)
        try:
            results = (pair[name].rstrip(" .") for name in ("expected", "given"))
            expected, given = (parse(f"${result}$", **reading) for result in results)
            equal = verify(expected, given, timeout_seconds=None)
        except Exception:  # what the library cannot read is not the expected result
            equal = False
        print(json.dumps(bool(equal)), flush=True)


if __name__ == "__main__":
    main()
