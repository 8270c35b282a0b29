"""Models that earlier versions wrote, brought to the present format, one version at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Content = dict[str, Any]

_RENAMED_IN_2 = {
    "context_norm": "mixer_norm",
    "hidden_norm": "feed_forward.norm",
    "up_proj.weight": "feed_forward.up_proj.weight",
    "down_proj.weight": "feed_forward.down_proj.weight",
}
"""Parameters of a `context` block; those of the other architectures kept their names."""


def _to_2(content: Content) -> Content:
    if content["settings"]["architecture"] != "context":
        return content
    return {**content, "model": {_name_in_2(k): value for k, value in content["model"].items()}}


def _name_in_2(name: str) -> str:
    if not name.startswith("blocks."):
        return name
    blocks, index, own = name.split(".", 2)
    return f"{blocks}.{index}.{_RENAMED_IN_2.get(own, own)}"


def _to_3(content: Content) -> Content:
    """The read-out gates of `context` got a bias."""
    if content["settings"]["architecture"] != "context":
        return content
    model = dict(content["model"])
    for name, forget_bias in content["model"].items():
        if name.endswith("forget_bias"):
            model[name.replace("forget_bias", "read_bias")] = torch.zeros_like(forget_bias)
    return {**content, "model": model}


MIGRATIONS: dict[int, Callable[[Content], Content]] = {1: _to_2, 2: _to_3}
"""Format version -> what makes the next one of it."""


def migrate(content: Content, version: int) -> Content:
    """The content of a model file of an earlier format, as the format `version` has it.

    Raises:
        KeyError: there is no way from its format to that one.
    """
    while content["format_version"] != version:
        here = content["format_version"]
        content = {**MIGRATIONS[here](content), "format_version": here + 1}
    return content
