"""Where objectives lead if the policy is free: softmax policies over a finite set of responses, exactly.

A policy is a table of log-probabilities, one row for each prompt, one column for each response. Preferences are
`wins_PYY`: how often, or with which weight, the row was preferred to the column, counts or probabilities alike.

Between responses that no chain of comparisons links, preferences say nothing. The optima here then keep what gradient
descent on logits keeps, from the reference: the mean log-ratio of every linked group stays that of the other groups.

Tensor names carry their shape: P prompts (any leading dimensions, or none), Y responses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from preftune.theory import bradley_terry
from preftune.theory.solving import NoFiniteOptimumError, groups, minimise, reachable

Psi = Callable[[Tensor], Tensor]


def reward_kl_optimum(reference_logps_PY: Tensor, reward_PY: Tensor, beta: float) -> Tensor:
    """The policy of greatest reward less beta times its KL divergence from the reference: pi_ref exp(r / beta) / Z.

    Args:
        reference_logps_PY: log-probabilities of the reference, nats.
        reward_PY: reward of each response.
        beta: reward per nat, > 0.

    Returns:
        Log-probabilities, shape (P, Y), float64.

    Example:
        >>> half = torch.log(torch.tensor([0.5, 0.5], dtype=torch.float64))
        >>> found = reward_kl_optimum(half, torch.tensor([0.3, 0.0]), beta=0.1).exp()  # 1 / (1 + exp(-3))
        >>> [round(p, 4) for p in found.tolist()]
        [0.9526, 0.0474]
    """
    return torch.log_softmax(reference_logps_PY.double() + reward_PY.double() / beta, dim=-1)


def f_divergence_optimum(
    reference_logps_PY: Tensor, reward_PY: Tensor, beta: float, log_inverse: Callable[[Tensor], Tensor]
) -> Tensor:
    """The policy of greatest reward less beta times its f-divergence from the reference.

    It is pi_ref (f')^-1((r - Z) / beta) with the one Z that makes the probabilities sum to 1, found by bisection.

    Args:
        reference_logps_PY: log-probabilities of the reference, nats.
        reward_PY: reward of each response.
        beta: reward per unit of f', > 0.
        log_inverse: log of the inverse of f' (the slope of f, which rises from -infinity at a ratio of 0); +infinity
            above the range of f'.

    Returns:
        Log-probabilities, shape (P, Y), float64.

    Example:
        >>> half = torch.log(torch.tensor([0.5, 0.5], dtype=torch.float64))
        >>> reverse_kl = f_divergence_optimum(half, torch.tensor([0.3, 0.0]), 0.1, lambda slope: slope - 1)
        >>> [round(p, 4) for p in reverse_kl.exp().tolist()]
        [0.9526, 0.0474]
    """
    reference, reward = reference_logps_PY.double(), reward_PY.double()

    def logps(level: Tensor) -> Tensor:
        return reference + log_inverse((reward - level) / beta)

    low, high = reward.amin(-1, keepdim=True), reward.amax(-1, keepdim=True)
    for ends, sign, too_much in ((low, -1, False), (high, 1, True)):
        width = torch.full_like(ends, beta)
        while bool((outside := (logps(ends).logsumexp(-1, keepdim=True) > 0) == too_much).any()):
            ends += torch.where(outside, sign * width, 0)
            width *= 2
    for _ in range(200):
        middle = (low + high) / 2
        too_much_there = logps(middle).logsumexp(-1, keepdim=True) > 0
        low, high = torch.where(too_much_there, middle, low), torch.where(too_much_there, high, middle)
    return torch.log_softmax(logps(high), dim=-1)


def dpo_optimum(reference_logps_PY: Tensor, wins_PYY: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Where DPO leads: pi_ref exp(s / beta) / Z, with s the Bradley-Terry strengths of the wins.

    If the wins are those of Bradley-Terry on a reward, in the proportions sigmoid(r_i - r_j), this is the optimum of
    that reward. Label smoothing (cDPO) counts each win as a loss with that probability.

    Args:
        reference_logps_PY: log-probabilities of the reference, nats.
        wins_PYY: weight with which the row was preferred to the column.
        beta: reward per nat, > 0.
        label_smoothing: in [0, 0.5).

    Raises:
        NoFiniteOptimumError: if responses win all their comparisons with others (deterministic preferences): then DPO
            widens the log-ratio for ever.
    """
    wins_PYY = (1 - label_smoothing) * wins_PYY.double() + label_smoothing * wins_PYY.double().mT
    strengths_PY = torch.stack([bradley_terry.strengths(wins) for wins in wins_PYY.reshape(-1, *wins_PYY.shape[-2:])])
    return reward_kl_optimum(reference_logps_PY, strengths_PY.reshape(reference_logps_PY.shape), beta)


def regression_optimum(reference_logps_PY: Tensor, weight_PYY: Tensor, target_PYY: Tensor) -> Tensor:
    """Where least squares on delta leads: the policy whose differences of log-ratios come closest to their targets.

    Args:
        reference_logps_PY: log-probabilities of the reference, nats.
        weight_PYY: weight of the pair (row, column), >= 0.
        target_PYY: nats by which the log-ratio of the row should exceed that of the column.

    Returns:
        Log-probabilities, shape (P, Y), float64. There always is a finite optimum.
    """
    weight, target = weight_PYY.double(), target_PYY.double()
    both = weight + weight.mT
    laplacian = torch.diag_embed(both.sum(-1)) - both
    pull = torch.where(weight > 0, weight * target, 0)
    # by default eigenvalues that rounding lifts off 0 would count as curvature
    inverse = torch.linalg.pinv(laplacian, hermitian=True, rtol=1e-12)
    ratio_PY = (inverse @ (pull - pull.mT).sum(-1, keepdim=True)).squeeze(-1)
    return torch.log_softmax(reference_logps_PY.double() + ratio_PY, dim=-1)


def ipo_optimum(reference_logps_PY: Tensor, wins_PYY: Tensor, tau: float) -> Tensor:
    """Where IPO leads: least squares of delta towards 1 / (2 tau) for every win.

    Args:
        reference_logps_PY: log-probabilities of the reference, nats.
        wins_PYY: weight with which the row was preferred to the column.
        tau: regularisation, > 0.

    Example:
        >>> third = torch.full((3,), -3.0).log_softmax(0)
        >>> order = torch.ones(3, 3).triu(1)  # the first over the second over the third
        >>> [round(p, 3) for p in ipo_optimum(third, order, tau=1.0).exp().tolist()]
        [0.448, 0.321, 0.23]
    """
    return regression_optimum(
        reference_logps_PY, wins_PYY, torch.full_like(wins_PYY, 1 / (2 * tau), dtype=torch.double)
    )


def psi_po_optimum(
    reference_logps_PY: Tensor, sampling_PY: Tensor, preference_PYY: Tensor, psi: Psi, tau: float
) -> Tensor:
    """The optimum that PsiPO defines (Azar et al. 2023, equation 6): the reward of a response is the mean of
    Psi(probability that it is preferred) over opponents, and tau the price of a nat.

    Args:
        reference_logps_PY: log-probabilities of the reference, nats.
        sampling_PY: probability that a response is drawn as the opponent; a response meets itself too.
        preference_PYY: probability that the row is preferred to the column; 1/2 on the diagonal.
        psi: a rising function of a probability, elementwise.
        tau: regularisation, > 0.

    Raises:
        NoFiniteOptimumError: if Psi is infinite at a probability that occurs: the logit of 1.
    """
    reward_PY = (psi(_probabilities(preference_PYY)) @ sampling_PY.double()[..., None]).squeeze(-1)
    _refuse_infinite(reward_PY)
    return reward_kl_optimum(reference_logps_PY, reward_PY, tau)


def psi_po_regression_optimum(
    reference_logps_PY: Tensor, sampling_PY: Tensor, preference_PYY: Tensor, psi: Psi, tau: float
) -> Tensor:
    """Where the regression on pairs leads, delta towards (Psi(p) - Psi(1 - p)) / (2 tau), both responses drawn alike.

    It is `psi_po_optimum` of the antisymmetric part of Psi, (Psi(q) - Psi(1 - q)) / 2. That is the optimum of Psi
    itself if Psi(q) + Psi(1 - q) is constant, as for the identity and the logit, and another one otherwise.

    Args:
        reference_logps_PY: log-probabilities of the reference, nats.
        sampling_PY: probability that a response is drawn, for either side of a pair.
        preference_PYY: probability that the row is preferred to the column; 1/2 on the diagonal.
        psi: a rising function of a probability, elementwise.
        tau: regularisation, > 0.

    Raises:
        NoFiniteOptimumError: if Psi is infinite at a probability that occurs: the logit of 1.
    """
    preference = _probabilities(preference_PYY)
    target_PYY = (psi(preference) - psi(1 - preference)) / (2 * tau)
    _refuse_infinite(target_PYY)
    sampling = sampling_PY.double()
    return regression_optimum(reference_logps_PY, sampling[..., :, None] * sampling[..., None, :], target_PYY)


def psi_po_gap(reference_logps_PY: Tensor, sampling_PY: Tensor, preference_PYY: Tensor, psi: Psi, tau: float) -> Tensor:
    """Total variation between what PsiPO defines and where its regression on pairs leads, shape P; arguments as there.

    Example:
        >>> third, order = torch.full((3,), 1 / 3), torch.tensor([[0.5, 0.8, 0.9], [0.2, 0.5, 0.6], [0.1, 0.4, 0.5]])
        >>> identity = psi_po_gap(third.log(), third, order, lambda q: q, tau=0.1)
        >>> square = psi_po_gap(third.log(), third, order, lambda q: q**2, tau=0.1)  # q^2 + (1 - q)^2 is not constant
        >>> round(identity.item(), 4), round(square.item(), 4)
        (0.0, 0.0214)
    """
    arguments = (reference_logps_PY, sampling_PY, preference_PYY, psi, tau)
    return total_variation(psi_po_optimum(*arguments), psi_po_regression_optimum(*arguments))


def optimum(loss: Callable[[Tensor], Tensor], reference_logps_PY: Tensor) -> Tensor:
    """A policy that locally minimises any smooth loss, from the reference, to the last digits; for objectives without
    a closed form.

    Args:
        loss: function of log-probabilities, shape (P, Y), to a scalar.
        reference_logps_PY: log-probabilities of the reference, nats.

    Returns:
        Log-probabilities, shape (P, Y), float64.

    Raises:
        NoFiniteOptimumError: if the logits run off to infinity.
    """
    return torch.log_softmax(
        minimise(lambda logits_PY: loss(torch.log_softmax(logits_PY, dim=-1)), reference_logps_PY), dim=-1
    )


def separable(wins_YY: Tensor) -> bool:
    """True if responses win all their comparisons with others: no finite difference of log-ratios is then enough for a
    loss that falls for ever, such as DPO's.

    Args:
        wins_YY: weight with which the row was preferred to the column, for one prompt.
    """
    reach_YY = reachable(wins_YY > 0)
    return len(groups(reach_YY & reach_YY.T)) > len(groups(reachable(wins_YY + wins_YY.T > 0)))


def total_variation(logps_PY: Tensor, other_logps_PY: Tensor) -> Tensor:
    """Half the sum of absolute differences of probabilities, for each prompt."""
    return (logps_PY.double().exp() - other_logps_PY.double().exp()).abs().sum(-1) / 2


def _probabilities(preference_PYY: Tensor) -> Tensor:
    preference = preference_PYY.double()
    if ((preference + preference.mT - 1).abs() > 1e-6).any() or (preference < 0).any():
        raise ValueError("preferences must be probabilities, that of a pair and of its reverse summing to 1")
    return preference


def _refuse_infinite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise NoFiniteOptimumError("Psi is infinite at a preference that occurs, so the policy runs off to a corner")
