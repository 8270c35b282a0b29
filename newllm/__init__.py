"""New-LLM: small language models without attention, with a context vector of fixed size.

>>> import newllm
>>> model = newllm.load("checkpoints/best_new_llm_dolly_layers1_bpe.pt")  # doctest: +SKIP
>>> model.chat().say("What is the capital of France?")  # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from newllm.model.quantize import WeightFormat
    from newllm.trained import TrainedModel

__version__ = "0.2.0"
__all__ = ["__version__", "load"]

# GNU OpenMP's threads spin for milliseconds after each parallel region, which starves whatever else
# runs on the machine (and, with two such programs, both). A short spin is as fast here: measured in
# docs/LOG.md. It must be set before torch is imported, and a user's own value is respected.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def load(
    path: str,
    device: str = "auto",
    weights: WeightFormat = "fp32",
    architecture: str | None = None,
) -> TrainedModel:
    """Load a `best_*.pt` or `*_final.pt` checkpoint for use.

    Args:
        path: the checkpoint file.
        device: auto, cpu, cuda or cuda:N.
        weights: fp32, or bf16 or int8 (on a CPU): less to read for every token, so faster.
        architecture: `FILE.py:CLASS` of a model with a block of one's own, whose file is run.

    Raises:
        newllm.errors.UserError: the file is missing, damaged, or not a model of ours.
    """
    from newllm.trained import TrainedModel

    return TrainedModel.load(path, device, weights, architecture)
