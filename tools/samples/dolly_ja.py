"""Japanese instructions with answers in the fields of the Japanese Dolly.

The fields are instruction, input, output and category; `input` holds the text that a question is
about. All rows are in the polite form.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tools.samples.facts_ja import ADVICE, HAIKU, fact_questions
from tools.samples.passages_ja import draw_passage
from tools.samples.phrases import Row, belongs_to, distinct_rows, generator
from tools.samples.words_ja import (
    ANIMALS,
    GROUPS,
    JOBS,
    joined,
    kanji_number,
    people,
    person,
    two_groups,
)

VALIDATION_SHARE = 20

THINGS = (
    ("りんご", "個"),
    ("みかん", "個"),
    ("卵", "個"),
    ("おにぎり", "個"),
    ("鉛筆", "本"),
    ("花", "本"),
    ("本", "冊"),
    ("ノート", "冊"),
    ("切手", "枚"),
    ("色紙", "枚"),
)

NEWS = {
    "良い": "試験に合格しました;なくした鍵を見つけました;絵のコンクールで一位になりました;"
    "新しい友だちができました;古い友だちから手紙をもらいました;病気が治りました",
    "悪い": "大切な鍵をなくしました;自転車で転びました;最後の電車に乗り遅れました;"
    "財布を盗まれました;足の骨を折りました;重い病気にかかりました",
}

OPINIONS = {
    "肯定的": "とてもおもしろかったです;期待以上でした;すばらしかったです;また楽しみたいです;"
    "友だちにも勧めたいです",
    "否定的": "とてもつまらなかったです;期待外れでした;ひどかったです;がっかりしました;"
    "時間の無駄でした",
}
JUDGED = ("映画", "本", "旅行", "音楽会", "ゲーム", "劇", "番組", "授業")

IDEAS = {
    "雨の日": "本を読んだり;パンを焼いたり;手紙を書いたり;音楽を聴いたり;部屋を片付けたり",
    "晴れた日": "海で泳いだり;公園を散歩したり;自転車に乗ったり;花を植えたり;布団を干したり",
    "寒い冬の日": "雪だるまを作ったり;お茶を飲んだり;鍋料理を作ったり;温泉に入ったり;本を読んだり",
    "誕生日": "ケーキを焼いたり;花を贈ったり;友だちを招いたり;歌を歌ったり;写真を撮ったり",
    "静かな夜": "星を眺めたり;日記を書いたり;音楽を聴いたり;本を読んだり;お茶を飲んだり",
    "海へ行く日": "貝を拾ったり;砂の城を作ったり;泳いだり;釣りをしたり;夕日を眺めたり",
    "庭仕事の日": "花に水をやったり;草を抜いたり;種をまいたり;鳥を眺めたり;落ち葉を掃いたり",
    "電車の旅の日": "景色を眺めたり;本を読んだり;駅弁を食べたり;昼寝をしたり;手紙を書いたり",
}

POEMS = {
    "海": "海は石に昔の話を語ります",
    "雨": "雨は屋根の上で静かに歌います",
    "月": "月は夜道を歩く人の明かりです",
    "風": "風は遠い国の歌を運びます",
    "雪": "雪は山に白い服を着せます",
    "春": "春は温かい手で花を開きます",
    "夜": "夜は星でいっぱいの家です",
    "川": "川は眠ることのない道です",
    "木": "木は小さな鳥たちの高い家です",
    "友だち": "友だちは冬の日の温かい火です",
    "音楽": "音楽は海を渡る小さな舟です",
    "朝": "朝は新しい一日からの手紙です",
}

GIFTS = (
    "お菓子",
    "花束",
    "お茶",
    "本",
    "写真",
    "絵",
    "果物",
    "ケーキ",
    "傘",
    "時計",
    "人形",
    "着物",
)
NATURES = ("小さな", "年を取った", "勇ましい", "静かな", "賢い", "寂しがり屋の", "陽気な", "白い")
WISHES = (
    "海を見たいと思っていました",
    "夜になると眠れませんでした",
    "草の中で金の指輪を見つけました",
    "長い旅に出ることを夢見ていました",
    "森の奥で一人で暮らしていました",
    "雨の中で歌うのが大好きでした",
)
SCENES = ("公園", "駅", "海岸", "森", "学校", "川", "庭", "山道")


def row(instruction: str, output: str, category: str, text: str = "") -> Row:
    """A row in the fields of the Japanese Dolly."""
    return {"instruction": instruction, "input": text, "output": output, "category": category}


def row_key(row: Row) -> str:
    """What makes a row different from others: the task without its answer."""
    return f"{row['instruction']}\n{row['input']}"


# -- general questions ----------------------------------------------------------------------------


def calculation(rng: Random) -> tuple[str, str]:
    """A sum, a difference or a product of small numbers, in digits or in kanji."""
    sign = rng.choice(("足す", "足す", "引く", "掛ける"))
    if sign == "足す":
        first, second = rng.randint(1, 8), rng.randint(1, 8)
        result = first + second
    elif sign == "引く":
        first = rng.randint(2, 12)
        second = rng.randint(1, first - 1)
        result = first - second
    else:
        first, second = rng.randint(1, 5), rng.randint(1, 5)
        result = first * second
    shown = kanji_number if rng.random() < 0.25 else str
    term = f"{shown(first)}{sign}{shown(second)}"
    asked = rng.choice(
        (
            "{}はいくつですか？",
            "{}の答えは何ですか？",
            "{}を計算してください。",
            "{}の答えを教えてください。",
        )
    )
    return asked.format(term), f"{term}は{shown(result)}です。"


def word_problem(rng: Random) -> tuple[str, str]:
    """A person has some things and gets more or gives some away."""
    name, (thing, counter) = person(rng), rng.choice(THINGS)
    if rng.random() < 0.5:
        first, second = rng.randint(1, 6), rng.randint(1, 6)
        change = rng.choice(("買う", "もらう", "見つける"))
        question = f"あと{second}{counter}{change}と、全部で何{counter}になりますか？"
        return (
            f"{name}は{thing}を{first}{counter}持っています。{question}",
            f"全部で{first + second}{counter}になります。",
        )
    first = rng.randint(3, 9)
    second = rng.randint(1, first - 1)
    change = rng.choice(("友だちにあげる", "なくす", "妹にあげる"))
    question = f"{second}{counter}{change}と、残りは何{counter}ですか？"
    return (
        f"{name}は{thing}を{first}{counter}持っています。{question}",
        f"残りは{first - second}{counter}です。",
    )


def comparison(rng: Random) -> tuple[str, str]:
    """The greater or the smaller of two numbers."""
    shown = rng.sample(range(1, 31), 2)
    quality, choose = rng.choice((("大きい", max), ("小さい", min)))
    question = f"{shown[0]}と{shown[1]}では、どちらが{quality}ですか？"
    return question, f"{choose(shown)}のほうが{quality}です。"


def general_question(rng: Random) -> Row:
    """A small calculation of any kind."""
    draw = rng.choices((calculation, word_problem, comparison), (9, 4, 1))[0]
    return row(*draw(rng), "general_qa")


def greeting(rng: Random) -> Row:
    """A few friendly words at the beginning or the end of a talk."""
    name = person(rng)
    plain = name.removesuffix("さん")
    said, answer = rng.choice(
        (
            (f"こんにちは、{plain}です。", f"こんにちは、{name}。何をお手伝いしましょうか？"),
            (f"はじめまして。{plain}と申します。", f"はじめまして、{name}。よろしくお願いします。"),
            (f"おはようございます。{plain}です。", f"おはようございます、{name}。よい一日を。"),
            (f"こんばんは、{plain}です。", f"こんばんは、{name}。今日はどんな一日でしたか？"),
            (f"{plain}です。お元気ですか？", f"はい、元気です、{name}。ありがとうございます。"),
            (f"{plain}です。ありがとうございました。", f"どういたしまして、{name}。"),
            (f"{plain}です。そろそろ失礼します。", f"さようなら、{name}。またお話ししましょう。"),
            (f"私の名前は{plain}です。私の名前は何ですか？", f"あなたの名前は{name}です。"),
            (f"私は{plain}です。私の名前を言ってください。", f"あなたの名前は{name}です。"),
        )
    )
    return row(said, answer, "general_qa")


def own_job(rng: Random) -> Row:
    """What somebody said of himself, asked back."""
    plain, job = person(rng).removesuffix("さん"), rng.choice(JOBS.words)
    asked, answer = rng.choice(
        (
            ("私の仕事は何ですか？", f"あなたの仕事は{job}です。"),
            ("私の名前は何ですか？", f"あなたの名前は{plain}さんです。"),
        )
    )
    return row(f"私は{job}の{plain}です。{asked}", answer, "general_qa")


def advice(rng: Random) -> Row:
    """What to do in an everyday situation."""
    return row(*rng.choice(tuple(ADVICE.questions())), "general_qa")


# -- classification -------------------------------------------------------------------------------


def kind_of_word(rng: Random) -> Row:
    """One word and its kind, asked freely or as a choice between two kinds."""
    right, wrong = two_groups(rng)
    word = rng.choice(right.words)
    kinds = [right.kind, wrong.kind]
    rng.shuffle(kinds)
    question, answer = rng.choice(
        (
            (f"{word}は{kinds[0]}ですか、それとも{kinds[1]}ですか？", ""),
            (f"{word}は{kinds[0]}と{kinds[1]}のどちらですか？", ""),
            (f"「{word}」を{kinds[0]}か{kinds[1]}に分類してください。", ""),
            (f"「{word}」は{kinds[0]}と{kinds[1]}のどちらに入りますか？", ""),
            (f"{word}は{right.kind}ですか？", "はい、"),
            (f"{word}は{wrong.kind}ですか？", "いいえ、"),
        )
    )
    return row(question, f"{answer}{word}は{right.kind}です。", "classification")


def sorting(rng: Random) -> Row:
    """Words of two kinds that are to be put in order."""
    first, second = two_groups(rng)
    mine, others = rng.sample(first.words, 2), rng.sample(second.words, 2)
    words = [*mine, *others]
    rng.shuffle(words)
    mine.sort(key=words.index)
    others.sort(key=words.index)
    asked = rng.choice(
        (
            "次の言葉を{}と{}に分けてください。",
            "次の言葉を{}と{}に分類してください。",
            "次の言葉は{}と{}のどちらですか？",
        )
    ).format(first.kind, second.kind)
    return row(
        f"{asked}{'、'.join(words)}",
        f"{first.kind}は{joined(mine)}です。{second.kind}は{joined(others)}です。",
        "classification",
    )


def odd_one_out(rng: Random) -> Row:
    """Three words of one kind and one of another kind."""
    common, rare = two_groups(rng)
    odd = rng.choice(rare.words)
    words = [*rng.sample(common.words, 3), odd]
    rng.shuffle(words)
    asked = rng.choice(
        (
            "次の言葉の中で、仲間外れはどれですか？",
            "一つだけ種類の違う言葉はどれですか？",
            "仲間外れの言葉を選んでください。",
        )
    )
    return row(
        f"{asked}{'、'.join(words)}",
        f"仲間外れは{odd}です。ほかの言葉は{common.kind}だからです。",
        "classification",
    )


def news(rng: Random) -> Row:
    """Whether something that happened to a person is good or bad news."""
    quality = rng.choice(tuple(NEWS))
    event = f"{person(rng)}は{rng.choice(NEWS[quality].split(';'))}。"
    asked = rng.choice(
        (
            "次の文は良い知らせですか、悪い知らせですか？",
            "次の知らせが良い知らせか悪い知らせか答えてください。",
        )
    )
    return row(f"{asked}{event}", f"これは{quality}知らせです。", "classification")


def opinion(rng: Random) -> Row:
    """Whether a remark is positive or negative."""
    quality = rng.choice(tuple(OPINIONS))
    said = f"{rng.choice(JUDGED)}の感想です。{rng.choice(OPINIONS[quality].split(';'))}。"
    asked = rng.choice(
        (
            "次の感想は肯定的ですか、否定的ですか？",
            "次の感想を肯定的か否定的かに分類してください。",
            "次の文が肯定的か否定的か答えてください。",
        )
    )
    return row(f"{asked}{said}", f"この感想は{quality}です。", "classification")


# -- texts ----------------------------------------------------------------------------------------


def closed_question(rng: Random) -> Row:
    """A question whose answer is in the text."""
    passage = draw_passage(rng)
    question, answer = rng.choice(passage.questions)
    return row(question, answer, "closed_qa", passage.text)


def extraction(rng: Random) -> Row:
    """The names, days or numbers that a text contains."""
    passage = draw_passage(rng)
    kind, items = rng.choice(passage.items)
    asked = rng.choice(
        (
            "文章に出てくる{}をすべて挙げてください。",
            "次の文章から{}を抜き出してください。",
            "文章の中の{}を書き出してください。",
            "文章に出てくる{}は何ですか？",
        )
    ).format(kind)
    answer = f"文章に出てくる{kind}は{joined(items)}です。"
    return row(asked, answer, "information_extraction", passage.text)


def summary(rng: Random) -> Row:
    """A text in short."""
    passage = draw_passage(rng)
    asked = rng.choice(
        (
            "次の文章を要約してください。",
            "この文章を短くまとめてください。",
            "文章の内容を手短に教えてください。",
            "次の文章の要点をまとめてください。",
        )
    )
    return row(asked, passage.summary, "summarization", passage.text)


# -- ideas ----------------------------------------------------------------------------------------


def listing(rng: Random) -> Row:
    """A few words of one kind."""
    kinds = rng.choice([group for group in GROUPS if len(group.words) > 5])
    count = rng.randint(2, 5)
    number = f"{rng.choice((str, kanji_number))(count)}つ"
    asked = rng.choice(
        (
            "{kind}を{number}挙げてください。",
            "{kind}の例を{number}挙げてください。",
            "{kind}を{number}教えてください。",
            "{kind}の名前を{number}言ってください。",
            "{kind}を{number}書いてください。",
        )
    ).format(kind=kinds.kind, number=number)
    words = "、".join(rng.sample(kinds.words, count))
    exist = "います" if kinds.family == "生き物" else "あります"  # of what lives and what does not
    return row(asked, f"{kinds.kind}には、{words}が{exist}。", "brainstorming")


def ideas(rng: Random) -> Row:
    """Things that a person could do."""
    occasion, name = rng.choice(tuple(IDEAS)), person(rng)
    first, second, third = rng.sample(IDEAS[occasion].split(";"), 3)
    asked = rng.choice(
        (
            f"{occasion}にできることを{name}に提案してください。",
            f"{name}は{occasion}に何をするといいですか？",
            f"{occasion}の過ごし方を{name}に教えてください。",
        )
    )
    answer = f"{name}、{occasion}には{first}、{second}、{third}するのがおすすめです。"
    return row(asked, answer, "brainstorming")


# -- creative writing -----------------------------------------------------------------------------


def haiku(rng: Random) -> Row:
    """A haiku on a season word."""
    return row(*rng.choice(tuple(HAIKU.questions())), "creative_writing")


def poetic_line(rng: Random) -> Row:
    """A line about something, for somebody."""
    topic, name = rng.choice(tuple(POEMS)), person(rng)
    asked = rng.choice(
        (
            f"{name}のために{topic}の短い詩を書いてください。",
            f"{topic}についての一行の詩を{name}に贈ってください。",
        )
    )
    return row(asked, f"{name}へ。{POEMS[topic]}。", "creative_writing")


def thanks(rng: Random) -> Row:
    """A short letter of thanks for a present."""
    name, gift = person(rng), rng.choice(GIFTS)
    asked = rng.choice(
        (
            f"{name}に{gift}のお礼の手紙を書いてください。",
            f"{gift}をくれた{name}へのお礼の文を書いてください。",
        )
    )
    answer = f"{name}、先日は{gift}をありがとうございました。とてもうれしかったです。"
    return row(asked, answer, "creative_writing")


def story_start(rng: Random) -> Row:
    """The first sentences of a story."""
    nature, animal = rng.choice(NATURES), rng.choice(ANIMALS.words)
    asked = rng.choice(
        ("{}の物語を始めてください。", "{}の物語の書き出しを書いてください。")
    ).format(nature + animal)
    return row(
        asked,
        f"昔々、ある所に{nature}{animal}がいました。{animal}は{rng.choice(WISHES)}。",
        "creative_writing",
    )


def sentence_with_words(rng: Random) -> Row:
    """A sentence in which given words occur."""
    animal, scene = rng.choice(ANIMALS.words), rng.choice(SCENES)
    first, second = people(rng, 2)
    asked = rng.choice(
        (
            f"「{animal}」と「{scene}」を使って文を作ってください。",
            f"「{animal}」と「{scene}」という言葉の入った文を書いてください。",
        )
    )
    return row(asked, f"{first}と{second}は{scene}で{animal}を見ました。", "creative_writing")


def fact_rows(split: str, rng: Random) -> list[Row]:
    """Questions about general knowledge: in training all that are not held out."""
    known = [pair for pair in fact_questions() if belongs_to(split, pair[0])]
    if split == "validation":
        known = rng.sample(known, VALIDATION_FACTS)
    return [row(question, answer, "open_qa") for question, answer in known]


VALIDATION_FACTS = 135
SHARES: tuple[tuple[Callable[[Random], Row], int], ...] = (
    (general_question, 1100),
    (greeting, 120),
    (own_job, 100),
    (advice, 100),
    (kind_of_word, 500),
    (sorting, 240),
    (odd_one_out, 200),
    (news, 100),
    (opinion, 60),
    (closed_question, 1100),
    (extraction, 400),
    (summary, 360),
    (listing, 260),
    (ideas, 180),
    (haiku, 60),
    (poetic_line, 100),
    (thanks, 100),
    (story_start, 100),
    (sentence_with_words, 80),
)


def rows(split: str, seed: int) -> list[Row]:
    """The rows of a split in random order."""
    rng = generator("dolly_ja", split, seed)
    divisor = VALIDATION_SHARE if split == "validation" else 1
    result = fact_rows(split, rng)
    for draw, count in SHARES:
        result += distinct_rows(draw, count // divisor, split, rng, row_key)
    rng.shuffle(result)
    return result
