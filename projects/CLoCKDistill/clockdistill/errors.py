"""Exceptions for mistakes that the user can fix."""

from typing import Any


class UserError(Exception):
    """Invalid data, an invalid config or missing weights.

    The message is one sentence: what is wrong, where, and how to fix it. Entry points print it without a traceback and
    exit with status 1.
    """


class InvalidValue(UserError):
    """A value that a parameter or key of a config cannot have.

    Args:
        name: of the parameter, or the dotted key.
        value: as given.
        expected: completes "it must be …".
    """

    def __init__(self, name: str, value: Any, expected: str):
        super().__init__(f"{name} cannot be {value!r}: it must be {expected}")
        self.name, self.value, self.expected = name, value, expected

    def __reduce__(self) -> tuple:
        return type(self), (self.name, self.value, self.expected)

    def at(self, key: str) -> "InvalidValue":
        """Return the error with the key of the section whose parameter this is."""
        return type(self)(f"{key}.{self.name}", self.value, self.expected)


class MissingDataset(UserError):
    """A dataset that is not in Detectron2's catalog, or whose files do not exist."""


class UnreadableImage(UserError):
    """An image file that does not exist or cannot be decoded."""
