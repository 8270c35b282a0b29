"""Articles in the field of WikiText-2: text, one line to a row, in the form with split tokens."""

from __future__ import annotations

import re

from tools.samples.articles import Article, draw_article
from tools.samples.phrases import Row, distinct_rows, generator

ARTICLES = {"train": 214, "validation": 21}

TOKEN_RULES = (
    (re.compile(r"(?<=\d)([,.])(?=\d)"), r" @\1@ "),
    (re.compile(r"(?<=\w)-(?=\w)"), " @-@ "),
    (re.compile(r"(?<=\w)('s)\b"), r" \1"),
    (re.compile(r"([,.;:?!])(?=\s|$)"), r" \1"),
    (re.compile(r"\("), "( "),
    (re.compile(r"\)"), " )"),
)


def split_tokens(text: str) -> str:
    """The text with blanks between its tokens, as WikiText writes it."""
    for pattern, form in TOKEN_RULES:
        text = pattern.sub(form, text)
    return text


def heading(title: str, depth: int) -> str:
    """A heading of some depth; that of an article has depth one."""
    marks = " ".join("=" * depth)
    return f"{marks} {split_tokens(title)} {marks}"


def lines_of(article: Article) -> list[str]:
    """The lines of an article in their order."""
    lines = [heading(article.title, 1), split_tokens(article.introduction)]
    for title, paragraphs in article.sections:
        lines.append(heading(title, 2))
        lines += [split_tokens(paragraph) for paragraph in paragraphs]
    return lines


def rows(split: str, seed: int) -> list[Row]:
    """The lines of the articles of a split, each article in one piece."""
    rng = generator("wikitext2", split, seed)
    articles = distinct_rows(
        lambda rng: {"lines": lines_of(draw_article(rng))},
        ARTICLES[split],
        split,
        rng,
        title_of,
    )
    return [{"text": line} for article in articles for line in lines_in(article)]


def lines_in(article: Row) -> list[str]:
    """The lines of an article that was drawn as a row."""
    lines = article["lines"]
    assert isinstance(lines, list)
    return lines


def title_of(article: Row) -> str:
    """The first line of an article that was drawn as a row."""
    return lines_in(article)[0]
