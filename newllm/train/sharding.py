"""One training divided among its processes: each holds a part of every weight, gradient and moment.

This is FSDP2 (`torch.distributed.fsdp.fully_shard`; Zhao et al. 2023, arXiv:2304.11277): a block's
weights are gathered before it runs, forwards and backwards, and freed behind it; its gradients are
summed into the parts. The embedding, whose matrix is also the head's, and what else is outside of
the blocks stay gathered from the start of a step to its end.

Between steps every parameter is a `DTensor`, a part of its rows in each process. The kernels only
ever see gathered weights, which are plain tensors. What goes beyond torch:

- Muon needs whole matrices. Each has an owner, in turn, which gathers it, orthogonalises it once
  and sends the parts back: two exchanges a step, as in microsoft/dion's Muon. (nanochat's owners
  keep the whole momentum of their matrices; here that is divided like all else.)
- Resume files: the parts are a folder of `torch.distributed.checkpoint`, which any number of
  processes reads. It is written aside, renamed, and sealed by the resume file that names it.
"""

from __future__ import annotations

import enum
import importlib
import os
import pickle
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from newllm.config import Settings
from newllm.errors import UserError
from newllm.files import sha256, sync_folder
from newllm.model import LanguageModel, OwnBlock, build_model
from newllm.model.residual import ResidualLM
from newllm.model.spec import find_spec
from newllm.train.checkpoint import COUNTS, Content
from newllm.train.distributed import Processes
from newllm.train.optimizers import Muon, get_moments, muon_dtype, orthogonalize, own_rate

_torch: Any = torch
"""Its functions on many tensors at once, which are named as private."""

_METADATA = ".metadata"


def refuse_what_is_not_sharded(settings: Settings, processes: Processes) -> None:
    """What `--shard` cannot do.

    Raises:
        UserError: saying what, and what to do.
    """
    if find_spec(settings.architecture).optimizer != "muon":  # blocks alone are sharded
        raise UserError(
            f"--shard: --architecture {settings.architecture} is never larger than a process; "
            "omit it"
        )
    if settings.freeze_old:
        raise UserError("--shard: not with --freeze-old, which masks whole matrices; omit one")
    if settings.batch_size % processes.world:
        raise UserError(
            f"--shard: --batch-size {settings.batch_size} is no multiple of {processes.world} "
            "processes, which all have to compute alike"
        )


def shard(model: LanguageModel, device: torch.device, processes: Processes) -> None:
    """Divide the weights, which are process 0's, among the processes; rows of each matrix.

    Raises:
        UserError: this torch cannot.
    """
    from torch.distributed import fsdp

    kind: Any = getattr(fsdp, "FSDPModule", None)
    if not hasattr(kind, "set_force_sum_reduction_for_comms"):
        raise UserError(
            f"--shard: torch {torch.__version__} is too old for it; 2.13 is known to do"
        )
    assert isinstance(model, ResidualLM)
    # That a block's output is a view matters only if it is changed in place, which it is not.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    processes.broadcast_weights(model.state_dict().values())
    mesh = dist.device_mesh.init_device_mesh(device.type, (processes.world,))
    for block in model.blocks:
        fsdp.fully_shard(block, mesh=mesh)
        fsdp.register_fsdp_forward_method(block, "advance")
    fsdp.fully_shard(model, mesh=mesh)
    for module in (*model.blocks, model):
        untyped: Any = module
        untyped.set_gradient_divide_factor(1.0)  # sums: the loss is divided by the batch's tokens
        untyped.set_force_sum_reduction_for_comms(True)
    model.sharded = True


def free_gathered(model: LanguageModel) -> None:
    """Free the weights that a pass without a backward left gathered."""
    untyped: Any = model
    untyped.reshard()


def _is_divided(tensor: Tensor) -> bool:
    """Whether it is a `DTensor`, whose module takes a second to import."""
    return hasattr(tensor, "full_tensor")


def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: a plain tensor that shares its memory."""
    return tensor.to_local() if _is_divided(tensor) else tensor  # type: ignore[operator]


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor; all processes call it together."""
    return tensor.full_tensor() if _is_divided(tensor) else tensor  # type: ignore[operator]


