"""A conversation held in the fixed-size state: earlier turns are never read again."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from newllm.chat import session_file
from newllm.chat.dialogue import Dialogue, model_state_bytes
from newllm.data.render import Renderer
from newllm.data.tokenizers import never_written
from newllm.datasets.conversations import Conversation
from newllm.errors import UserError
from newllm.files import write_bytes, write_text
from newllm.inference.answer_text import AnswerText
from newllm.inference.decoder import Decoder, Stream, write_tokens
from newllm.inference.sampler import Sampler
from newllm.inference.sampling import MAX_NEW_TOKENS, Sampling
from newllm.model import LanguageModel, State


@dataclass(frozen=True)
class BestOf:
    """How one of several answers is chosen."""

    count: int
    reward: Callable[[Sequence[Sequence[int]], State | None], list[float]]
    """Of texts in tokens that go on from a state and end with an answer: the more, the better."""


class ChatSession:
    """One conversation with a model.

    >>> session = newllm.load("best.pt").chat()  # doctest: +SKIP
    >>> session.say("What is the capital of France?")  # doctest: +SKIP
    'The capital of France is Paris.'
    >>> session.save("france.session")  # some kilobytes  # doctest: +SKIP
    """

    def __init__(
        self,
        decoder: Decoder,
        renderer: Renderer,
        sampling: Sampling,
        system: str | None = None,
    ) -> None:
        """A conversation that has not begun.

        Args:
            decoder: of the model; conversations with one model share it.
            renderer: of the model.
            sampling: how answers are drawn.
            system: what the model is told before the first turn.
        """
        self.decoder, self.renderer = decoder, renderer
        self.dialogue = Dialogue(sampling, system)
        self.tokens_per_second = 0.0
        """Speed of the last turn, its prompt included."""
        self.best_of: BestOf | None = None
        """Several answers are written to each turn and one is chosen, if that is given."""
        self.recalled_tokens = 0
        """Tokens of the last answer that followed the same words earlier in the conversation."""

    @classmethod
    def load(cls, path: str | Path, decoder: Decoder, renderer: Renderer) -> ChatSession:
        """Go on with a saved conversation: bit for bit as if it had never stopped.

        Raises:
            UserError: missing, damaged, edited, or of another model.
        """
        dialogue = session_file.read(Path(path), decoder.model, renderer)
        return cls(decoder, renderer, dialogue.sampling)._with(dialogue)

    @property
    def model(self) -> LanguageModel:
        """The model that answers."""
        return self.decoder.model

    @property
    def transcript(self) -> Conversation:
        """The turns so far (the last ones, of a very long conversation)."""
        return self.dialogue.transcript

    @property
    def tokens_read(self) -> int:
        """Tokens the state has taken in, prompts and answers."""
        return self.dialogue.next_turn.snapshot.tokens_read

    @property
    def state_bytes(self) -> int:
        """Size of the conversation's state; it does not grow."""
        return model_state_bytes(self.model)

    def say(self, text: str, max_new_tokens: int = MAX_NEW_TOKENS, min_new_tokens: int = 0) -> str:
        """Say something and return the whole answer."""
        return "".join(self.stream(text, max_new_tokens, min_new_tokens))

    def stream(
        self, text: str, max_new_tokens: int = MAX_NEW_TOKENS, min_new_tokens: int = 0
    ) -> Generator[str, None, None]:
        """Say something and yield the answer in pieces as it is written.

        An answer that reaches its limit, or whose reader stops reading, is closed as it is.

        Raises:
            UserError: the text is empty, and this model's form of a turn adds nothing to it; or
                the answer is given up because the model's scores are not finite.
        """
        if self.best_of is not None:
            yield self._best(self.best_of, text, max_new_tokens, min_new_tokens)
            return
        dialogue, started, before = self.dialogue, time.perf_counter(), self.tokens_read
        tokenizer = self.renderer.tokenizer
        stream = Stream(self.decoder, dialogue.next_turn.snapshot)
        rng_state = dialogue.next_turn.rng_state
        sampler = Sampler(dialogue.sampling, never_written(tokenizer), rng_state)
        prompt = dialogue.prompt(self.renderer, text)
        if not prompt:
            raise UserError("nothing was said: the text is empty")
        stream.read(prompt)
        answer, spoilt = AnswerText(tokenizer), False
        try:
            for token in write_tokens(
                stream, sampler, tokenizer.end, max_new_tokens, min_new_tokens
            ):
                if piece := answer.add(token):
                    yield piece
            if piece := answer.finish():
                yield piece
        except FloatingPointError as error:
            spoilt = True
            raise UserError(f"{error}; the conversation is as it was before") from None
        finally:
            answer.finish()
            if not spoilt and stream.snapshot.is_finite:
                dialogue.add_turn(text, answer.text, stream.snapshot, sampler.rng_state)
            self.recalled_tokens = stream.recalled
            self.tokens_per_second = (self.tokens_read - before) / (time.perf_counter() - started)

    def _best(self, best_of: BestOf, text: str, most: int, least: int) -> str:
        """Take the turn several times, the random numbers going on, and keep the best answer."""
        started, tokenizer = time.perf_counter(), self.renderer.tokenizer
        start = self.dialogue.next_turn
        prompt, rng_state = self.dialogue.prompt(self.renderer, text), start.rng_state
        taken: list[ChatSession] = []
        for _ in range(best_of.count):
            other = ChatSession(self.decoder, self.renderer, self.dialogue.sampling)
            other._with(self.dialogue.copy())
            other.dialogue.next_turn = replace(start, rng_state=rng_state)
            other.say(text, most, least)
            if other.tokens_read == start.snapshot.tokens_read:  # after its last token
                raise UserError("the state is not finite; the conversation is as it was before")
            taken.append(other)
            rng_state = other.dialogue.next_turn.rng_state
        answers = [other.transcript[-1]["content"] for other in taken]
        texts = [[*prompt, *ids, tokenizer.end] for ids in tokenizer.encode_batch(answers)]
        given = best_of.reward(texts, start.snapshot.state)
        best = max(range(len(taken)), key=lambda number: given[number])
        self.dialogue = taken[best].dialogue
        self.dialogue.past_turns[-1] = start
        self.dialogue.next_turn = replace(self.dialogue.next_turn, rng_state=rng_state)
        self.recalled_tokens = taken[best].recalled_tokens
        spent = self.tokens_read - start.snapshot.tokens_read
        self.tokens_per_second = spent / (time.perf_counter() - started)
        return answers[best]

    def undo(self) -> None:
        """Go back to before the last turn; see :meth:`Dialogue.undo`.

        Raises:
            UserError: there is no turn that can be undone.
        """
        self.dialogue.undo()

    def fork(self) -> ChatSession:
        """A second conversation that goes on from here; neither touches the other."""
        other = ChatSession(self.decoder, self.renderer, self.dialogue.sampling)
        other.best_of = self.best_of
        return other._with(self.dialogue.fork())

    def save(self, path: str | Path) -> None:
        """Write the conversation to a file (atomically): some kilobytes, whatever its length.

        Raises:
            OSError: the disk is full or the folder is not writable; an old file is untouched.
        """
        content = session_file.encode(self.dialogue, self.model, self.renderer)
        write_bytes(Path(path), content)

    def export(self, path: str | Path) -> None:
        """Write the transcript as a row of JSON, as `newllm train chat` reads it."""
        write_text(Path(path), self.dialogue.export())

    def _with(self, dialogue: Dialogue) -> ChatSession:
        self.dialogue = dialogue
        return self
