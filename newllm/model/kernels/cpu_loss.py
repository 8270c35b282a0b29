"""Cross-entropy on a CPU: the logits become their gradient in two passes over a row in the cache.

Equal to `reference.py` (tested).
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from newllm.model.kernels.numerics import (
    ONE,
    ZERO,
    as_array,
    exp,
    kernel,
    narrow,
    use_torch_threads,
    widen,
)


@kernel
def _softmax_gradient(logits, targets, peaks, nats):
    for row in numba.prange(logits.shape[0]):
        peak = widen(peaks[row])
        total = ZERO
        for i in range(logits.shape[1]):
            total += exp(widen(logits[row, i]) - peak)
        target = targets[row]
        wanted = widen(logits[row, target]) - peak
        nats[row] = np.log(total) - wanted
        inverse = ONE / total
        for i in range(logits.shape[1]):
            logits[row, i] = narrow(exp(widen(logits[row, i]) - peak) * inverse, logits)
        logits[row, target] = narrow(exp(wanted) * inverse - ONE, logits)


def softmax_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """See :func:`newllm.model.kernels.reference.softmax_gradient_`."""
    nats = torch.empty(len(logits))
    use_torch_threads()
    arrays = (as_array(x) for x in (logits, targets, logits.amax(dim=1), nats))
    _softmax_gradient(*arrays)
    return nats.sum()
