"""An objective along a line: its loss and slopes on pairs whose log-ratios are given. The objectives say every value.

A pair serves every objective (chosen is good and rejected bad, or first and second, or what to imitate), so one layout
draws them all: responses of 20 tokens, 2 nats each under the reference. What else an objective reads is held still, and
where it couples examples, each pair stands among four others that do not move.

Tensor names carry their shape: P pairs that are drawn, R responses, K targets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from preftune.objectives.base import Objective
from preftune.objectives.batch import LogProbs, PlainBatch, Role

Array = NDArray[np.float64]

TOKENS = 20
LOGP = -2.0  # nats per token under the reference
GAP = 2.0  # rated difference of chosen and rejected, for objectives that read one
KL = 0.05  # nats per token, for objectives that read the divergence at each token
OTHERS = (-1.5, -0.5, 0.5, 1.5)  # margins of the pairs beside, where an objective couples examples
MARGINS = np.linspace(-4, 4, 82)  # an even number: losses bend at 0, 1/2, 1 ..., where rounding would pick the side


@dataclass(frozen=True)
class Values:
    """What an objective says of each pair; arrays of shape P.

    Attributes:
        loss: of the pair; where pairs couple, the mean over the batch times its number of pairs.
        margin: chosen reward less rejected reward; NaN where rewards are not defined.
        chosen_gradient: derivative of the loss in the log-probability of chosen (or in its score, for reward models).
        rejected_gradient: the same of rejected.
    """

    loss: Array
    margin: Array
    chosen_gradient: Array
    rejected_gradient: Array

    @property
    def gradient(self) -> Array:
        """Derivative of the loss in delta, where chosen gains what rejected loses."""
        return (self.chosen_gradient - self.rejected_gradient) / 2


@dataclass(frozen=True)
class Slice:
    """An objective along the line on which chosen gains what rejected loses.

    Attributes:
        delta: where the pairs lie, in nats.
        values: what it says there.
        unit: nats of delta for a margin of 1; NaN where rewards are not defined.
        variable: what of each response moves, and gradients are taken in: "log-prob" or "score".
        words: what is particular to this slice, in sentences.
    """

    delta: Array
    values: Values
    unit: float
    variable: str
    words: str


def at(objective: Objective, chosen: ArrayLike, rejected: ArrayLike) -> Values:
    """Loss and slopes of an objective on pairs.

    Args:
        objective: any.
        chosen: log-ratio of chosen to the reference, in nats: an array of any shape, which the values keep. Without a
            reference, nats above the log-probability that it would give; for reward models, the score.
        rejected: the same of rejected.
    """
    pairs = np.stack([np.asarray(each, dtype=np.float64) for each in np.broadcast_arrays(chosen, rejected)])
    flat = torch.tensor(pairs.reshape(2, -1))
    if objective.couples:
        half = torch.tensor(OTHERS, dtype=torch.float64) * _or_one(nats_per_margin(objective)) / 2
        beside = torch.stack([half, -half])
        parts = [_values(objective, torch.cat([flat[:, i : i + 1], beside], dim=1)) for i in range(flat.shape[1])]
        found = torch.stack([torch.cat([part[0].sum()[None], part[1:, 0]]) for part in parts], dim=1)
    else:
        found = _values(objective, flat)
    return Values(*(row.reshape(pairs.shape[1:]) for row in found.numpy()))


def along_delta(objective: Objective, delta: ArrayLike) -> Values:
    """Loss and slopes of an objective where chosen gains what rejected loses: log-ratios delta / 2 and -delta / 2."""
    delta = np.asarray(delta, dtype=np.float64)
    return at(objective, delta / 2, -delta / 2)


def along_margin(objective: Objective, margins: Array = MARGINS) -> Slice:
    """An objective over the margins that matter to it, whatever its beta; over as many nats where it has no rewards.

    Args:
        objective: any.
        margins: in units of reward; where rewards bend, margins that they would have if they went on as they start.
    """
    unit = nats_per_margin(objective)
    delta = margins * _or_one(unit)
    variable = "score" if _scores(objective) else "log-prob"
    return Slice(delta, along_delta(objective, delta), unit, variable, _words(objective, unit))


def nats_per_margin(objective: Objective) -> float:
    """Nats of delta for a margin of 1, close to the reference; NaN where rewards are not defined."""
    step = 1e-3
    pair = torch.tensor([[step / 2, -step / 2], [-step / 2, step / 2]], dtype=torch.float64)
    up, down = _outcome(objective, pair)[2].tolist()
    return math.nan if math.isnan(up - down) or up == down else 2 * step / (up - down)


def sees_delta_alone(objective: Objective) -> bool:
    """True if the loss is a function of delta: it stays as it is when both responses get likelier alike."""
    delta = np.array([-3.0, 0.5, 2.0]) * _or_one(nats_per_margin(objective))
    shift = 0.3 * abs(delta[0])
    here, there = along_delta(objective, delta).loss, at(objective, delta / 2 + shift, -delta / 2 + shift).loss
    return bool(np.allclose(here, there, rtol=1e-9, atol=1e-9 * (1 + np.abs(here).max())))


def _scores(objective: Objective) -> bool:
    """True if it trains a reward model, which gives scores and no log-probs."""
    return "reward_R" in objective.needs


def _or_one(unit: float) -> float:
    return 1.0 if math.isnan(unit) else unit


def _values(objective: Objective, ratio_2P: Tensor) -> Tensor:
    """Loss of each pair, margin, and the slopes of the batch's loss in chosen and in rejected; shape (4, P)."""
    leaf_2P = ratio_2P.clone().requires_grad_()
    weight_P, loss_P, margin_P = _outcome(objective, leaf_2P)
    share_P = weight_P * len(weight_P) / weight_P.sum()
    joint = share_P * loss_P if objective.couples else loss_P
    (slope_2P,) = torch.autograd.grad(joint.sum(), leaf_2P)
    return torch.cat([joint.detach()[None], margin_P[None], slope_2P])


