"""CUDA graphs on a CPU: what a step asked torch for, done again on the same memory without Python.

As a graph does it, a replay knows nothing but the operations that were recorded, the very tensors
that they had and the numbers that stood beside them. And as with a GPU's capture nothing has been
computed when a step has been recorded: what it changed is put back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from newllm import cuda_graph
from newllm.model import kernels


class Recorded(TorchDispatchMode):
    """Records operations while a step is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, dict[int, Tensor]]] = []
        """Function, arguments, and what it made, by its place in what it gave."""
        self._answers: dict[int, Any] = {}
        """What the host was told, by the number of the operation."""
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        for x in _written(func, args, kwargs):
            self._keep(x)
        out = func(*args, **kwargs)
        theirs = {_memory(x) for x in _tensors((args, kwargs))}
        made = {n: x for n, x in enumerate(_tensors(out)) if _memory(x) not in theirs}
        self._made |= {_memory(x) for x in made.values()}
        if isinstance(out, (bool, int, float)):
            self._answers[len(self._operations)] = out
        self._operations.append((func, args, kwargs, made))
        return out

    def _keep(self, x: Tensor) -> None:
        """Remember memory that was there before, as it was."""
        if _memory(x) not in self._made | self._before.keys():
            whole = torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())
            self._before[_memory(x)] = whole, whole.clone()

    def restore(self) -> None:
        """Nothing has been computed yet."""
        for whole, before in self._before.values():
            whole.copy_(before)

    def replay(self) -> None:
        """Do all of it again, in the memory that it had.

        The host is not asked again: what it was told has to be what it would be told now.
        """
        with torch._C._AutoDispatchBelowAutograd():
            for number, (func, args, kwargs, made) in enumerate(self._operations):
                out = func(*args, **kwargs)
                if number in self._answers:
                    assert out == self._answers[number], f"{func} decides what a step is"
                again = list(_tensors(out))
                for place, old in made.items():
                    old.copy_(again[place])

    def launched(self, launch: Callable[..., None], *given: Any, **named: Any) -> None:
        """A Triton kernel is launched, in the interpreter: it may write what it is given."""
        for x in _tensors((given, named)):
            self._keep(x)
        with _disable_current_modes():
            launch(*given, **named)
        self._operations.append((launch, given, named, {}))


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(tree) if isinstance(x, Tensor))


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The arguments that an operation writes."""
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(value)


class Replays:
    """In place of :class:`newllm.cuda_graph.Surroundings`, where there is no GPU."""

    def __init__(self, device: torch.device) -> None:
        self.captured, self.replayed = 0, 0

    def warm_up(self, step: Callable[[], Tensor]) -> Tensor:
        return step()

    def capture(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        recorded = Recorded()
        with recorded, _launches(recorded):
            said = step()
        recorded.restore()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            recorded.replay()

        return said, replay


@contextlib.contextmanager
def _launches(recorded: Recorded) -> Iterator[None]:
    """A block whose Triton kernels are recorded too."""
    if not kernels.triton_is_installed():
        yield
        return
    from newllm.model.context import gpu as of_context
    from newllm.model.kernels import gpu as of_stream

    with contextlib.ExitStack() as stack:
        for module, name in ((of_stream, "launch"), (of_context, "_launch")):
            told = partial(recorded.launched, getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, told))
        yield


def replaying() -> contextlib.AbstractContextManager[Any]:
    """A block in which graphs are captured and replayed without a GPU."""
    return mock.patch.object(cuda_graph, "Surroundings", Replays)
