"""Smaller weights: every matrix rounded to bfloat16 or int8, the rest left in fp32.

What the step reads is smaller, and on a CPU reading is what a token costs. The rounded model is an
ordinary `ContextLM`, so its price is measured by the ordinary evaluation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from newllm.errors import UserError
from newllm.model.build import LanguageModel
from newllm.model.context.lm import ContextLM
from newllm.model.spec import find_spec

WeightFormat = Literal["fp32", "bf16", "int8"]

_INT8_MOST = 127
"""Symmetric: -128 is not used."""


class RoundedLM(ContextLM):
    """A copy of a model whose matrices are representable in a smaller format; computes in fp32."""

    def __init__(self, model: ContextLM, weights: WeightFormat) -> None:
        super().__init__(model.settings, model.vocab_size)
        self.weights: WeightFormat = weights
        """Format that holds the matrices without further loss."""
        self.load_state_dict(model.state_dict())
        self.requires_grad_(False).train(model.training)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.copy_(rounded(module.weight, weights))


def with_weights(
    model: LanguageModel, weights: WeightFormat, device: torch.device
) -> LanguageModel:
    """A model for a device with its matrices in a format; fp32 leaves it as it is.

    Raises:
        UserError: smaller weights where nothing uses them.
    """
    if weights == "fp32":
        return model
    architecture = model.settings.architecture
    if not find_spec(architecture).can_round or device.type != "cpu":
        raise UserError(
            f"--weights {weights}: only for the context architecture on a CPU, and this is "
            f"{architecture} on {device}; use --weights fp32"
        )
    assert isinstance(model, ContextLM)
    return RoundedLM(model, weights)


def rounded(matrix: Tensor, weights: WeightFormat) -> Tensor:
    """The nearest matrix [R, C] in a format, as fp32."""
    if weights == "int8":
        codes, scales = int8_rows(matrix)
        return codes * scales[:, None]
    return matrix.bfloat16().float() if weights == "bf16" else matrix.float()


def int8_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of `codes * scales[:, None]`, near a matrix [R, C].

    Of a matrix that is rounded already, the codes it was made of.

    Returns:
        codes [R, C] int8 within -127..127, the scale of each row [R] fp32.
    """
    scales = matrix.float().abs().amax(dim=1) / _INT8_MOST
    scales = torch.where(scales > 0, scales, 1.0)
    codes = (matrix / scales[:, None]).round().clamp(-_INT8_MOST, _INT8_MOST)
    return codes.to(torch.int8), scales
