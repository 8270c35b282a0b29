"""A block of one's own: `--architecture FILE.py:CLASS` (docs/OWN_BLOCK.md).

The class is a :class:`newllm.model.Block`; everything around it (embedding, norms, dropout, tied
head, loss, optimizers) is that of the other architectures. Its file is code, so it is run only
where a person named it: a checkpoint holds its name and SHA-256, and is loaded with that file
alone.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from newllm.config import ModelSettings, is_own_block
from newllm.errors import UserError, did_you_mean
from newllm.model.block import Block, Boundaries
from newllm.model.residual import ResidualLM, State

_TRIED_BATCH, _TRIED_TOKENS = 2, 3


@dataclass(frozen=True)
class OwnBlock:
    """A loaded block."""

    architecture: str
    """`FILE.py:CLASS`, as it was given."""
    kind: type[Block]
    sha256: str
    """Of the file that was run."""

    def facts(self, model: nn.Module) -> dict[str, Any]:
        """What a checkpoint says of it, with the size of the state, for `newllm info`."""
        assert isinstance(model, OwnBlockLM)
        file, _, name = self.architecture.rpartition(":")
        state = model.initial_state(1).values()
        return {
            "file": Path(file).name,
            "class": name,
            "sha256": self.sha256,
            "state_bytes": sum(part.numel() * part.element_size() for part in state),
        }


class OwnBlockLM(ResidualLM[Boundaries]):
    """The residual stream around blocks of one's own."""

    def __init__(self, own: OwnBlock, settings: ModelSettings, vocab_size: int) -> None:
        """Freshly initialised.

        Raises:
            UserError: the block cannot be made, or does not do what a block has to.
        """
        widths = settings.embed_dim, settings.context_dim, settings.hidden_dim
        blocks = [_watched(own, _make, own.kind, widths) for _ in range(settings.num_layers)]
        super().__init__(settings, vocab_size, blocks)
        if blocks[0].mixer_norm.device.type != "meta":  # there values are not known
            _watched(own, _try_out, blocks[0], settings.embed_dim)

    def _boundaries(
        self, ids: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None
    ) -> Boundaries:
        return Boundaries(reset, lengths, ids)


