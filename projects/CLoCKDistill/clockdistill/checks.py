"""Checks of the values that constructors get from configs."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import InvalidValue


class Rule(NamedTuple):
    """A condition and its description, which completes "it must be …"."""

    holds: Callable[[Any], bool]
    text: str


def checked(**rules: Rule) -> Callable:
    """Check arguments of a function, by name, before it is called.

    Raises:
        InvalidValue: an argument breaks its rule.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs).arguments
            check(arguments, rules)
            return function(*args, **kwargs)

        return call

    return decorate


def check(values: dict[str, Any], rules: dict[str, Rule]) -> None:
    """Check those of the values that have a rule."""
    for name, rule in rules.items():
        if name in values and not rule.holds(values[name]):
            raise InvalidValue(name, values[name], rule.text)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def at_least(minimum: float) -> Rule:
    return Rule(lambda value: is_number(value) and value >= minimum, f"at least {minimum}")


def above(bound: float) -> Rule:
    return Rule(lambda value: is_number(value) and value > bound, f"greater than {bound}")


def between(low: float, high: float) -> Rule:
    return Rule(lambda value: is_number(value) and low <= value <= high, f"between {low} and {high}")


def multiple_of(factor: int) -> Rule:
    return Rule(lambda value: is_count(value) and value % factor == 0, f"a multiple of {factor}")


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, f"one of {', '.join(choices)}")


def some_of(*choices: str) -> Rule:
    return Rule(lambda value: len(value) > 0 and set(value) <= set(choices), f"some of {', '.join(choices)}")


def numbers(count: int, each: Rule) -> Rule:
    return Rule(
        lambda value: len(value) == count and all(map(each.holds, value)), f"{count} numbers, each of them {each.text}"
    )


def optional(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.holds(value), f"null or {rule.text}")


boolean = Rule(lambda value: isinstance(value, bool), "True or False")
finite = Rule(is_number, "a finite number")
not_negative = at_least(0)
fraction = between(0, 1)
count = Rule(is_count, "a whole number of at least 1")
