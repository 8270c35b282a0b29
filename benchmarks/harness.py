"""Checkpoints judged by lm-eval, without a network: BLiMP, sums as GPT-3 was asked, plain text.

    newllm bench harness --checkpoint FILE --blimp CLONE/data --arithmetic CLONE/data --text FILE

The rows are those of the tasks' authors: 67 files of BLiMP (alexwarstadt/blimp), of each 1,000
pairs of a right and a wrong sentence; two_digit_addition.jsonl and two_digit_subtraction.jsonl of
openai/gpt-3; JSON lines with a key "text". Each is given to lm-eval as the task of that name there.
A pair is right where the right sentence is likelier; "ties" are pairs with two equal likelihoods,
which lm-eval counts as right (the right sentence stands first).
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import yaml

from benchmarks.measure import Report, Row, progress, report_options
from newllm.errors import UserError
from newllm.trained import TrainedModel

SUMS = ("two_digit_addition", "two_digit_subtraction")
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def pair_task(name: str, file: Path) -> dict[str, Any]:
    """BLiMP's task of one paradigm, with its rows in a file."""
    return {
        **_rows(f"blimp_{name}", file),
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    }


def sum_task(name: str, file: Path) -> dict[str, Any]:
    """A task of `arithmetic`: the answer's tokens are each the likeliest."""
    return {
        **_rows(name, file),
        "output_type": "loglikelihood",
        # as lm-eval's own `process_docs` rewrites them
        "doc_to_text": "{{context|trim|replace('\n\n', '\n')|replace('Q:', 'Question:')"
        "|replace('A:', 'Answer:')}}",
        "doc_to_target": "{{completion}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }


def text_task(file: Path) -> dict[str, Any]:
    """Bits per byte of whole texts."""
    return {
        **_rows("text", file),
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }


def _rows(name: str, file: Path) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
        "test_split": "test",
    }


def evaluate(checkpoint: str, tasks: Iterable[dict[str, Any]], limit: int | None) -> dict[str, Any]:
    """What lm-eval says, its samples included."""
    try:
        import lm_eval
        from datasets import config
        from lm_eval.tasks import TaskManager

        import newllm.export.lm_eval  # noqa: F401  (registers the model)
    except ImportError as error:
        raise UserError(
            f'lm-eval is needed (pip install -e ".[eval]" in the clone): {error}'
        ) from None
    names = []
    with tempfile.TemporaryDirectory() as place:
        for task in tasks:
            names.append(task["task"])
            (Path(place) / f"{task['task']}.yaml").write_text(yaml.safe_dump(task), "utf-8")
        config.HF_DATASETS_CACHE = Path(place) / "cache"
        run: Any = lm_eval.simple_evaluate
        return run(
            model="newllm",
            model_args=f"pretrained={checkpoint},device=cpu",
            tasks=names,
            task_manager=TaskManager(include_path=place, include_defaults=False),
            limit=limit,
            log_samples=True,
            bootstrap_iters=0,
        )


def by_field(samples: dict[str, list[dict[str, Any]]]) -> dict[str, Row]:
    """BLiMP's four fields and all of it: pairs right, ties, both of all pairs."""
    found: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for name, rows in samples.items():
        if not name.startswith("blimp_"):
            continue
        for row in rows:
            good, bad = (float(nats) for nats, _ in row["filtered_resps"])
            told = (good > bad, good == bad)
            found[row["doc"]["field"].replace("/", "_")].append(told)  # one file has it otherwise
            found["all"].append(told)
    return {
        field: {
            "right": sum(right for right, _ in told) / len(told),
            "ties": sum(tie for _, tie in told) / len(told),
            "pairs": len(told),
        }
        for field, told in found.items()
    }


@click.command()
@click.option("--checkpoint", "checkpoints", metavar="FILE", multiple=True, required=True,
              help="A model (may be repeated).")  # fmt: skip
@click.option("--blimp", type=FOLDER, help="The folder of BLiMP's 67 files.")
@click.option("--arithmetic", type=FOLDER, help="The folder of GPT-3's sums.")
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help='JSON lines {"text": ..}.')  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Rows of each task at most.")
@report_options
def command(
    checkpoints: tuple[str, ...],
    blimp: Path | None,
    arithmetic: Path | None,
    text: Path | None,
    limit: int | None,
) -> Report:
    tasks = [pair_task(file.stem, file) for file in sorted((blimp or Path()).glob("*.jsonl"))]
    if blimp and not tasks:
        raise UserError(f"{blimp}: no *.jsonl in it; BLiMP's rows are in the folder data")
    for name in SUMS if arithmetic else ():
        file = Path(arithmetic or "") / f"{name}.jsonl"
        if not file.exists():
            raise UserError(f"{file}: no such file; GPT-3's sums are in the folder data")
        tasks.append(sum_task(name, file))
    if text:
        tasks.append(text_task(text))
    if not tasks:
        raise UserError("nothing to judge by: give --blimp, --arithmetic or --text")
    tables: dict[str, list[Row]] = {}
    for checkpoint in checkpoints:
        trained = TrainedModel.load(checkpoint, "cpu")
        model: Row = {
            "model": trained.path.stem.removeprefix("best_"),
            "architecture": trained.settings.architecture,
        }
        progress(f"{checkpoint}: {len(tasks)} tasks")
        told = evaluate(checkpoint, tasks, limit)
        for field, row in by_field(told["samples"]).items():
            tables.setdefault("BLiMP", []).append({**model, "field": field, **row})
        for name, values in told["results"].items():
            rows = len(told["samples"][name])
            if name in SUMS:
                row = {**model, "task": name, "acc": values["acc,none"], "rows": rows}
                tables.setdefault("Sums", []).append(row)
            elif name == "text":
                row = {**model, "bits_per_byte": values["bits_per_byte,none"], "rows": rows}
                tables.setdefault("Text", []).append(row)
    return Report(tables)
