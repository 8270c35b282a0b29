"""Several processes that train one model: which lanes each computes, and what they tell each other.

Every process holds the whole model and reads a fixed part of the lanes of each batch. Gradients are
added up over the processes, so that all take the same step; whatever depends on a clock, a signal
or the memory of one machine is decided once. `torchrun` starts the processes (so does `accelerate
launch`) and says through the environment who is who. One process alone speaks to nobody.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from newllm.errors import UserError

if TYPE_CHECKING:
    from newllm.model import State
    from newllm.train.progress import Progress
    from newllm.train.signals import StopRequest

STEP_TIMEOUT = timedelta(minutes=10)
"""After so long without the others in a step or a sum a process gives up: a machine may vanish
without a word."""

_PATIENCE = timedelta(days=7)
"""For what process 0 does alone, which may be much; should it die, that is noticed anyway."""

_T = TypeVar("_T")


class Processes:
    """The processes of a run, seen from one of them.

    Args:
        rank: number of this process; 0, the main one, alone prints and writes files.
        world: how many there are.
        local_rank: number of this process on its machine, which is that of its GPU.
        local_world: how many there are on this machine.
    """

    def __init__(
        self, rank: int = 0, world: int = 1, local_rank: int = 0, local_world: int = 1
    ) -> None:
        self.rank, self.world = rank, world
        self.local_rank, self.local_world = local_rank, local_world
        self._patient: dist.ProcessGroup | None = None
        if world > 1:
            with self._speaking():
                group = dist.new_group(backend="gloo", timeout=_PATIENCE)
            assert isinstance(group, dist.ProcessGroup)
            self._patient = group

    @property
    def main(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The device of this process, of the kind that was chosen.

        Raises:
            UserError: there are more processes than GPUs, or all were told to share one.
        """
        if self.world == 1 or device.type == "cpu":
            return device
        if device.index is not None:
            raise UserError(
                f"--device {device}: each process takes a GPU of its own; give --device cuda"
            )
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{self.local_world} processes on a machine with {torch.cuda.device_count()} "
                "GPU(s); start one for each"
            )
        return torch.device("cuda", self.local_rank)

    def lanes(self, count: int) -> slice:
        """The part of `count` lanes that this process computes.

        Raises:
            UserError: there are fewer lanes than processes.
        """
        if count < self.world:
            raise UserError(
                f"--batch-size {count}: each of {self.world} processes needs a row of every "
                "batch; raise it, or start fewer processes"
            )
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does the block, then the others do.

        When the main one fails, the others leave without a word: the error is told once.
        """
        if not self.main and not self.agree(True):
            raise SystemExit(2)
        try:
            yield
        except BaseException:
            if self.main:
                self.agree(False)
            raise
        if self.main:
            self.agree(True)

    def agree(self, value: _T) -> _T:
        """The main process's value, in all of them."""
        if self.world == 1:
            return value
        values = [value if self.main else None]
        with self._speaking():
            dist.broadcast_object_list(values, src=0, group=self._patient)
        return values[0]  # type: ignore[return-value]

    def meet(self) -> None:
        """Wait until all are here."""
        if self.world > 1:
            with self._speaking():
                dist.barrier(group=self._patient)

    def add(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the processes, in float64: counts below 2^53 stay exact."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        return int(self._reduced([number], dist.ReduceOp.MIN)[0])

    def settle(self, progress: Progress, stop: StopRequest, save_due: bool) -> tuple[bool, bool]:
        """After a step: whether all stop now, and whether all save; the clock is the main one's."""
        if self.world == 1:
            return stop.signal is not None, save_due
        clocks = (progress.seconds, progress.epoch_seconds, save_due) if self.main else (0, 0, 0)
        numbers = self._reduced([stop.signal or 0, *clocks], dist.ReduceOp.MAX)
        signal, progress.seconds, progress.epoch_seconds, save = numbers
        if signal:
            stop.signal = int(signal)
        return signal > 0, save > 0

    def share_weights(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors what they are in the main process."""
        if self.world > 1:
            with self._speaking():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def add_gradients(self, parameters: Iterable[Tensor], nats: Tensor) -> None:
        """Add up the gradients, and the loss, over the processes, in place: one exchange a step."""
        if self.world == 1:
            return
        parts = [p.grad for p in parameters if p.grad is not None] + [nats]
        flat = torch.cat([part.flatten() for part in parts])
        with self._speaking():
            dist.all_reduce(flat)
        for part, total in zip(parts, flat.split([p.numel() for p in parts]), strict=True):
            part.copy_(total.view_as(part))

    def all_lanes(self, state: State) -> State:
        """The carried states of all lanes, on the CPU; complete in the main process alone.

        Args:
            state: of this process's lanes, every tensor [L, B / processes, ...].
        """
        if self.world == 1:
            return state
        parts = self.gather({name: tensor.cpu() for name, tensor in state.items()})
        return {name: torch.cat([part[name] for part in parts], dim=1) for name in state}

    def gather(self, value: _T) -> list[_T]:
        """Every process's value, by rank, in the main process; elsewhere its own alone."""
        if self.world == 1:
            return [value]
        values = [value] * self.world if self.main else None
        with self._speaking():
            dist.gather_object(value, values, dst=0, group=self._patient)
        return values or [value]

    def _reduced(self, numbers: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        with self._speaking():
            dist.all_reduce(tensor, operation)
        return tensor.tolist()

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Tell a lost process as what it is."""
        try:
            yield
        except RuntimeError as error:
            raise UserError(
                f"process {self.rank} of {self.world} lost another one ({_reason(error)}); "
                "what was saved last is intact: start all of them again with --resume"
            ) from error


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes that a launcher started together with this one, or this one alone.

    Raises:
        UserError: the others cannot be found, or are lost later.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={world} without {', '.join(missing)}: start with torchrun or accelerate "
            "launch, or unset it to train in one process"
        )
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=STEP_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot reach the other processes at {place}: {_reason(error)}") from error
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        yield Processes(dist.get_rank(), world, local_rank, local_world)
    finally:
        dist.destroy_process_group()


def refuse_several(verb: str) -> None:
    """Of the verbs that train, only `train` knows about other processes.

    Raises:
        UserError: a launcher started several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"newllm {verb}: runs in one process; several are for newllm train, see "
            "docs/DISTRIBUTED.md"
        )


def _reason(error: Exception) -> str:
    """What torch says, without its place in torch's source and its advice."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+\] ", "", line).partition(". ")[0]
