"""Small functions as tasks: what they do, a short form, a form in steps and cases to try.

A task is written as a block of text. Its first line has the possible names of the function, then
the possible names of its argument; the second line says what the function does; the third is the
short form as one expression; the fourth has the cases. The rest is the body in steps. `{x}` is
the argument and `{n}` a number that differs from row to row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from textwrap import indent


@dataclass(frozen=True)
class Task:
    """A function that can be asked for."""

    names: tuple[str, ...]
    arguments: tuple[str, ...]
    goal: str
    short: str
    cases: tuple[str, ...]
    body: str


@dataclass(frozen=True)
class Function:
    """A task with its names and its number chosen."""

    name: str
    argument: str
    goal: str
    short: str
    body: str
    cases: tuple[str, ...]

    def source(self, in_one_line: bool = False) -> str:
        """The function as Python code."""
        body = f"return {self.short}" if in_one_line else self.body
        opening = "import math\n\n\n" if "math." in body else ""
        return f"{opening}def {self.name}({self.argument}):\n{indent(body, '    ')}"

    def result(self, case: str) -> str:
        """What the function returns for a case, by its short form."""
        return evaluate(self.short, self.argument, case)

    def checks(self) -> list[str]:
        """Statements that hold when the function is right."""
        results = [(case, self.result(case)) for case in self.cases]
        return [
            f"assert {self.name}({case}) {'is' if result in ('True', 'False') else '=='} {result}"
            for case, result in results
        ]


@cache
def evaluate(expression: str, argument: str, case: str) -> str:
    """The value of an expression, as Python writes it, when its argument has a given value."""
    return repr(eval(expression, {"math": math, argument: eval(case)}))


def fill(task: Task, name: str, argument: str, number: int) -> Function:
    """The function of a task with chosen names and number."""

    def text(template: str) -> str:
        return template.replace("{x}", argument).replace("{n}", str(number))

    return Function(name, argument, text(task.goal), text(task.short), text(task.body), task.cases)


def read_tasks(text: str) -> tuple[Task, ...]:
    """Tasks from text: blocks with empty lines between them."""

    def read(block: str) -> Task:
        signature, goal, short, cases, *body = block.splitlines()
        names, arguments = (tuple(part.split()) for part in signature.split("|"))
        return Task(names, arguments, goal, short, tuple(cases.split("; ")), "\n".join(body))

    return tuple(read(block) for block in text.strip().split("\n\n"))


NUMBERED_TASKS = read_tasks(
    """
count_above how_many_above | numbers values
returns how many numbers in a list are greater than {n}
sum(1 for number in {x} if number > {n})
[3, 8, 12, 5, 20]; []; [1, 50]
count = 0
for number in {x}:
    if number > {n}:
        count += 1
return count

keep_above only_above | numbers values
returns the numbers of a list that are greater than {n}
[number for number in {x} if number > {n}]
[3, 8, 12, 5, 20]; []; [40, 1]
result = []
for number in {x}:
    if number > {n}:
        result.append(number)
return result

keep_below only_below | numbers values
returns the numbers of a list that are smaller than {n}
[number for number in {x} if number < {n}]
[3, 8, 12, 5, 1]; []; [40, 2]
result = []
for number in {x}:
    if number < {n}:
        result.append(number)
return result

add_to_all raise_all | numbers values
adds {n} to each number in a list and returns the new list
[number + {n} for number in {x}]
[1, 2, 3]; []; [10, -4]
result = []
for number in {x}:
    result.append(number + {n})
return result

multiply_all scale_all | numbers values
multiplies each number in a list by {n} and returns the new list
[number * {n} for number in {x}]
[1, 2, 3]; []; [10, -4]
result = []
for number in {x}:
    result.append(number * {n})
return result

sum_of_multiples add_multiples | numbers values
returns the sum of the numbers in a list that can be divided by {n}
sum(number for number in {x} if number % {n} == 0)
[2, 3, 4, 5, 6, 7, 8, 9, 10]; [12, 36]; []
total = 0
for number in {x}:
    if number % {n} == 0:
        total += number
return total

is_multiple can_be_divided | number value
tells whether a number can be divided by {n} without a rest
{x} % {n} == 0
12; 35; 0
if {x} % {n} == 0:
    return True
return False

times_table multiples | count length
returns a list with the first multiples of {n}, as many as the argument says
[{n} * factor for factor in range(1, {x} + 1)]
3; 1; 5
result = []
for factor in range(1, {x} + 1):
    result.append({n} * factor)
return result

last_items tail | items values
returns the last {n} items of a list
{x}[-{n}:]
[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]; ['a', 'b']; []
start = len({x}) - {n}
if start < 0:
    start = 0
return {x}[start:]

first_items head | items values
returns the first {n} items of a list
{x}[:{n}]
[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]; ['a', 'b']; []
result = []
for item in {x}:
    if len(result) < {n}:
        result.append(item)
return result

repeat_text repeat | text word
repeats a text {n} times and returns the result
{x} * {n}
'ab'; ''; 'no'
result = ''
for step in range({n}):
    result += {x}
return result

long_words words_longer_than | words texts
returns the words of a list that have more than {n} letters
[word for word in {x} if len(word) > {n}]
['sun', 'river', 'a', 'mountain', 'elephants']; []; ['to']
result = []
for word in {x}:
    if len(word) > {n}:
        result.append(word)
return result

limit cut_at | number value
returns a number, but {n} when the number is greater than {n}
min({x}, {n})
1; 100; 7
if {x} > {n}:
    return {n}
return {x}

power to_the_power | number base
returns a number to the power of {n}
{x} ** {n}
2; 3; -1
result = 1
for step in range({n}):
    result *= {x}
return result
"""
)
