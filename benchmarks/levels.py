"""Every data set, both tokenizers, so many minutes of training each: a table in Markdown.

python benchmarks/levels.py --data-dir FOLDER --minutes 3     # FOLDER/dolly, FOLDER/math, ..
python benchmarks/levels.py --data-dir sample --minutes 1
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DATASETS = ("dolly", "hh_rlhf", "ultrachat", "code_alpaca", "math", "wikitext2")
HEADER = (
    "| data set | tokenizer | parameters | rows | tokens read | UNK share | n-gram PPL | PPL "
    "| accuracy | bits per byte |\n|---|---|---|---|---|---|---|---|---|---|"
)


def newllm(*arguments: str) -> str:
    """Standard output of one command of ours."""
    command = [sys.executable, "-m", "newllm", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def train_and_score(dataset: str, data: str, tokenizer: str, minutes: str, out: Path) -> str:
    """One row of the table; everything the commands print goes to a log beside the checkpoints."""
    out.mkdir(parents=True, exist_ok=True)
    log = newllm(
        "train", dataset, "--data", data, "--tokenizer", tokenizer, "--minutes", minutes,
        "--name", f"{dataset}_{tokenizer}", "--out", str(out),
    )  # fmt: skip
    (out / f"{dataset}_{tokenizer}.log").write_text(log, encoding="utf-8")
    best = str(out / f"best_{dataset}_{tokenizer}.pt")
    facts: dict[str, Any] = json.loads(newllm("info", best, "--json"))
    score: dict[str, Any] = json.loads(newllm("eval", best, "--data", data, "--json"))
    unk = "" if score["unk_share"] is None else f"{score['unk_share']:.1%}"
    bpb = "" if score["bpb"] is None else f"{score['bpb']:.4f}"
    rows = facts["data"]["accounting"]["train"]["documents"]
    return (
        f"| {dataset} | {tokenizer} | {facts['parameters'] / 1e6:.2f}M | {rows:,} "
        f"| {facts['metrics']['trained_tokens']:,} | {unk} | {score['ngram_ppl']:.2f} "
        f"| {score['ppl']:.2f} | {score['accuracy']:.1%} | {bpb} |"
    )


def main() -> None:
    """Train all, print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True, help="folder of the data sets, or sample")
    parser.add_argument("--minutes", default="3", help="training time of each")
    parser.add_argument("--datasets", nargs="+", default=DATASETS, choices=DATASETS)
    parser.add_argument("--tokenizers", nargs="+", default=["word1000", "bpe"])
    parser.add_argument("--out", type=Path, default=Path("benchmark_runs"))
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    for dataset in arguments.datasets:
        sample = arguments.data_dir == "sample"
        data = "sample" if sample else str(Path(arguments.data_dir) / dataset)
        for tokenizer in arguments.tokenizers:
            row = train_and_score(dataset, data, tokenizer, arguments.minutes, arguments.out)
            print(row, flush=True)


if __name__ == "__main__":
    main()
