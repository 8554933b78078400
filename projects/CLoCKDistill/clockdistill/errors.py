"""Exceptions for mistakes that the user can fix."""


class UserError(Exception):
    """Invalid data, an invalid config or missing weights.

    The message is one sentence: what is wrong, where, and how to fix it. Entry points print it without a traceback and
    exit with status 1.
    """


class UnreadableImage(UserError):
    """An image file that does not exist or cannot be decoded."""
