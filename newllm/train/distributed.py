"""Several processes that train one model: the sequences each computes, and what they exchange.

Every process holds the whole model (or a part of it: `sharding.py`) and reads a fixed part of the
sequences of each batch. Gradients are summed over the processes, while the backward pass still
makes more of them, so that all take the same step; whatever depends on a clock, a signal
or the memory of one machine is decided once. A launcher (`torchrun`, `accelerate launch`) starts
the processes and gives each its rank in the environment. In a run of one process every method
returns at once, without any communication.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from newllm.errors import UserError

if TYPE_CHECKING:
    from newllm.model import State

STEP_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others in a step or a sum: a machine that loses power or network
closes no connection."""

_MAIN_ALONE_TIMEOUT = timedelta(days=7)
"""How long the others wait for what process 0 does alone, such as encoding the data. Should it die,
its closed connection ends their wait at once."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class StepFlags:
    """What all processes have to know alike after a step."""

    signal: int
    """Number of the signal that asks for a stop; 0: none."""
    save_due: bool
    seconds: float
    """Time in training steps, of the run and of the epoch: `--minutes` ends a run by it."""
    epoch_seconds: float


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
        self.long_wait: dist.ProcessGroup | None = None
        """All processes, for exchanges that wait for what takes one of them long."""
        if world > 1:
            with self._explain_losses():
                group = dist.new_group(backend="gloo", timeout=_MAIN_ALONE_TIMEOUT)
            assert isinstance(group, dist.ProcessGroup)
            self.long_wait = group

    @property
    def main(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def take_device(self, device: torch.device) -> torch.device:
        """The device of this process, of the kind that was chosen, made torch's current one.

        This sets what torch keeps for the whole process: the current GPU, or the number of CPU
        threads, which several processes share where OMP_NUM_THREADS does not say it.

        Raises:
            UserError: there are more processes than GPUs, or `device` names one for all.
        """
        if device.type == "cpu":
            if self.world > 1 and not os.environ.get("OMP_NUM_THREADS"):
                cores = psutil.cpu_count(logical=False) or torch.get_num_threads()
                torch.set_num_threads(max(1, cores // self.local_world))
            return device
        device = self._own_gpu(device)
        torch.cuda.set_device(device)
        return device

    def _own_gpu(self, device: torch.device) -> torch.device:
        if self.world == 1:
            return torch.device("cuda", device.index or 0)
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

    def sequences(self, count: int) -> slice:
        """The part of a batch of `count` sequences that this process computes.

        Raises:
            UserError: there are fewer sequences than processes.
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

        When the main one fails, the others exit without a message: the error is printed once.
        """
        if not self.main and not self.broadcast(True):
            raise SystemExit(2)
        try:
            yield
        except BaseException:
            if self.main:
                self.broadcast(False)
            raise
        if self.main:
            self.broadcast(True)

    @contextlib.contextmanager
    def main_reports(self) -> Iterator[None]:
        """All do the block together; a mistake that all find is reported by the main one."""
        try:
            yield
        except UserError:
            if self.main:
                raise
            raise SystemExit(2) from None

    def broadcast(self, value: _T) -> _T:
        """The main process's value, in all processes."""
        if self.world == 1:
            return value
        values = [value if self.main else None]
        with self._explain_losses():
            dist.broadcast_object_list(values, src=0, group=self.long_wait)
        return values[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.world > 1:
            with self._explain_losses():
                dist.barrier(group=self.long_wait)

    def all_reduce_sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the processes, in float64: counts below 2^53 stay exact."""
        return self._all_reduce(numbers, dist.ReduceOp.SUM)

    def all_reduce_min(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        return int(self._all_reduce([number], dist.ReduceOp.MIN)[0])

    def sync_flags(self, own: StepFlags) -> StepFlags:
        """The same flags in all processes: the signal of any, the rest as in the main one."""
        if self.world == 1:
            return own
        clock = (own.save_due, own.seconds, own.epoch_seconds) if self.main else (0, 0, 0)
        signal, save_due, *seconds = self._all_reduce([own.signal, *clock], dist.ReduceOp.MAX)
        return StepFlags(int(signal), save_due > 0, *seconds)

    def broadcast_weights(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the main process."""
        if self.world > 1:
            with self._explain_losses():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def sum_on_device(self, numbers: Tensor) -> Tensor:
        """Sums over the processes of a tensor, where it is."""
        if self.world > 1:
            with self._explain_losses():
                dist.all_reduce(numbers)
        return numbers

    def gather_state(self, state: State) -> State:
        """The carried states of the whole batch, on the CPU; complete in the main process alone.

        `state` is of this process's sequences: every tensor [L, B / processes, ...].
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
        with self._explain_losses():
            dist.gather_object(value, values, dst=0, group=self.long_wait)
        return values or [value]

    def _all_reduce(
        self, numbers: Sequence[float], operation: dist.ReduceOp.RedOpType
    ) -> list[float]:
        if self.world == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        with self._explain_losses():
            dist.all_reduce(tensor, operation)
        return tensor.tolist()

    @contextlib.contextmanager
    def explain_exchanges(self) -> Iterator[None]:
        """The same around what computes, too: other errors stay what they are."""
        try:
            yield
        except RuntimeError as error:
            if not re.search(r"gloo|nccl|connection|peer|socket|timed out", str(error), re.I):
                raise
            with self._explain_losses():
                raise

    @contextlib.contextmanager
    def _explain_losses(self) -> Iterator[None]:
        """Turn torch's error about a broken connection into one that says what happened."""
        try:
            yield
        except RuntimeError as error:
            raise UserError(
                f"process {self.rank} of {self.world} lost another one ({_reason(error)}); "
                "what was saved last is intact: start all of them again with --resume"
            ) from error


class GradientSums:
    """Gradients summed over the processes, a bucket at a time, while the backward pass goes on.

    As torch's DDP does it: a bucket sets out when all its gradients are there, in the order in
    which backward passes make them. DDP itself is not used: it divides by the number of processes,
    wants every parameter to have a gradient in every step, and calls the model.
    """

    def __init__(self, parameters: Iterable[Tensor], processes: Processes) -> None:
        self._processes = processes
        self._buckets: list[list[Tensor]] = []
        self._bucket_of: dict[Tensor, int] = {}
        size = _BUCKET_BYTES
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in reversed(trained):
            if size >= _BUCKET_BYTES:
                self._buckets.append([])
                size = 0
            self._buckets[-1].append(parameter)
            self._bucket_of[parameter] = len(self._buckets) - 1
            size += parameter.numel() * parameter.element_size()
            parameter.register_post_accumulate_grad_hook(self._made)
        self.reset()

    def reset(self) -> None:
        """A step begins, or begins again."""
        self._last = False
        self._missing = [len(bucket) for bucket in self._buckets]
        self._under_way: list[tuple[list[Tensor], Tensor, dist.Work]] = []

    @property
    def begun(self) -> bool:
        """Whether something has been sent in this step."""
        return bool(self._under_way)

    def expect_last(self) -> None:
        """The next backward pass is the step's last one."""
        self._last = True

    def _made(self, parameter: Tensor) -> None:
        if not self._last:
            return
        self._missing[self._bucket_of[parameter]] -= 1
        while (number := len(self._under_way)) < len(self._buckets) and not self._missing[number]:
            self._send(number, [])

    def _send(self, number: int, more: list[Tensor]) -> None:
        """Send a bucket; all processes send them in the same order."""
        parts = [p.grad for p in self._buckets[number] if p.grad is not None] + more
        flat = torch.cat([part.flatten() for part in parts]) if parts else torch.zeros(1)
        with self._processes._explain_losses():
            work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._under_way.append((parts, flat, work))

    def finish(self, nats: Tensor) -> None:
        """Send what is left, wait for all sums and put them in place; of the loss, too."""
        for number in range(len(self._under_way), len(self._buckets)):
            self._send(number, [])
        self._buckets.append([])
        self._send(len(self._buckets) - 1, [nats])
        self._buckets.pop()
        for parts, flat, work in self._under_way:
            with self._processes._explain_losses():
                work.wait()
            sizes = [part.numel() for part in parts]
            for part, total in zip(parts, flat.split(sizes) if sizes else (), strict=True):
                part.copy_(total.view_as(part))
        self.reset()


_BUCKET_BYTES = 8 * 1024 * 1024
"""Bytes of gradients that travel together, at least."""


@contextlib.contextmanager
def process_group() -> Iterator[Processes]:
    """The processes that a launcher started together with this one, or this one alone.

    Raises:
        UserError: the others cannot be found, or are lost later.
    """
    world = _int_variable("WORLD_SIZE", 1)
    if world == 1:
        yield Processes()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={world} without {', '.join(missing)}: start with torchrun or accelerate "
            "launch, or unset it to train in one process"
        )
    main = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=STEP_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot reach the other processes at {main}: {_reason(error)}") from error
    local_rank = _int_variable("LOCAL_RANK", 0)
    local_world = _int_variable("LOCAL_WORLD_SIZE", 1)
    try:
        yield Processes(dist.get_rank(), world, local_rank, local_world)
    finally:
        dist.destroy_process_group()


def _int_variable(variable: str, default: int) -> int:
    """A whole number in an environment variable, as launchers set it."""
    told = os.environ.get(variable, str(default))
    if not told.isdecimal():
        raise UserError(f"{variable}={told}: expected a number, as launchers set it; unset it")
    return int(told)


def refuse_several(verb: str) -> None:
    """For the verbs that know nothing of other processes.

    Raises:
        UserError: a launcher started several.
    """
    if _int_variable("WORLD_SIZE", 1) > 1:
        raise UserError(
            f"newllm {verb}: runs in one process; several are for newllm train, see "
            "docs/DISTRIBUTED.md"
        )


def _reason(error: Exception) -> str:
    """The first sentence of torch's message, without the source location in front of it."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+\] ", "", line).partition(". ")[0]
