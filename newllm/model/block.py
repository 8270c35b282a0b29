"""One layer of the residual stream, and what it is told of the batch.

Shapes: B sequences of a batch, T time steps, D width of the stream (`embed_dim`), F width of the
feed-forward (`hidden_dim`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from newllm.model.kernels import Noise, add_norm, linear, squared_relu

BoundariesT = TypeVar("BoundariesT")
"""How a model tells its blocks where documents start and sequences end."""


@dataclass(frozen=True)
class Boundaries:
    """Where documents start and sequences end, in a batch of [B, T] tokens."""

    reset: Tensor | None
    """True where a document starts, and nothing of the state before it may pass, [B, T]; or None
    for nowhere."""
    lengths: Tensor | None
    """Only the first so many tokens of each sequence count; the rest is padding, which leaves the
    state as it is; [B], or None for all."""
    ids: Tensor
    """Any tensor [B, T] of the batch, for its shape and device."""

    def starts(self) -> Tensor:
        """`reset`, also where it is nowhere: bool [B, T]."""
        return torch.zeros_like(self.ids, dtype=torch.bool) if self.reset is None else self.reset

    def ends(self) -> Tensor:
        """`lengths`, also where all tokens count: [B]."""
        if self.lengths is not None:
            return self.lengths
        return torch.full_like(self.ids[:, 0], self.ids.shape[1], dtype=torch.long)

    def counts(self) -> Tensor:
        """True where a token counts, False where it is padding: bool [B, T]."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.ends()[:, None]


@dataclass
class Additions:
    """How branches are added to the stream in one pass, in turn."""

    dtype: torch.dtype
    """Type of the normalised sums."""
    p: float
    """Probability with which an element of a branch is dropped."""
    noise: Noise | None
    saw: Callable[[Tensor], None]
    """Is shown the stream before each layer."""
    site: int = 0

    def __call__(
        self, stream: Tensor | None, branch: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sum and its norm, [B, T, D] both; see :func:`newllm.model.kernels.add_norm`."""
        self.site += 1
        return add_norm(stream, branch, weight, self.dtype, self.p, self.noise, self.site - 1)


class Block(nn.Module, Generic[BoundariesT]):
    """One layer: something that mixes tokens, then (with `hidden_dim`) a feed-forward.

    ::

        x = x + mix(norm(x))
        x = x + W_down relu(W_up norm(x))^2

    What is added is dropped out in training, and should start at zero: a new block is the identity.
    A block of one's own (docs/OWN_BLOCK.md) is made as `MyBlock(embed_dim, context_dim,
    hidden_dim)`, calls `super().__init__(embed_dim, hidden_dim)`, and defines `carries` and `mix`,
    whose `boundaries` are a :class:`Boundaries`.
    """

    def __init__(self, embed_dim: int, hidden_dim: int | None) -> None:
        """The parts that all blocks have; `hidden_dim` None: no feed-forward."""
        super().__init__()
        self.mixer_norm = nn.Parameter(torch.ones(embed_dim))
        self.feed_forward = None if hidden_dim is None else FeedForward(embed_dim, hidden_dim)

    def carries(self) -> Mapping[str, tuple[int, ...]]:
        """What this layer carries from token to token, for one sequence: name -> shape."""
        raise NotImplementedError

    def mix(
        self, normed: Tensor, carried: list[Tensor], boundaries: BoundariesT
    ) -> tuple[Tensor, list[Tensor]]:
        """What is added to the stream, [B, T, D], and what is carried on.

        Args:
            normed: the stream's norm, [B, T, D].
            carried: this layer's parts of the state, in the order of `carries`, [B, ...] each;
                zeros before the first token.
            boundaries: where documents start and sequences end.
        """
        raise NotImplementedError

    def norms(self) -> list[Tensor]:
        """Weights of the norms of the stream in this layer, as they are used: [D] each."""
        feed_forward = self.feed_forward
        return [self.mixer_norm, *(() if feed_forward is None else (feed_forward.norm,))]

    def advance(
        self,
        x: Tensor | None,
        branch: Tensor,
        carried: list[Tensor],
        boundaries: BoundariesT,
        added: Additions,
        norms: Sequence[Tensor] | None = None,
        replaces: bool = False,
    ) -> tuple[Tensor | None, Tensor, list[Tensor]]:
        """The whole layer; all that reads its weights in a pass over the model.

        Args:
            x: the stream, [B, T, D], or None for zeros.
            branch: what the layer before adds to it.
            carried: see `mix`.
            boundaries: see `mix`.
            added: how one is added to the other.
            norms: `self.norms()`, or what they were made into.
            replaces: whether what `mix` gives is the stream from now on.

        Returns:
            stream and branch for the next layer, and what is carried on.
        """
        weights = iter(self.norms() if norms is None else norms)
        x, normed = added(x, branch, next(weights))
        added.saw(x)
        branch, carried = self.mix(normed, carried, boundaries)
        if replaces:
            x = None
        if self.feed_forward is not None:
            x, normed = added(x, branch, next(weights))
            branch = self.feed_forward(normed)
        return x, branch, carried

    def mixing_matrices(self) -> Iterator[tuple[Tensor, int]]:
        """Weight matrices of `mix`, which Muon trains, and how many stacked matrices each one is.

        By default every matrix outside the feed-forward, as one.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and not name.startswith("feed_forward."):
                yield parameter, 1

    def matrices(self) -> Iterator[tuple[Tensor, int]]:
        """All weight matrices, and how many stacked matrices each one is."""
        yield from self.mixing_matrices()
        if self.feed_forward is not None:
            yield self.feed_forward.up_proj.weight, 1
            yield self.feed_forward.down_proj.weight, 1


class FeedForward(nn.Module):
    """W_down relu(W_up x)^2; zero at initialization."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(embed_dim))
        self.up_proj = projection(embed_dim, hidden_dim)
        self.down_proj = projection(hidden_dim, embed_dim, zero=True)

    def forward(self, normed: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.down_proj(squared_relu(self.up_proj(normed)))


class Projection(nn.Linear):
    """A matrix, whose product is the kernels' to choose."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return linear(input, self.weight)


def projection(inputs: int, outputs: int, zero: bool = False) -> nn.Linear:
    """A fresh matrix: it keeps unit variance, or (`zero`) adds nothing yet."""
    linear = Projection(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=0.0 if zero else inputs**-0.5)
    return linear
