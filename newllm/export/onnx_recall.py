"""Recall in an ONNX graph: the loop of `model/recall/reference.py`, and what `RecallLayer` adds."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from newllm.export.onnx_nodes import Graph
from newllm.model.recall.layer import RecallLayer
from newllm.model.recall.reference import (
    CHECK_UNIT,
    CHECKS,
    HASH_FACTOR,
    HASH_PRIME,
    LONGEST,
    MOST_TIMES,
    ORDER_UNIT,
    ORDERS,
    TIMES_UNIT,
    WAYS,
)

_INT32, _INT64 = TensorProto.INT32, TensorProto.INT64


def matches(graph: Graph, ids: str, slots: int, answering: bool) -> tuple[str, str, str]:
    """Look tokens [B, T] up, and enter them: matches [B, T] int64, the new recall and recent.

    Args:
        graph: with the inputs `recall`, `recent` and, if `answering`, `looked_up`.
        ids: name of the tokens.
        slots: S of each table.
        answering: look up in `looked_up` instead of what the tokens themselves have entered.
    """
    body = Graph("recall_")
    places = _places(body, "recent_before", slots // WAYS)
    old = body.op("Cast", body.op("GatherElements", "table", places[0], axis=2), to=_INT64)
    entered = _entered(body, old, "token", *places[1:])
    new = body.op("Cast", entered, to=_INT32)
    body.op("ScatterElements", "table", places[0], new, axis=2, output="table_after")
    token = body.op("Cast", body.op("Add", "token", body.whole(1)), to=_INT32)
    kept = body.slice("recent_before", 0, LONGEST - 1, axis=0)
    body.op("Concat", body.op("Unsqueeze", token, body.whole(0)), kept, axis=0,
            output="recent_after")  # fmt: skip
    searched = "looked_up" if answering else "table_after"
    at, check, known = _places(body, "recent_after", slots // WAYS)
    held = body.op("Cast", body.op("GatherElements", searched, at, axis=2), to=_INT64)
    found, _ = _way(body, held, check)
    matched = body.op("And", known, _has_check(body, found, check))
    orders = ORDER_UNIT * np.arange(len(ORDERS))[:, None, None, None]
    value = body.op("Mod", found, body.whole(CHECK_UNIT))
    value = body.op("Add", value, body.constant("recall_order", orders))
    value = body.op("Mul", value, _number(body, matched))
    longest = body.op("ReduceMax", value, body.whole(0), keepdims=0)  # of [K, B, 1, 1]
    body.op("Squeeze", longest, body.whole(1, 2), output="matches")
    value_of = helper.make_tensor_value_info
    loop = helper.make_graph(
        body.nodes,
        "recall",
        [
            value_of("table", _INT32, None),
            value_of("recent_before", _INT32, None),
            value_of("token", _INT64, None),
        ],
        [
            value_of("table_after", _INT32, None),
            value_of("recent_after", _INT32, None),
            value_of("matches", _INT64, None),
        ],
        list(body.constants.values()),
    )
    recall, recent, found = graph.several(
        "Scan", ["recall", "recent", ids], 3, body=loop, num_scan_inputs=1,
        scan_input_axes=[1], scan_output_axes=[1],
    )  # fmt: skip
    return found, recall, recent


def _places(graph: Graph, recent: str, sets: int) -> tuple[str, str, str]:
    """Of each order's context: its set, for each way [K, B, 1, WAYS]; its check, and whether there
    are as many tokens, [K, B, 1, 1]."""
    last = graph.op("Cast", recent, to=_INT64)
    value, of_order, known = None, [], []
    for length in range(1, LONGEST + 1):
        token = graph.slice(last, length - 1, length, axis=0)  # [1, B]
        if value is not None:
            token = graph.op("Add", graph.op("Mul", value, graph.whole(HASH_FACTOR)), token)
        value = graph.op("Mod", token, graph.whole(HASH_PRIME))
        if length in ORDERS:
            of_order.append(value)
            known.append(graph.slice(last, length - 1, length, axis=0))
    hashed = graph.op("Unsqueeze", graph.op("Concat", *of_order, axis=0), graph.whole(2, 3))
    at = graph.op("Mod", hashed, graph.whole(sets))
    check = graph.op("Mod", graph.op("Div", hashed, graph.whole(sets)), graph.whole(CHECKS))
    oldest = graph.op("Unsqueeze", graph.op("Concat", *known, axis=0), graph.whole(2, 3))
    at = graph.op("Expand", at, graph.whole(1, 1, 1, WAYS))
    return at, check, graph.op("Greater", oldest, graph.whole(0))


def _way(graph: Graph, held: str, check: str) -> tuple[str, str]:
    """The slot of a set [K, B, 1, WAYS] that has a check, else the last, and which: [.., 1]."""
    numbers = graph.constant("recall_ways", np.arange(WAYS))
    of_it = graph.op("Where", _has_check(graph, held, check), numbers, graph.whole(WAYS - 1))
    way = graph.op("ReduceMin", of_it, graph.whole(-1))
    return graph.op("GatherElements", held, way, axis=3), way


def _has_check(graph: Graph, found: str, check: str) -> str:
    """Whether a slot holds a context with this check."""
    same = graph.op("Equal", graph.op("Div", found, graph.whole(CHECK_UNIT)), check)
    return graph.op("And", same, graph.op("Greater", found, graph.whole(0)))


def _entered(graph: Graph, held: str, token: str, check: str, known: str) -> str:
    """See :func:`newllm.model.recall.reference.entered`; unknown contexts leave the set."""
    following = graph.op("Unsqueeze", token, graph.whole(0, 2, 3))  # [1, B, 1, 1]
    old, way = _way(graph, held, check)
    again = graph.op("Equal", graph.op("Mod", old, graph.whole(TIMES_UNIT)), following)
    again = _number(graph, graph.op("And", again, _has_check(graph, old, check)))
    before = graph.op("Div", graph.op("Mod", old, graph.whole(CHECK_UNIT)), graph.whole(TIMES_UNIT))
    times = graph.op("Add", graph.op("Mul", before, again), graph.whole(1))
    times = graph.op("Min", times, graph.whole(MOST_TIMES))
    new = graph.op("Add", following, graph.op("Mul", times, graph.whole(TIMES_UNIT)))
    new = graph.op("Add", new, graph.op("Mul", check, graph.whole(CHECK_UNIT)))
    behind = graph.op("Concat", new, graph.slice(held, 0, WAYS - 1, axis=3), axis=3)
    moved = graph.op("LessOrEqual", graph.constant("recall_ways", np.arange(WAYS)), way)
    return graph.op("Where", graph.op("And", moved, known), behind, held)


def _number(graph: Graph, truth: str) -> str:
    return graph.op("Cast", truth, to=_INT64)


def added(graph: Graph, layer: RecallLayer, found: str, embedding: str) -> str:
    """See :meth:`RecallLayer.added`: [B, T, D] for matches [B, T]."""
    candidate, order, times = _parts(graph, found)
    rows = graph.op(
        "Sum",
        graph.product(graph.op("Gather", embedding, candidate), "recall.project", layer.project),
        graph.op("Gather", graph.constant("recall.order", layer.order), order),
        graph.op("Gather", graph.constant("recall.times", layer.times), times),
    )
    return graph.op("Mul", rows, graph.op("Unsqueeze", _found(graph, found), graph.whole(2)))


def copied(graph: Graph, layer: RecallLayer, found: str, hidden: str, logits: str) -> str:
    """See `RecallLayer.copying`: logits [B, V] for matches [B, 1] and hidden [B, D]."""
    candidate, order, times = _parts(graph, found)
    gates = graph.product(hidden, "recall.gate", layer.gate)
    place = graph.op("Mul", order, graph.whole(MOST_TIMES + 1))
    bias = graph.constant("recall.bias", layer.bias.flatten())
    score = graph.op(
        "Add",
        graph.op("GatherElements", gates, order, axis=1),
        graph.op("Gather", bias, graph.op("Add", place, times)),
    )
    own = graph.op("GatherElements", logits, candidate, axis=1)
    # ln(exp(own) + exp(score)), without overflow.
    apart = graph.op("Abs", graph.op("Sub", own, score))
    rest = graph.op("Softplus", graph.op("Neg", apart))
    both = graph.op("Add", graph.op("Max", own, score), rest)
    known = graph.op("Greater", found, graph.whole(0))
    return graph.op(
        "ScatterElements", logits, candidate, graph.op("Where", known, both, own), axis=1
    )


def _parts(graph: Graph, found: str) -> tuple[str, str, str]:
    """Candidates, numbers of their orders, times in a row."""
    rest = graph.op("Mod", found, graph.whole(ORDER_UNIT))
    return (
        graph.op("Mod", rest, graph.whole(TIMES_UNIT)),
        graph.op("Div", found, graph.whole(ORDER_UNIT)),
        graph.op("Div", rest, graph.whole(TIMES_UNIT)),
    )


def _found(graph: Graph, found: str) -> str:
    return graph.op("Cast", graph.op("Greater", found, graph.whole(0)), to=TensorProto.FLOAT)
