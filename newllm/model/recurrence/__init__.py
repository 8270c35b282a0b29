"""The recurrence of the context vector: one operation, several implementations.

`reference.py` is the definition: a plain torch loop over time that anyone can read. `cpu.py` is
the same maths as one fused numba kernel with a hand-written backward. Both have one signature, and
the tests hold them equal in outputs and gradients.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from newllm.model.recurrence import reference

CONV_TAPS = reference.CONV_TAPS
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


def context_scan(
    write: Tensor,
    forget_logits: Tensor,
    conv_weight: Tensor,
    reset: Tensor | None,
    context: Tensor,
    tail: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the recurrence with the fastest implementation for the tensors' device.

    Arguments and results are those of :func:`newllm.model.recurrence.reference.context_scan`.
    """
    if active_kernel(write.device) == "numba":
        # numba takes half a second to import: only those who run the model pay for it.
        from newllm.model.recurrence import cpu

        return cpu.context_scan(write, forget_logits, conv_weight, reset, context, tail)
    return reference.context_scan(write, forget_logits, conv_weight, reset, context, tail)
