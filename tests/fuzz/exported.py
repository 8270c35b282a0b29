"""A folder as `newllm export` writes it, without asking transformers to make one."""

from __future__ import annotations

import json
from pathlib import Path

from newllm.data.tokenizers import BPE
from newllm.export.hf import PREFIX, SHAPE
from newllm.export.hf_tokenizer import to_fast


def write_folder(parent: Path) -> Path:
    """Write the three files that `newllm import` reads."""
    from safetensors.torch import save_file

    from tests.serve.serving import tiny_model

    model, folder = tiny_model(num_layers=1, pair_rows=0), parent / "exported"
    folder.mkdir()
    assert isinstance(model.tokenizer, BPE)
    (folder / "tokenizer.json").write_text(to_fast(model.tokenizer).to_str(), encoding="utf-8")
    weights = {PREFIX + name: part for name, part in model.model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = model.settings.model_dump()
    record = {
        "settings": settings, "metrics": {}, "data": {"fingerprint": "none"},
        "newllm_version": "0", "torch_version": "0", "created": "now",
    }  # fmt: skip
    config = {"model_type": "new_llm", "record": record, **{name: settings[name] for name in SHAPE}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
