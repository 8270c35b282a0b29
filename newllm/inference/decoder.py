"""Reading and writing texts with a model: the one prefill loop, the one-token step, one interface.

`read` takes in prompts with the module, as in training. `step` takes in single tokens: by the fused
step where there is one (`newllm/model/context/decode.py` on a CPU, `graphed.py` on a GPU), else
with the module too. `make_decoder` decides which, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from newllm.inference.graphed import GraphedSlots, can_capture
from newllm.inference.sampler import Sampler
from newllm.model import LanguageModel, State
from newllm.model.context.decode import ContextSlots, Slots, can_step
from newllm.model.recall.reference import ORDER_UNIT, TIMES_UNIT, longest_match
from newllm.model.residual import ResidualLM

PROMPT_TOKENS = 4096
"""Prompt tokens read at a time, where nothing else is said: bounds the memory of long prompts."""


class Decoder(ABC):
    """Texts read and written side by side, each in a slot: its state, carried from token to token.

    Prompts are read by the module; how a step is taken and where states are kept is what the two
    kinds differ in.
    """

    def __init__(self, model: LanguageModel) -> None:
        """No slots yet; see :func:`make_decoder`."""
        self.model = model

    @abstractmethod
    def empty_copy(self, texts: int = 1) -> Decoder:
        """A decoder of the same weights (shared, not packed again) that has no slots yet.

        Decoders share nothing that changes: each may be used on a thread of its own. As long as
        there are no more than `texts` slots, what is computed for one does not depend, to the bit,
        on how many others there are.
        """

    @abstractmethod
    def add(self, state: State | None = None) -> int:
        """Open a slot and return its number.

        Args:
            state: of one text (1 in dimension 1 of each part), on any device; not changed. None
                for the start of a text.
        """

    @abstractmethod
    def remove(self, slot: int) -> None:
        """Close a slot; its number may be given to another."""

    @abstractmethod
    def state(self, slot: int) -> State:
        """The state of a slot, for :meth:`add`; it stays as it is when the slot reads on."""

    @abstractmethod
    def set_state(self, slot: int, state: State | None) -> None:
        """Go on from another state (None: from the start of a text)."""

    @abstractmethod
    def begin_answer(self, slot: int) -> None:
        """What a slot reads by steps from here on is its own answer: recall copies nothing of it.

        A model that looks into its own words repeats them (docs/LOG.md). They are entered all the
        same, and found from :meth:`end_answer` on.
        """

    @abstractmethod
    def end_answer(self, slot: int) -> None:
        """The answer has ended, however it did."""

    @abstractmethod
    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """Read one token in each of these slots (a selection, in any order).

        Returns:
            scores of every next token, fp32 [len(slots), V]; the next step may overwrite them.
        """

    @abstractmethod
    def _match(self, slot: int) -> int:
        """What recall finds behind the last tokens of a slot, as it is stored."""

    def recalled(self, slot: int) -> int | None:
        """The token that followed the last two or more tokens of a slot where they stood before.

        None without such a token, or without recall.
        """
        match = self._match(slot) if self.model.settings.recall_slots else 0
        return match % TIMES_UNIT if match // ORDER_UNIT > 0 else None

    @torch.inference_mode()
    def read(
        self, slots: Sequence[int], texts: Sequence[Sequence[int]], chunk: int = PROMPT_TOKENS
    ) -> np.ndarray:
        """Read one text in each of these slots, all of them together, with the module.

        Args:
            slots: a selection, in any order.
            texts: ids for each slot, none empty.
            chunk: tokens of each text in one call of the module.

        Returns:
            scores of every next token, fp32 [len(slots), V].
        """
        logits, state = self._read(texts, self._join(slots), chunk)
        self._split(slots, state)
        return logits

    @torch.inference_mode()
    def read_scored(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """Read some tokens of one text at once, with the module.

        Returns:
            scores after each of them, fp32 [len(ids), V].
        """
        chunks = read_chunks(self.model, (ids,), self._join((slot,)), len(ids))
        ((_, hidden, state),) = chunks
        self._split((slot,), state)
        return self.model.logits(hidden[0]).float().numpy(force=True)

    def _read(
        self, texts: Sequence[Sequence[int]], state: State, chunk: int
    ) -> tuple[np.ndarray, State]:
        """The scores after texts that go on from a state, and the state after them."""
        lengths = [len(text) for text in texts]
        logits = np.empty((len(texts), self.model.vocab_size), np.float32)
        for part, hidden, after in read_chunks(self.model, texts, state, chunk):
            state = after
            ended = [row for row, length in enumerate(lengths) if part.start < length <= part.stop]
            if part.stop == min(lengths) == max(lengths):  # all end here, as in every step
                logits = self.model.logits(hidden[:, -1]).float().numpy(force=True)
            elif ended:
                last = hidden[ended, [lengths[row] - 1 - part.start for row in ended]]
                logits[ended] = self.model.logits(last).float().numpy(force=True)
        return logits, state

    def _join(self, slots: Sequence[int]) -> State:
        """The states of these slots as one."""
        return _joined([self.state(slot) for slot in slots])

    def _split(self, slots: Sequence[int], state: State) -> None:
        """Give each of these slots its part of a state."""
        for row, slot in enumerate(slots):
            self.set_state(slot, _row(state, row))


class ModuleDecoder(Decoder):
    """Takes every step with the module. The states of its slots are the tensors that the module
    returned, which nothing changes afterwards.
    """

    def __init__(self, model: LanguageModel, batched: bool = False) -> None:
        super().__init__(model)
        self._batched = batched
        self._states: dict[int, tuple[State, int]] = {}
        """Of each slot: the state of the texts it was last read with, and its number among them."""
        self._looked_up: dict[int, Tensor] = {}
        """Of each slot that answers: the tables of recall as they stood before, [K, 1, S, WAYS]."""
        self._numbers = count()

    def empty_copy(self, texts: int = 1) -> Decoder:
        return ModuleDecoder(self.model, self._batched)

    def add(self, state: State | None = None) -> int:
        slot = next(self._numbers)
        self.set_state(slot, state)
        return slot

    def remove(self, slot: int) -> None:
        del self._states[slot]
        self._looked_up.pop(slot, None)

    def state(self, slot: int) -> State:
        return _row(*self._states[slot])

    def set_state(self, slot: int, state: State | None) -> None:
        device = next(self.model.parameters()).device
        state = state or self.model.initial_state(1)
        self._states[slot] = {name: part.to(device) for name, part in state.items()}, 0
        self._looked_up.pop(slot, None)

    def begin_answer(self, slot: int) -> None:
        state = self.state(slot)
        if "recall" in state:
            self._looked_up[slot] = state["recall"]

    def end_answer(self, slot: int) -> None:
        self._looked_up.pop(slot, None)

    @torch.inference_mode()
    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        answering = [self._looked_up[slot] for slot in slots if slot in self._looked_up]
        # A call of the module has one table to look into: all of its texts answer, or none.
        if len(slots) > 1 and not (self._batched and len(answering) in (0, len(slots))):
            parts = [self.step([slot], [token]) for slot, token in zip(slots, tokens, strict=True)]
            return np.concatenate(parts)
        state = self._join(slots)
        if answering:
            state = {**state, "looked_up": torch.cat(answering, dim=1)}
        logits, state = self._read([[token] for token in tokens], state, 1)
        state.pop("looked_up", None)
        self._split(slots, state)
        return logits

    def _match(self, slot: int) -> int:
        state = self.state(slot)
        tables = self._looked_up.get(slot, state["recall"])
        return longest_match(*(part[:, 0].numpy(force=True) for part in (tables, state["recent"])))

    def _join(self, slots: Sequence[int]) -> State:
        """Without a copy where they were last read together."""
        first, _ = self._states[slots[0]]
        rows = [row for state, row in map(self._states.__getitem__, slots) if state is first]
        if len(rows) < len(slots):
            return super()._join(slots)
        if rows == list(range(next(iter(first.values())).shape[1])):
            return first
        return {name: part[:, rows] for name, part in first.items()}

    def _split(self, slots: Sequence[int], state: State) -> None:
        for row, slot in enumerate(slots):
            self._states[slot] = state, row


class FusedDecoder(Decoder):
    """Takes the steps of all slots through the whole stack as one: a call of a numba kernel
    (`ContextSlots`), or a CUDA graph (`GraphedSlots`).

    What a slot computes does not depend, to the bit, on which others take a step with it.
    """

    def __init__(self, model: LanguageModel, slots: Slots) -> None:
        super().__init__(model)
        self._slots = slots

    def empty_copy(self, texts: int = 1) -> Decoder:
        return FusedDecoder(self.model, self._slots.empty_copy(texts))

    def add(self, state: State | None = None) -> int:
        return self._slots.add(state)

    def remove(self, slot: int) -> None:
        self._slots.remove(slot)

    def state(self, slot: int) -> State:
        return self._slots.state(slot)

    def set_state(self, slot: int, state: State | None) -> None:
        self._slots.set_state(slot, state)

    def begin_answer(self, slot: int) -> None:
        self._slots.set_answering(slot, True)

    def end_answer(self, slot: int) -> None:
        self._slots.set_answering(slot, False)

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        return self._slots.step(slots, tokens)

    def _match(self, slot: int) -> int:
        return self._slots.match(slot)


def _joined(states: Sequence[State]) -> State:
    """The states of single texts, side by side."""
    if len(states) == 1:
        return states[0]
    return {name: torch.cat([state[name] for state in states], dim=1) for name in states[0]}


def _row(state: State, row: int) -> State:
    """The state of one of the texts that were read together."""
    return {name: part[:, row : row + 1] for name, part in state.items()}


def make_decoder(model: LanguageModel, batched: bool = False) -> Decoder:
    """A decoder for the weights that a model has now; make it once for a loaded model.

    The fused step of a CPU (`context`, in fp32) takes a packed copy of the weights, and that of a
    GPU (`context` and minGRU) has their addresses, so that weights that change later need a new
    decoder.

    Args:
        model: in evaluation mode.
        batched: let the module, where there is no fused step, take the steps of several slots in
            one call. That is faster, but the last bits of what is computed for a slot then depend
            on how many others take the step with it.
    """
    if isinstance(model, ResidualLM) and model.closing is not None:  # `begin_answer` says where
        model = model.reading_closed(None)
    if can_step(model):
        return FusedDecoder(model, ContextSlots(model))
    if can_capture(model):
        return FusedDecoder(model, GraphedSlots(model))
    return ModuleDecoder(model, batched)


def read_chunks(
    model: LanguageModel,
    texts: Sequence[Sequence[int]],
    state: State,
    chunk: int,
    tables: Sequence[int] | None = None,
) -> Iterator[tuple[slice, Tensor, State]]:
    """Read texts of any lengths side by side with the module, some positions of each at a time.

    Args:
        model: in evaluation mode; call this in inference mode.
        texts: B of them, none empty.
        state: of B texts, from which they go on.
        chunk: positions in one call of the module.
        tables: from which table of counts each text is predicted, of a model that has some; None:
            from that of all rows.

    Yields:
        which positions were read, hidden [B, t, D] (zeros beyond the end of a text), and the state
        after them.
    """
    device = next(model.parameters()).device
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
    valid = None
    if min(map(len, texts)) < longest:
        valid = torch.arange(longest) < torch.tensor([[len(text)] for text in texts])
    of_text = None if tables is None else torch.tensor(tables, dtype=torch.uint8)[:, None]
    for start in range(0, longest, chunk):
        part = slice(start, min(start + chunk, longest))
        real = None if valid is None else valid[:, part].to(device)
        here = ids[:, part].to(device)
        numbers = {} if of_text is None else {"tables": of_text.expand(here.shape).contiguous()}
        hidden, state = model(here, state, None, real, **numbers)
        yield part, hidden, state


@dataclass(frozen=True)
class Snapshot:
    """Where a text stands: one can go on from it as often as one likes."""

    state: State | None = None
    """Of one text; None at its start."""
    last_token: int | None = None
    tokens_read: int = 0

    @property
    def is_finite(self) -> bool:
        """Whether all numbers of the state are; one that is not spoils whatever follows."""
        return all(bool(part.isfinite().all()) for part in (self.state or {}).values())


START = Snapshot()
"""Nothing is read yet."""


class Stream:
    """A single text: its state, and the scores of its next token."""

    def __init__(self, decoder: Decoder, start: Snapshot = START) -> None:
        """Go on from `start`, which is not changed; a slot in an empty copy of the decoder."""
        self.logits: np.ndarray | None = None
        """Scores of every next token, fp32 [V]; overwritten by the next read."""
        self.tokens_read = start.tokens_read
        self.last_token = start.last_token
        self._decoder = decoder.empty_copy()
        self._slots = (self._decoder.add(start.state),)
        self.recalled = 0
        """Tokens of the last answer that recall proposed."""

    @property
    def state(self) -> State | None:
        """What was read, as the model keeps it; it stays as it is when the stream reads on."""
        return self._decoder.state(self._slots[0]) if self.tokens_read else None

    @property
    def snapshot(self) -> Snapshot:
        """Where the text stands, to go on from."""
        return Snapshot(self.state, self.last_token, self.tokens_read)

    def begin_answer(self) -> None:
        """What is read by single tokens from here on is the model's answer."""
        self.recalled = 0
        self._decoder.begin_answer(self._slots[0])

    def end_answer(self) -> None:
        """The answer has ended."""
        self._decoder.end_answer(self._slots[0])

    def take(self, token: int) -> None:
        """Read a token of the answer."""
        self.recalled += self._decoder.recalled(self._slots[0]) == token
        self.read((token,))

    def read(self, ids: Sequence[int]) -> None:
        """Read tokens (a single one by a step) in time and memory that no earlier ones add to."""
        if not ids:
            return
        if len(ids) == 1:
            self.logits = self._decoder.step(self._slots, ids)[0]
        else:
            self.logits = self._decoder.read(self._slots, (ids,))[0]
        self._has_read(ids)

    def read_scored(self, ids: Sequence[int]) -> np.ndarray:
        """The same for at least one token, with the scores after each, fp32 [len(ids), V]."""
        scores = self._decoder.read_scored(self._slots[0], ids)
        self.logits = scores[-1]
        self._has_read(ids)
        return scores

    def _has_read(self, ids: Sequence[int]) -> None:
        self.tokens_read += len(ids)
        self.last_token = ids[-1]


def write_tokens(
    stream: Stream, sampler: Sampler, end: int, max_new_tokens: int, min_new_tokens: int = 0
) -> Iterator[int]:
    """Yield new tokens until `end` (which is read, not yielded) or the limit."""
    sampler.begin_answer()
    stream.begin_answer()
    try:
        for number in range(max_new_tokens):
            assert stream.logits is not None, "read a prompt first"
            token = sampler.draw(stream.logits, (end,) if number < min_new_tokens else ())
            stream.take(token)
            if token == end:
                return
            yield token
    finally:
        stream.end_answer()
