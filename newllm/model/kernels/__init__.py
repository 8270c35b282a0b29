"""The fused operations of `ContextLM`: one definition, several implementations.

`reference.py` defines them in plain torch that anyone can read. The kernels for CPUs (`cpu_*.py`,
numba) and CUDA GPUs (`gpu_context.py`, Triton; the other operations have none) are the same maths
in one pass over memory, with hand-written backwards. Every implementation has the signature of the
reference, and the tests hold them equal in outputs and gradients.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from newllm.errors import UserError
from newllm.model.dropout import Noise
from newllm.model.kernels import reference
from newllm.model.kernels.reference import CONV_TAPS, EPSILON, group_size

__all__ = [
    "CONV_TAPS", "EPSILON", "KERNEL_VARIABLE", "Noise", "active_kernel", "add_norm",
    "context_read", "group_size", "softmax_gradient_", "squared_relu", "triton_is_installed",
]  # fmt: skip

KERNEL_VARIABLE = "NEWLLM_KERNEL"

_DTYPES = {
    "numba": (torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}
"""What the kernels read; float64 is for the reference, which gradients are checked with."""


def active_kernel(device: torch.device | str = "cpu") -> str:
    """Name of the implementation of `context_read` on `device`: "numba" on a CPU, "triton" on a
    CUDA GPU if Triton is installed, else "reference".

    The environment variable `NEWLLM_KERNEL` forces one; `reference` rules the kernels out when
    something looks wrong.

    Raises:
        UserError: the forced one does not exist, or cannot run there.
    """
    kind = torch.device(device).type
    possible = ["reference"]
    if kind == "cpu":
        possible.append("numba")
    elif kind == "cuda" and triton_is_installed():
        possible.append("triton")
    forced = os.environ.get(KERNEL_VARIABLE, "")
    if forced not in ("", "reference", "numba", "triton"):
        raise UserError(f"{KERNEL_VARIABLE}={forced}: expected triton, numba or reference")
    if forced and forced not in possible:
        raise UserError(
            f"{KERNEL_VARIABLE}={forced}: numba runs on a CPU, triton on a CUDA GPU where it is "
            f"installed; on this {kind} device use {' or '.join(possible)}"
        )
    return forced or possible[-1]


@functools.cache
def triton_is_installed() -> bool:
    """Whether Triton can be imported; torch's CUDA builds for Linux bring it."""
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


def context_read(
    projected: Tensor,
    forget_bias: Tensor,
    read_bias: Tensor,
    conv_weight: Tensor,
    read_scale: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
    context: Tensor,
    tail: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`newllm.model.kernels.reference.context_read`."""
    implementation = _implementation(projected, numba=_cpu_context, triton=_gpu_context)
    return implementation.context_read(
        projected, forget_bias, read_bias, conv_weight, read_scale, reset, lengths, context, tail
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
    implementation = _implementation(branch, numba=_cpu_stream)
    return implementation.add_norm(stream, branch, weight, dtype, share, noise, site)


def squared_relu(x: Tensor) -> Tensor:
    """See :func:`newllm.model.kernels.reference.squared_relu`."""
    return _implementation(x, numba=_cpu_stream).squared_relu(x)


def softmax_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """See :func:`newllm.model.kernels.reference.softmax_gradient_`."""
    return _implementation(logits, numba=_cpu_loss).softmax_gradient_(logits, targets)


def _implementation(x: Tensor, **modules: Callable[[], ModuleType]) -> ModuleType:
    """The module whose functions run on a tensor like `x`, of those that have the operation."""
    kernel = active_kernel(x.device)
    if x.numel() == 0 or kernel not in modules or x.dtype not in _DTYPES[kernel]:
        return reference
    return modules[kernel]()


# numba takes half a second to import: only those who run the model pay for it.


def _cpu_context() -> ModuleType:
    from newllm.model.context import cpu

    return cpu


def _gpu_context() -> ModuleType:
    from newllm.model.context import gpu

    return gpu


def _cpu_stream() -> ModuleType:
    from newllm.model.kernels import cpu_stream

    return cpu_stream


def _cpu_loss() -> ModuleType:
    from newllm.model.kernels import cpu_loss

    return cpu_loss
