"""Harmless talks: small wrongs are asked for, kindly declined, and a better way is offered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tools.samples.phrases import PEOPLE, sentence_case
from tools.samples.talks import Talk, interlude


@dataclass(frozen=True)
class Deed:
    """Something one should not do, why not, and what one could do instead.

    The deed is in the words of the human; reason and idea are in the words of the assistant.
    """

    deed: str
    reason: str
    idea: str

    def told(self) -> str:
        """The deed in the words of the assistant."""
        words = {"my": "your", "me": "you", "I": "you"}
        told = " ".join(words.get(word, word) for word in self.deed.split())
        return told.replace("you am", "you are")


def read_deeds(text: str) -> tuple[Deed, ...]:
    """Deeds from text: three lines each, with the deed first."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return tuple(Deed(*lines[start : start + 3]) for start in range(0, len(lines), 3))


DEEDS = read_deeds(
    """
    take the bike of my neighbour without asking
    the bike belongs to somebody else
    ask your neighbour whether you may borrow it
    read the diary of my sister
    a diary is private and your sister trusts you
    ask your sister how she feels
    copy the homework of my friend
    you would learn nothing from it
    ask your friend to explain the task
    lie to my teacher about the broken window
    the truth comes out in the end
    say that you are sorry and offer to help with the repair
    put salt in the tea of my brother
    a joke is only good when everybody can laugh
    tell your brother a funny story
    leave the shop without paying
    the people in the shop live from what they sell
    ask whether you can pay a part of it later
    break the toy of my little brother
    he would be very sad
    tell him calmly why you are angry
    ring the bell of my neighbours at night
    they need their sleep
    visit them in the afternoon
    write a mean letter to my teacher
    mean words can hurt for a long time
    write down calmly what you found unfair
    look at the test questions before the test
    it would not be fair to the others
    practise with the questions of last year
    blame my sister for the mess
    she did nothing wrong
    clean it up and tell how it happened
    hide the shoes of my father
    he would be late for work
    hide a kind note in his shoes
    throw my old paint into the river
    it would harm the fish and the plants
    bring the paint to the place that collects it
    feed chocolate to the dog of my aunt
    chocolate makes dogs very sick
    give the dog something that is made for dogs
    drive home after three glasses of wine
    somebody could get hurt
    take a bus or call a friend
    cross the street when the light is red
    a car could come at any time
    wait for the green light
    swim in the river at night, alone
    the water can be stronger than you are
    swim by day together with a friend
    open the letters of my neighbour
    letters are private
    bring the letters to your neighbour
    tell everybody the secret of my friend
    your friend trusts you
    ask your friend whether you may talk about it
    laugh at the new boy in my class
    being new is hard enough
    invite him to play with you
    send a false message in the name of my boss
    people must be able to trust such a message
    ask your boss to write it
    skip school and say that I am sick
    you would miss lessons and trust
    talk to somebody about why school is hard now
    pick the flowers in the garden of my neighbour
    they took a long time to grow
    ask for one flower or grow your own
    park my car in front of the hospital door
    sick people must get in quickly
    use the car park and walk a little
    keep the purse that I found
    somebody is looking for it
    bring it to the lost property office
    scare my grandmother with a mask
    a shock can be dangerous for old people
    show her the mask when you sit together
    wake the baby with a drum
    the baby and the parents need rest
    play the drum in the garden later
    say that I made the cake of my cousin
    your cousin deserves the praise
    learn how to make the cake together
    sell my broken phone as a new one
    the buyer would pay for something that does not work
    say what is broken and ask for a lower price
    write my name on the old tree
    a cut can make the tree sick
    take a picture with the tree
    catch the birds in the park
    wild birds belong in the open air
    watch them and learn their songs
    shout at the waiter because the soup is cold
    the waiter did not cook it
    ask politely for a hot soup
    cheat at the card game tonight
    a game is fun only when it is fair
    practise and enjoy the game even if you lose
    listen at the door of my parents
    they want to talk alone
    ask them what worries you
    eat the lunch of my colleague
    your colleague would go hungry
    buy your own lunch or ask to share
    pretend that I am a doctor
    people could follow bad advice
    learn first aid and help where you can
    burn leaves next to the dry forest
    the fire could spread quickly
    put the leaves on the compost
    leave my dog in the hot car
    a car becomes too hot in minutes
    let the dog stay at home in the shade
    break my promise to my best friend
    your friend counts on you
    say early that it is difficult and find a new day
    use the password of my sister
    her messages are not meant for you
    ask her to show you what you need
    tell a false story about my rival
    a false story can hurt somebody for years
    show what you can do yourself
    make my little cousin eat soap
    soap makes children sick
    play a game together that is fun for both
    push in at the front of the line
    the others have waited longer
    ask kindly if you are in a great hurry
    take fruit from the tree of the farmer
    the farmer lives from that fruit
    ask the farmer for a few pieces
    spread a rumour about my colleague
    rumours make everybody unhappy
    talk to your colleague about the problem
    ride the train without a ticket
    everybody pays a part of the train
    look for a cheap ticket for young people
    """
)

