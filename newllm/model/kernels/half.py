"""Matrices in half precision, copied together once a step instead of where they are used.

Autocast casts each fp32 matrix before its product, and its gradient back after it: two launches a
matrix and step, which on a GPU cost more than the products of a small model. Here one launch copies
all of them, and the gradient's product is written in fp32 at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_torch: Any = torch
"""Its functions on many tensors at once, which are named as private."""

_WRITES_WIDE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
"""Whether this torch writes the product of two halves in fp32."""

_copies: Any = WeakTensorKeyDictionary()
"""fp32 matrix -> its copy."""


class HalfCopies:
    """Copies of matrices that :func:`linear` and :func:`half_copy` use from now on.

    They live as long as this object does.
    """

    def __init__(self, matrices: Iterable[Tensor], dtype: torch.dtype) -> None:
        self._matrices = list(matrices)
        self._made = [matrix.detach().to(dtype) for matrix in self._matrices]
        _copies.update(zip(self._matrices, self._made, strict=True))

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy all of them anew: at the start of a step."""
        _torch._foreach_copy_(self._made, self._matrices)

    def __del__(self) -> None:
        for matrix in self._matrices:
            _copies.pop(matrix, None)


def half_copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix as `dtype`: its copy where there is one."""
    copy = _copies.get(weight)
    return weight.to(dtype) if copy is None or copy.dtype != dtype else copy


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of matrices, in fp32 where a GPU can write it so, else in their type."""
    if _WRITES_WIDE and a.device.type == "cuda" and a.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, copy: Tensor) -> Tensor:
        x = x.to(copy.dtype)
        ctx.save_for_backward(x, copy)
        ctx.dtype = weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, copy)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, copy = ctx.saved_tensors
        d_y = grad_outputs[0].flatten(0, -2)
        d_x = (d_y @ copy).view(x.shape) if ctx.needs_input_grad[0] else None
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = wide_product(d_y.t(), x.flatten(0, -2)).to(ctx.dtype)
        return d_x, d_weight, None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """See :func:`newllm.model.kernels.reference.linear`."""
    copy = _copies.get(weight) if torch.is_autocast_enabled(x.device.type) else None
    return F.linear(x, weight) if copy is None else _Linear.apply(x, weight, copy)
