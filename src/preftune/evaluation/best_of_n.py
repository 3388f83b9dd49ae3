"""Best-of-n: of n answers to a prompt the one that a judge scores highest. The baseline that needs no training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from preftune.errors import PreftuneError
from preftune.evaluation.answer_pairs import as_text
from preftune.evaluation.answers import Answer, Prompt, Sampling, Writer
from preftune.evaluation.intervals import mean_interval, numbered
from preftune.evaluation.judges import Comparison, ScoringJudge, open_judge
from preftune.evaluation.judges.base import finite

Rows = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """Of how many answers the best is kept, and by whom.

    Attributes:
        by: a judge that scores, as `judges.open_judge` takes it.
        policy: answers of the policy of which one is kept; 1: its answers as they come.
        against: likewise of the other side.
    """

    by: str
    policy: int = 1
    against: int = 1

    def __post_init__(self) -> None:
        if min(self.policy, self.against) < 1 or max(self.policy, self.against) < 2:
            raise PreftuneError(
                f"best-of-n keeps one of n answers, but n is {self.policy} on the one side and {self.against} on the "
                "other: set --best-of or --against-best-of to 2 or more"
            )

    @contextmanager
    def opened(self) -> Iterator[ScoringJudge]:
        """The judge that chooses.

        Raises:
            PreftuneError: if there is none of that name, or it gives no scores.
        """
        with open_judge(self.by) as judge:
            if not isinstance(judge, ScoringJudge):
                raise PreftuneError(
                    f"--best-by {self.by} compares two answers and gives them no scores: name a judge that scores "
                    "(reward:RUN, sandbox, gsm8k, a function of one answer)"
                )
            yield judge


def kl_bound(n: int) -> float:
    """Most nats per response that best-of-n is away from the model it samples from: log n - (n - 1) / n.

    Source: Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment policy", arXiv 2401.01879.

    Example:
        >>> round(kl_bound(8), 4)  # log 8 - 7 / 8
        1.2044
    """
    return math.log(n) - (n - 1) / n


@dataclass
class BestWriter:
    """A writer that has another one write n answers for each that is wanted, and keeps the best of them.

    Of equal scores the first is kept; answers come in no order, so that favours none. Answers without a score are kept
    only where none of the n has one.

    Args:
        write: gives the other one.
        sampling: of what is wanted.
        n: at least 2.
        judge: scores answers; the caller closes it.
        rows: of the data, by their numbers, for judges that need more than the prompt.

    Attributes:
        figures: of what was chosen, once it has written: see `_figures`.

    Raises:
        PreftuneError: if all n answers would be the same; while it writes, if the judge fails, gives a score that is
            not finite, or none at all.
    """

    write: Callable[[Sampling], Writer]
    sampling: Sampling
    n: int
    judge: ScoringJudge
    rows: Rows
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sampling.temperature == 0:
            raise PreftuneError(
                f"best of {self.n} needs answers that differ, and a temperature of 0 gives the same one each time: set "
                "--temperature above 0"
            )

    def __call__(self, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        """The best answers to each prompt."""
        wanted = self.sampling.samples_per_prompt
        drawn = self.write(replace(self.sampling, samples_per_prompt=wanted * self.n))(prompts)
        score_PWN = self._scores(prompts, drawn).reshape(len(prompts), wanted, self.n)
        self.figures.update(_figures(score_PWN, self.judge.name))
        best_PW = np.where(np.isnan(score_PWN), -np.inf, score_PWN).argmax(-1)  # of equal ones the first
        return [
            [replace(answers[w * self.n + best], best_of=self.n) for w, best in enumerate(chosen)]
            for answers, chosen in zip(drawn, best_PW.tolist(), strict=True)
        ]

    def _scores(self, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Answer]]) -> np.ndarray:
        """A score for each answer, prompt after prompt; NaN: none."""
        asked = [
            Comparison(f"row {prompt.row}, sample {k}", as_text(prompt.source), answer.text, "", self._row(prompt))
            for prompt, answers in zip(prompts, drawn, strict=True)
            for k, answer in enumerate(answers)
        ]
        found = self.judge.scores([(comparison, comparison.a) for comparison in asked])
        scores = [
            math.nan if score is None else finite(score, self.judge.name, comparison.key)
            for score, comparison in zip(found, asked, strict=True)
        ]
        if np.isnan(scores).all():
            raise PreftuneError(
                f"judge {self.judge.name} gave no score on any of {len(scores)} answers, so none of them is the best: "
                "name another with --best-by"
            )
        return np.array(scores)

    def _row(self, prompt: Prompt) -> Mapping[str, Any]:
        return self.rows.get(prompt.row, {})


def _figures(score_PWN: np.ndarray, judge: str) -> dict[str, Any]:
    """What was chosen from what.

    n, judge, kl_bound: nats per response to the model that was sampled; score: mean of the answers that were kept;
    score_of_all: of all that have a score; no_choice: share of choices in which all scores were equal, so that it is a
    plain sample; unscored: share of answers without a score.
    """
    prompts, _, n = score_PWN.shape
    known_PW = ~np.isnan(score_PWN).all(-1)
    best_K = np.nanmax(score_PWN[known_PW], axis=-1)
    flat_PW = np.array([[len(set(row[~np.isnan(row)].tolist())) < 2 for row in group] for group in score_PWN])
    interval = mean_interval(best_K, numbered(np.repeat(np.arange(prompts), known_PW.sum(-1)).tolist()))
    return {
        "n": n,
        "judge": judge,
        "kl_bound": kl_bound(n),
        "score": float(best_K.mean()),
        "score_ci95": None if interval is None else list(interval),
        "score_of_all": float(np.nanmean(score_PWN)),
        "no_choice": float(flat_PW.mean()),
        "unscored": float(np.isnan(score_PWN).mean()),
    }
