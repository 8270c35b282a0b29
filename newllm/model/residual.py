"""The residual stream: all that `ContextLM` and the baselines share; how they mix tokens is not.

Shapes: B sequences of a batch, T time steps, D width of the stream (`embed_dim`), C size of a
context vector (`context_dim`), F width of the feed-forward (`hidden_dim`), L layers, V vocabulary.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.config import ModelSettings
from newllm.data.loader import IGNORED
from newllm.model.block import Additions, Block, BoundariesT
from newllm.model.counts import contexts
from newllm.model.counts.layer import CountsLayer
from newllm.model.counts.table import MOST_CONTEXT
from newllm.model.kernels import (
    Facts,
    Noise,
    active_kernel,
    embedding,
    norm,
    norms_together,
    sent,
)  # fmt: skip
from newllm.model.kernels.reference import let_copy_
from newllm.model.loss import compute_dtype, nats_of
from newllm.model.recall import recall
from newllm.model.recall.layer import RecallLayer, facts_for_copying, spread
from newllm.model.recall.reference import LONGEST, OPEN, ORDERS, WAYS
from newllm.model.sampled_softmax import SampledVocabulary
from newllm.model.trunk import TokenScores, TrunkOutput

State = dict[str, Tensor]
"""Everything a model carries from token to token: plain tensors, the sequences in dimension 1."""

Hidden = Tensor | TrunkOutput
"""What a model says of each token, for its `logits` and `loss`."""

EMBEDDING_STD = 0.02
"""Small at initialization: the head is tied, and a large embedding would first predict its own
token."""


def real_tokens_first(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Where the real tokens of padded sequences stand, in order, [B, longest]; how many, [B]."""
    lengths = valid.sum(dim=1)
    return torch.argsort(~valid, dim=1, stable=True)[:, : int(lengths.max())], lengths


def put_back(x: Tensor, order: Tensor, valid: Tensor) -> Tensor:
    """What was computed of real tokens in that order [B, longest, ...], in their places; zeros at
    padding: [B, T, ...]."""
    further = (1,) * (x.ndim - 2)
    position = order.to(x.device).view(*order.shape, *further).expand_as(x)
    zeros = x.new_zeros(*valid.shape, *x.shape[2:])
    real = valid.to(x.device).view(*valid.shape, *further)
    return zeros.scatter(1, position, x) * real


