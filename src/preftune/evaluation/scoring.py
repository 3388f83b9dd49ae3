"""Log-probs and implicit rewards of examples, through the same forwards as training: the same numbers.

scores = score(open_for_evaluation("runs/first"), tokens=True)
scores[0].chosen.logp, scores[0].margin, scores[0].chosen.token_logps
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

from preftune.data.examples import Example
from preftune.data.packing import join
from preftune.errors import PreftuneError
from preftune.evaluation.opening import Opened
from preftune.objectives.base import Outcome
from preftune.objectives.batch import Batch, LogProbs, Role
from preftune.policy.policy import logps, rewards
from preftune.training import metrics
from preftune.training.feed import Side
from preftune.training.metrics import Seen, observe
from preftune.training.progress import Bar
from preftune.training.scored import Scored, fetch
from preftune.training.step import Micro

Floats = NDArray[np.float64]
TokenScores = tuple[Floats | None, Floats | None]  # of one response: the policy's log-probs and the reference's


@dataclass(frozen=True, eq=False)
class ResponseScore:
    """What policy and reference say of one response. None where it is not known: log-probs of a reward model, the
    reference's without a reference, rewards where no objective defines them.

    Attributes:
        role: what it is to its example.
        label: 1 good, 0 bad, or its score in a ranking; NaN in pairs.
        tokens: that count (end token included, masked turns left out).
        logp: of the whole response under the policy, nats.
        reference_logp: the same under the reference.
        reward: implicit reward under the objective, or what a reward model says.
        token_logps: of each token that counts, nats, shape (tokens,); None unless asked for.
        token_reference_logps: the same under the reference.
    """

    role: Role
    label: float
    tokens: int
    logp: float | None
    reference_logp: float | None
    reward: float | None
    token_logps: Floats | None = None
    token_reference_logps: Floats | None = None

    @property
    def log_ratio(self) -> float | None:
        """Policy's log-prob less the reference's, nats."""
        return None if self.logp is None or self.reference_logp is None else self.logp - self.reference_logp


@dataclass(frozen=True, eq=False)
class ExampleScore:
    """What policy and reference say of one example.

    Attributes:
        index: in `opened.examples`.
        row: of the record in its source.
        responses: in the example's order; those that only serve as baselines are left out.
    """

    index: int
    row: int
    responses: tuple[ResponseScore, ...]

    @property
    def chosen(self) -> ResponseScore:
        """The chosen response of a pair; the best of a ranking."""
        return self._extremes[0]

    @property
    def rejected(self) -> ResponseScore:
        """The rejected response of a pair; the worst of a ranking."""
        return self._extremes[1]

    @property
    def is_pair(self) -> bool:
        """True if it has a better and a worse response."""
        return len(self.responses) > 1

    @property
    def delta(self) -> float | None:
        """Difference of the two log-ratios, nats."""
        if not self.is_pair or self.chosen.log_ratio is None or self.rejected.log_ratio is None:
            return None
        return self.chosen.log_ratio - self.rejected.log_ratio

    @property
    def margin(self) -> float | None:
        """Chosen reward less rejected reward."""
        if not self.is_pair or self.chosen.reward is None or self.rejected.reward is None:
            return None
        return self.chosen.reward - self.rejected.reward

    @property
    def _extremes(self) -> tuple[ResponseScore, ResponseScore]:
        """Best and worst, as training's metrics take them: of equal ones the last is best, and the first is worst."""
        value = {Role.CHOSEN: 1.0, Role.REJECTED: 0.0}
        ordered = sorted(self.responses, key=lambda one: value.get(one.role, one.label))
        return ordered[-1], ordered[0]


