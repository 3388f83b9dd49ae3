"""Which tokens of a run's answers earned the reward: `preftune inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preftune.data.examples import Example
from preftune.data.pieces import pieces
from preftune.errors import PreftuneError
from preftune.evaluation.credit import SIDES, PairCredit, TokenCredit, spread
from preftune.evaluation.opening import Opened, open_for_evaluation
from preftune.evaluation.scoring import ExampleScore, score
from preftune.objectives.batch import Role
from preftune.report.html import write as write_report
from preftune.training.run_folder import RunFolder


@dataclass(frozen=True)
class Inspected:
    """An example with the credit of its responses.

    Attributes:
        row: of the record in its source.
        prompt: as text.
        responses: what each is ("chosen", "good response", ...), and its credit.
    """

    row: int
    prompt: str
    responses: list[tuple[str, TokenCredit]]

    @property
    def pair(self) -> PairCredit | None:
        """The same as a pair; None if it is none."""
        if tuple(name for name, _ in self.responses) != SIDES:
            return None
        return PairCredit(self.row, self.prompt, *(credit for _, credit in self.responses))


def inspect(
    run: str | Path,
    *,
    rows: Sequence[int] = (),
    count: int = 3,
    worst: bool = False,
    data: str | Path | None = None,
    against: str | Path | None = None,
    write: bool = False,
) -> list[Inspected]:
    """The credit of each token: beta times the log-ratio of policy and reference.

    Args:
        run: a run folder, or a model together with `data` and `against`.
        rows: which ones, by the numbers that messages name; none: `count` of them.
        count: how many, if no rows are named.
        worst: those of the lowest margins instead of the first.
        data: to look at instead of what the run held out.
        against: run or model to compare with instead of the run's reference.
        write: keep the pairs in the run's credit.jsonl, and write its report anew.

    Raises:
        PreftuneError: if there is no such row, nothing to compare with, or the run trained a reward model, whose
            rewards belong to whole responses.
    """
    opened = open_for_evaluation(run, data=data, against=against)
    if opened.is_reward_model:
        raise PreftuneError(
            f"{run} is a reward model: it scores whole responses, and no token has a credit of its own; `preftune "
            "score` gives its rewards"
        )
    if opened.reference is None:
        raise PreftuneError(f"{run} is compared with nothing: name the model that it began as, with --against")
    if write and opened.run is None:
        raise PreftuneError(f"{run} is no run folder, so that there is nowhere to keep credit: leave out --write")
    picked = _pick(opened, rows, count, worst)
    # credit is a matter of log-probs: an objective that compares examples with each other has no say in it
    scored = score(replace(opened, term=None), picked, tokens=True)
    found = [_inspected(opened, example, one) for example, one in zip(picked, scored, strict=True)]
    if write and opened.run is not None:
        _keep(opened.run, found)
    return found


def _pick(opened: Opened, rows: Sequence[int], count: int, worst: bool) -> list[Example]:
    """The examples to look at."""
    if rows:
        by_row = {example.row: example for example in opened.examples}
        missing = [row for row in rows if row not in by_row]
        if missing:
            some = ", ".join(str(row) for row in sorted(by_row)[:5])
            raise PreftuneError(
                f"there is no row {missing[0]} among the {len(by_row)} to look at: the first of them are {some}"
            )
        return [by_row[row] for row in rows]
    if not worst:
        return [*opened.examples[:count]]
    margins = [(one.margin, one.index) for one in score(opened)]
    ordered = sorted((margin, index) for margin, index in margins if margin is not None)
    if not ordered:
        raise PreftuneError(f"{opened.name} has no margins to order by: leave out --worst")
    return [opened.examples[index] for _, index in ordered[:count]]


def _inspected(opened: Opened, example: Example, scored: ExampleScore) -> Inspected:
    beta = 1.0 if opened.beta is None else opened.beta
    tokenizer = opened.tokenizer
    found = []
    responses = [response for response in example.responses if response.role != Role.BASELINE]
    for response, one in zip(responses, scored.responses, strict=True):
        logps, reference = one.token_logps, one.token_reference_logps
        assert logps is not None
        assert reference is not None
        words = pieces(tokenizer, response.ids.tolist())
        credit = TokenCredit(words, spread(logps, response), spread(reference, response), beta)
        found.append((response.name, credit))
    prompt = tokenizer.decode(example.prompt.tolist(), skip_special_tokens=False)
    return Inspected(example.row, str(prompt), found)


def _keep(run: Path, found: Sequence[Inspected]) -> None:
    pairs = [pair for one in found if (pair := one.pair) is not None]
    if not pairs:
        raise PreftuneError("credit is kept for pairs alone, and there is none among these rows: leave out --write")
    RunFolder(run).write_credit(pairs)
    write_report(run)
