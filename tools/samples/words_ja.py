"""Japanese words for the sample rows: names, groups of words that belong together, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tools.samples.phrases import words_in

NAMES = words_in(
    "田中 佐藤 鈴木 高橋 伊藤 渡辺 山本 中村 小林 加藤 吉田 山田 佐々木 松本 井上 木村 清水 斎藤 "
    "池田 橋本 藤田 岡田 後藤 村上"
)
"""Family names; the rows put さん behind them."""

DAYS = words_in("月曜日 火曜日 水曜日 木曜日 金曜日 土曜日 日曜日")
DIGITS = words_in("零 一 二 三 四 五 六 七 八 九 十")


@dataclass(frozen=True)
class WordGroup:
    """Words of one kind. Groups of one family are never set against each other."""

    kind: str
    words: tuple[str, ...]
    family: str


def group(kind: str, words: str, family: str = "") -> WordGroup:
    """A group from its words in one line."""
    return WordGroup(kind, words_in(words), family or kind)


ANIMALS = group(
    "動物", "犬 猫 馬 牛 羊 豚 象 熊 猿 うさぎ ライオン きりん らくだ リス パンダ", "生き物"
)
BIRDS = group("鳥", "すずめ インコ カラス つばめ にわとり 白鳥 ふくろう ペンギン", "生き物")
FISH = group("魚", "まぐろ さけ かつお さば いわし 金魚 さんま", "生き物")
INSECTS = group("昆虫", "蜂 アリ チョウ トンボ セミ カブトムシ", "生き物")
FRUITS = group("果物", "りんご みかん ぶどう バナナ 梨 桃 柿 レモン さくらんぼ キウイ", "食べ物")
VEGETABLES = group(
    "野菜", "にんじん 大根 白菜 なす きゅうり たまねぎ キャベツ ほうれん草 ごぼう", "食べ物"
)
DISHES = group("料理", "カレー うどん 寿司 天ぷら おでん ラーメン すき焼き 親子丼", "食べ物")
DRINKS = group("飲み物", "お茶 コーヒー 紅茶 牛乳 ジュース 水", "食べ物")
COLOURS = group("色", "赤 青 黄色 緑 白 黒 茶色 紫 灰色 桃色")
CLOTHES = group("服", "シャツ ズボン コート セーター 着物 スカート 浴衣", "物")
STATIONERY = group("文房具", "鉛筆 消しゴム 定規 ノート 筆箱 ボールペン", "物")
FURNITURE = group("家具", "机 椅子 本棚 ベッド たんす ソファー", "物")
INSTRUMENTS = group("楽器", "ピアノ ギター バイオリン 太鼓 笛 琴 三味線 トランペット", "物")
VEHICLES = group("乗り物", "電車 バス 自転車 飛行機 船 タクシー 新幹線", "物")
JOBS = group("職業", "医者 教師 料理人 画家 大工 漁師 農家 看護師 歌手 消防士 警察官 美容師")
SPORTS = group("スポーツ", "野球 サッカー 水泳 テニス 柔道 剣道 相撲 卓球")
FLOWERS = group("花", "桜 ひまわり 菊 チューリップ コスモス たんぽぽ 朝顔 あじさい")
COUNTRIES = group("国", "日本 フランス ドイツ 中国 インド エジプト カナダ ペルー イタリア", "土地")
CITIES = group("都市", "東京 大阪 京都 札幌 仙台 名古屋 神戸 広島 福岡 横浜 金沢 那覇", "土地")
WEEKDAYS = group("曜日", " ".join(DAYS), "時")
SEASONS = group("季節", "春 夏 秋 冬", "時")
WEATHER = group("天気", "晴れ 曇り 雨 雪")

GROUPS = (
    ANIMALS,
    BIRDS,
    FISH,
    INSECTS,
    FRUITS,
    VEGETABLES,
    DISHES,
    DRINKS,
    COLOURS,
    CLOTHES,
    STATIONERY,
    FURNITURE,
    INSTRUMENTS,
    VEHICLES,
    JOBS,
    SPORTS,
    FLOWERS,
    COUNTRIES,
    CITIES,
    WEEKDAYS,
    SEASONS,
    WEATHER,
)


def two_groups(rng: Random) -> tuple[WordGroup, WordGroup]:
    """Two groups of different families, so that no word could belong to both."""
    first = rng.choice(GROUPS)
    return first, rng.choice([other for other in GROUPS if other.family != first.family])


def person(rng: Random) -> str:
    """A name with さん."""
    return f"{rng.choice(NAMES)}さん"


def people(rng: Random, count: int) -> list[str]:
    """Different names, each with さん."""
    return [f"{name}さん" for name in rng.sample(NAMES, count)]


def joined(words: Sequence[str]) -> str:
    """Words as a list in a sentence: 「犬」, 「犬と猫」, 「犬、猫、馬」."""
    return "と".join(words) if len(words) < 3 else "、".join(words)


def kanji_number(number: int) -> str:
    """A number up to 99 as it is written in Japanese: 十二."""
    tens, ones = divmod(number, 10)
    if tens == 0:
        return DIGITS[number]
    return (DIGITS[tens] if tens > 1 else "") + "十" + (DIGITS[ones] if ones else "")
