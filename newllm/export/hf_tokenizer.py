"""Our BPE as the tokenizer files of Hugging Face transformers, and back; the chat template.

Ids are the same. There the special tokens have names that are looked for in every text, so that a
user could type them. Ours therefore hold U+FDD0, a code point that Unicode reserves for internal
use and that no text has; the chat template replaces it by U+FFFD in whatever is said. So the text
"<|user|>" is its characters, there as here.
"""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from newllm.data.render import ChatRenderer
from newllm.data.tokenizers import BPE
from newllm.errors import UserError
from newllm.export.folder import TEMPLATES

MARK = "\ufdd0"

SPECIAL = tuple(f"{name[:-2]}{MARK}|>" for name in BPE.special)
"""Names of the special tokens, ids 0..5: as ours, with the mark before the last two characters."""


def chat_template(renderer: ChatRenderer) -> str:
    """The template whose text, tokenized, is what the renderer makes, id for id; in one line."""
    names = ("said.jinja", "plain_text.jinja" if renderer.plain_text else "chat.jinja")
    texts = [(TEMPLATES / name).read_text(encoding="utf-8") for name in names]
    return "".join(line.strip() for text in texts for line in text.splitlines())


def to_fast(tokenizer: BPE) -> tokenizers.Tokenizer:
    """The tokenizer with the special tokens inside; by itself it puts <bos> before a text."""
    definition = json.loads(tokenizer.to_dict()["definition"])
    pieces = definition["model"]["vocab"]
    shifted = {piece: number + len(SPECIAL) for piece, number in pieces.items()}
    assert not set(SPECIAL) & set(shifted)
    named = {name: number for number, name in enumerate(SPECIAL)}
    definition["model"]["vocab"] = named | shifted
    fast = tokenizers.Tokenizer.from_str(json.dumps(definition))
    fast.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in SPECIAL])
    bos = SPECIAL[BPE.bos]
    fast.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [(bos, BPE.bos)])
    return fast


def from_fast(text: str) -> BPE:
    """The tokenizer that `to_fast` made the `tokenizer.json` of.

    Raises:
        ValueError: it is no such file.
    """
    definition = json.loads(text)
    try:
        added = {token["content"]: token["id"] for token in definition["added_tokens"]}
        pieces: dict[str, Any] = definition["model"]["vocab"]
        if definition["model"]["type"] != "BPE":
            raise ValueError("its model is no BPE")
        if added != {name: number for number, name in enumerate(SPECIAL)}:
            raise ValueError("its special tokens are not those of New-LLM")
        rest = {piece: number for piece, number in pieces.items() if piece not in added}
        if sorted(rest.values()) != list(range(len(SPECIAL), len(SPECIAL) + len(rest))):
            raise ValueError("its ids have gaps")
    except (KeyError, TypeError, AttributeError):
        raise ValueError("not the file of a tokenizer") from None
    definition["model"]["vocab"] = {p: number - len(SPECIAL) for p, number in rest.items()}
    definition |= {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None}
    try:
        tokenizer = BPE(tokenizers.Tokenizer.from_str(json.dumps(definition)).to_str())
        tokenizer.decode(range(tokenizer.vocab_size))  # every piece stands for bytes
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"not the file of a byte-level tokenizer ({error})") from None
    return tokenizer


def require_bpe(tokenizer: object, path: object) -> BPE:
    """The tokenizer, if it is one that can be taken elsewhere.

    Raises:
        UserError: it is word1000.
    """
    if not isinstance(tokenizer, BPE):
        raise UserError(
            f"{path}: the word-1000 vocabulary is lossy and exists for its pass marks; "
            "only models with --tokenizer bpe can be taken elsewhere"
        )
    return tokenizer
