"""Where DPO and IPO lead in the listed world with all pairs there are, and a policy that is free: so that what a
trained policy lacks can be told apart, into what its objective asks for and what training did not reach.

Pairs are those of `sources.rows`: both responses drawn from the reference, never the same, never empty. Responses that
a source cannot tell apart have one log-ratio, so the optimum has as many unknowns as there are features.

Tensor names carry their shape: P prompts, Y responses, U different features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from preftune.sandbox.listed.language import PROMPTS
from preftune.sandbox.listed.sources import Source
from preftune.sandbox.listed.worth import reference_logps
from preftune.theory.solving import NoFiniteOptimumError
from preftune.theory.tabular import separable

_STEPS = 100


def dpo_population(source: Source, beta: float, prompts: Sequence[str] = PROMPTS) -> Tensor:
    """Where DPO leads: log-probabilities, shape (P, Y), float64.

    With Bradley-Terry labels that is the optimum of the reward itself.

    Args:
        source: who labels.
        beta: reward per nat, > 0.
        prompts: texts of three words.

    Raises:
        NoFiniteOptimumError: if some responses are always preferred to others.
    """
    return _population(source, prompts, lambda preference_UU, mass_U: _strengths(preference_UU, mass_U) / beta)


def ipo_population(source: Source, tau: float, prompts: Sequence[str] = PROMPTS) -> Tensor:
    """Where IPO (on summed log-probs) leads: log-probabilities, shape (P, Y), float64.

    The reward is the probability to be preferred to another response of the reference (Azar et al. 2023).

    Args:
        source: who labels.
        tau: regularisation, > 0.
        prompts: texts of three words.
    """
    return _population(source, prompts, lambda preference_UU, mass_U: preference_UU @ mass_U / tau)


def _population(source: Source, prompts: Sequence[str], ratio: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    found = []
    for reference_Y, feature_YG in zip(reference_logps(prompts), source.features(prompts), strict=True):
        feature_UG, kind_Y = feature_YG[1:].unique(dim=0, return_inverse=True)
        mass_U = torch.zeros(len(feature_UG), dtype=torch.float64)
        mass_U.index_add_(0, kind_Y, reference_Y[1:].softmax(0))
        ratio_Y = ratio(source.prefers(feature_UG[:, None], feature_UG[None]), mass_U)[kind_Y]
        # no pair says anything of the empty response: as in `theory.tabular`, it stays where the others are on average
        found.append((reference_Y + torch.cat([ratio_Y.mean()[None], ratio_Y])).log_softmax(0))
    return torch.stack(found)


def _strengths(preference_UU: Tensor, mass_U: Tensor) -> Tensor:
    """Bradley-Terry strengths of kinds of responses whose pairs are drawn with the product of their masses.

    Damped Newton steps as in `theory.bradley_terry`. There an item at a time is taken out, for weights of any kind;
    here every two kinds meet, and unknowns scaled by the root of their mass make an even matrix of any such weights.
    """
    weight_UU = mass_U[:, None] * mass_U
    if separable(preference_UU * weight_UU * (1 - torch.eye(len(mass_U)))):
        raise NoFiniteOptimumError("some responses are always preferred to others: DPO widens the log-ratio for ever")
    root_U = mass_U.sqrt()
    strength_U = torch.zeros_like(mass_U)
    for _ in range(_STEPS):
        p_UU = torch.sigmoid(strength_U[:, None] - strength_U)
        gradient_U = (weight_UU * (preference_UU - p_UU)).sum(1)
        both_UU = weight_UU * p_UU * p_UU.T * 2
        matrix_UU = (both_UU.sum(1).diag() - both_UU) / (root_U[:, None] * root_U)
        # strengths may all rise together: along the roots the matrix is flat, and a step there says nothing
        matrix_UU += torch.outer(root_U, root_U)
        step_U = 2 * torch.linalg.solve(matrix_UU, gradient_U / root_U) / root_U
        step_U -= (mass_U * step_U).sum()
        change = float(step_U.max() - step_U.min())
        strength_U = strength_U + step_U * (torch.log1p(torch.tensor(change)) / change if change else 1.0)
        if change < 1e-9:
            return strength_U
    raise NoFiniteOptimumError("no strengths were found: some responses are all but always preferred to others")
