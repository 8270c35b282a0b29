"""Drawing one token from logits in a few microseconds: no sorting, nothing allocated.

Nucleus sampling (Holtzman et al. 2019, arXiv:1904.09751) keeps a token while those before it, in
order of probability, have not reached that fraction. That is: every token above a threshold, and as
many at the threshold as it takes. The threshold is found by halving the range of fp32 numbers,
each time with one vectorised pass over the vocabulary.
"""

from __future__ import annotations

import numba
import numpy as np

from newllm.model.kernels.numerics import FAST, ONE, ZERO, exp, one_thread

BLOCK = 64
"""Entries that are added up at once; the work space is a multiple of it."""

_NEVER, _LARGEST = np.float32(-np.inf), np.float32(1e30)
_SIGN_PLACE, _BELOW_SIGN = np.int32(31), np.int32(0x7FFFFFFF)
_ONE_PATTERN = np.uint32(0x3F800000)


def work_space(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`draw` needs for a vocabulary: a weight of each token, and of each block."""
    blocks = -(-vocab_size // BLOCK)
    return np.zeros(blocks * BLOCK, np.float32), np.zeros(blocks, np.float32)


@one_thread
def draw(logits, forbidden, recent, penalty, temperature, top_p, uniform, weights, sums):
    """A token for logits [V]; -1 if none can be drawn (NaN, infinity, everything forbidden).

    Args:
        forbidden: ids that are not drawn.
        recent: ids made less likely, in any order, each as often as it likes.
        penalty: what their scores are divided by (or multiplied with, below zero), fp32, >= 1
            (Keskar et al. 2019, arXiv:1909.05858).
        temperature: fp32; 0 takes the likeliest token, of equal ones the first.
        top_p: fraction of the probability that is sampled from, fp32.
        uniform: random number in 0 <= u < 1.
        weights, sums: see :func:`work_space`.
    """
    entries = len(logits)
    for i in range(entries):
        weights[i] = logits[i]
    for token in recent:
        score = logits[token]  # not the weight: once is enough for a token that stands there twice
        weights[token] = score / penalty if score > ZERO else score * penalty
    for token in forbidden:
        weights[token] = _NEVER
    peak = _peak(weights, entries, sums)
    if temperature == ZERO:
        for i in range(entries):
            if weights[i] == peak and peak > _NEVER:
                return i
        return -1
    inverse = min(ONE / temperature, _LARGEST)
    total = ZERO
    for i in range(entries):
        weight = exp((weights[i] - peak) * inverse)
        weights[i] = weight
        total += weight
    for token in forbidden:
        weights[token] = ZERO  # `exp` is never quite zero
    if not (total > ZERO and np.isfinite(total)):
        return -1
    if top_p < ONE:
        _keep_nucleus(weights, entries, top_p * total)
    return _pick(weights, entries, uniform, sums)


@numba.njit(error_model="numpy", fastmath=FAST)
def _peak(weights, entries, space):
    """The largest weight, or NaN if there is one; as whole numbers, whose maximum vectorises."""
    patterns = weights.view(np.int32)
    largest = np.int32(-(2**31))
    for i in range(entries):
        pattern = patterns[i]  # of negative numbers, the other way round
        largest = max(largest, np.int32(pattern ^ ((pattern >> _SIGN_PLACE) & _BELOW_SIGN)))
    space.view(np.int32)[0] = largest ^ ((largest >> _SIGN_PLACE) & _BELOW_SIGN)
    return space[0]


@numba.njit(error_model="numpy", fastmath=FAST)
def _keep_nucleus(weights, entries, total):
    """Zero what the likeliest tokens that weigh `total` together leave over."""
    patterns = weights.view(np.uint32)  # of numbers >= 0, in the same order
    # (Multiplying by a comparison vectorises; choosing one of two numbers does not.)
    low, high = np.uint32(1), np.uint32(_ONE_PATTERN + 1)  # no weight is above 1
    while high - low > 1:  # the tokens from `low` on reach the total, those from `high` on do not
        middle = np.uint32((low + high) >> np.uint32(1))
        reached = ZERO
        for i in range(entries):
            reached += weights[i] * np.float32(patterns[i] >= middle)
        if reached >= total:
            low = middle
        else:
            high = middle
    above, at_threshold = ZERO, np.int32(0)
    for i in range(entries):
        above += weights[i] * np.float32(patterns[i] > low)
    for i in range(entries):
        at_threshold = np.int32(at_threshold + np.int32(patterns[i] == low))
    for i in range(entries):
        weights[i] *= np.float32(patterns[i] >= low)
    if at_threshold > 1:
        for i in range(entries):
            if patterns[i] == low:
                if above >= total:
                    weights[i] = ZERO
                else:
                    above += weights[i]


@numba.njit(error_model="numpy", fastmath=FAST)
def _pick(weights, entries, uniform, sums):
    """The token at `uniform` of the total weight, in the order of the ids."""
    total, last_block = 0.0, 0
    for block in range(len(sums)):
        weight = ZERO
        for i in range(BLOCK):
            weight += weights[block * BLOCK + i]
        sums[block] = weight
        total += weight
        if weight > ZERO:
            last_block = block
    target, block = uniform * total, 0
    while block < last_block and target >= sums[block]:
        target -= sums[block]
        block += 1
    last = -1
    for i in range(block * BLOCK, min((block + 1) * BLOCK, entries)):
        if weights[i] > ZERO:
            last = i
            target -= weights[i]
            if target < 0.0:
                break
    return last
