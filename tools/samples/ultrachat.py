"""Longer talks about many topics in the field of UltraChat: messages with role and content."""

from __future__ import annotations

from random import Random

from tools.samples.phrases import PEOPLE, Row, distinct_rows, generator, sentence_case
from tools.samples.topics import Topic
from tools.samples.topics_culture import (
    COOKING_TOPICS,
    CULTURE_TOPICS,
    DAILY_LIFE_TOPICS,
    HISTORY_TOPICS,
    PLACE_TOPICS,
    SPORT_TOPICS,
    THOUGHT_TOPICS,
)
from tools.samples.topics_science import MATHEMATICS_TOPICS, SCIENCE_TOPICS, TECHNOLOGY_TOPICS

ROWS = {"train": 2000, "validation": 200}

TOPICS: tuple[Topic, ...] = (
    *SCIENCE_TOPICS,
    *TECHNOLOGY_TOPICS,
    *MATHEMATICS_TOPICS,
    *HISTORY_TOPICS,
    *CULTURE_TOPICS,
    *COOKING_TOPICS,
    *SPORT_TOPICS,
    *THOUGHT_TOPICS,
    *PLACE_TOPICS,
    *DAILY_LIFE_TOPICS,
)
AREAS = tuple(dict.fromkeys(topic.area for topic in TOPICS))

WELCOMES = ("Of course. ", "Gladly. ", "Sure. ", "That is a good question. ", "")
EXAMPLES = ("Here is one. ", "Yes. ", "Think of this: ", "")
SURPRISES = ("Many people do not know this. ", "Perhaps this: ", "Here is something. ", "")

Exchange = tuple[str, str]


class Conversation:
    """A talk that grows by one question and answer at a time and knows what was said."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.first, self.other = rng.sample(TOPICS, 2)
        self.topic = self.first
        self.exchanges: list[Exchange] = []
        self.told: list[str] = []
        self.open_facets = ["detail", "example", "value", "surprise"]

    def be(self) -> str:
        """The form of "to be" for the topic at hand."""
        return "are" if self.topic.is_plural else "is"

    def pronoun(self, subject: bool = True) -> str:
        """The pronoun for the topic at hand."""
        if not self.topic.is_plural:
            return "it"
        return "they" if subject else "them"

    def add(self, question: str, opening: str, *sentences: str) -> None:
        """Append a question and its answer."""
        self.told += sentences
        if opening.endswith("question. ") and not question.endswith("?"):
            opening = ""
        self.exchanges.append((sentence_case(question), opening + " ".join(sentences)))

    def ask_meaning(self) -> None:
        """Begin with what the topic is."""
        name = self.topic.name
        question = self.rng.choice(
            (
                f"what {self.be()} {name}?",
                f"can you explain {name} to me?",
                f"I would like to learn something about {name}.",
                f"please tell me about {name}.",
                (
                    f"my friend {self.rng.choice(PEOPLE).name} talked about {name}. "
                    "Can you tell me what that means?"
                ),
                f"I read a book about {name}. How would you explain {self.pronoun(False)}?",
            )
        )
        sentences = [self.topic.meaning]
        if self.rng.random() < 0.4:
            sentences.append(self.topic.detail)
            self.open_facets.remove("detail")
        self.add(question, self.rng.choice(WELCOMES), *sentences)

    def ask_facet(self) -> None:
        """Go on with something about the topic that was not said yet."""
        facet = self.rng.choice(self.open_facets)
        self.open_facets.remove(facet)
        it, them = self.pronoun(), self.pronoun(subject=False)
        questions, openings = {
            "detail": (
                (f"can you say more about {them}?", "please go into more detail.", "tell me more."),
                WELCOMES,
            ),
            "example": (
                ("can you give me an example?", f"do you have an example of {them}?"),
                EXAMPLES,
            ),
            "value": (
                (
                    f"why {self.be()} {it} important?",
                    f"why should I know about {them}?",
                    f"what {'do' if self.topic.is_plural else 'does'} {it} change for us?",
                ),
                ("", "That is easy to say. ", "A good question. "),
            ),
            "surprise": (
                (
                    f"what is surprising about {them}?",
                    f"tell me something about {them} that few people know.",
                ),
                SURPRISES,
            ),
        }[facet]
        sentence = {
            "detail": self.topic.detail,
            "example": self.topic.example,
            "value": self.topic.value,
            "surprise": self.topic.surprise,
        }[facet]
        self.add(self.rng.choice(questions), self.rng.choice(openings), sentence)

    def change_topic(self) -> None:
        """Turn to the other topic."""
        self.topic = self.other
        self.open_facets = ["detail", "example", "value", "surprise"]
        name = self.topic.name
        question = self.rng.choice(
            (
                f"thank you. And what {self.be()} {name}?",
                f"now to something else. Can you explain {name}?",
                f"good. Next I want to know about {name}.",
            )
        )
        self.add(question, self.rng.choice(WELCOMES), self.topic.meaning)

    def look_back(self) -> None:
        """End with a question about the talk itself."""
        choices = [
            (
                "what was my first question about?",
                f"Your first question was about {self.first.name}.",
            ),
            (
                "can you repeat your last answer?",
                self.told[-1],
            ),
            (
                (
                    f"to which field {'do' if self.topic.is_plural else 'does'} {self.pronoun()} "
                    f"belong, {self._two_areas()}?"
                ),
                (
                    f"{self.pronoun().capitalize()} "
                    f"{'belong' if self.topic.is_plural else 'belongs'} to {self.topic.area}."
                ),
            ),
            (
                "please sum up what you told me.",
                " ".join(dict.fromkeys(self.told)),
            ),
        ]
        if self.topic is not self.first:
            names = [self.first.name, self.other.name]
            self.rng.shuffle(names)
            choices.append(
                (
                    f"which topic came first, {names[0]} or {names[1]}?",
                    f"We talked about {self.first.name} first and then about {self.other.name}.",
                )
            )
        question, answer = self.rng.choice(choices)
        summary = "In short: " if question.startswith("please sum up") else ""
        self.exchanges.append((sentence_case(question), summary + answer))

    def _two_areas(self) -> str:
        """The area of the topic and another one as a choice."""
        other = self.rng.choice([area for area in AREAS if area != self.topic.area])
        areas = [self.topic.area, other]
        self.rng.shuffle(areas)
        return " or ".join(areas)

    def messages(self) -> list[dict[str, str]]:
        """The talk as messages."""
        return [
            {"role": role, "content": content}
            for exchange in self.exchanges
            for role, content in zip(("user", "assistant"), exchange, strict=True)
        ]


def conversation(rng: Random) -> Row:
    """A talk of two to four questions with their answers."""
    talk = Conversation(rng)
    talk.ask_meaning()
    length = rng.randint(2, 4)
    looks_back = rng.random() < 0.6
    changes_at = rng.randint(2, 3) if rng.random() < 0.4 else 0
    while len(talk.exchanges) < length:
        place = len(talk.exchanges)
        if looks_back and place == length - 1:
            talk.look_back()
        elif place == changes_at - 1:
            talk.change_topic()
        else:
            talk.ask_facet()
    return {"messages": talk.messages()}


def questions_of(row: Row) -> str:
    """The user's part of a talk, which tells talks apart."""
    messages = row["messages"]
    assert isinstance(messages, list)
    return "\n".join(message["content"] for message in messages[::2])


def rows(split: str, seed: int) -> list[Row]:
    """The rows of a split in random order."""
    rng = generator("ultrachat", split, seed)
    return distinct_rows(conversation, ROWS[split], split, rng, questions_of)
