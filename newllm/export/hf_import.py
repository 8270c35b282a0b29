"""`newllm import`: a checkpoint made of a folder that `newllm export` wrote; no code of it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from newllm.config import Settings, parse
from newllm.data.tokenizers import BPE, from_dict
from newllm.errors import UserError, require_packages
from newllm.export.hf import PREFIX, SHAPE
from newllm.export.hf_tokenizer import from_fast
from newllm.model import meta_model
from newllm.model.spec import find_spec
from newllm.results.records import size_text
from newllm.train import checkpoint
from newllm.train.checkpoint import COUNTS, RECORD, check_counts

_LARGEST_TEXT = 2**26
"""Bytes of a JSON file at most."""


def import_hf(folder: Path, output: Path) -> str:
    """Write a checkpoint with the weights, the tokenizer and the settings of a folder.

    The folder may have gone through training and `save_pretrained` elsewhere: the record of the run
    stays that of the run here, its weights are the folder's.

    Returns:
        parameters and counts in words.

    Raises:
        UserError: the folder is incomplete, damaged or no export of ours; `output` exists.
    """
    require_packages("import", "safetensors", extra="hf")
    if not folder.is_dir():
        missing = "a file, expected a folder" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {missing} that newllm export wrote")
    if output.exists():
        raise UserError(f"{output}: exists already; name a file that does not")
    record, settings = _record(folder / "config.json")
    tokenizer = _tokenizer(folder / "tokenizer.json")
    version = record.get("format_version", _UNSAID_FORMAT)
    weights = _weights(folder / "model.safetensors", settings, tokenizer, version)
    content = {
        "kind": "model",
        "model": weights,
        "settings": settings.model_dump(),
        "tokenizer": tokenizer.to_dict(),
        **{name: record[name] for name in RECORD},
    }
    checkpoint.save(output, content)
    return size_text(checkpoint.count_parameters(content), checkpoint.counts_bytes(content))


_UNSAID_FORMAT = 2
"""Format of the weights in folders that do not say theirs."""


def _record(path: Path) -> tuple[dict[str, Any], Settings]:
    """The record in config.json, and its settings with the shape that config.json says."""
    try:
        config = json.loads(_read(path))
        record = config["record"]
        values = dict(record["settings"])
        config.setdefault("recall_slots", 0)  # exported before there was recall
        shape = {name: config[name] for name in SHAPE}
        wrong = [name for name, kind in RECORD.items() if not isinstance(record[name], kind)]
        if config["model_type"] != "new_llm" or wrong:
            raise TypeError
        if not isinstance(record["data"]["fingerprint"], str):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{path}: not the config of a model that newllm exported (its record is missing)"
        ) from None
    try:
        return record, parse({**values, **shape}, {name: name for name in Settings.model_fields})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _tokenizer(path: Path) -> BPE:
    text = _read(path)
    try:
        tokenizer = from_fast(text)
        from_dict(tokenizer.to_dict())  # refused here as it would be in the checkpoint
        return tokenizer
    except (ValueError, RecursionError, UserError) as error:
        raise UserError(f"{path}: not the tokenizer of a model that newllm exported: "
                        f"{' '.join(str(error).split())[:200]}") from None  # fmt: skip


def _weights(
    path: Path, settings: Settings, tokenizer: BPE, version: int
) -> dict[str, torch.Tensor]:
    """The weights as fp32, once every name and shape is what the settings ask for."""
    from safetensors import SafetensorError, safe_open

    if not find_spec(settings.architecture).can_export:
        raise UserError(f"{path}: architecture {settings.architecture}; only context can come back")
    model = meta_model(settings.model_settings(), tokenizer.vocab_size)
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}

    def of_now(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
        old = {"settings": settings.model_dump(), "model": weights, "format_version": version}
        return checkpoint.migrate(old, checkpoint.FORMAT_VERSION)["model"]

    if not path.exists():
        raise UserError(
            f"{path}: missing; of weights in several files, "
            "save_pretrained(.., max_shard_size='99GB') makes one"
        )
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            shapes = {name: file.get_slice(name).get_shape() for name in names}
            empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
            found = {name: list(tensor.shape) for name, tensor in of_now(empty).items()}
            if COUNTS in found and COUNTS in expected:
                expected[COUNTS] = found[COUNTS]  # as large as it is; its content is checked below
            if found != expected:
                wrong = {n for n in found.keys() | expected if found.get(n) != expected.get(n)}
                name = min(wrong)
                raise UserError(
                    f"{path}: {PREFIX}{name} is {found.get(name, 'missing')}, but config.json and "
                    f"the tokenizer ask for {expected.get(name, 'nothing of this name')}"
                )
            weights = of_now({name: file.get_tensor(name) for name in names})
    except (KeyError, TypeError):
        raise UserError(f"{path}: weights of format {version}, which is not known here") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged, or no safetensors file ({error})") from None
    counts = weights.pop(COUNTS, None)
    if counts is not None:
        try:
            check_counts(counts, tokenizer.vocab_size)
        except ValueError as error:
            raise UserError(f"{path}: {PREFIX}{COUNTS} holds {error}") from None
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise UserError(f"{path}: {name} holds values that are no weights")
    exact = {name: tensor.float() for name, tensor in weights.items()}
    return exact if counts is None else {**exact, COUNTS: counts}


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise UserError(f"{path}: larger than any such file of ours")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        saved = "; tokenizer.save_pretrained writes it" if path.name == "tokenizer.json" else ""
        raise UserError(
            f"{path}: missing; give the folder that newllm export wrote{saved}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
