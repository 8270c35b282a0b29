"""The fused operations of the residual stream, and which kernel runs where.

`reference.py` defines them in plain torch that anyone can read; `cpu.py` (numba) is the same maths
in one pass over memory, with hand-written backwards. Every implementation has the signature of the
reference, and the tests hold them equal in outputs and gradients; `gpu.py` (Triton) the same for
CUDA GPUs. The operation of `ContextLM` itself is in `model/context/`, built alike.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from newllm.device import send_together
from newllm.errors import UserError
from newllm.model.dropout import Noise
from newllm.model.kernels import reference
from newllm.model.kernels.half import HalfCopies, half_copy, linear, wide_product
from newllm.model.kernels.reference import EPSILON, Facts, Places

__all__ = [
    "EPSILON", "KERNEL_VARIABLE", "Facts", "HalfCopies", "Noise", "Places", "active_kernel",
    "add_norm", "blend", "check_step", "choose", "dispatched", "embedding", "half_copy", "linear",
    "make_lookup", "move_", "nats_gradient_", "norm", "norms_together", "ready", "sent",
    "squared_relu", "triton_is_installed", "wide_product",
]  # fmt: skip

KERNEL_VARIABLE = "NEWLLM_KERNEL"

_P = ParamSpec("_P")
_R = TypeVar("_R")

FORCED = os.environ.get(KERNEL_VARIABLE, "")
"""The kernel that the environment asked for when the process began, or none."""

_DTYPES = {
    "numba": (torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}
"""What the kernels read; float64 is for the reference, which gradients are checked with."""


def active_kernel(device: torch.device | str = "cpu") -> str:
    """Kind of kernel that runs on `device`: "numba" on a CPU, "triton" on a
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
    if FORCED not in ("", "reference", "numba", "triton"):
        raise UserError(f"{KERNEL_VARIABLE}={FORCED}: expected triton, numba or reference")
    if FORCED and FORCED not in possible:
        raise UserError(
            f"{KERNEL_VARIABLE}={FORCED}: numba runs on a CPU, triton on a CUDA GPU where it is "
            f"installed; on this {kind} device use {' or '.join(possible)}"
        )
    return FORCED or possible[-1]


@functools.cache
def triton_is_installed() -> bool:
    """Whether Triton can be imported; torch's CUDA builds for Linux bring it."""
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


def choose(x: Tensor, reference: ModuleType, **modules: Callable[[], ModuleType]) -> ModuleType:
    """The module whose functions run on a tensor like `x`.

    Args:
        x: what is computed with.
        reference: the plain torch, for types and devices without a kernel.
        modules: kind of kernel -> imports the module that has it.
    """
    kernel = active_kernel(x.device)
    if x.numel() == 0 or kernel not in modules or x.dtype not in _DTYPES[kernel]:
        return reference
    return modules[kernel]()


def dispatched(
    definition: Callable[_P, _R], by: int = 0, **modules: Callable[[], ModuleType]
) -> Callable[_P, _R]:
    """An operation that runs by the kernel which :func:`choose` finds for its arguments.

    Args:
        definition: the function of a `reference.py`, of the same name in each module of kernels.
        by: place of the (positional) argument that decides, a tensor.
        modules: see :func:`choose`.
    """
    plain = sys.modules[definition.__module__]

    @functools.wraps(definition)
    def operation(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        deciding: Any = args[by]
        module = choose(deciding, plain, **modules)
        return getattr(module, definition.__name__)(*args, **kwargs)

    return operation


def _cpu() -> ModuleType:
    """Imported late: numba takes half a second."""
    from newllm.model.kernels import cpu

    return cpu


def _gpu() -> ModuleType:
    from newllm.model.kernels import gpu

    return gpu


add_norm = dispatched(reference.add_norm, by=1, numba=_cpu, triton=_gpu)
squared_relu = dispatched(reference.squared_relu, numba=_cpu, triton=_gpu)
nats_gradient_ = dispatched(reference.nats_gradient_, numba=_cpu, triton=_gpu)
check_step = dispatched(reference.check_step, by=1, triton=_gpu)
blend = dispatched(reference.blend, triton=_gpu)
move_ = dispatched(reference.move_, triton=_gpu)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """See :func:`newllm.model.kernels.reference.norm`."""
    implementation = choose(x, reference, triton=_gpu)
    if implementation is reference:
        return reference.norm(x, weight)
    return implementation.add_norm(None, x, weight, x.dtype)[1]


def norms_together(weights: Sequence[Tensor], x: Tensor) -> Sequence[Tensor]:
    """Weights [D] of norms of a stream like `x`, [..., D], as :func:`add_norm` takes them.

    On a GPU their gradients are then summed together.
    """
    implementation = choose(x, reference, triton=_gpu)
    if implementation is reference:
        return weights
    return implementation.norms_together(weights, x.numel() // x.shape[-1])


def embedding(
    table: Tensor, index: Tensor, base: Tensor | None = None, holes: bool = False
) -> Tensor:
    """See :func:`newllm.model.kernels.reference.embedding`; the index may be made `ready`."""
    if index.dtype != torch.int32:
        return reference.embedding(table, index, base, holes)
    if choose(table, reference, triton=_gpu) is reference:
        return reference.embedding(table, index[0].long(), base, holes=True)
    lookup, shape = index.flatten(1), (*index.shape[1:], table.shape[1])
    base = None if base is None else base.reshape(lookup.shape[1], table.shape[1])
    return _gpu().embedding(table, lookup, base).view(shape)


def ready(facts: Facts) -> Facts:
    """Facts as a GPU reads them: its look-ups are sorted, int32 [4, ...] (:func:`make_lookup`).

    The rows' gradients are then sums in a fixed order, without a wait.
    """
    return {
        name: make_lookup(fact.flatten()).view(4, *fact.shape) if name.endswith("_rows") else fact
        for name, fact in facts.items()
    }


def sent(facts: Facts, device: torch.device) -> Facts:
    """Facts where they are used; those that go to a GPU are made `ready`, and go in one copy."""
    if all(fact.device.type == device.type for fact in facts.values()):
        return facts
    return send_together(ready(facts), device)


def make_lookup(index: Tensor) -> Tensor:
    """An index [N] as the kernel of :func:`embedding` reads it, int32 [4, N].

    The index itself; the positions in the order of their rows; the row of each of these; and how
    often it comes, at its first position, else (and for row -1) 0.
    """
    order = index.argsort(stable=True)
    row = index[order]
    first = torch.ones_like(row, dtype=torch.bool)
    first[1:] = row[1:] != row[:-1]
    begins = first.nonzero()[:, 0]
    times = torch.zeros_like(row)
    times[begins] = torch.diff(begins, append=torch.tensor([len(row)]))
    times[row < 0] = 0
    return torch.stack([index, order, row, times]).int()