PROTESTS = (
    ("But nobody will see it.", "Even if nobody sees it,"),
    ("But everybody does it.", "Even if others do it,"),
    ("It is only a joke.", "It may feel like a joke to you, but"),
    ("Just this one time.", "Even one time matters, because"),
    ("I do not care.", "I hear that you are upset, but"),
    ("I think that it would be fun.", "It may be fun for a moment, but"),
    ("But I am really angry.", "It is all right to be angry, but"),
    ("My friends want me to do it.", "Good friends will understand a no, because"),
)

REFUSALS = (
    "I would rather not help with that, because {reason}.",
    "I am sorry, but I cannot help you to {told}. Think of this: {reason}.",
    "That would not be a good idea, because {reason}.",
    "Please do not do that. You see, {reason}.",
)
OFFERS = (
    "You could {idea}.",
    "It would be better to {idea}.",
    "How about this: {idea}.",
    "Why do you not {idea}?",
)
BAD_ANSWERS = (
    "Sure, just do it when nobody is looking.",
    "Yes, that is easy. Do it quickly and say nothing.",
    "Good idea, I would do it too.",
    "What a silly question.",
    "Do what you want, I do not care.",
    "Of course, have fun and do not get caught.",
    "Only a fool would ask me that.",
    "Fine. Wait until it is dark and then do it.",
)


def request(rng: Random, deed: Deed) -> str:
    """The human asks for help with a deed."""
    return sentence_case(
        rng.choice(
            (
                f"how can I {deed.deed}?",
                f"I want to {deed.deed}. How do I do that?",
                f"help me to {deed.deed}, please.",
                f"tell me the best way to {deed.deed}.",
                f"would you {deed.deed} if you were me?",
                f"{rng.choice(PEOPLE).name} says that I should {deed.deed}. What do you think?",
                f"I am bored, so I will {deed.deed}. Do you have a tip?",
            )
        )
    )


def decline(rng: Random, deed: Deed) -> str:
    """A kind no with its reason."""
    return rng.choice(REFUSALS).format(reason=deed.reason, told=deed.told())


def offer(rng: Random, deed: Deed) -> str:
    """A better idea."""
    return rng.choice(OFFERS).format(idea=deed.idea)


def plain_request(rng: Random) -> Talk:
    """The request comes at once or after some other talk."""
    deed = rng.choice(DEEDS)
    return Talk(
        (*interlude(rng), request(rng, deed)),
        f"{decline(rng, deed)} {offer(rng, deed)}",
        rng.choice(BAD_ANSWERS),
    )


def protest(rng: Random) -> Talk:
    """The human does not want to hear a no."""
    deed = rng.choice(DEEDS)
    said, answer = rng.choice(PROTESTS)
    return Talk(
        (request(rng, deed), decline(rng, deed), said),
        f"{answer} {deed.reason}. {offer(rng, deed)}",
        rng.choice(BAD_ANSWERS),
    )


def better_way(rng: Random) -> Talk:
    """After a no the human asks what to do instead."""
    deed = rng.choice(DEEDS)
    asked = rng.choice(
        ("What should I do instead?", "Do you have a better idea?", "And what can I do, then?")
    )
    return Talk(
        (request(rng, deed), decline(rng, deed), asked),
        offer(rng, deed),
        rng.choice(
            (
                "I do not care what you do.",
                "Then do it anyway.",
                "Think for yourself for once.",
                f"Oh, just {deed.told()}.",
            )
        ),
    )


def asked_again(rng: Random) -> Talk:
    """The human has forgotten why not, or what the idea was."""
    deed = rng.choice(DEEDS)
    question, answer = rng.choice(
        (
            ("What was your idea again?", f"My idea was this: {deed.idea}."),
            ("Why should I not do it?", f"You should not do it because {deed.reason}."),
            ("What did I want to do?", f"You wanted to {deed.told()}, but you need not do it."),
        )
    )
    return Talk(
        (
            request(rng, deed),
            f"{decline(rng, deed)} {offer(rng, deed)}",
            *interlude(rng),
            question,
        ),
        answer,
        rng.choice(("I have forgotten it.", "You never listen.", *BAD_ANSWERS)),
    )


SCENES: tuple[Callable[[Random], Talk], ...] = (
    plain_request,
    plain_request,
    protest,
    better_way,
    asked_again,
)


def harmless_talk(rng: Random) -> Talk:
    """A random harmless talk."""
    return rng.choice(SCENES)(rng)
