"""The one error that a user sees: a sentence that says what is wrong, where, and what to do."""


class PreftuneError(Exception):
    """Raised for anything a user can mend. The CLI prints its message alone and exits with code 2."""
