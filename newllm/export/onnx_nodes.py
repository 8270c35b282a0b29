"""An ONNX graph under construction, in few words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from newllm.model.kernels import EPSILON

END = np.iinfo(np.int64).max
"""As the end of a slice: its last element."""


class Graph:
    """Nodes and constants under construction; every method returns the name of its output."""

    def __init__(self, prefix: str = "") -> None:
        """An empty graph; `prefix` keeps its names apart from those of the graph around it."""
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """One node; its output has a name of its own or this one."""
        if output is not None:
            self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
            return output
        return self.several(kind, inputs, 1, **attributes)[0]

    def several(
        self, kind: str, inputs: Sequence[str], outputs: int, **attributes: Any
    ) -> list[str]:
        names = [f"{self.prefix}{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def constant(self, name: str, value: Tensor | np.ndarray) -> str:
        if name not in self.constants:
            array = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
            self.constants[name] = numpy_helper.from_array(np.array(array, order="C"), name)
        return name

    def whole(self, *values: int) -> str:
        """A constant vector of whole numbers."""
        return self.constant(
            self.prefix + "int_" + "_".join(map(str, values)), np.array(values, np.int64)
        )

    def product(self, x: str, name: str, weight: Tensor) -> str:
        """x W^T for a weight [outputs, inputs]."""
        return self.op("MatMul", x, self.constant(name, weight.t()))

    def norm(self, x: str, name: str, weight: Tensor | np.ndarray) -> str:
        return self.op(
            "LayerNormalization", x, self.constant(name, weight), axis=-1, epsilon=EPSILON
        )

    def slice(self, x: str, start: int, end: int, step: int = 1, axis: int = 1) -> str:
        places = (self.whole(value) for value in (start, end, axis, step))
        return self.op("Slice", x, *places)
