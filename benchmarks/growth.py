"""Growing against training the large model from scratch, in equal time.

    newllm bench growth --data FOLDER/dolly --minutes 4

A large model trains for so many minutes. A small one trains for a share of them, grows to the same
shape without changing what it says, and trains on for the rest.
"""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.measure import Report, Row, progress, report_options
from benchmarks.trials import run_module, train_trial
from newllm.model.spec import PAIR_ROWS, default_widths
from newllm.results.summary import Summary, load_summary

COMMON = {"dropout": 0, "epochs": 1000, "patience": 1000}


@click.command()
@click.option("--dataset", default="dolly", show_default=True)
@click.option("--data", required=True, help="hub, sample, or a file or folder.")
@click.option("--layers", nargs=2, default=(1, 4), show_default=True, help="Before and after.")
@click.option("--minutes", default=4.0, show_default=True, help="Of training, each candidate.")
@click.option("--share", default=0.5, show_default=True, type=click.FloatRange(0, 1, True, True),
              help="Of the minutes that the small model trains.")  # fmt: skip
@click.option("--seeds", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=1, show_default=True, help="Cores a training uses.")
@click.option("--out", default="benchmark_runs/growth", show_default=True, type=Path)
@report_options
def command(
    dataset: str,
    data: str,
    layers: tuple[int, int],
    minutes: float,
    share: float,
    seeds: int,
    threads: int,
    out: Path,
) -> Report:
    context = 256
    shape = {
        "context_dim": context,
        "pair_rows": PAIR_ROWS * context,
        **default_widths(layers[0], context, pairs=True, recall=True),
    }
    rows = []
    for seed in range(seeds):
        settings = {"data": data, "seed": seed, **COMMON}
        mark = f"{dataset}_{minutes:g}_{seed}"
        scratch, grown, small = f"scratch_{mark}", f"grown_{mark}", f"small_{mark}"
        train_trial(dataset, scratch,
                    {**settings, **shape, "num_layers": layers[1], "minutes": minutes},
                    out, threads)  # fmt: skip
        rows.append(_row("from scratch", seed, load_summary(out / f"{scratch}.summary.json")))
        train_trial(dataset, small,
                    {**settings, **shape, "num_layers": layers[0], "minutes": share * minutes},
                    out, threads)  # fmt: skip
        start = out / f"{small}_grown.pt"
        run_module(
            ["newllm", "grow", str(out / f"{small}_final.pt"), "--num-layers", str(layers[1]),
             "-o", str(start)],
            out / f"{small}.log",
        )  # fmt: skip
        train_trial(dataset, grown,
                    {**settings, "init_from": start, "minutes": (1 - share) * minutes},
                    out, threads)  # fmt: skip
        small_run = load_summary(out / f"{small}.summary.json")
        rows.append(_row("grown", seed, load_summary(out / f"{grown}.summary.json"), small_run))
    return Report({f"{layers[0]} layers grown to {layers[1]}, {minutes:g} minutes": rows})


def _row(how: str, seed: int, summary: Summary, before: Summary | None = None) -> Row:
    tokens = summary.trained_tokens + (before.trained_tokens if before else 0)
    row = {
        "how": how,
        "seed": seed,
        "parameters": summary.parameters,
        "tokens_read": tokens,
        "bits_per_byte": summary.best["bpb"],
        "before_growing": before.best["bpb"] if before else None,
    }
    progress(f"{how}, seed {seed}: {row['bits_per_byte']:.4f} bits per byte")
    return row
