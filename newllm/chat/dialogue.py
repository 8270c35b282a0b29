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
from newllm.inference.sampling import START, Draws, Point, Sampling
from newllm.model import LanguageModel, State

UNDO_TURNS, UNDO_BYTES = 16, 2**20
"""So many turns can be undone, fewer where their states would take more memory; always one."""

MESSAGE_BYTES = 64
"""What a message counts for besides its content: many empty ones are bounded as well."""

TRANSCRIPT_BYTES = 2**16
"""The transcript keeps the last messages that fit; the state was made by all of them."""


@dataclass(frozen=True)
class Place:
    """Where a conversation is between two turns."""

    point: Point = START
    draws: Draws | None = None
    """Where the random numbers are; None before the first."""
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
        self.place = Place()
        self.before: list[Place] = []
        """Places before the last turns, for undoing them; the oldest first."""
        self.transcript: Conversation = []
        """The last messages; see :data:`TRANSCRIPT_BYTES`."""

    @property
    def begun(self) -> bool:
        """Whether anything was read."""
        return self.place.point.tokens_read > 0

    @property
    def dropped(self) -> int:
        """Messages that are no longer in the transcript."""
        return self.place.messages - len(self.transcript)

    def prompt(self, renderer: Renderer, text: str) -> list[int]:
        """The tokens to read, at the present place, before the answer to a text."""
        return prompt_ids(renderer, self._messages(text), self.place.point)

    def add_turn(self, text: str, answer: str, point: Point, draws: Draws) -> None:
        """Go on to the place where an answer was written."""
        said: Conversation = [*self._messages(text), {"role": "assistant", "content": answer}]
        self.before.append(self.place)
        size = max(1, state_bytes(point.state))
        del self.before[: -max(1, min(UNDO_TURNS, UNDO_BYTES // size))]
        self.place = Place(point, draws, self.place.messages + len(said))
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
        if not self.before:
            raise UserError("there is no turn to undo")
        dropped, draws = self.dropped, self.place.draws
        self.place = self.before.pop()
        del self.transcript[max(0, self.place.messages - dropped) :]
        if self.sampling.seed is None:
            self.place = replace(self.place, draws=draws)

    def fork(self) -> Dialogue:
        """A second conversation that goes on from here; with a seed, with the same answers."""
        other = Dialogue(self.sampling, self.system)
        seeded = self.sampling.seed is not None
        other.place = self.place if seeded else replace(self.place, draws=None)
        other.before, other.transcript = list(self.before), list(self.transcript)
        return other

    def export(self) -> str:
        """The transcript as one line of JSON, as `newllm train chat` reads rows."""
        return json.dumps({"messages": self.transcript}, ensure_ascii=False) + "\n"

    def _messages(self, text: str) -> list[Message]:
        user: Message = {"role": "user", "content": replace_surrogates(text)[0]}
        if self.begun or self.system is None:
            return [user]
        return [{"role": "system", "content": self.system}, user]


def prompt_ids(renderer: Renderer, messages: Conversation, point: Point) -> list[int]:
    """The tokens to read at a point between two turns, up to where the assistant speaks."""
    end = renderer.tokenizer.end
    cut_short = point.last_token is not None and point.last_token != end
    ids = renderer.prompt(messages, start=point.tokens_read == 0)
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
