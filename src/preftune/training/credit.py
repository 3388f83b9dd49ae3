"""The credit per token of a few held-out pairs, at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from preftune.data.examples import Example
from preftune.data.pieces import pieces
from preftune.evaluation.credit import SIDES, PairCredit, credits_of, unit
from preftune.objectives.batch import Role
from preftune.policy.policy import logps
from preftune.training.batches import lengths
from preftune.training.feed import Feed
from preftune.training.step import Step


def pair_credits(
    step: Step, feed: Feed, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> Iterator[PairCredit]:
    """The credit of pairs under the policy as it is, against the reference of the run.

    Every process computes all of them, since sharded weights need all processes in each forward.

    Args:
        step: has the policy and the reference.
        feed: makes forwards.
        examples: pairs.
        tokenizer: gives the text of tokens.
    """
    assert step.reference is not None
    beta = unit([term.objective for term in step.terms])
    training = step.policy.training
    step.policy.eval()
    try:
        with torch.no_grad():
            for number in feed.forwards(np.arange(len(examples)), lengths(examples)):
                micro = feed.prepare([examples[i] for i in number])
                policy = logps(step.policy, micro.batch)
                reference = step.reference.logps(micro.batch, micro.examples)
                found = credits_of(
                    micro.examples, micro.batch, policy, reference, beta, lambda ids: pieces(tokenizer, ids)
                )
                for example, sides in zip(micro.examples, found, strict=True):
                    yield PairCredit(example.row, _text(tokenizer, example), *sides[: len(SIDES)])
    finally:
        step.policy.train(training)


def first_pairs(examples: Sequence[Example], count: int) -> list[Example]:
    """The first pairs of different prompts."""
    found: dict[bytes, Example] = {}
    for example in examples:
        if len(found) == count:
            break
        if [response.role for response in example.responses[:2]] == [Role.CHOSEN, Role.REJECTED]:
            found.setdefault(np.asarray(example.prompt).tobytes(), example)
    return list(found.values())


def _text(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    text: Any = tokenizer.decode(example.prompt.tolist(), skip_special_tokens=False)
    return str(text)
