"""`ContextLM` as ONNX graphs: one token at a time (step), and any number at once (prefill).

Both have the state as inputs and outputs. In the prefill graph the products and the convolution run
over all tokens together, and a `Scan` carries the context from token to token. Shapes as in
`newllm/model/residual.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from newllm.export import onnx_recall
from newllm.export.onnx_nodes import END, Graph
from newllm.model import ContextLM
from newllm.model.context import CONV_TAPS, group_size
from newllm.model.context.lm import (
    HASH_SHIFT,
    PREVIOUS_FACTOR,
    TOKEN_FACTOR,
    BigramHashEmbedding,
    ContextBlock,
)
from newllm.model.recall.reference import LONGEST, ORDERS, WAYS

OPSET, IR_VERSION = 18, 9
"""Old enough for the runtimes in use, new enough for `LayerNormalization`."""

Recur = Callable[["Graph", str, str, str], tuple[str, str]]
"""Adds c = s c + a to a graph, from the names of c, s and a; see `_one_step` and `_scan`."""


def step_graph(model: ContextLM, own_head: bool = False) -> onnx.ModelProto:
    """ids [B], context [L, B, C], tail [L, B, 3, C] -> logits [B, V], and the state after them.

    A model with a bigram hash embedding also has previous [1, B] in its state, int64; one with
    recall the tables recall [4, B, S, 4] and recent [5, B], int32. It then is for tokens that the
    model writes, and looks them up in looked_up: recall as it stood before the answer.

    With `own_head` the output matrix is stored by itself, transposed, for tools that change
    constants; else it is the embedding's.
    """
    graph = Graph()
    ids = graph.op("Unsqueeze", "ids", graph.whole(1))
    return _finish(graph, model, ids, ["batch"], _one_step, own_head)


def prefill_graph(model: ContextLM, own_head: bool = False) -> onnx.ModelProto:
    """ids [B, T], T > 0, and a state -> logits after the last token [B, V], and the state."""
    return _finish(Graph(), model, "ids", ["batch", "time"], _scan, own_head)


def _finish(
    graph: Graph, model: ContextLM, ids: str, axes: list[str], recur: Recur, own_head: bool
) -> onnx.ModelProto:
    """The stack around one way to carry the context, as a checked model."""
    contexts, tails = [], []
    table = graph.constant("embedding", model.embedding.weight)
    embedded, found, memory = graph.op("Gather", table, ids), "", ["", ""]
    if model.pairs is not None:
        embedded = graph.op("Add", embedded, _pairs(graph, model.pairs, ids))
    slots, answering = model.settings.recall_slots, recur is _one_step
    if model.recall is not None:
        found, *memory = onnx_recall.matches(graph, ids, slots, answering)
        recalled = onnx_recall.added(graph, model.recall, found, table)
        embedded = graph.op("Add", embedded, recalled)
    x = graph.norm(embedded, "embedding_norm", model.embedding_norm)
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, ContextBlock)
        name = f"blocks.{layer}"
        place = graph.constant(f"layer_{layer}", np.array(layer, np.int64))
        state = [graph.op("Gather", part, place, axis=0) for part in ("context", "tail")]
        normed = graph.norm(x, f"{name}.mixer_norm", block.mixer_norm)
        read, context, tail = _mix(graph, name, block, normed, state, recur)
        x = graph.op("Add", x, read)
        contexts.append(graph.op("Unsqueeze", context, graph.whole(0)))
        tails.append(graph.op("Unsqueeze", tail, graph.whole(0)))
        forward = block.feed_forward
        normed = graph.norm(x, f"{name}.feed_forward.norm", forward.norm)
        up = graph.op("Relu", graph.product(normed, f"{name}.up", forward.up_proj.weight))
        squared = graph.op("Mul", up, up)
        x = graph.op("Add", x, graph.product(squared, f"{name}.down", forward.down_proj.weight))
    last = graph.op("Squeeze", graph.slice(x, -1, END), graph.whole(1))
    hidden = graph.norm(last, "norm", model.norm)
    if own_head:
        logits = graph.product(hidden, "head", model.embedding.weight)
    else:
        logits = graph.op("MatMul", hidden, graph.op("Transpose", table, perm=[1, 0]))
    if model.recall is not None:
        here = graph.slice(found, -1, END)
        logits = onnx_recall.copied(graph, model.recall, here, hidden, logits)
    results = {
        "logits": logits,
        "new_context": graph.op("Concat", *contexts, axis=0),
        "new_tail": graph.op("Concat", *tails, axis=0),
    }
    if model.pairs is not None:
        results["new_previous"] = graph.op("Transpose", _follows(graph, ids), perm=[1, 0])
    if model.recall is not None:
        results["new_recall"], results["new_recent"] = memory
    graph.nodes += [helper.make_node("Identity", [at], [name]) for name, at in results.items()]
    values = helper.make_tensor_value_info
    shape = model.settings
    layers, channels = shape.num_layers, shape.context_dim
    parts: dict[str, tuple[int, list[int | str]]] = {
        "context": (TensorProto.FLOAT, [layers, "batch", channels]),
        "tail": (TensorProto.FLOAT, [layers, "batch", CONV_TAPS - 1, channels]),
    }
    further: dict[str, tuple[int, list[int | str]]] = {}
    if model.recall is not None:
        tables: list[int | str] = [len(ORDERS), "batch", slots // WAYS, WAYS]
        parts["recall"] = (TensorProto.INT32, tables)
        parts["recent"] = (TensorProto.INT32, [LONGEST, "batch"])
        further = {"looked_up": (TensorProto.INT32, tables)} if answering else {}
    if model.pairs is not None:
        parts["previous"] = (TensorProto.INT64, [1, "batch"])
    body = helper.make_graph(
        graph.nodes,
        "new_llm",
        [
            values("ids", TensorProto.INT64, axes),
            *(values(name, kind, sizes) for name, (kind, sizes) in {**parts, **further}.items()),
        ],
        [
            values("logits", TensorProto.FLOAT, ["batch", model.vocab_size]),
            *(values(f"new_{name}", kind, sizes) for name, (kind, sizes) in parts.items()),
        ],
        list(graph.constants.values()),
    )
    opset = [helper.make_opsetid("", OPSET)]
    finished = helper.make_model(body, opset_imports=opset, ir_version=IR_VERSION)
    onnx.checker.check_model(finished, full_check=True)
    return finished


def _pairs(graph: Graph, pairs: BigramHashEmbedding, ids: str) -> str:
    """What `BigramHashEmbedding` adds to the embedding of ids [B, T]: [B, T, D].

    ONNX shifts unsigned numbers alone; the hash is not negative, so a division does the same.
    """
    before = graph.op("Transpose", "previous", perm=[1, 0])
    earlier = graph.slice(graph.op("Add", ids, graph.whole(1)), 0, -1)
    previous = graph.op("Concat", before, earlier, axis=1)
    mixed = graph.op(
        "Add",
        graph.op("Mul", previous, graph.whole(PREVIOUS_FACTOR)),
        graph.op("Mul", ids, graph.whole(TOKEN_FACTOR)),
    )
    shifted = graph.op("Div", mixed, graph.whole(1 << HASH_SHIFT))
    row = graph.op("Mod", shifted, graph.whole(len(pairs.table)))
    found = graph.op("Gather", graph.constant("pairs.table", pairs.table), row)
    known = graph.op("Cast", graph.op("Greater", previous, graph.whole(0)), to=TensorProto.FLOAT)
    found = graph.op("Mul", found, graph.op("Unsqueeze", known, graph.whole(2)))
    return graph.op("MatMul", found, graph.constant("pairs.widen", pairs.widen))


def _follows(graph: Graph, ids: str) -> str:
    """`previous` for the next call, [B, 1]."""
    return graph.op("Add", graph.slice(ids, -1, END), graph.whole(1))


def _mix(
    graph: Graph, name: str, block: ContextBlock, normed: str, state: list[str], recur: Recur
) -> tuple[str, str, str]:
    """What a block's first half adds to the stream, and its state: `reference.context_read`."""
    context, tail = state
    channels = len(block.forget_bias)
    projected = graph.product(normed, f"{name}.in", block.in_proj.weight)
    split = graph.whole(channels, channels, channels)
    write, forget, gate = graph.several("Split", [projected, split], 3, axis=2)
    forget = graph.op(
        "Sigmoid",
        graph.op("Add", forget, graph.constant(f"{name}.forget_bias", block.forget_bias)),
    )
    # The tail has the newest write first; before the new ones it has to come last.
    writes = graph.op("Concat", graph.slice(tail, -1, -END, -1), write, axis=1)
    weighed = []
    for back, filters in enumerate(block.conv_weight):
        shifted = graph.slice(writes, CONV_TAPS - 1 - back, -back if back else END)
        weight = graph.constant(f"{name}.conv_weight.{back}", filters)
        weighed.append(graph.op("Mul", shifted, weight))
    value = graph.op("Sum", *weighed)
    one = graph.constant("one", np.array(1, np.float32))
    added = graph.op("Mul", graph.op("Sub", one, forget), value)
    contexts, context = recur(graph, context, forget, added)
    tail = graph.slice(writes, -1, -CONV_TAPS, -1)
    group = group_size(channels)
    grouped = graph.op("Reshape", contexts, graph.whole(0, 0, channels // group, group))
    normed = graph.norm(grouped, "ones", np.ones(group, np.float32))
    flat = graph.op("Reshape", normed, graph.whole(0, 0, channels))
    scaled = graph.op("Mul", flat, graph.constant(f"{name}.read_scale", block.read_scale))
    gate = graph.op("Add", gate, graph.constant(f"{name}.read_bias", block.read_bias))
    gated = graph.op("Mul", scaled, graph.op("Mul", gate, graph.op("Sigmoid", gate)))
    return graph.product(gated, f"{name}.out", block.out_proj.weight), context, tail


def _one_step(graph: Graph, context: str, forget: str, added: str) -> tuple[str, str]:
    """c = s c + a for one token: c as [B, 1, C] and as [B, C]."""
    old = graph.op("Unsqueeze", context, graph.whole(1))
    new = graph.op("Add", graph.op("Mul", forget, old), added)
    return new, graph.op("Squeeze", new, graph.whole(1))


def _scan(graph: Graph, context: str, forget: str, added: str) -> tuple[str, str]:
    """The same for T tokens one after the other: all c [B, T, C], and the last [B, C]."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["s", "c"], ["kept"]),
            helper.make_node("Add", ["kept", "a"], ["new"]),
            helper.make_node("Identity", ["new"], ["said"]),
        ],
        "carry",
        [value(name, TensorProto.FLOAT, None) for name in ("c", "s", "a")],
        [value(name, TensorProto.FLOAT, None) for name in ("new", "said")],
    )
    last, contexts = graph.several(
        "Scan", [context, forget, added], 2, body=body, num_scan_inputs=2,
        scan_input_axes=[1, 1], scan_output_axes=[1],
    )  # fmt: skip
    return contexts, last
