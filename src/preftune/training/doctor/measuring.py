"""What the doctor measures of a policy beyond its losses: its answers, parameters that stay, and pairs that displace.

Tensor names carry their shape: K targets, R responses, E examples, X hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from preftune.data.examples import Example, Ids, Response
from preftune.evaluation.sampling import Sampled
from preftune.objectives.batch import Role, pair_indices
from preftune.policy.policy import forward_inputs, logps
from preftune.policy.reference import Reference
from preftune.training import state
from preftune.training.checkpoint import local
from preftune.training.processes import Group
from preftune.training.step import Micro

NGRAM = 4  # tokens; shorter ones come again in any text
PROBED = 4096  # entries of each parameter that are compared with the start
FEW = 0.02  # of them that may change in a tensor that counts as untrained: of rounded weights, a few lie near zero


@dataclass(frozen=True)
class Scores:
    """Log-probs of responses, in nats, each of shape R: of the whole, and of its first and its last target."""

    whole: np.ndarray
    first: np.ndarray
    last: np.ndarray
    length: np.ndarray

    @property
    def per_token(self) -> float:
        """Mean over tokens."""
        return float(self.whole.sum() / self.length.sum())


def as_examples(prompts: Sequence[Sequence[int]], answers: Sequence[Sampled]) -> list[Example]:
    """Answers, those to one prompt side by side, as prompt trees."""
    each = len(answers) // len(prompts)
    return [
        Example(
            np.asarray(prompt, np.int32),
            tuple(Response(one.ids, Role.RANKED, 0.0) for one in answers[each * i : each * (i + 1)]),
        )
        for i, prompt in enumerate(prompts)
    ]


@torch.no_grad()
def scored(policy: nn.Module | Reference, micros: Iterable[Micro], group: Group) -> Scores:
    """Log-probs of all responses of some forwards, shared out over the processes.

    Args:
        policy: the policy as prepared, or a reference.
        micros: this process's forwards.
        group: the processes.
    """
    found: list[Tensor] = []
    training = isinstance(policy, nn.Module) and policy.training
    if isinstance(policy, nn.Module):
        policy.eval()
    for micro in micros:
        batch = micro.batch
        given = policy.logps(batch, micro.examples) if isinstance(policy, Reference) else logps(policy, batch)
        if micro.stand_in:
            continue
        last_R = batch.length_R.cumsum(0) - 1  # targets stand in the order of their responses
        first_R = last_R - batch.length_R + 1
        pieces = (given.sums_R(batch), given.logps_K[first_R], given.logps_K[last_R], batch.length_R)
        found.append(torch.stack([piece.double() for piece in pieces]).cpu())
    if isinstance(policy, nn.Module):
        policy.train(training)
    parts = group.gathered(torch.cat(found, 1) if found else torch.empty(4, 0, dtype=torch.float64))
    return Scores(*torch.cat(parts, 1).numpy())


def of_answers(answers: Sequence[Sampled]) -> dict[str, float]:
    """What answers are like: metrics named `sample_...`, as `training.metrics` defines them."""
    grams, again = 0, 0
    for one in answers:
        windows = [tuple(one.ids[i : i + NGRAM].tolist()) for i in range(len(one.ids) - NGRAM + 1)]
        grams, again = grams + len(windows), again + len(windows) - len(set(windows))
    tokens = sum(len(one.ids) for one in answers)
    return {
        "sample_length": tokens / len(answers),
        "sample_end_rate": sum(one.ended for one in answers) / len(answers),
        "sample_repetition": again / grams if grams else 0.0,
        "sample_distinct": len({one.ids.tobytes() for one in answers}) / len(answers),
        "sample_logp_per_token": float(sum(one.logps.sum() for one in answers) / tokens),
    }


def boundaries(answers: Sequence[Sampled], chosen: Scores) -> dict[str, float]:
    """How surprising responses are where they begin and end, chosen ones and the policy's own: in nats."""
    ended = [one for one in answers if one.ended]
    found = {
        "chosen_first_logp": float(chosen.first.mean()),
        "chosen_last_logp": float(chosen.last.mean()),
        "sample_first_logp": float(np.mean([one.logps[0] for one in answers])),
    }
    return found | ({"sample_last_logp": float(np.mean([one.logps[-1] for one in ended]))} if ended else {})


