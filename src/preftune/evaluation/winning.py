"""The win rate of an evaluation: its own answers against the other side's, by a judge that is scored itself first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from preftune.data.records import Preference
from preftune.errors import PreftuneError
from preftune.evaluation.answer_pairs import as_text
from preftune.evaluation.answers import Answer, Prompt
from preftune.evaluation.generating import Generated
from preftune.evaluation.judge_check import JudgeCheck, check_judge
from preftune.evaluation.judges import Comparison, EndpointUse, Judge, open_judge
from preftune.evaluation.opening import Opened
from preftune.evaluation.win_rate import Progress, WinRate, win_rate


@dataclass(frozen=True, kw_only=True)
class Judging:
    """By whom answers are compared.

    Attributes:
        judge: as `judges.open_judge` takes it.
        truth: a judge that knows which of two held-out answers is better; None: their labels.
        checks: held-out pairs that the judge itself is scored on; 0: none.
        rubric: for a judge behind an endpoint.
        use: of an endpoint.
    """

    judge: str
    truth: str | None = None
    checks: int = 64
    rubric: Path | None = None
    use: EndpointUse | None = None

    def opened(self, folder: Path) -> Judge:
        """The judge, whose verdicts (and calls) a folder keeps and replays.

        Raises:
            PreftuneError: if there is no such judge.
        """
        return open_judge(self.judge, folder, rubric=self.rubric, use=self.use)


def winning(
    opened: Opened, generated: Generated, judge: Judge, judging: Judging, seed: int, progress: Progress | None = None
) -> WinRate:
    """Score a judge on held-out pairs, then have it compare the answers.

    Args:
        opened: what was evaluated.
        generated: the answers of both sides.
        judge: who judges; the caller closes it.
        judging: by what the judge itself is scored.
        seed: of the bootstrap.
        progress: told how many of how many are judged.

    Raises:
        PreftuneError: if there is no other side, or the judge fails; verdicts until then are kept.
    """
    if generated.against is None:
        raise PreftuneError(f"{opened.name} has nothing to be judged against: name another model with --against")
    checked = _checked(opened, judge, judging, seed, progress)
    found = comparisons(opened, generated.prompts, generated.policy, generated.against)
    return win_rate(found, judge, seed=seed, progress=progress, judge_check=checked)


def comparisons(
    opened: Opened, prompts: Sequence[Prompt], ours: Sequence[Sequence[Answer]], theirs: Sequence[Sequence[Answer]]
) -> list[Comparison]:
    """Answers of two sides to the same prompts as comparisons, prompt after prompt, with their rows of the data.

    Args:
        opened: whose examples the prompts come from.
        prompts: what was answered.
        ours: answers to each prompt.
        theirs: as many to each.
    """
    rows = {example.row: row for example, row in zip(opened.examples, opened.rows(), strict=True)}
    return [
        Comparison(f"row {prompt.row}, answer {k}", as_text(prompt.source), mine.text, other.text, rows[prompt.row])
        for prompt, group, others in zip(prompts, ours, theirs, strict=True)
        for k, (mine, other) in enumerate(zip(group, others, strict=True))
    ]


def _checked(opened: Opened, judge: Judge, judging: Judging, seed: int, progress: Progress | None) -> JudgeCheck | None:
    """What the judge is worth on held-out pairs; None if there are none."""
    pairs = _pairs(opened, judging.checks)
    if not pairs:
        return None
    if judging.truth is None:
        return check_judge(pairs, judge, seed=seed, progress=progress)
    with open_judge(judging.truth) as truth:
        return check_judge(pairs, judge, truth, seed=seed, progress=progress)


def _pairs(opened: Opened, count: int) -> Sequence[Comparison]:
    """Held-out pairs, the chosen answer first."""
    if opened.kind != "pairs" or not count:
        return ()
    return [
        Comparison(str(one.where), as_text(one.prompt), as_text(one.chosen), as_text(one.rejected), row)
        for one, row in islice(zip(opened.records(), opened.rows(), strict=True), count)
        if isinstance(one, Preference)
    ]
