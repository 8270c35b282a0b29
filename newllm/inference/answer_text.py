"""Tokens of an answer become text: whole characters, up to a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from newllm.data.tokenizers import Tokenizer


class AnswerText:
    """The text of an answer as it is written, in pieces that are never taken back.

    A token may be part of a character, and a text part of a stop string: both are held back until
    it is known what they become.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), trim: bool = True) -> None:
        """For one answer.

        Args:
            tokenizer: of the model.
            stop: the text ends before the first of these (none of them empty).
            trim: leave out white space at the start (word1000 has a blank before each word).
        """
        self.stopped = False
        """Whether a stop string was written; no more is added then."""
        self._tokenizer, self._stop, self._trim = tokenizer, tuple(stop), trim
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._said = bytearray()  # a list of a hundred thousand short strings takes megabytes

    @property
    def text(self) -> str:
        """All pieces so far."""
        return self._said.decode()

    @property
    def text_if_cut(self) -> str:
        """What the text is if nothing follows; unlike :meth:`finish` this changes nothing."""
        return self.text + self._held

    def tokens(self) -> list[int]:
        """What the text is when it is read."""
        return self._tokenizer.encode_batch([self.text])[0]

    def add(self, token: int) -> str:
        """The piece that is certain after one more token; may be empty."""
        return self._add(self._decoder.decode(self._tokenizer.piece(token)))

    def finish(self) -> str:
        """The last piece, when nothing follows."""
        piece = self._add(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return piece + self._say(rest)

    def _add(self, text: str) -> str:
        if self.stopped:
            return ""
        if self._trim and not self._said and not self._held:
            text = text.lstrip()
        if not self._stop:
            return self._say(text)
        text = self._held + text
        found = [start for start in map(text.find, self._stop) if start >= 0]
        if found:
            self.stopped, self._held = True, ""
            return self._say(text[: min(found)])
        certain = len(text) - max(_overlap(text, stop) for stop in self._stop)
        self._held = text[certain:]
        return self._say(text[:certain])

    def _say(self, text: str) -> str:
        self._said += text.encode()
        return text


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text with which a stop string begins."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