def load_given(architecture: str, sha256: str | None = None) -> OwnBlock | None:
    """Run the file that a person named; None where the architecture is one of the package.

    Args:
        architecture: what was given as `--architecture`.
        sha256: digest that the file must have; it is not run otherwise.

    Raises:
        UserError: no such file or class, another digest, an error in it, or it is no block.
    """
    if not is_own_block(architecture):
        return None
    file, _, name = architecture.rpartition(":")
    try:
        source = Path(file).read_bytes()
    except FileNotFoundError:
        raise _refused(architecture, f"no file {file}") from None
    except OSError as error:
        raise _refused(architecture, f"{file}: {error.strerror}") from None
    digest = hashlib.sha256(source).hexdigest()
    if sha256 is not None and digest != sha256:
        raise _refused(
            architecture,
            f"the model was trained with another version of this file (its SHA-256 is "
            f"{digest[:12]}.., that of the training {sha256[:12]}..); name that one",
        )
    module = types.ModuleType(f"newllm_own_block_{digest[:12]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses and pickle look a class up there
    try:
        exec(compile(source, file, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise _refused(architecture, _in_one_line(error, file)) from None
    kind = vars(module).get(name)
    if kind is None:
        classes = [known for known, value in vars(module).items() if isinstance(value, type)]
        raise _refused(architecture, f"no class {name} in {file}{did_you_mean(name, classes)}")
    if not isinstance(kind, type) or not issubclass(kind, Block) or kind is Block:
        raise _refused(architecture, f"{name} is no subclass of newllm.model.Block")
    return OwnBlock(architecture, kind, digest)


def block_of_checkpoint(
    path: Path | str, content: Mapping[str, Any], architecture: str | None
) -> OwnBlock | None:
    """The block that a checkpoint was trained with, run because a person named it.

    Args:
        path: the checkpoint, for messages.
        content: what is in it.
        architecture: what was given as `--architecture`, or None.

    Returns:
        None for a checkpoint of one of the package's architectures.

    Raises:
        UserError: nothing, another class or another file was given.
    """
    stored = content["settings"].get("architecture", "context")
    if not is_own_block(stored):
        if architecture not in (None, stored):
            raise _refused(
                architecture, f"{path} is a model of architecture {stored}; omit the option"
            )
        return None
    try:
        facts = check_facts(content.get("block"))
    except ValueError:
        raise UserError(f"{path}: damaged or edited; use another copy of it") from None
    if architecture is None:
        raise UserError(
            f"{path}: its block is {stored}, and a checkpoint never runs code by itself: eval, "
            f"generate, chat, serve and train take it with --architecture {stored}"
        )
    if not is_own_block(architecture) or architecture.rpartition(":")[2] != facts["class"]:
        raise _refused(architecture, f"{path} was trained with {stored}; name that file and class")
    return load_given(architecture, facts["sha256"])


def check_facts(facts: object) -> Mapping[str, Any]:
    """What a checkpoint says of its block, if it says it.

    Raises:
        ValueError: it does not.
    """
    kinds = {"file": str, "class": str, "sha256": str, "state_bytes": int}
    if not isinstance(facts, dict) or any(
        not isinstance(facts.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError("no block")
    return facts


def check_block(
    kind: Callable[..., Block],
    embed_dim: int = 24,
    context_dim: int = 16,
    hidden_dim: int = 40,
    tolerance: float = 2e-4,
) -> None:
    """Check that a block reads a text alike in every way that training and chat read it.

    Token by token, the whole, documents packed with a reset between them, and sequences of unequal
    length have to give the same numbers.

    Args:
        kind: the class; `embed_dim`, `context_dim`, `hidden_dim`: what it is made with.
        tolerance: largest difference, absolute.

    Raises:
        AssertionError: saying which two ways differ, and by how much.
    """
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        block = kind(embed_dim, context_dim, hidden_dim)
        for parameter in block.parameters():  # away from zeros and ones, where mistakes hide
            parameter.add_(torch.randn_like(parameter) * 0.2)
        x = torch.randn(2, 10, embed_dim)
    start = [torch.zeros(2, *shape) for shape in block.carries().values()]
    none = torch.zeros(2, 10, dtype=torch.bool)

    def read(part: Tensor, state: list[Tensor], reset: Tensor, lengths: Tensor | None = None):
        return block.mix(part, state, Boundaries(reset, lengths, reset))

    def compare(what: str, these: list[Tensor], those: list[Tensor]) -> None:
        for a, b in zip(these, those, strict=True):
            difference = float((a - b).abs().max())
            assert difference <= tolerance, f"{what}: the numbers differ by {difference:.2g}"

    with torch.no_grad():
        whole, last = read(x, start, none)
        state, parts = start, []
        for t in range(10):
            part, state = read(x[:, t : t + 1], state, none[:, t : t + 1])
            parts.append(part)
        compare("token by token and the whole", [torch.cat(parts, 1), *state], [whole, *last])
        reset = none.clone()
        reset[:, 6] = True
        packed, packed_last = read(x, start, reset)
        second, second_last = read(x[:, 6:], start, none[:, 6:])
        compare(
            "two documents packed into one row and apart",
            [packed[:, 6:], *packed_last], [second, *second_last],
        )  # fmt: skip
        lengths = torch.tensor([10, 4])
        padded, padded_last = read(x, start, none, lengths)
        short, short_last = read(x[1:, :4], [part[1:] for part in start], none[1:, :4])
        compare(
            "a sequence of 4 tokens with 6 of padding and without",
            [padded[1:, :4], *(part[1:] for part in padded_last)], [short, *short_last],
        )  # fmt: skip


def _make(kind: type[Block], widths: tuple[int, int, int]) -> Block:
    block = kind(*widths)  # type: ignore[call-arg,arg-type]
    if not hasattr(block, "mixer_norm"):
        raise TypeError("__init__ has to call super().__init__(embed_dim, hidden_dim)")
    if not isinstance(block.carries(), Mapping):
        raise TypeError("carries() has to return name -> shape")
    for matrix, pieces in block.mixing_matrices():
        if matrix.ndim != 2 or matrix.shape[0] % pieces:
            raise TypeError(
                f"mixing_matrices() names a tensor of shape {list(matrix.shape)} as {pieces} "
                "stacked matrices"
            )
    return block


def _try_out(block: Block, embed_dim: int) -> None:
    """Run a block once, and look at what it returns."""
    x = torch.zeros(_TRIED_BATCH, _TRIED_TOKENS, embed_dim)
    state = [torch.zeros(_TRIED_BATCH, *shape) for shape in block.carries().values()]
    none = torch.zeros(_TRIED_BATCH, _TRIED_TOKENS, dtype=torch.bool)
    with torch.no_grad(), torch.random.fork_rng([]):
        result = block.mix(x, list(state), Boundaries(none, None, none))
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError("mix() has to return what is added to the stream and a list of the state")
    added, carried = result
    if not isinstance(added, Tensor) or added.shape != x.shape:
        raise TypeError(f"mix() has to add {list(x.shape)} to the stream, and gave {_kind(added)}")
    if not isinstance(carried, list | tuple) or len(carried) != len(state):
        raise TypeError(f"mix() has to carry on {len(state)} tensors, one for each of carries()")
    for (name, _), part, before in zip(block.carries().items(), carried, state, strict=True):
        if not isinstance(part, Tensor) or part.shape != before.shape:
            raise TypeError(
                f"mix() has to carry on {name} as {list(before.shape)}, and gave {_kind(part)}"
            )


def _kind(value: object) -> str:
    return f"{list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _watched(own: OwnBlock, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call what runs the block's code; any error becomes one line."""
    try:
        return function(*arguments)
    except Exception as error:
        file = own.architecture.rpartition(":")[0]
        raise _refused(own.architecture, _in_one_line(error, file)) from None


def _refused(architecture: str | None, reason: str) -> UserError:
    return UserError(f"--architecture {architecture}: {reason}")


def _in_one_line(error: BaseException, file: str) -> str:
    """`line 12: NameError: name 'x' is not defined`."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    said = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    kind = type(error).__name__
    return f"{f'line {line}: ' if line else ''}{kind}{said and f': {said}'}"