class Parameters:
    """Entries of all parameters that train, as they were before training, to see which of them have stayed.

    Args:
        policy: as prepared, before its first step.
    """

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy
        # of an input embedding, only the rows of tokens that were read have a gradient
        tables = [m.weight for m in policy.modules() if isinstance(m, nn.Embedding)]
        self.sparse = {_short(name) for name, p in state.parameters(policy) if any(p is table for table in tables)}
        self.start = {name: _entries(p).clone() for name, p in self._trained()}

    def stayed(self, group: Group) -> list[str]:
        """Names of parameters of which next to no compared entry has changed, over all processes."""
        own = {
            name: (int((_entries(p) != self.start[name]).sum()), len(self.start[name])) for name, p in self._trained()
        }
        found = []
        for name, parts in ((name, [part[name] for part in group.gathered(own)]) for name in own):
            moved, compared = (sum(counts) for counts in zip(*parts, strict=True))
            if moved <= (0 if name in self.sparse else FEW * compared):
                found.append(name)
        return found

    def share(self, names: Iterable[str]) -> float:
        """Share of all numbers that train that these parameters have."""
        sizes = {_short(name): p.numel() for name, p in state.parameters(self.policy) if p.requires_grad}
        return sum(sizes[name] for name in names) / max(1, sum(sizes.values()))

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(_short(name), local(p).detach()) for name, p in state.parameters(self.policy) if p.requires_grad]


def _entries(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return flat[:: max(1, math.ceil(flat.numel() / PROBED))]


def _short(name: str) -> str:
    """A parameter's name in the language model itself."""
    return name.removeprefix("lm.")


@torch.no_grad()
def displacing(policy: nn.Module, micros: Iterable[Micro], group: Group) -> list[tuple[float, int]]:
    """How much each pair pushes the chosen response's likelihood down, with its row: the centred hidden embedding
    similarity (CHES, Razin et al. 2024, arXiv 2410.08847, definition 2 and its length-normalised form in section 5):
    <H(chosen), H(rejected)> / (|chosen| |rejected|) - ||H(chosen)||^2 / |chosen|^2, where H sums a response's hidden
    states. Where a model shows no hidden states, the negative edit distance of the two, per token.

    Args:
        policy: as prepared, or a reference's module.
        micros: this process's forwards, over pairs.
        group: the processes.
    """
    training = policy.training
    policy.eval()
    found: list[tuple[float, int]] = []
    for micro in micros:
        batch = micro.batch
        hidden_KX = policy("rows", forward_inputs(batch))["rows_KX"].float()
        if micro.stand_in:
            continue
        sums_RX = hidden_KX.new_zeros(len(batch.length_R), hidden_KX.shape[1])
        mean_RX = sums_RX.index_add(0, batch.response_K, hidden_KX) / batch.length_R[:, None]
        chosen, rejected = pair_indices(batch)
        ches_E = (mean_RX[chosen] * mean_RX[rejected]).sum(1) - (mean_RX[chosen] ** 2).sum(1)
        found.extend(zip(ches_E.tolist(), (example.row for example in micro.examples), strict=True))
    policy.train(training)
    return sorted((pair for part in group.gathered(found) for pair in part), reverse=True)


def alike(examples: Iterable[Example]) -> list[tuple[float, int]]:
    """Pairs by edit distance, the smallest first: negative, as a share of the longer response, with their rows."""
    found = []
    for example in examples:
        sides = {response.role: response.ids for response in example.responses}
        chosen, rejected = sides[Role.CHOSEN], sides[Role.REJECTED]
        found.append((-edit_distance(chosen, rejected) / max(len(chosen), len(rejected)), example.row))
    return sorted(found, reverse=True)


def edit_distance(one: Ids, other: Ids) -> int:
    """Fewest tokens to insert, delete or replace that make one of the other (Levenshtein).

    Example:
        >>> edit_distance(np.array([1, 2, 3, 4]), np.array([1, 3, 4, 5]))
        2
    """
    before = np.arange(len(other) + 1)
    for i, token in enumerate(one, start=1):
        candidates = np.minimum(before[1:] + 1, before[:-1] + (other != token))
        row = np.concatenate([[i], candidates]) - np.arange(len(other) + 1)
        before = np.minimum.accumulate(row) + np.arange(len(other) + 1)  # an insertion costs one for each place
    return int(before[-1])


def against_reference(own: Scores, reference: Scores) -> dict[str, float]:
    """How far a policy's own answers are from the reference."""
    ratio_R = own.whole - reference.whole
    return {
        "sample_reference_logp_per_token": reference.per_token,
        "sample_kl": float(ratio_R.mean()),
        "sample_kl_per_token": float(ratio_R.sum() / own.length.sum()),
    }


def frozen(lm: nn.Module) -> Mapping[str, Any]:
    """Parameters that do not train although nothing explains it: no adapter, no quantised base."""
    if getattr(lm, "peft_config", None) is not None or getattr(lm, "is_quantized", False):
        return {"frozen": (), "frozen_share": 0.0}
    parameters = [(name, p.numel(), p.requires_grad) for name, p in lm.named_parameters()]
    total = sum(size for _, size, _ in parameters)
    still = [(name, size) for name, size, trains in parameters if not trains]
    return {"frozen": tuple(name for name, _ in still), "frozen_share": sum(size for _, size in still) / max(1, total)}
