"""How many calls may be sent and how many tokens they may take: limits that hold whatever happens."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from preftune.errors import PreftuneError


class BudgetError(PreftuneError):
    """The budget is used up."""


@dataclass
class Budget:
    """What may be spent, and what has been; threads share it.

    Before a call, the most that it can take is put aside; afterwards what it took is counted instead. A call that may
    have been paid without our knowing (it timed out, or the process was killed) keeps counting as the most.

    Attributes:
        max_calls: requests that may be sent, repeated ones included; None: any number.
        max_tokens: tokens of prompts and answers together; None: any number.
        calls: requests sent.
        tokens: tokens spent.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    calls: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        for name, value in (("calls", self.max_calls), ("tokens", self.max_tokens)):
            if value is not None and value < 1:
                raise PreftuneError(f"the budget of {name} is {value}, expected at least 1")
        self._aside = 0
        self._changed = threading.Condition()

    def put_aside(self, tokens: int) -> None:
        """Before a call that takes at most `tokens`. Waits for calls under way if their rest may be enough.

        Raises:
            BudgetError: if it is not.
        """
        with self._changed:
            if self.max_calls is not None and self.calls >= self.max_calls:
                raise BudgetError(
                    f"the budget of {self.max_calls:,} calls is used up ({self.tokens:,} tokens): what was answered is "
                    "kept, and the same command with a larger --max-calls goes on"
                )
            limit = self.max_tokens
            while limit is not None and self.tokens + self._aside + tokens > limit:
                if not self._aside:
                    raise BudgetError(
                        f"the budget of {limit:,} tokens is used up ({self.tokens:,} spent, and the next call may take "
                        f"{tokens:,}): what was answered is kept, and the same command with a larger --max-tokens goes "
                        "on"
                    )
                self._changed.wait()
            self.calls += 1
            self._aside += tokens

    def count(self, aside: int, tokens: int) -> None:
        """After a call for which `aside` was put aside: it took `tokens`."""
        with self._changed:
            self._aside -= aside
            self.tokens += tokens
            self._changed.notify_all()
