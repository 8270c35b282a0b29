"""The models: one interface, our architecture, the first published one, and the baselines.

Names are imported when they are used: `newllm --help` asks `model/spec.py` for defaults, and must
not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from newllm.model.build import (
        Block,
        Boundaries,
        ContextLM,
        LanguageModel,
        OwnBlock,
        State,
        build_model,
        check_block,
        count_parameters,
        meta_model,
        projection,
    )

__all__ = [
    "Block", "Boundaries", "ContextLM", "LanguageModel", "OwnBlock", "State", "build_model",
    "check_block", "count_parameters", "meta_model", "projection",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from newllm.model import build

    return getattr(build, name)
