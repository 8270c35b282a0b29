"""The two tokenizers: lossless byte-level BPE, and the published closed 1,000-word vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from string import ascii_letters
from typing import Any, Protocol

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from newllm.errors import UserError
from newllm.files import write_text

PAD = 0

_LARGEST_FILE = 2**26
"""Bytes of a tokenizer file at most."""


class Tokenizer(Protocol):
    """What the rest of the program knows of a tokenizer."""

    kind: str
    bos: int
    end: int
    """Ends a document (word1000) or a turn (BPE)."""

    @property
    def vocab_size(self) -> int: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without any special token."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def piece(self, token: int) -> bytes:
        """UTF-8 bytes that one token adds to a running text (part of a character, maybe)."""
        ...

    def special_name(self, token: int) -> str | None:
        """What a special token is called; None for tokens of text."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


def replace_surrogates(text: str) -> tuple[str, int]:
    """Lone surrogates (which are no Unicode text) replaced by U+FFFD, and how many there were."""
    try:
        text.encode()  # at the speed of C, and right for nearly every text
    except UnicodeEncodeError:
        pass
    else:
        return text, 0
    count = sum("\ud800" <= character <= "\udfff" for character in text)
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text), count


class Word1000:
    """The published protocol's tokenizer: lower-cased whitespace words, the 996 most frequent.

    Lossy by design (every other word is UNK), kept exactly because the pass marks are in its units.
    """

    kind = "word1000"
    bos, end, unk = 2, 3, 1
    size = 1000
    _SPECIAL = ("<PAD>", "<UNK>", "<BOS>", "<EOS>")

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._ids = {word: i + len(self._SPECIAL) for i, word in enumerate(self.words)}

    @classmethod
    def train(cls, texts: Iterable[str]) -> Word1000:
        """Count the words of the training texts; ties stand in order of first appearance."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text.lower().split())
        return cls([word for word, _ in counts.most_common(cls.size - len(cls._SPECIAL))])

    @property
    def vocab_size(self) -> int:
        """Always 1,000, also when the training texts have fewer words."""
        return self.size

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self._ids.get(word, self.unk) for word in text.lower().split()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.piece(token) for token in ids).decode().strip()

    def piece(self, token: int) -> bytes:
        if token == self.unk:
            return b" <UNK>"
        index = token - len(self._SPECIAL)
        return b" " + self.words[index].encode() if 0 <= index < len(self.words) else b""

    def special_name(self, token: int) -> str | None:
        return self._SPECIAL[token] if token < len(self._SPECIAL) else None

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "words": self.words}


class BPE:
    """Byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2), lossless for any Unicode text.

    Ids 0..5 are the special tokens; they belong to no text: the string "<|user|>" in a user's
    message is encoded as its characters. Digits stand alone, which helps with arithmetic.
    """

    kind = "bpe"
    special = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
    bos, end = 1, 2
    roles = {"system": 3, "user": 4, "assistant": 5}  # noqa: RUF012 (a constant)
    _SPLIT = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    )

    def __init__(self, definition: str) -> None:
        """`definition` is the JSON of a `tokenizers.Tokenizer` without special tokens."""
        self._definition = definition
        # The library's ids make room for the special ones, so that nothing is left to add to them.
        shifted = json.loads(definition)
        vocabulary = shifted["model"]["vocab"]
        shifted["model"]["vocab"] = {t: i + len(self.special) for t, i in vocabulary.items()}
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(shifted))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BPE:
        """Learn the merges from the contents of the training messages."""
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(cls._SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(cls.special),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator((replace_surrogates(text)[0] for text in texts), trainer)
        return cls(_with_beginnings(tokenizer.to_str(), vocab_size - len(cls.special)))

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size() + len(self.special)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encode_clean([replace_surrogates(text)[0] for text in texts])

    def encode_clean(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_batch` of texts that are known to have no lone surrogates."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.piece(token) for token in ids).decode("utf-8", errors="replace")

    def piece(self, token: int) -> bytes:
        return self._pieces.get(token, b"")

    def special_name(self, token: int) -> str | None:
        return self.special[token] if token < len(self.special) else None

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "definition": self._definition}

    @cached_property
    def _pieces(self) -> dict[int, bytes]:
        byte_of = {character: byte for byte, character in _byte_alphabet()}
        vocabulary = self._tokenizer.get_vocab()
        return {token: bytes(byte_of[c] for c in text) for text, token in vocabulary.items()}


def _with_beginnings(definition: str, size: int) -> str:
    """The definition with " A" .. " z" as tokens, as far as `size` has room for them.

    A vocabulary of few rows has room left, and no word that begins with most of the letters. A
    name like " Kaito" would then begin with a lone space, which in those rows precedes other things
    (numbers, say): models predicted those so surely that they did not repeat a name just given.
    """
    stored = json.loads(definition)
    vocabulary, merges = stored["model"]["vocab"], stored["model"]["merges"]
    (space,) = (character for byte, character in _byte_alphabet() if byte == ord(" "))
    for letter in ascii_letters:
        if space + letter not in vocabulary and len(vocabulary) < size:
            vocabulary[space + letter] = len(vocabulary)
            merges.append([space, letter])
    return tokenizers.Tokenizer.from_str(json.dumps(stored)).to_str()  # as the library writes it


def _byte_alphabet() -> Iterator[tuple[int, str]]:
    """(byte, printable character standing for it) as byte-level BPE pairs them since GPT-2."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    yield from ((byte, chr(byte)) for byte in plain)
    rest = (byte for byte in range(256) if byte not in plain)
    yield from ((byte, chr(256 + i)) for i, byte in enumerate(rest))


