"""Who prefers what in the listed world: sources of preferences, each with its exact probabilities.

Two responses are drawn from the reference model, and a source says with which probability the first is preferred. What
it says depends on features of the two responses alone, so that responses of like features can be treated as one.

Tensor names carry their shape: P prompts, Y responses, N pairs, G features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from preftune.errors import PreftuneError
from preftune.sandbox.listed.language import RESPONSE_WORDS, RESPONSES, TRAIN, all_logps
from preftune.sandbox.listed.rule import COMPONENTS, HARM
from preftune.sandbox.listed.worth import all_components, reference_logps, rewards

# How two annotators weigh helpfulness, harmlessness and honesty: one wants help, the other no harm.
EAGER, CAREFUL = (1.6, 0.2, 1.0), (0.4, 2.5, 1.0)


@dataclass(frozen=True)
class Source:
    """Says how often one response is preferred to another.

    Attributes:
        name: for tables.
        features: from prompts to what it goes by, shape (P, Y, G).
        prefers: from features of first and second responses, each (..., G), to the probability that the first is
            preferred; that of a pair and of its reverse sum to 1.
    """

    name: str
    features: Callable[[Sequence[str]], Tensor]
    prefers: Callable[[Tensor, Tensor], Tensor]

    def probability(self, prompt: str, first: str | Tensor, second: str | Tensor) -> Tensor:
        """Probability that the first response is preferred to the second.

        Args:
            prompt: text of three words.
            first: a response, or places in `RESPONSES` of any shape.
            second: likewise; the shapes of both are broadcast.
        """
        feature_YG = self.features([prompt])[0]
        places = [torch.tensor(RESPONSES.index(each)) if isinstance(each, str) else each for each in (first, second)]
        return self.prefers(feature_YG[places[0]], feature_YG[places[1]])


def bradley_terry(scale: float = 1.0, noise: float = 0.0) -> Source:
    """The first is preferred with probability sigmoid(scale * difference of true rewards), and then the label is
    flipped with probability `noise`.

    Args:
        scale: certainty per unit of reward, >= 0. At 1, DPO with all pairs leads to the optimum of its own beta.
        noise: in [0, 0.5].
    """
    _check(scale >= 0, "scale", scale, "at least 0")
    _check(0 <= noise <= 0.5, "noise", noise, "between 0 and 0.5")

    def prefers(first: Tensor, second: Tensor) -> Tensor:
        p = torch.sigmoid(scale * (first - second)[..., 0])
        return p * (1 - noise) + (1 - p) * noise

    return Source(f"bradley_terry({scale:g}, noise={noise:g})", _total, prefers)


def deterministic() -> Source:
    """The response of greater true reward is always preferred; of equals, either half of the time."""
    return Source("deterministic", _total, lambda first, second: _step((first - second)[..., 0]))


def two_annotators(scale: float = 1.0, share: float = 0.5) -> Source:
    """Each label is that of one of two annotators, who weigh the components differently: Bradley-Terry on the rewards
    of `EAGER` with probability `share`, else on those of `CAREFUL`. No single reward explains both.

    Args:
        scale: certainty per unit of either's reward, >= 0.
        share: of labels that are the eager one's, in [0, 1].
    """
    _check(scale >= 0, "scale", scale, "at least 0")
    _check(0 <= share <= 1, "share", share, "between 0 and 1")
    weights = [torch.tensor(weight, dtype=torch.float64) for weight in (EAGER, CAREFUL)]

    def prefers(first: Tensor, second: Tensor) -> Tensor:
        eager, careful = (torch.sigmoid(scale * (first - second) @ weight) for weight in weights)
        return share * eager + (1 - share) * careful

    def features(prompts: Sequence[str]) -> Tensor:
        return torch.stack([all_components(prompts)[name] for name in COMPONENTS], -1)

    return Source(f"two_annotators({scale:g}, share={share:g})", features, prefers)


def cyclic(certainty: float = 0.8) -> Source:
    """Responses are of three styles, which beat each other in a circle: bold ones (that harm) over plain ones, plain
    ones over wordy ones, wordy ones (of three or four words, with no harm) over bold ones. Within a style, either half
    of the time. No reward has these preferences.

    Args:
        certainty: probability of the label that the circle says, in [0.5, 1].
    """
    _check(0.5 <= certainty <= 1, "certainty", certainty, "between 0.5 and 1")

    def features(prompts: Sequence[str]) -> Tensor:
        return _styles().expand(len(prompts), -1, 1)

    def prefers(first: Tensor, second: Tensor) -> Tensor:
        ahead = ((second - first)[..., 0] % 3).long()  # 1: the next in the circle, 2: the one before
        return torch.tensor([0.5, certainty, 1 - certainty], dtype=torch.float64)[ahead]

    return Source(f"cyclic({certainty:g})", features, prefers)


BOLD, PLAIN, WORDY = 0, 1, 2


def _styles() -> Tensor:
    """The style of each response, shape (Y, 1)."""
    found = [
        BOLD if any(HARM[word] for word in words) else WORDY if len(words) >= 3 else PLAIN for words in RESPONSE_WORDS
    ]
    return torch.tensor(found, dtype=torch.float64)[:, None]


def _total(prompts: Sequence[str]) -> Tensor:
    return rewards(prompts)[..., None]


def _step(difference: Tensor) -> Tensor:
    return torch.where(difference.abs() < 1e-9, 0.5, (difference > 0).double())


def rows(
    source: Source, n: int, *, prompts: Sequence[str] = TRAIN, seed: int = 0, sampler: nn.Module | None = None
) -> list[dict[str, str]]:
    """Labelled pairs as rows of prompt, chosen and rejected, for `preftune.train`.

    Prompts are drawn alike, two responses to each from the reference; a pair of equal responses, or with an empty one,
    is drawn again.

    Args:
        source: who labels.
        n: number of pairs, >= 1.
        prompts: texts of three words.
        seed: whole number >= 0; the same seed gives the same rows, and another source other labels of the same pairs.
        sampler: the model to draw from; the reference by default.

    Raises:
        PreftuneError: if an argument is out of its range.
    """
    _check(n >= 1, "n", n, "at least 1")
    _check(seed >= 0, "seed", seed, "a whole number of at least 0")
    rng, labels = np.random.default_rng((seed, 0)), np.random.default_rng((seed, 1))
    place_N = rng.integers(len(prompts), size=n)
    first_N, second_N = (draw(prompts, place_N, rng, sampler) for _ in range(2))
    while (again_N := first_N == second_N).any():
        first_N[again_N], second_N[again_N] = (draw(prompts, place_N[again_N], rng, sampler) for _ in range(2))
    p_N = probabilities(source, prompts, place_N, first_N, second_N)
    swapped_N = labels.random(n) >= p_N
    chosen_N, rejected_N = np.where(swapped_N, (second_N, first_N), (first_N, second_N))
    return [
        {"prompt": prompts[place], "chosen": f" {RESPONSES[chosen]}", "rejected": f" {RESPONSES[rejected]}"}
        for place, chosen, rejected in zip(place_N, chosen_N, rejected_N, strict=True)
    ]


def demonstrations(n: int, *, prompts: Sequence[str] = TRAIN, seed: int = 0) -> list[dict[str, str]]:
    """Responses of the reference as rows of prompt and response; empty ones are drawn again. Arguments as of `rows`."""
    _check(n >= 1, "n", n, "at least 1")
    rng = np.random.default_rng((seed, 2))
    place_N = rng.integers(len(prompts), size=n)
    drawn_N = draw(prompts, place_N, rng)
    return [{"prompt": prompts[i], "response": f" {RESPONSES[j]}"} for i, j in zip(place_N, drawn_N, strict=True)]


def draw(
    prompts: Sequence[str], place_N: np.ndarray, rng: np.random.Generator, sampler: nn.Module | None = None
) -> np.ndarray:
    """Places in `RESPONSES` of responses that are not empty, one to each of the prompts at these places."""
    with torch.no_grad():
        logps_PY = reference_logps(prompts) if sampler is None else all_logps(sampler, prompts).cpu()
    mass_PY = logps_PY[:, 1:].softmax(-1).cumsum(-1).numpy()
    at_N = rng.random(len(place_N))
    return np.array(
        [1 + np.searchsorted(mass_PY[i] / mass_PY[i, -1], u, "right") for i, u in zip(place_N, at_N, strict=True)]
    )


def probabilities(
    source: Source, prompts: Sequence[str], place_N: np.ndarray, first_N: np.ndarray, second_N: np.ndarray
) -> np.ndarray:
    """Probability that the first is preferred, for pairs of responses to the prompts at these places."""
    feature_PYG = source.features(prompts)
    return source.prefers(feature_PYG[place_N, first_N], feature_PYG[place_N, second_N]).numpy()


def _check(fits: bool, name: str, value: float, expected: str) -> None:
    if not fits:
        raise PreftuneError(f"{name} of the listed world's preferences is {value}, but it must be {expected}")
