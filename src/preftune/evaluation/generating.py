"""The policy's own answers to held-out prompts, beside those of what it is compared with, and how far it has moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from preftune.evaluation.answers import (
    Answer,
    Prompt,
    Sampling,
    Writer,
    describe,
    policy_writer,
    reference_writer,
    room,
)
from preftune.evaluation.intervals import standard_error
from preftune.evaluation.opening import Opened
from preftune.evaluation.sampling import kl_on_samples
from preftune.policy.loading import vocabulary
from preftune.policy.reference import AdapterOffReference

HELD = 2**27  # probabilities of a forward that are held at a time: half a gigabyte in fp32, a few times over


@dataclass(frozen=True)
class Generated:
    """Answers and what they are like.

    Attributes:
        prompts: what was answered.
        policy: the policy's answers to each prompt.
        against: those of what it is compared with; None if there is nothing.
        figures: "generation" of evaluation.json.
        notes: what to know, a line each.
    """

    prompts: tuple[Prompt, ...]
    policy: list[list[Answer]]
    against: list[list[Answer]] | None
    figures: dict[str, Any]
    notes: tuple[str, ...]

    def lines(self) -> list[dict[str, Any]]:
        """Of generations.jsonl: an answer of each side to the same prompt, side by side."""
        found = []
        for i, prompt in enumerate(self.prompts):
            for k, ours in enumerate(self.policy[i]):
                line = {"prompt": prompt.text, "policy": ours.text, "policy_tokens": ours.tokens}
                line |= {"policy_ended": ours.ended, "row": prompt.row}
                if self.against is not None:
                    theirs = self.against[i][k]
                    line |= {"against": theirs.text, "against_tokens": theirs.tokens, "against_ended": theirs.ended}
                found.append(line)
        return found


def generate(
    opened: Opened,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    policy: Callable[[Sampling], Writer] | None = None,
    against: Callable[[Sampling], Writer] | None = None,
) -> Generated:
    """Have prompts answered by the policy and by what it is compared with, and measure both.

    Args:
        opened: policy and reference.
        prompts: at least one.
        sampling: how.
        policy: gives who writes in the policy's place (an endpoint that serves it, say), with as many tokens as fit.
        against: likewise for the other side, also where nothing was opened to compare with.

    Raises:
        PreftuneError: if a prompt is as long as the model can read.
    """
    notes = []
    fits = room(opened, prompts, sampling.max_new_tokens)
    if fits < sampling.max_new_tokens:
        notes.append(f"answers are cut at {fits} tokens, where the model's positions end")
        sampling = replace(sampling, max_new_tokens=fits)
    ours = (policy_writer(opened, sampling) if policy is None else policy(sampling))(prompts)
    theirs = None
    if against is not None:
        theirs = against(sampling)(prompts)
    elif opened.reference is not None:
        theirs = reference_writer(opened, sampling)(prompts)
    by_words = any(answer.sampled is None for group in [*ours, *(theirs or ())] for answer in group)
    figures: dict[str, Any] = {
        "prompts": len(prompts),
        "samples_per_prompt": len(ours[0]),
        "temperature": sampling.temperature,
        "max_new_tokens": sampling.max_new_tokens,
        "seed": sampling.seed,
        "policy": describe(ours, by_words),
    }
    if theirs is not None:
        figures["against"] = describe(theirs, by_words)
    why = _no_kl(opened, ours, sampling)
    if why is None:
        figures["kl"] = _kl(opened, prompts, ours)
    elif why:
        notes.append(f"no KL divergence is measured: {why}")
    return Generated(tuple(prompts), ours, theirs, figures, tuple(notes))


def _no_kl(opened: Opened, ours: Sequence[Sequence[Answer]], sampling: Sampling) -> str | None:
    """Why there is no KL divergence to measure; empty where nobody expects one; None if there is one."""
    if opened.reference is None:
        return ""
    if (n := max(answer.best_of for group in ours for answer in group)) > 1:
        return f"the answers are the best of {n} and no plain samples of the policy; how far off they can be is bounded"
    if any(answer.sampled is None for group in ours for answer in group):
        return "it is estimated on tokens, and an endpoint does not tell its own"
    if sampling.temperature != 1:
        return f"it is estimated on samples of temperature 1, and these have {sampling.temperature:g}"
    sizes = {vocabulary(opened.policy.lm), vocabulary(opened.reference.module.lm)}
    if len(sizes) > 1:
        return (
            f"the two models have output layers of different sizes ({' and '.join(map(str, sorted(sizes, key=str)))})"
        )
    return None


def _kl(opened: Opened, prompts: Sequence[Prompt], ours: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """KL(policy || reference) on the policy's own answers, in nats: per response, and per token of them."""
    assert opened.reference is not None  # see `_no_kl`
    flat = [(i, answer) for i, group in enumerate(ours) for answer in group]
    sampled = [answer.sampled for _, answer in flat if answer.sampled is not None]
    longest = max(len(prompts[i].ids) + answer.tokens for i, answer in flat)
    size = max(1, min(256, HELD // (longest * (vocabulary(opened.policy.lm) or 1))))
    with ExitStack() as both:
        lm = both.enter_context(opened.generating())
        if isinstance(opened.reference, AdapterOffReference):
            other: nn.Module = _AdapterOff(lm)
        else:
            other = both.enter_context(opened.generating_reference())
        kl = kl_on_samples(lm, other, [prompts[i].ids for i, _ in flat], sampled, batch_size=size)
    number = np.array([i for i, _ in flat])
    tokens = np.array([answer.tokens for _, answer in flat], float)
    return {
        "per_response": float(kl.mean()),
        "per_response_se": standard_error(kl, number),
        "per_token": float(kl.sum() / tokens.sum()),
        "per_token_se": standard_error(kl, number, per=tokens),
    }


class _AdapterOff(nn.Module):
    """A PEFT model as it is without its adapter, for who calls both in turn."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One forward with the adapter off."""
        with self.lm.disable_adapter():  # type: ignore[operator]
            return self.lm(*args, **kwargs)
