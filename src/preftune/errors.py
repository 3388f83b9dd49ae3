"""The one error that a user sees: a sentence that says what is wrong, where, and what to do."""


class PreftuneError(Exception):
    """Raised for anything a user can mend. The CLI prints its message alone and exits with code 2.

    What the message quotes may hold line ends and other characters that do not print: they are shown as escapes, so
    that it stays one line.

    Example:
        >>> print(PreftuneError("there is no key 'a\\nb'"))
        there is no key 'a\\nb'
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(each if each.isprintable() else ascii(each)[1:-1] for each in message))