def _outcome(objective: Objective, ratio_2P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, loss and margin of each pair, each of shape P."""
    batch = _batch(ratio_2P.shape[1], objective.baselines, objective.carried)
    at_start_R = torch.full_like(batch.score_R, LOGP * TOKENS)
    ratio_R = torch.cat([ratio_2P.flatten(), torch.zeros(len(at_start_R) - ratio_2P.numel(), dtype=torch.float64)])
    if _scores(objective):
        policy = _log_probs(objective, at_start_R, batch, reward_R=ratio_R)
    else:
        policy = _log_probs(objective, at_start_R + ratio_R, batch, reward_R=None)
    reference = _log_probs(objective, at_start_R, batch, reward_R=None) if objective.reference else None
    outcome = objective(policy, reference, batch, objective.init())
    pairs = ratio_2P.shape[1]
    rewards_R = outcome.rewards_R.detach()
    return objective.weight_E(batch).double(), outcome.loss_E, rewards_R[:pairs] - rewards_R[pairs : 2 * pairs]


def _batch(pairs: int, with_baselines: bool, carried: frozenset[str]) -> PlainBatch:
    """Pairs of which all chosen responses come first, then all rejected ones, then a baseline for each."""
    roles = (Role.CHOSEN, Role.REJECTED) + ((Role.BASELINE,) if with_baselines else ())
    one_P = torch.ones(pairs, dtype=torch.float64)
    return PlainBatch(
        response_K=torch.arange(pairs * len(roles)).repeat_interleave(TOKENS),
        example_R=torch.arange(pairs).repeat(len(roles)),
        role_R=torch.tensor([int(role) for role in roles]).repeat_interleave(pairs),
        score_R=torch.full((pairs * len(roles),), math.nan, dtype=torch.float64),
        length_R=torch.full((pairs * len(roles),), TOKENS),
        weight_E=one_P,
        confidence_E=one_P,
        gap_E=GAP * one_P,
        token={name: _carried(name, pairs * len(roles)) for name in carried},
    )


def _carried(name: str, responses: int) -> Tensor:
    """What rollouts carry at each target: the policy that sampled them was the reference, and chosen did as much better
    than foreseen as rejected did worse."""
    if name != "advantages":
        return torch.full((responses * TOKENS,), LOGP, dtype=torch.float64)
    sign_R = torch.ones(responses, dtype=torch.float64)
    sign_R[responses // 2 :] = -1
    return sign_R.repeat_interleave(TOKENS)


def _log_probs(objective: Objective, logps_R: Tensor, batch: PlainBatch, reward_R: Tensor | None) -> LogProbs:
    """Log-probs of whole responses, spread evenly over their tokens; whatever else is read stands still."""
    logps_K = logps_R[batch.response_K] / TOKENS
    still = {"log_sum_p2_K": LOGP, "entropy_K": -LOGP, "kl_K": KL}
    read = {name: torch.full_like(logps_K.detach(), still[name]) for name in still if name in objective.needs}
    return LogProbs(logps_K, reward_R=reward_R, **read)


def _words(objective: Objective, unit: float) -> str:
    """What is particular to this slice."""
    kinds = {
        "labels": "Chosen is judged good and rejected bad",
        "rankings": "The ranking has two responses",
        "demonstrations": "Chosen is the demonstration",
        "rollouts": "Chosen has reward 1 and rejected 0 (advantages 1 and -1), and the reference sampled both",
    }
    said = [kinds[objective.data]] if objective.data in kinds else []
    if _scores(objective):
        said.append("The score of chosen rises as that of rejected falls")
    elif math.isnan(unit):
        said.append("There are no rewards: the axis is delta")
    else:
        said.append(f"A margin of 1 is {unit:.4g} {'nat' if round(unit, 4) == 1 else 'nats'} of delta")
    if not sees_delta_alone(objective):
        said.append("The loss is no function of delta: this is one line of many")
    if "gap" in objective.columns:
        said.append(f"The rated gap is {GAP:g}")
    if objective.couples:
        others = ", ".join(f"{margin:g}" for margin in OTHERS)
        said.append(f"Four other pairs stand beside it, at margins {others}; the loss is that of all five together")
    if objective.init():
        said.append("Running statistics are those of the first step")
    if objective.baselines:
        said.append("Mismatched responses are as likely as under the reference")
    if "kl_K" in objective.needs:
        said.append(f"The divergence is {KL:g} nats at every token")
    if "log_sum_p2_K" in objective.needs:
        said.append(f"The log of the sum of squared probabilities is {LOGP:g} at every token")
    return ". ".join(said) + "."
