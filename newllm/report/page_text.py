"""The words of the progress page, in English and Japanese.

English texts are written where they are used; `templates/words.json` has what they are in Japanese.
(A data set's title and advice stand in its own file, in both.) A text without its Japanese is an
error: a test draws every part of the page in both languages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from newllm.datasets import DATASETS
from newllm.datasets.base import Dataset
from newllm.report.charts import TEMPLATES
from newllm.results.climb import AGAIN, GO_ON
from newllm.results.verdict import REAL_ROWS

Language = Literal["en", "ja"]

ADVICE_JA = {
    GO_ON: "段階学習を続ける",
    AGAIN: "段階学習を二倍の長さでやり直す",
    REAL_ROWS: "本物の行で学習する（Hub から。手元のコピーなら --data PATH）",
} | {
    advice.text: advice.text_ja
    for dataset in DATASETS.values()
    for steps in dataset.advice.values()
    for advice in steps
}

_WORDS = json.loads((TEMPLATES / "words.json").read_text(encoding="utf-8"))
_ENGLISH: dict[str, str] = _WORDS["en"]
"""Names that are not yet a text, such as `Verdict.reason` (why a level is cleared or not)."""
JAPANESE: dict[str, str] = _WORDS["ja"]


@dataclass(frozen=True)
class Translator:
    """Texts in one language: `t("epoch {n}", n=3)`."""

    language: Language

    def __call__(self, text: str, **values: object) -> str:
        """The text in this language, with its values filled in.

        Raises:
            KeyError: it has no Japanese.
        """
        words = JAPANESE[text] if self.language == "ja" else _ENGLISH.get(text, text)
        return words.format(**values) if values else words

    def level_name(self, level: Dataset) -> str:
        """`Dolly-15k`."""
        name = self._title(level)[0]
        return name[0].upper() + name[1:]

    def level_about(self, level: Dataset) -> str:
        """`single questions and answers`."""
        return self._title(level)[1]

    def _title(self, level: Dataset) -> tuple[str, str]:
        title = level.title_ja if self.language == "ja" else level.title
        name, _, about = title.partition(": ")
        return name, about

    def advice(self, text: str) -> str:
        """A step of the advice; one that another version wrote stays as it is."""
        if self.language == "ja":
            return ADVICE_JA.get(text, text)
        return text[0].upper() + text[1:]
