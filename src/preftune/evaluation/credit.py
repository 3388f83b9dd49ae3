"""Credit per token: what a policy thinks of each step of an answer, read off its log-probs.

A policy that learned from preferences about whole answers is also a value function: `beta * log(policy / reference)`
of a token is its advantage (Rafailov, Hejna, Park and Finn 2024, "From r to Q*: Your Language Model is Secretly a
Q-Function", arXiv 2404.12358). Summed over an answer it is the implicit reward; summed over a line, a sentence or a
turn it is the credit of that step. For objectives without a reference, the model before training stands for it.

Tensor names carry their shape: T tokens of a response, K targets of a batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preftune.data.examples import Example, Response
from preftune.data.packing import PackedBatch
from preftune.objectives.base import Objective
from preftune.objectives.batch import LogProbs

Array = NDArray[np.float64]
Split = Literal["line", "sentence", "turn"]
Words = Callable[[Sequence[int]], list[str]]

SIDES = ("chosen", "rejected")
SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f]['\")\]]?\s*$")


@dataclass(frozen=True, eq=False)
class TokenCredit:
    """The credit of one response.

    Attributes:
        tokens: text of each token.
        logps_T: log-probs under the policy, nats; NaN for tokens that the policy does not answer for (a user's turns).
        reference_logps_T: the same under the reference.
        beta: units of reward per nat.
    """

    tokens: list[str]
    logps_T: Array
    reference_logps_T: Array
    beta: float

    @property
    def credit_T(self) -> Array:
        """Credit of each token; NaN where it has none."""
        return self.beta * (self.logps_T - self.reference_logps_T)

    @property
    def total(self) -> float:
        """The implicit reward of the response."""
        return float(np.nansum(self.credit_T))

    @property
    def cumulative_T(self) -> Array:
        """Reward collected up to each token, that token included."""
        return np.nancumsum(self.credit_T)

    def as_json(self) -> dict[str, Any]:
        """As a line of credit.jsonl has it; masked tokens are null."""
        values: dict[str, Array] = {
            "credit": self.credit_T,
            "logps": self.logps_T,
            "reference_logps": self.reference_logps_T,
        }
        rounded = {name: [None if np.isnan(v) else round(float(v), 6) for v in row] for name, row in values.items()}
        return {"tokens": self.tokens, **rounded}

    @classmethod
    def from_json(cls, values: dict[str, Any], beta: float) -> TokenCredit:
        """What `as_json` gave."""
        logps, reference = (np.array(values[name], dtype=np.float64) for name in ("logps", "reference_logps"))
        return cls([str(token) for token in values["tokens"]], logps, reference, beta)


@dataclass(frozen=True)
class PairCredit:
    """The credit of a pair, token by token.

    Attributes:
        row: of the record in its source.
        prompt: as text.
        chosen: the better response.
        rejected: the worse one.
    """

    row: int
    prompt: str
    chosen: TokenCredit
    rejected: TokenCredit

    @property
    def margin(self) -> float:
        """Chosen reward less rejected reward."""
        return self.chosen.total - self.rejected.total

    def deciding(self, most: int = 5) -> list[tuple[str, int, float]]:
        """The tokens that decide the pair: side, place and what each adds to the margin, the largest first.

        Tokens of a beginning that both responses share add nothing, since what one side gains the other does too.
        """
        shared = _shared(self.chosen.tokens, self.rejected.tokens)
        parts = [
            (side, place, sign * float(credit))
            for side, sign in zip(SIDES, (1, -1), strict=True)
            for place, credit in enumerate(getattr(self, side).credit_T)
            if place >= shared and not np.isnan(credit)
        ]
        return sorted(parts, key=lambda part: -abs(part[2]))[:most]

    def as_json(self) -> dict[str, Any]:
        """A line of credit.jsonl."""
        sides = {name: getattr(self, name).as_json() for name in SIDES}
        return {"row": self.row, "prompt": self.prompt, "beta": self.chosen.beta, **sides}

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> PairCredit:
        """What `as_json` gave."""
        sides = (TokenCredit.from_json(line[name], float(line["beta"])) for name in SIDES)
        return cls(int(line["row"]), str(line["prompt"]), *sides)


def unit(objectives: Sequence[Objective]) -> float:
    """Units of reward per nat: beta or tau of the first objective that has one; else 1, so that credit is in nats."""
    found = (scale(objective) for objective in objectives)
    return next((value for value in found if value is not None), 1.0)


def scale(objective: Objective) -> float | None:
    """Reward per nat of an objective: its beta, or tau; None if it has neither."""
    fields = objective.describe()
    return next((float(v) for name in ("beta", "tau") if isinstance(v := fields.get(name), int | float)), None)


def credits_of(
    examples: Sequence[Example],
    batch: PackedBatch,
    policy: LogProbs,
    reference: LogProbs,
    beta: float,
    words: Words,
) -> Iterator[list[TokenCredit]]:
    """The credit of each response of each example.

    Args:
        examples: those of the batch, in its order.
        batch: what was computed.
        policy: its log-probs.
        reference: likewise.
        beta: units of reward per nat.
        words: gives the text of each token id.
    """
    path_K = batch.position_T[batch.source_K].cpu().numpy()
    response_K = batch.response_K.cpu().numpy()
    # whatever the layout: by response, and in it along the path
    order = np.lexsort((path_K, response_K))
    values = [each.logps_K.detach().double().cpu().numpy()[order] for each in (policy, reference)]
    ends = np.cumsum(np.bincount(response_K, minlength=len(batch.example_R)))
    number = 0
    for example in examples:
        found = []
        for response in example.responses:
            part = slice(ends[number] - response.length, ends[number])
            ours, theirs = (spread(value[part], response) for value in values)
            found.append(TokenCredit(words(response.ids.tolist()), ours, theirs, beta))
            number += 1
        yield found


def steps(tokens: Sequence[str], split: Split, masked: ArrayLike | None = None) -> NDArray[np.int64]:
    """The step that each token belongs to, from 0 on; a step ends with the token that ends its line or sentence.

    Args:
        tokens: text of each.
        split: "line", "sentence", or "turn": what lies between masked tokens.
        masked: True for tokens that the policy does not answer for; needed for turns.
    """
    if split == "turn":
        off = np.zeros(len(tokens), bool) if masked is None else np.asarray(masked, bool)
        begins = ~off & np.concatenate([[True], off[:-1]])[: len(off)]
        return np.maximum(np.cumsum(begins) - 1, 0)
    number, filled, over = 0, False, False
    found: list[int] = []
    for token in tokens:
        content = bool(token.strip())
        if over and content:  # blank lines belong to the step before them
            number, filled, over = number + 1, False, False
        filled = filled or content
        over = over or (filled and _ends(token, split))
        found.append(number)
    return np.array(found, dtype=np.int64)


def step_credit(credit: TokenCredit, split: Split) -> Array:
    """Credit of each step of a response, summed over its tokens."""
    masked = np.isnan(credit.credit_T)
    weights = np.where(masked, 0.0, credit.credit_T)
    return np.bincount(steps(credit.tokens, split, masked), weights).astype(np.float64)


def _ends(token: str, split: Split) -> bool:
    return "\n" in token if split == "line" else bool(SENTENCE_END.search(token)) or "\n" in token


def spread(values_K: Array, response: Response) -> Array:
    """Values of a response's targets over all its tokens; NaN for those that the policy does not answer for."""
    if response.targets is None:
        return values_K
    spread = np.full(len(response.ids), np.nan)
    spread[response.targets] = values_K
    return spread


def _shared(first: Sequence[str], second: Sequence[str]) -> int:
    """Tokens of the longest common beginning."""
    shortest = min(len(first), len(second))
    return next((i for i in range(shortest) if first[i] != second[i]), shortest)
