"""Short invented Japanese texts about people, shops, towns and trips, and what to ask of them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tools.samples.phrases import words_in
from tools.samples.words_ja import CITIES, DAYS, FRUITS, JOBS, SPORTS, joined, people, person

TOWNS = words_in("星野町 風見町 月岡町 花野町 雪見町 水沢町 青葉町 緑川町")
STREETS = words_in("駅前通り 本町通り 桜通り 川沿いの道 学校通り 海岸通り")
PLACES = words_in("市場 公園 学校 駅 博物館 図書館 海岸 美術館")
GOODS = words_in("パン チーズ 本 花 靴 お菓子 魚 時計 野菜 おもちゃ")
VEHICLES = words_in("バス 電車 自転車 車 タクシー 地下鉄")
SETTINGS = ("海の近く", "川のほとり", "山のふもと", "森のそば", "湖のほとり")
SIZES = ("小さな", "大きな", "古い", "静かな", "にぎやかな")
PETS = words_in("犬 猫 うさぎ ハムスター 鳥")
PET_COLOURS = (("白い", "白"), ("黒い", "黒"), ("茶色い", "茶色"), ("灰色の", "灰色"))
STRINGS = words_in("ピアノ ギター バイオリン 琴 三味線")
DRINKS = words_in("お茶 コーヒー 紅茶 牛乳 ジュース")
EVENTS = {
    "夏祭り": "公園 海岸 神社",
    "花火大会": "海岸 川原",
    "音楽会": "公園 学校 美術館",
    "運動会": "校庭 体育館",
    "写真展": "図書館 美術館 博物館",
    "料理教室": "学校 公民館",
}
"""Where each kind of event may be held."""
ROOMS = ("1階の会議室", "2階の教室", "3階の会議室", "体育館", "食堂", "図書室")
HOURS = words_in("午前9時 午前10時 午前11時 午後1時 午後2時 午後3時")
BELONGINGS = words_in("鉛筆 ノート 辞書 弁当 水筒 写真 地図 筆箱")


@dataclass(frozen=True)
class Passage:
    """A text with questions and answers, a summary, and the items it contains by their kind."""

    text: str
    questions: tuple[tuple[str, str], ...]
    summary: str
    items: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Detail:
    """One thing a passage says of a person, without its subject."""

    sentence: str
    """As a sentence of its own."""
    linked: str
    """In the form that leads on to the next clause."""
    questions: tuple[tuple[str, str], ...]


def calendar_date(rng: Random) -> str:
    """A day of the year: 5月3日."""
    return f"{rng.randint(1, 12)}月{rng.randint(1, 28)}日"


def person_passage(rng: Random) -> Passage:
    """A person with a job, a home, a pet and other attributes."""
    name = person(rng)
    job, city, pet = rng.choice(JOBS.words), rng.choice(CITIES.words), rng.choice(PETS)
    (coloured, colour), strings = rng.choice(PET_COLOURS), rng.choice(STRINGS)
    fruit, sport, age = rng.choice(FRUITS.words), rng.choice(SPORTS.words), rng.randint(20, 49)
    details = (
        Detail(
            f"{job}です。",
            f"{job}で",
            (
                (f"{name}の仕事は何ですか？", f"{name}の仕事は{job}です。"),
                (f"{name}の職業を教えてください。", f"{name}の職業は{job}です。"),
            ),
        ),
        Detail(
            f"{city}に住んでいます。",
            f"{city}に住んでいて",
            (
                (f"{name}はどこに住んでいますか？", f"{name}は{city}に住んでいます。"),
                (f"{name}が住んでいる所を教えてください。", f"{name}は{city}に住んでいます。"),
            ),
        ),
        Detail(
            f"{age}歳です。",
            f"{age}歳で",
            (
                (f"{name}は何歳ですか？", f"{name}は{age}歳です。"),
                (f"{name}の年齢を教えてください。", f"{name}は{age}歳です。"),
            ),
        ),
        Detail(
            f"{coloured}{pet}を飼っています。",
            f"{pet}を飼っていて",
            (
                (f"{name}は何を飼っていますか？", f"{name}は{pet}を飼っています。"),
                (f"{name}が飼っている動物は何ですか？", f"{name}が飼っている動物は{pet}です。"),
                (
                    f"{name}が飼っている{pet}は何色ですか？",
                    f"{name}が飼っている{pet}は{colour}です。",
                ),
            ),
        ),
        Detail(
            f"{fruit}が好きです。",
            f"{fruit}が好きで",
            (
                (f"{name}の好きな果物は何ですか？", f"{name}の好きな果物は{fruit}です。"),
                (f"{name}はどんな果物が好きですか？", f"{name}は{fruit}が好きです。"),
            ),
        ),
        Detail(
            f"{strings}を弾きます。",
            f"{strings}を弾き",
            (
                (f"{name}は何を弾きますか？", f"{name}は{strings}を弾きます。"),
                (f"{name}はどんな楽器を弾きますか？", f"{name}は{strings}を弾きます。"),
            ),
        ),
        Detail(
            f"趣味は{sport}です。",
            f"趣味は{sport}で",
            (
                (f"{name}の趣味は何ですか？", f"{name}の趣味は{sport}です。"),
                (f"{name}の趣味を教えてください。", f"{name}の趣味は{sport}です。"),
            ),
        ),
    )
    told = rng.sample(details, rng.randint(3, 4))
    told.sort(key=lambda detail: detail.sentence.startswith("趣味"))  # it has its own subject
    return Passage(
        f"{name}は{''.join(detail.sentence for detail in told)}",
        tuple(question for detail in told for question in detail.questions),
        f"{name}は{'、'.join(detail.linked for detail in told[:-1])}、{told[-1].sentence}",
        (("人の名前", (name,)),),
    )


def pair_passage(rng: Random) -> Passage:
    """Two people with the same kinds of attributes, which are not to be mixed up."""
    first, second = people(rng, 2)
    shapes = (
        (
            rng.sample(PETS, 2),
            "を飼っていて",
            "を飼っています",
            "を飼っている",
            "何を飼っていますか",
        ),
        (rng.sample(DRINKS, 2), "が好きで", "が好きです", "が好きな", "何が好きですか"),
        (
            rng.sample(CITIES.words, 2),
            "に住んでいて",
            "に住んでいます",
            "に住んでいる",
            "どこに住んでいますか",
        ),
    )
    told = rng.sample(shapes, 2)
    sentences, questions = [], []
    for values, linked, final, before_noun, asked in told:
        sentences.append(f"{first}は{values[0]}{linked}、{second}は{values[1]}{final}。")
        for name, value in zip((first, second), values, strict=True):
            questions.append((f"{name}は{asked}？", f"{name}は{value}{final}。"))
            answer = f"{value}{before_noun}のは{name}です。"
            questions.append((f"{value}{before_noun}のは誰ですか？", answer))
    (values, linked, _, _, _), (others, _, final, _, _) = told
    summary = "".join(
        f"{name}は{values[column]}{linked}、{others[column]}{final}。"
        for column, name in enumerate((first, second))
    )
    return Passage("".join(sentences), tuple(questions), summary, (("人の名前", (first, second)),))


def shop_passage(rng: Random) -> Passage:
    """A shop with an owner, a street, goods and opening hours."""
    owner, street, goods = person(rng), rng.choice(STREETS), rng.choice(GOODS)
    opens, closes, free = f"{rng.randint(7, 10)}時", f"{rng.randint(5, 9)}時", rng.choice(DAYS)
    return Passage(
        f"{owner}は{street}に店を持っています。店では{goods}を売っています。"
        f"店は朝の{opens}に開き、夜の{closes}に閉まります。休みは{free}です。",
        (
            ("店を持っているのは誰ですか？", f"店を持っているのは{owner}です。"),
            ("店はどこにありますか？", f"店は{street}にあります。"),
            (f"{owner}の店はどこにありますか？", f"{owner}の店は{street}にあります。"),
            ("店では何を売っていますか？", f"店では{goods}を売っています。"),
            (f"{owner}の店では何が買えますか？", f"{owner}の店では{goods}が買えます。"),
            ("店は何時に開きますか？", f"店は朝の{opens}に開きます。"),
            ("店は何時に閉まりますか？", f"店は夜の{closes}に閉まります。"),
            ("店の休みは何曜日ですか？", f"店の休みは{free}です。"),
        ),
        f"{owner}は{street}の店で、{free}を除いて、朝の{opens}から夜の{closes}まで{goods}を売っています。",
        (("人の名前", (owner,)), ("曜日", (free,)), ("時刻", (f"朝の{opens}", f"夜の{closes}"))),
    )


def town_passage(rng: Random) -> Passage:
    """A town with its setting, bridges, goods and market day."""
    town, setting, goods = rng.choice(TOWNS), rng.choice(SETTINGS), rng.choice(GOODS)
    size, bridges, market = rng.choice(SIZES), f"{rng.randint(2, 9)}本", rng.choice(DAYS)
    return Passage(
        f"{town}は{setting}にある{size}町です。町には橋が{bridges}あります。"
        f"{town}は{goods}でよく知られています。毎週{market}に朝市が開かれます。",
        (
            (f"{town}はどこにありますか？", f"{town}は{setting}にあります。"),
            (f"{town}はどんな町ですか？", f"{town}は{size}町です。"),
            (f"{town}には橋が何本ありますか？", f"{town}には橋が{bridges}あります。"),
            (f"{town}は何で知られていますか？", f"{town}は{goods}で知られています。"),
            ("朝市は何曜日に開かれますか？", f"朝市は{market}に開かれます。"),
            (f"{town}で毎週{market}に何が開かれますか？", f"毎週{market}に朝市が開かれます。"),
        ),
        f"{town}は{setting}にある{size}町で、橋が{bridges}あり、{goods}と{market}の朝市で知られています。",
        (("町の名前", (town,)), ("曜日", (market,)), ("橋の数", (bridges,))),
    )


def trip_passage(rng: Random) -> Passage:
    """A person goes somewhere, buys something and meets a friend."""
    name, friend = people(rng, 2)
    place, vehicle, fruit = rng.choice(PLACES), rng.choice(VEHICLES), rng.choice(FRUITS.words)
    count = f"{rng.randint(2, 9)}個"
    date, day = calendar_date(rng), rng.choice(DAYS)
    when, kind = rng.choice(((date, "日付"), (day, "曜日")))
    opening = rng.choice(
        (
            f"{when}に、{name}は{vehicle}で{place}へ行きました。",
            f"{name}は{when}に{vehicle}で{place}へ行きました。",
        )
    )
    return Passage(
        f"{opening}途中の店で{fruit}を{count}買いました。{place}では{friend}に会いました。",
        (
            (f"{name}はどこへ行きましたか？", f"{name}は{place}へ行きました。"),
            (f"{name}は何で{place}へ行きましたか？", f"{name}は{vehicle}で{place}へ行きました。"),
            (f"{name}はいつ{place}へ行きましたか？", f"{name}は{when}に{place}へ行きました。"),
            (f"{name}は何を買いましたか？", f"{name}は{fruit}を買いました。"),
            (f"{name}は{fruit}をいくつ買いましたか？", f"{name}は{fruit}を{count}買いました。"),
            (f"{name}は誰に会いましたか？", f"{name}は{friend}に会いました。"),
            (f"{place}へ行ったのは誰ですか？", f"{place}へ行ったのは{name}です。"),
        ),
        f"{name}は{when}に{vehicle}で{place}へ行き、{fruit}を{count}買い、{friend}に会いました。",
        (("人の名前", (name, friend)), (kind, (when,)), ("果物", (fruit,))),
    )


def meeting_passage(rng: Random) -> Passage:
    """Several people who did something on two days."""
    guest, *hosts = people(rng, 3)
    months = sorted(rng.sample(range(1, 13), 2))
    arrival, meeting = (f"{month}月{rng.randint(1, 28)}日" for month in months)
    town, place = rng.choice(TOWNS), rng.choice(PLACES)
    arrived, met = f"{arrival}に{town}に着", f"{place}で{guest}に会いました。"
    return Passage(
        f"{guest}は{arrived}きました。{joined(hosts)}は、{meeting}に{met}",
        (
            (f"{guest}はいつ{town}に着きましたか？", f"{guest}は{arrived}きました。"),
            (f"{guest}はどこに着きましたか？", f"{guest}は{town}に着きました。"),
            (f"{arrived}いたのは誰ですか？", f"{arrived}いたのは{guest}です。"),
            (f"{hosts[0]}はどこで{guest}に会いましたか？", f"{hosts[0]}は{met}"),
            (f"{guest}に会ったのは誰ですか？", f"{guest}に会ったのは{joined(hosts)}です。"),
        ),
        f"{town}に着いた{guest}は、{meeting}に{place}で{joined(hosts)}に会いました。",
        (
            ("人の名前", (guest, *hosts)),
            ("日付", (arrival, meeting)),
            ("町の名前", (town,)),
        ),
    )


def event_passage(rng: Random) -> Passage:
    """Something that a town holds, with its day, its place and how many came."""
    town, event = rng.choice(TOWNS), rng.choice(tuple(EVENTS))
    place = rng.choice(words_in(EVENTS[event]))
    date, visitors = calendar_date(rng), f"{rng.randint(2, 30) * 10}人"
    helper = person(rng)
    return Passage(
        f"{date}に{town}の{place}で{event}がありました。{visitors}が集まりました。"
        f"準備をしたのは{helper}です。",
        (
            (f"{event}はいつありましたか？", f"{event}は{date}にありました。"),
            (f"{event}はどこでありましたか？", f"{event}は{town}の{place}でありました。"),
            (f"{event}には何人が集まりましたか？", f"{event}には{visitors}が集まりました。"),
            (f"{event}の準備をしたのは誰ですか？", f"{event}の準備をしたのは{helper}です。"),
            (f"{date}に何がありましたか？", f"{date}に{event}がありました。"),
        ),
        f"{date}に{town}の{place}で、{helper}が準備をした{event}があり、{visitors}が集まりました。",
        (("人の名前", (helper,)), ("日付", (date,)), ("町の名前", (town,)), ("人数", (visitors,))),
    )


def notice_passage(rng: Random) -> Passage:
    """A notice of a meeting: when, where and what to bring."""
    caller, day, hour = person(rng), rng.choice(DAYS), rng.choice(HOURS)
    room, thing = rng.choice(ROOMS), rng.choice(BELONGINGS)
    return Passage(
        f"{caller}からのお知らせです。次の集まりは{day}の{hour}に始まります。"
        f"場所は{room}です。{thing}を持ってきてください。",
        (
            ("次の集まりは何曜日ですか？", f"次の集まりは{day}です。"),
            ("集まりは何時に始まりますか？", f"集まりは{hour}に始まります。"),
            ("集まりの場所はどこですか？", f"集まりの場所は{room}です。"),
            ("何を持っていけばいいですか？", f"{thing}を持っていけばいいです。"),
            ("誰からのお知らせですか？", f"{caller}からのお知らせです。"),
        ),
        f"{caller}のお知らせによると、次の集まりは{day}の{hour}に{room}で始まり、{thing}が要ります。",
        (("人の名前", (caller,)), ("曜日", (day,)), ("時刻", (hour,)), ("持ち物", (thing,))),
    )


BUILDERS = (
    person_passage,
    person_passage,
    pair_passage,
    shop_passage,
    town_passage,
    trip_passage,
    meeting_passage,
    event_passage,
    notice_passage,
)


def draw_passage(rng: Random) -> Passage:
    """A random passage of any kind."""
    return rng.choice(BUILDERS)(rng)
