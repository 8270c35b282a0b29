"""`python -m tools.samples [DATASET ...]`: write the built-in rows, of all data sets by default."""

from __future__ import annotations

import sys

from tools.samples import SAMPLES, write_sample

for dataset in sys.argv[1:] or SAMPLES:
    for file in write_sample(dataset):
        print(f"{file} ({file.stat().st_size:,} bytes)")
