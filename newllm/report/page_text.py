"""The words of the progress page, in English and Japanese.

English texts are written where they are used; here stands what they are in Japanese. (A data set's
title and advice stand in its own file, in both.) A text without its Japanese is an error: a test
draws every part of the page in both languages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from newllm.datasets import DATASETS
from newllm.datasets.base import Dataset
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

JAPANESE = {
    "New-LLM: where you stand": "New-LLM：いまどこにいるか",
    "Skip to the levels": "レベルへ移動",
    "folder": "フォルダ",
    "Dark": "ダーク",
    "The five levels": "5 つのレベル",
    "Level {n}": "レベル {n}",
    "cleared": "合格",
    "trained, not cleared": "学習済み・不合格",
    "trained, not judged": "学習済み・判定なし",
    "training": "学習中",
    "training, epoch {n} of {all}": "学習中（{all} エポック中 {n}）",
    "ready": "始められます",
    "planned": "これから",
    "What to do next": "次にすること",
    "Go on with {name}": "{name} の学習を続ける",
    "Train {name}": "{name} を学習する",
    "Levels to come": "これからのレベル",
    "The climb: what earlier levels remember": "段階学習：前のレベルをどれだけ覚えているか",
    "One model, level after level. Each row is the model after a level, each column the validation "
    "rows of a level, in bits per byte: lower is better. Framed: right after it was learned; the "
    "small number is the change since then.": (
        "一つのモデルがレベルを順に学習します。行は各レベルを終えた時点のモデル、列は各レベルの検証行で、"
        "数値はバイトあたりビット数です（小さいほど良い）。枠付きは学習直後の値、小さな数字はそこからの変化です。"
    ),
    "Forgetting matrix": "忘却の行列",
    "after {name}": "{name} の後",
    "better than when learned": "学習直後より良い",
    "worse: forgotten": "悪化（忘れた）",
    "Backward transfer {value} bits per byte: earlier levels got better.": (
        "後方転移 {value} ビット/バイト：前のレベルは学習直後より良くなりました。"
    ),
    "Backward transfer {value} bits per byte: earlier levels were partly forgotten.": (
        "後方転移 {value} ビット/バイト：前のレベルの一部が忘れられました。"
    ),
    "Stages of the climb": "段階学習の各段階",
    "data set": "データセット",
    "run": "実行",
    "grown": "拡大",
    "minutes": "分",
    "skills": "技能",
    "word1000": "word-1000（公開された基準の単位）",
    "bpe": "バイトレベル BPE（会話用）",
    "accuracy": "正解率",
    "bits/byte": "ビット/バイト",
    "{value} bits/byte": "{value} ビット/バイト",
    "bits/byte, assistant": "ビット/バイト（応答のみ）",
    "parameters": "パラメータ",
    "unknown words": "未知語の割合",
    "mark": "基準",
    "margin": "余裕",
    "{n}-gram table": "{n}-gram の表",
    "epoch": "エポック",
    "epoch {n}": "エポック {n}",
    "Validation after each epoch": "エポックごとの検証結果",
    "Validation {measure} by epoch; best {best} after epoch {n}.": (
        "エポックごとの検証値（{measure}）。最良はエポック {n} の {best}。"
    ),
    "The numbers of the curve": "グラフの数値",
    "Advice": "助言",
    "Go on with it": "続きから学習する",
    "Talk to it": "会話してみる",
    "From rows to trained tokens": "行から学習トークンまで",
    "rows": "行",
    "documents": "文書",
    "tokens": "トークン",
    "trained tokens": "学習したトークン",
    "{malformed} malformed rows left out, {left_out} not used by the protocol, {cut} tokens cut": (
        "壊れた行 {malformed} 件を除外、プロトコルで使わない行 {left_out} 件、"
        "切り捨て {cut} トークン"
    ),
    "What it says: the same questions, epoch after epoch": (
        "モデルの答え：同じ問いに、エポックごとに"
    ),
    "Settings, data, machine, versions": "設定、データ、マシン、バージョン",
    "Settings": "設定",
    "Training rows": "学習行",
    "Validation rows": "検証行",
    "Data": "データ",
    "Machine": "マシン",
    "Versions": "バージョン",
    "Other runs:": "ほかの実行：",
    "Every number here is read from the files of the runs. Perplexity (PPL) and its marks count "
    "words of the word-1000 protocol; bits per byte compare models that people talk to. Lower is "
    "better for both.": (
        "ここにある数値はすべて、実行が残したファイルから読んだものです。"
        "パープレキシティ（PPL）とその基準は "
        "word-1000 プロトコルの単語を数えます。会話に使うモデルはバイトあたりビット数で比べます。"
        "どちらも小さいほど良い値です。"
    ),
    "excellent": "優秀",
    "needs work": "要改善",
    "below the mark": "PPL {ppl} は基準 {mark} を下回り、合格です（余裕 {margin}、評価：{band}）。",
    "below a guessed mark": (
        "PPL {ppl} は基準 {mark} を下回り、合格です（余裕 {margin}、評価：{band}）。"
        "ただしこの基準は推測で、数を数えただけの表でも超えます。バイトあたりビット数を見てください。"
    ),
    "not below the mark": "PPL {ppl} は基準 {mark} に届いていません（差 {margin}、評価：{band}）。",
    "no mark": "このデータセットに合格基準はありません。",
    "built-in rows": "内蔵の行で学習したので、基準（PPL {mark} 未満）では判定しません。",
    "vocabulary of another run": (
        "語彙が --from の実行から来ているので、基準（PPL {mark} 未満）では判定しません。"
    ),
    "another unit": (
        "公開された基準（PPL {mark} 未満）は word-1000 の単位です。判定するには "
        "--tokenizer word1000 で学習してください。"
    ),
    "A {n}-gram table, which only counts, reaches {value} on the same rows: the model is ahead.": (
        "数を数えるだけの {n}-gram の表は、同じ行で {value}に達します。"
        "モデルはこれを上回っています。"
    ),
    "A {n}-gram table, which only counts, reaches {value} on the same rows: the model is behind.": (
        "数を数えるだけの {n}-gram の表は、同じ行で {value}に達します。"
        "モデルはまだこれに及びません。"
    ),
    "In bits per byte: cleared, below {mark} ({how}).": (
        "バイトあたりビット数では合格：{mark} を下回りました（{how}）。"
    ),
    "In bits per byte: not cleared, not below {mark} ({how}).": (
        "バイトあたりビット数では不合格：{mark} を下回っていません（{how}）。"
    ),
    "It is still being trained, or was stopped; the command goes on where it stands.": (
        "学習中か、途中で止まっています。コマンドで続きから再開できます。"
    ),
}

REASONS_EN = {
    "below the mark": "Cleared: PPL {ppl} is below the mark of {mark} (margin {margin}, {band}).",
    "below a guessed mark": (
        "Cleared: PPL {ppl} is below the mark of {mark} (margin {margin}, {band}). But this mark "
        "was a guess, which a table of counts passes: see bits per byte."
    ),
    "not below the mark": (
        "Not cleared: PPL {ppl} is not below the mark of {mark} (margin {margin}, {band})."
    ),
    "no mark": "This data set has no pass mark.",
    "built-in rows": "Trained on built-in rows, so the mark (PPL below {mark}) is not judged.",
    "vocabulary of another run": (
        "The vocabulary came with --from, so the mark (PPL below {mark}) is not judged."
    ),
    "another unit": (
        "The published mark (PPL below {mark}) is in word-1000 units; to be judged by it, train "
        "with --tokenizer word1000."
    ),
}
"""Why a level is (not) cleared: `Verdict.reason` as a sentence."""

PROTOCOLS_EN = {
    "word1000": "word-1000 (the units of the published marks)",
    "bpe": "byte-level BPE (models to talk to)",
}

_ENGLISH = REASONS_EN | PROTOCOLS_EN


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
