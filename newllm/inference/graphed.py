"""One token of every text in one step of a GPU, captured as a CUDA graph (never run on one yet).

The network's state stays on the GPU, a row for each slot, and is changed in place. Tables of recall
and of counts are looked up by the CPU, as in training: what they found goes there with the tokens,
in one copy, and the scores of all next tokens come back in one. Every step computes all rows, so
that a row's numbers do not depend, to the bit, on which others are read; rows of which no token is
read (sequences of length 0) keep their state.

Tokens are drawn from the scores by the CPU: there is one definition of that (`sampler.py`), and the
scores of 64 texts and 4,096 tokens are a copy of one megabyte.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.cuda_graph import GraphedStep, Sent
from newllm.model import LanguageModel, State, kernels
from newllm.model.context.decode import Slots, kernel_module
from newllm.model.counts.layer import PlacedCounts
from newllm.model.counts.table import MOST_CONTEXT, CountTable, StoredTable
from newllm.model.recall.layer import facts_for_copying
from newllm.model.residual import ResidualLM

log = logging.getLogger("newllm.inference")


def can_capture(model: LanguageModel) -> TypeGuard[ResidualLM[Any]]:
    """Whether :class:`GraphedSlots` are for this model: on a GPU, and the same for any tokens."""
    if not isinstance(model, ResidualLM) or not model.STEADY or kernels.FORCED == "reference":
        return False
    drops = model.training and model.dropout > 0
    return not drops and _on_gpu(model.embedding.weight.device)


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


class GraphedSlots(Slots):
    """Slots whose steps are one CUDA graph, from the fourth on; launched one by one before, and
    where a GPU cannot capture them."""

    def __init__(self, model: ResidualLM[Any], capacity: int = 1) -> None:
        """Of the model's weights where they are now; rows for so many slots at first."""
        self._model, self._device = model, model.embedding.weight.device
        self._network, self._attempt = model.without_memories(), _Attempt()
        table = CountTable(StoredTable.empty()) if model.counts is None else model.counts.table
        self._table = table.index, table.starts, table.checks
        self._counts = PlacedCounts(table, self._device) if len(table) else None
        super().__init__(model, capacity)

    def _clear(self, capacity: int) -> None:
        self._rows = self._network.initial_state(0)
        attempt = self._attempt
        self._graph = GraphedStep(self._device, attempt.wanted, attempt.failed)
        super()._clear(capacity)

    def state(self, slot: int) -> State:
        own = slice(slot, slot + 1)
        of_tokens = super().state(slot)
        return {**{name: part[:, own].clone() for name, part in self._rows.items()}, **of_tokens}

    @torch.inference_mode()
    def set_state(self, slot: int, state: State | None) -> None:
        super().set_state(slot, state)
        for name, part in self._rows.items():
            part[:, slot] = 0 if state is None else state[name][:, 0]

    @torch.inference_mode()
    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        self._check(slots, tokens)
        written = self._graph.take(self._look_up(slots, tokens), None, self._step)
        scores = self._scores[: max(slots, default=-1) + 1]
        scores.copy_(written[: len(scores)], non_blocking=True)
        if _on_gpu(self._device):
            # Not for the whole device: that would end another model's capture.
            torch.cuda.current_stream(self._device).synchronize()
        return scores.numpy()[list(slots)]

    def _look_up(self, slots: Sequence[int], tokens: Sequence[int]) -> dict[str, Tensor]:
        """All that a step is sent: for each row a token, whether it is one, and what is found."""
        rows = len(self._answering)
        read, lengths, matches = (np.zeros(rows, np.int64) for _ in range(3))
        contexts = np.full((rows, MOST_CONTEXT), -1, np.int64)
        chosen, parts = np.array(slots, np.int64), self._arrays.values()
        read[chosen], lengths[chosen] = tokens, 1
        kernel_module().look_up(
            read[chosen], chosen, *parts, self._answering, self._found, *self._table,
            matches, contexts,
        )  # fmt: skip
        sent = {"tokens": read, "lengths": lengths, "matches": matches, "contexts": contexts}
        return {name: torch.from_numpy(part) for name, part in sent.items()}

    def _step(self, sent: Sent) -> Tensor:
        """All of a step that is asked of the GPU: scores of all rows, fp32 [rows, V]."""
        model, lengths, matches = self._model, sent["lengths"], sent["matches"]
        facts, behind = self._network.look_up(sent["tokens"][:, None], self._rows, None, lengths)
        if model.recall is not None:
            facts["matches"] = matches[:, None]
        hidden, after = model.read(model.for_gpu(facts), self._rows, None, lengths)
        for name, part in {**after, **behind}.items():
            self._rows[name].copy_(part)
        memories = facts_for_copying(matches) if model.recall is not None else {}
        if self._counts is not None:
            memories |= self._counts.facts_for_logits(sent["contexts"])
        scores = F.linear(hidden[:, 0], model.embedding.weight)
        return model.mix_in(scores, hidden[:, 0], memories).float()

    @torch.inference_mode()
    def _grow(self, capacity: int) -> None:
        super()._grow(capacity)
        old, self._rows = self._rows, self._network.initial_state(capacity)
        for name, part in old.items():
            self._rows[name][:, : part.shape[1]] = part
        pinned = _on_gpu(self._device)  # a GPU copies to it while nobody else moves it
        self._scores = torch.empty(capacity, self._vocab_size, pin_memory=pinned)
        self._graph.forget()


class _Attempt:
    """What all copies of a decoder know: whether a graph is worth trying. It is told once."""

    wanted = True

    def failed(self, why: str) -> None:
        if self.wanted:
            log.warning(why.strip())
        self.wanted = False
