"""What responses and policies of the listed world are worth, exactly.

Tensor names carry their shape: P prompts, Y responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from preftune.sandbox.listed.language import PROMPTS, RESPONSE_WORDS, all_logps, index_of, reference_model, words_of
from preftune.sandbox.listed.rule import COMPONENTS, WORDS, components_of
from preftune.theory import frontier as theory
from preftune.theory.frontier import Frontier


def components(prompt: str, response: str) -> dict[str, float]:
    """Helpfulness, harmlessness and honesty of a response, as `rule.components_of` defines them.

    Raises:
        PreftuneError: if either is no text of this world.
    """
    index_of(response)
    return dict(zip(COMPONENTS, components_of(words_of(prompt), words_of(response)), strict=True))


def true_reward(prompt: str, response: str) -> float:
    """The reward of a response: the sum of its components."""
    return sum(components(prompt, response).values())


def true_reward_judge(prompt: str, response: str) -> float:
    """`true_reward` as a judge: `online.judge: preftune.sandbox.listed:true_reward_judge`."""
    return true_reward(prompt, response)


@cache
def _components(first: int, second: int) -> Tensor:
    """All components of all responses to prompts that begin so, shape (responses, components), float64."""
    return torch.tensor([components_of((first, second), words) for words in RESPONSE_WORDS], dtype=torch.float64)


def _table(prompts: Sequence[str]) -> Tensor:
    return torch.stack([_components(*words_of(prompt)[:2]) for prompt in prompts])


def all_components(prompts: Sequence[str] = PROMPTS) -> dict[str, Tensor]:
    """Each component of the reward of all responses, by name, each of shape (P, Y), float64."""
    return dict(zip(COMPONENTS, _table(prompts).unbind(-1), strict=True))


def rewards(prompts: Sequence[str] = PROMPTS) -> Tensor:
    """True reward of all responses, shape (P, Y), float64."""
    return _table(prompts).sum(-1)


@cache
def _reference_logps() -> Tensor:
    with torch.no_grad():
        return all_logps(reference_model())


def reference_logps(prompts: Sequence[str] = PROMPTS) -> Tensor:
    """Log-probabilities of all responses under the reference model, nats, shape (P, Y), float64."""
    return _reference_logps()[_places(prompts)]


@cache
def _frontier(prompts: tuple[str, ...]) -> Frontier:
    return Frontier.of(reference_logps(prompts), rewards(prompts), all_components(prompts))


def frontier(prompts: Sequence[str] = PROMPTS) -> Frontier:
    """The exact frontier of true reward over KL from the reference model, on average over these prompts."""
    return _frontier(tuple(prompts))


@dataclass(frozen=True)
class Worth:
    """What a policy is worth, exactly; all are means over prompts.

    Attributes:
        reward: true reward of a response.
        components: its parts, which sum to it.
        kl: KL(policy || reference), nats per response.
        entropy: of the policy, nats per response.
        best_reward: the most that any policy gets at this KL.
        gain_share: share of the gain over the reference's reward that is possible at this KL; NaN at a KL of 0.
        regret: 1 - gain_share.
        attainable_share: how much of the way from the reference to the best responses could be had at this KL.
    """

    reward: float
    components: dict[str, float]
    kl: float
    entropy: float
    best_reward: float
    gain_share: float
    regret: float
    attainable_share: float


def worth(logps_PY: Tensor, prompts: Sequence[str] = PROMPTS) -> Worth:
    """What a policy is worth whose log-probabilities of all responses are given.

    Args:
        logps_PY: nats, one row for each of the prompts.
        prompts: texts of three words.
    """
    logps_PY, curve = logps_PY.detach().double().cpu(), frontier(prompts)
    reward = float(theory.expected(logps_PY, rewards(prompts)))
    nats = float(theory.kl(logps_PY, reference_logps(prompts)))
    return Worth(
        reward=reward,
        components={name: float(theory.expected(logps_PY, part)) for name, part in all_components(prompts).items()},
        kl=nats,
        entropy=-float(theory.expected(logps_PY, torch.where(logps_PY.isneginf(), 0, logps_PY))),
        best_reward=curve.reward_at(max(nats, 0.0)),
        gain_share=curve.gain_share(reward, nats),
        regret=curve.regret(reward, nats),
        attainable_share=curve.attainable_share(max(nats, 0.0)),
    )


def evaluate(lm: nn.Module, prompts: Sequence[str] = PROMPTS) -> Worth:
    """What a model is worth on these prompts, exactly; it is put into evaluation mode meanwhile."""
    training = lm.training
    lm.eval()
    try:
        with torch.no_grad():
            return worth(all_logps(lm, prompts), prompts)
    finally:
        lm.train(training)


def _places(prompts: Sequence[str]) -> list[int]:
    """The places of prompts in `PROMPTS`; white space does not matter."""
    n = len(WORDS)
    return [n * n * i + n * j + k for i, j, k in map(words_of, prompts)]