def divided(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor divided as another one of its shape is; values are those of process 0."""
    if not _is_divided(like):
        return whole.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    untyped: Any = like
    return distribute_tensor(whole.to(like.device), untyped.device_mesh, untyped.placements)


@torch.no_grad()
def load_whole(model: LanguageModel, weights: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole weights into a sharded model.

    Raises:
        RuntimeError: they are not its weights.
    """
    own = model.state_dict()
    divided_weights = {
        name: divided(weight, own[name]) if name in own and own[name].shape == weight.shape
        else weight
        for name, weight in weights.items()
    }  # fmt: skip
    model.load_state_dict(divided_weights)


def load_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """`load_state_dict` of an optimizer's whole state into that of a sharded model."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parts in stored["state"].items():
        parameter = parameters[index]
        optimizer.state[parameter] = {
            name: divided(part, parameter) if part.shape == parameter.shape
            else part.to(parameter.device)  # the number of steps: a fused AdamW reads it there
            for name, part in parts.items()
        }  # fmt: skip


def divided_moments(
    model: LanguageModel, moments: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Whole moments by name, each divided as its parameter is."""
    parameters = dict(model.named_parameters())
    return {
        name: {
            part: divided(value, parameters[name])
            if isinstance(value, Tensor) and value.shape == parameters[name].shape
            else value
            for part, value in parts.items()
        }
        for name, parts in moments.items()
    }


def whole_model(
    model: LanguageModel, settings: Settings, block: OwnBlock | None, processes: Processes
) -> LanguageModel | None:
    """An ordinary model with all weights, on the CPU of process 0; None elsewhere.

    All processes call it together. Matrices are gathered one at a time.
    """
    weights = _to_main(model.state_dict(), processes)
    if not processes.main:
        return None
    with torch.random.fork_rng([]):
        whole = build_model(settings.model_settings(), model.vocab_size, block)
    whole.load_state_dict(weights)
    return whole


def whole_moments(
    model: LanguageModel, optimizers: Sequence[torch.optim.Optimizer], processes: Processes
) -> dict[str, dict[str, Any]]:
    """`get_moments`, whole, in process 0; empty elsewhere. All processes call it together."""
    moments = get_moments(model, optimizers)
    return {name: _to_main(parts, processes) for name, parts in moments.items()}


def _to_main(tensors: Mapping[str, Any], processes: Processes) -> dict[str, Any]:
    found = {}
    for name, tensor in tensors.items():
        whole = gathered(tensor.detach()) if isinstance(tensor, Tensor) else tensor
        if processes.main:
            found[name] = whole.cpu() if isinstance(whole, Tensor) else whole
    return found


# One step.


def sum_and_norm(
    model: LanguageModel, nats: Tensor, processes: Processes
) -> tuple[float, float, list[Tensor]]:
    """Of the whole batch: the nats, the norm of all gradients; and this process's parts of them."""
    gradients = [own_part(p.grad) for p in model.parameters() if p.grad is not None]
    norms = torch.stack(_torch._foreach_norm([g for g in gradients if g.numel()]))
    squares = norms.double().square().sum()
    total, square = processes.sum_on_device(torch.stack([nats.double(), squares])).tolist()
    return total, square**0.5, gradients


class ShardedMuon(Muon):
    """Muon of matrices whose rows are divided among the processes.

    Momenta are divided alike. Of all matrices, the largest first, each process owns every
    `world`-th: it is sent their parts, orthogonalises them, those of one shape together, and sends
    the parts of the result back.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; the gradients are overwritten."""
        assert closure is None
        trained = self._trained()
        if not trained:
            return
        trained.sort(key=lambda entry: (entry[0].shape[0] // entry[1], entry[0].shape[1]))
        trained.reverse()
        parameters = [parameter for parameter, _ in trained]
        keep = self.defaults["momentum"]
        momenta = [own_part(self._momentum(parameter)) for parameter in parameters]
        updates = [own_part(p.grad) for p in parameters if p.grad is not None]
        _torch._foreach_lerp_(momenta, updates, 1 - keep)
        _torch._foreach_lerp_(updates, momenta, keep)
        rate, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        weights = [own_part(parameter) for parameter in parameters]
        _torch._foreach_mul_(weights, 1 - rate * decay)
        owned = _to_owners(updates, parameters)
        dtype = muon_dtype(weights[0].device)
        world, rank = dist.get_world_size(), dist.get_rank()
        moved = _orthogonalized(owned, [pieces for _, pieces in trained[rank::world]], dtype)
        for weight, part, (parameter, pieces) in zip(
            weights, _from_owners(moved, parameters, dtype), trained, strict=True
        ):
            own = own_rate(parameter.shape[0] // pieces, parameter.shape[1])
            weight.add_(part, alpha=-rate * own)


def _orthogonalized(
    matrices: Sequence[Tensor], pieces: Sequence[int], dtype: torch.dtype
) -> list[Tensor]:
    """Each matrix, or each of its pieces, with singular values of about one."""
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for matrix, number in zip(matrices, pieces, strict=True):
        for piece in matrix.chunk(number):
            by_shape.setdefault(tuple(piece.shape), []).append(piece)
    done = {
        shape: iter(orthogonalize(torch.stack(alike), dtype)) for shape, alike in by_shape.items()
    }
    return [
        torch.cat([next(done[tuple(piece.shape)]) for piece in matrix.chunk(number)])
        for matrix, number in zip(matrices, pieces, strict=True)
    ]


def part_of_rows(rows: int, rank: int, world: int) -> slice:
    """The rows of a matrix that a process holds, as FSDP2 divides them (`torch.chunk`)."""
    size = -(-rows // world)
    return slice(min(rows, rank * size), min(rows, (rank + 1) * size))


def _numbers(parameter: Tensor, rank: int, world: int) -> int:
    rows = part_of_rows(parameter.shape[0], rank, world)
    return (rows.stop - rows.start) * parameter.shape[1]


def _to_owners(parts: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The whole of the matrices that this process owns, from all processes' parts of all."""
    world, rank = dist.get_world_size(), dist.get_rank()
    own = parameters[rank::world]
    received = _exchange(
        [part for owner in range(world) for part in parts[owner::world]],
        [sum(part.numel() for part in parts[owner::world]) for owner in range(world)],
        [sum(_numbers(p, source, world) for p in own) for source in range(world)],
        parts[0],
    )
    by_source = [
        received_part.split([_numbers(p, source, world) for p in own])
        for source, received_part in enumerate(received)
    ]
    return [
        torch.cat([of_source[number] for of_source in by_source]).view(parameter.shape)
        for number, parameter in enumerate(own)
    ]


def _from_owners(
    own: Sequence[Tensor], parameters: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """This process's parts of all matrices, from their owners."""
    world, rank = dist.get_world_size(), dist.get_rank()
    rows = [
        [matrix[part_of_rows(len(matrix), reader, world)] for matrix in own]
        for reader in range(world)
    ]
    sent = [sum(part.numel() for part in of_reader) for of_reader in rows]
    wanted = [[_numbers(p, rank, world) for p in parameters[o::world]] for o in range(world)]
    like = own_part(parameters[0]).new_empty(0, dtype=dtype)
    received = _exchange(
        [part for of_reader in rows for part in of_reader], sent, [sum(n) for n in wanted], like
    )
    parts: list[Tensor] = [like] * len(parameters)
    for owner, (of_owner, numbers) in enumerate(zip(received, wanted, strict=True)):
        parts[owner::world] = of_owner.split(numbers)
    return [
        part.view(-1, parameter.shape[1]) for part, parameter in zip(parts, parameters, strict=True)
    ]


def _exchange(
    parts: Sequence[Tensor], sent: Sequence[int], received: Sequence[int], like: Tensor
) -> Sequence[Tensor]:
    """Send each process its share of the numbers in `parts`, and take what the others send.

    As bytes: gloo knows no bfloat16.
    """
    size = like.element_size()
    flat = torch.cat([part.flatten() for part in parts]) if parts else like.new_empty(0)
    result = like.new_empty(sum(received))
    dist.all_to_all_single(
        result.view(torch.uint8), flat.view(torch.uint8),
        [size * number for number in received], [size * number for number in sent],
    )  # fmt: skip
    return result.split(list(received))


# Resume files.


def parts_folder(resume: Path, name: str) -> Path:
    """Where the parts are that a resume file names.

    Raises:
        ValueError: the name is no folder's beside the file.
    """
    if not name.startswith(_folder_prefix(resume)) or Path(name).name != name:
        raise ValueError(f"{name} is no folder of parts")
    return resume.with_name(name)


def _folder_prefix(resume: Path) -> str:
    return f"{resume.stem}.parts-"


def folders_of_parts(resume: Path) -> list[Path]:
    """Folders of parts beside a resume file, those that were never finished too."""
    prefixes = _folder_prefix(resume), f".{_folder_prefix(resume)}"
    if not resume.parent.is_dir():
        return []
    return [
        Path(entry.path)
        for entry in os.scandir(resume.parent)
        if entry.name.startswith(prefixes) and entry.is_dir(follow_symlinks=False)
    ]


def save_parts(
    resume: Path,
    model: LanguageModel,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    processes: Processes,
) -> dict[str, Any]:
    """Write weights and moments, each process its own; all processes call it together.

    Returns:
        what the resume file has to say of it in process 0: `folder`, and `files` with their
        SHA-256. Until that file is written the folder counts for nothing.

    Raises:
        UserError: a process does not see the folder, or the disk is full.
    """
    dcp = _torch_checkpoint()
    name = _new_name(resume, step) if processes.main else ""
    name = processes.broadcast(name)
    scratch = resume.with_name(f".{name}")
    if processes.main:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    processes.barrier()
    seen = scratch.is_dir()
    if processes.all_reduce_min(int(seen)) == 0:
        raise UserError(
            f"--shard: {'another process' if seen else 'this process'} does not see {scratch}; "
            "--out has to be a folder that all machines share"
        )
    tensors = _tensors_by_name(model, optimizers)
    writer = dcp.FileSystemWriter(scratch, sync_files=True)
    with warnings.catch_warnings(), processes.explain_exchanges():
        warnings.simplefilter("ignore")
        try:
            dcp.save(tensors, storage_writer=writer, process_group=processes.long_wait)
        except dcp.CheckpointException as error:  # of any process, in all of them
            (rank, (reason, _)), *_ = error.failures.items()
            raise UserError(
                f"{scratch}: process {rank} cannot write its part ({reason}); what was saved last "
                "is intact"
            ) from error
    own = (f"__{processes.rank}_", *((_METADATA,) if processes.main else ()))
    digests = {path.name: sha256(path) for path in scratch.iterdir() if path.name.startswith(own)}
    of_each = processes.gather(digests)
    if not processes.main:
        return {}
    os.rename(scratch, resume.with_name(name))
    sync_folder(resume.parent)
    files = {file: digest for part in of_each for file, digest in part.items()}
    return {"folder": name, "files": files}


def _new_name(resume: Path, step: int) -> str:
    number, taken = 0, {path.name for path in folders_of_parts(resume)}
    while (name := f"{_folder_prefix(resume)}{step:08d}-{number}") in taken:
        number += 1
    return name


def remove_other_parts(resume: Path, kept: Iterable[str | None]) -> None:
    """Remove the folders that neither the resume file nor the one before it names."""
    names = set(kept)
    for folder in folders_of_parts(resume):
        if folder.name not in names:
            shutil.rmtree(folder, ignore_errors=True)


def check_parts(resume: Path, content: Content) -> None:
    """See that the parts are there that a resume file names, and as they were written.

    Raises:
        UserError: they are not.
    """
    parts = content.get("parts")
    if parts is None:
        return
    try:
        folder = parts_folder(resume, parts["folder"])
        files = dict(parts["files"])
        damaged = [name for name, digest in files.items() if sha256(folder / name) != digest]
    except (KeyError, TypeError, ValueError, OSError):
        raise UserError(
            f"{resume}: the folder of its parts is missing or incomplete; use another copy of both"
        ) from None
    if damaged:
        raise UserError(f"{folder / damaged[0]}: damaged; use another copy of it")


def _torch_checkpoint() -> Any:
    """torch's package, which takes long to import; it does not say what it exports."""
    return importlib.import_module("torch.distributed.checkpoint")


def _tensors_by_name(
    model: LanguageModel, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Any]:
    """All that is in the folder; a table of counts is not, which training makes anew."""
    weights = {
        f"model.{name}": tensor for name, tensor in model.state_dict().items() if name != COUNTS
    }
    moments = {
        f"moments.{name}:{part}": value
        for name, parts in get_moments(model, optimizers).items()
        for part, value in parts.items()
    }
    return {**weights, **moments}


@torch.no_grad()
def load_parts(
    folder: Path, model: LanguageModel, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Read what any number of processes saved, into a model that is sharded or not.

    Raises:
        RuntimeError, ValueError, KeyError: it does not fit the model.
    """
    dcp = _torch_checkpoint()
    reader = _reader(folder)
    described = reader.read_metadata().state_dict_metadata
    parameters = dict(model.named_parameters())
    wanted = {
        f"model.{name}": tensor for name, tensor in model.state_dict().items() if name != COUNTS
    }
    moments: dict[str, dict[str, Tensor]] = {}
    for key, facts in described.items():
        kind, _, rest = key.partition(".")
        if kind != "moments":
            continue
        name, _, part = rest.rpartition(":")
        like = parameters[name]
        alike = facts.size == like.shape
        value = torch.zeros_like(like) if alike else torch.zeros(facts.size, device=like.device)
        moments.setdefault(name, {})[part] = wanted[key] = value.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.load(wanted, storage_reader=reader, no_dist=not dist.is_initialized())
        except dcp.CheckpointException as error:
            raise ValueError(str(error)) from error
    for optimizer in optimizers:
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parts in moments.items():
            if id(parameters[name]) in trained:
                optimizer.state[parameters[name]] = dict(parts)


def _reader(folder: Path) -> Any:
    """torch's reader of such a folder, which takes tensors alone: it could unpickle anything."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    kind = _torch_checkpoint().FileSystemReader

    class Reader(kind):  # type: ignore[misc,valid-type]
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            with (folder / _METADATA).open("rb") as file:
                metadata = _Unpickler(file).load()
            if not all(
                isinstance(entry, TensorStorageMetadata)
                for entry in metadata.state_dict_metadata.values()
            ):
                raise ValueError("more than tensors")
            metadata.storage_meta.load_id = self.load_id
            return metadata

    return Reader(folder)


class _Unpickler(pickle.Unpickler):
    """Reads the description that torch writes, and refuses to find anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """What a description is made of.

        Raises:
            ValueError: it is something else.
        """
        if (module, name) == ("builtins", "getattr"):  # members of enumerations, before 3.11.4
            return _member
        known = name in _DESCRIBED.get(module.removeprefix("torch.distributed.checkpoint."), ())
        if not known and not (module == "torch" and isinstance(getattr(torch, name), torch.dtype)):
            raise ValueError(f"{module}.{name} is no part of a checkpoint")
        return super().find_class(module, name)


def _member(kind: Any, name: str) -> Any:
    """What `getattr` may give in a description.

    Raises:
        ValueError: no member of an enumeration.
    """
    if not (isinstance(kind, enum.EnumMeta) and name in kind.__members__):
        raise ValueError(f"{name} of {kind!r} is no part of a checkpoint")
    return kind.__members__[name]


_DESCRIBED = {
    "metadata": ("Metadata", "MetadataIndex", "TensorProperties", "TensorStorageMetadata",
                 "ChunkStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    "filesystem": ("_StorageInfo",),
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath"),
    "pathlib._local": ("PosixPath", "WindowsPath", "PurePosixPath"),
}  # fmt: skip
