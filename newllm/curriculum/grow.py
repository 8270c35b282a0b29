"""`newllm grow`: a larger checkpoint that says, token for token, what the smaller one says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from newllm.config import ModelSettings, parse
from newllm.data.tokenizers import from_dict
from newllm.errors import UserError
from newllm.model import ContextLM
from newllm.model.growth import GROWING, grow, grow_moments, grown_settings
from newllm.train import checkpoint


def grow_file(source: Path, target: Path, sizes: Mapping[str, int], seed: int = 0) -> ModelSettings:
    """Write a grown checkpoint, if it computes the same function; returns the new shape.

    Args:
        source: a `best_*.pt` or `*_final.pt` file. The latter also has the optimizer's moments,
            which grow along.
        target: the file to write.
        sizes: new value of each of `GROWING` that changes.
        seed: of the new weights.

    Raises:
        UserError: the file or the sizes do not permit it.
    """
    if target.resolve() == source.resolve():
        raise UserError(f"-o {target}: that is the file to grow; give another name")
    content = checkpoint.load_model(source)
    settings = parse(content["settings"])
    before = settings.model_settings()
    after = grown_settings(before, sizes)
    model = ContextLM(before, from_dict(content["tokenizer"]).vocab_size)
    model.load_state_dict(content["model"])
    larger = grow(model.eval(), after, seed)
    grown = {**content["settings"], **{name: getattr(after, name) for name in GROWING}}
    moments = content.get("moments")
    checkpoint.save(
        target,
        {
            **content,
            "model": larger.state_dict(),
            "settings": grown,
            "grown_from": before.model_dump(),
            **({} if moments is None else {"moments": grow_moments(moments, before, after)}),
        },
    )
    return after
