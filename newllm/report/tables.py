"""Facts about checkpoints, data and evaluations, as plain values and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from newllm.chat.dialogue import model_state_bytes
from newllm.config import parse
from newllm.data.encode import Accounting
from newllm.data.prepare import Encoding, prepare_training
from newllm.data.sources import open_chosen
from newllm.data.tokenizers import Tokenizer, from_dict
from newllm.errors import UserError
from newllm.model import meta_model
from newllm.report.text import columns
from newllm.results.records import without_counts
from newllm.settings import resolve
from newllm.train import checkpoint

Facts = dict[str, Any]


def checkpoint_facts(path: str) -> Facts:
    """What `newllm info` says of a checkpoint."""
    content = checkpoint.load_model(Path(path))
    settings, tokenizer = parse(content["settings"]), from_dict(content["tokenizer"])
    block = content.get("block")  # of one's own, whose file is not run to describe it
    if block is None:
        state_bytes = model_state_bytes(meta_model(settings.model_settings(), tokenizer.vocab_size))
    else:
        state_bytes = block["state_bytes"]
    return {
        "file": path,
        "parameters": checkpoint.count_parameters(content),
        "counts_bytes": checkpoint.counts_bytes(content),
        "state_bytes": state_bytes,
        "tokenizer": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "metrics": content["metrics"],
        "data": content["data"],
        "settings": settings.model_dump(),
        **({} if block is None else {"block": block}),
        "versions": {
            "newllm": content["newllm_version"],
            "torch": content["torch_version"],
            "created": content["created"],
        },
    }


def facts_table(facts: Mapping[str, Any]) -> str:
    """`info` as text.

    Raises:
        UserError: what the checkpoint says of its training is not what a training writes.
    """
    try:
        return _facts_table(facts)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{facts['file']}: damaged or edited (what it says of its training); use another copy "
            "of it"
        ) from None


def _facts_table(facts: Mapping[str, Any]) -> str:
    metrics, data = facts["metrics"], facts["data"]
    counts = data["accounting"]["train"]
    state = f"{facts['state_bytes']:,} bytes, however long the text"
    lines = {
        "file": facts["file"],
        "parameters": f"{facts['parameters']:,}",
        **({"counts": _counts(facts)} if facts["counts_bytes"] else {}),
        "state": state,
        "tokenizer": f"{facts['tokenizer']}, {facts['vocab_size']:,} entries",
        "epoch": f"{metrics['epoch']} of {metrics['epochs']}",
        "validation": _scores(metrics),
        "data": f"{data['source']} ({counts['documents']:,} rows, {counts['tokens']:,} tokens)",
        "fingerprint": data["fingerprint"],
        "written": f"{facts['versions']['created']} by newllm {facts['versions']['newllm']}, "
        f"torch {facts['versions']['torch']}",
    }
    if "block" in facts:
        block = facts["block"]
        lines["block"] = f"{block['class']} of {block['file']}, SHA-256 {block['sha256']}"
    lines |= {f"  {name}": value for name, value in facts["settings"].items()}
    return columns(lines)


def _counts(facts: Mapping[str, Any]) -> str:
    """The table of counts of a model, and what it is worth."""
    line = f"{facts['counts_bytes']:,} bytes, runs of the training rows word for word"
    alone = without_counts(facts["metrics"])
    return line if alone is None else f"{line}; without them {alone}"


def evaluation_table(result: Mapping[str, Any]) -> str:
    """`eval` as text."""
    lines = {
        "data": f"{result['dataset']}: {result['rows']:,} rows, {result['tokens']:,} tokens",
        "protocol": f"{result['tokenizer']}, {result['protocol']}",
        "scores": _scores(result),
    }
    if result["ngram_ppl"] is None:
        lines["n-gram"] = "not available (the training rows are no longer in the cache)"
    else:
        lines["n-gram"] = f"PPL {result['ngram_ppl']:.2f}"
    if "skills" in result:
        lines |= _skill_lines(result["skills"])
    return columns(lines)


def _skill_lines(skills: Mapping[str, Any]) -> dict[str, str]:
    """The skill check as lines of a table."""
    if skills["check"] is None:
        return {"skills": f"none: {skills['reason']}"}
    lines = {"skills": f"{skills['check']}: {skills['rows']:,} of {skills['of']:,} rows"}
    if skills["left_out"]:
        lines["skills"] += f" ({skills['left_out']:,} others cannot be judged)"
    if skills["check"] == "preferences":
        share, error = skills["prefers_chosen"], skills["standard_error"]
        lines["  chosen likelier"] = f"{share:.1%} +- {error:.1%} of pairs, by nats per byte"
        lines["  chosen longer"] = f"{skills['longer_chosen']:.1%} (what length alone would reach)"
        return lines
    if skills["check"] == "math answers":
        lines["  boxed"] = f"{skills['boxed']:.1%} of answers have a result in a box"
        lines["  right"] = f"{skills['right']:.1%} of rows"
        for name, group in [*skills["by_subject"].items(), *skills["by_level"].items()]:
            lines[f"    {name}"] = f"{group['right']:.1%} of {group['rows']:,}"
        if skills["undecided"]:
            lines["  undecided"] = f"{skills['undecided']:,} comparisons took too long"
    else:
        lines["  parses"] = f"{skills['parses']:.1%} of answers"
        lines |= _run_lines(skills)
    lines["  unfinished"] = f"{skills['unfinished']:.1%} of answers met the limit of length"
    return lines


def _run_lines(skills: Mapping[str, Any]) -> dict[str, str]:
    """What running the code answers showed."""
    if skills["runs"] is None:
        return {"  runs": "not tried; --run-code runs the answers, shut in"}
    lines = {"  runs": f"{skills['runs']:.1%} (the rows' own answers: {skills['own_runs']:.1%})"}
    if skills["passes"] is None:
        lines["  passes"] = "unknown: these rows have no checks"
    else:
        own = f"the rows' own answers: {skills['own_passes']:.1%}"
        lines["  passes"] = (
            f"{skills['passes']:.1%} of {skills['checked_rows']:,} rows with checks ({own})"
        )
    if skills["errors"]:
        most = list(skills["errors"].items())[:5]
        lines["  errors"] = ", ".join(f"{reason} {count:,}" for reason, count in most)
    return lines | {
        "  protection": skills["protected_from"],
        "  no protection": f"from {skills['not_protected_from']}",
    }


def data_facts(dataset: str, flags: Mapping[str, Any]) -> Facts:
    """What `newllm data` says: accounting of both splits and a rendered example."""
    settings = resolve(dataset, flags)
    encoding = Encoding.of(settings)
    source = open_chosen(settings)
    encoded = prepare_training(source, encoding)
    split, tokenizer = encoded.splits["train"], encoded.tokenizer
    example = split.tokens(0, 0, int(split.lengths[0])).tolist()
    return {
        "dataset": dataset,
        "source": encoded.source,
        "revision": encoded.revision,
        "fingerprint": encoded.fingerprint,
        "tokenizer": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "splits": {name: asdict(counts) for name, counts in encoded.accounting.items()},
        "example": _show(tokenizer, example),
        "example_assistant": split.assistant(0, 0, len(example)).tolist(),
        "decontaminate": settings.decontaminate,
        "notes": list(encoded.notes),
        "folder": str(encoded.folder),
    }


def data_table(facts: Mapping[str, Any]) -> str:
    """`data` as text."""
    lines: dict[str, Any] = {
        "source": facts["source"],
        "tokenizer": f"{facts['tokenizer']}, {facts['vocab_size']:,} entries",
        "encoded in": facts["folder"],
    }
    lines |= {f"note {number}": note for number, note in enumerate(facts["notes"], start=1)}
    for name, counts in facts["splits"].items():
        lines[name] = f"{counts['rows']:,} rows, {counts['malformed']:,} malformed"
        lines[f"  {name} conversations"] = f"{counts['documents']:,}"
        lines[f"  {name} tokens"] = (
            f"{counts['tokens']:,} ({counts['cut_tokens']:,} cut from {counts['cut_rows']:,} rows)"
        )
        if facts["tokenizer"] == "word1000":
            share = counts["unk_tokens"] / max(1, counts["scored_tokens"])
            lines[f"  {name} UNK share"] = f"{share:.1%} of the scored tokens"
        else:
            lines[f"  {name} bytes"] = (
                f"{counts['content_bytes']:,}, of these the assistant's "
                f"{counts['assistant_bytes']:,}"
            )
        exceptions = Accounting(**counts).exceptions(name, facts["decontaminate"])
        lines |= {f"  {what}": count for what, count in exceptions.items()}
        for number, place in enumerate(counts["malformed_examples"], start=1):
            lines[f"  {name} malformed {number}"] = place
    return f"{columns(lines)}\n\nFirst training row, as the model reads it:\n{facts['example']}"


def _show(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The tokens' text, special tokens by name; runs of text are decoded together."""
    parts = []
    for special, run in groupby(ids, key=tokenizer.special_name):
        tokens = list(run)
        parts += [tokenizer.decode(tokens)] if special is None else [special] * len(tokens)
    return (" " if tokenizer.kind == "word1000" else "").join(parts)


def _scores(result: Mapping[str, Any]) -> str:
    text = f"loss {result['loss']:.4f}, PPL {result['ppl']:.3f}, accuracy {result['accuracy']:.2%}"
    if result["bpb"] is None:
        return text + f", UNK share {result['unk_share']:.1%}"
    assistant = result["bpb_assistant"]
    text += f", {result['bpb']:.4f} bits per byte"
    return text + (f" (assistant {assistant:.4f})" if assistant is not None else "")
