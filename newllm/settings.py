"""How every setting is decided: what a person gave, then level, recipe, and what follows of those.

Only `--params` needs torch, to count parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newllm.config import Settings, is_own_block, option_name, parse
from newllm.datasets import find_dataset
from newllm.errors import UserError
from newllm.model.spec import find_spec

SHAPE = ("num_layers", "context_dim", "embed_dim", "hidden_dim", "pair_rows")
"""Settings that `--params` decides."""


def resolve(
    dataset: str,
    flags: Mapping[str, Any],
    file: Mapping[str, Any] | None = None,
    params: int | None = None,
) -> Settings:
    """Decide every setting: flag > file > level > recipe > default.

    Args:
        dataset: name of the data set.
        flags: settings given on the command line (or in Python).
        file: settings from a YAML file.
        params: size of the model, in parameters at most, which decides its depth (unless that is a
            flag) and widths in place of the file and the level.

    Raises:
        UserError: a value is wrong, or two do not go together.
    """
    file = file or {}
    if params is None:
        return _resolve(dataset, flags, file)
    file = {name: value for name, value in file.items() if name not in SHAPE}
    both = {**file, **flags}
    for name in (*SHAPE[1:], "init_from"):
        if both.get(name) is not None:
            raise UserError(
                f"--params {params:,} and {option_name(name)} {both[name]}: both decide how "
                "wide the model is; give one of the two"
            )
    if find_spec(str(both.get("architecture", "context"))).widths == "published":
        raise UserError("--params: original has its published widths; choose --num-layers instead")
    settings = _resolve(dataset, flags, file)  # says what is wrong with the others
    from newllm.model.own_block import load_given
    from newllm.model.shape import shape_of_size

    shape = shape_of_size(
        params,
        find_spec(settings.architecture),
        _vocabulary(settings),
        settings.tokenizer,
        settings.num_layers if "num_layers" in flags else None,
        load_given(settings.architecture),
        settings.recall_slots,
        settings.counts,
    )
    return _resolve(dataset, {**flags, **shape.model_dump(include=set(SHAPE))}, file)


def _resolve(dataset: str, flags: Mapping[str, Any], file: Mapping[str, Any]) -> Settings:
    level = find_dataset(dataset)
    given = {**file, **flags, "dataset": dataset}
    where = {name: f"setting {name}" for name in file if name not in flags}
    architecture = str(given.get("architecture", "context"))  # `parse` refuses wrong ones
    if is_own_block(architecture) and "architecture" not in flags:
        raise UserError(
            f"setting architecture {architecture}: a settings file runs no code by itself; give "
            f"--architecture {architecture} too"
        )
    spec = find_spec(architecture)
    epochs = level.epochs.get(spec.epochs, level.epochs["context"])
    defaults = {**spec.recipe, **level.settings, "epochs": epochs}
    derived = spec.derived({**defaults, **given}, given)
    settings = parse({**defaults, **derived, **given}, where)
    level.refuse_unfit(settings.tokenizer)
    spec.refuse(settings)
    return settings


def _vocabulary(settings: Settings) -> int:
    from newllm.data.tokenizers import Word1000, load_tokenizer

    if settings.tokenizer_file is not None:
        return load_tokenizer(Path(settings.tokenizer_file)).vocab_size
    return Word1000.size if settings.tokenizer == "word1000" else settings.vocab_size
