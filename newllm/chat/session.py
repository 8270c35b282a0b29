"""A conversation held in the fixed-size state: earlier turns are never read again."""

from __future__ import annotations

import codecs
import time
from collections.abc import Generator

from newllm.chat.sampling import Sampler, Sampling, Stream, write_tokens
from newllm.data.conversations import Conversation
from newllm.data.render import Renderer
from newllm.data.tokenizers import never_written
from newllm.model import LanguageModel

MAX_NEW_TOKENS = 256
"""Length of an answer at most, where nothing else is said."""


class ChatSession:
    """One conversation with a model.

    >>> session = newllm.load("best.pt").chat()  # doctest: +SKIP
    >>> session.say("What is the capital of France?")  # doctest: +SKIP
    'The capital of France is Paris.'
    """

    def __init__(
        self,
        model: LanguageModel,
        renderer: Renderer,
        sampling: Sampling,
        system: str | None = None,
    ) -> None:
        self.renderer = renderer
        self.transcript: Conversation = []
        """All turns so far."""
        self.tokens_per_second = 0.0
        """Speed of the last turn, its prompt included."""
        self._stream = Stream(model)
        self._sampler = Sampler(sampling, never_written(renderer.tokenizer))
        self._system = system

    @property
    def tokens_read(self) -> int:
        """Tokens the state has taken in, prompts and answers."""
        return self._stream.tokens_read

    @property
    def state_bytes(self) -> int:
        """Size of the conversation's state; it does not grow."""
        state = self._stream.state or {}
        return sum(part.numel() * part.element_size() for part in state.values())

    def say(self, text: str, max_new_tokens: int = MAX_NEW_TOKENS, min_new_tokens: int = 0) -> str:
        """Say something and return the whole answer."""
        return "".join(self.stream(text, max_new_tokens, min_new_tokens))

    def stream(
        self, text: str, max_new_tokens: int = MAX_NEW_TOKENS, min_new_tokens: int = 0
    ) -> Generator[str, None, None]:
        """Say something and yield the answer in pieces as it is written.

        An answer that reaches its limit, or whose reader stops reading, is closed as it is.
        """
        before, started = self.tokens_read, time.perf_counter()
        tokenizer = self.renderer.tokenizer
        if self.transcript and self._stream.last_token != tokenizer.end:
            self._stream.read([tokenizer.end])  # the last answer was cut short
        messages: Conversation = [{"role": "user", "content": text}]
        start = not self.transcript
        if start and self._system is not None:
            messages.insert(0, {"role": "system", "content": self._system})
        self._stream.read(self.renderer.prompt(messages, start=start))
        self.transcript += messages
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        said = bytearray()  # a list of a hundred thousand short strings would take megabytes
        try:
            for token in write_tokens(
                self._stream, self._sampler, tokenizer.end, max_new_tokens, min_new_tokens
            ):
                piece = decoder.decode(tokenizer.piece(token))
                if not said:
                    piece = piece.lstrip()  # word1000 has a blank before each word
                if piece:
                    said += piece.encode()
                    yield piece
            rest = decoder.decode(b"", final=True)
            if rest:
                said += rest.encode()
                yield rest
        finally:
            self.transcript.append({"role": "assistant", "content": said.decode()})
            self.tokens_per_second = (self.tokens_read - before) / (time.perf_counter() - started)
