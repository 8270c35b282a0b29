"""The verdict at the end of a training: the mark in its own protocol, the floor, and what next."""

from __future__ import annotations

import shlex
from typing import Any

from newllm.config import Settings, option_name
from newllm.evaluate.floor import Floor
from newllm.evaluate.metrics import Record
from newllm.levels import Advice, Level, resolve


def verdict_lines(
    level: Level, settings: Settings, best: Record, floor: Floor, checkpoint: str
) -> list[str]:
    """Lines for the screen: result, n-gram floor, mark, advice and the next command."""
    lines = [_result(best), _floor(best, floor), _mark(level, settings, best)]
    for text, command in _advice(level, settings, best, floor):
        lines.append(f"Next, {text}:\n  {command}")
    lines.append(f"Talk to it:\n  newllm chat {shlex.quote(checkpoint)}")
    return lines


def _result(best: Record) -> str:
    line = f"Best epoch {best['epoch']}: validation PPL {best['ppl']:.2f}, "
    line += f"accuracy {best['accuracy']:.1%}"
    if best["bpb"] is None:
        return line + f"; {best['unk_share']:.1%} of the scored tokens are unknown words"
    line += f", {best['bpb']:.4f} bits per byte"
    if best["bpb_assistant"] is None:
        return line
    return line + f" ({best['bpb_assistant']:.4f} of the assistant's text)"


def _floor(best: Record, floor: Floor) -> str:
    reached = f"PPL {floor.ppl:.2f}" if floor.bpb is None else f"{floor.bpb:.4f} bits per byte"
    how = "ahead of it" if beats_floor(best, floor) else "behind it"
    return f"A {floor.order}-gram table reaches {reached} on the same rows: this model is {how}."


def beats_floor(best: Record, floor: Floor) -> bool:
    """Whether the model is better than counting, in the measure that both have."""
    return best["ppl"] < floor.ppl if floor.bpb is None else best["bpb"] < floor.bpb


def _mark(level: Level, settings: Settings, best: Record) -> str:
    if level.pass_mark is None:
        return f"{level.dataset} has no pass mark."
    name = f"Level {level.number} ({level.dataset})"
    if settings.data == "sample":
        return (
            f"{name}: the mark (PPL < {level.pass_mark:g}) is not judged: "
            "these are the built-in rows, not the data set's."
        )
    if settings.tokenizer == "word1000" and settings.init_from is not None:
        return (
            f"{name}: the mark (PPL < {level.pass_mark:g}) is not judged: the vocabulary came with "
            "--from, and the protocol counts it on this level's own rows."
        )
    if settings.tokenizer != "word1000":
        return (
            f"{name}: the published mark (PPL < {level.pass_mark:g}) is in word-1000 units; "
            "to be judged by it, train with --tokenizer word1000."
        )
    band, margin = level.band(best["ppl"]), level.pass_mark - best["ppl"]
    word = "NOT CLEARED" if band == "needs work" else "CLEARED"
    line = (
        f"{name}: {word}, PPL {best['ppl']:.2f} against < {level.pass_mark:g} "
        f"(margin {margin:+.2f}, band: {band})"
    )
    if level.number in (4, 5) and word == "CLEARED":
        line += ". This mark was a guess, which a table of counts passes: see bits per byte."
    return line


def _advice(level: Level, settings: Settings, best: Record, floor: Floor) -> list[tuple[str, str]]:
    """(what, command ready to paste), the most promising first."""
    if settings.data == "sample":
        return [("the real rows, from the Hub (or --data PATH)", _train(level.dataset, settings))]
    if level.pass_mark is None:
        return []
    if settings.tokenizer == "word1000":
        band = level.band(best["ppl"])
    else:
        band = "cleared" if beats_floor(best, floor) else "needs work"
    advice = ((item.text, _command(item, settings)) for item in level.advice[band])
    return [(text, command) for text, command in advice if command is not None]


def _command(advice: Advice, settings: Settings) -> str | None:
    """The run's command as the advice changes it; None where that changes nothing."""
    if advice.level is not None:
        return _train(advice.level, settings)
    changes = {**advice.settings}
    for name, factor in advice.factors.items():
        value = getattr(settings, name) * factor
        changes[name] = round(value) if name == "epochs" else float(f"{value:.2g}")
    given = {
        name: value
        for name, value in _chosen(settings).items()
        if name not in advice.dropped and name not in changes
    }
    same = all(getattr(settings, name) == value for name, value in changes.items())
    if same and not any(getattr(settings, name) is not None for name in advice.dropped):
        return None
    words = ["newllm", "train", settings.dataset]
    for name, value in (given | changes).items():
        words += [option_name(name), str(value)]
    return shlex.join(words)


def _train(dataset: str, settings: Settings) -> str:
    tokenizer = "" if settings.tokenizer == "bpe" else f" --tokenizer {settings.tokenizer}"
    return f"newllm train {dataset}{tokenizer}"


def _chosen(settings: Settings) -> dict[str, Any]:
    """The settings of a run that are not what its level would give by itself."""
    # Some defaults follow from others: architecture -> batch -> rate; tokenizer, shape -> widths.
    shape = ("tokenizer", "architecture", "num_layers", "context_dim")
    plain = resolve(settings.dataset, {})
    shaped = resolve(settings.dataset, {name: getattr(settings, name) for name in shape})
    batched = resolve(
        settings.dataset, {name: getattr(settings, name) for name in (*shape, "batch_size")}
    )
    left_out = {"dataset", "init_from", "name", "out", "device", "tensorboard", "minutes"}
    chosen = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        usual = plain if name in shape else shaped if name == "batch_size" else batched
        standard = getattr(usual, name)
        if name not in left_out and value != standard and value is not None:
            chosen[name] = value
    return chosen
