"""Training on a machine that also does something else: tokens in equal time, by threads.

    newllm bench busy --data sample

Every row is a real training, in turns with the others: with one thread, with all, and with as many
as it chooses; on the machine as it is, and beside processes that each keep a core busy, from the
start or from a third of the time on. `share` is of one thread alone on the machine as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import click
import torch

from benchmarks.measure import Report, Row, progress, report_options
from newllm.results.summary import load_summary

BUSY = "while True: pass"


@contextmanager
def others(count: int) -> Iterator[None]:
    """So many processes that compute as long as the block runs."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def tokens(dataset: str, data: str, seconds: float, threads: int | None, later: int) -> int:
    """Tokens that a training reads in so many seconds; after a third, `later` processes begin."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "newllm", "train", dataset, "--data", data, "--device", "cpu",
            "--minutes", str(seconds / 60), "--epochs", "1000", "--out", folder, "--name", "busy",
        ]  # fmt: skip
        command += [] if threads is None else ["--threads", str(threads)]
        environment = {name: v for name, v in os.environ.items() if name != "OMP_NUM_THREADS"}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if later and line.startswith("Expected"):
                    time.sleep(seconds / 3)
                    with others(later):
                        said += process.stdout.read()
            if process.wait():
                raise click.ClickException(f"{' '.join(command)} failed:\n{said}")
        changes = [line.strip() for line in said.splitlines() if "other programs keep" in line]
        progress("; ".join(changes))
        return load_summary(Path(folder) / "busy.summary.json").trained_tokens


@click.command()
@click.option("--dataset", default="dolly", show_default=True, help="Data set.")
@click.option("--data", default="sample", show_default=True, help="Its rows: sample or PATH.")
@click.option("--seconds", default=20.0, show_default=True, help="Of each training.")
@click.option("--busy", default=1, show_default=True, help="Other processes.")
@click.option("--repeats", default=3, show_default=True, help="Rounds.")
@report_options
def command(dataset: str, data: str, seconds: float, busy: int, repeats: int) -> Report:
    cores = torch.get_num_threads()
    ways = {"one thread": 1, f"{cores} threads": cores, "chosen": None}
    machines = {"as it is": (0, 0), "busy": (busy, 0), "busy after a third": (0, busy)}
    found: dict[tuple[str, str], list[int]] = {}
    for _ in range(repeats):
        for machine, (before, later) in machines.items():
            for way, threads in ways.items():
                with others(before):
                    count = tokens(dataset, data, seconds, threads, later)
                progress(f"{machine}, {way}: {count:,} tokens")
                found.setdefault((machine, way), []).append(count)
    alone = median(found["as it is", "one thread"])
    rows: list[Row] = [
        {"machine": machine, "threads": way, "tokens": int(median(counts)),
         "share": median(counts) / alone, "least": min(counts) / alone}
        for (machine, way), counts in found.items()
    ]  # fmt: skip
    return Report({"Tokens in equal time": rows}, {"seconds": seconds, "other processes": busy})
