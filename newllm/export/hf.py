"""`newllm export --format hf`: a folder that Hugging Face transformers loads by itself."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from newllm.data.render import ChatRenderer
from newllm.data.tokenizers import BPE, PAD, never_written
from newllm.errors import UserError, require_packages
from newllm.export.bundle import bundle
from newllm.export.card import model_card
from newllm.export.folder import new_folder
from newllm.export.hf_tokenizer import SPECIAL, chat_template, from_fast, require_bpe, to_fast
from newllm.files import write_text
from newllm.inference.sampling import MAX_NEW_TOKENS
from newllm.model import ContextLM
from newllm.model.spec import find_spec
from newllm.results.runs import RunFiles
from newllm.results.summary import Summary, load_summary
from newllm.train.checkpoint import FORMAT_VERSION
from newllm.trained import TrainedModel

MODELLING = "modeling_new_llm"
"""Name of the file with the model's code."""

SHAPE = (
    "num_layers", "context_dim", "embed_dim", "hidden_dim", "pair_rows", "recall_slots", "dropout",
)  # fmt: skip
"""Settings that config.json has by themselves; the others are in its record."""

PREFIX = "model."
"""What stands before the names of our parameters in the weight file."""

TOLERANCE = 1e-4
"""Largest difference of logits, in fp32, that is put down to the order of additions."""

_PROBE_TOKENS = 40


def export_hf(model: TrainedModel, folder: Path) -> float:
    """Write the folder, and compare it with the model before it takes its name.

    Returns:
        the largest difference of logits that the comparison found.

    Raises:
        UserError: another architecture or tokenizer, a folder in use, a missing package.
    """
    require_packages("--format hf", "transformers", "safetensors", extra="hf")
    tokenizer = exportable(model)
    with new_folder(folder) as scratch:
        write_text(scratch / f"{MODELLING}.py", bundle(f"newllm.export.{MODELLING}"))
        _write_tokenizer(scratch, tokenizer, model)
        _write_weights(scratch, model.model)
        write_json(scratch / "config.json", _config(model, tokenizer))
        write_json(scratch / "generation_config.json", _generation(tokenizer))
        card = model_card(model, folder.name, summary_beside(model))
        write_text(scratch / "README.md", card)
        return _compare(scratch, model, tokenizer)


def exportable(model: TrainedModel) -> BPE:
    """The tokenizer of a model that can be taken elsewhere.

    Raises:
        UserError: another architecture than ours, or the word-1000 vocabulary.
    """
    if not find_spec(model.settings.architecture).can_export:
        raise UserError(
            f"{model.path}: the architecture is {model.settings.architecture}, and only context "
            "can be taken elsewhere"
        )
    return require_bpe(model.tokenizer, model.path)


def summary_beside(model: TrainedModel) -> Summary | None:
    """The summary of the run, if it lies where the run wrote it and is of this model."""
    path = RunFiles(model.path.parent, model.settings.run_name).summary
    if not path.exists():
        return None
    summary = load_summary(path)
    return summary if summary.best == model.metrics else None


def _write_tokenizer(folder: Path, tokenizer: BPE, model: TrainedModel) -> None:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=to_fast(tokenizer),
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[tokenizer.bos],
        eos_token=SPECIAL[tokenizer.end],
        additional_special_tokens=[SPECIAL[role] for role in tokenizer.roles.values()],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    assert isinstance(model.renderer, ChatRenderer)
    fast.chat_template = chat_template(model.renderer)
    fast.save_pretrained(folder)


def _write_weights(folder: Path, model: torch.nn.Module) -> None:
    from safetensors.torch import save_file

    weights = {PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    file = folder / "model.safetensors"
    save_file(weights, file, {"format": "pt"})
    file.chmod(folder.stat().st_mode & 0o666)  # the library gives others no right to read it


def _config(model: TrainedModel, tokenizer: BPE) -> dict[str, Any]:
    record = {
        "settings": model.settings.model_dump(),
        "metrics": model.metrics,
        "data": model.data,
        "newllm_version": model.versions["newllm"],
        "torch_version": model.versions["torch"],
        "created": model.versions["created"],
        "format_version": FORMAT_VERSION,
    }
    return {
        "model_type": "new_llm",
        "architectures": ["NewLLMForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{MODELLING}.NewLLMConfig",
            "AutoModel": f"{MODELLING}.NewLLMModel",
            "AutoModelForCausalLM": f"{MODELLING}.NewLLMForCausalLM",
        },
        "vocab_size": tokenizer.vocab_size,
        **model.settings.model_dump(include=set(SHAPE)),
        "counts": model.counts_bytes,
        "pad_token_id": PAD,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.end,
        "dtype": "float32",
        "record": record,
    }


def _generation(tokenizer: BPE) -> dict[str, Any]:
    """Answers end with the turn; what no answer holds is never written."""
    special = {"pad_token_id": PAD, "bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.end}
    return {
        **special,
        "suppress_tokens": never_written(tokenizer),
        "max_new_tokens": MAX_NEW_TOKENS,
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One of the folder's files of settings."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _compare(folder: Path, model: TrainedModel, tokenizer: BPE) -> float:
    """Read the folder again, and let both read the same tokens.

    Raises:
        UserError: they differ; nothing is left behind.
    """
    from safetensors.torch import load_file

    code = _load_file(folder / f"{MODELLING}.py")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    theirs = code.NewLLMForCausalLM(code.NewLLMConfig(**config)).eval()
    tied = theirs.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert tied == (["lm_head.weight"], []), tied
    ids = probe_ids(tokenizer.vocab_size)
    with torch.inference_mode():
        expected = our_logits(model.model, ids)
        difference = float((theirs(ids).logits - expected).abs().max())
    stored = (folder / "tokenizer.json").read_text(encoding="utf-8")
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise UserError(f"the exported model's logits differ by {difference:g}; nothing written")
    if from_fast(stored).to_dict() != tokenizer.to_dict():
        raise UserError("the exported tokenizer differs; nothing written")
    return difference


def probe_ids(vocab_size: int, length: int = _PROBE_TOKENS) -> torch.Tensor:
    """Tokens drawn at random, always the same ones, [1, length]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (1, length), generator=generator)


def our_logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """What the model itself says, on the CPU, [B, T, V]."""
    assert isinstance(model, ContextLM)
    device = model.embedding.weight.device
    hidden, _ = model(ids.to(device))
    return model.logits(hidden).float().cpu()


def _load_file(path: Path) -> ModuleType:
    """Import a Python file that we just wrote, from wherever it lies."""
    name = f"_newllm_exported_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module
