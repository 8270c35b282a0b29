"""Short programs with random numbers and words, and what they print when they are run."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from random import Random

from tools.samples.phrases import words_in

WORDS = words_in("river garden apple winter music bread candle window forest planet")
NAMES = words_in("Anna Ben Clara David Emma Hugo Lena Paul")
FRUITS = words_in("apples pears plums cherries lemons")


def read_programs(text: str) -> tuple[str, ...]:
    """Programs from text with a line of dashes between them."""
    return tuple(program.strip("\n") for program in text.split("---"))


PROGRAMS = read_programs(
    """
a = <a>
b = <b>
print(a + b)
---
a = <a>
b = <b>
print(a * b - <c>)
---
a = <a>
a = a + <b>
a = a * 2
print(a)
---
print(<a> + <b> * <c>)
---
print((<a> + <b>) * <c>)
---
print(<a> * <b> // <c>)
---
print((<a> * <b>) % <c>)
---
word = "<word>"
print(word.upper())
---
word = "<word>"
print(len(word))
---
word = "<word>"
print(word[::-1])
---
word = "<word>"
print(word[0] + word[-1])
---
word = "<word>"
print(word[:<c>])
---
word = "<word>"
print("<letter>" in word)
---
word = "<word>"
print(word.count("<letter>"))
---
for number in range(<c>):
    print(number * <a>)
---
total = 0
for number in range(1, <c> + 1):
    total += number
print(total)
---
numbers = [<a>, <b>, <c>]
print(sum(numbers))
---
numbers = [<a>, <b>, <c>]
numbers.append(<d>)
print(len(numbers), max(numbers))
---
numbers = [<a>, <b>, <c>, <d>]
print(sorted(numbers))
---
numbers = [<a>, <b>, <c>, <d>]
print([number * 2 for number in numbers])
---
numbers = [<a>, <b>, <c>, <d>]
for number in numbers:
    if number > <e>:
        print(number)
print("done")
---
numbers = [<a>, <b>, <c>, <d>]
print(numbers[0] - numbers[-1])
---
number = <a>
if number % 2 == 0:
    print("even")
else:
    print("odd")
---
number = <a>
while number > <c>:
    number -= <c>
print(number)
---
age = <a>
name = "<name>"
print(f"{name} is {age} years old.")
---
fruit = {"<fruit>": <a>, "bananas": <b>}
print(fruit["<fruit>"] + fruit["bananas"])
---
fruit = {"<fruit>": <a>}
fruit["bananas"] = <b>
for name, count in fruit.items():
    print(name, count)
---
def double(number):
    return number * 2


print(double(<a>) + double(<b>))
---
def greet(name):
    return "Hello, " + name


print(greet("<name>"))
---
words = ["<word>", "<name>"]
print("-".join(words))
---
for row in range(1, <c>):
    print("*" * row)
---
pairs = [(number, number * <a>) for number in range(1, <c>)]
print(pairs[-1])
---
low, high = <a>, <b>
low, high = high, low
print(low, high)
---
text = "<name> likes <fruit>"
print(text.split()[1])
"""
)

ASSIGNMENTS = (
    (
        "stores the sum of the whole numbers from 1 to <a> in the variable total",
        "total = sum(range(1, <a> + 1))",
        "total",
        "<a> * (<a> + 1) // 2",
    ),
    (
        "makes a list called numbers with the whole numbers from <c> to <a>",
        "numbers = list(range(<c>, <a> + 1))",
        "numbers",
        "[number for number in range(<a> + 1) if number >= <c>]",
    ),
    (
        "makes a list called squares with the squares of the numbers from 1 to <c>",
        "squares = [number ** 2 for number in range(1, <c> + 1)]",
        "squares",
        "[number * number for number in range(1, <c> + 1)]",
    ),
    (
        "stores the area of a room of <a> by <b> metres in the variable area",
        "length = <a>\nwidth = <b>\narea = length * width",
        "area",
        "<a> * <b>",
    ),
    (
        'stores the word "<word>" in capital letters in the variable loud',
        'loud = "<word>".upper()',
        "loud",
        "''.join(letter.upper() for letter in '<word>')",
    ),
    (
        'counts the letters of the word "<word>" and stores the count in the variable letters',
        'letters = len("<word>")',
        "letters",
        "sum(1 for letter in '<word>')",
    ),
    (
        "makes a dictionary called prices in which <fruit> cost <a> and bananas cost <b>",
        'prices = {"<fruit>": <a>, "bananas": <b>}',
        "prices",
        "dict([('<fruit>', <a>), ('bananas', <b>)])",
    ),
    (
        "turns <a> hours into minutes and stores them in the variable minutes",
        "hours = <a>\nminutes = hours * 60",
        "minutes",
        "<a> * 60",
    ),
    (
        'makes the text "Hello, <name>!" from a name and stores it in the variable greeting',
        'name = "<name>"\ngreeting = f"Hello, {name}!"',
        "greeting",
        "'Hello, ' + '<name>' + '!'",
    ),
    (
        "stores the larger one of <a> and <b> in the variable larger",
        "larger = max(<a>, <b>)",
        "larger",
        "<a> if <a> > <b> else <b>",
    ),
    (
        "stores the rest of <a> divided by <c> in the variable rest",
        "rest = <a> % <c>",
        "rest",
        "<a> - <a> // <c> * <c>",
    ),
    (
        "adds the numbers <a>, <b> and <c> in a loop and stores the sum in the variable total",
        "total = 0\nfor number in [<a>, <b>, <c>]:\n    total += number",
        "total",
        "<a> + <b> + <c>",
    ),
)


def blanks(rng: Random) -> dict[str, str]:
    """Random values for the blanks of a program."""
    word = rng.choice(WORDS)
    return {
        "<a>": str(rng.randint(2, 30)),
        "<b>": str(rng.randint(2, 20)),
        "<c>": str(rng.randint(2, 5)),
        "<d>": str(rng.randint(1, 20)),
        "<e>": str(rng.randint(5, 15)),
        "<word>": word,
        "<letter>": rng.choice(word),
        "<name>": rng.choice(NAMES),
        "<fruit>": rng.choice(FRUITS),
    }


def filled(template: str, values: dict[str, str]) -> str:
    """A template with its blanks filled."""
    for blank, value in values.items():
        template = template.replace(blank, value)
    return template


def draw_program(rng: Random) -> str:
    """A random program that prints something."""
    return filled(rng.choice(PROGRAMS), blanks(rng))


def printed(source: str) -> str:
    """What a program prints."""
    out = io.StringIO()
    with redirect_stdout(out):
        exec(source, {})
    return out.getvalue().rstrip("\n")