@dataclass(frozen=True)
class Scores(Sequence[ExampleScore]):
    """Scores of all examples, in their order.

    Attributes:
        scores: one for each example.
        table: the same as `training.metrics` has it: columns by name, shape (examples,), which
            `metrics.summarise` reads.
    """

    scores: tuple[ExampleScore, ...]
    table: dict[str, Floats]

    @cached_property
    def start(self) -> dict[str, Floats]:
        """The table with the reference in the policy's place, for what `metrics.held_out` compares with."""
        found = dict(self.table)
        for name in ("chosen", "rejected", "response"):
            if f"{name}_ratio" in found:
                found[f"{name}_logp"] = found[f"{name}_logp"] - found[f"{name}_ratio"]
                found[f"{name}_ratio"] = np.zeros_like(found[f"{name}_ratio"])
        return found

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> ExampleScore: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ExampleScore]: ...
    def __getitem__(self, index: int | slice) -> ExampleScore | Sequence[ExampleScore]:
        return self.scores[index]


def score(
    opened: Opened, examples: Sequence[Example] | None = None, *, tokens: bool = False, show: bool = False
) -> Scores:
    """Log-probs and rewards of examples.

    Args:
        opened: policy, reference and objective.
        examples: which ones; none: `opened.examples`.
        tokens: keep those of single tokens, too.
        show: draw a progress bar.

    Raises:
        PreftuneError: if the policy or the reference gives a log-prob or a reward that is not finite; or if the
            objective compares more examples than there are.
    """
    if opened.kind == "rollouts":
        raise PreftuneError(f"{opened.data} has prompts alone, and no responses to score: name data that has (--data)")
    examples = opened.examples if examples is None else examples
    if not len(examples):
        return Scores((), {})
    side = opened.feed.side(examples)
    order = [index for forward in side.own.real for index in forward]
    pieces, parts = _forwards(opened, side, tokens, show)
    columns = metrics.table([*map(metrics.columns, pieces)])
    back = np.argsort(order)
    table = {name: column[back] for name, column in columns.items()}
    found: list[tuple[ResponseScore, ...]] = [one for piece in pieces for one in _responses(piece)]
    if tokens:
        found = [_with_tokens(scores, part) for scores, part in zip(found, parts, strict=True)]
    kept = (tuple(one for one in found[at] if one.role != Role.BASELINE) for at in back)
    scores = tuple(ExampleScore(index, examples[index].row, responses) for index, responses in enumerate(kept))
    _check_finite(opened, scores)
    return Scores(scores, table)


@torch.no_grad()
def _forwards(opened: Opened, side: Side, tokens: bool, show: bool) -> tuple[list[Seen], list[list[TokenScores]]]:
    """What was seen of each forward (of all of them as one, if the objective compares examples); and, if asked for,
    log-probs of the tokens of each example's responses. Both in the order of the forwards, on the host."""
    seen, held, parts = list[Seen](), list[_Said](), list[list[TokenScores]]()
    couples = opened.term is not None and opened.term.objective.couples
    with Bar(len(side), show, title="score") as bar:
        for micro in side:
            said = _Said.of(opened, micro)
            if couples:
                held.append(said)
            else:
                seen.append(said.seen(opened))
            if tokens:
                parts.extend(said.tokens())
            bar.advance()
    if held:
        seen.append(_Said.join(held).seen(opened))
    return list(fetch([Scored((), tuple(seen), ())])[0].seen), parts


