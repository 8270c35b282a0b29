"""The fused operations of `ContextLM`: one definition, several implementations.

`reference.py` defines them in plain torch that anyone can read. The CPU kernels (`cpu_*.py`, numba)
are the same maths in one pass over memory, with hand-written backwards. Every implementation has
the signature of the reference, and the tests hold them equal in outputs and gradients.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch
from torch import Tensor

from newllm.model.kernels import reference
from newllm.model.kernels.noise import Noise
from newllm.model.kernels.reference import CONV_TAPS, EPSILON, group_size

__all__ = [
    "CONV_TAPS", "EPSILON", "Noise", "active_kernel", "add_norm", "context_read", "group_size",
    "softmax_gradient_", "squared_relu",
]  # fmt: skip

KERNEL_VARIABLE = "NEWLLM_KERNEL"


def active_kernel(device: torch.device | str = "cpu") -> str:
    """Name of the implementation that runs on `device`: "numba" or "reference".

    The environment variable `NEWLLM_KERNEL=reference` forces the plain loop, to rule the kernel
    out when something looks wrong.
    """
    forced = os.environ.get(KERNEL_VARIABLE, "")
    if forced not in ("", "numba", "reference"):
        raise ValueError(f"{KERNEL_VARIABLE}={forced}: expected numba or reference")
    if forced == "reference" or torch.device(device).type != "cpu":
        return "reference"
    return "numba"


def context_read(
    projected: Tensor,
    forget_bias: Tensor,
    conv_weight: Tensor,
    read_scale: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
    context: Tensor,
    tail: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`newllm.model.kernels.reference.context_read`."""
    implementation = _implementation("cpu_context", projected)
    return implementation.context_read(
        projected, forget_bias, conv_weight, read_scale, reset, lengths, context, tail
    )


def add_norm(
    stream: Tensor | None,
    branch: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    share: float = 0.0,
    noise: Noise | None = None,
    site: int = 0,
) -> tuple[Tensor, Tensor]:
    """See :func:`newllm.model.kernels.reference.add_norm`."""
    implementation = _implementation("cpu_stream", branch)
    return implementation.add_norm(stream, branch, weight, dtype, share, noise, site)


def squared_relu(x: Tensor) -> Tensor:
    """See :func:`newllm.model.kernels.reference.squared_relu`."""
    return _implementation("cpu_stream", x).squared_relu(x)


def softmax_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """See :func:`newllm.model.kernels.reference.softmax_gradient_`."""
    return _implementation("cpu_loss", logits).softmax_gradient_(logits, targets)


def _implementation(cpu_module: str, x: Tensor) -> ModuleType:
    """The module whose functions run on a tensor like `x`."""
    if (
        x.numel() == 0
        or x.dtype not in (torch.float32, torch.bfloat16)
        or active_kernel(x.device) != "numba"
    ):
        return reference
    # numba takes half a second to import: only those who run the model pay for it.
    return importlib.import_module(f"{__name__}.{cpu_module}")
