"""Pieces of LaTeX for the mathematics problems."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Problem:
    """A problem with its steps and its result, which the last step ends with."""

    type: str
    level: int
    problem: str
    steps: tuple[str, ...]
    result: str

    def solution(self) -> str:
        """The worked solution with its result in a box."""
        *steps, last = self.steps
        return " ".join((*steps, last.replace("[result]", f"\\boxed{{{self.result}}}")))


def fraction(value: Fraction | int) -> str:
    """A number in lowest terms."""
    exact = Fraction(value)
    sign = "-" if exact < 0 else ""
    if exact.denominator == 1:
        return str(exact.numerator)
    return f"{sign}\\frac{{{abs(exact.numerator)}}}{{{exact.denominator}}}"


def plain_fraction(numerator: int, denominator: int) -> str:
    """A fraction as it stands, not reduced."""
    return f"\\frac{{{numerator}}}{{{denominator}}}"


def lowest_terms(numerator: int, denominator: int) -> str:
    """A fraction and, where it can be reduced, its lowest terms; the last of them is the result."""
    if Fraction(numerator, denominator).denominator == denominator:
        return "$[result]$"
    return f"${plain_fraction(numerator, denominator)} = [result]$"


def power(base: int | str, exponent: int) -> str:
    """A power; exponents with several digits are put in braces."""
    return f"{base}^{exponent}" if 0 <= exponent < 10 else f"{base}^{{{exponent}}}"


def polynomial(coefficients: list[int], variable: str = "x") -> str:
    """A polynomial from its coefficients, the highest power first."""
    parts: list[str] = []
    degree = len(coefficients) - 1
    for place, coefficient in enumerate(coefficients):
        exponent = degree - place
        if coefficient == 0:
            continue
        size = abs(coefficient)
        symbol = "" if exponent == 0 else variable if exponent == 1 else power(variable, exponent)
        number = "" if size == 1 and symbol else str(size)
        sign = (
            ("-" if coefficient < 0 else "") if not parts else (" - " if coefficient < 0 else " + ")
        )
        parts.append(f"{sign}{number}{symbol}")
    return "".join(parts) or "0"


def in_brackets(value: int) -> str:
    """A number, in brackets when it is negative."""
    return f"({value})" if value < 0 else str(value)


def complex_number(real: int, imaginary: int) -> str:
    """A complex number such as 3 - 2i."""
    if imaginary == 0:
        return str(real)
    size = "" if abs(imaginary) == 1 else str(abs(imaginary))
    if real == 0:
        return f"{'-' if imaginary < 0 else ''}{size}i"
    return f"{real} {'-' if imaginary < 0 else '+'} {size}i"