@dataclass(frozen=True)
class _Said:
    """What policy and reference said of a batch."""

    policy: LogProbs
    reference: LogProbs | None
    batch: Batch

    @classmethod
    def of(cls, opened: Opened, micro: Micro) -> _Said:
        """Of one forward."""
        batch = micro.batch
        if opened.is_reward_model:
            return cls(rewards(opened.policy, batch), None, batch)
        needs = frozenset[str]() if opened.term is None else opened.term.objective.needs
        other = None
        if "kl_K" in needs and opened.reference is not None:
            other = opened.reference.logits(batch, micro.examples)
        reference = None if opened.reference is None else opened.reference.logps(batch, micro.examples)
        return cls(logps(opened.policy, batch, needs, other), reference, batch)

    @classmethod
    def join(cls, many: Sequence[_Said]) -> _Said:
        """Of several forwards as one."""
        references = [one.reference for one in many if one.reference is not None]
        batch = join([one.batch for one in many])
        return cls(
            LogProbs.join([one.policy for one in many]), LogProbs.join(references) if references else None, batch
        )

    def seen(self, opened: Opened) -> Seen:
        """With the rewards that the objective gives, NaN where there are none."""
        term = opened.term
        if term is None:
            length_R = self.batch.length_R
            nothing = torch.full(length_R.shape, torch.nan, device=length_R.device)
            outcome = Outcome(self.policy.logps_K.new_empty(0), nothing, {})
        else:
            reference = self.reference if term.objective.reference else None
            try:
                outcome = term.objective(self.policy, reference, self.batch, term.objective.init())
            except ValueError as error:  # it compares more examples than there are
                raise PreftuneError(
                    f"{opened.name} cannot be scored on {opened.data or 'this data'}: {error}"
                ) from error
            outcome = replace(outcome, extras={})  # they may depend on a state that has ended with the run
        return observe(self.policy, self.reference, outcome, self.batch)

    def tokens(self) -> list[list[TokenScores]]:
        """Of each example, of each response: the policy's log-probs and the reference's."""
        batch = self.batch
        lengths_R = batch.length_R.tolist()
        order_K = torch.argsort(batch.response_K, stable=True)

        def split(found: LogProbs | None) -> list[Floats | None]:
            if found is None or found.reward_R is not None:
                return [None] * len(lengths_R)
            values_K = found.logps_K[order_K].double().cpu()
            return [part.numpy() for part in values_K.split(lengths_R)]

        made: list[list[TokenScores]] = [[] for _ in range(len(batch.weight_E))]
        for example, *pair in zip(batch.example_R.tolist(), split(self.policy), split(self.reference), strict=True):
            made[example].append((pair[0], pair[1]))
        return made


def _responses(piece: Seen) -> list[tuple[ResponseScore, ...]]:
    """The responses of each example of a piece."""
    batch, values = piece.responses, {name: value_R.tolist() for name, value_R in piece.values_R.items()}
    found: list[list[ResponseScore]] = [[] for _ in range(len(batch.weight_E))]
    columns = (batch.example_R.tolist(), batch.role_R.tolist(), batch.score_R.tolist(), batch.length_R.tolist())
    for at, (example, role, label, length) in enumerate(zip(*columns, strict=True)):
        reward = values["reward"][at]
        found[example].append(
            ResponseScore(
                role=Role(role),
                label=label,
                tokens=length,
                logp=values["logp"][at] if "logp" in values else None,
                reference_logp=values["reference"][at] if "reference" in values else None,
                reward=None if math.isnan(reward) else reward,
            )
        )
    return [tuple(one) for one in found]


def _with_tokens(scores: Sequence[ResponseScore], parts: Sequence[TokenScores]) -> tuple[ResponseScore, ...]:
    return tuple(
        replace(one, token_logps=ours, token_reference_logps=theirs)
        for one, (ours, theirs) in zip(scores, parts, strict=True)
    )


def _check_finite(opened: Opened, scores: Sequence[ExampleScore]) -> None:
    """Refuse values that are none.

    Raises:
        PreftuneError: names the first row.
    """
    for example in scores:
        for one in example.responses:
            for name, value in (("policy", one.logp), ("reference", one.reference_logp), ("reward", one.reward)):
                if value is not None and not math.isfinite(value):
                    whose = opened.against if name == "reference" else opened.name
                    what = "a reward" if name == "reward" else "a log-prob"
                    raise PreftuneError(
                        f"{whose} gives a response of row {example.row} {what} that is not finite: its weights are of "
                        "no use, or too large for this precision (train.precision=fp32)"
                    )
