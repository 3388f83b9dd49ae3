"""Preferences of the built-in world, and what a policy is worth in it.

base model -> two samples per prompt -> Bradley-Terry on the true reward -> pairs
policy -> samples on held-out prompts -> true reward, grammar, length, KL
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from preftune.data.records import Preference, Where
from preftune.errors import PreftuneError
from preftune.quiet import without_progress_bars
from preftune.sandbox.world import MAX_RESPONSE_TOKENS, PARTS, components, grammatical, prompts, true_reward

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from preftune.evaluation.sampling import Sampled

BASE = Path(__file__).parent / "base"
_BATCH = 1024  # of a model this small; larger batches gain nothing


def base_model() -> PreTrainedModel:
    """A fresh copy of the base model, in fp32 and evaluation mode."""
    from transformers import AutoModelForCausalLM

    with without_progress_bars():  # it loads in no time
        return AutoModelForCausalLM.from_pretrained(BASE).eval()


def base_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the base model: one token per word or punctuation mark."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE)


def pairs(n: int, *, noise: float = 0.0, seed: int = 0, scale: float = 3.0) -> list[Preference]:
    """Preferences over responses that the base model gives to training prompts.

    Both responses are samples of the base model; a pair of identical, unfinished or empty ones is drawn again. The
    first is preferred with probability sigmoid(scale * (its true reward - the true reward of the other)), and the label
    is then flipped with probability `noise`.

    Args:
        n: number of pairs.
        noise: probability that a label is flipped, in [0, 0.5].
        seed: whole number >= 0; the same seed gives the same pairs.
        scale: certainty of the labels, per unit of reward; 0 labels at random.

    Raises:
        PreftuneError: if an argument is out of its range.
    """
    return _pairs(n, prompts()[0], noise, seed, scale, "sandbox")


def held_out_pairs(n: int, *, noise: float = 0.0, seed: int = 0, scale: float = 3.0) -> list[Preference]:
    """As `pairs`, on held-out prompts."""
    return _pairs(n, prompts()[1], noise, seed, scale, "sandbox (held out)")


def rows(n: int = 4096, *, noise: float = 0.0, seed: int = 0) -> list[dict[str, str]]:
    """The built-in data set "sandbox": `pairs` as rows of prompt, chosen and rejected."""
    return [
        {"prompt": str(pair.prompt), "chosen": str(pair.chosen), "rejected": str(pair.rejected)}
        for pair in _made_once(n, noise, seed)
    ]


@lru_cache(maxsize=2)
def _made_once(n: int, noise: float, seed: int) -> tuple[Preference, ...]:
    """Sampled once in a process: who trains and evaluates several runs reads the same rows again and again."""
    return tuple(pairs(n, noise=noise, seed=seed))


@dataclass(frozen=True)
class PolicyEvaluation:
    """What a policy's own samples (temperature 1) are worth; intervals and errors treat prompts as the draws.

    Attributes:
        true_reward: mean true reward of a response.
        true_reward_ci95: its 95% interval (normal approximation).
        components: mean of each part of the reward; they sum to `true_reward`.
        grammatical: share of responses that are whole reviews in the world's grammar.
        mean_length: tokens per response, the end token included.
        end_rate: share of responses that reached an end token.
        kl: KL(policy || reference), nats per response.
        kl_se: its standard error.
        prompts: the prompts.
        prompt_rewards: mean true reward of the responses to each prompt.
        samples: the responses to each prompt.
    """

    true_reward: float
    true_reward_ci95: tuple[float, float]
    components: dict[str, float]
    grammatical: float
    mean_length: float
    end_rate: float
    kl: float
    kl_se: float
    prompts: tuple[str, ...]
    prompt_rewards: tuple[float, ...]
    samples: tuple[tuple[str, ...], ...]

    def gain_over(self, before: PolicyEvaluation) -> tuple[float, tuple[float, float]]:
        """Mean difference of true reward to an earlier evaluation, paired by prompt, and its 95% interval.

        Raises:
            ValueError: if the two were not made on the same prompts.
        """
        if self.prompts != before.prompts:
            raise ValueError("a gain is paired by prompt, but the two evaluations have different prompts")
        return _mean_ci95(np.subtract(self.prompt_rewards, before.prompt_rewards))


def evaluate_policy(
    model: nn.Module, reference_model: nn.Module, prompts: Sequence[str], *, samples_per_prompt: int = 16, seed: int = 0
) -> PolicyEvaluation:
    """Sample responses from a model and measure them.

    Args:
        model: the policy; it shares the base model's tokenizer.
        reference_model: what KL is measured against, usually the base model.
        prompts: at least two, as text.
        samples_per_prompt: responses to each prompt.
        seed: whole number >= 0; the same seed draws the same responses from the same model.

    Raises:
        PreftuneError: if there are fewer than two prompts.
    """
    from preftune.evaluation.sampling import kl_on_samples

    if len(prompts) < 2:
        raise PreftuneError(f"an evaluation needs at least two prompts for its interval, got {len(prompts)}")
    tokenizer = base_tokenizer()
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    responses = _sample(model, tokenizer, ids, samples_per_prompt, seed)
    repeated = [prompt for prompt in ids for _ in range(samples_per_prompt)]
    kl_PS = kl_on_samples(model, reference_model, repeated, responses, batch_size=_BATCH).reshape(len(prompts), -1)
    texts = tokenizer.batch_decode([response.ids for response in responses], skip_special_tokens=True)
    parts = [components(text) for text in texts]
    reward_P = np.reshape([sum(part.values()) for part in parts], (len(prompts), -1)).mean(1)
    true_reward, interval = _mean_ci95(reward_P)
    return PolicyEvaluation(
        true_reward=true_reward,
        true_reward_ci95=interval,
        components={name: float(np.mean([part[name] for part in parts])) for name in PARTS},
        grammatical=float(np.mean([r.ended and grammatical(t) for r, t in zip(responses, texts, strict=True)])),
        mean_length=float(np.mean([len(response.ids) for response in responses])),
        end_rate=float(np.mean([response.ended for response in responses])),
        kl=float(kl_PS.mean()),
        kl_se=_standard_error(kl_PS.mean(1)),
        prompts=tuple(prompts),
        prompt_rewards=tuple(reward_P.tolist()),
        samples=tuple(tuple(texts[i : i + samples_per_prompt]) for i in range(0, len(texts), samples_per_prompt)),
    )


def label_probability(reward: float, other_reward: float, *, scale: float = 3.0, noise: float = 0.0) -> float:
    """Probability that a response is labelled better than another, from their true rewards."""
    p = (1 + math.tanh(scale * (reward - other_reward) / 2)) / 2  # the sigmoid, without overflow
    return p * (1 - noise) + (1 - p) * noise


def _pairs(n: int, prompts: Sequence[str], noise: float, seed: int, scale: float, source: str) -> list[Preference]:
    for name, value, fits, expected in (
        ("n", n, n >= 1, "at least 1"),
        ("noise", noise, 0 <= noise <= 0.5, "between 0 and 0.5"),
        ("scale", scale, scale >= 0, "at least 0"),
        ("seed", seed, seed >= 0, "a whole number of at least 0"),
    ):
        if not fits:
            raise PreftuneError(f"{name} of the sandbox's pairs is {value}, but it must be {expected}")
    rng = random.Random(seed)
    found: list[Preference] = []
    for prompt, first, second in different_responses(n, prompts, rng):
        better = rng.random() < label_probability(true_reward(first), true_reward(second), scale=scale, noise=noise)
        chosen, rejected = (first, second) if better else (second, first)
        found.append(Preference(prompt, chosen, rejected, Where(source, len(found))))
    return found


def different_responses(n: int, prompts: Sequence[str], rng: random.Random) -> list[tuple[str, str, str]]:
    """Prompts, each with two different, finished samples of the base model, neither of them empty.

    Args:
        n: how many.
        prompts: to draw from, with replacement.
        rng: source of all randomness.
    """
    model, tokenizer = base_model(), base_tokenizer()
    found: list[tuple[str, str, str]] = []
    while len(found) < n:
        drawn = rng.choices(prompts, k=n - len(found))
        ids = [tokenizer.encode(prompt) for prompt in drawn]
        responses = _sample(model, tokenizer, ids, 2, rng.randrange(2**32))
        texts = tokenizer.batch_decode([response.ids for response in responses], skip_special_tokens=True)
        for i, prompt in enumerate(drawn):
            first, second = texts[2 * i : 2 * i + 2]
            whole = all(response.ended for response in responses[2 * i : 2 * i + 2])
            if whole and first != second and first.strip() and second.strip():
                found.append((prompt, first, second))
    return found


def _sample(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, ids: Sequence[Sequence[int]], each: int, seed: int
) -> list[Sampled]:
    from preftune.evaluation.sampling import sample

    return sample(
        model,
        ids,
        max_new_tokens=MAX_RESPONSE_TOKENS,
        samples_per_prompt=each,
        seed=seed,
        end_ids=[tokenizer.eos_token_id],
        batch_size=_BATCH,
        pad_id=tokenizer.pad_token_id,
    )


def _mean_ci95(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    mean, half = float(np.mean(values)), 1.96 * _standard_error(values)
    return mean, (mean - half, mean + half)


def _standard_error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))
