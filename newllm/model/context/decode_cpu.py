"""One token for each of a few slots through the whole stack of `ContextLM`, in one call.

With so few tokens a matrix product costs what reading its weights costs, so they are read once,
in the order in which they lie, in vectors of the processor's width. A matrix is packed in panels:
`PANEL` rows (outputs) of it, and in a panel one input after the other. A slot's output is summed
over the inputs in order, however many slots go along: what a slot computes does not depend, to
the bit, on the others.

Three formats: fp32, bfloat16 (two weights in a 32-bit word) and int8 (four). The vectors of a
word's weights stand side by side: shifting and masking the word gives the next one.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from newllm.model.context.lm import HASH_SHIFT, PREVIOUS_FACTOR, TOKEN_FACTOR
from newllm.model.context.reference import CHANNEL_PARAMETERS
from newllm.model.counts import cpu as counts_cpu
from newllm.model.kernels.numerics import FAST, ONE, ZERO, exp, inlined, one_thread, sigmoid
from newllm.model.kernels.reference import EPSILON
from newllm.model.recall import cpu as recall_cpu
from newllm.model.recall.reference import ORDER_UNIT, TIMES_UNIT

WIDTH = 16 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 8
"""Elements of a vector register."""
_MOST_SLOTS = 4 if WIDTH == 16 else 2
"""Slots that share a weight once it is loaded; their sums have to fit in the registers."""
_VECTORS = 4
PANEL = _VECTORS * WIDTH
"""Outputs that are summed at the same time."""
INT8_UNIT = 2.0**-24
"""int8 weights enter the sums in the top byte of a word: what one step of them is worth."""

_EPSILON = np.float32(EPSILON)
_TAP_0, _TAP_1, _TAP_2, _TAP_3, _FORGET_BIAS, _READ_BIAS, _SCALE, _CONTEXT = range(8)
_WRITE_0, _WRITE_1, _WRITE_2, _WRITE_3, _FORGET, _GATE = range(8, _ROWS := 14)
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_WORDS, _FLOATS = ir.VectorType(_I32, WIDTH), ir.VectorType(_F32, WIDTH)
_FUSED = ("contract",)
_WEIGHTS_IN_WORD = {types.float32: 1, types.uint16: 2, types.int8: 4}


def _part(function: Any) -> Any:
    """Compile a part of the step."""
    return numba.njit(error_model="numpy", fastmath=FAST)(function)


def _unpack(builder: Any, word: Any, dtype: Any) -> list[Any]:
    """The vectors of fp32 weights that a vector of words holds."""

    def shifted(bits: int) -> Any:
        return builder.shl(word, ir.Constant(_WORDS, [bits] * WIDTH)) if bits else word

    def masked(x: Any, mask: int) -> Any:
        return builder.and_(x, ir.Constant(_WORDS, [mask] * WIDTH))

    if dtype == types.float32:
        return [builder.bitcast(word, _FLOATS)]
    if dtype == types.uint16:
        return [builder.bitcast(x, _FLOATS) for x in (masked(word, 0xFFFF0000), shifted(16))]
    tops = [masked(shifted(bits), 0xFF000000) for bits in (0, 8, 16, 24)]
    return [builder.sitofp(top, _FLOATS) for top in tops]


def _panel_product(slots: int) -> Any:
    """Build `y[slot, j] = scale[j] * sum_i weight[i, j] * x[slot, i]` for the outputs of a panel.

    `x` has rows of `inner` inputs, `y` rows of `y_stride` outputs. The code is written in LLVM's
    language because the sums must stay in registers.
    """
    build: Any = intrinsic

    @build
    def panel_product(
        typing_context: Any, panel: Any, scales: Any, x: Any, y: Any, inner: Any,
        panel_at: Any, scales_at: Any, x_at: Any, y_at: Any, y_stride: Any,
    ) -> Any:  # fmt: skip
        per_word = _WEIGHTS_IN_WORD[panel.dtype]
        signature = types.void(panel, scales, x, y, *[types.intp] * 6)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def at(number: int, offset: Any, kind: Any) -> Any:
                """Address of an element of an array argument, as that of a `kind`."""
                array = context.make_array(signature.args[number])(context, builder, args[number])
                return builder.bitcast(builder.gep(array.data, [offset]), kind.as_pointer())

            def number(value: int) -> Any:
                return ir.Constant(_I64, value)

            inner, panel_at, scales_at, x_at, y_at, y_stride = args[4:]
            words = at(0, panel_at, _WORDS)
            inputs = [at(2, builder.add(x_at, builder.mul(inner, number(slot))), _F32)
                      for slot in range(slots)]  # fmt: skip
            before = builder.block
            loop = builder.append_basic_block("inputs")
            after = builder.append_basic_block("outputs")
            builder.branch(loop)
            builder.position_at_end(loop)
            i = builder.phi(_I64)
            i.add_incoming(number(0), before)
            sums = [[builder.phi(_FLOATS) for _ in range(_VECTORS)] for _ in range(slots)]
            spread = []
            for values in inputs:
                value = builder.load(builder.gep(values, [i]))
                first = builder.insert_element(
                    ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(_I32, 0)
                )
                spread.append(
                    builder.shuffle_vector(first, first, ir.Constant(_WORDS, [0] * WIDTH))
                )
            weights: list[Any] = []
            per_input = _VECTORS // per_word
            for k in range(per_input):
                place = builder.add(builder.mul(i, number(per_input)), number(k))
                word = builder.load(builder.gep(words, [place]), align=4)
                weights += _unpack(builder, word, signature.args[0].dtype)
            totals = [
                [
                    builder.fadd(total, builder.fmul(weight, value, flags=_FUSED), flags=_FUSED)
                    for total, weight in zip(row, weights, strict=True)
                ]
                for row, value in zip(sums, spread, strict=True)
            ]
            following = builder.add(i, number(1))
            i.add_incoming(following, loop)
            for row, new in zip(sums, totals, strict=True):
                for total, updated in zip(row, new, strict=True):
                    total.add_incoming(ir.Constant(_FLOATS, [0.0] * WIDTH), before)
                    total.add_incoming(updated, loop)
            builder.cbranch(builder.icmp_signed("<", following, inner), loop, after)
            builder.position_at_end(after)
            factors = at(1, scales_at, _FLOATS)
            for slot in range(slots):
                out = at(3, builder.add(y_at, builder.mul(y_stride, number(slot))), _FLOATS)
                for k in range(_VECTORS):
                    factor = builder.load(builder.gep(factors, [number(k)]), align=4)
                    scaled = builder.fmul(totals[slot][k], factor)
                    builder.store(scaled, builder.gep(out, [number(k)]), align=4)
            return context.get_dummy_value()

        return signature, generate

    return panel_product


_one_slot, _two_slots, _four_slots = _panel_product(1), _panel_product(2), _panel_product(4)


@_part
def _product(matrices, at, scales, row, x, y, count):
    """Rows `row`.. of all matrices, as many as `y` is wide, times the first `count` rows of `x`."""
    inner, rows = x.shape[1], y.shape[1]
    for first in range(0, rows, PANEL):
        panel, scale, slot = at + first * inner, row + first, 0
        while _MOST_SLOTS >= 4 and slot + 4 <= count:
            _four_slots(matrices, scales, x, y, inner, panel, scale,
                        slot * inner, slot * rows + first, rows)  # fmt: skip
            slot += 4
        while slot + 2 <= count:
            _two_slots(matrices, scales, x, y, inner, panel, scale,
                       slot * inner, slot * rows + first, rows)  # fmt: skip
            slot += 2
        if slot < count:
            _one_slot(matrices, scales, x, y, inner, panel, scale,
                      slot * inner, slot * rows + first, rows)  # fmt: skip
    return at + rows * inner, row + rows


@_part
def _moments(x):
    """Mean and inverse standard deviation of a row."""
    size = np.float32(len(x))
    mean = ZERO
    for i in range(len(x)):
        mean += x[i]
    mean /= size
    variance = ZERO
    for i in range(len(x)):
        difference = x[i] - mean
        variance += difference * difference
    return mean, ONE / np.sqrt(variance / size + _EPSILON)


@numba.njit(error_model="numpy")
def _norm(x, weight, y):
    """Layer norm of one row.

    LLVM compiles the loop twice and chooses by where the rows lie: nothing is left to it here that
    could make the two differ in the last bit.
    """
    mean, deviation = _moments(x[: len(weight)])
    for i in range(len(weight)):
        y[i] = (x[i] - mean) * deviation * weight[i]


@inlined
def _context_read(group, channels, projected, context, tail, read, s):
    """One token of one slot through `context_read`: see `reference.py`.

    What a group of channels needs is copied to `s` [14, group], which stays in the cache. LLVM can
    see that its rows do not overlap, and vectorises the loops.
    """
    size = np.float32(group)
    part = projected.shape[0] // 3
    for first in range(0, channels.shape[1], group):
        for row in range(CHANNEL_PARAMETERS):
            for i in range(group):
                s[_TAP_0 + row, i] = channels[row, first + i]
        for i in range(group):
            s[_CONTEXT, i] = context[first + i]
        for row in range(3):
            for i in range(group):
                s[_WRITE_1 + row, i] = tail[row, first + i]
        for row, place in ((_WRITE_0, 0), (_FORGET, part), (_GATE, 2 * part)):
            for i in range(group):
                s[row, i] = projected[place + first + i]
        mean = ZERO
        for i in range(group):
            value = s[_TAP_0, i] * s[_WRITE_0, i] + s[_TAP_1, i] * s[_WRITE_1, i]
            value += s[_TAP_2, i] * s[_WRITE_2, i] + s[_TAP_3, i] * s[_WRITE_3, i]
            new = value + sigmoid(s[_FORGET, i] + s[_FORGET_BIAS, i]) * (s[_CONTEXT, i] - value)
            s[_CONTEXT, i] = new
            mean += new
        mean /= size
        variance = ZERO
        for i in range(group):
            difference = s[_CONTEXT, i] - mean
            variance += difference * difference
        deviation = ONE / np.sqrt(variance / size + _EPSILON)
        for i in range(group):
            g = s[_GATE, i] + s[_READ_BIAS, i]
            s[_GATE, i] = (s[_CONTEXT, i] - mean) * deviation * s[_SCALE, i] * g * sigmoid(g)
        for i in range(group):
            read[first + i] = s[_GATE, i]
        for i in range(group):
            context[first + i] = s[_CONTEXT, i]
        for row in range(3):
            for i in range(group):
                tail[row, first + i] = s[_WRITE_0 + row, i]


@_part
def _add_pair(table, widen, previous, token, x):
    """Add to an embedding what `BigramHashEmbedding` adds."""
    mixed = previous * PREVIOUS_FACTOR + token * TOKEN_FACTOR
    row = table[(mixed >> HASH_SHIFT) % len(table)]
    for k in range(len(row)):
        for i in range(len(x)):
            x[i] += row[k] * widen[k, i]


@_part
def _add_recalled(embedding, project, order, times, match, x):
    """Add to an embedding what `RecallLayer.added` adds."""
    row, k, n = embedding[match % TIMES_UNIT], match // ORDER_UNIT, match % ORDER_UNIT // TIMES_UNIT
    for i in range(len(x)):
        x[i] += order[k, i] + times[n, i]
    for j in range(len(row)):
        for i in range(len(x)):
            x[i] += row[j] * project[j, i]


@_part
def _mix_counted(
    gate, bias, contexts, hidden, logits,
    rest, confidence, first, followers, log_probability,
):  # fmt: skip
    """Mix in what each context says: `CountsLayer.mix_`; returns by how much the total rises."""
    peak, total = logits[0], ZERO
    for i in range(len(logits)):
        peak = max(peak, logits[i])
    for i in range(len(logits)):
        total += exp(logits[i] - peak)
    before = peak + np.log(total)
    total = before
    for k in range(len(contexts)):
        number = contexts[k]
        if number < 0:
            continue
        score = bias[k, confidence[number]]
        for i in range(gate.shape[1]):
            score += gate[k, i] * hidden[i]
        trust = sigmoid(score)
        total -= np.log(ONE - trust * (ONE - rest[number]))
        base = total + np.log(trust)
        for place in range(first[number], first[number + 1]):
            own, score = logits[followers[place]], base + log_probability[place]
            logits[followers[place]] = _log_of_sum(own, score)
    return total - before


@_part
def _copy_recalled(gate, bias, match, hidden, logits, above):
    """Let the logit of what recall found have the score of copying it: `RecallLayer.copying`."""
    k, candidate = match // ORDER_UNIT, match % TIMES_UNIT
    score = bias[k, match % ORDER_UNIT // TIMES_UNIT] + above
    for i in range(gate.shape[1]):
        score += gate[k, i] * hidden[i]
    logits[candidate] = _log_of_sum(logits[candidate], score)


@_part
def _look_up(token, slot, recall, recent, looked_up, answering, found, index, starts, checks,
             contexts):  # fmt: skip
    """Enter a token, and find what the memories know of it: recall's match, 0 where there is none,
    which is returned and kept in `found`; the table's contexts [K], if it has any."""
    match = np.int64(0)
    if recall.shape[2] > 0:
        own = recall[:, slot]
        searched = looked_up[:, slot] if answering[slot] else own
        match = recall_cpu.step(token, own, searched, recent[:, slot])
        found[slot] = match
    else:
        recall_cpu.enter(token, recent[:, slot])
    if len(checks) > 0:
        counts_cpu.find(recent[:, slot], index[0, 0], index[0, 1], starts, checks, contexts)
    return match


