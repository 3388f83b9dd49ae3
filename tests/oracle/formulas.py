"""Slopes of losses, worked out by hand and written in numpy: nothing here comes from the objectives.

Each function takes the log-ratios (or log-probabilities, where there is no reference) of chosen and of rejected and the
fields of the objective, and gives the derivative of a pair's loss in the one and in the other.
"""

from __future__ import annotations

import numpy as np


def s(x):
    """The sigmoid."""
    return 1 / (1 + np.exp(-x))


def robust_dpo(c, r, *, beta, eta):
    pull = beta * s(beta * (r - c))
    return -pull + 2 * eta * beta**2 * c, pull + 2 * eta * beta**2 * r


def kl_dpo(c, r, *, beta, kl_weight):
    pull = beta * s(beta * (r - c))
    return -pull + 2 * kl_weight * c, pull + 2 * kl_weight * r


def dpop(c, r, *, beta, lam):
    pull = beta * s(-beta * (c - r - lam * np.maximum(0, -c)))
    return -pull * (1 + lam * (c < 0)), pull


def cal_dpo(c, r, *, beta, calibration_weight):
    pull = s(r - c)
    return (
        -pull + 2 * calibration_weight * (c - 0.5 / beta),
        pull + 2 * calibration_weight * (r + 0.5 / beta),
    )


def exo(c, r, *, beta, epsilon):
    x = beta * (c - r)
    pull = beta * s(x) * s(-x) * (np.log((1 - epsilon) / epsilon) - x)
    return -pull, pull


def nca(c, r, *, beta):
    return beta * (-s(-beta * c) + s(beta * c) / 2), beta * s(beta * r) / 2


def sppo(c, r, *, beta, chosen_win_rate, rejected_win_rate):
    return c - (chosen_win_rate - 0.5) / beta, r - (rejected_win_rate - 0.5) / beta


def apo_down(c, r, *, beta):
    anchor, pull = (beta * s(x) * s(-x) for x in (beta * c, beta * (c - r)))
    return anchor - pull, pull


def discopop(c, r, *, beta, tau):
    x = beta * (c - r)
    gate = s(x / tau)
    logistic, exponential = np.log(1 + np.exp(-x)), np.exp(-x)
    slope = gate * (1 - gate) / tau * (exponential - logistic) - (1 - gate) * s(-x) - gate * exponential
    return beta * slope, -beta * slope


def simpo(c, r, c_tokens, r_tokens, *, beta, gamma):
    pull = beta * s(gamma - beta * (c / c_tokens - r / r_tokens))
    return -pull / c_tokens, pull / r_tokens


def cpo(c, r, c_tokens, r_tokens, *, beta, alpha):
    pull = beta * s(beta * (r - c))
    return -pull - alpha / c_tokens, pull


def orpo(c, r, c_tokens, r_tokens, *, lam):
    p, q = np.exp(c / c_tokens), np.exp(r / r_tokens)  # geometric mean of token probabilities
    pull = lam * s(np.log(q / (1 - q)) - np.log(p / (1 - p)))
    return (-1 - pull / (1 - p)) / c_tokens, pull / (1 - q) / r_tokens
