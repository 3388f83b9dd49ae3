"""The win rate of a run: its answers against those of what it is compared with, by a judge that is scored itself."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.data.records import Preference
from preftune.errors import PreftuneError
from preftune.evaluation.answer_pairs import as_text
from preftune.evaluation.generating import Generated
from preftune.evaluation.judge_check import JudgeCheck, check_judge
from preftune.evaluation.judges import Comparison, EndpointUse, Judge, open_judge
from preftune.evaluation.opening import Opened
from preftune.evaluation.win_rate import Progress, WinRate, win_rate

CHECKED = 100  # held-out pairs that the judge itself is scored on


def judge_run(
    opened: Opened,
    generated: Generated,
    name: str,
    folder: Path | None,
    *,
    rubric: Path | None = None,
    use: EndpointUse | None = None,
    checked: int = CHECKED,
    seed: int = 0,
    progress: Progress | None = None,
) -> WinRate:
    """Have a judge compare the answers that were generated.

    Args:
        opened: what was evaluated; its held-out pairs are what the judge is scored on.
        generated: the answers of both sides.
        name: the judge, as `judges.open_judge` takes it.
        folder: where verdicts and calls are kept, and replayed from.
        rubric: for a judge behind an endpoint.
        use: of an endpoint.
        checked: held-out pairs to score the judge on; 0: none.
        seed: of the bootstrap.
        progress: told how many of how many are judged.

    Raises:
        PreftuneError: if there is nothing to compare with, or the judge fails.
    """
    if generated.against is None:
        raise PreftuneError(
            f"{opened.name} has nothing that its answers could be judged against: name a run or a model with --against"
        )
    rows = {example.row: row for example, row in zip(opened.examples, opened.rows(), strict=True)}
    comparisons = [
        Comparison(f"prompt {i} answer {k}", as_text(prompt.source), a.text, b.text, rows.get(prompt.row, {}))
        for i, prompt in enumerate(generated.prompts)
        for k, (a, b) in enumerate(zip(generated.policy[i], generated.against[i], strict=True))
    ]
    with open_judge(name, folder, rubric=rubric, use=use) as judge:
        check = _check(opened, judge, rows, checked, seed)
        return win_rate(comparisons, judge, seed=seed, progress=progress, judge_check=check)


def _check(
    opened: Opened, judge: Judge, rows: Mapping[int, Mapping[str, Any]], count: int, seed: int
) -> JudgeCheck | None:
    """The judge's agreement with the labels of the first held-out pairs; None where there are no pairs."""
    pairs = [
        Comparison(
            str(record.where),
            as_text(record.prompt),
            as_text(record.chosen),
            as_text(record.rejected),
            rows.get(example.row, {}),
        )
        for example, record in islice(zip(opened.examples, opened.records(), strict=True), count)
        if isinstance(record, Preference)
    ]
    return check_judge(pairs, judge, seed=seed) if pairs else None