def from_dict(stored: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `to_dict` described.

    Raises:
        ValueError: it describes none of ours.
    """
    kind = stored.get("kind") if isinstance(stored, dict) else None
    if kind == "word1000":
        words = stored.get("words")
        most = Word1000.size - 4
        if not isinstance(words, list) or len(words) > most:
            raise ValueError(f"not a list of at most {most} words")
        if not all(isinstance(word, str) and not replace_surrogates(word)[1] for word in words):
            raise ValueError("words that are no text")
        return Word1000(words)
    if kind != "bpe" or not isinstance(stored.get("definition"), str):
        raise ValueError("not the description of a tokenizer")
    _check_definition(stored["definition"])
    try:
        return BPE(stored["definition"])
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise ValueError(f"not the definition of a tokenizer ({error})") from None


def _check_definition(definition: str) -> None:
    """Refuse what the tokenizers library would accept, or die of, and is no byte-level BPE.

    Raises:
        ValueError: with what is wrong.
    """
    try:
        stored = json.loads(definition)
        parts = {name: stored.get(name) for name in _PIPELINE}
        kind, pieces, merges = (stored["model"][name] for name in ("type", "vocab", "merges"))
        numbers = sorted(pieces.values())
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
        whole = all(len(pair) == 2 and {*pair, "".join(pair)} <= pieces.keys() for pair in pairs)
    except (RecursionError, KeyError, TypeError, AttributeError):
        raise ValueError("not the definition of a tokenizer") from None
    alphabet = {character for _, character in _byte_alphabet()}
    if kind != "BPE" or numbers != list(range(len(numbers))) or len(numbers) > 2**16:
        raise ValueError("not a BPE vocabulary numbered from 0")
    if not (whole and alphabet <= pieces.keys() and alphabet >= set("".join(pieces))):
        raise ValueError("its pieces do not stand for bytes")
    if json.dumps(parts, sort_keys=True) != json.dumps(_pipeline(), sort_keys=True):
        raise ValueError("it splits texts in another way")


_PIPELINE = ("normalizer", "pre_tokenizer", "decoder", "added_tokens")


@cache
def _pipeline() -> dict[str, Any]:
    """How all our BPE tokenizers split texts, as the library writes it."""
    written = json.loads(BPE.train([""], 300).to_dict()["definition"])
    return {name: written[name] for name in _PIPELINE}


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer file."""
    write_text(path, json.dumps(tokenizer.to_dict(), ensure_ascii=False))


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer file.

    Raises:
        UserError: missing, or no tokenizer.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{path}: larger than any tokenizer file")
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such tokenizer file; make one with newllm tokenizer train"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UserError:
        raise
    except Exception:  # the tokenizers library raises bare exceptions
        raise UserError(f"{path}: not a tokenizer file of newllm tokenizer train") from None


def fingerprint(tokenizer: Tokenizer) -> str:
    """Sixteen hexadecimal digits that differ whenever the tokenizer does."""
    text = json.dumps(tokenizer.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def answer_marks(tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Ids of the tokens before and behind an answer; None where answers have no mark."""
    return (tokenizer.roles["assistant"], tokenizer.end) if isinstance(tokenizer, BPE) else None


def never_written(tokenizer: Tokenizer) -> list[int]:
    """Ids that are no part of an answer: padding, begin, role tokens, and the unknown word."""
    if isinstance(tokenizer, BPE):
        return [PAD, tokenizer.bos, *tokenizer.roles.values()]
    assert isinstance(tokenizer, Word1000)
    return [PAD, tokenizer.bos, tokenizer.unk]