class ResidualLM(nn.Module, Generic[BoundariesT]):
    """Language model with a stack of blocks and a tied head."""

    FIRST_REPLACES: ClassVar[bool] = False
    """Whether the first block's output replaces the embedding in the stream, instead of adding."""

    TOKENS_ON_CPU: ClassVar[bool] = True
    """Whether tokens, and these parts of the state, may be on the CPU while the weights are on a
    GPU."""
    STEADY: ClassVar[bool] = False
    """Whether :meth:`read` and :meth:`nats` on a GPU launch the same for all batches of a shape."""
    OF_TOKENS: ClassVar[frozenset[str]] = frozenset({"recall", "recent", "looked_up", "previous"})

    def __init__(
        self,
        settings: ModelSettings,
        vocab_size: int,
        blocks: Sequence[Block[BoundariesT]],
    ) -> None:
        """Around finished blocks.

        Args:
            settings: shape of the model.
            vocab_size: V.
            blocks: L of them, which all carry the same.
        """
        super().__init__()
        self.settings, self.vocab_size = settings, vocab_size
        self.dropout = settings.dropout
        """Probability with which a branch's elements are dropped in training mode."""
        self.embedding = nn.Embedding(vocab_size, settings.embed_dim)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.embedding_norm = nn.Parameter(torch.ones(settings.embed_dim))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.Parameter(torch.ones(settings.embed_dim))
        self.recall = RecallLayer(settings.embed_dim) if settings.recall_slots else None
        self.counts = CountsLayer(settings.embed_dim, vocab_size) if settings.counts else None
        self._carried = blocks[0].carries()
        self.closing: tuple[int, int] | None = None
        """The tokens between which answers stand, where recall reads them as they are written."""
        self.sharded = False
        """Whether each process of a training holds a part of every weight (`train.sharding`)."""

    def set_dropout(self, p: float) -> None:
        """Drop elements of every branch with this probability from now on, in training mode."""
        self.dropout = p

    def initial_state(self, batch_size: int) -> State:
        """State before the first token: fp32 zeros, a tensor [L, B, ...] of each name."""
        layers, device = self.settings.num_layers, self.embedding.weight.device
        zeros = functools.partial(torch.zeros, device=device)  # plain, of whatever kind weights are
        state = {
            name: zeros(layers, batch_size, *shape, dtype=torch.float32)
            for name, shape in self._carried.items()
        }
        if self.recall is not None:
            sets = self.settings.recall_slots // WAYS
            state["recall"] = zeros(len(ORDERS), batch_size, sets, WAYS, dtype=torch.int32)
            if self.closing is not None:
                state["looked_up"] = torch.full_like(state["recall"], OPEN)
        if self.recall is not None or self.counts is not None:
            state["recent"] = zeros(LONGEST, batch_size, dtype=torch.int32)
        return state

    @property
    def noise_sites(self) -> int:
        """How many operations of a pass draw noise."""
        return 2 * len(self.blocks) + 1

    def matrices(self) -> Iterator[tuple[Tensor, int]]:
        """Weight matrices that Muon trains, and how many stacked matrices each one is."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield from block.matrices()
        if self.recall is not None:
            yield self.recall.project, 1

    def late_decaying(self) -> Iterator[nn.Parameter]:
        """Parameters that overfit first: their weights decay from the third epoch on."""
        yield from ()

    def forward(
        self,
        ids: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        valid: Tensor | None = None,
        noise: Noise | None = None,
        tables: Tensor | None = None,
    ) -> tuple[Hidden, State]:
        """Read tokens.

        Token by token, the whole, any split, documents packed with resets and left-padded sequences
        all give the same values and gradients.

        Args:
            ids: token ids, [B, T]. They, and what of the state is made of tokens alone (integers),
                may be on the CPU while the weights are on a GPU: then nothing is waited for.
            state: what an earlier call returned, or None for the start of a text.
            reset: True where a new document starts (nothing is carried over), [B, T].
            valid: False where a token is padding and leaves the state as it is, [B, T].
            noise: of dropout, in training mode; drawn from torch's generator if not given.
            tables: number of the table of counts for each token, uint8 [B, T]: that of all rows is
                0, and in training others have not counted the row. None for 0 everywhere.

        Returns:
            hidden [B, T, D] (zeros at padding) for :meth:`logits`, of a model with recall or counts
            a :class:`TrunkOutput` that is indexed alike; and the state after the last token.
        """
        state = state or self.initial_state(ids.shape[0])
        if ids.numel() == 0 or (valid is not None and not bool(valid.any())):
            hidden = self.embedding.weight.new_zeros(*ids.shape, self.settings.embed_dim)
            nothing = torch.zeros_like(ids, dtype=torch.int32)
            unknown = torch.full((*ids.shape, MOST_CONTEXT), -1, dtype=torch.int32)
            return self._output(hidden, nothing, unknown), state
        if valid is None or bool(valid.all()):
            *read, last = self._read(ids, state, reset, None, noise, tables)
            return self._output(*read), last
        order, lengths = real_tokens_first(valid)  # what follows them is ignored
        ids_in_order, reset, tables = (
            None if part is None else part.gather(1, order.to(part.device))
            for part in (ids, reset, tables)
        )
        assert ids_in_order is not None
        *read, last = self._read(ids_in_order, state, reset, lengths, noise, tables)

        def back(x: Tensor | None) -> Tensor | None:
            return None if x is None else put_back(x, order, valid)

        hidden, matches, contexts = read
        contexts = None if contexts is None else contexts + 1  # 0, as padding will be, is none
        contexts = back(contexts)
        contexts = None if contexts is None else contexts - 1
        return self._output(back(hidden), back(matches), contexts), last

    def _read(
        self,
        ids: Tensor,
        state: State,
        reset: Tensor | None,
        lengths: Tensor | None,
        noise: Noise | None,
        tables: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, State]:
        """Read tokens of which each sequence's first `lengths` count.

        Hidden, matches of recall, contexts of the counts, and the state after them.
        """
        facts, behind = self.look_up(ids, state, reset, lengths, tables)
        matches, contexts = facts.get("matches"), facts.get("contexts")
        boundaries, device = None, self.embedding.weight.device
        if ids.device != device:
            facts = sent(self.for_gpu(facts), device)
            boundaries = self._boundaries_sent(ids, reset, lengths, device)
        hidden, after = self.read(facts, state, noise, lengths, boundaries)
        return hidden, matches, contexts, {**after, **behind}

    def look_up(
        self,
        ids: Tensor,
        state: State,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
        tables: Tensor | None = None,
    ) -> tuple[Facts, State]:
        """All that a pass needs besides weights and numbers: it is made of tokens alone.

        Arguments as of :meth:`forward`; of each sequence the first `lengths` tokens count, [B].

        Returns:
            facts for :meth:`read`; and what of the state is made of tokens, behind them.
        """
        facts = self._rows(ids, state, reset)
        if reset is not None:
            facts["reset"] = reset
        behind: State = {}
        if self.recall is not None:
            searched = state.get("looked_up")
            if self.closing is not None:  # it is changed there
                whole = torch.full_like(state["recall"], OPEN) if searched is None else searched
                searched = whole.cpu().clone(memory_format=torch.contiguous_format)
            parts = state["recall"], state["recent"]
            facts["matches"], *parts = recall(ids, reset, lengths, *parts, searched, self.closing)
            behind |= dict(zip(("recall", "recent"), parts, strict=True))
            behind |= {} if searched is None else {"looked_up": searched}
        if self.counts is not None:
            table, recent = self.counts.table, state["recent"]
            given = table, ids, tables, reset, lengths, recent
            facts["contexts"], behind["recent"] = contexts(*given)
        return facts, behind | self._tokens_behind(ids, state, lengths)

    def for_gpu(self, facts: Facts) -> Facts:
        """Facts of :meth:`look_up` as :meth:`read` wants them on a GPU."""
        kept = {name: fact for name, fact in facts.items() if name not in ("matches", "contexts")}
        return kept | (spread(facts["matches"]) if "matches" in facts else {})

    def read(
        self,
        facts: Facts,
        state: State,
        noise: Noise | None = None,
        lengths: Tensor | None = None,
        boundaries: BoundariesT | None = None,
    ) -> tuple[Tensor, State]:
        """All of a pass that is computed with weights; on a GPU it asks the host for nothing.

        Args:
            facts: of :meth:`look_up`, where the weights are.
            state: of it, only what is not made of tokens alone.
            noise: see :meth:`forward`.
            lengths: as there.
            boundaries: where documents start and sequences end; made here if not given.

        Returns:
            hidden [B, T, D], and that part of the state behind the tokens.
        """
        embedded = self._embed(facts)
        if self.recall is not None:
            embedded = embedded + self.recall.added(facts, self.embedding.weight)
        if boundaries is None:
            shaped = facts["token_rows"]
            shaped = shaped[0] if shaped.dtype == torch.int32 else shaped
            boundaries = self._boundaries(shaped, state, facts.get("reset"), lengths)
        hidden, after = self._run(embedded, state, boundaries, noise)
        return hidden, {**after, **self._carried_on(state, boundaries)}

    def _output(
        self, hidden: Tensor | None, matches: Tensor | None, contexts: Tensor | None
    ) -> Hidden:
        assert hidden is not None
        if self.recall is None and self.counts is None:
            return hidden
        recalled = None if self.recall is None else matches
        return TrunkOutput(hidden, recalled, None if self.counts is None else contexts)

    def _boundaries(
        self, ids: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None
    ) -> BoundariesT:
        """Where documents start and sequences end, as the blocks want it."""
        raise NotImplementedError

    def _boundaries_sent(
        self, ids: Tensor, reset: Tensor | None, lengths: Tensor | None, device: torch.device
    ) -> BoundariesT | None:
        """The same on `device`, of tokens that are on the CPU, where it is better made there."""
        return None

    def _carried_on(self, state: State, boundaries: BoundariesT) -> State:
        """What the state has besides the parts that all blocks carry, after these tokens."""
        return {}

    def _tokens_behind(self, ids: Tensor, state: State, lengths: Tensor | None) -> State:
        """And what of that is made of tokens alone."""
        return {}

    def _run(
        self, embedded: Tensor, state: State, boundaries: BoundariesT, noise: Noise | None
    ) -> tuple[Tensor, State]:
        """The residual stream through all blocks."""
        dtype = compute_dtype(self.embedding.weight)
        p = self.dropout if self.training else 0.0
        noise = replace(noise or Noise.drawn(), sites=self.noise_sites) if p else None
        added = Additions(dtype, p, noise, self._saw)
        x, parts = None, []
        embedded = embedded.to(self.embedding_norm.dtype)
        first, *weights, last = self._norms(embedded)
        branch = norm(embedded, first)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            carried = [state[name][layer] for name in self._carried]
            replaces = layer == 0 and self.FIRST_REPLACES
            x, branch, carried = block.advance(
                x, branch, carried, boundaries, added, weights[layer], replaces
            )
            parts.append(carried)
        _, hidden = added(x, branch, last)
        stacked = (torch.stack(layers) for layers in zip(*parts, strict=True))
        return hidden, dict(zip(self._carried, stacked, strict=True))

    def _saw(self, stream: Tensor) -> None:
        """The residual stream before each block, [B, T, D], for whoever wants to see it."""

    def _norms(self, x: Tensor) -> list[Any]:
        """Weights of all norms of a stream like `x`: the first, those of each block, the last.

        Where the blocks are sharded those of a block are None: it has them when its turn comes.
        """
        if self.sharded:
            return [self.embedding_norm, *[None] * len(self.blocks), self.norm]
        of_blocks = [block.norms() for block in self.blocks]  # type: ignore[operator]
        flat = [self.embedding_norm, *itertools.chain(*of_blocks), self.norm]
        first, *together, last = norms_together(flat, x)
        rest = iter(together)
        return [first, *([*itertools.islice(rest, len(own))] for own in of_blocks), last]

    def _rows(self, ids: Tensor, state: State, reset: Tensor | None) -> Facts:
        """What :meth:`_embed` looks up."""
        return {"token_rows": ids}

    def _embed(self, facts: Facts) -> Tensor:
        """What the tokens themselves bring into the stream, before its norm: [B, T, D]."""
        return embedding(self.embedding.weight, facts["token_rows"])

    def logits(self, hidden: Hidden) -> Tensor:
        """Scores of every next token, [..., D] -> [..., V]; the matrix is the embedding's."""
        output = hidden if isinstance(hidden, TrunkOutput) else TrunkOutput(hidden)
        return self.with_memories(F.linear(output.hidden, self.embedding.weight), output)

    def with_memories(self, logits: Tensor, output: TrunkOutput) -> Tensor:
        """Logits [..., V] of the head, after the counts and then recall have had their say."""
        if output.matches is None and output.contexts is None:
            return logits
        flat, output = logits.reshape(-1, logits.shape[-1]), output.flat()
        facts = self.facts_for_logits(output.matches, output.contexts, output.device)
        return self.mix_in(flat, output.hidden, facts).view(logits.shape)

    def facts_for_logits(
        self, matches: Tensor | None, contexts: Tensor | None, device: torch.device
    ) -> Facts:
        """What the memories have to say of N positions, besides weights and numbers, on a device.

        Args:
            matches: of recall that :meth:`look_up` found, [N].
            contexts: those of the counts that :meth:`look_up` found, [N, K].
            device: where the hidden states are.
        """
        facts: Facts = {}
        if self.recall is not None and matches is not None:
            facts |= sent(facts_for_copying(matches), device)
        if self.counts is not None and contexts is not None:
            facts |= sent(self.counts.facts_for_logits(contexts), device)
        return facts

    def mix_in(self, logits: Tensor, hidden: Tensor, facts: Facts) -> Tensor:
        """Logits [N, V] of the head, of hidden [N, D], after what :meth:`facts_for_logits` gave."""
        changed, above = logits.clone(), torch.zeros((), device=logits.device)
        if self.counts is not None and "unknown" in facts:
            total = logits.logsumexp(dim=1)
            above = (self.counts.mix_(changed, total, hidden, facts) - total)[:, None]
        if self.recall is not None and "copied_rows" in facts:
            candidates, scores = self.recall.scores(hidden, facts)
            let_copy_(changed, candidates, scores + above)
        return changed

    def _copying(self, output: TrunkOutput) -> tuple[Tensor, Tensor] | None:
        """Candidates and scores of copying, [..., 1] both; None without recall."""
        if self.recall is None or output.matches is None:
            return None
        return self.recall.copying(output.hidden, output.matches)

    def token_scores(self, hidden: Hidden, targets: Tensor) -> TokenScores:
        """How N positions [N, D] predict their targets [N], in one pass over their logits."""
        output = hidden if isinstance(hidden, TrunkOutput) else TrunkOutput(hidden)
        logits = F.linear(output.hidden, self.embedding.weight).float()
        copying, without_counts = self._copying(output), None
        if self.counts is None or output.contexts is None:
            if copying is not None:
                let_copy_(logits, *copying)
            nats = F.cross_entropy(logits, targets, reduction="none")
        else:
            before = logits.logsumexp(dim=1)
            without_counts = _nats(logits, before, copying, targets)
            facts = sent(self.counts.facts_for_logits(output.contexts), output.device)
            total = self.counts.mix_(logits, before, output.hidden, facts)
            copying = copying and (copying[0], copying[1] + (total - before)[:, None])
            nats = _nats(logits, total, copying, targets)
            if copying is not None:
                let_copy_(logits, *copying)
        return TokenScores(nats, logits.argmax(dim=1) == targets, without_counts)

    def reading_closed(self, closing: tuple[int, int] | None) -> ResidualLM[BoundariesT]:
        """The same model, its weights shared, to whose recall answers are closed as they are read.

        It reads them as they are written (`Decoder.begin_answer`): nothing of an answer is looked
        up until it has ended. `closing` has the tokens before and behind answers; None: the model.
        """
        other = copy.copy(self)
        other.closing = closing
        return other

    def without_counts(self) -> ResidualLM[BoundariesT]:
        """The same model, its weights shared, without its table of counts."""
        return self._without("counts")

    def without_memories(self) -> ResidualLM[BoundariesT]:
        """The same without recall too: what it looks up is made where the tokens are."""
        return self._without("counts", "recall")

    def _without(self, *parts: str) -> ResidualLM[BoundariesT]:
        other = copy.copy(self)
        other._modules = {**self._modules, **dict.fromkeys(parts)}
        return other

    def loss(
        self, hidden: Hidden, targets: Tensor, sample: SampledVocabulary | None = None
    ) -> Tensor:
        """Sum of nats over the scored targets; see :func:`newllm.model.loss.nats_of`."""
        output = (hidden if isinstance(hidden, TrunkOutput) else TrunkOutput(hidden)).flat()
        targets = targets.flatten()
        if output.device.type == "cpu":  # a GPU takes all: to know which ones it would wait
            scored = targets != IGNORED
            if not bool(scored.all()):
                output, targets = output[scored], targets[scored]
        facts = self.facts_for_loss(targets, output.matches, output.contexts)
        return self.nats(output.hidden, sent(facts, output.device), sample)

    def facts_for_loss(
        self, targets: Tensor, matches: Tensor | None, contexts: Tensor | None
    ) -> Facts:
        """What the loss of N positions needs besides weights and numbers.

        Args:
            targets: [N]; `IGNORED` is not scored.
            matches: of recall that :meth:`look_up` found, [N].
            contexts: those of the counts that :meth:`look_up` found, [N, K].
        """
        facts = {"targets": targets}
        if self.recall is not None and matches is not None:
            facts |= facts_for_copying(matches)
        if self.counts is not None and contexts is not None:
            facts |= self.counts.facts_for_mixing(contexts, targets)
        return facts

    def nats(self, hidden: Tensor, facts: Facts, sample: SampledVocabulary | None = None) -> Tensor:
        """Sum of nats, as :meth:`loss`, of hidden [N, D] and what :meth:`facts_for_loss` gave."""
        copying, mixing = None, None
        if self.recall is not None and "copied_rows" in facts:
            copying = self.recall.scores(hidden, facts)
        if self.counts is not None and "target_probability" in facts:
            mixing = self.counts.mixed(hidden, facts)
        weight, targets = self.embedding.weight, facts["targets"]
        return nats_of(hidden, weight, None, targets, copying, mixing, sample)


def placed(model: nn.Module, state: State, device: torch.device) -> State:
    """A state where a model on `device` uses it: what is made of tokens alone, on the CPU."""
    of_tokens = model.OF_TOKENS if isinstance(model, ResidualLM) else frozenset()
    return {name: part.to("cpu" if name in of_tokens else device) for name, part in state.items()}


def _nats(
    logits: Tensor, total: Tensor, copying: tuple[Tensor, Tensor] | None, targets: Tensor
) -> Tensor:
    """-ln p(target), [N], of logits [N, V] with this ln of the sum of exponentials, and copying."""
    of_target = logits.gather(1, targets[:, None])[:, 0]
    if copying is not None:
        candidates, scores = copying[0][:, 0], copying[1][:, 0]
        total = torch.logaddexp(total, scores)
        copied = torch.logaddexp(of_target, scores)
        of_target = torch.where(candidates == targets, copied, of_target)
    return total - of_target


def runs_on_numba(x: Tensor) -> bool:
    """Whether the CPU kernels take a tensor like `x`."""
    known = x.dtype in (torch.float32, torch.bfloat16)
    return known and x.numel() > 0 and active_kernel(x.device) == "numba"
