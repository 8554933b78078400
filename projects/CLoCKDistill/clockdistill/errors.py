"""The one exception type that is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad data, a bad config or a missing weight: one sentence that names the thing and the mend.

    Entry points print the sentence alone, without a traceback, and end with exit status 1.
    """
