"""The levels say what was published: settings, marks, bands, advice that can be pasted."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest

from newllm.cli import cli
from newllm.config import Settings
from newllm.data.prepare import Encoding
from newllm.datasets import DATASETS
from newllm.errors import UserError
from newllm.model.spec import default_widths
from newllm.results.marks import BpbVerdict
from newllm.results.records import ComparedBaseline, EpochRecord, NgramBaseline
from newllm.results.summary import Summary, load_summary, save_summary, summary_lines
from newllm.results.verdict import judge, next_steps
from newllm.settings import resolve


@pytest.mark.parametrize(
    ("dataset", "number", "layers", "context", "length", "epochs", "mark", "excellent"),
    [
        ("dolly", 1, 1, 256, 128, 100, 17, 15),
        ("hh_rlhf", 2, 1, 256, 128, 100, 21, 18),
        ("ultrachat", 3, 4, 256, 128, 150, 26, 20),
        ("code_alpaca", 4, 8, 512, 256, 200, 32, 25),
        ("math", 5, 8, 512, 256, 200, 42, 30),
    ],
)
def test_published_levels(dataset, number, layers, context, length, epochs, mark, excellent):
    level, settings = DATASETS[dataset], resolve(dataset, {"architecture": "original"})
    assert (settings.num_layers, settings.context_dim) == (layers, context)
    assert (settings.max_seq_length, settings.epochs, settings.patience) == (length, epochs, 20)
    assert (level.number, level.pass_mark, level.excellent) == (number, mark, excellent)
    assert level.band(excellent - 0.01) == "excellent"
    assert level.band(mark - 0.01) == "cleared"
    assert level.band(mark) == "needs work"


def test_every_level_is_complete() -> None:
    for name, level in DATASETS.items():
        assert level.name == name
        assert level.prompts
        assert set(level.epochs) == {"original", "context"}
        if level.number:  # level 0 has neither marks nor advice
            assert set(level.advice) == {"excellent", "cleared", "needs work"}
            assert all(item.level in {None, *DATASETS} for a in level.advice.values() for item in a)


def test_every_text_for_people_has_its_japanese() -> None:
    """Where English has a second part, so has the Japanese; both say something."""
    for dataset in DATASETS.values():
        assert dataset.title_ja.count(": ") == dataset.title.count(": ")
        steps = [step for band in dataset.advice.values() for step in band]
        texts = [dataset.title_ja, *(step.text_ja for step in steps)]
        assert all(any(character > "\u3000" for character in text) for text in texts), dataset.name
        for step in steps:
            others = [s for d in DATASETS.values() for band in d.advice.values() for s in band]
            assert {s.text_ja for s in others if s.text == step.text} == {step.text_ja}


def test_a_data_set_can_refuse_the_word_1000_vocabulary(monkeypatch) -> None:
    """Wherever rows and tokenizer meet: a run, an evaluation of a word1000 model, a rehearsal."""
    unfit = replace(DATASETS["chat"], name="unfit", word1000_refusal="its texts have no blanks")
    monkeypatch.setitem(DATASETS, "unfit", unfit)
    line = "unfit with --tokenizer word1000: its texts have no blanks; use --tokenizer bpe"
    assert resolve("unfit", {}).tokenizer == "bpe"
    with pytest.raises(UserError) as refused:
        resolve("unfit", {"tokenizer": "word1000"})
    assert str(refused.value) == line
    assert Encoding("unfit", "bpe", 500, 128).tokenizer == "bpe"
    with pytest.raises(UserError) as refused:
        Encoding("unfit", "word1000", 1000, 128)
    assert str(refused.value) == line


def record(**changes: Any) -> EpochRecord:
    values = {"epoch": 3, "ppl": 16.0, "accuracy": 0.46, "unk_share": 0.41, "bpb": None,
              "bpb_assistant": None, **changes}  # fmt: skip
    return cast(EpochRecord, values)


def summary_of(
    dataset: str, settings: Settings, best: EpochRecord, baseline: NgramBaseline
) -> Summary:
    """What a run with this result leaves."""
    level = DATASETS[dataset]
    return Summary(
        run=settings.run_name,
        dataset=dataset,
        level=level.number,
        settings=settings.model_dump(),
        parameters=1000,
        data={},
        best=best,
        epochs=3,
        minutes=1.0,
        trained_tokens=10,
        ngram_baseline=ComparedBaseline(**asdict(baseline), beaten=baseline.beaten_by(best)),
        verdict=judge(level, settings, best),
        advice=tuple(next_steps(level, settings, best, baseline)),
        checkpoint="a folder/best.pt",
        versions={},
        machine={},
        created="2026-01-01T00:00:00Z",
    )


def lines_of(*arguments: Any) -> list[str]:
    return summary_lines(summary_of(*arguments))


def commands(lines: list[str]) -> list[list[str]]:
    found = [line.split("\n  ")[1] for line in lines if "\n  newllm" in line]
    return [shlex.split(command)[1:] for command in found]


@pytest.mark.parametrize(
    ("dataset", "tokenizer"),
    [
        (name, tokenizer)
        for name, dataset in DATASETS.items()
        for tokenizer in ("word1000", "bpe")
        if name != "chat" and not (tokenizer == "word1000" and dataset.word1000_refusal)
    ],
)
@pytest.mark.parametrize("ppl", [1.0, 16.0, 1000.0])
@pytest.mark.parametrize("architecture", ["context", "original"])
def test_every_command_of_a_verdict_can_be_pasted(dataset, tokenizer, ppl, architecture) -> None:
    settings = resolve(
        dataset, {"tokenizer": tokenizer, "data": "my rows", "architecture": architecture}
    )
    best = record(ppl=ppl)
    baseline = NgramBaseline(3, 20.0, None)
    if tokenizer == "bpe":
        best = record(ppl=ppl, bpb=ppl / 10, unk_share=None)
        baseline = NgramBaseline(5, 20.0, 2.0)
    lines = lines_of(dataset, settings, best, baseline)
    for verb, *arguments in commands(lines):
        assert "--batch-size" not in arguments, "a default need not be said"
        context = cli.commands[verb].make_context(verb, list(arguments))
        assert context.params
        if verb == "train" and "--data" in arguments:
            given = {k: v for k, v in context.params.items() if v is not None}
            for name in ("resume", "config", "dataset", "tensorboard"):
                given.pop(name, None)
            following = resolve(context.params["dataset"], given)
            changed = {k for k, v in following.model_dump().items() if v != getattr(settings, k)}
            assert changed, "advice that changes nothing"
            assert following.data == "my rows"
            assert following.architecture == architecture


def test_verdict_says_the_mark_the_baseline_and_the_unknown_share() -> None:
    settings = resolve("dolly", {"tokenizer": "word1000", "data": "rows"})
    text = "\n".join(lines_of("dolly", settings, record(), NgramBaseline(3, 20.0, None)))
    assert "CLEARED, PPL 16.00 against < 17 (margin +1.00, band: cleared)" in text
    assert "3-gram table reaches PPL 20.00" in text
    assert "41.0% of the scored tokens are unknown" in text
    failed = "\n".join(lines_of("dolly", settings, record(ppl=18.0), NgramBaseline(3, 20.0, None)))
    assert "NOT CLEARED" in failed
    assert "--epochs 15" in failed


def test_mark_is_judged_only_in_its_protocol() -> None:
    bpe = record(bpb=1.5, bpb_assistant=1.4, unk_share=None)
    cases = [
        ({"data": "rows"}, bpe, NgramBaseline(5, 9.0, 2.0)),
        ({"data": "sample", "tokenizer": "word1000"}, record(), NgramBaseline(3, 9.0, None)),
    ]
    cases.append(({"data": "rows", "tokenizer": "word1000", "init_from": "x.pt"}, *cases[1][1:]))
    for flags, best, baseline in cases:
        lines = lines_of("dolly", resolve("dolly", flags), best, baseline)
        assert not any("CLEARED" in line for line in lines)


def test_a_summary_says_the_same_after_reading(tmp_path: Path) -> None:
    """What is printed is what is stored, a mark in bits per byte included."""
    settings = resolve("dolly", {"data": "rows"})
    best = record(bpb=1.5, bpb_assistant=1.4, unk_share=None)
    summary = summary_of("dolly", settings, best, NgramBaseline(5, 9.0, 2.0))
    mark = BpbVerdict(bpb=1.6, parameters=1_370_112, minutes=10.0, cleared=True, how="GRU")
    summary = replace(summary, verdict=replace(summary.verdict, bpb_mark=mark))
    save_summary(tmp_path / "x.summary.json", summary)
    read = load_summary(tmp_path / "x.summary.json")
    assert read == summary
    assert summary_lines(read) == summary_lines(summary)
    line = next(line for line in summary_lines(read) if line.startswith("In bits per byte"))
    assert line == (
        "In bits per byte: CLEARED, against 1.6000 (GRU, 1,370,112 parameters, 10 minutes)"
    )


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"format": "x", "version": 1}', '{"format": "new-llm summary"}']
)
def test_a_damaged_summary_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.summary.json"
    path.write_text(text)
    with pytest.raises(UserError, match="not a summary that can be read") as refused:
        load_summary(path)
    assert "\n" not in str(refused.value)


def test_commands_keep_to_the_folder_of_the_run() -> None:
    for data in ("sample", "rows"):
        settings = resolve("dolly", {"data": data, "out": "my runs"})
        lines = lines_of(
            "dolly", settings, record(bpb=1.5, unk_share=None), NgramBaseline(5, 9.0, 2.0)
        )
        trainings = [command for command in commands(lines) if command[0] == "train"]
        assert trainings
        for command in trainings:
            assert command[command.index("--out") + 1] == "my runs"


@pytest.mark.parametrize(("layers", "context"), [(1, 256), (4, 256), (8, 512), (12, 1024), (2, 16)])
def test_widths_are_usable(layers: int, context: int) -> None:
    for pairs in (False, True):
        widths = default_widths(layers, context, pairs)
        assert all(value >= 16 and value % 8 == 0 for value in widths.values())


def test_pairs_are_for_bpe_and_our_architecture() -> None:
    assert resolve("dolly", {}).pair_rows == 128 * 256
    assert resolve("dolly", {"tokenizer": "word1000"}).pair_rows == 0
    assert resolve("dolly", {"architecture": "gru"}).pair_rows == 0
    without = resolve("dolly", {"pair_rows": 0})
    assert without.embed_dim == resolve("dolly", {"tokenizer": "word1000"}).embed_dim
    assert without.embed_dim > resolve("dolly", {"pair_rows": 500}).embed_dim
    with pytest.raises(UserError, match="gru has no table of pairs"):
        resolve("dolly", {"architecture": "gru", "pair_rows": 500})


def test_advice_never_makes_a_model_smaller() -> None:
    large = {"num_layers": 8, "context_dim": 1024, "max_seq_length": 512, "data": "sample"}
    for dataset in DATASETS:
        settings = resolve(dataset, large)
        found = record(bpb=1.5, unk_share=None)
        for command in commands(lines_of(dataset, settings, found, NgramBaseline(5, 9.0, 2.0))):
            if command[:2] == ["train", dataset]:
                told = dict(zip(command, command[1:], strict=False))
                for name, size in large.items():
                    flag = "--" + name.replace("_", "-")
                    if name != "data" and flag in told:
                        assert int(told[flag]) >= size, command  # type: ignore[operator]
