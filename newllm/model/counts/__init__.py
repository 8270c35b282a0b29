"""Counts: what followed the last tokens in the training rows, as a table that a model carries.

`table.py` says what a table is, `reference.py` defines how it is read, `cpu.py` (numba) is its
kernel, `layer.py` is what a model makes of it. Tables are made by `train/counting.py`.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from newllm.model import kernels
from newllm.model.counts import reference
from newllm.model.counts.table import CountTable

__all__ = ["contexts", "followed"]


def contexts(
    table: CountTable,
    ids: Tensor,
    tables: Tensor | None,
    reset: Tensor | None,
    lengths: Tensor | None,
    recent: Tensor,
) -> tuple[Tensor, Tensor]:
    """See :func:`newllm.model.counts.reference.contexts`.

    Of tensors on a GPU the table is read by the CPU, where the contexts stay.
    """
    given = ids, tables, reset, lengths, recent
    here = [None if part is None else part.cpu().contiguous() for part in given]
    found, after = _kernel().contexts(table, *here)
    return found, after.to(recent.device)


def followed(table: CountTable, contexts: Tensor, targets: Tensor) -> Tensor:
    """See :func:`newllm.model.counts.reference.followed`; the result is where `targets` are."""
    probability = _kernel().followed(table, contexts.contiguous(), targets.cpu().contiguous())
    return probability.to(targets.device)


def _kernel() -> ModuleType:
    """Imported late: numba takes half a second."""
    if kernels.FORCED == "reference":
        return reference
    from newllm.model.counts import cpu

    return cpu
