"""The policy's answers to the prompts of a round, with their scores and log-probs, in memory and on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from preftune.data.examples import Example, Response
from preftune.data.packing import PackedBatch
from preftune.errors import PreftuneError
from preftune.evaluation.sampling import Sampled
from preftune.files import write_whole
from preftune.objectives.batch import LogProbs, Role
from preftune.policy.policy import logps
from preftune.policy.reference import Reference
from preftune.rlhf.plan import Asked
from preftune.training.feed import Feed
from preftune.training.processes import Group

OLD, REFERENCE = "old_logps", "reference_logps"
Scored = Sequence[float | None]


@dataclass(frozen=True, eq=False)
class Rollout:
    """Answers to one prompt.

    Attributes:
        asked: the prompt.
        answers: as sampled.
        texts: the same as a judge reads them.
        scores: by the judge; None where it gave none. Of a judge that compares, 1 for the better and 0 for the other.
        example: prompt and answers as an example of rollouts; log-probs as values per token.
    """

    asked: Asked
    answers: Sequence[Sampled]
    texts: Sequence[str]
    scores: Scored
    example: Example

    @property
    def judged(self) -> bool:
        """True if every answer has a score."""
        return None not in self.scores


def as_example(asked: Asked, answers: Sequence[Sampled], scores: Scored) -> Example:
    """Prompt and answers as an example of rollouts; one that was not fully judged counts for nothing."""
    rewards = [math.nan if score is None else score for score in scores]
    whole = not np.isnan(rewards).any()
    responses = tuple(
        Response(one.ids, Role.RANKED, reward if whole else 0.0) for one, reward in zip(answers, rewards, strict=True)
    )
    return Example(asked.ids, responses, row=asked.row, weight=1.0 if whole else 0.0)


class CarriedReference(Reference):
    """A reference whose log-probs the examples carry."""

    def logps(self, batch: PackedBatch, examples: Sequence[Example]) -> LogProbs:  # noqa: D102
        return LogProbs(batch.token[REFERENCE])


@torch.no_grad()
def carrying(
    examples: Sequence[Example], models: Mapping[str, nn.Module | Reference], feed: Feed, group: Group
) -> list[Example]:
    """The examples, each response with the log-probs that models give its tokens.

    Args:
        examples: to be read.
        models: the policy as prepared, or references, each by the name that its values get.
        feed: makes forwards.
        group: the processes that share them.
    """
    side = feed.side(examples)
    found: list[list[NDArray[np.float32]]] = []  # of each response of this process, values by model
    modes = [(one, one.training) for one in models.values() if isinstance(one, nn.Module)]
    for module, _ in modes:
        module.eval()
    for micro in side:
        values = [
            one.logps(micro.batch, micro.examples) if isinstance(one, Reference) else logps(one, micro.batch)
            for one in models.values()
        ]
        if not micro.stand_in:
            sizes = micro.batch.length_R.tolist()
            columns = [value.logps_K.float().cpu().split(sizes) for value in values]
            found += [[piece.numpy().copy() for piece in pieces] for pieces in zip(*columns, strict=True)]
    for module, training in modes:
        module.train(training)
    every = iter([one for part in group.gathered(found) for one in part])
    made: list[Example] = list(examples)
    for number in (i for share in side.shares for forward in share.real for i in forward):
        one = examples[number]
        responses = tuple(
            replace(r, token={**r.token, **dict(zip(models, next(every), strict=True))}) for r in one.responses
        )
        made[number] = replace(one, responses=responses)
    return made


def figures(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What a round's answers are like.

    reward, reward_sd: mean and spread of the scores. kl: log-prob of an answer under the policy less that under the
    reference, mean, nats. entropy: minus the mean log-prob of a token, nats. response_tokens: mean length. ended: share
    that reached an end token. empty: share without a word. unjudged: share of prompts that the judge gave no score.
    """
    answers = [one for rollout in rollouts for one in rollout.answers]
    responses = [one for rollout in rollouts for one in rollout.example.responses]
    scores = [score for rollout in rollouts for score in rollout.scores if score is not None]
    found = {
        "entropy": -float(sum(one.logps.sum() for one in answers) / sum(len(one.ids) for one in answers)),
        "response_tokens": float(np.mean([len(one.ids) for one in answers])),
        "ended": float(np.mean([one.ended for one in answers])),
        "empty": float(np.mean([not text.strip() for rollout in rollouts for text in rollout.texts])),
        "unjudged": float(np.mean([not rollout.judged for rollout in rollouts])),
    }
    if scores:
        found |= {"reward": float(np.mean(scores)), "reward_sd": float(np.std(scores))}
    if REFERENCE in responses[0].token:
        ratios = [
            float(one.logps.astype(np.float64).sum() - response.token[REFERENCE].astype(np.float64).sum())
            for one, response in zip(answers, responses, strict=True)
        ]
        found["kl"] = float(np.mean(ratios))
    return found


def write_round(path: Path, examples: Iterable[Example]) -> None:
    """Keep the examples of a round, whole or not at all, so that they read back bit by bit."""
    lines = [json.dumps(_as_json(one)) for one in examples]
    path.parent.mkdir(exist_ok=True)
    write_whole(path, ("\n".join(lines) + "\n").encode())


def read_round(path: Path) -> list[Example]:
    """What `write_round` kept.

    Raises:
        PreftuneError: if the file is not as it was written.
    """
    try:
        return [_from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PreftuneError(
            f"{path} cannot be read ({' '.join(str(error).split())}), and the run goes on in the middle of that round: "
            "restore it, or delete the newest checkpoint to go on from an earlier one"
        ) from error


def _as_json(one: Example) -> dict[str, Any]:
    responses = [
        {
            "ids": response.ids.tolist(),
            "role": int(response.role),
            "score": float(response.score),
            "token": {name: values.tolist() for name, values in response.token.items()},
        }
        for response in one.responses
    ]
    numbers = {"weight": one.weight, "confidence": one.confidence, "gap": one.gap}
    return {"row": one.row, "prompt": one.prompt.tolist(), **numbers, "responses": responses}


def _from_json(value: Mapping[str, Any]) -> Example:
    responses = tuple(
        Response(
            np.array(one["ids"], np.int32),
            Role(one["role"]),
            one["score"],
            token={name: np.array(values, np.float32) for name, values in one["token"].items()},
        )
        for one in value["responses"]
    )
    numbers: dict[str, Any] = {name: value[name] for name in ("row", "weight", "confidence", "gap")}
    return Example(np.array(value["prompt"], np.int32), responses, **numbers)
