"""A conversation at rest: the state after its last turn, and what stood before earlier ones.

Nothing here reads or writes tokens. `ChatSession` and the server do, and keep a conversation in
one of these between turns; `session_file` makes a file of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from newllm.data.render import ChatRenderer, Renderer
from newllm.data.tokenizers import replace_surrogates
from newllm.datasets.conversations import Conversation, Message
from newllm.errors import UserError
from newllm.inference.decoder import START, Snapshot
from newllm.inference.sampler import RngState
from newllm.inference.sampling import Sampling
from newllm.model import LanguageModel, State

UNDO_TURNS, UNDO_BYTES = 16, 2**20
"""So many turns can be undone, fewer where their states would take more memory; always one."""

MESSAGE_BYTES = 64
"""What a message counts for besides its content: many empty ones are bounded as well."""

MOST_COUNTED = 2**44
"""Tokens read and messages of a conversation, in a file; a turn begins below half of it.

A model reads some thousand tokens a second: no real conversation comes near.
"""

TRANSCRIPT_BYTES = 2**16
"""The transcript keeps the last messages that fit; the state was made by all of them."""


@dataclass(frozen=True)
class TurnStart:
    """Where a turn starts: all that its answer depends on besides the user's text."""

    snapshot: Snapshot = START
    rng_state: RngState | None = None
    """State of the random numbers; None before the first."""
    messages: int = 0
    """Messages so far, those that left the transcript included."""


class Dialogue:
    """A conversation between two turns. Its size is bounded, however long it gets."""

    def __init__(self, sampling: Sampling, system: str | None = None) -> None:
        """A conversation that has not begun.

        Args:
            sampling: how answers are drawn.
            system: what the model is told before the first turn.

        Raises:
            UserError: the system message does not fit the transcript.
        """
        if system is not None:
            system, _ = replace_surrogates(system)
            if len(system.encode()) > TRANSCRIPT_BYTES:
                raise UserError(f"the system message has more than {TRANSCRIPT_BYTES:,} bytes")
        self.sampling, self.system = sampling, system
        self.next_turn = TurnStart()
        self.past_turns: list[TurnStart] = []
        """Where the last turns started, for undoing them; the oldest first."""
        self.transcript: Conversation = []
        """The last messages; see :data:`TRANSCRIPT_BYTES`."""

    @property
    def begun(self) -> bool:
        """Whether anything was read."""
        return self.next_turn.snapshot.tokens_read > 0

    @property
    def dropped(self) -> int:
        """Messages that are no longer in the transcript."""
        return self.next_turn.messages - len(self.transcript)

    def prompt(self, renderer: Renderer, text: str) -> list[int]:
        """The tokens to read, from where the next turn starts on, before the answer to a text.

        Raises:
            UserError: the conversation claims to be longer than any can be (a forged file).
        """
        turn = self.next_turn
        if max(turn.snapshot.tokens_read, turn.messages) >= MOST_COUNTED // 2:
            raise UserError("this conversation says that it is longer than any can be")
        return prompt_ids(renderer, self._messages(text), self.next_turn.snapshot)

    def add_turn(self, text: str, answer: str, snapshot: Snapshot, rng_state: RngState) -> None:
        """Take in a turn whose answer was written: the next one starts where it ended."""
        said: Conversation = [*self._messages(text), {"role": "assistant", "content": answer}]
        self.past_turns.append(self.next_turn)
        size = max(1, state_bytes(snapshot.state))
        del self.past_turns[: -max(1, min(UNDO_TURNS, UNDO_BYTES // size))]
        self.next_turn = TurnStart(snapshot, rng_state, self.next_turn.messages + len(said))
        self.transcript += said
        total, kept = 0, 0
        for message in reversed(self.transcript):
            total += len(message["content"].encode()) + MESSAGE_BYTES
            if total > TRANSCRIPT_BYTES:
                break
            kept += 1
        del self.transcript[: len(self.transcript) - kept]

    def undo(self) -> None:
        """Go back to before the last turn, exactly.

        With a seed the same question then gets the same answer; without one, another. (Messages
        that the turn pushed out of the transcript stay out.)

        Raises:
            UserError: there is no turn that can be undone.
        """
        if not self.past_turns:
            raise UserError("there is no turn to undo")
        dropped, rng_state = self.dropped, self.next_turn.rng_state
        self.next_turn = self.past_turns.pop()
        del self.transcript[max(0, self.next_turn.messages - dropped) :]
        if self.sampling.seed is None:
            self.next_turn = replace(self.next_turn, rng_state=rng_state)

    def copy(self) -> Dialogue:
        """The same conversation, which does not change when this one goes on."""
        other = Dialogue(self.sampling, self.system)
        other.next_turn, other.past_turns = self.next_turn, list(self.past_turns)
        other.transcript = list(self.transcript)
        return other

    def fork(self) -> Dialogue:
        """A second conversation that goes on from here; with a seed, with the same answers."""
        other = self.copy()
        if self.sampling.seed is None:
            other.next_turn = replace(self.next_turn, rng_state=None)
        return other

    def export(self) -> str:
        """The transcript as one line of JSON, as `newllm train chat` reads rows."""
        return json.dumps({"messages": self.transcript}, ensure_ascii=False) + "\n"

    def _messages(self, text: str) -> list[Message]:
        user: Message = {"role": "user", "content": replace_surrogates(text)[0]}
        if self.begun or self.system is None:
            return [user]
        return [{"role": "system", "content": self.system}, user]


def prompt_ids(renderer: Renderer, messages: Conversation, start: Snapshot) -> list[int]:
    """The tokens to read between two turns, up to where the answer begins."""
    end = renderer.tokenizer.end
    cut_short = start.last_token is not None and start.last_token != end
    ids = renderer.prompt(messages, start=start.tokens_read == 0)
    return [end, *ids] if cut_short else ids


def knows_system(renderer: Renderer) -> bool:
    """Whether the model was trained with system messages' role."""
    return isinstance(renderer, ChatRenderer) and not renderer.plain_text


def state_bytes(state: State | None) -> int:
    """Size of a state."""
    return sum(part.numel() * part.element_size() for part in (state or {}).values())


def model_state_bytes(model: LanguageModel) -> int:
    """Size of the state that a model carries from token to token."""
    return state_bytes(model.initial_state(1))
