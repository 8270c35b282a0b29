"""The n-gram baseline against brute force and against a slow dictionary twin."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm.data import ngrams
from newllm.data.ngrams import FALLBACK_DISCOUNTS
from newllm.evaluate.ngram import NgramTable

PAD, BOS = 0, 1
VOCAB = 7
NEVER = (PAD, BOS)
WORDS = tuple(range(2, VOCAB))

Documents = list[list[int]]


def pack(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *(len(d) for d in documents)]).astype(np.int64)
    return np.array([t for d in documents for t in d], dtype=np.int64), offsets


def zipf_documents(seed: int, count: int, vocab: int = VOCAB) -> Documents:
    """Documents of few frequent and many rare words, so that counts of 1 to 4 all occur."""
    rng = np.random.default_rng(seed)
    words = np.arange(2, vocab)
    p = np.arange(1, len(words) + 1) ** -1.5
    p /= p.sum()
    return [[BOS, *rng.choice(words, rng.integers(0, 12), p=p).tolist()] for _ in range(count)]


class Twin:
    """The same model, told n-gram by n-gram with dictionaries."""

    def __init__(self, documents: Documents, order: int, vocab: int, never: tuple[int, ...]):
        self.predictable = [t for t in range(vocab) if t not in never]
        self.counts: list[dict[tuple[int, ...], int]] = []
        for k in range(1, order + 1):
            occurrences: Counter[tuple[int, ...]] = Counter()
            left: dict[tuple[int, ...], set[int]] = defaultdict(set)
            for d in documents:
                for i in range(max(1, k - 1), len(d)):
                    if d[i] in never:
                        continue
                    gram = tuple(d[i - k + 1 : i + 1])
                    if k == order or i == k - 1:  # top order, or at the document's start
                        occurrences[gram] += 1
                    else:
                        left[gram].add(d[i - k])
            grams = occurrences.keys() | left.keys()
            self.counts.append({g: occurrences[g] + len(left.get(g, ())) for g in grams})
        self.discounts = [self.estimate(c) for c in self.counts]

    @staticmethod
    def estimate(counts: dict[tuple[int, ...], int]) -> tuple[float, float, float]:
        n = Counter(counts.values())
        if all(n[c] for c in (1, 2, 3, 4)):
            y = n[1] / (n[1] + 2 * n[2])
            d1, d2, d3 = (c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3))
            if 0 < d1 <= 1 and 0 < d2 <= 2 and 0 < d3 <= 3:
                return d1, d2, d3
        return FALLBACK_DISCOUNTS

    def p(self, token: int, context: tuple[int, ...]) -> float:
        k = len(context)
        below = (1 / len(self.predictable)) if k == 0 else self.p(token, context[1:])
        counts, discounts = self.counts[k], self.discounts[k]
        follow = {g[-1]: c for g, c in counts.items() if g[:-1] == context}
        total = sum(follow.values())
        if total == 0:
            return below
        passed_on = sum(discounts[min(c, 3) - 1] for c in follow.values()) / total
        own = follow.get(token, 0)
        return (own - (discounts[min(own, 3) - 1] if own else 0)) / total + passed_on * below


def twin_nats(twin: Twin, documents: Documents, order: int) -> list[float]:
    return [
        -math.log(twin.p(d[i], tuple(d[max(0, i - order + 1) : i]))) if i else 0.0
        for d in documents
        for i in range(len(d))
    ]


def distribution(table: NgramTable, context: list[int]) -> np.ndarray:
    """p(. | context) over the predictable words, for a context that opens a document.  [W]"""
    tokens, offsets = pack([[*context, w] for w in WORDS])
    return np.exp(-table.nats(tokens, offsets)[offsets[1:] - 1])


bodies = st.lists(st.sampled_from(WORDS), max_size=8)
documents_st = st.lists(st.one_of(st.just([]), bodies.map(lambda b: [BOS, *b])), max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(documents_st, st.integers(1, 5), bodies)
def test_sums_to_one_for_seen_and_unseen_contexts(
    documents: Documents, order: int, body: list[int]
) -> None:
    table = NgramTable.fit(*pack(documents), order, VOCAB, NEVER)
    seen = [d[:i] for d in documents[:3] for i in range(1, len(d) + 1)]
    for context in [[BOS, *body], [BOS], *seen]:
        p = distribution(table, context)
        assert p.sum() == pytest.approx(1, abs=1e-12)
        assert (p > 0).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(documents_st, documents_st, st.integers(1, 4))
def test_equals_the_twin_on_arbitrary_corpora(
    fitted: Documents, scored: Documents, order: int
) -> None:
    got = NgramTable.fit(*pack(fitted), order, VOCAB, NEVER).nats(*pack(scored))
    want = twin_nats(Twin(fitted, order, VOCAB, NEVER), scored, order)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_the_twin_with_estimated_discounts(order: int) -> None:
    vocab = 60
    fitted, scored = zipf_documents(0, 300, vocab), zipf_documents(1, 10, vocab)
    twin = Twin(fitted, order, vocab, NEVER)
    assert FALLBACK_DISCOUNTS not in twin.discounts  # or this would test the fallback again
    got = NgramTable.fit(*pack(fitted), order, vocab, NEVER).nats(*pack(scored))
    np.testing.assert_allclose(got, twin_nats(twin, scored, order), rtol=1e-10)


def test_a_never_predicted_id_inside_a_document_is_context_only() -> None:
    fitted = [[BOS, 2, 3, BOS, 2, 4, PAD, 2, 3], *zipf_documents(2, 20)]
    table = NgramTable.fit(*pack(fitted), 3, VOCAB, NEVER)
    twin = Twin(fitted, 3, VOCAB, NEVER)
    for context in ([BOS], [BOS, 2, PAD], [BOS, 3, BOS], [BOS, PAD, 2]):
        want = [twin.p(w, tuple(context[-2:])) for w in WORDS]
        np.testing.assert_allclose(distribution(table, context), want, rtol=1e-10)
        assert sum(want) == pytest.approx(1)
    assert table.nats(*pack([[BOS, PAD]]))[1] == np.inf


def test_a_case_worked_by_hand() -> None:
    fitted = [[BOS, 2, 3], [BOS, 2, 4]]
    # Distinct bigrams (BOS 2), (2 3), (2 4): one left neighbour each, three in all, discount 0.5.
    p3 = 0.5 / 3 + 0.5 / 5
    # BOS is followed by 2 twice (discount 1.0), 2 by two words once each (discount 0.5).
    p2_after_bos = 1 / 2 + (1 / 2) * p3
    p3_after_2 = 0.5 / 2 + (1 / 2) * p3
    bigram = NgramTable.fit(*pack(fitted), 2, VOCAB, NEVER).nats(*pack([[BOS, 2, 3]]))
    np.testing.assert_allclose(np.exp(-bigram), [1, p2_after_bos, p3_after_2])
    # At order 3 the document's opening still uses the plain counts after BOS.
    trigram = NgramTable.fit(*pack(fitted), 3, VOCAB, NEVER).nats(*pack([[BOS, 2, 3]]))
    np.testing.assert_allclose(np.exp(-trigram), [1, p2_after_bos, 0.5 / 2 + p3_after_2 / 2])


def test_uniform_corpus_scores_as_uniform() -> None:
    documents = [[BOS, a, b] for a in WORDS for b in WORDS]
    for order in (1, 2, 3):
        nats = NgramTable.fit(*pack(documents), order, VOCAB, NEVER).nats(*pack(documents))
        np.testing.assert_allclose(nats.reshape(-1, 3)[:, 0], 0)
        np.testing.assert_allclose(nats.reshape(-1, 3)[:, 1], math.log(len(WORDS)))
    nats = NgramTable.fit(*pack([]), 3, VOCAB, NEVER).nats(*pack([[BOS, 2]]))
    np.testing.assert_allclose(nats, [0, math.log(len(WORDS))])


def test_contexts_stop_at_document_boundaries() -> None:
    fitted = zipf_documents(3, 30)
    table = NgramTable.fit(*pack(fitted), 4, VOCAB, NEVER)
    together = table.nats(*pack(fitted))
    apart = np.concatenate([table.nats(*pack([d])) for d in fitted])
    np.testing.assert_array_equal(together, apart)
    # Fitting does not see across a boundary either: the documents' order changes nothing.
    other = NgramTable.fit(*pack(fitted[::-1]), 4, VOCAB, NEVER)
    np.testing.assert_allclose(other.nats(*pack(fitted)), together, rtol=1e-12)


def test_documents_of_length_zero_and_one_change_nothing() -> None:
    fitted = zipf_documents(4, 20)
    padded = [x for d in fitted for x in ([], d, [BOS], [])]
    plain = NgramTable.fit(*pack(fitted), 3, VOCAB, NEVER)
    other = NgramTable.fit(*pack(padded), 3, VOCAB, NEVER)
    np.testing.assert_array_equal(plain.nats(*pack(fitted)), other.nats(*pack(fitted)))
    scored = other.nats(*pack([[], [BOS], fitted[0], []]))
    np.testing.assert_array_equal(scored, [0.0, *plain.nats(*pack([fitted[0]]))])
    for nothing in ([], [[]], [[], []]):
        assert plain.nats(*pack(nothing)).shape == (0,)
        assert NgramTable.fit(*pack(nothing), 2, VOCAB, NEVER).order == 2


def test_narrow_types_and_memory_maps_score_the_same(tmp_path: Path) -> None:
    vocab = 5000  # rank * vocab does not fit the ids' own 16 bits
    tokens, offsets = pack([[BOS, *(4000 + t for t in d[1:])] for d in zipf_documents(5, 50)])
    tokens.astype(np.uint16).tofile(tmp_path / "ids.bin")
    mapped = np.memmap(tmp_path / "ids.bin", dtype=np.uint16, mode="r")
    wide = NgramTable.fit(tokens, offsets, 4, vocab, NEVER).nats(tokens, offsets)
    narrow = NgramTable.fit(mapped, offsets.astype(np.uint64), 4, vocab, NEVER)
    np.testing.assert_array_equal(narrow.nats(mapped, offsets), wide)


def test_fitting_twice_gives_the_same_numbers_and_leaves_the_input_alone() -> None:
    tokens, offsets = pack(zipf_documents(6, 30))
    before = tokens.copy()
    first = NgramTable.fit(tokens, offsets, 5, VOCAB, NEVER).nats(tokens, offsets)
    again = NgramTable.fit(tokens, offsets, 5, VOCAB, NEVER).nats(tokens, offsets)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(tokens, before)


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, offsets = pack([[BOS, 2, 3]])
    with pytest.raises(ValueError, match="order"):
        NgramTable.fit(tokens, offsets, 0, VOCAB)
    with pytest.raises(ValueError, match="token ids"):
        NgramTable.fit(tokens, offsets, 2, 3)
    with pytest.raises(ValueError, match="offsets"):
        NgramTable.fit(tokens, np.array([0, 2]), 2, VOCAB)
    with pytest.raises(ValueError, match="offsets"):
        NgramTable.fit(tokens, np.array([0, 2, 1, 3], dtype=np.uint64), 2, VOCAB)
    with pytest.raises(ValueError, match="never_predicted"):
        NgramTable.fit(tokens, offsets, 2, VOCAB, (-1,))
    with pytest.raises(ValueError, match="left to predict"):
        NgramTable.fit(tokens, offsets, 2, VOCAB, range(VOCAB))
    monkeypatch.setattr(ngrams, "_MAX_KEY", VOCAB)
    with pytest.raises(OverflowError):
        NgramTable.fit(tokens, offsets, 2, VOCAB)
