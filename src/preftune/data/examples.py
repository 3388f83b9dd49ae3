"""Token-level examples: one prompt and the responses to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from preftune.objectives.batch import Role

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Response:
    """One response to a prompt, as token ids.

    Attributes:
        ids: all its tokens, end token included, shape (tokens,).
        role: what it is to its example.
        score: label (1 good, 0 bad), rank or reward; NaN where there is none.
        targets: True for tokens that the policy answers for, shape (tokens,); None if all are (in a response of several
            turns, the user's turns are read but are no targets).
        token: further values per target (old log-probs, advantages), each of shape (targets,).
    """

    ids: Ids
    role: Role
    score: float = math.nan
    targets: NDArray[np.bool_] | None = None
    token: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Number of targets."""
        return len(self.ids) if self.targets is None else int(self.targets.sum())

    @property
    def name(self) -> str:
        """What it is to its example, in words."""
        if self.role == Role.LABELLED:
            return "good response" if self.score else "bad response"
        if self.role == Role.RANKED:
            return f"response with score {self.score:g}"
        return self.role.name.lower()


@dataclass(frozen=True)
class Example:
    """One prompt and the responses to it: one (a demonstration), two (a pair) or n (rankings, rollouts).

    Attributes:
        prompt: token ids, at least one (the first response token is predicted from the last prompt token).
        responses: at least one, each with at least one target.
        row: index of the record in its source, for messages.
        weight: weight in the loss.
        confidence: probability that chosen is better.
        gap: rated difference of chosen and rejected; NaN where there is none.
    """

    prompt: Ids
    responses: tuple[Response, ...]
    row: int = -1
    weight: float = 1.0
    confidence: float = 1.0
    gap: float = math.nan

    @property
    def tokens(self) -> int:
        """Tokens of the prompt tree: the prompt once, and every response."""
        return len(self.prompt) + sum(len(response.ids) for response in self.responses)
