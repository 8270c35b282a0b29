"""The verdict at the end of a training: the mark in its own protocol, the floor, and what next."""

from __future__ import annotations

from newllm.config import Settings, option_name
from newllm.evaluate.floor import Floor
from newllm.evaluate.metrics import Record
from newllm.levels import Level


def verdict_lines(
    level: Level, settings: Settings, best: Record, floor: Floor, checkpoint: str
) -> list[str]:
    """Lines for the screen: result, n-gram floor, mark, advice and the next command."""
    lines = [_result(best), _floor(floor), _mark(level, settings, best, floor)]
    lines += [f"Next:  {command}" for command in _advice(level, settings, best, floor)]
    lines.append(f"Talk:  newllm chat {checkpoint}")
    return lines


def _result(best: Record) -> str:
    line = f"Best epoch {best['epoch']}: validation PPL {best['ppl']:.2f}, "
    line += f"accuracy {best['accuracy']:.1%}"
    if best["bpb"] is None:
        return line + f"; {best['unk_share']:.1%} of the scored tokens are unknown words"
    return line + (
        f", {best['bpb']:.4f} bits per byte ({best['bpb_assistant']:.4f} of the assistant's text)"
    )


def _floor(floor: Floor) -> str:
    if floor.bpb is None:
        return f"A {floor.order}-gram table reaches PPL {floor.ppl:.2f} on the same rows."
    return f"A {floor.order}-gram table reaches {floor.bpb:.4f} bits per byte on the same rows."


def beats_floor(best: Record, floor: Floor) -> bool:
    """Whether the model is better than counting, in the measure that both have."""
    return best["ppl"] < floor.ppl if floor.bpb is None else best["bpb"] < floor.bpb


def _mark(level: Level, settings: Settings, best: Record, floor: Floor) -> str:
    name = f"Level {level.number} ({level.dataset})"
    if settings.tokenizer != "word1000":
        how = "ahead of" if beats_floor(best, floor) else "behind"
        return (
            f"{name}: {how} the n-gram table. The published mark (PPL < {level.pass_mark:g}) is in "
            "word-1000 units; to be judged by it, train with --tokenizer word1000."
        )
    if settings.data == "sample":
        return (
            f"{name}: the mark (PPL < {level.pass_mark:g}) is not judged: "
            "these are the built-in rows, not the data set's."
        )
    band, margin = level.band(best["ppl"]), level.pass_mark - best["ppl"]
    word = "NOT CLEARED" if band == "needs work" else "CLEARED"
    return (
        f"{name}: {word}, PPL {best['ppl']:.2f} against < {level.pass_mark:g} "
        f"(margin {margin:+.2f}, band: {band})"
    )


def _advice(level: Level, settings: Settings, best: Record, floor: Floor) -> list[str]:
    """Commands ready to paste, the most promising first."""
    if settings.data == "sample":
        return [f"newllm train {level.dataset}  (the real rows, from the Hub; or --data PATH)"]
    judged = settings.tokenizer == "word1000"
    band = level.band(best["ppl"]) if judged else None
    if band is None:
        band = "cleared" if beats_floor(best, floor) else "needs work"
    commands = []
    for change in level.advice[band]:
        option, value = change.split()
        value = value.format(more_epochs=settings.epochs + (settings.epochs + 1) // 2)
        field = option.removeprefix("--").replace("-", "_")
        if str(getattr(settings, field)) != value:
            commands.append(_command(level, settings, {field: value}))
    return commands


def _command(level: Level, settings: Settings, changes: dict[str, str]) -> str:
    """The run's command with a setting changed (widths are left to follow)."""
    kept = {"data", "tokenizer", "architecture", "num_layers", "context_dim", "max_seq_length"}
    words = ["newllm train", level.dataset]
    for field in Settings.model_fields:
        default = level.settings.get(field, Settings.model_fields[field].default)
        value = changes.get(field, str(getattr(settings, field)))
        if field in changes or (field in kept and value != str(default)):
            words.append(f"{option_name(field)} {value}")
    return " ".join(words)
