"""Recall: a memory of fixed size that copies.

`reference.py` defines it, `cpu.py` (numba) is its kernel, `layer.py` is what a model makes of it.
"""

from __future__ import annotations

from torch import Tensor

from newllm.model import kernels
from newllm.model.recall import reference

__all__ = ["recall"]


def recall(
    ids: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
    table: Tensor,
    recent: Tensor,
    looked_up: Tensor | None = None,
    closing: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`newllm.model.recall.reference.recall`.

    Of tensors on a GPU the tables are read by the CPU: a token costs some comparisons, in order.
    """
    read = reference.recall
    if kernels.FORCED != "reference":
        from newllm.model.recall import cpu

        read = cpu.recall
    given = ids, reset, lengths, table, recent, looked_up
    here = [None if part is None else part.cpu().contiguous() for part in given]
    return tuple(part.to(ids.device) for part in read(*here, closing))  # type: ignore[return-value, arg-type]