@one_thread
def look_up(
    tokens, slots, recall, recent, looked_up, answering, found, index, starts, checks, matches,
    contexts,
):  # fmt: skip
    """All that a step does before its weights are needed: to matches and contexts of the slots."""
    for n in range(len(tokens)):
        matches[slots[n]] = _look_up(tokens[n], slots[n], recall, recent, looked_up, answering,
                                     found, index, starts, checks, contexts[slots[n]])  # fmt: skip


@inlined
def _log_of_sum(a, b):
    """ln(exp(a) + exp(b))."""
    return max(a, b) + np.log1p(np.exp(-abs(a - b)))


@functools.cache
def step_kernel(group: int) -> Any:
    """The step for contexts that are normalised in groups of `group` channels."""

    @one_thread
    def step(
        tokens, slots, embedding, table, widen, project, order, times, gate, bias, trust_gate,
        trust_bias, matrices, scales, norms, channels, index, starts, checks, rest, confidence,
        first, followers, log_probability, context, tail, previous, recall, recent, looked_up,
        answering, found,
        stream, normed, projected, read, hidden, branch, logits,
    ):  # fmt: skip
        count, width, layers = len(tokens), norms.shape[1], channels.shape[0]
        s = np.empty((_ROWS, group), np.float32)
        matches = np.zeros(count, np.int64)
        contexts = np.empty((count, trust_bias.shape[0]), np.int64)
        for n in range(count):
            token, before = tokens[n], previous[0, slots[n]]
            for i in range(width):
                branch[n, i] = embedding[token, i]
            if before > 0 and len(table) > 0:
                _add_pair(table, widen, before, token, branch[n, :width])
            previous[0, slots[n]] = token + 1
            matches[n] = _look_up(token, slots[n], recall, recent, looked_up, answering, found,
                                  index, starts, checks, contexts[n])  # fmt: skip
            if matches[n] > 0:
                _add_recalled(embedding, project, order, times, matches[n], branch[n, :width])
            _norm(branch[n], norms[0], stream[n])
            _norm(stream[n], norms[1], normed[n])
        at, row = 0, 0
        for layer in range(layers):
            at, row = _product(matrices, at, scales, row, normed, projected, count)
            for n in range(count):
                slot = slots[n]
                _context_read(group, channels[layer], projected[n], context[layer, slot],
                              tail[layer, slot], read[n], s)  # fmt: skip
            at, row = _product(matrices, at, scales, row, read, branch, count)
            for n in range(count):
                for i in range(width):
                    stream[n, i] += branch[n, i]
                _norm(stream[n], norms[2 * layer + 2], normed[n])
            at, row = _product(matrices, at, scales, row, normed, hidden, count)
            for n in range(count):
                for i in range(hidden.shape[1]):
                    positive = max(hidden[n, i], ZERO)
                    hidden[n, i] = positive * positive
            at, row = _product(matrices, at, scales, row, hidden, branch, count)
            for n in range(count):
                for i in range(width):
                    stream[n, i] += branch[n, i]
                _norm(stream[n], norms[2 * layer + 3], normed[n])
        _product(matrices, at, scales, row, normed, logits, count)
        for n in range(count):
            above = ZERO
            if len(rest) > 0:
                above = _mix_counted(trust_gate, trust_bias, contexts[n], normed[n],
                                     logits[n, : len(embedding)], rest, confidence, first,
                                     followers, log_probability)  # fmt: skip
            if matches[n] > 0:
                _copy_recalled(gate, bias, matches[n], normed[n], logits[n], above)

    return step
