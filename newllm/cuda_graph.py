"""A step on a GPU as one CUDA graph: asked for once, replayed with one launch a step.

A graph is the launches of one step with the very addresses and numbers they had. So a step is a
function of tensors that stay where they are: weights, moments and carried states are changed in
place, and all that the host makes for a step comes in one buffer, whose copy is the only other
launch. In training (`train/trainer.py`) these are look-ups, targets, rates and keys of the noise;
where texts are written (`inference/graphed.py`), tokens and what the memories found. What cannot be
a tensor (shapes, dropout's threshold, the norm at which gradients are clipped) is the step's kind:
each has a graph.

The first steps of a kind are taken launch by launch: they compile kernels and make the optimizers'
moments, and what they launch is what the graph launches. A GPU that cannot capture one goes on so.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from newllm.device import Layout

WARM_UP = 3
"""Steps of a kind before it is captured."""

MOST_GRAPHS = 4
"""Graphs of a run, which has two kinds of steps; and two more where rows do not fit at once."""

Sent = Mapping[Any, Tensor]
"""What a step gets of the host, where it is computed, by name."""


class GraphedStep:
    """Takes steps, by a graph where there is one."""

    def __init__(self, device: torch.device, wanted: bool, note: Callable[[str], None]) -> None:
        """Before the first step.

        Args:
            device: where steps are computed.
            wanted: whether they are captured; else each is taken launch by launch.
            note: is told, once, why that is no longer tried.
        """
        self._device, self._wanted, self._note = device, wanted, note
        self._inputs: dict[Layout, tuple[Tensor, Sent]] = {}
        self._around = Surroundings(device)
        self.forget()

    def forget(self) -> None:
        """Tensors are elsewhere from now on: a graph would read and write the old ones."""
        self._taken: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, tuple[Tensor, Callable[[], None]]] = {}

    def take(
        self, tensors: Mapping[Any, Tensor], kind: Hashable, step: Callable[[Sent], Tensor]
    ) -> Tensor:
        """Take one step.

        Args:
            tensors: what the step is sent, on the CPU.
            kind: all else that decides what it launches.
            step: asks the device for the step, given what it is sent.

        Returns:
            what `step` gave; it is written over by the next step.
        """
        layout = Layout.of(tensors)
        if layout not in self._inputs:
            buffer = torch.empty(layout.size, dtype=torch.uint8, device=self._device)
            self._inputs[layout] = buffer, layout.views(buffer)
        buffer, sent = self._inputs[layout]
        on_gpu, which = self._device.type == "cuda", (layout, kind)
        buffer.copy_(layout.packed(tensors, pinned=on_gpu), non_blocking=True)
        if which not in self._graphs and self._wanted and self._taken[which] >= WARM_UP:
            self._capture(which, partial(step, sent))
        if which in self._graphs:
            outcome, replay = self._graphs[which]
            replay()
            return outcome
        self._taken[which] += 1
        return self._around.warm_up(partial(step, sent)) if self._wanted else step(sent)

    def _capture(self, which: Hashable, step: Callable[[], Tensor]) -> None:
        """Make the graph of a kind of steps; where that fails nothing has been computed."""
        if len(self._graphs) == MOST_GRAPHS:
            return self._give_up(f"this run has more than {MOST_GRAPHS} kinds of steps")
        try:
            self._graphs[which] = self._around.capture(step)
        except Exception as error:  # whatever a driver, a kernel or an allocator refuses
            self._give_up((str(error).splitlines() or [type(error).__name__])[0])
        return None

    def _give_up(self, why: str) -> None:
        self._wanted = False
        self._note(f"\n  Steps are not captured as a CUDA graph, and launched one by one: {why}")


_one_capture = threading.Lock()
"""torch captures one graph of a process at a time, and waits for the whole device before."""


class Surroundings:
    """What captures share: the stream on which steps warm up, and the memory of the graphs.

    One graph at a time is replayed, and what it gives is read before the next: they may use the
    same memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side: torch.cuda.Stream | None = None
        self._pool: Any = None

    def _stream(self) -> torch.cuda.Stream:
        if self._side is None:
            self._side = torch.cuda.Stream(self._device)
        return self._side

    def warm_up(self, step: Callable[[], Tensor]) -> Tensor:
        """Take a step on another stream, as torch asks for before a capture."""
        if self._device.type != "cuda":
            return step()
        main, side = torch.cuda.current_stream(self._device), self._stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            outcome = step()
        main.wait_stream(side)
        return outcome

    def capture(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Record what a step asks of the GPU, without computing it.

        Returns:
            what the step gave, a tensor that each replay writes; and what replays it.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        recorded = torch.cuda.CUDAGraph()
        main = torch.cuda.current_stream(self._device)
        # The stream's block: where a capture ends with an error, torch stays on the inner stream.
        with (
            _one_capture,
            torch.cuda.stream(main),
            torch.cuda.graph(
                recorded,
                pool=self._pool,
                stream=self._stream(),
                capture_error_mode="thread_local",  # a server has a thread for each model
            ),
        ):
            outcome = step()
        return outcome, recorded.replay
